"""Reads the first sheet of an Excel workbook (.xlsx) through openpyxl, as rows of texts (the [data] extra).

Choices: a number is written without ".0", and with leading zeros where its format shows them (00000); a date as
2026-05-31, a truth value as Excel shows it. Formulas count by the value that Excel stored with them; a formula without
one is refused. A merged cell has its value in all of its rows and columns. Rows that are empty are no rows; hidden ones
are rows, and counted in a note.
"""

from __future__ import annotations

import datetime
import re
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from taosr1.data.columns import known_names
from taosr1.data.headers import LOOKED_AT, Line, header_problem
from taosr1.runtime.bad_rows import BadRows, shorten
from taosr1.runtime.jsonl import clean_text
from taosr1.runtime.messages import counted, install
from taosr1.runtime.text_lines import DamagedFile, check_file

_MERGED = re.compile(rb'<(?:\w+:)?mergeCell\s[^>]*ref="([A-Z]+\d+:[A-Z]+\d+)"')
_HIDDEN = re.compile(rb'<(?:\w+:)?row\s[^>]*hidden="(?:1|true)"[^>]*>')
_CHUNK, _LONGEST = 2**20, 500  # bytes read at a time, and of the longest tag that matters
# Formats that fill a number up with zeros: 00000, "SKU-"0000, 000-000. Signs stand in quotes or behind a backslash.
_PADDED = re.compile(r'(?:0|"[^"]*"|\\.|[-/ ])*')
SHEETS = 20  # looked at for one with rows


