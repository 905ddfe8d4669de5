"""Rows in and out of files: JSON Lines, CSV, TSV, plain or gzipped, row by row, every problem with file and line.

Everything that reads or writes rows (judgements, rules, preference pairs, a teacher's replies) goes through here, so a
damaged file is reported the same way everywhere.

Choice: text is cleaned at this edge. Lone surrogates (legal in JSON, impossible in UTF-8 and fatal in a tokenizer) and
NUL become U+FFFD; nothing else is altered.
"""

from __future__ import annotations

import csv
import gzip
import json
import math
import os
import re
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

# A line beyond this is no row but a file of another kind; reading it would only fill the memory.
MAX_LINE_BYTES = 64 * 2**20

_UNENCODABLE = re.compile("[\ud800-\udfff\0]")
# Bytes that are no UTF-8 become U+DC80..U+DCFF ("surrogateescape"); a raw NUL is marked likewise, by U+DC00.
_DAMAGE = re.compile("[\udc00-\udcff]")
_NUL_MARK = "\udc00"


class BadRows:
    """What happens to bad rows: the first `allowed` are skipped and printed to stderr, one more is an error."""

    def __init__(self, path: str | Path, allowed: int = 0, *, flag: str = "--max-bad-rows") -> None:
        if allowed < 0:
            raise ValueError(f"{flag} is {allowed}, expected 0 or more")
        self.path, self.allowed, self.flag, self.skipped = path, allowed, flag, 0

    def add(self, line: int, problem: object) -> None:
        """Skip one bad row, or raise ValueError("file:line: problem") where no more may be skipped."""
        if self.skipped >= self.allowed:
            hint = f"more than the {self.allowed} of {self.flag}" if self.allowed else f"{self.flag} N skips up to N"
            raise ValueError(f"{self.path}:{line}: {problem}" + (f" ({hint})" if self.flag else ""))
        self.skipped += 1
        print(f"skipped {self.path}:{line}: {problem}", file=sys.stderr)


def clean_text(text: str) -> str:
    """The text without lone surrogates and NUL (each becomes U+FFFD)."""
    return _UNENCODABLE.sub("\ufffd", text) if _UNENCODABLE.search(text) else text


def clean_value(value: Any) -> Any:
    """`clean_text` on every string inside a JSON value."""
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, dict):
        return {clean_text(str(key)): clean_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean_value(item) for item in value]
    return value


def check_file(path: str | Path, flag: str = "--data") -> Path:
    """The path of an existing file; FileNotFoundError / ValueError names the flag to change."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no file at {path}: check {flag}")
    if path.is_dir():
        raise ValueError(f"{path} is a folder, expected a file: check {flag}")
    return path


def read_jsonl(
    path: str | Path, bad_rows: BadRows | None = None, *, flag: str = "--data"
) -> Iterator[tuple[int, dict]]:
    """The objects of a JSON Lines file (gzipped or not) with their line numbers, from 1; blank lines are passed over.

    Raises: ValueError naming file and line for a row that is no JSON object (`bad_rows` may skip it), a repeated key,
        bytes that are not UTF-8, a line cut off at the end of the file, a damaged gzip stream; FileNotFoundError.
    """
    path = check_file(path, flag)
    bad_rows = bad_rows or BadRows(path, flag="")
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            row = _parse_json(line)
        except ValueError as problem:
            bad_rows.add(number, problem)
        else:
            yield number, row


def read_csv(
    path: str | Path, bad_rows: BadRows | None = None, *, flag: str = "--data", delimiter: str = ","
) -> Iterator[tuple[int, dict]]:
    """The records of a CSV file with a header line, as dicts of strings with the line number each begins on.

    Raises: ValueError as in `read_jsonl`, and for a header or a record that does not fit; FileNotFoundError.
    """
    path = check_file(path, flag)
    bad_rows = bad_rows or BadRows(path, flag="")
    # The module's default of 128 KiB is less than a long description.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE_BYTES))
    reader = csv.reader((line for _, line in _lines(path)), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        number = reader.line_num + 1
        try:
            record = next(reader, None)
            if record is None:
                return
            if not record or (len(record) == 1 and not record[0].strip()):
                continue
            if header is None:
                header = _check_header(path, number, record, delimiter)
                continue
            if any(_DAMAGE.search(cell) for cell in record):
                raise ValueError(_damage("".join(record)))
            if len(record) != len(header):
                raise ValueError(f"{len(record)} cells, expected {len(header)} as in the header")
        except csv.Error as problem:
            if header is None:
                raise _FileError(f"{path}:{number}: broken CSV header: {problem}") from None
            bad_rows.add(number, f"broken CSV: {problem} (quotes inside a quoted cell are doubled)")
        except _FileError:
            raise
        except ValueError as problem:
            bad_rows.add(number, problem)
        else:
            yield number, dict(zip(header, record))


def write_jsonl(path: str | Path, rows: Iterable[dict]) -> int:
    """Write rows as JSON Lines (gzipped where the name ends in .gz): the whole file, or no file at all.

    Written beside its place, fsynced and renamed, so that a crash never leaves half a file under the final name.

    Returns: the number of rows.
    """
    count = 0
    with _replacing(Path(path)) as stream:
        for row in rows:
            line = json.dumps(clean_value(row), ensure_ascii=False, allow_nan=False)
            stream.write(line.encode("utf-8") + b"\n")
            count += 1
    return count


class _FileError(ValueError):
    """The file as a whole is damaged: no row can be skipped to get past it."""


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines with their numbers; broken bytes stay in the text as marks that `_DAMAGE` finds."""
    number = 0
    with open(path, "rb") as raw:
        head = raw.read(2)
        raw.seek(0)
        if head in (b"\xff\xfe", b"\xfe\xff"):
            raise _FileError(f"{path}: this file is UTF-16, expected UTF-8")
        # By content, not by name: a downloaded .gz is often unpacked, and a .jsonl often is not.
        stream: BinaryIO = gzip.GzipFile(fileobj=raw) if head == b"\x1f\x8b" else raw  # type: ignore[assignment]
        if head and head != b"\x1f\x8b" and path.suffix == ".gz" and not head.isascii():
            raise _FileError(f"{path}: named .gz, but this is not gzip data")
        while True:
            try:
                data = stream.readline(MAX_LINE_BYTES + 1)
            except (EOFError, zlib.error, gzip.BadGzipFile) as problem:
                raise _FileError(f"{path}:{number + 1}: damaged or cut off gzip data ({problem})") from None
            if not data:
                return
            number += 1
            if len(data) > MAX_LINE_BYTES:
                raise _FileError(
                    f"{path}:{number}: a line of more than {MAX_LINE_BYTES} bytes; expected one row a line"
                )
            if number == 1:
                data = data.removeprefix(b"\xef\xbb\xbf")
            yield number, data.decode("utf-8", "surrogateescape").replace("\0", _NUL_MARK)


