"""Rows in and out of files: JSON Lines, CSV, TSV, plain or gzipped, row by row, every problem with file and line.

Everything that reads or writes rows (judgements, rules, preference pairs, a teacher's replies) goes through here, so a
damaged file is reported the same way everywhere. `lines.py` turns bytes into lines, `bad_rows.py` keeps count.

Choice: text is cleaned at this edge. Lone surrogates (legal in JSON, impossible in UTF-8 and fatal in a tokenizer) and
NUL become U+FFFD, and a line on stderr says in how many rows; nothing else is altered. Numbers are what JSON has
everywhere: whole ones of any size are exact, those with a point or an exponent are float64.
"""

from __future__ import annotations

import csv
import errno
import gzip
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NoReturn

from taosr1.data.bad_rows import BadRows, shorten
from taosr1.data.text import BYTE_ORDER_MARK, MAX_LINE_BYTES, DamagedFile, check_file, damage_in, read_lines, rows_in
from taosr1.runtime.files import replacing

__all__ = ["BadRows", "check_file", "clean_text", "clean_value", "read_csv", "read_jsonl", "write_jsonl"]

MAX_DEPTH = 64  # of lists and objects inside a row: reading, copying and writing it must not run out of stack
REPLACED = "held NUL or half a surrogate pair, which became U+FFFD"

_UNENCODABLE = re.compile("[\ud800-\udfff\0]")
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # a write that fails so does not say which file it was
_JOINED = "a byte order mark inside the file: were two files joined?"
_OLD_MAC = "a CR without LF: are the lines ended by CR alone, as on old Macs? End them by LF"


def clean_text(text: str) -> str:
    """The text without lone surrogates and NUL (each becomes U+FFFD)."""
    return _UNENCODABLE.sub("\ufffd", text) if _UNENCODABLE.search(text) else text


def clean_value(value: Any, depth: int = MAX_DEPTH) -> Any:
    """`clean_text` on every string inside a JSON value.

    Raises: ValueError for a value nested more than `depth` deep, or where two names become one.
    """
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, (dict, list, tuple)) and depth == 0:
        raise ValueError(f"JSON nested too deeply: more than {MAX_DEPTH} lists and objects in each other")
    if isinstance(value, dict):
        cleaned = {clean_text(str(key)): clean_value(item, depth - 1) for key, item in value.items()}
        if len(cleaned) != len(value):
            raise ValueError("two fields have the same name once NUL and lone surrogates are replaced")
        return cleaned
    if isinstance(value, (list, tuple)):
        return [clean_value(item, depth - 1) for item in value]
    return value


def read_jsonl(
    path: str | Path, bad_rows: BadRows | None = None, *, flag: str = "--data"
) -> Iterator[tuple[int, dict]]:
    """The objects of a JSON Lines file (gzipped or not) with their line numbers, from 1; blank lines are passed over.

    Raises: ValueError naming file and line for a row that is no JSON object (`bad_rows` may skip it), a repeated key,
        bytes that are not UTF-8, a line cut off at the end of the file, a damaged gzip stream; FileNotFoundError.
    """
    path = check_file(path, flag)
    bad_rows = bad_rows or BadRows(path, flag="")
    try:
        for number, line in read_lines(path):
            if not line.strip():
                continue
            bad_rows.rows += 1
            try:
                found = _parse_json(line)
                row = clean_value(found)
            except ValueError as problem:
                bad_rows.add(number, problem, rows=rows_in(line))
                continue
            if "\\u" in line and row != found:  # what is cleaned can only have been written as an escape
                bad_rows.note(number, REPLACED)
            yield number, row
    finally:
        bad_rows.summarise()


def read_csv(
    path: str | Path, bad_rows: BadRows | None = None, *, flag: str = "--data", delimiter: str = ","
) -> Iterator[tuple[int, dict]]:
    """The records of a CSV file with a header line, as dicts of strings with the line number each begins on.

    Cells are kept to the character. Spaces around a column's name are no part of it, and lines of white space alone are
    passed over. A record whose quotes or cells do not fit counts as many bad rows as it has lines.

    Raises: ValueError as in `read_jsonl`, and for a header or a record that does not fit; FileNotFoundError.
    """
    path = check_file(path, flag)
    bad_rows = bad_rows or BadRows(path, flag="")
    try:
        yield from _records(path, bad_rows, delimiter)
    finally:
        bad_rows.summarise()


