"""How good the grades are: every metric of counts is a function of one confusion matrix, so all can be bootstrapped.

Numbers and arrays only: no model, no file, no print. Grades are 1..4; a prediction that could not be parsed is None or
0 and is an outcome of its own: it is wrong for its gold grade's recall and lands in the fifth, "unparsable" column.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from taosr1.task.grades import GRADES, TIER_OF_GRADE, TIERS

NUM_GRADES = len(GRADES)
_TIER_INDEX = np.array([TIERS.index(TIER_OF_GRADE[grade]) for grade in GRADES])  # (4,): [g - 1] is the tier of grade g


# ---- grades in, counts out -------------------------------------------------------------------------------------------


def grade_array(values: Sequence, name: str, *, unparsable: bool) -> np.ndarray:
    """Checks grades and returns them as int64 (N,), with None as 0.

    Raises: ValueError naming the row, where a value is not a whole number 1-4 (or 0/None where `unparsable` allows it).
    """
    if hasattr(values, "tolist"):
        values = values.tolist()
    lowest = 0 if unparsable else 1
    allowed = "1-4, or None/0 for an unparsable reply" if unparsable else "1-4"
    out = np.zeros(len(values), dtype=np.int64)
    for row, value in enumerate(values):
        number = 0 if value is None and unparsable else value
        if not isinstance(number, (int, float, np.integer, np.floating)) or number not in range(lowest, NUM_GRADES + 1):
            raise ValueError(f"{name}[{row}] is {value!r}, expected {allowed}")
        out[row] = int(number)
    return out


def _grade_pair(gold: Sequence, predicted: Sequence) -> tuple[np.ndarray, np.ndarray]:
    gold = grade_array(gold, "gold", unparsable=False)
    predicted = grade_array(predicted, "predicted", unparsable=True)
    if len(gold) != len(predicted):
        raise ValueError(f"gold has {len(gold)} rows, predicted has {len(predicted)}: they must be parallel")
    if len(gold) == 0:
        raise ValueError("no rows to evaluate: gold and predicted are empty")
    return gold, predicted


def _column(predicted: np.ndarray) -> np.ndarray:
    return np.where(predicted == 0, NUM_GRADES, predicted - 1)


def confusion_matrix(gold: Sequence, predicted: Sequence) -> np.ndarray:
    """Counts rows by gold grade and predicted grade.

    Shapes: gold (N,), predicted (N,).
    Returns: int64 (4, 5): [g - 1, p - 1] counts gold g predicted p; column 4 counts unparsable predictions.
    """
    gold, predicted = _grade_pair(gold, predicted)
    cells = (gold - 1) * (NUM_GRADES + 1) + _column(predicted)
    return np.bincount(cells, minlength=NUM_GRADES * (NUM_GRADES + 1)).reshape(NUM_GRADES, NUM_GRADES + 1)


# ---- functions of confusion counts (..., C, C + 1) -------------------------------------------------------------------


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Elementwise division where 0/0 is NaN, silently."""
    numerator, denominator = np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)
    return np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator != 0)


def _nanmean(values: np.ndarray) -> np.ndarray:
    known = ~np.isnan(values)
    return _ratio(np.where(known, values, 0.0).sum(-1), known.sum(-1))


def f1_of(counts: np.ndarray) -> np.ndarray:
    """Per-class F1 = 2 TP / (gold + predicted) of counts (..., C, C + 1), as (..., C); NaN where both are 0."""
    classes = counts.shape[-2]
    hits = np.diagonal(counts, axis1=-2, axis2=-1)[..., :classes]
    return _ratio(2 * hits, counts.sum(-1) + counts[..., :classes].sum(-2))


def macro_f1_of(counts: np.ndarray) -> np.ndarray:
    """Mean of the per-class F1s of counts (..., C, C + 1), over the classes that have one."""
    return _nanmean(f1_of(counts))


def accuracy_of(counts: np.ndarray) -> np.ndarray:
    """Share of rows on the diagonal of counts (..., C, C + 1)."""
    return _ratio(np.diagonal(counts, axis1=-2, axis2=-1).sum(-1), counts.sum((-2, -1)))


def macro_f1(gold: Sequence, predicted: Sequence) -> float:
    """Unweighted mean F1 over the four grades, 0..1.

    Choice: a grade that occurs in neither gold nor predictions has no F1 (0/0) and leaves the mean, as in scikit-learn
    without `labels`; counting it as 0 would punish a small slice for a grade nobody could have found. A grade that
    occurs in gold and is never predicted, or the reverse, counts 0.
    """
    return float(macro_f1_of(confusion_matrix(gold, predicted)))


def tier_counts(counts: np.ndarray) -> np.ndarray:
    """Merges grade counts (..., 4, 5) into tier counts (..., 3, 4): Good, Mid, Bad, then unparsable."""
    merge = np.zeros((NUM_GRADES + 1, len(TIERS) + 1))
    merge[np.arange(NUM_GRADES), _TIER_INDEX] = 1
    merge[NUM_GRADES, len(TIERS)] = 1
    return merge[:NUM_GRADES, : len(TIERS)].T @ counts @ merge


