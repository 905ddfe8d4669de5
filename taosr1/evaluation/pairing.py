"""Brings the rows of several judges together: by query and product, never by their place in a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from taosr1.data.gold import LABELLED_BY
from taosr1.data.queries import plain, query_keys
from taosr1.evaluation.summary import Prediction
from taosr1.runtime.bad_rows import shorten
from taosr1.runtime.messages import counted, visible
from taosr1.task.judgement import PRODUCT_TEXT, Judgement

PAIR_BY = ("auto", "ids", "text")
SHOWN = 3  # examples of each kind of problem
Key = tuple[str, ...]


@dataclass(frozen=True)
class Side:
    """One judge's answers: what it is called, the rows, and a prediction for each."""

    name: str
    rows: Sequence[Judgement]
    predictions: Sequence[Prediction]


@dataclass(frozen=True)
class Paired:
    """N pairs that every side has judged, in the order of the first side.

    rows: with `grade` None where there is no gold grade. queries: (N,), a name for each row's query. predictions: one
    list of N for each side. unpaired: pairs that were left out, by reason. notes: what else a reader should know.
    """

    names: list[str]
    rows: list[Judgement]
    queries: list[str]
    predictions: list[list[Prediction]]
    unpaired: dict[str, int]
    notes: list[str]


def pair_rows(sides: Sequence[Side], by: str = "auto", allowed: int = 0) -> Paired:
    """The pairs that all sides have judged.

    by: "ids" pairs rows by query_id and item_id, "text" by the query's and the product's text, whatever its case and
        spaces; "auto" takes each id where every row of every side has it, and the text otherwise.
    allowed: how many pairs may be left out because a side lacks them, has several answers for them, or another text or
        gold grade.
    Raises: ValueError naming the first of them where more would be left out, for rows without the ids that "ids" needs,
        and where the sides have no pair in common.
    """
    key_of = _keys(sides, by)
    tables, found = zip(*(_by_key(side, key_of, letter) for side, letter in zip(sides, _letters(sides))))
    problems = _Problems()
    for repeated in found:
        problems.merge(repeated)
    kept: list[Key] = []
    for key in dict.fromkeys(key for table in tables for key in table):
        if key in problems.keys:
            continue
        missing = [letter for table, letter in zip(tables, _letters(sides)) if key not in table]
        if missing:
            row = next(table[key][0] for table in tables if key in table)
            problems.add(key, f"missing in {' and '.join(missing)}", row)
        elif problem := _contradiction([table[key][0] for table in tables]):
            problems.add(key, problem, tables[0][key][0])
        else:
            kept.append(key)
    problems.check(allowed, kept, by)
    columns = [[table[key] for key in kept] for table in tables]
    rows = [_merged([column[place][0] for column in columns]) for place in range(len(kept))]
    notes = problems.notes() + _notes(sides, columns, rows, tables)
    predictions = [[prediction for _, prediction in column] for column in columns]
    return Paired([side.name for side in sides], rows, query_keys(rows), predictions, problems.counts(), notes)


def _letters(sides: Sequence[Side]) -> list[str]:
    """A, B, C, ... as the command line calls them."""
    return [chr(ord("A") + place) for place in range(len(sides))]


def _keys(sides: Sequence[Side], by: str) -> Callable[[Judgement], Key]:
    """A function from a row to its key."""
    if by not in PAIR_BY:
        raise ValueError(f"by is {by!r}, expected one of {', '.join(PAIR_BY)}")
    without = {}
    for name in ("query_id", "item_id"):
        rows = (row for side in sides for row in side.rows if not getattr(row, name))
        without[name] = next(rows, None)
    lacking = [(name, row) for name, row in without.items() if row is not None]
    if by == "ids" and lacking:
        name, row = lacking[0]
        raise ValueError(f"--pair-by ids: {_place(row)} has no {name}; --pair-by text pairs by query and product text")
    by_query, by_item = (by != "text" and row is None for row in without.values())

    def key_of(row: Judgement) -> Key:
        query = row.query_id if by_query else plain(row.query)
        item = (row.item_id,) if by_item else tuple(plain(getattr(row, name)) for name in (*PRODUCT_TEXT, "price"))
        return (query, *item)

    return key_of


