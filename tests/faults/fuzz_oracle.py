"""The rows of a damaged file, for tests/faults/fuzz.py, read by code that shares nothing with the package.

It uses zlib, json value by value and a CSV parser of its own. What a file leaves open (its encoding, the delimiter,
whether quotes enclose) the reader claims, and the claim is checked against the bytes.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field


class Wrong(Exception):
    """The verdict FAILURE, in words."""


@dataclass
class Spelled:
    """The content of a file, as its bytes spell it."""

    rows: dict[int, dict | None]  # line on which it begins -> the row; None: no reader may make a row of it
    sound: bool = True  # False: the file as a whole is damaged, so every reader must end with an error
    columns: int = 0  # of a table
    shared_lines: bool = False  # two rows begin on one line
    replaced: set[int] = field(default_factory=set)  # lines with a NUL or half a surrogate pair, to replace and report


@dataclass(frozen=True)
class Claims:
    """What the reader says that it has found out about a file; the oracle checks it."""

    encoding: str = "UTF-8"
    delimiter: str = ""  # "" where it is the usual one of the name
    text_quotes: bool = False

    @classmethod
    def printed(cls, text: str, usual: str | bool) -> Claims:
        """usual: the delimiter where none is named, because the file was refused before."""
        encodings = re.findall(r": read in (UTF-16 [LB]E|cp1252)", text)
        delimiter = re.search(r": read (?:in [^,\n]*, )?with ('[,;|]'|tabs) between the cells", text)
        found = {"tabs": "\t"}.get(delimiter[1], delimiter[1].strip("'")) if delimiter else usual or ""
        return cls(encodings[-1] if encodings else "UTF-8", found, "with quotes as text" in text)


USUAL = {"csv": ",", "tsv": "\t", "txt": ","}


def oracle(data: bytes, form: str, *, named_gz: bool, claims: Claims = Claims(), delimiter: str = "") -> Spelled:
    """The content of a file of this format (jsonl, json, csv, tsv, txt), written with this delimiter.

    Raises: Wrong for a claim that the bytes do not bear out.
    """
    sound = True
    if data[:2] == b"\x1f\x8b":
        data, sound = unpacked(data)
        if not sound:
            return Spelled({}, False)
    elif named_gz and not is_sound(data):
        return Spelled({}, False)
    data, whole = as_utf8(data, claims.encoding)
    sound = sound and whole
    if data is None:
        return Spelled({}, False)
    lines = [line + b"\n" for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n")]
    lines[-1] = lines[-1][:-1]
    if not lines[-1]:
        lines.pop()
    if form in USUAL:
        return table(lines, form, sound, claims, delimiter)
    if form == "json" and not holds_lines(lines):
        return json_values(b"".join(lines).decode("utf-8", "surrogateescape").replace("\0", "\udc00"), sound)
    spelled = Spelled({}, sound)
    for number, line in enumerate(lines, start=1):
        if line.decode("utf-8", "replace").strip():
            row = json_row(line)
            spelled.rows[number] = clean(row)
            spelled.replaced |= {number} if canonical(row) != canonical(clean(row)) else set()
    return spelled


def as_utf8(data: bytes, encoding: str) -> tuple[bytes | None, bool]:
    """(the text in UTF-8, or None if it is in another encoding; whether all of it can be decoded)."""
    if encoding == "UTF-8":
        return (None if data.startswith((b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")) else data), True
    if encoding == "cp1252":
        lines = [line for line in data.split(b"\n") if max(line, default=0) > 127]
        high = sum(byte > 127 for line in lines for byte in line)
        if len(lines) < 2 or high < 3 or any(is_sound(line) for line in lines):
            raise Wrong(f"read as cp1252, with {high} bytes beyond ASCII in {len(lines)} lines")
        return data.decode("cp1252").encode(), True
    if not data.startswith((b"\xff\xfe", b"\xfe\xff")) and data[:64].count(0) < 2:
        raise Wrong("read as UTF-16, without its mark and its zero bytes")
    name = {"UTF-16 LE": "utf-16-le", "UTF-16 BE": "utf-16-be"}[encoding]
    text = data[: len(data) // 2 * 2].decode(name, "surrogatepass")
    # A pair of surrogates that is cut off at the end is damage too.
    whole = len(data) % 2 == 0 and not (text and "\ud800" <= text[-1] <= "\udbff")
    return text.removeprefix("\ufeff").encode("utf-8", "surrogatepass"), whole


def table(lines: list[bytes], form: str, sound: bool, claims: Claims, delimiter: str) -> Spelled:
    """The rows of a table in the reading that was claimed, if no other has more good rows."""
    claimed = claims.delimiter or USUAL[form]
    read = csv_rows(lines, claimed, sound, text_quotes=claims.text_quotes)
    if not read.sound:
        return read
    other = csv_rows(lines, delimiter, sound)
    if claimed != delimiter and other.columns > 1 and good_rows(other) > good_rows(read):
        raise Wrong(f"read with {claimed!r} between the cells, but {delimiter!r} gives more rows")
    if claims.text_quotes and good_rows(csv_rows(lines, claimed, sound)) > good_rows(read):
        raise Wrong("quotes were read as text, but enclosing quotes give more rows")
    return read


def good_rows(spelled: Spelled) -> int:
    return sum(row is not None for row in spelled.rows.values())


def holds_lines(lines: list[bytes]) -> bool:
    """Whether a .json file is one of JSON Lines."""
    heads = [line for line in lines if line.strip(b" \t\r\n\xef\xbb\xbf")][:3]
    if not heads or heads[0].strip(b" \t\r\n\xef\xbb\xbf").startswith(b"["):
        return not heads
    found = [row for row in map(json_row, heads) if row is not None]
    only_list = len(heads) == 1 and found and any(isinstance(value, list) for value in found[0].values())
    return bool(found) and not only_list


def json_values(text: str, sound: bool) -> Spelled:
    """The elements of an array, or the values behind each other. Two that begin on one line cannot be told apart."""
    spelled, at, is_array = Spelled({}, sound), 0, text.lstrip(" \t\r\n").startswith("[")
    white, decode = re.compile(r"[ \t\r\n]*"), json.JSONDecoder().raw_decode
    at = white.match(text).end() + is_array
    first = True
    while True:
        at = white.match(text, at).end()
        if is_array and text[at : at + 1] == "]":
            spelled.sound &= white.match(text, at + 1).end() == len(text)
            return spelled
        if is_array and not first:
            if text[at : at + 1] != ",":
                break
            at = white.match(text, at + 1).end()
        if at == len(text):
            spelled.sound &= not is_array
            return spelled
        line = text.count("\n", 0, at) + 1
        try:
            _, end = decode(text, at)
        except (ValueError, RecursionError):
            break
        damaged = re.search("[\udc00-\udcff]", text[at:end])
        row = None if damaged else json_row(text[at:end].encode("utf-8", "surrogatepass"))
        spelled.shared_lines |= line in spelled.rows
        spelled.rows[line] = clean(row)
        spelled.replaced |= {line} if canonical(row) != canonical(clean(row)) else set()
        at, first = end, False
    spelled.sound = False
    return spelled


def unpacked(data: bytes) -> tuple[bytes, bool]:
    """(what gzip data holds, whether it is sound). Members follow each other; zero bytes behind them are padding."""
    out = b""
    while data:
        data = (
            data[:3] + bytes(flags & 0x1F for flags in data[3:4]) + data[4:]
        )  # zlib minds the reserved flags, gzip readers need not
        member = zlib.decompressobj(wbits=31)
        try:
            out += member.decompress(data)
        except zlib.error:
            return out, False
        if not member.eof:
            return out, False
        data = member.unused_data.lstrip(b"\0")
    return out, True


def is_sound(line: bytes) -> bool:
    with contextlib.suppress(UnicodeDecodeError):
        return "\0" not in line.decode("utf-8")
    return False


def json_row(line: bytes) -> dict | None:
    def once(pairs):
        if len({clean(name) for name, _ in pairs}) < len(pairs):
            raise ValueError
        return dict(pairs)

    def constant(spelled):  # NaN is what Python writes for a missing number, and is read as null
        if spelled != "NaN":
            raise ValueError

    try:
        row = json.loads(line if is_sound(line) else "", object_pairs_hook=once, parse_constant=constant)
        finite = "inf" not in repr(row) or all(math.isfinite(x) for x in leaves(row) if isinstance(x, float))
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and finite else None


def clean(value):
    """NUL and lone surrogates are documented to become U+FFFD."""
    if isinstance(value, str):
        return "".join("\ufffd" if c == "\0" or "\ud800" <= c <= "\udfff" else c for c in value)
    if isinstance(value, list):
        return [clean(item) for item in value]
    if isinstance(value, dict):
        return {clean(name): clean(item) for name, item in value.items()}
    return value


def leaves(value) -> Iterator[object]:
    if isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from leaves(item)
    else:
        yield value


def csv_rows(lines: list[bytes], delimiter: str, sound: bool, *, text_quotes: bool = False) -> Spelled:
    header, rows, inside = None, {}, []
    records = split_lines(lines, delimiter) if text_quotes else csv_records(lines, delimiter)
    for start, cells in records:
        if header is None and not rows and len(cells or []) < 3 and re.fullmatch(rb'"?sep=.?"?\s*', lines[start - 1]):
            continue
        if header is None:
            names = [name.strip() for name in cells or []]  # of broken bytes or quotes there are none
            last = max((at for at, name in enumerate(names) if name), default=-1)
            named = [name for name in names if name]
            if last < 0 or len(set(named)) < len(named):
                return Spelled({}, False)
            header, inside = names, [at for at in range(1, last) if not names[at]]
        else:
            fits = cells is not None and len(cells) == len(header)
            if fits and any(cells[at].strip() for at in inside):
                return Spelled({}, False)
            fits = fits and not any(cell.strip() for name, cell in zip(header[1:], cells[1:]) if not name)
            rows[start] = {name: cell for name, cell in zip(header, cells) if name} if fits else None
    return Spelled(rows, sound, columns=len(header or []))


def split_lines(lines: list[bytes], delimiter: str) -> Iterator[tuple[int, list[str] | None]]:
    """(line, cells) of every line that is not blank, where quotes are characters."""
    for number, line in enumerate(lines, start=1):
        text = line.decode("utf-8", "replace")
        bare = text.rstrip("\r\n")
        if text.strip():
            yield number, bare.split(delimiter) if is_sound(line) and "\r" not in bare else None


def csv_records(lines: list[bytes], delimiter: str) -> Iterator[tuple[int, list[str] | None]]:
    """(first line, cells) of every record that is not a blank line, by RFC 4180; cells are None for a malformed record.

    A quote inside a cell that does not begin with one is a character. A malformed record ends with its line.
    """
    pieces = re.compile(rf'[^"\r\n{delimiter}]+|.', re.DOTALL)
    state, start, cells, cell, sound, head = "end", 1, [], [], True, ""
    for number, line in enumerate(lines, start=1):
        text = line.decode("utf-8", "replace")
        if state != "quoted":
            state, start, cells, cell, sound, head = "begin", number, [], [], True, text
        sound = sound and is_sound(line)
        for piece in pieces.findall(text):
            if state == "end" and piece not in "\r\n" or state == "closing" and piece not in f'"\r\n{delimiter}':
                state = "error"
                break
            if (
                state == "quoted"
                and piece != '"'
                or state == "closing"
                and piece == '"'
                or state != "quoted"
                and piece not in f'"\r\n{delimiter}'
            ):
                cell.append(piece)
                state = "quoted" if state in ("quoted", "closing") else "bare"
            elif piece == '"':
                state = {"quoted": "closing", "begin": "quoted"}.get(state, state)
                cell += [piece] if state == "bare" else []
            elif state != "end":
                cells.append("".join(cell))
                cell, state = [], "begin" if piece == delimiter else "end"
        if state == "error":
            yield start, None
        elif state != "quoted":
            cells += [] if state == "end" else ["".join(cell)]
            if head.strip():
                yield start, cells if sound else None
    if state == "quoted":
        yield start, None


def canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True)
