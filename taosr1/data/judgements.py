"""Reads and writes files of judgements: JSON Lines, CSV, TSV or parquet rows become checked `Judgement`s."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from taosr1.data.csv_rows import read_csv
from taosr1.data.duplicates import Duplicates
from taosr1.data.esci import ESCI_COLUMNS, esci_row, is_esci, keep_split, read_parquet
from taosr1.data.flags import AS_FOUND, ReadFlags
from taosr1.data.gold import missing_gold
from taosr1.data.scales import OUR_DIGITS, OUR_NAMES, GradeColumn, GradesError, canonical
from taosr1.runtime.bad_rows import BadRows, Unreported, shorten
from taosr1.runtime.jsonl import read_jsonl, write_jsonl
from taosr1.runtime.text_lines import BYTE_ORDER_MARK, check_file
from taosr1.task.judgement import COLUMNS, PRODUCT_TEXT, Judgement, check_cot

T = TypeVar("T")
_JOINERS = {"attributes": "; ", "category": " > ", "description": " "}  # columns in which a list has a clear meaning


def read_judgements(
    path: str | Path,
    read: ReadFlags = AS_FOUND,
    *,
    max_bad_rows: int | None = None,
    need_grade: bool | None = None,
    need_gold: bool = False,
    need_cot: bool = False,
    split: str = "",
) -> list[Judgement]:
    """Read judgements from .jsonl, .json, .csv, .tsv (each also .gz) or .parquet; ESCI rows are recognised.

    Text is kept exactly (but see `taosr1/runtime/jsonl.py` on NUL and lone surrogates; in a chain of thought line ends
    become LF, and spaces at the ends of its lines are dropped). A number in a text column becomes its text, null
    becomes "", a list or object of attributes becomes "name: value; ...", a category list "A > B". Columns of other
    names are kept in `extra`, verbatim. `split` keeps the rows with this value in their `split` column.

    A row with a name like "Grade" or " grade" but no `grade`, or that contradicts an earlier row (`Duplicates`), is a
    bad row too. The first `max_bad_rows` bad rows (where it is not given, `read.max_bad_rows`) are
    skipped, and printed and counted by kind on stderr.

    need_grade: True: a row without a grade is a bad row; False: grades are not needed, and those that cannot be read
        are ignored with one note; None: a row may have none, but what it has must be readable. need_gold: as True, and
        pseudo-labels (`taosr1/data/gold.py`) are refused. Another scale than 1-4 is never skipped as bad rows.

    Raises: FileNotFoundError; ValueError naming file, line and field for a further bad row, for a damaged file, for a
        column of grades in another scale (`GradesError`), and for a file without a single row.
    """

    def beside(raw: dict, row: Judgement) -> None:
        _check_needs(raw, row, bool(need_grade or need_gold), need_cot)

    read = read if max_bad_rows is None else replace(read, max_bad_rows=max_bad_rows)
    needs = {"need_grade": need_gold or need_grade, "need_gold": need_gold}
    return [row for row, _ in read_parsed(path, beside, read, split=split, **needs)]


def read_parsed(
    path: str | Path,
    beside: Callable[[dict, Judgement], T],
    read: ReadFlags = AS_FOUND,
    *,
    split: str = "",
    limit: int = 0,
    flag: str = "--data",
    need_grade: bool | None = None,
    need_gold: bool = False,
) -> list[tuple[Judgement, T]]:
    """`read_judgements` for callers that keep something beside each judgement.

    beside: is given the raw row and its judgement, and returns what is kept; raises ValueError for a bad row. limit:
    the number of rows to keep, 0 for all; without `split` the file is read no further. flag: the option that the error
    for an empty file names.
    """
    bad_rows = BadRows(path, read.max_bad_rows)
    grades = GradeColumn(path, read.grades, lambda: _all_rows(path), need=need_grade, gold=need_gold)
    pairs = list(islice(_iter_parsed(path, beside, bad_rows, grades), None if split else limit or None))
    grades.finish()
    if grades.useless:
        pairs = [(replace(row, grade=None), kept) for row, kept in pairs]
    if not pairs:
        skipped = f" ({bad_rows.skipped} bad rows skipped)" if bad_rows.skipped else ""
        raise ValueError(f"{path}: no rows in this file{skipped}: check {flag}")
    if split:
        kept = {id(row) for row in keep_split([row for row, _ in pairs], split)}
        pairs = [pair for pair in pairs if id(pair[0]) in kept][: limit or None]
    return pairs


def iter_judgements(
    path: str | Path, bad_rows: BadRows | None = None, *, need_grade: bool = False, need_cot: bool = False
) -> Iterator[Judgement]:
    """`read_judgements` one row at a time, for files that do not fit into memory. An empty file yields nothing."""

    def beside(raw: dict, row: Judgement) -> None:
        _check_needs(raw, row, need_grade, need_cot)

    grades = GradeColumn(path, "", lambda: _all_rows(path))
    return (row for row, _ in _iter_parsed(path, beside, bad_rows or BadRows(path), grades))


def _iter_parsed(
    path: str | Path, beside: Callable[[dict, Judgement], T], bad_rows: BadRows, grades: GradeColumn
) -> Iterator[tuple[Judgement, T]]:
    duplicates = Duplicates(bad_rows, grades_matter=grades.need is not False)
    for line, row in read_rows(path, bad_rows):
        try:
            grade = grades.read(line, row)
            judgement = parse_judgement({**row, "grade": grade} if "grade" in row or grade else row)
            if grades.map and judgement.grade != grade:  # an esci_label, of which the map says something else
                judgement = replace(judgement, grade=grade)
            kept = beside(row, judgement)
            duplicates.add(line, judgement)
        except GradesError:
            raise
        except ValueError as problem:
            bad_rows.add(line, problem)
        else:
            yield judgement, kept
    duplicates.finish()


def _all_rows(path: str | Path) -> Iterator[dict]:
    """The raw rows of a file as far as they can be read, without a word about the others."""
    with suppress(ValueError):
        for _, row in read_rows(path, Unreported(path)):
            yield row


def _check_needs(raw: dict, row: Judgement, need_grade: bool, need_cot: bool) -> None:
    """Raises: ValueError for a row that lacks what is needed."""
    if need_grade and row.grade is None:
        raise ValueError(missing_gold(raw))
    if need_cot:
        check_cot(row.cot)


def read_rows(path: str | Path, bad_rows: BadRows | None = None) -> Iterator[tuple[int, dict]]:
    """The raw rows of a data file in any supported format, with their line (parquet: row) numbers."""
    path = Path(path) if Path(path).is_dir() else check_file(path)
    kind = Path(path.name.lower().removesuffix(".gz")).suffix or path.suffix
    if path.is_dir() or kind == ".parquet":
        return read_parquet(path, bad_rows)
    if kind in (".csv", ".tsv"):
        return read_csv(path, bad_rows, delimiter="\t" if kind == ".tsv" else ",")
    if kind in (".jsonl", ".json", ".ndjson"):
        return read_jsonl(path, bad_rows)
    expected = ".jsonl, .json, .ndjson, .csv, .tsv, .parquet (text also .gz)"
    raise ValueError(f"{path}: unknown file type {kind!r}, expected {expected}: check --data")


def parse_judgement(row: dict) -> Judgement:
    """One raw row, ours or ESCI's, as a checked judgement. Raises: ValueError naming the field and what is expected."""
    esci = is_esci(row)
    _check_names(row, COLUMNS + ESCI_COLUMNS if esci else COLUMNS)
    row = esci_row(row) if esci else row
    for name in ("query", "title"):
        if name not in row:
            found = ", ".join(shorten(repr(other)) for other in row)
            raise ValueError(f"field {name!r} is missing; the row has {shorten(found, 200) or 'no fields'}")
    text = {name: _text(name, row.get(name)) for name in COLUMNS if name != "grade"}
    text["cot"] = "\n".join(line.rstrip() for line in text["cot"].split("\n")).strip()
    if not text["query"].strip():
        raise ValueError("field 'query' is empty")
    if not any(text[name].strip() for name in PRODUCT_TEXT):
        raise ValueError(f"nothing is said about the product: {', '.join(PRODUCT_TEXT)} are all empty")
    extra = {name: value for name, value in row.items() if name not in COLUMNS}
    return Judgement(**text, grade=_grade(row.get("grade")), extra=extra)


