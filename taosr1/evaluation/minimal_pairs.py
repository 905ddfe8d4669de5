"""Measures on minimal pairs: two rows of one query or of one product, whose grades differ for a single reason.

A judge has a pair right where both its rows are right. One that does not see the difference grades both alike, and has
none right; guessing between the two grades of a pair gives a quarter of the pairs, half of the rows and macro-F1 0.5.

Intervals are bootstraps over blocks (column `block`), since the rows of a block share their queries and products.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from taosr1.evaluation.metrics import Interval, bootstrap_difference, bootstrap_interval, bootstrap_intervals
from taosr1.task.judgement import Judgement

CHANCE = {"pairs": 0.25, "accuracy": 0.5, "macro_f1": 0.5}


def minimal_pairs(rows: Sequence[Judgement]) -> list[tuple[int, int]]:
    """The places of the two rows of every query, and of every product. A row whose partner is missing is in no pair.

    Raises: ValueError for rows without ids or a block, for a query or product of more than two rows, and for a pair
        with one grade: they are no minimal pairs.
    """
    places: dict[tuple[str, str], list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        if not (row.query_id and row.item_id and row.extra.get("block")):
            expected = "expected rows of synthetic:ability-NAME or of synthetic:abilities"
            raise ValueError(f"row {place} has no query_id, item_id or block, so it is of no minimal pair: {expected}")
        places["query_id", row.query_id].append(place)
        places["item_id", row.item_id].append(place)
    for (column, name), found in places.items():
        if len(found) > 2 or len(found) == 2 and rows[found[0]].grade == rows[found[1]].grade:
            grades = ", ".join(str(rows[place].grade) for place in found)
            raise ValueError(f"{column} {name} has rows of grades {grades}: a minimal pair is two rows, of two grades")
    return [tuple(found) for found in places.values() if len(found) == 2]


def measure_pairs(rows: Sequence[Judgement], grades: Sequence, *, samples: int = 1000, seed: int = 0) -> dict:
    """How many `pairs` and `blocks` there are, and intervals of `pair_accuracy`, `accuracy` and `macro_f1`.

    grades: (N,) predicted ones, None where a reply could not be read.
    Choice: a grade that no row has is wrong, but no class of its own. Of a set with two grades one such answer would
    take a third of the macro-F1.
    Raises: ValueError as `minimal_pairs`.
    """
    right, of_block = _pairs_right(rows, grades)
    gold, blocks = [row.grade for row in rows], [row.extra["block"] for row in rows]
    counts = {"pairs": len(right), "blocks": len(set(of_block))}
    of_pairs = bootstrap_interval("accuracy", [1] * len(right), right, of_block, samples, seed)
    known = [grade if grade in gold else None for grade in grades]
    of_rows = bootstrap_intervals(("accuracy", "macro_f1"), gold, known, blocks, samples, seed)
    return counts | {"pair_accuracy": of_pairs} | of_rows


def pair_difference(
    rows: Sequence[Judgement], before: Sequence, after: Sequence, *, samples: int = 1000, seed: int = 0
) -> Interval:
    """Pair accuracy of `after` minus that of `before`, on the same resampled blocks. Raises: as `minimal_pairs`."""
    (first, of_block), (second, _) = (_pairs_right(rows, grades) for grades in (before, after))
    return bootstrap_difference("accuracy", [1] * len(first), first, second, of_block, samples, seed)


def _pairs_right(rows: Sequence[Judgement], grades: Sequence) -> tuple[list[int | None], list[str]]:
    """1 for each pair with both rows right, else None, and its block: to the metrics a pair is a row of one class."""
    if len(rows) != len(grades):
        raise ValueError(f"{len(rows)} rows, {len(grades)} predicted grades: they must be parallel")
    pairs = minimal_pairs(rows)
    if not pairs:
        raise ValueError(f"no minimal pair among {len(rows)} rows: a block has four")
    is_right = [row.grade == grade for row, grade in zip(rows, grades)]
    right = [1 if is_right[one] and is_right[other] else None for one, other in pairs]
    return right, [rows[one].extra["block"] for one, _ in pairs]
