"""The rows of a damaged file, for tests/faults/fuzz.py, read by code that shares nothing with the package.

It uses zlib, json line by line and a CSV parser of its own, and checks a judgement against its raw row.
"""

from __future__ import annotations

import contextlib
import html
import json
import math
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from taosr1.data.judgements import COLUMNS, Judgement


class Wrong(Exception):
    """The verdict FAILURE, in words."""


@dataclass
class Spelled:
    """The content of a file, as its bytes spell it."""

    rows: dict[int, dict | None]  # line on which it begins -> the row; None: no reader may make a row of it
    sound: bool = True  # False: the file as a whole is damaged, so every reader must end with an error
    replaced: set[int] = field(default_factory=set)  # lines with a NUL or half a surrogate pair, to replace and report


def oracle(data: bytes, form: str, *, named_gz: bool) -> Spelled:
    """The content of a file of this format (jsonl, csv, tsv)."""
    sound = True
    if data[:2] == b"\x1f\x8b":
        data, sound = unpacked(data)
    elif named_gz and not is_sound(data):
        return Spelled({}, False)
    if data.startswith((b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")):
        return Spelled({}, False)
    lines = [line + b"\n" for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n")]
    lines[-1] = lines[-1][:-1]
    if not lines[-1]:
        lines.pop()
    if form != "jsonl":
        return csv_rows(lines, "\t" if form == "tsv" else ",", sound)
    spelled = Spelled({}, sound)
    for number, line in enumerate(lines, start=1):
        if line.decode("utf-8", "replace").strip():
            row = json_row(line)
            spelled.rows[number] = clean(row)
            spelled.replaced |= {number} if canonical(row) != canonical(clean(row)) else set()
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

    def never(_):
        raise ValueError

    try:
        row = json.loads(line if is_sound(line) else "", object_pairs_hook=once, parse_constant=never)
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


def csv_rows(lines: list[bytes], delimiter: str, sound: bool) -> Spelled:
    header, rows = None, {}
    for start, cells in csv_records(lines, delimiter):
        if header is None:
            names = [name.strip() for name in cells or []]  # of broken bytes or quotes there are none
            if not names or "" in names or len(set(names)) < len(names):
                return Spelled({}, False)
            header = names
        else:
            rows[start] = dict(zip(header, cells)) if cells is not None and len(cells) == len(header) else None
    return Spelled(rows, sound)


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


# --- A judgement against its raw row ----------------------------------------------------------------------------------


def check_judgement(row: Judgement, raw: dict, line: int) -> None:
    """Raise Wrong if a judgement differs from its raw row."""
    esci = "title" not in raw
    named = {
        "title": "product_title", "brand": "product_brand", "category": "product_category", "price": "product_price",
        "item_id": "product_id", "attributes": None, "description": "product_description", "query_kind": None,
    } if esci else {}  # fmt: skip
    for name in COLUMNS:
        told = getattr(row, name)
        source = name if raw.get(name) not in (None, "") else named.get(name, name)
        if name == "grade":
            told, expected = told, grade_of(raw, esci)
        elif source is None:
            continue
        elif source != name and name in ("title", "brand", "description"):
            expected = raw.get(source)
            expected = " ".join(html.unescape(expected).split()) if isinstance(expected, str) else told
            told, expected = (told, told) if name == "description" and "<" in expected else (told, expected)
        else:
            expected = spelled_as_text(raw.get(source), told, name)
        if told != expected:
            raise Wrong(f"line {line}: {name} is {told!r:.200}, the file says {expected!r:.200}")
    rest = {name: value for name, value in raw.items() if name not in COLUMNS}
    if canonical(row.extra) != canonical(rest):
        raise Wrong(f"line {line}: other columns are {row.extra!r:.200}, the file says {rest!r:.200}")


def grade_of(raw: dict, esci: bool) -> int | None:
    label = raw.get("esci_label") if esci else None
    if label is not None and str(label).strip():
        return {"E": 4, "S": 3, "C": 2, "I": 1}[str(label).strip().upper()[0]]
    value = raw.get("grade")
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    return {"1": 1, "2": 2, "3": 3, "4": 4}[str(value).strip()[0]]


def spelled_as_text(value: object, told: str, name: str) -> str:
    if isinstance(value, str):
        return "\n".join(line.rstrip() for line in value.split("\n")).strip() if name == "cot" else value
    if value is None:
        return ""
    if isinstance(value, float):
        return told if float(told) == value else repr(value)
    if isinstance(value, (list, dict)):
        words = [
            str(leaf).replace(";", ",") if name == "attributes" else str(leaf)
            for leaf in leaves(value)
            if isinstance(leaf, (str, int)) and not isinstance(leaf, bool)
        ]
        return told if all(word in told for word in words) else repr(value)
    return str(value)


def canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True)