def judgement_to_dict(judgement: Judgement) -> dict:
    """A judgement as a flat row: every column, empty or not, then its `extra` ones. Inverse of `parse_judgement`."""
    clash = sorted(set(judgement.extra) & set(COLUMNS))
    if clash:
        raise ValueError(f"extra columns {clash} have the names of a judgement's own fields")
    return {**{name: getattr(judgement, name) for name in COLUMNS}, **judgement.extra}


def write_judgements(path: str | Path, rows: Iterable[Judgement]) -> int:
    """Write judgements as JSON Lines, gzipped if the name ends in .gz: the complete file, or none. Returns: how many.

    Raises: ValueError for a file name of another format.
    """
    if not str(path).lower().removesuffix(".gz").endswith((".jsonl", ".ndjson", ".json")):
        raise ValueError(f"{path}: judgements are written as JSON Lines, expected a name ending in .jsonl or .jsonl.gz")
    return write_jsonl(path, (judgement_to_dict(row) for row in rows))


def _text(name: str, value: Any) -> str:
    """A text column's value as text; lists only in the columns of `_JOINERS`, an object only as attributes."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if (isinstance(value, list) and name in _JOINERS) or (isinstance(value, dict) and name == "attributes"):
        texts = filter(None, map(_attribute, value.items() if isinstance(value, dict) else value))
        return _JOINERS[name].join(text.replace(";", ",") if name == "attributes" else text for text in texts)
    if isinstance(value, float):
        if abs(value) >= 2**53:  # two ids of so many digits can be the same float
            raise ValueError(f"field {name!r} is {value}, too large to be exact as a float: write it as text")
        # Many tools write the integers of a column with missing values as 123.0.
        return str(int(value)) if value.is_integer() else str(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise ValueError(f"field {name!r} is {shorten(repr(value))}, expected text")


def _attribute(item: Any) -> str:
    """One element of a list or object of attributes: text, a (name, value) pair or {"name": ..., "value": ...}."""
    if isinstance(item, dict) and set(item) == {"name", "value"}:
        item = (item["name"], item["value"])
    if isinstance(item, tuple):
        name, value = item
        value = ", ".join(_scalar(entry) for entry in value) if isinstance(value, list) else _scalar(value)
        return f"{_scalar(name)}: {value}" if value else ""
    return _scalar(item)


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (dict, list)):
        raise ValueError(f"a list or object holds {shorten(repr(value))}, expected text in it")
    return _text("attributes", value)


def _grade(value: Any) -> int | None:
    """1-4 from 4, 4.0, "4", "Excellent" or "4-Excellent"; None from null or an empty cell."""
    word = "" if value is None else canonical(value)
    found = OUR_DIGITS.get(word) or OUR_NAMES.get(word)
    if word and not found:
        raise ValueError(f"field 'grade' is {shorten(repr(value))}, expected 1-4")
    return found


def _check_names(row: dict, columns: tuple[str, ...]) -> None:
    """Raise ValueError for a column that would be ignored without notice: "Grade" or " grade", and no "grade"."""
    for name in (name for name in row if name not in columns):
        expected = name.strip().strip(BYTE_ORDER_MARK).strip().lower()
        if expected in columns and expected not in row:
            raise ValueError(f"field {shorten(repr(name))} is not read: the column is called {expected!r}, rename it")
