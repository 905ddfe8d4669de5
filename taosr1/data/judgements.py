"""Reads and writes files of judgements: rows of any format of rows.py become checked `Judgement`s."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from taosr1.data.columns import ColumnNames, MissingColumn, SameColumn
from taosr1.data.duplicates import Duplicates
from taosr1.data.esci import esci_row, is_esci, keep_split
from taosr1.data.file_checks import checked_rows
from taosr1.data.flags import AS_FOUND, ReadFlags
from taosr1.data.flatten import to_text, without_missing
from taosr1.data.gold import is_prediction, missing_gold
from taosr1.data.rows import data_files, has_header, read_rows
from taosr1.data.scales import OUR_DIGITS, OUR_NAMES, GradeColumn, GradesError, canonical
from taosr1.runtime.bad_rows import BadRows, Unreported, shorten
from taosr1.runtime.jsonl import write_jsonl
from taosr1.runtime.text_lines import DamagedFile, check_file
from taosr1.task.judgement import COLUMNS, PRODUCT_TEXT, Judgement, check_cot

T = TypeVar("T")
NAN_CELLS = "had 'nan' or another word for a missing value in a cell, read as empty"
OTHER_THAN_ESCI = (
    'had an esci_label and another grade, and the label was read (--columns "esci_label=" reads the grade)'
)
_AS_FOUND = ColumnNames()


def read_judgements(
    spec: str | Path,
    read: ReadFlags = AS_FOUND,
    *,
    max_bad_rows: int | None = None,
    need_grade: bool | None = None,
    need_gold: bool = False,
    need_cot: bool = False,
    split: str = "",
    flag: str = "--data",
) -> list[Judgement]:
    """Read judgements from a table or JSON file (`read_rows`), or several (`data_files`); ESCI rows are recognised.

    Columns of other names are found (columns.py) or kept in `extra`, verbatim. Text is kept exactly (but see
    `taosr1/runtime/jsonl.py` on NUL and lone surrogates; in a chain of thought line ends become LF, and spaces at the
    ends of its lines are dropped). Numbers, lists and objects become readable text, and missing or invisible values ""
    (flatten.py). `split` keeps the rows with this value in their `split` column. `flag` is the option that errors name.

    A row that contradicts an earlier row (`Duplicates`) is a bad row too. The first `max_bad_rows` bad rows (where it
    is not given, `read.max_bad_rows`) are skipped, and printed and counted by kind on stderr.

    need_grade: True: a row without a grade is a bad row; False: grades are not needed, and those that cannot be read
        are ignored with one note; None: a row may have none, but what it has must be readable. need_gold: as True, and
        pseudo-labels (`taosr1/data/gold.py`) are refused. Another scale than 1-4 is never skipped as bad rows.

    Raises: FileNotFoundError; ValueError naming file, line and field for a further bad row, for a damaged file, for a
        column of grades in another scale (`GradesError`), and for a file without a single row.
    """

    def beside(raw: dict, row: Judgement) -> None:
        if need_cot:
            check_cot(row.cot)

    read = read if max_bad_rows is None else replace(read, max_bad_rows=max_bad_rows)
    needs = {"need_grade": need_gold or need_grade, "need_gold": need_gold}
    return [row for row, _ in read_parsed(spec, beside, read, split=split, flag=flag, **needs)]


def read_parsed(
    spec: str | Path,
    beside: Callable[[dict, Judgement], T],
    read: ReadFlags = AS_FOUND,
    *,
    split: str = "",
    limit: int = 0,
    flag: str = "--data",
    kind: str = "",
    need_grade: bool | None = None,
    need_gold: bool = False,
) -> list[tuple[Judgement, T]]:
    """`read_judgements` for callers that keep something beside each judgement.

    spec: a file, several with commas between them, or a pattern (`data_files`). Bad rows, grades and ids are those of
    each file by itself; every judgement knows its file (`source`) and `line`.
    beside: is given the raw row, under the column names of its file, and its judgement, and returns what is kept;
    raises ValueError for a bad row. limit: the number of rows to keep, 0 for all; without `split` nothing is read
    beyond it. flag: the option that errors name. kind: the format, as in `read_rows`.
    """
    pairs: list[tuple[Judgement, T]] = []
    names = ColumnNames(read.columns)
    for path in data_files(spec, flag):
        left = limit - len(pairs) if limit and not split else None
        if left == 0:
            break
        if not path.is_dir():
            check_file(path, flag)
        bad_rows = BadRows(path, read.max_bad_rows)
        grades = GradeColumn(path, read.grades, partial(_all_rows, path, read, kind), need=need_grade, gold=need_gold)
        found = list(islice(_iter_parsed(path, beside, bad_rows, grades, read, names, kind), left))
        if not found:
            skipped = f" ({bad_rows.skipped} bad rows skipped)" if bad_rows.skipped else ""
            raise ValueError(f"{path}: no rows in this file{skipped}: check {flag}")
        grades.finish()
        found = list(zip(checked_rows(path, [row for row, _ in found], read.encoding), [kept for _, kept in found]))
        pairs += [(replace(row, grade=None), kept) for row, kept in found] if grades.useless else found
    if not limit:
        names.check_found(spec)
    names.note(spec)
    if split:
        kept = {id(row) for row in keep_split([row for row, _ in pairs], split, spec)}
        pairs = [pair for pair in pairs if id(pair[0]) in kept][: limit or None]
    return pairs


def iter_judgements(
    path: str | Path, bad_rows: BadRows | None = None, *, need_grade: bool = False, need_cot: bool = False
) -> Iterator[Judgement]:
    """`read_judgements` of one file, row by row, for files beyond the memory. An empty file yields nothing.

    What only a whole file can show is not looked at: ids that all end in ".0" stay as they are (file_checks.py).
    """

    def beside(raw: dict, row: Judgement) -> None:
        if need_cot:
            check_cot(row.cot)

    grades = GradeColumn(path, "", partial(_all_rows, path, AS_FOUND, ""), need=need_grade or None)
    rows = _iter_parsed(path, beside, bad_rows or BadRows(path), grades, AS_FOUND, ColumnNames())
    return (row for row, _ in rows)


def _iter_parsed(
    path: str | Path,
    beside: Callable[[dict, Judgement], T],
    bad_rows: BadRows,
    grades: GradeColumn,
    read: ReadFlags,
    names: ColumnNames,
    kind: str = "",
) -> Iterator[tuple[Judgement, T]]:
    duplicates, source = Duplicates(bad_rows, grades_matter=grades.need is not False), str(path)
    for line, raw in read_rows(path, bad_rows, read, kind=kind):
        try:
            named = names.rename(raw)
            names.check_texts(raw, named)
            row = without_missing(named)
            grade = grades.read(line, row)
            judgement = parse_judgement({**row, "grade": grade} if "grade" in row or grade else row)
            if grades.map and judgement.grade != grade:  # an esci_label, of which the map says something else
                judgement = replace(judgement, grade=grade)
            kept = beside(raw, judgement)
            if grades.need and judgement.grade is None:
                raise _no_grade(f"{path}:{line}", grades, names, raw, row)
            duplicates.add(line, judgement)
            if other := grades.beside_esci(row, judgement.grade):
                bad_rows.note(line, OTHER_THAN_ESCI, other)
        except GradesError:
            raise
        except (MissingColumn, SameColumn) as problem:
            if has_header(path, kind):  # then no row of the file can be read
                raise DamagedFile(f"{path}: {problem}") from None
            bad_rows.add(line, problem)
        except ValueError as problem:
            bad_rows.add(line, problem)
        else:
            if row is not named:
                bad_rows.note(line, NAN_CELLS)
            yield replace(judgement, source=source, line=line), kept
    duplicates.finish()


def _all_rows(path: str | Path, read: ReadFlags, kind: str) -> Iterator[dict]:
    """The rows of a file under our names as far as they can be read, without a word about the others."""
    names = ColumnNames(read.columns)
    with suppress(ValueError):
        for _, row in read_rows(path, Unreported(path), read, kind=kind):
            with suppress(ValueError):
                yield without_missing(names.rename(row))


def _no_grade(place: str, grades: GradeColumn, names: ColumnNames, raw: dict, row: dict) -> ValueError:
    """The error for a row without a grade: no bad row, but the whole file, where no row has one."""
    known = "grade" in row or is_prediction(row)
    problem = missing_gold(row) if known else str(names.missing("grade", raw))
    if not grades.none_given():
        return ValueError(problem)
    return GradesError(f"{place}: {problem}{'; no row has one' * known}")


def parse_judgement(row: dict) -> Judgement:
    """One raw row, ours or ESCI's, as a checked judgement. Raises: ValueError naming the field and what is expected."""
    row = without_missing(_AS_FOUND.rename(row))
    row = without_missing(esci_row(row)) if is_esci(row) else row
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
    """1-4 from 4, 4.0, "4", "Excellent" or "4-Excellent"; None from null or an empty cell."""
    word = "" if value is None else canonical(value)
    found = OUR_DIGITS.get(word) or OUR_NAMES.get(word)
    if word and not found:
        raise ValueError(f"field 'grade' is {shorten(repr(value))}, expected 1-4")
    return found