def _damage(text: str) -> str:
    mark = _DAMAGE.search(text)
    assert mark is not None
    if mark.group() == _NUL_MARK:
        return "NUL byte in the text (was the file damaged in a crash?)"
    return f"not UTF-8: byte 0x{ord(mark.group()) - 0xDC00:02x}"


def _parse_json(line: str) -> dict:
    """One line as a dict; ValueError says what is wrong with it."""
    if _DAMAGE.search(line):
        raise ValueError(_damage(line))
    try:
        row = json.loads(line, object_pairs_hook=_object, parse_constant=_no_constant, parse_float=_finite)
        if not isinstance(row, dict):
            raise ValueError(f"a JSON {type(row).__name__}, expected one object a line")
        row = clean_value(row)
    except json.JSONDecodeError as problem:
        torn = "" if line.endswith("\n") else "; the file ends inside this line: was its writing cut off?"
        raise ValueError(
            f"not JSON: {problem.msg} at column {problem.colno}, expected one object a line{torn}"
        ) from None
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None
    return row


def _object(pairs: list[tuple[str, Any]]) -> dict:
    row = dict(pairs)
    if len(row) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"field {next(name for name in names if names.count(name) > 1)!r} appears twice")
    return row


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON: write null for a missing value")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"number {digits[:20]} is out of range")
    return value


def _check_header(path: Path, number: int, record: list[str], delimiter: str) -> list[str]:
    header = [name.strip() for name in record]
    if any(_DAMAGE.search(name) for name in header):
        raise _FileError(f"{path}:{number}: {_damage(''.join(header))}")
    if "" in header:
        raise _FileError(f"{path}:{number}: header {header!r} has an empty column name")
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise _FileError(f"{path}:{number}: header names {repeated} twice")
    other = {",": ";", "\t": ","}.get(delimiter, ",")
    if len(header) == 1 and other in header[0]:
        raise _FileError(f"{path}:{number}: cells seem to be separated by {other!r}, expected {delimiter!r}")
    return header


@contextmanager
def _replacing(path: Path) -> Iterator[Any]:
    """A binary stream whose content takes the place of `path` on success and vanishes on an exception."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise ValueError(f"{path} is a folder, expected a file name to write: check --out")
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(aside, "wb") as raw:
            if path.suffix == ".gz":
                # No name and no time inside: the same rows give the same bytes.
                with gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as stream:
                    yield stream
            else:
                yield raw
            raw.flush()
            os.fsync(raw.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
