"""The numbers of examples/real_judgements.py: one judge, one test set, intervals by bootstrap over queries.

Arrays and numbers only. Statistics are those of `taosr1/evaluation/paired.py`. Two judges on the same rows get the same
resamples, so their difference is paired. Several seeds of a judge are averaged within each resample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from taosr1.data.queries import query_keys
from taosr1.evaluation.metrics import COUNT_METRICS, GRADE_F1, macro_f1, percentile_interval, query_draws, ratio
from taosr1.evaluation.paired import Statistic, auc_statistic, count_statistics, mean_statistic
from taosr1.evaluation.ranking import auc, expected_calibration_error, expected_grade, ndcg_by_query
from taosr1.serving.calibration import apply_temperature, fit_temperature
from taosr1.task.grades import GOOD_TIER, GRADES, TIER_OF_GRADE
from taosr1.task.judgement import Judgement

NDCG_K = 10
GOOD = np.array([TIER_OF_GRADE[grade] == GOOD_TIER for grade in GRADES])
WEIGHTS = 2.0 ** np.arange(-5, 5.01, 0.25)  # those that `fit_decision` tries for a grade


@dataclass(frozen=True)
class Judged:
    """Answers on N rows: gold grades (N,), predicted grades (N,), a score to rank by (N,), and query names (N,)."""

    gold: np.ndarray
    grades: np.ndarray
    score: np.ndarray
    names: np.ndarray


# ---- From probabilities to grades ------------------------------------------------------------------------------------


def decide(probs, weights: Sequence[float]) -> np.ndarray:
    """The grade with the largest weight * probability, (N, 4) -> (N,); of equal ones the lower."""
    return (np.asarray(probs) * np.asarray(weights)).argmax(-1) + 1


def fit_decision(probs, gold: Sequence[int]) -> list[float]:
    """A weight for each grade with which `decide` has the highest macro-F1 on these rows (dev, never test).

    The most probable grade depends on the shares of the grades in training and on how it was balanced. With weights of
    its own every judge is compared by what it can tell apart. From equal weights, one grade's weight after another is
    set to the best of `WEIGHTS` (of equally good ones the closest to 1), until no change helps.
    Shapes: probs (N, 4), gold (N,) -> 4 weights.
    """
    weights, best = np.ones(len(GRADES)), macro_f1(gold, decide(probs, np.ones(len(GRADES))))
    improved = True
    while improved:
        improved = False
        for column in range(len(GRADES)):
            for value in sorted(WEIGHTS, key=lambda weight: (abs(np.log(weight)), weight)):
                tried = weights.copy()
                tried[column] = value
                if (found := macro_f1(gold, decide(probs, tried))) > best + 1e-12:
                    weights, best, improved = tried, found, True
    return weights.tolist()


# ---- Statistics of weights of queries --------------------------------------------------------------------------------


def statistics(judged: Judged) -> dict[str, Statistic]:
    """macro_f1, quadratic_kappa, good_agreement, f1_1 to f1_4, auc, auc_within, ndcg of one judge."""
    names = np.unique(judged.names)
    of_counts = {name: COUNT_METRICS[name] for name in ("macro_f1", "quadratic_kappa")}
    of_counts |= {"good_agreement": _good_agreement, **GRADE_F1}
    found = count_statistics(of_counts, judged.gold, judged.grades, judged.names)
    positive = GOOD[judged.gold - 1]
    found["auc"] = auc_statistic(judged.score, positive, judged.names)
    inside = [auc(judged.score[judged.names == name], positive[judged.names == name]) for name in names]
    found["auc_within"] = mean_statistic(inside)
    ndcg = ndcg_by_query(judged.score, judged.gold, judged.names, NDCG_K)
    found["ndcg"] = mean_statistic([ndcg.get(str(name), np.nan) for name in names])
    return found


def _good_agreement(counts: np.ndarray, full: np.ndarray) -> np.ndarray:
    """Share of rows where gold and prediction are both Good or both not."""
    known = counts[..., : len(GRADES)]
    same = known[..., GOOD, :][..., GOOD].sum((-2, -1)) + known[..., ~GOOD, :][..., ~GOOD].sum((-2, -1))
    return ratio(same, counts.sum((-2, -1)))


# ---- Values, intervals, differences ----------------------------------------------------------------------------------


def resampled_queries(queries: int, samples: int) -> np.ndarray:
    """How often each query was drawn in each resample, (samples, Q): the draws of `bootstrap_interval`, seed 0."""
    return np.concatenate([np.zeros((0, queries)), *query_draws(queries, samples, seed=0)])


def estimate(per_seed: Sequence[Statistic], draws: np.ndarray) -> dict:
    """{value: mean over seeds, low, high: its interval over queries, seeds: each value}; None where undefined."""
    ones = np.ones((1, draws.shape[1]))
    values = [float(statistic(ones)[0]) for statistic in per_seed]
    return _summary(values, sum(statistic(draws) for statistic in per_seed) / len(per_seed), draws)


def difference(first: Sequence[Statistic], second: Sequence[Statistic], draws: np.ndarray) -> dict:
    """`estimate` of mean(first) - mean(second) on the same resampled queries."""
    ones = np.ones((1, draws.shape[1]))
    value, resampled = (
        sum(f(weights) for f in first) / len(first) - sum(f(weights) for f in second) / len(second)
        for weights in (ones, draws)
    )
    return _summary([float(value[0])], resampled, draws)


def _summary(values: list[float], resampled: np.ndarray, draws: np.ndarray) -> dict:
    found = percentile_interval(float(np.mean(values)), resampled, draws.shape[1])
    value, low, high = (None if np.isnan(number) else number for number in vars(found).values())
    return {"value": value, "low": low, "high": high, "seeds": [] if value is None else values}


def measured(judges: Sequence[Judged], samples: int) -> dict[str, dict]:
    """`estimate` of every statistic of one judge, given by its seeds, on the same rows."""
    found = [statistics(judged) for judged in judges]
    draws = resampled_queries(len(np.unique(judges[0].names)), samples)
    return {name: estimate([one[name] for one in found], draws) for name in found[0]}


# ---- A judge with probabilities --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scored:
    """One score file: gold grades (N,), probabilities (N, 4), query names (N,), kinds of query (N,)."""

    gold: np.ndarray
    probs: np.ndarray
    names: np.ndarray
    kinds: np.ndarray

    def judged(self, weights: Sequence[float], rows: slice | np.ndarray = slice(None)) -> Judged:
        score = expected_grade(self.probs[rows])
        return Judged(self.gold[rows], decide(self.probs[rows], weights), score, self.names[rows])


def measure(dev: Sequence[Scored], test: Sequence[Scored], samples: int) -> dict:
    """All numbers of a judge on one test set; dev and test have one entry per seed.

    argmax: by the most probable grade; decided: by `fit_decision` on dev. Both hold macro-F1, kappa and F1 of each
    grade; AUC and nDCG rank by expected grade. ece, ece_scaled: raw, and at the temperature fitted on dev.
    """
    weights = [fit_decision(one.probs, one.gold) for one in dev]
    temperatures = [fit_temperature(one.probs, one.gold) for one in dev]
    argmax = measured([one.judged([1] * 4) for one in test], samples)
    decided = measured([one.judged(own) for one, own in zip(test, weights)], samples)
    graded = ("macro_f1", "quadratic_kappa", "good_agreement", *(f"f1_{grade}" for grade in GRADES))
    scaled = [apply_temperature(one.probs, found) for one, found in zip(test, temperatures)]
    kinds = {}
    for kind in sorted(set(test[0].kinds) - {""}):
        rows = test[0].kinds == kind
        own = measured([one.judged(w, rows) for one, w in zip(test, weights)], samples)
        kept = {name: own[name] for name in ("macro_f1", "auc", "auc_within")}
        kinds[kind] = {"rows": int(rows.sum()), "queries": len(set(test[0].names[rows])), **kept}
    return {
        "rows": len(test[0].gold),
        "queries": len(set(test[0].names)),
        "argmax": {name: argmax[name] for name in graded},
        "decided": {name: decided[name] for name in graded},
        **{name: argmax[name] for name in ("auc", "auc_within", "ndcg")},
        "ece": float(np.mean([expected_calibration_error(one.probs, one.gold) for one in test])),
        "ece_scaled": float(np.mean([expected_calibration_error(p, one.gold) for p, one in zip(scaled, test)])),
        "dev_macro_f1": float(np.mean([macro_f1(one.gold, decide(one.probs, w)) for one, w in zip(dev, weights)])),
        "weights": weights,
        "temperatures": temperatures,
        "by_kind": kinds,
    }


# ---- People ----------------------------------------------------------------------------------------------------------


def human_ceiling(rows: Sequence[Judgement], samples: int) -> dict[str, dict]:
    """How well people agree with people, by the numbers of the judges, on the rows with three raters (`raters`, 0-3).

    Each comparison is the mean over its three pairings, which stand where a judge has its seeds. The final rating was
    made from these raters, so the second comparison flatters them. Choice: the median of two different ratings is the
    lower one; as a score to rank by, their mean is used.
    """
    kept = [row for row in rows if len(row.extra.get("raters") or ()) == 3]
    if not kept:
        return {}
    ratings = np.array([row.extra["raters"] for row in kept]) + 1  # (N, 3), grades
    final, names = np.array([row.grade for row in kept]), np.array(query_keys(kept))
    others = {0: (1, 2), 1: (0, 2), 2: (0, 1)}

    def judged(gold: np.ndarray, by: np.ndarray) -> Judged:
        return Judged(gold, by.min(-1), by.mean(-1), names)

    compared = {
        "one rater against another": [judged(ratings[:, i], ratings[:, [j]]) for i, j in ((0, 1), (0, 2), (1, 2))],
        "one rater against the final rating": [judged(final, ratings[:, [i]]) for i in range(3)],
        "the other two against one rater": [judged(ratings[:, i], ratings[:, others[i]]) for i in range(3)],
    }
    found = {name: {"rows": len(kept), **measured(judges, samples)} for name, judges in compared.items()}
    return found