def _records(path: Path, bad_rows: BadRows, delimiter: str) -> Iterator[tuple[int, dict]]:
    taken = 0  # rows that may lie in the lines of the current record; 0 where they are blank

    def lines() -> Iterator[str]:
        nonlocal taken
        for _, line in read_lines(path):
            taken += rows_in(line) if line.strip() else 0
            yield line

    # The module's default of 128 KiB is less than a long description.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE_BYTES))
    reader = csv.reader(lines(), delimiter=delimiter, strict=True)
    header: list[str] = []
    while True:
        number, taken = reader.line_num + 1, 0
        try:
            record = next(reader, None)
        except csv.Error as problem:
            message = _csv_problem(problem)
            if not header or "field larger" in str(problem):  # what follows would be read from inside a cell
                raise DamagedFile(f"{path}:{number}: {message}") from None
            bad_rows.rows += 1
            bad_rows.add(number, message, rows=taken)
            continue
        if record is None:
            return
        if not taken:
            continue
        if not header:
            header = _check_header(path, number, record, delimiter)
            continue
        bad_rows.rows += 1
        if len(record) != len(header):
            problem = f"{len(record)} cells, expected {len(header)} as in the header"
            bad_rows.add(number, _joined(record, header) or problem, rows=taken)
        elif found := next(filter(None, map(damage_in, record)), "") or _joined(record, header):
            bad_rows.add(number, found)
        else:
            yield number, dict(zip(header, record))


def write_jsonl(path: str | Path, rows: Iterable[dict]) -> int:
    """Write rows as JSON Lines (gzipped where the name ends in .gz): the whole file, or no file at all.

    Written beside its place, fsynced and renamed, so that a crash never leaves half a file under the final name.

    Returns: the number of rows.
    Raises: ValueError naming file and row for what JSON cannot hold; OSError naming the file.
    """
    count = 0
    written = BadRows(path)
    with _new_file(Path(path)) as stream:
        for row in rows:
            count += 1
            try:
                line = json.dumps(row, ensure_ascii=False, allow_nan=False)
                if _UNENCODABLE.search(line) or "\\u0000" in line:
                    before, line = line, json.dumps(clean_value(row), ensure_ascii=False, allow_nan=False)
                    if line != before:
                        written.note(count, REPLACED)
            except ValueError as problem:
                raise ValueError(f"{path}:{count}: {problem}") from problem
            stream.write(line.encode("utf-8") + b"\n")
    written.summarise()
    return count


def _parse_json(line: str) -> dict:
    """One line as a dict; ValueError says what is wrong with it."""
    if problem := damage_in(line):
        raise ValueError(problem)
    if line.startswith(BYTE_ORDER_MARK):
        raise ValueError(_JOINED)
    try:
        row = json.loads(line, object_pairs_hook=_object, parse_constant=_no_constant, parse_float=_finite)
    except json.JSONDecodeError as problem:
        hint = "" if line.endswith("\n") else "; the file ends inside this line: was its writing cut off?"
        hint = f"; {_OLD_MAC}" if rows_in(line) > 1 else hint
        raise ValueError(
            f"not JSON: {problem.msg} at column {problem.colno}, expected one object a line{hint}"
        ) from None
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None
    if not isinstance(row, dict):
        raise ValueError(f"a JSON {type(row).__name__}, expected one object a line")
    return row


def _object(pairs: list[tuple[str, Any]]) -> dict:
    row = dict(pairs)
    if len(row) != len(pairs):
        (twice, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"field {shorten(repr(twice))} appears twice")
    return row


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON: write null for a missing value")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"number {digits[:20]} is out of range")
    return value


def _csv_problem(problem: csv.Error) -> str:
    if "new-line character" in str(problem):
        return f"broken CSV: {_OLD_MAC}"
    return f"broken CSV: {problem} (quotes inside a quoted cell are doubled)"


def _joined(record: list[str], header: list[str]) -> str:
    """What tells that another file begins with this record; "" where nothing does."""
    if record[0].startswith(BYTE_ORDER_MARK):
        return _JOINED
    return "this record repeats the header: were two files joined?" if [cell.strip() for cell in record] == header else ""


def _check_header(path: Path, number: int, record: list[str], delimiter: str) -> list[str]:
    header = [name.strip() for name in record]
    problem, shown = damage_in("".join(header)), shorten(repr(header), 200)
    if not problem and "" in header:
        problem = f"header {shown} has an empty column name"
    repeated = [name for name, count in Counter(header).items() if count > 1]
    if not problem and repeated:
        problem = f"header names {shorten(repr(repeated), 200)} twice"
    other = {",": ";", "\t": ","}.get(delimiter, ",")
    if not problem and len(header) == 1 and other in header[0]:
        problem = f"cells seem to be separated by {other!r}, expected {delimiter!r}"
    if problem:
        raise DamagedFile(f"{path}:{number}: {problem}")
    return header


@contextmanager
def _new_file(path: Path) -> Iterator[IO[bytes]]:
    """A binary stream whose content takes the place of `path` on success and vanishes on an exception."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise ValueError(f"{path} is a folder, expected a file name to write: check --out")
    try:
        with replacing(path) as aside, open(aside, "wb") as raw:
            if path.suffix == ".gz":
                # No name and no time inside: the same rows give the same bytes.
                with gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as stream:
                    yield stream
            else:
                yield raw
    except OSError as problem:
        if problem.errno in _DISK and problem.filename is None:
            raise OSError(problem.errno, problem.strerror, str(path)) from problem
        raise
