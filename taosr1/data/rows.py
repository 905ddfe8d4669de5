"""Reads CSV and TSV files, plain or gzipped, record by record; JSON Lines are in `taosr1.runtime.jsonl`."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from taosr1.runtime.bad_rows import BadRows, shorten
from taosr1.runtime.jsonl import clean_text, clean_value, read_jsonl, write_jsonl
from taosr1.runtime.text_lines import (
    BYTE_ORDER_MARK,
    CR_ONLY,
    JOINED,
    MAX_LINE_BYTES,
    DamagedFile,
    check_file,
    damage_in,
    read_lines,
    rows_in,
)

__all__ = ["BadRows", "check_file", "clean_text", "clean_value", "read_csv", "read_jsonl", "write_jsonl"]


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


def _csv_problem(problem: csv.Error) -> str:
    if "new-line character" in str(problem):
        return f"broken CSV: {CR_ONLY}"
    return f"broken CSV: {problem} (quotes inside a quoted cell are doubled)"


def _joined(record: list[str], header: list[str]) -> str:
    """What tells that another file begins with this record; "" where nothing does."""
    if record[0].startswith(BYTE_ORDER_MARK):
        return JOINED
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


