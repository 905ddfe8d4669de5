"""Which groups are trained on: difficulty by integer counts, and balance by grade."""

import math
from collections import Counter

import pytest
import torch

from taosr1.learning.difficulty import balance_by_grade, drop_reason, grade_share_cv


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# ---- difficulty -----------------------------------------------------------------------------------------------------


def test_only_mixed_groups_are_kept():
    assert [drop_reason(right, 4) for right in range(5)] == ["all wrong", "", "", "", "all right"]
    assert [drop_reason(right, 4, gamma=3) for right in range(5)] == ["all wrong", "", "", "too easy", "all right"]
    assert [drop_reason(right, 4, gamma=2) for right in (1, 2)] == ["", "too easy"]


def test_what_is_kept_has_some_right_replies_and_fewer_than_gamma():
    for size in range(1, 6):
        for gamma in (None, *range(2, size + 1)):
            for right in range(size + 1):
                assert (drop_reason(right, size, gamma) == "") == (0 < right < (gamma or size))


def test_a_group_of_one_is_always_dropped():
    assert [drop_reason(right, 1) for right in (0, 1)] == ["all wrong", "all right"]


def test_counts_that_are_no_counts_are_refused():
    for right in (5, -1, 0.5, torch.tensor(1.0), True, [1]):
        with pytest.raises(ValueError, match="right is"):
            drop_reason(right, 4)
    for gamma in (1, 0, 5):
        with pytest.raises(ValueError, match="gamma"):
            drop_reason(1, 4, gamma)


# ---- balance --------------------------------------------------------------------------------------------------------

NATURAL = [4] * 50 + [2] * 36 + [1] * 9 + [3] * 5


def test_balanced_sampling_keeps_the_rarest_grade_s_number_of_each():
    kept = balance_by_grade(NATURAL, generator())
    assert kept == sorted(set(kept)) and len(kept) == 20
    grades = [NATURAL[row] for row in kept]
    assert Counter(grades) == {1: 5, 2: 5, 3: 5, 4: 5} and grade_share_cv(grades) == 0.0


def test_balanced_sampling_is_repeatable_and_draws_from_all_rows():
    assert balance_by_grade(NATURAL, generator(1)) == balance_by_grade(NATURAL, generator(1))
    seen = {row for seed in range(100) for row in balance_by_grade(NATURAL, generator(seed))}
    assert seen == set(range(100))


def test_balance_without_some_grade_balances_the_rest():
    assert Counter([4, 4, 2][row] for row in balance_by_grade([4, 4, 2], generator())) == {4: 1, 2: 1}
    assert balance_by_grade([3, 3], generator()) == [0, 1]
    assert balance_by_grade([], generator()) == []


def test_cv_by_hand():
    """Shares .09 .36 .05 .5, mean .25: sqrt((.16^2 + .11^2 + .2^2 + .25^2) / 4) / .25 = .74887 (sample std: .86472).
    One grade alone: sqrt((.75^2 + 3 * .25^2) / 4) / .25 = sqrt(3). Two of four: 1."""
    expected = math.sqrt((0.16**2 + 0.11**2 + 0.2**2 + 0.25**2) / 4) / 0.25
    assert grade_share_cv(NATURAL) == pytest.approx(expected) == pytest.approx(0.74887, abs=1e-5)
    assert grade_share_cv([2, 2, 2]) == pytest.approx(math.sqrt(3))
    assert grade_share_cv([1, 4]) == pytest.approx(1.0)
    assert grade_share_cv([1, 2, 3, 4] * 7) == 0.0 and grade_share_cv([]) == 0.0
