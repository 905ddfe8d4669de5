"""Reads CSV and TSV files, plain or gzipped, record by record; `taosr1/runtime/jsonl.py` reads JSON Lines."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from taosr1.data.predictions import from_cells
from taosr1.runtime.bad_rows import BadRows, shorten
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


def read_csv(path: str | Path, bad_rows: BadRows | None = None, *, delimiter: str = ",") -> Iterator[tuple[int, dict]]:
    """The records of a CSV file with a header line, as dicts of strings with the number of the line each begins on.

    Cells are kept exactly. Spaces around a column's name are dropped, and lines of white space alone are skipped. A
    record whose quotes or cells do not fit counts as many bad rows as it has lines.

    Raises: ValueError as `read_jsonl`, and for a header or a record that does not fit; FileNotFoundError.
    """
    path = check_file(path)
    with bad_rows or BadRows(path, flag="") as bad_rows:
        yield from _records(path, bad_rows, delimiter)


def _records(path: Path, bad_rows: BadRows, delimiter: str) -> Iterator[tuple[int, dict]]:
    num_rows = 0  # rows that may lie in the lines of the current record; 0 if they are blank

    def lines() -> Iterator[str]:
        nonlocal num_rows
        for _, line in read_lines(path):
            num_rows += rows_in(line) if line.strip() else 0
            yield line

    # The module's default of 128 KiB is less than a long description.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE_BYTES))
    reader = csv.reader(lines(), delimiter=delimiter, strict=True)
    header: list[str] = []
    while True:
        number, num_rows = reader.line_num + 1, 0
        try:
            record = next(reader, None)
        except csv.Error as error:
            is_cr = "new-line character" in str(error)
            problem = CR_ONLY if is_cr else f"{error} (quotes inside a quoted cell are doubled)"
            if not header or "field larger" in str(error):  # reading on would start inside a cell
                raise DamagedFile(f"{path}:{number}: broken CSV: {problem}") from None
            bad_rows.rows += 1
            bad_rows.add(number, f"broken CSV: {problem}", rows=num_rows)
            continue
        if record is None:
            return
        if not num_rows:
            continue
        if not header:
            header = _check_header(path, number, record, delimiter)
            continue
        bad_rows.rows += 1
        if record[0].startswith(BYTE_ORDER_MARK):
            problem = JOINED
        elif [cell.strip() for cell in record] == header:
            problem = "this record repeats the header: were two files joined?"
        elif len(record) != len(header):
            problem = f"{len(record)} cells, expected {len(header)} as in the header"
        else:
            problem = next(filter(None, map(damage_in, record)), "")
        if problem:
            bad_rows.add(number, problem, rows=num_rows if len(record) != len(header) else 1)
        else:
            yield number, from_cells(dict(zip(header, record)))


def _check_header(path: Path, number: int, record: list[str], delimiter: str) -> list[str]:
    header = [name.strip() for name in record]
    repeated = [name for name, count in Counter(header).items() if count > 1]
    other = {",": ";", "\t": ","}[delimiter]
    problem = damage_in("".join(header))
    if not problem and "" in header:
        problem = f"header {shorten(repr(header), 200)} has an empty column name"
    elif not problem and repeated:
        problem = f"header names {shorten(repr(repeated), 200)} twice"
    elif not problem and len(header) == 1 and other in header[0]:
        problem = f"cells seem to be separated by {other!r}, expected {delimiter!r}"
    if problem:
        raise DamagedFile(f"{path}:{number}: {problem}")
    return header
