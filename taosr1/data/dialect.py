"""Finds out how a table of text is written: its encoding, what separates its cells, and whether quotes enclose them.

Choices. The delimiter (comma, semicolon, tab or pipe) is the one that separates the header into the most known names
and the rows into as many cells; where two are equally good, the file is refused and --delimiter named.

A quote at the beginning of a cell either encloses the cell, which may then hold delimiters and line breaks (RFC 4180),
or is a character: `"Lowboy stand` in an export without quoting. Read in the wrong way, rows vanish inside a cell. So
the whole file is looked at once more: a record that only makes sense with enclosing quotes speaks for them, lines that
each have the header's number of cells though a quote would swallow them speak against. Without a sign against, quotes
enclose. With signs of both kinds they enclose, and the swallowed lines are bad rows. --quotes decides by force.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from taosr1.data.columns import known_names
from taosr1.data.flags import ReadFlags
from taosr1.data.headers import LOOKED_AT, header_problem
from taosr1.runtime.encodings import UTF_8, shown
from taosr1.runtime.text_lines import MAX_LINE_BYTES, DamagedFile, read_lines

DELIMITERS = {",": "','", ";": "';'", "\t": "tabs", "|": "'|'"}
SPELLED = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "pipe": "|"}
HEAD_LINES, HEAD_CHARS = 200, 2**20  # looked at for the delimiter
IN_QUOTES = """is in quotes as a whole: sed -e 's/^"//' -e 's/"\\r*$//' -e 's/""/"/g' FILE > NEW takes them away"""
CLEAR_SHARE = 0.5  # of the rows: by so much a delimiter must fit better than another to win by its fit alone

_EXCEL_HINT = re.compile(r'\ufeff?"?sep=(?P<delimiter>.?)"?\r?\n?', re.IGNORECASE)  # a line that Excel puts first
_NUMBER = re.compile(r"\s*[-+]?\d{1,15}(?:[.,]\d{1,15})?\s*")


@dataclass
class Dialect:
    """How one table is written."""

    delimiter: str
    encoding: str = UTF_8
    quoted: bool = True  # a quote at the beginning of a cell encloses it
    hint_line: int = 0  # the number of the line "sep=;", 0 if there is none
    spaced: bool = False  # a space may stand between a delimiter and a quote
    certain: bool = False  # --quotes or the header says how: no record is suspicious
    text_quotes: tuple[int, int] = (0, 0)  # number of lines that enclosing quotes would have swallowed, and the first

    def describe(self, usual: str) -> str:
        """What is not usual for a file of this name; "" if nothing is."""
        said = [f"in {shown(self.encoding)}"] if self.encoding != UTF_8 else []
        said += ["with spaces before quotes"] if self.spaced else []
        said += [f"with {DELIMITERS[self.delimiter]} between the cells"] if self.delimiter != usual else []
        if not self.quoted and self.text_quotes[0]:
            number, first = self.text_quotes
            said.append(f"with quotes as text (enclosing, they would swallow {number} lines, from line {first} on)")
        return ", ".join(said)


class RecordLines:
    """The lines of one record after another: would they be records themselves, if quotes were text?

    A line would if it has the header's number of cells. Inside a record that is sound as it is, that is suspicious only
    if it is true of all lines, or if a line also has numbers in all columns that held nothing but numbers so far.
    """

    def __init__(self, delimiter: str) -> None:
        self.delimiter, self.expected = delimiter, 0
        self._numeric: set[int] | None = None  # columns that held numbers alone, None before the first row
        self.begin()

    def begin(self) -> None:
        """A new record."""
        self.lines = 0  # that are not blank
        self.fitting: list[int] = []  # the numbers of those with the header's number of cells
        self._alike = 0  # of these, with the numbers where they belong
        self._first = ""
        self._last_alike = self._inner_alike = False

    def add(self, number: int, line: str) -> None:
        """Another line of the record."""
        if not line.strip():
            return
        self.lines += 1
        if line.count(self.delimiter) + 1 == self.expected:
            self.fitting.append(number)
        if self.lines == 1:  # most records: no need to look into it
            self._first = line
            return
        if self.lines == 2:
            self._alike += self._is_alike(self._first)
        self._inner_alike |= self._last_alike  # one that is neither the first nor the last
        self._last_alike = self._is_alike(line)
        self._alike += self._last_alike

    def _is_alike(self, line: str) -> bool:
        cells = _text_cells(line, self.delimiter)
        if not self._numeric or len(cells) != self.expected:
            return False
        return all(_NUMBER.fullmatch(cells[at]) for at in self._numeric)

    def end(self, record: list[str]) -> None:
        """The record is sound and on one line: learn which columns are numbers."""
        columns = range(len(record)) if self._numeric is None else self._numeric
        self._numeric = {at for at in columns if not record[at].strip() or _NUMBER.fullmatch(record[at])}

    @property
    def suspicious(self) -> bool:
        """Whether a sound record may be several rows that a quote has swallowed."""
        if self.lines < 2 or self.expected < 2:
            return False
        last = self._last_alike and len(self._numeric or ()) > 1
        return len(self.fitting) == self.lines or self._inner_alike or last

    @property
    def rows_for_sure(self) -> bool:
        """Whether all lines of the record are like rows: a tab in each, or numbers where they belong."""
        return len(self.fitting) == self.lines and (self.delimiter == "\t" or self._alike == self.lines)


@dataclass
class _Signs:
    """Counts of what speaks for quotes that enclose cells, and against."""

    certain: bool = False  # all names of the header are enclosed
    enclosing: bool = False  # a record only makes sense with enclosing quotes
    swallowed: int = 0  # lines of records that a quote breaks or hides, each a row if quotes are text
    lost: int = 0  # other lines of these records
    first: int = 0  # the first of `swallowed`

    def count(self, lines: RecordLines) -> None:
        """Count the lines of a record that a quote breaks or hides."""
        self.swallowed += len(lines.fitting)
        self.lost += lines.lines - len(lines.fitting)
        self.first = self.first or (lines.fitting[0] if lines.fitting else 0)


def find_dialect(path: Path, usual: str, read: ReadFlags) -> Dialect:
    """Look at a table. usual: the delimiter that its name promises, "" for none.

    Raises: DamagedFile for a delimiter that cannot be told, or is not the one given; as `read_lines`.
    """
    if read.quotes not in ("", "enclose", "text"):
        raise ValueError(f"--quotes is {read.quotes!r}, expected enclose or text")
    # The default of the csv module, 128 KiB, is less than a long description.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE_BYTES))
    encodings = [UTF_8]
    with closing(read_lines(path, read.encoding, encodings.append)) as lines:
        head = _head(lines)
        _check_first_line(path, head, read)
        dialect = Dialect(_choose_delimiter(path, head, usual, read))
        if head and _EXCEL_HINT.fullmatch(head[0][1]):
            dialect.hint_line = head.pop(0)[0]
        if read.quotes:
            dialect.quoted, dialect.certain = read.quotes == "enclose", True
        else:
            dialect.spaced = _has_spaces_before_quotes(head, dialect.delimiter)
            signs = _look_for_signs(chain(head, lines), dialect.delimiter, dialect.spaced)
            dialect.quoted = signs.enclosing or signs.certain or signs.swallowed <= signs.lost
            dialect.certain, dialect.text_quotes = signs.certain, (signs.swallowed, signs.first)
    dialect.encoding = encodings[-1]
    return dialect


def _check_first_line(path: Path, head: list[tuple[int, str]], read: ReadFlags) -> None:
    """Raise DamagedFile for a first line that is no header, or for lines in quotes as a whole."""
    lines = head[1:] if head and _EXCEL_HINT.fullmatch(head[0][1]) else head
    first = lines[0][1].strip() if lines else ""
    if _is_enclosed(first) and any(known_names(_cells(first[1:-1], delimiter)) > 1 for delimiter in DELIMITERS):
        raise DamagedFile(f"{path}:{lines[0][0]}: the header {IN_QUOTES}")
    readings = [(number, [_cells(line, delimiter) for delimiter in DELIMITERS]) for number, line in lines[:LOOKED_AT]]
    if problem := header_problem(readings, read.columns):
        raise DamagedFile(f"{path}:{lines[0][0]}: {problem}")


def _head(lines: Iterator[tuple[int, str]]) -> list[tuple[int, str]]:
    """The first lines that are not blank."""
    head: list[tuple[int, str]] = []
    size = 0
    for number, line in lines:
        if line.strip():
            head.append((number, line))
            size += len(line)
        if len(head) >= HEAD_LINES or size > HEAD_CHARS:
            break
    return head


def _choose_delimiter(path: Path, head: list[tuple[int, str]], usual: str, read: ReadFlags) -> str:
    wanted = SPELLED.get(read.delimiter.lower(), read.delimiter)
    if wanted and wanted not in DELIMITERS:
        raise ValueError(f"--delimiter is {read.delimiter!r}, expected , ; | or tab")
    if not head:
        return wanted or usual or ","
    number, line = head[0]
    hint = _EXCEL_HINT.fullmatch(line)
    if hint:
        said = hint["delimiter"]
        if said not in DELIMITERS:
            raise DamagedFile(
                f"{path}:{number}: the line {line.strip()!r} names no delimiter that is read: , ; | or tab"
            )
        if wanted and wanted != said:
            raise DamagedFile(f"{path}:{number}: the line {line.strip()!r} is not --delimiter {read.delimiter}")
        return said
    cells = {delimiter: len(_cells(line, delimiter)) for delimiter in DELIMITERS}
    found = [delimiter for delimiter in DELIMITERS if cells[delimiter] > 1]
    if wanted:
        if found and wanted not in found:
            other = f"{DELIMITERS[found[0]]} separate{'s' * (found[0] != chr(9))} it into {cells[found[0]]} names"
            raise DamagedFile(
                f"{path}:{number}: no {DELIMITERS[wanted]} in the header, but {other}: change --delimiter"
            )
        return wanted
    if not found:
        return usual or ","
    best = found[0] if len(found) == 1 else _best(path, number, head, found, read)
    _check_rows(path, head, best, cells[best])
    return best


def _best(path: Path, number: int, head: list[tuple[int, str]], found: list[str], read: ReadFlags) -> str:
    """The delimiter that gives the most known names and fits the rows. Raises: DamagedFile if two are as good."""
    names = {delimiter: known_names(_cells(head[0][1], delimiter), read.columns) for delimiter in found}
    fits = {delimiter: _fit(head, delimiter) for delimiter in found}
    if fits.get("\t") == 1 and names["\t"] == max(names.values()):
        return "\t"  # a text may hold any other of them, but hardly a tab
    first, second = sorted(found, key=lambda delimiter: (names[delimiter], fits[delimiter]), reverse=True)[:2]
    clear_names = names[first] > names[second] and fits[first] > fits[second] - CLEAR_SHARE
    clear_rows = names[first] == names[second] and fits[first] >= fits[second] + CLEAR_SHARE
    if not (clear_names or clear_rows):
        both = f"{DELIMITERS[first]} and {DELIMITERS[second]}"
        raise DamagedFile(f"{path}:{number}: {both} could both separate the cells: say which, --delimiter '{first}'")
    return first


def _fit(head: list[tuple[int, str]], delimiter: str) -> float:
    """The share of the first rows with as many cells as the header, in the better reading of quotes."""
    expected, rows = len(_cells(head[0][1], delimiter)), head[1:]
    if not rows:
        return 1.0
    plain = sum(line.count(delimiter) + 1 == expected for _, line in rows) / len(rows)
    records = list(csv.reader((line.replace("\r", "") for _, line in rows), delimiter=delimiter))
    return max(plain, sum(len(record) == expected for record in records) / len(records))


def _check_rows(path: Path, head: list[tuple[int, str]], delimiter: str, expected: int) -> None:
    """Raise DamagedFile if no row has the cells of the header, but another delimiter would make them fit."""
    rows = head[1:]
    if not rows or _fit(head, delimiter):
        return
    for other, name in DELIMITERS.items():
        if sum(len(_cells(line, other)) == expected for _, line in rows) >= CLEAR_SHARE * len(rows):
            raise DamagedFile(
                f"{path}:{head[0][0]}: cells of the header are separated by {DELIMITERS[delimiter]}, those of the rows "
                f"by {name}: write one of them everywhere"
            )


def _cells(line: str, delimiter: str) -> list[str]:
    return next(csv.reader([line.replace("\r", "")], delimiter=delimiter), [])


def _text_cells(line: str, delimiter: str) -> list[str]:
    """The cells where quotes are characters."""
    return line.rstrip("\r\n").split(delimiter)


def _is_enclosed(cell: str) -> bool:
    """Whether a cell is in quotes, with those inside doubled: `"24"" monitor"`."""
    return len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in cell[1:-1].replace('""', "")


def _has_spaces_before_quotes(head: list[tuple[int, str]], delimiter: str) -> bool:
    """Whether rows such as `mug, "Mug, big", 4` only fit the header if the spaces are no part of the cells."""
    spaced = [line.replace("\r", "") for _, line in head if re.search(f'{re.escape(delimiter)} +"', line)]
    if not spaced:
        return False
    expected = len(_cells(head[0][1], delimiter))
    sizes = [[len(row) for row in csv.reader(spaced, delimiter=delimiter, skipinitialspace=skip)] for skip in (0, 1)]
    return any(size != expected for size in sizes[0]) and all(size == expected for size in sizes[1])


def _look_for_signs(numbered: Iterable[tuple[int, str]], delimiter: str, spaced: bool) -> _Signs:
    """Read the records with enclosing quotes, and count the signs; stops at the first that speaks for them."""
    signs, lines, last = _Signs(), RecordLines(delimiter), ""

    def text() -> Iterator[str]:
        nonlocal last
        for number, line in numbered:
            lines.add(number, line)
            last = line
            yield line

    reader = csv.reader(text(), delimiter=delimiter, skipinitialspace=spaced, strict=True)
    while not signs.enclosing:
        lines.begin()
        try:
            record = next(reader, None)
        except csv.Error as error:
            if "new-line" not in str(error):  # a CR alone: as wrong in either reading
                signs.count(lines)
            continue
        if record is None:
            break
        if not lines.lines:
            continue
        if not lines.expected:
            lines.expected = len(record)
            signs.certain = lines.expected > 1 and all(map(_is_enclosed, _text_cells(last, delimiter)))
            if lines.expected < 2 or signs.certain:
                break
        elif len(record) != lines.expected:
            if lines.lines > 1:
                signs.count(lines)
        elif lines.suspicious:
            if lines.rows_for_sure:
                signs.count(lines)
        elif len(lines.fitting) < lines.lines:
            signs.enclosing = True  # a delimiter or a line break is inside a cell
        else:
            lines.end(record)
            signs.enclosing = '""' in last and any(
                '""' in cell[1:-1] and _is_enclosed(cell) for cell in _text_cells(last, delimiter)
            )
    return signs
