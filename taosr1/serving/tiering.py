"""From four label probabilities to a ranking tier: CumPT (paper, section 5) and the threshold cascade it replaces.

Arrays and numbers only. Columns of `probs` are grades 1..4; arrays, tensors and nested lists are all accepted.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from taosr1.task.grades import GRADES, TIER_OF_GRADE, TIERS
from taosr1.task.probabilities import checked_fit, checked_probs

_TIER_INDEX = np.array([TIERS.index(TIER_OF_GRADE[grade]) for grade in GRADES])  # (4,): [g - 1] is the tier of grade g


# ---- CumPT: one knob -------------------------------------------------------------------------------------------------


def _check_beta(beta: float) -> float:
    if not 0.0 < float(beta) <= 1.0:
        raise ValueError(f"beta is {beta}, expected a number in (0, 1]")
    return float(beta)


def _from_the_top(probs: np.ndarray) -> np.ndarray:
    """Cumulated probability of grades 4, 4-3, 4-2, 4-1: (N, 4), the last column exactly 1 whatever rounding says."""
    cumulated = np.minimum(np.cumsum(probs[:, ::-1], axis=-1), 1.0)
    cumulated[:, -1] = 1.0
    return cumulated


def cumulative_grade(probs, beta: float) -> np.ndarray:
    """The grade k at which the probability cumulated from grade 4 down first reaches beta.

    Shapes: probs (N, 4).
    Returns: int64 (N,) of grades 1..4. Grade 1 always decides in the end, so that rounding (a sum of 0.9999999 against
    beta = 1) never leaves a row without a grade.
    Raises: ValueError for beta outside (0, 1], and naming the first row that is not a probability vector.
    """
    beta = _check_beta(beta)
    reached = _from_the_top(checked_probs(probs)) >= beta
    return GRADES[-1] - reached.argmax(-1)


def cumulative_tier(probs, beta: float) -> list[str]:
    """CumPT: the tier of each row, where k from `cumulative_grade` decides: 4 and 3 are Good, 2 is Mid, 1 is Bad.

    A smaller beta is more generous: raising it can only move a row down. At beta -> 0 every row with P(4) > 0 is Good.
    Shapes: probs (N, 4).
    Source: arXiv 2508.12365, section 5.
    """
    return [TIER_OF_GRADE[int(grade)] for grade in cumulative_grade(probs, beta)]


def fit_beta(probs, grades: Sequence[int]) -> float:
    """The beta with the best macro-F1 over Good, Mid and Bad, by exact search.

    The tiers change only where beta passes some row's P(4)+P(3) or P(4)+P(3)+P(2), so trying one beta between each two
    neighbours among those values tries them all. Choice: the paper names no objective; macro-F1 is its headline
    metric, here over tiers, since tiers are what is decided. Among ties, the middle of the widest stretch of best
    betas: the farthest from any row changing its tier.

    Shapes: probs (N, 4), grades (N,).
    Raises: ValueError for no rows, a wrong grade or a row that is not a probability vector.
    """
    probs, grades = checked_fit(probs, grades)
    gold = _TIER_INDEX[grades - 1]
    cumulated = _from_the_top(probs)
    good_from, mid_from = cumulated[:, 1], cumulated[:, 2]  # Good up to the first, Mid up to the second, then Bad
    edges = np.unique(np.concatenate([[0.0], good_from, mid_from, [1.0]]))  # tiers are constant in (edge, next edge]
    counts = np.zeros((len(edges) - 1, len(TIERS), len(TIERS)))  # [candidate, gold tier, predicted tier]
    for tier in range(len(TIERS)):
        inside = gold == tier
        below_good = np.searchsorted(np.sort(good_from[inside]), edges[1:], side="left")  # rows that are not Good
        below_mid = np.searchsorted(np.sort(mid_from[inside]), edges[1:], side="left")  # rows that are Bad
        counts[:, tier] = np.stack([inside.sum() - below_good, below_good - below_mid, below_mid], axis=-1)
    low, high = _widest_best(_macro_f1(counts), edges)
    middle = (low + high) / 2
    return float(middle if middle > low else high)  # neighbouring floats have no middle; the stretch is (low, high]


# ---- the threshold cascade: four knobs -------------------------------------------------------------------------------


def threshold_tier(probs, thresholds: Sequence[float]) -> list[str]:
    """The baseline CumPT replaces: from grade 4 down, the first grade k with P(k) >= its own threshold decides.

    Choice: the paper says only "four or more thresholds"; this is the plainest rule with four. Where no grade reaches
    its threshold, the most probable one decides, so four thresholds of 1 are argmax.
    Shapes: probs (N, 4); thresholds (4,), in column order (grades 1..4), each in [0, 1].
    Raises: ValueError for thresholds that are not four numbers in [0, 1], and for rows that are not probability
    vectors.
    """
    limits = np.asarray(thresholds, dtype=np.float64)
    if limits.shape != (len(GRADES),) or not ((limits >= 0) & (limits <= 1)).all():
        raise ValueError(f"thresholds is {thresholds}, expected {len(GRADES)} numbers in [0, 1], one per grade 1..4")
    return [TIERS[index] for index in _threshold_index(checked_probs(probs), limits)]


def _threshold_index(probs: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Tier indices (..., N) of probs (N, 4) under limits (..., 4)."""
    reached = probs >= limits[..., None, :]  # (..., N, 4)
    first = GRADES[-1] - 1 - reached[..., ::-1].argmax(-1)
    return _TIER_INDEX[np.where(reached.any(-1), first, probs.argmax(-1))]


