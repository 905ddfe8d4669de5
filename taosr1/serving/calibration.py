"""Temperature scaling: one number that brings the confidence of label probabilities to their accuracy.

Grades stay. TaoSR1 does not calibrate, although CumPT uses the probabilities. Arrays and numbers only; columns of
`probs` are grades 1..4; arrays, tensors and nested lists are all accepted. The error of probabilities is measured by
`taosr1.evaluation.ranking` (ECE, Brier, reliability bins) and by `mean_nll`.
Source: Guo et al. 2017 (arXiv 1706.04599), section 4.2.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from taosr1.task.probabilities import checked_probs, checked_probs_and_grades

TEMPERATURES = (0.05, 20.0)  # the range of the fit
# Choice: a probability of 0 is a smaller one that float32 rounded, so it counts as the smallest normal float32.
_SMALLEST = float(np.finfo(np.float32).tiny)


def apply_temperature(probs, temperature: float) -> np.ndarray:
    """softmax(log p / temperature) of every row: less confident above 1, more confident below, unchanged at 1.

    The order of the grades within a row stays, up to rounding in float64.
    Shapes: probs (N, 4) -> float64 (N, 4), rows sum to 1.
    Raises: ValueError for a temperature that is not a finite number above 0, and naming the first row that is not a
    probability vector.
    """
    scaled = _log_probs(checked_probs(probs)) / _check_temperature(temperature)
    return np.exp(scaled - _log_total(scaled))


def mean_nll(probs, grades: Sequence[int], temperature: float = 1.0) -> float:
    """Mean over rows of -log P(gold grade), at a temperature.

    Shapes: probs (N, 4), grades (N,).
    Raises: ValueError as `fit_temperature` and `apply_temperature`.
    """
    probs, gold = checked_probs_and_grades(probs, grades)
    return _nll(_log_probs(probs), gold - 1, 1.0 / _check_temperature(temperature))


def fit_temperature(probs, grades: Sequence[int]) -> float:
    """The temperature in `TEMPERATURES` with the lowest mean negative log-likelihood (NLL) of the gold grades.

    The NLL is convex in a = 1 / temperature: its slope, the mean over rows of E_a[log p] - log p(gold), only rises.
    Halving the interval around the slope's zero finds it exactly and cannot diverge.

    Choice: 1 where no temperature is better, as for rows that are all uniform or all certain and right. Where the most
    probable grade of every row is right, the NLL falls all the way to temperature 0, and where the gold grades are no
    more probable than by chance, it falls all the way to infinity; the result is then an end of the range. Callers
    should warn of it: the rows are too few or the judge is useless.

    Shapes: probs (N, 4), grades (N,).
    Raises: ValueError for no rows, a wrong grade or a row that is not a probability vector.
    """
    probs, gold = checked_probs_and_grades(probs, grades)
    log_probs, columns = _log_probs(probs), gold - 1
    low, high = 1.0 / TEMPERATURES[1], 1.0 / TEMPERATURES[0]
    if _slope(log_probs, columns, high) <= 0:
        found = TEMPERATURES[0]
    elif _slope(log_probs, columns, low) >= 0:
        found = TEMPERATURES[1]
    else:
        while low < (middle := (low + high) / 2) < high:  # until two neighbouring floats are left
            low, high = (middle, high) if _slope(log_probs, columns, middle) < 0 else (low, middle)
        found = 1.0 / high
    better = _nll(log_probs, columns, 1.0 / found) < _nll(log_probs, columns, 1.0)
    return found if better else 1.0


def _check_temperature(temperature: float) -> float:
    if not 0.0 < float(temperature) < np.inf:
        raise ValueError(f"temperature is {temperature}, expected a finite number above 0")
    return float(temperature)


def _log_probs(probs: np.ndarray) -> np.ndarray:
    """log p - log max p, (N, 4): finite, and 0 for the most probable grade of a row."""
    logs = np.log(np.maximum(probs, _SMALLEST))
    return logs - logs.max(-1, keepdims=True)


def _log_total(scaled: np.ndarray) -> np.ndarray:
    """log of the sum of exp over each row, (N, 1); all entries are <= 0 and one is 0, so nothing overflows."""
    return np.log(np.exp(scaled).sum(-1, keepdims=True))


def _nll(log_probs: np.ndarray, columns: np.ndarray, inverse: float) -> float:
    scaled = log_probs * inverse
    return float((_log_total(scaled)[:, 0] - scaled[np.arange(len(columns)), columns]).mean())


def _slope(log_probs: np.ndarray, columns: np.ndarray, inverse: float) -> float:
    """The derivative of `_nll` with respect to `inverse`."""
    weights = np.exp(log_probs * inverse)
    expected = (weights * log_probs).sum(-1) / weights.sum(-1)
    return float((expected - log_probs[np.arange(len(columns)), columns]).mean())
