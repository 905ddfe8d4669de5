"""From four label probabilities to a ranking tier: CumPT (paper, section 5) and the threshold cascade it replaces.

Arrays and numbers only. Columns of `probs` are grades 1..4; arrays, tensors and nested lists are all accepted.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from taosr1.task.grades import GRADES, GRADES_OF_TIER, TIER_INDEX, TIER_OF_GRADE, TIERS
from taosr1.task.probabilities import checked_probs, checked_probs_and_grades


def cumulative_grade(probs, beta: float) -> np.ndarray:
    """The grade k at which the probability accumulated from grade 4 down first reaches beta.

    Shapes: probs (N, 4) -> int64 (N,) of grades 1..4.
    Raises: ValueError for beta outside (0, 1], and naming the first row that is not a probability vector.
    """
    if not 0.0 < float(beta) <= 1.0:
        raise ValueError(f"beta is {beta}, expected a number in (0, 1]")
    reached = _cumulative(checked_probs(probs)) >= float(beta)
    return GRADES[-1] - reached.argmax(-1)


def cumulative_tier(probs, beta: float) -> list[str]:
    """CumPT: the tier of the grade k from `cumulative_grade`: 4 and 3 are Good, 2 is Mid, 1 is Bad.

    A smaller beta is more generous: raising it can only lower a row's tier. As beta -> 0 every row with P(4) > 0 is
    Good.
    Shapes: probs (N, 4).
    Raises: ValueError as `cumulative_grade`.
    Source: arXiv 2508.12365, section 5.
    """
    return [TIER_OF_GRADE[int(grade)] for grade in cumulative_grade(probs, beta)]


def fit_beta(probs, grades: Sequence[int]) -> float:
    """The beta with the best macro-F1 over Good, Mid and Bad, by exact search.

    A row's tier changes only where beta passes its P(4)+P(3) or P(4)+P(3)+P(2), so one beta between each two
    neighbours of all these values is a complete search. Choice: the paper names no objective; macro-F1 is its headline
    metric, here over tiers, since tiers are the decision. Of equally good betas, the middle of the widest interval:
    the farthest from changing any row's tier.

    Shapes: probs (N, 4), grades (N,).
    Raises: ValueError for no rows, a wrong grade or a row that is not a probability vector.
    """
    probs, grades = checked_probs_and_grades(probs, grades)
    gold = np.array(TIER_INDEX)[grades - 1]
    # (N, 2): a row is Good for beta up to its first number, Mid up to its second, then Bad.
    until = _cumulative(probs)[:, [GRADES[-1] - GRADES_OF_TIER[tier][-1] for tier in TIERS[:-1]]]
    # Tiers are constant for beta in (edge, next edge].
    edges = np.unique(np.concatenate([[0.0], until.reshape(-1), [1.0]]))
    counts = np.zeros((len(edges) - 1, len(TIERS), len(TIERS)))  # [interval of beta, gold tier, predicted tier]
    for tier in range(len(TIERS)):
        limits = np.sort(until[gold == tier], axis=0)
        below = [np.searchsorted(column, edges[1:], side="left") for column in limits.T]  # rows below Good, below Mid
        bounds = np.stack([np.full(len(counts), len(limits)), *below, np.zeros(len(counts))], axis=-1)
        counts[:, tier] = bounds[:, :-1] - bounds[:, 1:]
    low, high = _widest_best(_macro_f1(counts), edges)
    middle = (low + high) / 2
    return float(middle if middle > low else high)  # neighbouring floats have no middle; the interval is (low, high]


def threshold_tier(probs, thresholds: Sequence[float]) -> list[str]:
    """The baseline that CumPT replaces: from grade 4 down, the first grade k with P(k) >= its own threshold decides.

    Choice: the paper says only "four or more thresholds"; this is the plainest rule with four. Where no grade reaches
    its threshold, the most probable one decides, so four thresholds of 1 give argmax.
    Shapes: probs (N, 4); thresholds (4,), of grades 1..4, each in [0, 1].
    Raises: ValueError for thresholds that are not four numbers in [0, 1], and for rows that are not probability
        vectors.
    """
    limits = np.asarray(thresholds, dtype=np.float64)
    if limits.shape != (len(GRADES),) or not ((limits >= 0) & (limits <= 1)).all():
        raise ValueError(f"thresholds is {thresholds}, expected {len(GRADES)} numbers in [0, 1], one per grade 1..4")
    probs = checked_probs(probs)
    reached = probs >= limits
    first = GRADES[-1] - reached[:, ::-1].argmax(-1)
    grades = np.where(reached.any(-1), first, probs.argmax(-1) + 1)
    return [TIER_OF_GRADE[int(grade)] for grade in grades]


def _cumulative(probs: np.ndarray) -> np.ndarray:
    """P(4), P(4)+P(3), P(4)+P(3)+P(2) and exactly 1, (N, 4): grade 1 always decides, however the sum was rounded."""
    cumulated = np.minimum(np.cumsum(probs[:, ::-1], axis=-1), 1.0)
    cumulated[:, -1] = 1.0
    return cumulated


def _macro_f1(counts: np.ndarray) -> np.ndarray:
    """Mean F1 of counts (..., 3, 3), gold by predicted, over the tiers that occur in either."""
    hits = np.diagonal(counts, axis1=-2, axis2=-1)
    both = counts.sum(-1) + counts.sum(-2)
    return (2 * hits / np.maximum(both, 1)).sum(-1) / (both > 0).sum(-1)


def _widest_best(scores: np.ndarray, edges: np.ndarray) -> tuple[float, float]:
    """The widest run of neighbouring intervals (edges[i], edges[i + 1]] with the best score; the lowest of equals."""
    # Equal counts give bit-equal scores; a tie between different counts may differ in the last bit.
    best = np.concatenate([[False], scores >= scores.max() - 1e-12, [False]])
    starts, ends = np.flatnonzero(best[1:] & ~best[:-1]), np.flatnonzero(best[:-1] & ~best[1:])
    widest = int((edges[ends] - edges[starts]).argmax())
    return float(edges[starts[widest]]), float(edges[ends[widest]])