def is_workbook(path: Path) -> bool:
    """Whether a file is an .xlsx workbook, whatever its name."""
    with open(path, "rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return False
    try:
        with zipfile.ZipFile(path) as archive:
            return "xl/workbook.xml" in archive.namelist()
    except zipfile.BadZipFile:
        return path.suffix.lower() in (".xlsx", ".xlsm")  # a damaged one


def read_excel(path: str | Path, bad_rows: BadRows | None = None, columns: str = "") -> Iterator[tuple[int, dict]]:
    """The rows of the first sheet below its header, as dicts of texts with their row numbers. columns: of --columns.

    Raises: ModuleNotFoundError without openpyxl; ValueError naming file and row for an error value, a formula without
        its value, a cell below no name (`bad_rows` may skip it), a header with a name missing or twice, a damaged file.
    """
    path = check_file(path)
    bad_rows = bad_rows or BadRows(path)
    with bad_rows, _open(path) as (formulas, values):
        sheet = formulas.worksheets[0]
        _check_sheets(path, values.worksheets, columns)
        if len(formulas.worksheets) > 1:
            bad_rows.say(f"read sheet {sheet.title!r}, the first of {len(formulas.worksheets)}")
        merged = _Merged(path, sheet)
        if merged.ranges:
            bad_rows.say(f"{counted(len(merged.ranges), 'merged cell')} filled with their value in every row")
        if merged.hidden:
            bad_rows.say(f"{counted(merged.hidden, 'hidden row')} (a filter?) read as all others")
        header: list[str] = []
        pairs = zip(sheet.iter_rows(), values.worksheets[0].iter_rows(values_only=True))
        for number, (cells, stored) in enumerate(pairs, start=1):
            stored = merged.fill(number, [*map(_shown, cells, stored)])
            if all(value is None or value == "" for value in stored) and not any(map(_is_formula, cells)):
                continue
            if not header:
                header = _check_header(path, number, [_text(value).strip() for value in stored])
                continue
            bad_rows.rows += 1
            try:
                row = _row(header, cells, stored)
            except ValueError as problem:
                bad_rows.add(number, problem)
            else:
                yield number, row


def _row(header: list[str], cells: tuple, values: list[Any]) -> dict[str, str]:
    row = dict.fromkeys((name for name in header if name), "")
    for place, value in enumerate(values):
        name = header[place] if place < len(header) else ""
        if value is None and place < len(cells) and _is_formula(cells[place]):
            raise ValueError(
                f"field {name!r} is the formula {shorten(str(cells[place].value))} without its value: open the file in "
                "Excel and save it, or paste the column as values"
            )
        if name:
            if (
                isinstance(value, str)
                and value.startswith("#")
                and cells[place].data_type in ("e", "f")
                and value != "#N/A"
            ):
                raise ValueError(f"field {name!r} is {value}, an error of a formula")
            row[name] = _text(value, name)
        elif place and value not in (None, ""):
            raise ValueError(f"a cell ({shorten(repr(value))}) below no name: write one above column {place + 1}")
    return row


def _is_formula(cell: Any) -> bool:
    return getattr(cell, "data_type", "") == "f"


def _shown(cell: Any, value: Any) -> Any:
    """A number as its cell shows it, where its format fills it up with zeros; any other value as it is."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0 or value != int(value):
        return value
    format = getattr(cell, "number_format", "").partition(";")[0]
    if format.count("0") < 2 or not _PADDED.fullmatch(format):
        return value
    parts = re.findall(r'0|"[^"]*"|\\.|[-/ ]', format)
    places = parts.count("0")
    digits = iter(str(int(value)).zfill(places))
    extra = len(str(int(value))) - places  # digits beyond the format's stand before the first
    text = ""
    for part in parts:
        if part == "0":
            text += "".join(next(digits) for _ in range(1 + max(0, extra)))
            extra = 0
        else:
            text += part.strip('"') if part[0] == '"' else part[-1]
    return text


def _text(value: Any, name: str = "") -> str:
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, float):
        if abs(value) >= 2**53:
            raise ValueError(f"field {name!r} is {value}, too large to be exact as a number: format the column as text")
        return str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, datetime.datetime):
        return value.date().isoformat() if value.time() == datetime.time() else value.isoformat(" ")
    return "" if value is None else clean_text(str(value))


def _check_sheets(path: Path, sheets: list[Any], columns: str) -> None:
    """Raise DamagedFile, with the way out, for a first sheet without rows or without a header."""
    first, *others = [_head(sheet) for sheet in sheets[:SHEETS]] or [[]]

    def is_table(head: list[Line]) -> bool:
        return len(head) > 1 and any(known_names(readings[0], columns) > 1 for _, readings in head)

    if not is_table(first):
        named = zip(sheets[1:], others)
        better = [repr(sheet.title) for sheet, head in named if is_table(head) or (len(first) < 2 < len(head))]
        if better:
            raise DamagedFile(
                f"{path}: the first sheet, {sheets[0].title!r}, holds no rows under known names, but "
                f"{shorten(', '.join(better), 200)} may: move that sheet to the front, or save it as CSV"
            )
    if problem := header_problem(first, columns):
        raise DamagedFile(f"{path}:{first[0][0]}: {problem}")


def _head(sheet: Any) -> list[Line]:
    """The first rows of a sheet that are not empty."""
    rows = enumerate(sheet.iter_rows(max_row=LOOKED_AT, values_only=True), start=1)
    cells = ((number, ["" if value is None else str(value).strip() for value in row]) for number, row in rows)
    return [(number, [row]) for number, row in cells if any(row)]


def _check_header(path: Path, number: int, header: list[str]) -> list[str]:
    while header and not header[-1]:
        header.pop()
    twice = [name for name in header if name and header.count(name) > 1]
    if twice:
        hint = "rename one, or delete the rows above the header"
        raise DamagedFile(f"{path}:{number}: the header names {shorten(repr(twice[0]))} twice: {hint}")
    return header


class _Merged:
    """The values of merged cells: openpyxl has them in the first cell only, and tells where they are only in memory."""

    def __init__(self, path: Path, sheet: Any) -> None:
        from openpyxl.utils import range_boundaries

        ranges, self.hidden = self._find(path, getattr(sheet, "_worksheet_path", ""))
        self.ranges = [range_boundaries(found) for found in ranges]
        self._values: dict[tuple, Any] = {}

    @staticmethod
    def _find(path: Path, part: str) -> tuple[list[str], int]:
        """Ranges such as "A2:A5" in the XML of a sheet, read in pieces, and the number of hidden rows."""
        found: dict[str, None] = {}
        hidden: set[bytes] = set()
        with zipfile.ZipFile(path) as archive, archive.open(part) as file:
            rest = b""
            while chunk := file.read(_CHUNK):
                found |= dict.fromkeys(match.decode() for match in _MERGED.findall(rest + chunk))
                hidden.update(_HIDDEN.findall(rest + chunk))
                rest = (rest + chunk)[-_LONGEST:]
        return list(found), len(hidden)

    def fill(self, number: int, values: list[Any]) -> list[Any]:
        """The cells of a row with those of merged cells filled."""
        for bounds in self.ranges:
            left, top, right, bottom = bounds
            if top <= number <= bottom:
                values += [None] * (right - len(values))
                value = self._values.setdefault(bounds, values[left - 1])
                values[left - 1 : right] = [value] * (right - left + 1)
        return values


@contextmanager
def _open(path: Path) -> Iterator[tuple[Any, Any]]:
    """The workbook twice: with its formulas, and with the values that Excel stored for them."""
    try:
        import openpyxl
    except ModuleNotFoundError:
        raise ModuleNotFoundError(f"{path}: reading it needs openpyxl: {install('data')}") from None
    damage = (ValueError, KeyError, TypeError, AttributeError, SyntaxError, EOFError, zipfile.BadZipFile)
    with ExitStack() as stack:
        try:
            # An open file: of a path openpyxl looks at the name, and a workbook may have any.
            files = [stack.enter_context(open(path, "rb")) for _ in range(2)]
            books = [
                openpyxl.load_workbook(file, read_only=True, data_only=stored) for file, stored in zip(files, (0, 1))
            ]
        except damage as problem:
            raise DamagedFile(f"{path}: not a readable Excel workbook ({shorten(str(problem), 200)})") from None
        try:
            yield books[0], books[1]
        except damage[1:] as problem:
            raise DamagedFile(f"{path}: not a readable Excel workbook ({shorten(str(problem), 200)})") from None
