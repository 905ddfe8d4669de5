"""CumPT and the threshold cascade: hand-worked rows, laws over random rows, and brute force for the fits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from taosr1.evaluation.metrics import COUNT_METRICS
from taosr1.serving.tiering import cumulative_grade, cumulative_tier, fit_beta, threshold_tier
from taosr1.task.grades import GRADES_OF_TIER, TIER_OF_GRADE, TIERS

DEPTH = {tier: depth for depth, tier in enumerate(TIERS)}  # Good 0, Mid 1, Bad 2


def random_probs(rows: int, seed: int = 0, sharpness: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.full(4, 1 / sharpness), rows)


def fitting_rows(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.ones(4), rows)
    return probs, np.array([rng.choice(4, p=row) + 1 for row in probs])


def tier_macro_f1(grades, tiers: list[str]) -> float:
    """The metric of the evaluation package, given tiers instead of grades."""
    counts = np.zeros((4, 5))
    for gold, tier in zip(grades, tiers):
        counts[gold - 1, GRADES_OF_TIER[tier][0] - 1] += 1
    return float(COUNT_METRICS["tier_macro_f1"](counts))


# ---- CumPT -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("probs", "beta", "grade", "tier"),
    [
        ([0.1, 0.2, 0.3, 0.4], 0.40, 4, "Good"),  # .4 reaches
        ([0.1, 0.2, 0.3, 0.4], 0.41, 3, "Good"),  # .4 + .3
        ([0.1, 0.2, 0.3, 0.4], 0.75, 2, "Mid"),  # .4 + .3 + .2
        ([0.1, 0.2, 0.3, 0.4], 0.95, 1, "Bad"),
        ([0.0, 0.0, 0.0, 1.0], 1.0, 4, "Good"),
        ([1.0, 0.0, 0.0, 0.0], 0.01, 1, "Bad"),
        ([0.25, 0.25, 0.25, 0.25], 0.5, 3, "Good"),  # a tie at beta reaches it
        ([0.25, 0.25, 0.25, 0.25], 0.75, 2, "Mid"),
    ],
)
def test_hand_worked_cumulation_from_the_best_grade_down(probs, beta, grade, tier):
    assert cumulative_grade([probs], beta).tolist() == [grade]
    assert cumulative_tier([probs], beta) == [tier]


def test_argmax_and_cumpt_differ_where_mass_is_spread():
    # The likeliest grade is 2, yet 4 and 3 together hold .6: the reason for cumulating at all.
    assert cumulative_tier([[0.0, 0.4, 0.3, 0.3]], 0.5) == ["Good"]


def test_last_grade_decides_where_rounding_leaves_the_sum_below_one():
    below = [0.1, 0.2, 0.3, 0.3999999]
    assert sum(reversed(below)) < 1.0
    assert cumulative_grade([below], 1.0).tolist() == [1]
    float32_rows = torch.softmax(torch.randn(2000, 4, generator=torch.Generator().manual_seed(0)), -1)
    assert set(cumulative_grade(float32_rows, 1.0).tolist()) <= {1, 2, 3, 4}


def test_raising_beta_never_lifts_a_row():
    probs = random_probs(300)
    depths = np.array([[DEPTH[tier] for tier in cumulative_tier(probs, beta)] for beta in np.linspace(0.01, 1, 60)])
    assert (np.diff(depths, axis=0) >= 0).all()
    grades = np.array([cumulative_grade(probs, beta) for beta in np.linspace(0.01, 1, 60)])
    assert (np.diff(grades, axis=0) <= 0).all()


def test_moving_mass_to_a_better_grade_never_lowers_a_row():
    rng = np.random.default_rng(0)
    probs = random_probs(500)
    lower = rng.integers(0, 3, 500)
    upper = np.minimum(lower + rng.integers(1, 3, 500), 3)
    moved, rows = probs.copy(), np.arange(500)
    amount = probs[rows, lower] * rng.random(500)
    moved[rows, lower] -= amount
    moved[rows, upper] += amount
    for beta in (0.2, 0.5, 0.8):
        assert (cumulative_grade(moved, beta) >= cumulative_grade(probs, beta)).all()


def test_tiny_beta_is_good_wherever_grade_four_is_possible():
    assert set(cumulative_tier(random_probs(100), 1e-12)) == {"Good"}


def test_every_kind_of_input_gives_the_same_tiers():
    probs = random_probs(50)
    expected = cumulative_tier(probs, 0.6)
    assert cumulative_tier(probs.tolist(), 0.6) == expected
    assert cumulative_tier(torch.tensor(probs), 0.6) == expected
    assert cumulative_tier(torch.tensor(probs, requires_grad=True), 0.6) == expected
    assert [cumulative_tier(probs[row : row + 1], 0.6)[0] for row in range(50)] == expected


def test_no_rows_have_no_tiers():
    assert cumulative_tier([], 0.5) == []
    assert cumulative_tier(torch.zeros(0, 4), 0.5) == []
    assert threshold_tier([], [0.5] * 4) == []


@pytest.mark.parametrize("beta", [0.0, -0.1, 1.0001, float("nan")])
def test_beta_outside_its_range_is_refused(beta):
    with pytest.raises(ValueError, match=r"beta is .*, expected a number in \(0, 1\]"):
        cumulative_tier([[0.25] * 4], beta)


@pytest.mark.parametrize(
    "row",
    [[0.5, 0.5, 0.5, 0.5], [1.2, -0.2, 0.0, 0.0], [float("nan"), 0.5, 0.5, 0.0], [float("inf"), 0, 0, float("-inf")]],
)
def test_a_row_that_is_no_probability_vector_is_named(row):
    good = [0.25] * 4
    for tiers in (
        lambda p: cumulative_tier(p, 0.5),
        lambda p: threshold_tier(p, [0.5] * 4),
        lambda p: fit_beta(p, [1, 2, 3]),
    ):
        with pytest.raises(ValueError, match=r"probs\[2\] is"):
            tiers([good, good, row])


def test_three_columns_are_refused():
    with pytest.raises(ValueError, match=r"shape \(1, 3\), expected \(N, 4\)"):
        cumulative_tier([[0.5, 0.25, 0.25]], 0.5)


# ---- fit_beta --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("rows", [1, 2, 7, 40])
def test_fitted_beta_is_as_good_as_any_beta_tried_by_brute_force(rows, seed):
    probs, grades = fitting_rows(rows, seed)
    reached = np.cumsum(probs[:, ::-1], axis=-1)[:, 1:3].reshape(-1)
    edges = np.unique(np.clip([0, *reached, 1], 0, 1))
    tried = np.concatenate([np.linspace(0.001, 1, 200), (edges[:-1] + edges[1:]) / 2])
    best = max(tier_macro_f1(grades, cumulative_tier(probs, beta)) for beta in tried)
    beta = fit_beta(probs, grades)
    assert 0 < beta <= 1
    assert tier_macro_f1(grades, cumulative_tier(probs, beta)) == pytest.approx(best, abs=1e-12)


def test_hand_worked_fit_takes_the_middle_of_the_best_stretch():
    # P(4)+P(3) is .8 for the Good row and .4 for the Mid row, whose P(4)+P(3)+P(2) is 1; the Bad row reaches .2. Every
    # row is right for beta in (.4, .8]: the middle is .6.
    probs = [[0.0, 0.2, 0.3, 0.5], [0.0, 0.6, 0.2, 0.2], [0.8, 0.1, 0.05, 0.05]]
    assert fit_beta(probs, [4, 2, 1]) == pytest.approx(0.6)


def test_of_two_best_stretches_the_wider_wins():
    # One Mid row, Mid for beta in (.1, 1]; with a Good row at .3 both are right in (.1, .3].
    assert fit_beta([[0.0, 0.9, 0.05, 0.05]], [2]) == pytest.approx((0.1 + 1) / 2)
    assert fit_beta([[0.0, 0.9, 0.05, 0.05], [0.0, 0.7, 0.3, 0.0]], [2, 3]) == pytest.approx(0.2)


def test_fit_of_one_sided_data_is_defined():
    certain_good, certain_bad = [[0.0, 0.0, 0.0, 1.0]], [[1.0, 0.0, 0.0, 0.0]]
    assert cumulative_tier(certain_good, fit_beta(certain_good, [4])) == ["Good"]
    assert cumulative_tier(certain_bad, fit_beta(certain_bad, [1])) == ["Bad"]
    assert 0 < fit_beta(certain_good, [1]) <= 1  # nothing can be right; still a usable beta


def test_fit_ignores_row_order_and_duplication():
    probs, grades = fitting_rows(200, 0)
    order = np.random.default_rng(1).permutation(200)
    assert fit_beta(probs[order], grades[order]) == fit_beta(probs, grades)
    assert fit_beta(np.repeat(probs, 3, axis=0), np.repeat(grades, 3)) == fit_beta(probs, grades)


def test_fit_refuses_bad_grades_and_lengths():
    with pytest.raises(ValueError, match=r"grades\[1\] is 5"):
        fit_beta([[0.25] * 4] * 2, [1, 5])
    with pytest.raises(ValueError, match=r"grades\[0\] is None"):
        fit_beta([[0.25] * 4], [None])
    with pytest.raises(ValueError, match="probs has 1 rows, grades has 2"):
        fit_beta([[0.25] * 4], [1, 2])
    with pytest.raises(ValueError, match="no rows"):
        fit_beta([], [])


# ---- the threshold cascade -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("probs", "thresholds", "tier"),
    [
        ([0.1, 0.5, 0.1, 0.3], [0.5, 0.5, 0.5, 0.3], "Good"),  # grade 4 is asked first
        ([0.1, 0.5, 0.1, 0.3], [0.5, 0.5, 0.5, 0.31], "Mid"),
        ([0.4, 0.3, 0.2, 0.1], [0.9, 0.9, 0.2, 0.9], "Good"),  # grade 3
        ([0.4, 0.3, 0.2, 0.1], [0.9, 0.9, 0.9, 0.9], "Bad"),  # none reached: argmax
    ],
)
def test_hand_worked_cascade(probs, thresholds, tier):
    assert threshold_tier([probs], thresholds) == [tier]


def test_thresholds_of_one_are_argmax():
    probs = random_probs(300, sharpness=3)
    assert threshold_tier(probs, [1.0] * 4) == [TIER_OF_GRADE[int(grade)] for grade in probs.argmax(-1) + 1]


@pytest.mark.parametrize("thresholds", [[0.5] * 3, [0.5, 0.5, 0.5, 1.5], [0.5, 0.5, 0.5, float("nan")]])
def test_bad_thresholds_are_refused(thresholds):
    with pytest.raises(ValueError, match=r"expected 4 numbers in \[0, 1\]"):
        threshold_tier([[0.25] * 4], thresholds)
