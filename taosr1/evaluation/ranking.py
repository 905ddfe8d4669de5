"""Quality of probabilities and of the ordering: calibration (ECE, Brier), AUC, nDCG. Arrays and numbers only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from taosr1.evaluation.metrics import grade_array
from taosr1.task.grades import GOOD_TIER, GRADES, TIER_OF_GRADE, TIERS
from taosr1.task.probabilities import checked_probs, checked_probs_and_grades

# ESCI's published gains, with E, S, C, I as grades 4, 3, 2, 1. Its training code and its qrels file disagree on whether
# S or C has gain 0.1 (amazon-science/esci-data issues 9 and 18), so reports show both.
ESCI_GAINS = {4: 1.0, 3: 0.1, 2: 0.01, 1: 0.0}
ESCI_GAINS_SWAPPED = {4: 1.0, 3: 0.01, 2: 0.1, 1: 0.0}


def expected_grade(probs) -> np.ndarray:
    """The mean grade under each row's probabilities: (N, 4) -> (N,), the score that ranks items within a query."""
    return checked_probs(probs) @ np.array(GRADES, dtype=np.float64)


# ---- calibration -----------------------------------------------------------------------------------------------------


def reliability_bins(probs, gold: Sequence, bins: int = 15) -> list[dict[str, float]]:
    """The non-empty equal-width bins of top-label confidence: `low`, `high`, `rows`, `confidence`, `accuracy`.

    A bin includes its upper edge (Guo et al. 2017). Of equally probable grades the lower one is the prediction.
    """
    probs, gold = checked_probs_and_grades(probs, gold)
    confidence, right = probs.max(-1), probs.argmax(-1) + 1 == gold
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    table = []
    for b in np.unique(index):
        inside = index == b
        means = {"confidence": float(confidence[inside].mean()), "accuracy": float(right[inside].mean())}
        table.append({"low": b / bins, "high": (b + 1) / bins, "rows": int(inside.sum()), **means})
    return table


def expected_calibration_error(probs, gold: Sequence, bins: int = 15) -> float:
    """Mean |accuracy - confidence| over bins of top-label confidence, weighted by rows.

    Source: Guo et al. 2017 (arXiv 1706.04599), equation 3, with their 15 bins.
    """
    table = reliability_bins(probs, gold, bins)
    return sum(row["rows"] * abs(row["accuracy"] - row["confidence"]) for row in table) / len(gold)


def brier_score(probs, gold: Sequence) -> float:
    """Multi-class Brier score: mean over rows of sum over grades (p - [grade is gold])^2, from 0 (perfect) to 2."""
    probs, gold = checked_probs_and_grades(probs, gold)
    return float(((probs - np.eye(len(GRADES))[gold - 1]) ** 2).sum(-1).mean())


# ---- ordering --------------------------------------------------------------------------------------------------------


