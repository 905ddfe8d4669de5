"""Metrics of grades. Each is a function of confusion counts, so that all of them can be bootstrapped over queries.

Grades are 1..4. A prediction that could not be parsed is None or 0 and is counted in a fifth column, "unparsable": it
lowers the recall of its gold grade and no precision. Arrays and numbers only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from taosr1.task.grades import GOOD_TIER, GRADES, TIER_INDEX, TIERS

NUM_GRADES = len(GRADES)
LEVEL = 0.95  # of every interval


# ---- from grades to counts -------------------------------------------------------------------------------------------


def grade_array(values: Sequence, name: str, *, unparsable: bool) -> np.ndarray:
    """Grades as int64 (N,), None as 0.

    Raises: ValueError naming the row of a value that is not an integer 1-4 (0 and None too where `unparsable`).
    """
    if hasattr(values, "tolist"):
        values = values.tolist()
    lowest, allowed = (0, "1-4, or None/0 for an unparsable reply") if unparsable else (1, "1-4")
    out = np.zeros(len(values), dtype=np.int64)
    for row, value in enumerate(values):
        number = 0 if value is None and unparsable else value
        if not isinstance(number, (int, float, np.integer, np.floating)) or number not in range(lowest, NUM_GRADES + 1):
            raise ValueError(f"{name}[{row}] is {value!r}, expected {allowed}")
        out[row] = int(number)
    return out


def _grade_pair(gold: Sequence, predicted: Sequence, name: str = "predicted") -> tuple[np.ndarray, np.ndarray]:
    gold, predicted = grade_array(gold, "gold", unparsable=False), grade_array(predicted, name, unparsable=True)
    if len(gold) != len(predicted):
        raise ValueError(f"gold has {len(gold)} rows, {name} has {len(predicted)}: they must be parallel")
    if len(gold) == 0:
        raise ValueError(f"no rows to evaluate: gold and {name} are empty")
    return gold, predicted


def query_counts(gold: Sequence, predicted: Sequence, query_ids: Sequence) -> np.ndarray:
    """Number of rows of each query, gold grade and predicted grade; queries are sorted, whatever the order of rows.

    Shapes: gold (N,), predicted (N,), query_ids (N,) -> int64 (Q, 4, 5); [:, g - 1, p - 1] is gold g predicted as p,
        column 4 unparsable.
    """
    gold, predicted = _grade_pair(gold, predicted)
    if len(query_ids) != len(gold):
        raise ValueError(f"gold has {len(gold)} rows, query_ids has {len(query_ids)}: they must be parallel")
    queries, query = np.unique(np.asarray(query_ids, dtype=str), return_inverse=True)
    column = np.where(predicted == 0, NUM_GRADES, predicted - 1)
    cells = (query.reshape(-1) * NUM_GRADES + gold - 1) * (NUM_GRADES + 1) + column
    shape = (len(queries), NUM_GRADES, NUM_GRADES + 1)
    return np.bincount(cells, minlength=int(np.prod(shape))).reshape(shape)


def confusion_matrix(gold: Sequence, predicted: Sequence) -> np.ndarray:
    """`query_counts` of all rows together, (4, 5)."""
    return query_counts(gold, predicted, [""] * len(gold))[0]


# ---- functions of confusion counts (..., C, C + 1) -------------------------------------------------------------------


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Elementwise division; NaN where the denominator is 0."""
    numerator, denominator = np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)
    return np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator != 0)


def f1_of(counts: np.ndarray) -> np.ndarray:
    """Per-class F1 = 2 TP / (gold + predicted) of counts (..., C, C + 1), as (..., C); NaN where both are 0."""
    classes = counts.shape[-2]
    hits = np.diagonal(counts, axis1=-2, axis2=-1)[..., :classes]
    return ratio(2 * hits, counts.sum(-1) + counts[..., :classes].sum(-2))


def macro_f1_of(counts: np.ndarray, full: np.ndarray | None = None) -> np.ndarray:
    """Mean of the per-class F1s of counts (..., C, C + 1), over the classes that have one.

    full: (C, C + 1), where `counts` are resamples of it: the mean is over the classes that `full` has. One that a
        resample lost counts 0; left out, a class that is judged badly would raise the mean wherever it is missing.
    """
    f1 = f1_of(counts)
    averaged = ~np.isnan(f1 if full is None else f1_of(full))
    return ratio(np.where(averaged, np.nan_to_num(f1), 0.0).sum(-1), averaged.sum(-1))


def good_f1_of(counts: np.ndarray, full: np.ndarray | None = None) -> np.ndarray:
    """F1 of the tier Good, grades 3 and 4 together, of grade counts (..., 4, 5); `full` as in `macro_f1_of`."""
    good = TIERS.index(GOOD_TIER)
    f1 = f1_of(tier_counts(counts))[..., good]
    known = full is not None and not np.isnan(f1_of(tier_counts(full))[good])
    return np.nan_to_num(f1) if known else f1


