"""Reads and writes files of judgements: JSON Lines, CSV, TSV or parquet rows become checked `Judgement`s."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from taosr1.data.columns import ColumnNames, MissingColumn, SameColumn
from taosr1.data.duplicates import Duplicates
from taosr1.data.esci import esci_row, is_esci, keep_split
from taosr1.data.flags import AS_FOUND, ReadFlags
from taosr1.data.flatten import to_text, without_missing
from taosr1.data.rows import data_files, has_header, read_rows
from taosr1.runtime.bad_rows import BadRows, shorten
from taosr1.runtime.jsonl import write_jsonl
from taosr1.runtime.text_lines import DamagedFile
from taosr1.task.grades import GRADES, grade_name
from taosr1.task.judgement import COLUMNS, PRODUCT_TEXT, Judgement, check_cot

T = TypeVar("T")
_GRADE_OF_TEXT = {text: grade for grade in GRADES for text in (str(grade), f"{grade}.0", grade_name(grade).lower())}
_Parse = Callable[[dict, dict], tuple[Judgement, T]]  # of a row under our names, and under its own
NAN_CELLS = "had 'nan' or another word for a missing value in a cell, read as empty"
_AS_FOUND = ColumnNames()


def read_judgements(
    spec: str | Path,
    read: ReadFlags = AS_FOUND,
    *,
    max_bad_rows: int | None = None,
    need_grade: bool = False,
    need_cot: bool = False,
    split: str = "",
) -> list[Judgement]:
    """Read judgements from a table or JSON file (`read_rows`), or several (`data_files`); ESCI rows are recognised.

    Columns of other names are found (columns.py) or kept in `extra`, verbatim. Text is kept exactly (but see
    `taosr1/runtime/jsonl.py` on NUL and lone surrogates; in a chain of thought line ends become LF, and spaces at the
    ends of its lines are dropped). Numbers, lists and objects become readable text, and missing or invisible values ""
    (flatten.py). `split` keeps the rows with this value in their `split` column.

    A row that contradicts an earlier row (`Duplicates`) is a bad row too. The first `max_bad_rows` bad rows (where it
    is not given, `read.max_bad_rows`) are skipped, and printed and counted by kind on stderr.

    Raises: FileNotFoundError; ValueError naming file, line and field for a further bad row, for a damaged file, and for
        a file without a single row.
    """
    parse = partial(_parse_needed, need_grade=need_grade, need_cot=need_cot)
    read = read if max_bad_rows is None else replace(read, max_bad_rows=max_bad_rows)
    return [row for row, _ in read_parsed(spec, parse, read, split=split)]


def read_parsed(
    spec: str | Path,
    parse: Callable[[dict], tuple[Judgement, T]],
    read: ReadFlags = AS_FOUND,
    *,
    split: str = "",
    limit: int = 0,
    flag: str = "--data",
    kind: str = "",
) -> list[tuple[Judgement, T]]:
    """`read_judgements` for callers that keep something beside each judgement: what `parse` makes of the rows.

    spec: a file, several with commas between them, or a pattern (`data_files`). Bad rows and ids that occur again are
    counted in each file by itself; every judgement knows its file (`source`) and `line`.
    parse: of a row under our column names; raises ValueError for a bad row. limit: the number of rows to keep, 0 for
    all; without `split` nothing is read beyond it. flag: the option that the error for an empty file names. kind: the
    format, as in `read_rows`.
    """
    return _read(spec, lambda row, _: parse(row), read, split=split, limit=limit, flag=flag, kind=kind)


def read_raw(
    spec: str | Path,
    read: ReadFlags = AS_FOUND,
    *,
    split: str = "",
    limit: int = 0,
    flag: str = "--data",
    kind: str = "",
) -> list[tuple[dict, Judgement]]:
    """`read_judgements` with every row as it is in its file, under its own column names, beside its judgement."""
    settings = {"split": split, "limit": limit, "flag": flag, "kind": kind}
    pairs = _read(spec, lambda row, raw: (parse_judgement(row), raw), read, **settings)
    return [(raw, judgement) for judgement, raw in pairs]


def _read(
    spec: str | Path, parse: _Parse, read: ReadFlags, *, split: str, limit: int, flag: str, kind: str
) -> list[tuple[Judgement, T]]:
    pairs: list[tuple[Judgement, T]] = []
    names, files = ColumnNames(read.columns), data_files(spec, flag)
    for path in files:
        left = limit - len(pairs) if limit and not split else None
        if left == 0:
            break
        bad_rows = BadRows(path, read.max_bad_rows)
        found = list(islice(_iter_parsed(path, parse, bad_rows, read, names, kind), left))
        if not found:
            skipped = f" ({bad_rows.skipped} bad rows skipped)" if bad_rows.skipped else ""
            raise ValueError(f"{path}: no rows in this file{skipped}: check {flag}")
        pairs += found
    if not limit:
        names.check_found(spec)
    names.note(spec)
    if split:
        kept = {id(row) for row in keep_split([row for row, _ in pairs], split)}
        pairs = [pair for pair in pairs if id(pair[0]) in kept][: limit or None]
    return pairs


def iter_judgements(
    path: str | Path, bad_rows: BadRows | None = None, *, need_grade: bool = False, need_cot: bool = False
) -> Iterator[Judgement]:
    """`read_judgements` of one file, row by row, for files beyond the memory. An empty file yields nothing."""
    parse = partial(_parse_needed, need_grade=need_grade, need_cot=need_cot)
    rows = _iter_parsed(path, lambda row, _: parse(row), bad_rows or BadRows(path), AS_FOUND, ColumnNames())
    return (row for row, _ in rows)


def _iter_parsed(
    path: str | Path, parse: _Parse, bad_rows: BadRows, read: ReadFlags, names: ColumnNames, kind: str = ""
) -> Iterator[tuple[Judgement, T]]:
    duplicates, source = Duplicates(bad_rows), str(path)
    for line, raw in read_rows(path, bad_rows, read, kind=kind):
        try:
            named = names.rename(raw)
            row = without_missing(named)
            judgement, beside = parse(row, raw)
            duplicates.add(line, judgement)
        except (MissingColumn, SameColumn) as problem:
            if has_header(path, kind):  # then no row of the file can be read
                raise DamagedFile(f"{path}: {problem}") from None
            bad_rows.add(line, problem)
        except ValueError as problem:
            bad_rows.add(line, problem)
        else:
            if row is not named:
                bad_rows.note(line, NAN_CELLS)
            yield replace(judgement, source=source, line=line), beside


def _parse_needed(row: dict, *, need_grade: bool, need_cot: bool) -> tuple[Judgement, None]:
    judgement = parse_judgement(row)
    if need_grade and judgement.grade is None:
        raise ValueError("field 'grade' is missing, expected 1-4")
    if need_cot:
        check_cot(judgement.cot)
    return judgement, None


def parse_judgement(row: dict) -> Judgement:
    """One raw row, ours or ESCI's, as a checked judgement. Raises: ValueError naming the field and what is expected."""
    row = without_missing(_AS_FOUND.rename(row))
    row = esci_row(row) if is_esci(row) else row
    for name in ("query", "title"):
        if name not in row:
            raise _AS_FOUND.missing(name, row)
    text = {name: to_text(name, row.get(name)) for name in COLUMNS if name != "grade"}
    text["cot"] = "\n".join(line.rstrip() for line in text["cot"].split("\n")).strip()
    if not text["query"]:
        raise ValueError("field 'query' is empty")
    if not any(text[name] for name in PRODUCT_TEXT):
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


def _grade(value: Any) -> int | None:
    """1-4 from 4, 4.0, "4" or "4-Excellent"; None from null or an empty cell."""
    word = "" if value is None else str(value).strip().lower()
    if word and word not in _GRADE_OF_TEXT:
        raise ValueError(f"field 'grade' is {shorten(repr(value))}, expected 1-4")
    return _GRADE_OF_TEXT.get(word)
