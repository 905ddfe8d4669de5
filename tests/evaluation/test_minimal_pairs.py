"""Measures on minimal pairs, worked out by hand on two blocks of four rows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from taosr1.evaluation.minimal_pairs import measure_pairs, minimal_pairs, pair_difference
from taosr1.task.judgement import Judgement


def block(name: str) -> list[Judgement]:
    """Two queries by two products: grades 4 and 2, 2 and 4."""
    ids = [(f"{name}-q{q}", f"{name}-p{p}", 4 if q == p else 2) for q in (0, 1) for p in (0, 1)]
    return [Judgement(q, p, query_id=q, item_id=p, grade=grade, extra={"block": name}) for q, p, grade in ids]


ROWS = block("a") + block("b")
# Block a: all right. Block b: the first row is right, the second is not, the third is, the fourth cannot be read.
GRADES = [4, 2, 2, 4] + [4, 4, 2, None]


def test_the_two_rows_of_a_query_and_of_a_product_are_pairs():
    assert sorted(minimal_pairs(block("a"))) == [(0, 1), (0, 2), (1, 3), (2, 3)]
    assert minimal_pairs(ROWS[:6])[-1] == (4, 5), "of a block that is cut short, the pairs that are there"
    assert len(minimal_pairs(ROWS[:6])) == 5


def test_a_pair_is_right_where_both_of_its_rows_are():
    """Block a has 4 right pairs of 4. In block b only (first, third) has two right rows: 1 of 4. Rows: 6 of 8.

    Grade 4: 3 of 4 found, 4 times said: F1 2 * 3 / (4 + 4). Grade 2: 3 of 4, 3 times said: 2 * 3 / (4 + 3).
    """
    found = measure_pairs(ROWS, GRADES, samples=200)
    assert (found["pairs"], found["blocks"]) == (8, 2)
    assert found["pair_accuracy"].value == 5 / 8 and found["accuracy"].value == 6 / 8
    assert found["macro_f1"].value == pytest.approx((6 / 8 + 6 / 7) / 2)
    # Of two blocks, a resample has twice the one, twice the other, or both: nothing lies outside of 1/4 and 1.
    assert (found["pair_accuracy"].low, found["pair_accuracy"].high) == (1 / 4, 1)


def test_a_grade_that_no_row_has_is_wrong_and_no_class_of_its_own():
    """As above with a 1 for the reply that could not be read: the F1 of grades 4 and 2 alone, not with a third of 0."""
    found = measure_pairs(ROWS, [*GRADES[:-1], 1], samples=0)
    assert found["macro_f1"].value == pytest.approx((6 / 8 + 6 / 7) / 2) and found["accuracy"].value == 6 / 8


@pytest.mark.parametrize("grade", [1, 2, 4, None])
def test_who_does_not_see_the_difference_has_no_pair(grade):
    assert measure_pairs(ROWS, [grade] * 8, samples=0)["pair_accuracy"].value == 0


def test_the_difference_is_paired_over_blocks():
    """From none to one pair right in each block: every resample has the same difference, 1/4. Unpaired it would not."""
    more = [[4, 4, 2, 2], [2, 2, 4, 4]]
    before = [4, 4, 4, 4] + [4, 4, 4, 4]
    after = more[0] * 2
    gap = pair_difference(ROWS, before, after, samples=200)
    assert (gap.value, gap.low, gap.high) == (1 / 4, 1 / 4, 1 / 4)
    back = pair_difference(ROWS, after, before, samples=200)
    assert (back.value, back.low, back.high) == (-1 / 4, -1 / 4, -1 / 4)
    same = pair_difference(ROWS, GRADES, GRADES, samples=200)
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_rows_that_are_no_minimal_pairs_are_refused():
    with pytest.raises(ValueError, match="row 0 has no query_id, item_id or block.*synthetic:ability-NAME"):
        minimal_pairs([Judgement("a", "b", query_id="1", item_id="2", grade=4)])
    with pytest.raises(ValueError, match="query_id a-q0 has rows of grades 2, 2: a minimal pair"):
        minimal_pairs([replace(ROWS[0], grade=2), *ROWS[1:]])
    with pytest.raises(ValueError, match="query_id a-q0 has rows of grades 4, 2, 2"):
        minimal_pairs([*ROWS, replace(ROWS[1], item_id="another")])
    with pytest.raises(ValueError, match="8 rows, 7 predicted grades"):
        measure_pairs(ROWS, GRADES[:7])
    with pytest.raises(ValueError, match="no minimal pair among 1 rows"):
        measure_pairs(ROWS[:1], [4])