def good_f1_of(counts: np.ndarray) -> np.ndarray:
    """F1 of "the item is Good" (grades 3 and 4 together)."""
    return f1_of(tier_counts(counts))[..., TIERS.index("Good")]


def tier_accuracy_of(counts: np.ndarray) -> np.ndarray:
    """Share of rows in the right one of Good, Mid, Bad."""
    return accuracy_of(tier_counts(counts))


def tier_macro_f1_of(counts: np.ndarray) -> np.ndarray:
    """Mean F1 over Good, Mid, Bad."""
    return macro_f1_of(tier_counts(counts))


def quadratic_kappa_of(counts: np.ndarray) -> np.ndarray:
    """Cohen's kappa with squared grade distance as weight, over the parsed rows; NaN where no chance disagrees."""
    parsed = np.asarray(counts[..., :NUM_GRADES], dtype=np.float64)
    grade = np.arange(NUM_GRADES)
    distance = (grade[:, None] - grade[None, :]) ** 2  # the usual 1/(C - 1)^2 cancels
    by_chance = parsed.sum(-1)[..., :, None] * parsed.sum(-2)[..., None, :]
    return 1.0 - _ratio((distance * parsed).sum((-2, -1)) * parsed.sum((-2, -1)), (distance * by_chance).sum((-2, -1)))


def signed_bias_of(counts: np.ndarray) -> np.ndarray:
    """Mean of predicted minus gold grade over the parsed rows: above 0 is optimism, the usual fault of LLMs."""
    parsed = counts[..., :NUM_GRADES]
    grade = np.arange(NUM_GRADES)
    return _ratio((parsed * (grade[None, :] - grade[:, None])).sum((-2, -1)), parsed.sum((-2, -1)))


def parse_failure_rate_of(counts: np.ndarray) -> np.ndarray:
    """Share of predictions that could not be parsed."""
    return _ratio(counts[..., NUM_GRADES].sum(-1), counts.sum((-2, -1)))


# Every metric of grade counts (..., 4, 5) by the name that reports use; all of them can be bootstrapped.
COUNT_METRICS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "macro_f1": macro_f1_of,
    "accuracy": accuracy_of,
    "good_f1": good_f1_of,
    "tier_accuracy": tier_accuracy_of,
    "tier_macro_f1": tier_macro_f1_of,
    "quadratic_kappa": quadratic_kappa_of,
    "signed_bias": signed_bias_of,
    "parse_failure_rate": parse_failure_rate_of,
}


# ---- the same, from rows ---------------------------------------------------------------------------------------------


def per_grade_f1(gold: Sequence, predicted: Sequence) -> dict[int, float]:
    """F1 of each grade; NaN for a grade in neither gold nor predictions."""
    return dict(zip(GRADES, f1_of(confusion_matrix(gold, predicted)).tolist()))


def accuracy(gold: Sequence, predicted: Sequence) -> float:
    """Share of rows whose grade is right; an unparsable prediction is wrong."""
    return float(accuracy_of(confusion_matrix(gold, predicted)))


def good_f1(gold: Sequence, predicted: Sequence) -> float:
    """F1 of "the item is Good" (grades 3 and 4 together)."""
    return float(good_f1_of(confusion_matrix(gold, predicted)))


def tier_accuracy(gold: Sequence, predicted: Sequence) -> float:
    """Share of rows in the right one of Good, Mid, Bad; an unparsable prediction is wrong."""
    return float(tier_accuracy_of(confusion_matrix(gold, predicted)))


def quadratic_kappa(gold: Sequence, predicted: Sequence) -> float:
    """Cohen's kappa with squared grade distance as weight, over the parsed rows."""
    return float(quadratic_kappa_of(confusion_matrix(gold, predicted)))


def signed_bias(gold: Sequence, predicted: Sequence) -> float:
    """Mean of predicted minus gold grade over the parsed rows."""
    return float(signed_bias_of(confusion_matrix(gold, predicted)))


def parse_failure_rate(predicted: Sequence) -> float:
    """Share of predictions that could not be parsed (None or 0)."""
    predicted = grade_array(predicted, "predicted", unparsable=True)
    return float(_ratio((predicted == 0).sum(), len(predicted)))


