"""Two judges on the same rows: statistics as functions of weights of queries, and tests. Arrays and numbers only.

A statistic is a function of weights of queries, (S, Q) -> (S,), the queries in the sorted order of their names: all
ones give its value, the number of times that each query was drawn gives a resample. Statistics of two judges that are
resampled together get the same draws, so that their difference is paired.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from taosr1.evaluation.metrics import Interval, percentile_interval, query_counts, query_draws, ratio

Statistic = Callable[[np.ndarray], np.ndarray]
CountMetric = Callable[[np.ndarray, np.ndarray], np.ndarray]  # as those of COUNT_METRICS
SAME = 1e-9  # two values that differ by less differ by rounding
_AT_ONCE = 4_000_000  # numbers in one array of resampled rows, 32 MB


# ---- statistics ------------------------------------------------------------------------------------------------------


def count_statistics(
    metrics: Mapping[str, CountMetric],
    gold: Sequence,
    grades: Sequence,
    names: Sequence,
    full: np.ndarray | None = None,
) -> dict[str, Statistic]:
    """Metrics of confusion counts as statistics.

    full: (4, 5), the counts whose classes a mean over classes is over; None: those of these rows. For a difference give
        both sides' sum (`bootstrap_difference`).
    Shapes: gold (N,), grades (N,) with None or 0 for an unparsable reply, names (N,) of the queries.
    """
    per_query = query_counts(gold, grades, names).astype(np.float64)
    full = per_query.sum(0) if full is None else full

    def of_counts(metric: CountMetric, weights: np.ndarray) -> np.ndarray:
        return metric(np.tensordot(weights, per_query, axes=1), full)

    return {name: partial(of_counts, metric) for name, metric in metrics.items()}


def mean_statistic(values: Sequence[float]) -> Statistic:
    """The mean of a value per query, (Q,), over the queries that have one (no NaN)."""
    values = np.asarray(values, dtype=np.float64)
    known = ~np.isnan(values)

    def mean(weights: np.ndarray) -> np.ndarray:
        return ratio(weights[:, known] @ values[known], weights[:, known].sum(-1))

    return mean


def auc_statistic(score: Sequence, positive: Sequence[bool], names: Sequence) -> Statistic:
    """AUC of the positive rows against the others over the rows of all queries, ties one half (`ranking.auc`).

    A row counts as often as its query was drawn.
    Shapes: score (N,), positive (N,), names (N,).
    """
    score, positive = np.asarray(score, dtype=np.float64), np.asarray(positive, dtype=bool)
    query = np.unique(np.asarray(names, dtype=str), return_inverse=True)[1].reshape(-1)
    order = np.argsort(score, kind="stable")
    positive, query = positive[order], query[order]
    starts = np.flatnonzero(np.diff(score[order], prepend=-np.inf) > 0)  # first row of each group of equal scores

    def auc_of(weights: np.ndarray) -> np.ndarray:
        rows = weights[:, query]  # (S, N)
        good, others = (np.add.reduceat(rows * side, starts, axis=-1) for side in (positive, ~positive))  # (S, ties)
        below = np.cumsum(others, axis=-1) - others / 2
        return ratio((good * below).sum(-1), good.sum(-1) * others.sum(-1))

    def auc(weights: np.ndarray) -> np.ndarray:
        step = max(1, _AT_ONCE // len(query))
        return np.concatenate([auc_of(weights[start : start + step]) for start in range(0, len(weights), step)])

    return auc


# ---- values, intervals, differences ----------------------------------------------------------------------------------


def resampled_values(
    statistics: Mapping[str, Statistic], queries: int, samples: int, seed: int
) -> dict[str, np.ndarray]:
    """Every statistic in the same `samples` bootstrap resamples of Q queries: (samples,) each."""
    found: dict[str, list[np.ndarray]] = {name: [np.zeros(0)] for name in statistics}
    for weights in query_draws(queries, samples, seed):
        for name, statistic in statistics.items():
            found[name].append(statistic(weights))
    return {name: np.concatenate(values) for name, values in found.items()}


def paired_differences(
    first: Mapping[str, Statistic], second: Mapping[str, Statistic], queries: int, samples: int, seed: int
) -> dict[str, dict]:
    """{name: {"a": value, "b": value, "difference": Interval of b - a}} of the statistics that both judges have.

    Both judges get the same resamples of queries, so that what makes a query hard for both cancels.
    """
    names = [name for name in first if name in second]
    both = {("a", name): first[name] for name in names} | {("b", name): second[name] for name in names}
    ones = np.ones((1, queries))
    values = {key: float(statistic(ones)[0]) for key, statistic in both.items()}
    resampled = resampled_values(both, queries, samples, seed)
    return {name: _difference(name, values, resampled, queries) for name in names}


def _difference(name: str, values: Mapping, resampled: Mapping, queries: int) -> dict:
    a, b = ("a", name), ("b", name)
    change = percentile_interval(values[b] - values[a], resampled[b] - resampled[a], queries)
    return {"a": values[a], "b": values[b], "difference": change}


def mean_interval(values: Sequence[float], samples: int, seed: int) -> Interval:
    """The mean of a value per query with its bootstrap interval over queries."""
    mean = mean_statistic(values)
    resampled = resampled_values({"mean": mean}, len(values), samples, seed)["mean"]
    return percentile_interval(float(mean(np.ones((1, len(values))))[0]), resampled, len(values))


# ---- tests and correlation -------------------------------------------------------------------------------------------


def sign_test(differences: Sequence[float]) -> dict[str, float]:
    """How many queries are better, the same and worse, and the two-sided p-value of the exact sign test.

    p is the probability of a split at least as uneven if better and worse were equally likely; ties are left out, as
    are NaNs. 1 where there is neither.
    """
    differences = np.asarray(differences, dtype=np.float64)
    better, worse = int((differences > SAME).sum()), int((differences < -SAME).sum())
    n, term, tail = better + worse, 1, 0
    for successes in range(min(better, worse) + 1):  # whole numbers: exact for any n
        tail += term
        term = term * (n - successes) // (successes + 1)
    return {"better": better, "same": len(differences) - n, "worse": worse, "p": min(1.0, 2 * tail / 2**n)}


def rank_correlation_by_query(first: Sequence, second: Sequence, names: Sequence) -> np.ndarray:
    """Kendall's tau-b between the two judges' orders of each query's items, (Q,); NaN where one has no order at all.

    1: the same order, -1: the opposite one; equal scores are ties. Shapes: first (N,), second (N,), names (N,).
    """
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    query = np.unique(np.asarray(names, dtype=str), return_inverse=True)[1].reshape(-1)
    order = np.argsort(query, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(query[order])) + 1)
    return np.array([_tau_b(first[rows], second[rows]) for rows in parts])


def _tau_b(first: np.ndarray, second: np.ndarray) -> float:
    agree, own, other = 0.0, 0.0, 0.0
    step = max(1, _AT_ONCE // len(first))
    for start in range(0, len(first), step):
        block = slice(start, start + step)
        a, b = (np.sign(score[block, None] - score[None, :]) for score in (first, second))
        agree, own, other = agree + (a * b).sum(), own + np.abs(a).sum(), other + np.abs(b).sum()
    return float(agree / math.sqrt(own * other)) if own and other else math.nan
