"""Temperature scaling: rows worked out by hand, laws over random rows, and temperatures that are known beforehand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from taosr1.evaluation.ranking import expected_calibration_error
from taosr1.serving.calibration import TEMPERATURES, apply_temperature, fit_temperature, mean_nll

ROW = [0.1, 0.2, 0.3, 0.4]


def close(got, expected, tolerance: float = 1e-12) -> None:
    np.testing.assert_allclose(np.asarray(got, dtype=np.float64), expected, rtol=tolerance, atol=tolerance)


def drawn(rows: int, temperature: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities, and grades drawn from them at a temperature: that one makes them right."""
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.full(4, 0.7), rows)
    true = probs ** (1 / temperature)
    cumulated = np.cumsum(true / true.sum(-1, keepdims=True), axis=-1)
    return probs, np.minimum((rng.random((rows, 1)) > cumulated).sum(-1), 3) + 1


def odd_rows(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Up to 12 rows, flat to almost certain, with zeros and ties among them; grades at random."""
    rng = np.random.default_rng(seed)
    rows = int(rng.integers(1, 13))
    weights = rng.random((rows, 4)) ** rng.choice([0.1, 1, 10, 60], (rows, 1))
    weights[rng.random((rows, 4)) < 0.15] = 0
    weights[rng.random(rows) < 0.2, 1] = weights.max()
    weights[:, 0] += 1e-6 * (weights.sum(-1) == 0)
    return weights / weights.sum(-1, keepdims=True), rng.integers(1, 5, rows)


# ---- applying --------------------------------------------------------------------------------------------------------


def test_hand_worked_temperatures():
    """At 1/2 the probabilities are squared: .01 .04 .09 .16, over .30; at 2 roots are taken; at 1 nothing happens."""
    close(apply_temperature([ROW], 0.5), [[1 / 30, 4 / 30, 9 / 30, 16 / 30]])
    roots = np.sqrt(ROW)
    close(apply_temperature([ROW], 2.0), [roots / roots.sum()])
    close(apply_temperature([ROW], 1.0), [ROW])


def test_multiplying_by_the_temperature_is_the_wrong_twin():
    """The twin softmax(T log p) makes T = 2 surer, where 2 has to doubt."""
    logs = 2.0 * np.log([ROW])
    twin = np.exp(logs) / np.exp(logs).sum()
    right = apply_temperature([ROW], 2.0)
    assert right.max() < 0.4 < twin.max()
    assert np.abs(right - twin).max() > 0.1


@pytest.mark.parametrize("seed", range(40))
def test_scaling_keeps_the_order_within_a_row_and_sums_to_one(seed):
    probs, _ = odd_rows(seed)
    temperature = float(np.geomspace(*TEMPERATURES, 40)[seed])
    scaled = apply_temperature(probs, temperature)
    assert np.isfinite(scaled).all() and (scaled >= 0).all()
    close(scaled.sum(-1), np.ones(len(probs)))
    assert (scaled[np.arange(len(probs)), probs.argmax(-1)] == scaled.max(-1)).all()
    order = np.argsort(probs, axis=-1, kind="stable")
    assert (np.diff(np.take_along_axis(scaled, order, -1), axis=-1) >= 0).all()


@pytest.mark.parametrize(("first", "second"), [(0.5, 2.0), (0.3, 0.7), (1.7, 3.0)])
def test_one_temperature_after_another_is_their_product(first, second):
    # No probability is 0: that would count as 2^-126.
    probs = np.concatenate([odd_rows(seed)[0] for seed in range(10)]) * 0.99 + 0.0025
    close(apply_temperature(apply_temperature(probs, first), second), apply_temperature(probs, first * second), 1e-9)


def test_argmax_of_float32_probabilities_never_changes():
    logits = torch.randn(20000, 4, generator=torch.Generator().manual_seed(0))
    logits[:10000, 3] = logits[:10000].amax(-1) + 1e-6  # almost tied
    probs = logits.softmax(-1)
    for temperature in (*TEMPERATURES, 0.7, 1.0, 1.3):
        assert (apply_temperature(probs, temperature).argmax(-1) == probs.argmax(-1).numpy()).all()


def test_scaling_probabilities_is_scaling_the_logits_they_are_from():
    logits = 4 * torch.randn(500, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for temperature in (0.3, 1.0, 2.5):
        close(apply_temperature(logits.softmax(-1), temperature), (logits / temperature).softmax(-1).numpy())


def test_zeros_stay_finite_and_never_overtake():
    for temperature in (*TEMPERATURES, 1.0):
        scaled = apply_temperature([[0.0, 0.0, 0.0, 1.0], [0.0, 0.5, 0.5, 0.0]], temperature)
        assert np.isfinite(scaled).all() and scaled[0, 3] > scaled[0, 0] and scaled[1, 1] == scaled[1, 2] > scaled[1, 0]
    close(apply_temperature([[0.0, 0.0, 0.0, 1.0]], 1.0), [[0.0, 0.0, 0.0, 1.0]])


def test_every_kind_of_input_is_taken_and_no_rows_have_none():
    expected = apply_temperature(np.array([ROW]), 1.7)
    close(apply_temperature([ROW], 1.7), expected)
    close(apply_temperature(torch.tensor([ROW], dtype=torch.float64, requires_grad=True), 1.7), expected)
    assert apply_temperature([], 2.0).shape == (0, 4)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_a_temperature_that_is_none_is_refused(temperature):
    for use in (lambda: apply_temperature([ROW], temperature), lambda: mean_nll([ROW], [4], temperature)):
        with pytest.raises(ValueError, match="temperature is .*, expected a finite number above 0"):
            use()


# ---- fitting ---------------------------------------------------------------------------------------------------------


def test_hand_worked_nll():
    """-(log .4 + log .1) / 2 as it is; at 1/2 the same grades have 16/30 and 1/30."""
    close(mean_nll([ROW, ROW], [4, 1]), -(math.log(0.4) + math.log(0.1)) / 2)
    close(mean_nll([ROW, ROW], [4, 1], 0.5), -(math.log(16 / 30) + math.log(1 / 30)) / 2)


def test_hand_worked_fit():
    """Five rows say .7 for grade 4 and .1 for the rest; two of five are grade 4, one is each of the others.

    The NLL is lowest where P(4) = 2/5: 7^a / (7^a + 3) = 2/5, 7^a = 2, and the temperature 1/a is log 7 / log 2.
    """
    probs, grades = [[0.1, 0.1, 0.1, 0.7]] * 5, [4, 4, 1, 2, 3]
    assert fit_temperature(probs, grades) == pytest.approx(math.log(7) / math.log(2), rel=1e-9)
    close(apply_temperature(probs, fit_temperature(probs, grades))[0], [0.2, 0.2, 0.2, 0.4], 1e-9)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 1.8, 4.0])
def test_the_temperature_that_the_grades_were_drawn_at_is_found(temperature):
    probs, grades = drawn(20000, temperature)
    fitted = fit_temperature(probs, grades)
    assert fitted == pytest.approx(temperature, rel=0.05)
    if temperature != 1:
        assert abs(fitted - 1 / temperature) > 0.3  # the wrong twin, which multiplies, would find the reciprocal
        after = expected_calibration_error(apply_temperature(probs, fitted), grades)
        assert after < 0.02 < expected_calibration_error(probs, grades)


@pytest.mark.parametrize("seed", range(5))
def test_no_temperature_on_a_fine_grid_is_better(seed):
    probs, grades = drawn(60, 1.5, seed)
    tried = [mean_nll(probs, grades, temperature) for temperature in np.geomspace(*TEMPERATURES, 2000)]
    assert mean_nll(probs, grades, fit_temperature(probs, grades)) <= min(tried) + 1e-12


@pytest.mark.parametrize("seed", range(40))
def test_fitting_never_worsens_the_rows_it_is_fitted_on(seed):
    probs, grades = odd_rows(seed)
    fitted = fit_temperature(probs, grades)
    assert TEMPERATURES[0] <= fitted <= TEMPERATURES[1]
    assert mean_nll(probs, grades, fitted) <= mean_nll(probs, grades)


def test_fit_of_one_sided_data_is_defined():
    certain, uniform = [[0.0, 0.0, 0.0, 1.0]] * 3, [[0.25] * 4] * 3
    assert fit_temperature([ROW, ROW], [4, 4]) == TEMPERATURES[0]  # always right: the surer the better
    assert fit_temperature([ROW, ROW], [1, 1]) == TEMPERATURES[1]  # always wrong: nothing is doubt enough
    assert fit_temperature(certain, [1, 1, 1]) == TEMPERATURES[1]  # and finite, although log 0 is not
    assert fit_temperature(certain, [4, 4, 4]) == 1.0  # nothing left to improve
    assert fit_temperature(uniform, [1, 2, 4]) == 1.0  # no temperature changes anything
    # One of forty is wrong: P(4) = 39/40, 117 times each other grade, whose 0 is read as 2^-126.
    expected = 126 * math.log(2) / math.log(117)
    assert fit_temperature([certain[0]] * 40, [4] * 39 + [1]) == pytest.approx(expected, rel=1e-9)


def test_fit_ignores_row_order_and_duplication():
    probs, grades = drawn(300, 2.0)
    order = np.random.default_rng(1).permutation(300)
    fitted = fit_temperature(probs, grades)
    assert fit_temperature(probs[order], grades[order]) == pytest.approx(fitted, rel=1e-9)
    assert fit_temperature(np.repeat(probs, 3, axis=0), np.repeat(grades, 3)) == pytest.approx(fitted, rel=1e-9)


@pytest.mark.parametrize(
    ("probs", "grades", "message"),
    [
        ([], [], "no rows"),
        ([ROW], [4, 4], "probs has 1 rows, grades has 2"),
        ([ROW, ROW], [4, 5], r"grades\[1\] is 5, expected 1-4"),
        ([ROW], [0], r"grades\[0\] is 0"),
        ([ROW, [math.nan, 0.5, 0.5, 0]], [4, 4], r"probs\[1\] is"),
        ([[1.0, 2.0, 3.0, 4.0]], [4], "probabilities of grades 1..4, not logits"),
        ([[0.5, 0.25, 0.25]], [4], r"shape \(1, 3\), expected \(N, 4\)"),
        ([0.25] * 4, [4] * 4, r"shape \(4,\)"),
    ],
)
def test_what_cannot_be_fitted_is_named(probs, grades, message):
    for fit in (fit_temperature, mean_nll):
        with pytest.raises(ValueError, match=message):
            fit(probs, grades)