def tier_macro_f1_of(counts: np.ndarray, full: np.ndarray | None = None) -> np.ndarray:
    """`macro_f1_of` the tiers of grade counts (..., 4, 5)."""
    return macro_f1_of(tier_counts(counts), None if full is None else tier_counts(full))


def accuracy_of(counts: np.ndarray) -> np.ndarray:
    """Share of rows on the diagonal of counts (..., C, C + 1)."""
    return ratio(np.diagonal(counts, axis1=-2, axis2=-1).sum(-1), counts.sum((-2, -1)))


def tier_counts(counts: np.ndarray) -> np.ndarray:
    """Grade counts (..., 4, 5) summed into tier counts (..., 3, 4): Good, Mid, Bad, and a column of unparsable."""
    merge = np.zeros((NUM_GRADES + 1, len(TIERS) + 1))
    merge[range(NUM_GRADES + 1), [*TIER_INDEX, len(TIERS)]] = 1
    return merge[:NUM_GRADES, : len(TIERS)].T @ counts @ merge


def quadratic_kappa_of(counts: np.ndarray) -> np.ndarray:
    """Cohen's kappa over the parsed rows, weighted by squared distance; NaN where only one grade occurs."""
    parsed = np.asarray(counts[..., :NUM_GRADES], dtype=np.float64)
    grade = np.arange(NUM_GRADES)
    distance = (grade[:, None] - grade[None, :]) ** 2  # the usual 1/(C - 1)^2 cancels
    by_chance = parsed.sum(-1)[..., :, None] * parsed.sum(-2)[..., None, :]
    return 1.0 - ratio((distance * parsed).sum((-2, -1)) * parsed.sum((-2, -1)), (distance * by_chance).sum((-2, -1)))


def signed_bias_of(counts: np.ndarray) -> np.ndarray:
    """Mean of predicted minus gold grade over the parsed rows; above 0 the judge is too generous."""
    parsed = counts[..., :NUM_GRADES]
    grade = np.arange(NUM_GRADES)
    return ratio((parsed * (grade[None, :] - grade[:, None])).sum((-2, -1)), parsed.sum((-2, -1)))


# Metrics of grade counts (..., 4, 5) -> (...), by the names that reports use; `full` is what the counts are resamples
# of. An unparsable prediction has no tier. Only means over classes, and the F1 of one, depend on which classes occur.
COUNT_METRICS: dict[str, Callable[..., np.ndarray]] = {
    "macro_f1": macro_f1_of,
    "accuracy": lambda counts, full=None: accuracy_of(counts),
    "good_f1": good_f1_of,
    "tier_accuracy": lambda counts, full=None: accuracy_of(tier_counts(counts)),
    "tier_macro_f1": tier_macro_f1_of,
    "quadratic_kappa": lambda counts, full=None: quadratic_kappa_of(counts),
    "signed_bias": lambda counts, full=None: signed_bias_of(counts),
    "parse_failure_rate": lambda counts, full=None: ratio(counts[..., NUM_GRADES].sum(-1), counts.sum((-2, -1))),
}


def _grade_f1(grade: int, counts: np.ndarray, full: np.ndarray | None = None) -> np.ndarray:
    """F1 of a grade; 0 where a resample lost one that all rows have."""
    f1, known = f1_of(counts)[..., grade - 1], full is not None and not np.isnan(f1_of(full)[grade - 1])
    return np.nan_to_num(f1) if known else f1


# Of each grade, in their order.
GRADE_F1: dict[str, Callable[..., np.ndarray]] = {f"f1_{grade}": partial(_grade_f1, grade) for grade in GRADES}


# ---- from grades -----------------------------------------------------------------------------------------------------


def macro_f1(gold: Sequence, predicted: Sequence) -> float:
    """Unweighted mean F1 over the four grades, 0..1.

    Choice: a grade in neither gold nor predictions has no F1 (0/0) and is left out of the mean, as in scikit-learn
    without `labels`: as 0 it would lower the score of a small slice for a grade that does not occur in it. A grade that
    occurs on one side only counts 0.
    """
    return float(macro_f1_of(confusion_matrix(gold, predicted)))


def hallucination_rates(gold: Sequence, labels: Sequence, stated: Sequence) -> dict[str, float]:
    """How often the reasoning and the emitted label disagree, over the rows where both were parsed.

    Shapes: gold (N,), labels (N,), stated (N,): the grade on the Decision line of the chain of thought, or the grade
        that its steps imply under the rules.
    Returns: `disagrees`, share with stated != label; `right_but_label_wrong`, share with stated = gold and
        label != gold; `rows`, the number of rows. The shares are NaN without rows.
    Source: arXiv 2508.12365 calls the second "discriminative hallucination".
    """
    gold, labels = _grade_pair(gold, labels)
    _, stated = _grade_pair(gold, stated, "stated")
    counted = (labels > 0) & (stated > 0)
    wrong_label = counted & (stated == gold) & (labels != gold)
    return {
        "disagrees": float(ratio((counted & (stated != labels)).sum(), counted.sum())),
        "right_but_label_wrong": float(ratio(wrong_label.sum(), counted.sum())),
        "rows": int(counted.sum()),
    }


