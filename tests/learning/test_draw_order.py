"""The order of rows: shares of grades, every row before any again, and streams that continue from their cursor."""

import math
from collections import Counter

import pytest
import torch

from taosr1.learning.draw_order import balanced_order, keyed_generator, shuffled_order

NATURAL = [4] * 50 + [2] * 36 + [1] * 9 + [3] * 5


def test_every_epoch_is_a_new_shuffle_of_all_rows():
    order = shuffled_order(10, seed=0, start=0, count=30)
    epochs = [order[start : start + 10] for start in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] and order != shuffled_order(10, seed=1, start=0, count=30)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_the_stream_continues_from_its_cursor(power):
    """Any cut into (start, count) pieces gives the same stream: a resumed run needs the integer alone."""
    whole = balanced_order(NATURAL, seed=3, start=0, count=300, power=power)
    plain = shuffled_order(100, seed=3, start=0, count=300)
    for step in (1, 7, 64):
        starts = range(0, 300, step)
        pieces = [balanced_order(NATURAL, 3, start, min(step, 300 - start), power=power) for start in starts]
        assert [row for piece in pieces for row in piece] == whole
        pieces = [shuffled_order(100, 3, start, min(step, 300 - start)) for start in starts]
        assert [row for piece in pieces for row in piece] == plain


def test_the_balanced_stream_has_equally_many_of_every_grade_in_every_round():
    order = balanced_order(NATURAL, seed=0, start=0, count=400)
    grades = [NATURAL[row] for row in order]
    assert all(sorted(grades[start : start + 4]) == [1, 2, 3, 4] for start in range(0, 400, 4))
    assert len({tuple(grades[start : start + 4]) for start in range(0, 400, 4)}) > 4  # no fixed order inside a round


def test_each_grade_is_used_up_before_a_row_comes_again():
    order = balanced_order(NATURAL, seed=0, start=0, count=400)
    uses = Counter(order)
    for grade in (1, 2, 3, 4):
        counts = [uses[row] for row, value in enumerate(NATURAL) if value == grade]
        assert max(counts) - min(counts) <= 1


def test_the_power_moves_shares_from_equal_to_natural():
    for power, expected in ((0.0, [25, 25, 25, 25]), (1.0, [9, 36, 5, 50])):
        shares = Counter(NATURAL[row] for row in balanced_order(NATURAL, 0, 0, 1000, power=power))
        assert [shares[grade] / 10 for grade in (1, 2, 3, 4)] == pytest.approx(expected, abs=0.5)
    roots = [math.sqrt(count) for count in (9, 36, 5, 50)]
    shares = Counter(NATURAL[row] for row in balanced_order(NATURAL, 0, 0, 5000, power=0.5))
    for grade, root in zip((1, 2, 3, 4), roots):
        assert shares[grade] / 5000 == pytest.approx(root / sum(roots), abs=0.01)


def test_absent_grades_and_tiny_pools_are_defined():
    assert Counter(balanced_order([4, 4, 4, 2], 0, 0, 8))[3] == 4
    assert balanced_order([3], 0, 5, 3) == [0, 0, 0] and balanced_order([3], 0, 5, 0) == []
    assert balanced_order([1, 4], 0, 10**12, 4) is not None  # a late cursor costs no replay
    for call in (
        lambda: balanced_order([], 0, 0, 1),
        lambda: balanced_order([4], 0, -1, 1),
        lambda: balanced_order([4], 0, 0, -1),
        lambda: balanced_order([4], 0, 0, 1, power=2.0),
        lambda: shuffled_order(0, 0, 0, 1),
        lambda: shuffled_order(5, 0, -1, 1),
    ):
        with pytest.raises(ValueError, match="need"):
            call()
    with pytest.raises(ValueError, match="row 1 is 7"):
        balanced_order([4, 7], 0, 0, 1)


def test_keyed_generators_differ_by_every_part_of_the_key():
    """The seed of one key is written down: it must not change between machines or versions of this code."""
    keys = [(0, "rollout", 0), (0, "rollout", 1), (1, "rollout", 0), (0, "order", 0), (0,)]
    numbers = [torch.randint(2**31, (), generator=keyed_generator(*key)).item() for key in keys]
    assert len(set(numbers)) == len(keys)
    assert keyed_generator(0, "rollout", 0).initial_seed() == 8374352737654752217