def _by_key(
    side: Side, key_of: Callable[[Judgement], Key], letter: str
) -> tuple[dict[Key, tuple[Judgement, Prediction]], _Problems]:
    """A side's rows by key. Repeats of one answer are one; different answers for one pair are a problem."""
    table: dict[Key, tuple[Judgement, Prediction]] = {}
    problems = _Problems()
    if len(side.rows) != len(side.predictions):
        raise ValueError(f"{len(side.rows)} rows, {len(side.predictions)} predictions: they must be parallel")
    for row, prediction in zip(side.rows, side.predictions):
        key = key_of(row)
        earlier = table.setdefault(key, (row, prediction))
        if _answer(*earlier) != _answer(row, prediction):
            problems.add(key, f"twice in {letter} with different answers", row)
    return table, problems


def _answer(row: Judgement, prediction: Prediction) -> tuple:
    return prediction.grade, prediction.tier, _gold(row), plain(row.query), plain(row.title)


def _gold(row: Judgement) -> int | None:
    """A judge's pseudo-label is no gold grade."""
    return None if row.extra.get(LABELLED_BY) else row.grade


def _contradiction(rows: Sequence[Judgement]) -> str:
    """Why rows of one key are not one pair, "" where they are."""
    for name in ("query", "title"):
        if len({plain(getattr(row, name)) for row in rows}) > 1:
            return f"with the same ids and another {name}"
    if len({_gold(row) for row in rows} - {None}) > 1:
        return "with another gold grade"
    return ""


def _merged(rows: Sequence[Judgement]) -> Judgement:
    """The first side's row, with the gold grade and the kind of query of whichever side has them."""
    gold = next((grade for grade in map(_gold, rows) if grade), None)
    return replace(rows[0], grade=gold, query_kind=next((row.query_kind for row in rows if row.query_kind), ""))


def _notes(sides: Sequence[Side], columns: Sequence, rows: Sequence[Judgement], tables: Sequence[dict]) -> list[str]:
    notes = []
    for side, letter, table in zip(sides, _letters(sides), tables):
        if repeated := len(side.rows) - len(table):
            notes.append(f"{counted(repeated, 'row')} of {letter} repeating an earlier one: not counted")
        if labelled := sum(bool(row.extra.get(LABELLED_BY)) for row in side.rows):
            notes.append(f"{counted(labelled, 'grade')} of {letter} from a judge (labelled_by): no gold grades")
    one_sided = sum(len({_gold(column[place][0]) for column in columns}) > 1 for place in range(len(rows)))
    if one_sided:
        notes.append(f"{counted(one_sided, 'pair')} with a gold grade on one side only, which counts for both")
    graded = sum(row.grade is not None for row in rows)
    if graded < len(rows):
        measured = "nothing is measured against gold" if not graded else "only the others are measured against gold"
        notes.append(f"{counted(len(rows) - graded, 'pair')} of {len(rows):,} without a gold grade: {measured}")
    return notes


def _place(row: Judgement) -> str:
    """Where a row stands and what it says, safe to print."""
    ids = f" (query_id {shorten(repr(row.query_id))}, item_id {shorten(repr(row.item_id))})" if row.item_id else ""
    where = f"{visible(row.source)}:{row.line}: " if row.source else ""
    return f"{where}{shorten(repr(row.query))} with {shorten(repr(row.title))}{ids}"


@dataclass
class _Problems:
    """Pairs that cannot be compared: the reason of each, and the first rows of every reason."""

    keys: dict[Key, str] = field(default_factory=dict)
    examples: dict[str, list[Judgement]] = field(default_factory=dict)

    def add(self, key: Key, reason: str, row: Judgement) -> None:
        if key not in self.keys:
            self.keys[key] = reason
            self.examples.setdefault(reason, []).append(row)

    def merge(self, other: _Problems) -> None:
        seen = {reason: iter(rows) for reason, rows in other.examples.items()}
        for key, reason in other.keys.items():
            self.add(key, reason, next(seen[reason]))

    def counts(self) -> dict[str, int]:
        return {reason: len(rows) for reason, rows in self.examples.items()}

    def notes(self) -> list[str]:
        return [f"left out: {text}" for text in self._texts()]

    def _texts(self) -> list[str]:
        return [
            f"{counted(len(rows), 'pair')} {reason}, such as {_place(rows[0])}"
            for reason, rows in self.examples.items()
        ]

    def check(self, allowed: int, kept: Sequence[Key], by: str) -> None:
        found, reasons = len(self.keys), "; ".join(self._texts())
        text = "" if by == "text" else ", --pair-by text compares texts instead of ids"
        if not kept:
            raise ValueError(f"A and B have no pair in common: {reasons}. Are they of the same rows{text}?")
        if found > allowed:
            limit = f"more than the {allowed} of --max-unpaired" if allowed else "--max-unpaired N leaves up to N out"
            raise ValueError(f"{counted(found, 'pair')} cannot be compared: {reasons} ({limit}{text})")