def fit_thresholds(probs, grades: Sequence[int], *, steps: int = 50, sweeps: int = 10) -> tuple[float, ...]:
    """Thresholds with a locally best macro-F1 over Good, Mid and Bad, by coordinate search on `steps` + 1 values.

    Each remove_leftovers sets one threshold after another to its best value given the others, until nothing improves. It starts
    from argmax (all 1) and from all 0.5 and keeps the better end, so it is never worse than argmax on the rows it was
    fitted on.
    Shapes: probs (N, 4), grades (N,).
    Returns: four thresholds, for grades 1..4.
    """
    probs, grades = checked_fit(probs, grades)
    gold = _TIER_INDEX[grades - 1]
    grid = np.linspace(0.0, 1.0, steps + 1)
    ends = [_climb(probs, gold, np.full(len(GRADES), start), grid, sweeps) for start in (1.0, 0.5)]
    _, best = max(ends, key=lambda end: end[0])  # the first wins a tie
    return tuple(best.tolist())


def _climb(
    probs: np.ndarray, gold: np.ndarray, limits: np.ndarray, grid: np.ndarray, sweeps: int
) -> tuple[float, np.ndarray]:
    """Coordinate ascent from `limits`: the best score and its thresholds."""
    best = float(_macro_f1(_tier_table(gold, _threshold_index(probs, limits))))
    for _ in range(sweeps):
        before = best
        for column in reversed(range(len(GRADES))):
            tried = np.repeat(limits[None], len(grid), axis=0)
            tried[:, column] = grid
            scores = np.array([_macro_f1(_tier_table(gold, _threshold_index(probs, one))) for one in tried])
            if scores.max() > best:
                best = float(scores.max())
                limits = tried[_middle_of_first_run(scores == best)]
        if best == before:
            break
    return best, limits


def _middle_of_first_run(chosen: np.ndarray) -> int:
    start = int(chosen.argmax())
    length = int(np.append(chosen[start:], False).argmin())
    return start + (length - 1) // 2


# ---- shared ----------------------------------------------------------------------------------------------------------


def _tier_table(gold: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Tier counts (3, 3), gold by predicted."""
    return np.bincount(gold * len(TIERS) + predicted, minlength=len(TIERS) ** 2).reshape(len(TIERS), len(TIERS))


def _macro_f1(counts: np.ndarray) -> np.ndarray:
    """Mean F1 of counts (..., 3, 3) over the tiers that occur in gold or predictions."""
    hits = np.diagonal(counts, axis1=-2, axis2=-1)
    both = counts.sum(-1) + counts.sum(-2)
    return (2 * hits / np.maximum(both, 1)).sum(-1) / (both > 0).sum(-1)


def _widest_best(scores: np.ndarray, edges: np.ndarray) -> tuple[float, float]:
    """The widest run of neighbouring intervals (edges[i], edges[i + 1]] whose scores are all the maximum."""
    # Equal count tables give bit-equal scores, but a tie between different tables may differ in the last bit.
    best = np.concatenate([[False], scores >= scores.max() - 1e-12, [False]])
    starts, ends = np.flatnonzero(best[1:] & ~best[:-1]), np.flatnonzero(best[:-1] & ~best[1:])
    widest = int((edges[ends] - edges[starts]).argmax())  # the lowest of equally wide ones
    return float(edges[starts[widest]]), float(edges[ends[widest]])
