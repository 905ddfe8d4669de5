"""Reads tables of text, plain or gzipped, record by record; `taosr1/data/dialect.py` finds out how they are written."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from taosr1.data.dialect import IN_QUOTES, Dialect, RecordLines, find_dialect
from taosr1.data.flags import AS_FOUND, ReadFlags
from taosr1.data.predictions import from_cells
from taosr1.runtime.bad_rows import BadRows, shorten
from taosr1.runtime.encodings import shown
from taosr1.runtime.text_lines import (
    BYTE_ORDER_MARK,
    CR_ONLY,
    JOINED,
    DamagedFile,
    check_file,
    damage_in,
    read_lines,
    rows_in,
)

_TEXT_FORMULA = re.compile(r'="((?:[^"]|"")*)"')


def read_csv(
    path: str | Path, bad_rows: BadRows | None = None, read: ReadFlags = AS_FOUND, *, usual: str = ","
) -> Iterator[tuple[int, dict]]:
    """The records of a table with a header line, as dicts of strings with the number of the line each begins on.

    Cells are kept exactly, but `="00123"`, by which Excel keeps a text, is the text. Spaces around a column's name are
    dropped, and lines of white space alone are skipped. A first column without a name (the index that pandas writes)
    and others without names and cells are left out. A record whose quotes or cells do not fit counts as many bad rows
    as it has lines.
    usual: the delimiter that is not worth a note.

    Raises: ValueError as `read_jsonl`, as `find_dialect`, and for a header or a record that does not fit;
        FileNotFoundError.
    """
    path = check_file(path)
    with bad_rows or BadRows(path, flag="") as bad_rows:
        dialect = find_dialect(path, usual, read)
        if said := dialect.describe(usual):
            bad_rows.say(f"read {said}")
        yield from _Records(path, bad_rows, read, dialect).read()


class _Records:
    """The records of one table, and where in it the reading is."""

    def __init__(self, path: Path, bad_rows: BadRows, read: ReadFlags, dialect: Dialect) -> None:
        self.path, self.bad_rows, self.dialect = path, bad_rows, dialect
        self.encoding = read.encoding
        self.header, self.header_line = list[str](), 0
        self.unnamed: list[int] = []  # columns without a name, but for the first
        self.lines = RecordLines(dialect.delimiter)
        self.rows = 0  # that may lie in the lines of the current record

    def read(self) -> Iterator[tuple[int, dict]]:
        quoting = csv.QUOTE_MINIMAL if self.dialect.quoted else csv.QUOTE_NONE
        how = {"delimiter": self.dialect.delimiter, "skipinitialspace": self.dialect.spaced}
        reader = csv.reader(self._text(), quoting=quoting, strict=True, **how)
        while True:
            number, self.rows = reader.line_num + 1, 0
            self.lines.begin()
            try:
                record = next(reader, None)
            except csv.Error as error:
                self._refuse(number, error)
                continue
            if record is None:
                return
            if not self.rows or number == self.dialect.hint_line:
                continue
            if not self.header:
                self.header = _check_header(self.path, number, record, self.dialect.encoding)
                self.header_line, self.lines.expected = number, len(self.header)
                self.unnamed = [place for place, name in enumerate(self.header) if place and not name]
                continue
            self.bad_rows.rows += 1
            if problem := self._problem(record):
                whole = len(record) == len(self.header) and not self._swallows()
                self.bad_rows.add(number, problem, rows=1 if whole else self.rows)
            else:
                if self.lines.lines == 1:
                    self.lines.end(record)
                yield number, from_cells({name: _unwrapped(cell) for name, cell in zip(self.header, record) if name})

    def _text(self) -> Iterator[str]:
        for number, line in read_lines(self.path, self.encoding, self._say):
            self.lines.add(number, line)
            self.rows += rows_in(line) if line.strip() else 0
            yield line

    def _say(self, encoding: str) -> None:
        if encoding != self.dialect.encoding:  # found behind the lines that `find_dialect` has read
            self.dialect.encoding = encoding
            self.bad_rows.say(f"read in {shown(encoding)}")

    def _refuse(self, number: int, error: csv.Error) -> None:
        """Count a record that breaks the rules of quotes."""
        is_cr = "new-line character" in str(error)
        problem = (
            CR_ONLY if is_cr else f"{error} (quotes inside a quoted cell are doubled; --quotes text: they are text)"
        )
        if not self.header or "field larger" in str(error):  # reading on would start inside a cell
            raise DamagedFile(f"{self.path}:{number}: broken CSV: {problem}") from None
        self.bad_rows.rows += 1
        self.bad_rows.add(number, f"broken CSV: {problem}", rows=self.rows)

    def _problem(self, record: list[str]) -> str:
        """What is wrong with a record; "" if nothing is."""
        if record[0].startswith(BYTE_ORDER_MARK):
            return JOINED
        if [cell.strip() for cell in record] == self.header:
            return "this record repeats the header: were two files joined?"
        if len(record) == 1 < len(self.header) == record[0].count(self.dialect.delimiter) + 1:
            return f"this line {IN_QUOTES}"
        if len(record) != len(self.header):
            return f"{len(record)} cells, expected {len(self.header)} as in the header"
        if self._swallows():
            return (
                f"one cell in quotes holds {self.lines.lines} lines that look like rows: a quote that is "
                "not closed? --quotes text reads quotes as characters, --quotes enclose takes the cell as it is"
            )
        for place in self.unnamed:
            if record[place].strip():
                if any(self.header[place:]):
                    where = f"{self.path}:{self.header_line}: column {place + 1}"
                    raise DamagedFile(f"{where} has cells but no name: write one into the header")
                return "a cell below no name: the header ends before it"
        return next(filter(None, (damage_in(cell, self.dialect.encoding, named=True) for cell in record)), "")

    def _swallows(self) -> bool:
        """Whether the record may be several, with one quote too many."""
        return self.dialect.quoted and not self.dialect.certain and self.lines.suspicious


def _unwrapped(cell: str) -> str:
    """The text of `="00123"`; any other cell as it is."""
    found = cell[:2] == '="' and _TEXT_FORMULA.fullmatch(cell)
    return found[1].replace('""', '"') if found else cell


def _check_header(path: Path, number: int, record: list[str], encoding: str) -> list[str]:
    """The names of the columns; "" for those that are left out."""
    header = [name.strip() for name in record]
    repeated = [name for name, count in Counter(header).items() if count > 1 and name]
    problem = damage_in("".join(header), encoding, named=True)
    if not problem and not any(header):
        problem = f"header {shorten(repr(header), 200)} has an empty column name"
    elif not problem and repeated:
        problem = f"header names {shorten(repr(repeated), 200)} twice"
    if problem:
        raise DamagedFile(f"{path}:{number}: {problem}")
    return header