def auc(scores: Sequence, positive: Sequence[bool]) -> float:
    """P(a positive has a higher score than a negative), ties counting one half; NaN where either side is empty."""
    scores, positive = np.asarray(scores, dtype=np.float64), np.asarray(positive, dtype=bool)
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if positives == 0 or negatives == 0:
        return float("nan")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse.reshape(-1)]  # from 1; ties have the mean of their ranks
    return float((ranks[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def good_auc(scores: Sequence, gold: Sequence, *, against: Sequence[str] = TIERS[-1:]) -> float:
    """AUC of rows whose gold tier is Good against rows whose gold tier is in `against`; other rows are left out."""
    scores, gold = _scored(scores, gold)
    tiers = np.array([TIER_OF_GRADE[int(grade)] for grade in gold], dtype=str)
    kept = np.isin(tiers, [GOOD_TIER, *against])
    return auc(scores[kept], (tiers == GOOD_TIER)[kept])


def ndcg_by_query(
    scores: Sequence, gold: Sequence, query_ids: Sequence, k: int | None = None, gains: Mapping[int, float] = ESCI_GAINS
) -> dict[str, float]:
    """nDCG@k of each query with a gain above 0; `k` None is the complete list.

    DCG is sum gain / log2(rank + 1). Choice: each of several items with equal scores counts with their mean gain, so
    that the order of rows in a file changes nothing; a query without any gain has no nDCG (0/0) and is left out.
    Returns: {query id: nDCG}, queries in sorted order.
    """
    if sorted(gains) != sorted(GRADES):
        raise ValueError(f"gains has grades {sorted(gains)}, expected a gain for each of {list(GRADES)}")
    scores, gold, names, query = _lists(scores, gold, query_ids, k)
    gain = np.array([gains[int(grade)] for grade in gold])
    found = _expected_sum(scores, gain, query, len(names), k, _dcg_discount)
    ideal = _expected_sum(gain, gain, query, len(names), k, _dcg_discount)
    return {str(names[q]): float(found[q] / ideal[q]) for q in np.flatnonzero(ideal > 0)}


def item_goodrate_by_query(
    scores: Sequence, gold: Sequence, query_ids: Sequence, k: int | None = None
) -> dict[str, float]:
    """Share of the first k items of each query whose gold tier is Good (grades 4 and 3); of all, where it has fewer.

    Items with equal scores are in random order, as in `ndcg_by_query`, so a share may be an expected one.
    Returns: {query id: share}, queries in sorted order.
    Source: the item goodrate of arXiv 2508.12365 is the mean of this over queries (defined in 2510.11122, section 4.1).
    """
    scores, gold, names, query = _lists(scores, gold, query_ids, k)
    good = np.array([TIER_OF_GRADE[int(grade)] == GOOD_TIER for grade in gold], dtype=np.float64)
    found = _expected_sum(scores, good, query, len(names), k, lambda rank: np.ones(len(rank)))
    lengths = np.bincount(query, minlength=len(names))
    shown = lengths if k is None else np.minimum(lengths, k)
    return {str(name): float(rate) for name, rate in zip(names, found / shown)}


def _lists(
    scores: Sequence, gold: Sequence, query_ids: Sequence, k: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Checked scores (N,) and gold grades (N,), the queries' names (Q,) and the place among them of each row (N,)."""
    if k is not None and k < 1:
        raise ValueError(f"k is {k}, expected at least 1, or None for the whole list")
    scores, gold = _scored(scores, gold)
    if len(query_ids) != len(gold):
        raise ValueError(f"gold has {len(gold)} rows, query_ids has {len(query_ids)}: they must be parallel")
    names, query = np.unique(np.asarray(query_ids, dtype=str), return_inverse=True)
    return scores, gold, names, query.reshape(-1)


def _dcg_discount(rank: np.ndarray) -> np.ndarray:
    return 1.0 / np.log2(rank + 2.0)


def _expected_sum(
    scores: np.ndarray,
    gain: np.ndarray,
    query: np.ndarray,
    queries: int,
    k: int | None,
    discount_of: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """Expected sum of discounted gains of each query's first k items, (queries,), equal scores in random order.

    discount_of: ranks from 0, (N,) -> the weight of each, (N,).
    """
    if len(query) == 0:
        return np.zeros(queries)
    order = np.lexsort((-scores, query))
    query, scores, gain = query[order], scores[order], gain[order]
    starts = np.searchsorted(query, np.arange(queries))  # first row of each query
    rank = np.arange(len(query)) - starts[query]  # from 0
    discount = discount_of(rank)
    if k is not None:
        discount[rank >= k] = 0.0
    new_tie = np.ones(len(query), dtype=bool)
    new_tie[1:] = (query[1:] != query[:-1]) | (scores[1:] != scores[:-1])
    tie = np.cumsum(new_tie) - 1
    mean_gain = np.bincount(tie, weights=gain) / np.bincount(tie)
    return np.bincount(query, weights=mean_gain[tie] * discount, minlength=queries)


def _scored(scores: Sequence, gold: Sequence) -> tuple[np.ndarray, np.ndarray]:
    scores, gold = np.asarray(scores, dtype=np.float64), grade_array(gold, "gold", unparsable=False)
    if scores.shape != gold.shape:
        raise ValueError(f"scores has shape {scores.shape}, gold has {len(gold)} rows: they must be parallel")
    if not np.isfinite(scores).all():
        row = int((~np.isfinite(scores)).argmax())
        raise ValueError(f"scores[{row}] is {scores[row]}, expected a finite number")
    return scores, gold