# ---- intervals: queries are resampled, not rows, since the items of one query share its difficulty -------------------


@dataclass(frozen=True)
class Interval:
    """A metric on all rows and its bootstrap percentile interval; NaN where undefined.

    There is no interval over a single query: every resample would be that query again.
    """

    value: float
    low: float
    high: float


def resampled_counts(per_query: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """Total counts of `samples` resamples of Q queries with replacement: (Q, 4, 5) -> (samples, 4, 5).

    A resample is a row of multinomial weights over queries (`query_draws`), multiplied with the per-query counts. The
    same seed and Q give the same resamples, which pairs the two sides of a difference.
    """
    flat = per_query.reshape(len(per_query), -1).astype(np.float64)
    totals = [np.zeros((0, flat.shape[1])), *(weights @ flat for weights in query_draws(len(per_query), samples, seed))]
    return np.concatenate(totals).reshape(samples, *per_query.shape[1:])


def query_draws(queries: int, samples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each of Q queries was drawn in each of `samples` resamples, in chunks (rows, Q) of at most 32 MB."""
    generator = np.random.default_rng(seed)
    rows_per_chunk = max(1, 4_000_000 // queries)
    for start in range(0, samples, rows_per_chunk):
        rows = min(rows_per_chunk, samples - start)
        drawn = generator.integers(queries, size=(rows, queries)) + np.arange(rows)[:, None] * queries
        counts = np.bincount(drawn.reshape(-1), minlength=rows * queries).reshape(rows, queries)
        yield counts.astype(np.float64)


def bootstrap_intervals(
    metrics: Sequence[str], gold: Sequence, predicted: Sequence, query_ids: Sequence, samples: int, seed: int
) -> dict[str, Interval]:
    """Metrics of `COUNT_METRICS` or `GRADE_F1` with bootstrap intervals over queries, all from the same resamples."""
    metric_of = {name: _count_metric(name) for name in metrics}
    per_query = query_counts(gold, predicted, query_ids)
    total, resamples = per_query.sum(0), resampled_counts(per_query, samples, seed)
    values = {name: (metric(total), metric(resamples, total)) for name, metric in metric_of.items()}
    return {name: percentile_interval(*found, len(per_query)) for name, found in values.items()}


def bootstrap_interval(
    metric: str, gold: Sequence, predicted: Sequence, query_ids: Sequence, samples: int = 1000, seed: int = 0
) -> Interval:
    """A metric of `COUNT_METRICS` with its percentile bootstrap interval over queries (clusters of rows)."""
    return bootstrap_intervals([metric], gold, predicted, query_ids, samples, seed)[metric]


def bootstrap_difference(
    metric: str, gold: Sequence, before: Sequence, after: Sequence, query_ids: Sequence,
    samples: int = 1000, seed: int = 0,
) -> Interval:  # fmt: skip
    """Interval of metric(after) - metric(before) on the same rows, both sides on the same resampled queries.

    Pairing makes it narrower than the difference of two separate intervals: both models find the same queries hard.
    Choice: both sides are averaged over the same classes, those that occur in the gold grades or on either side.
    """
    metric_of = _count_metric(metric)
    first, second = (query_counts(gold, predicted, query_ids) for predicted in (before, after))
    both = first.sum(0) + second.sum(0)
    value = metric_of(second.sum(0), both) - metric_of(first.sum(0), both)
    resampled = [metric_of(resampled_counts(side, samples, seed), both) for side in (first, second)]
    return percentile_interval(value, resampled[1] - resampled[0], len(first))


def _count_metric(name: str) -> Callable[..., np.ndarray]:
    known = COUNT_METRICS | GRADE_F1
    if name not in known:
        raise ValueError(f"metric is {name!r}, expected one of {', '.join(known)}")
    return known[name]


def percentile_interval(value: float, resamples: np.ndarray, queries: int) -> Interval:
    """The central `LEVEL` of the resampled values of rows of so many queries.

    Kappa and bias have no value in a resample with a single grade, or without a reply that could be read. Such
    resamples are left out; where they are more than one tail of the interval, there is no interval.
    """
    known, tail = resamples[~np.isnan(resamples)], (1 - LEVEL) / 2
    low = high = np.nan
    if queries > 1 and len(known) and len(resamples) - len(known) <= tail * len(resamples):
        low, high = np.quantile(known, [tail, 1 - tail])
    return Interval(float(value), float(low), float(high))