def hallucination_rates(gold: Sequence, labels: Sequence, stated: Sequence) -> dict[str, float]:
    """Discriminative hallucination: the reasoning says one grade, the emitted label another.

    Shapes: gold (N,), labels (N,), stated (N,): the grade the chain of thought states on its Decision line, or the
    grade its steps imply under the rules. Only rows whose label and stated grade were both parsed count.
    Returns: `disagrees`, share with stated != label; `right_but_label_wrong`, share with stated = gold and
    label != gold; `rows`, how many rows counted. The shares are NaN where no row does.
    Source: arXiv 2508.12365 names the second "discriminative hallucination".
    """
    gold, labels = _grade_pair(gold, labels)
    stated = grade_array(stated, "stated", unparsable=True)
    if len(stated) != len(gold):
        raise ValueError(f"gold has {len(gold)} rows, stated has {len(stated)}: they must be parallel")
    counted = (labels > 0) & (stated > 0)
    wrong_label = (stated == gold) & (labels != gold)
    return {
        "disagrees": float(_ratio((counted & (stated != labels)).sum(), counted.sum())),
        "right_but_label_wrong": float(_ratio((counted & wrong_label).sum(), counted.sum())),
        "rows": int(counted.sum()),
    }


# ---- intervals: whole queries are resampled, since the items of one query share its difficulty -----------------------


@dataclass(frozen=True)
class Interval:
    """A metric on all rows and its bootstrap percentile interval; NaN where the metric is undefined."""

    value: float
    low: float
    high: float


def query_counts(gold: Sequence, predicted: Sequence, query_ids: Sequence) -> np.ndarray:
    """One confusion matrix per query, (Q, 4, 5), queries in sorted order so that the order of rows does not matter."""
    gold, predicted = _grade_pair(gold, predicted)
    if len(query_ids) != len(gold):
        raise ValueError(f"gold has {len(gold)} rows, query_ids has {len(query_ids)}: they must be parallel")
    queries, query = np.unique(np.asarray(query_ids, dtype=str), return_inverse=True)
    cells = (query.reshape(-1) * NUM_GRADES + gold - 1) * (NUM_GRADES + 1) + _column(predicted)
    shape = (len(queries), NUM_GRADES, NUM_GRADES + 1)
    return np.bincount(cells, minlength=int(np.prod(shape))).reshape(shape)


def resampled_counts(per_query: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """Total counts of `samples` draws of Q queries with replacement: (Q, 4, 5) -> (samples, 4, 5).

    A draw is a row of multinomial weights over queries, so a resample is a product with the per-query counts and no
    row is ever touched again. The same seed and Q give the same draws, which is what makes differences paired.
    """
    queries = len(per_query)
    generator = np.random.default_rng(seed)
    flat = per_query.reshape(queries, -1).astype(np.float64)
    rows_per_chunk = max(1, 4_000_000 // queries)  # bounds the (rows, Q) weights to 32 MB
    totals = []
    for start in range(0, samples, rows_per_chunk):
        rows = min(rows_per_chunk, samples - start)
        drawn = generator.integers(queries, size=(rows, queries)) + np.arange(rows)[:, None] * queries
        weights = np.bincount(drawn.reshape(-1), minlength=rows * queries).reshape(rows, queries)
        totals.append(weights.astype(np.float64) @ flat)
    return np.concatenate([np.zeros((0, flat.shape[1])), *totals]).reshape(samples, *per_query.shape[1:])


def percentile_interval(value: float, resamples: np.ndarray, level: float = 0.95) -> Interval:
    """The central `level` share of the resampled values; a resample in which the metric is undefined is left out."""
    known = resamples[~np.isnan(resamples)]
    if len(known) == 0:
        return Interval(float(value), float("nan"), float("nan"))
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(value), float(low), float(high))


def _count_metric(metric: str | Callable) -> Callable[[np.ndarray], np.ndarray]:
    if callable(metric):
        return metric
    if metric not in COUNT_METRICS:
        raise ValueError(f"metric is {metric!r}, expected one of {', '.join(COUNT_METRICS)} or a function of counts")
    return COUNT_METRICS[metric]


def bootstrap_interval(
    metric: str | Callable, gold: Sequence, predicted: Sequence, query_ids: Sequence,
    samples: int = 1000, seed: int = 0, level: float = 0.95,
) -> Interval:  # fmt: skip
    """Percentile bootstrap over queries (clusters), not rows.

    `metric` is a name in `COUNT_METRICS` or a function from counts (..., 4, 5) to (...).
    """
    metric = _count_metric(metric)
    counts = query_counts(gold, predicted, query_ids)
    return percentile_interval(metric(counts.sum(0)), metric(resampled_counts(counts, samples, seed)), level)


def bootstrap_difference(
    metric: str | Callable, gold: Sequence, before: Sequence, after: Sequence, query_ids: Sequence,
    samples: int = 1000, seed: int = 0, level: float = 0.95,
) -> Interval:  # fmt: skip
    """Interval of metric(after) - metric(before) on the same rows, paired: both sides see the same resampled queries.

    It is narrower than comparing two separate intervals, because the two models find the same queries hard.
    """
    metric = _count_metric(metric)
    first, second = (query_counts(gold, predicted, query_ids) for predicted in (before, after))
    value = metric(second.sum(0)) - metric(first.sum(0))
    resamples = metric(resampled_counts(second, samples, seed)) - metric(resampled_counts(first, samples, seed))
    return percentile_interval(value, resamples, level)
