"""Reads the first sheet of an Excel workbook (.xlsx) through openpyxl, as rows of texts (the [data] extra).

Choices: a number is written without ".0", a date as 2026-05-31, a truth value as Excel shows it. Formulas count by the
value that Excel stored with them; a formula without one is refused. A merged cell has its value in all of its rows and
columns. Rows that are empty are no rows.
"""

from __future__ import annotations

import datetime
import re
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from taosr1.runtime.bad_rows import BadRows, shorten
from taosr1.runtime.jsonl import clean_text
from taosr1.runtime.text_lines import DamagedFile, check_file

_MERGED = re.compile(rb'<(?:\w+:)?mergeCell\s[^>]*ref="([A-Z]+\d+:[A-Z]+\d+)"')
_CHUNK = 2**20


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


def read_excel(path: str | Path, bad_rows: BadRows | None = None) -> Iterator[tuple[int, dict]]:
    """The rows of the first sheet below its header, as dicts of texts with their row numbers.

    Raises: ModuleNotFoundError without openpyxl; ValueError naming file and row for an error value, a formula without
        its value, a cell below no name (`bad_rows` may skip it), a header with a name missing or twice, a damaged file.
    """
    path = check_file(path)
    bad_rows = bad_rows or BadRows(path)
    with bad_rows, _open(path) as (formulas, values):
        sheet = formulas.worksheets[0]
        if len(formulas.worksheets) > 1:
            bad_rows.say(f"read sheet {sheet.title!r}, the first of {len(formulas.worksheets)}")
        merged = _Merged(path, sheet)
        if merged.ranges:
            bad_rows.say(
                f"{len(merged.ranges)} merged cell{'s'[: len(merged.ranges) != 1]} filled with their value in every row"
            )
        header: list[str] = []
        pairs = zip(sheet.iter_rows(), values.worksheets[0].iter_rows(values_only=True))
        for number, (cells, stored) in enumerate(pairs, start=1):
            stored = merged.fill(number, list(stored))
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
            raise ValueError(f"a cell ({shorten(repr(value))}) below no name: the header has {len(header)} names")
    return row


def _is_formula(cell: Any) -> bool:
    return getattr(cell, "data_type", "") == "f"


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


def _check_header(path: Path, number: int, header: list[str]) -> list[str]:
    while header and not header[-1]:
        header.pop()
    twice = [name for name in header if name and header.count(name) > 1]
    if twice:
        hint = "rename one, or delete the rows above the header"
        raise DamagedFile(f"{path}:{number}: the header names {shorten(repr(twice[0]))} twice: {hint}")
    if "" in header[1:]:
        found = shorten(repr(header), 200)
        raise DamagedFile(f"{path}:{number}: header {found} has an empty column name: delete the rows above the header")
    return header


class _Merged:
    """The values of merged cells: openpyxl has them in the first cell only, and tells where they are only in memory."""

    def __init__(self, path: Path, sheet: Any) -> None:
        from openpyxl.utils import range_boundaries

        self.ranges = [range_boundaries(found) for found in self._find(path, getattr(sheet, "_worksheet_path", ""))]
        self._values: dict[tuple, Any] = {}

    @staticmethod
    def _find(path: Path, part: str) -> list[str]:
        """Ranges such as "A2:A5" in the XML of a sheet, read in pieces."""
        found: dict[str, None] = {}
        with zipfile.ZipFile(path) as archive, archive.open(part) as file:
            rest = b""
            while chunk := file.read(_CHUNK):
                found |= dict.fromkeys(match.decode() for match in _MERGED.findall(rest + chunk))
                rest = (rest + chunk)[-200:]
        return list(found)

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
        raise ModuleNotFoundError(f'reading {path.name} needs openpyxl: pip install "taosr1[data]"') from None
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
