"""What a score file is worth, as numbers: `evaluate_predictions`, CumPT over beta, calibration with a temperature."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from taosr1.data.queries import query_keys
from taosr1.evaluation import metrics, ranking
from taosr1.evaluation.scores import Scored
from taosr1.evaluation.summary import evaluate_predictions
from taosr1.runtime.messages import counted
from taosr1.serving.calibration import apply_temperature, fit_temperature, mean_nll
from taosr1.serving.tiering import cumulative_grade
from taosr1.task.grades import GRADES, TIERS

BETAS = tuple(round(0.01 * step, 2) for step in range(1, 101))
ROUNDING = 5e-6  # of a sum of probabilities that were written with 6 digits
SWEPT = ("tier_macro_f1", "tier_accuracy", "good_f1")


@dataclass(frozen=True)
class Measured:
    """A score file and its numbers.

    summary: of `evaluate_predictions` over the graded rows, None without any. sweep: {"beta": ..., each of `SWEPT`}
    for each of `BETAS`; argmax: the same of the most probable grade. served: the betas that give the tiers in the file,
    None where no single one does. calibration: "before" and "after" a temperature, and the temperatures.
    missing: what the file lacks, and what is left out for it.
    """

    name: str
    rows: list[Scored]
    summary: dict | None = None
    sweep: list[dict] = field(default_factory=list)
    argmax: dict | None = None
    served: tuple[float, float] | None = None
    calibration: dict | None = None
    missing: tuple[str, ...] = ()


def measure(name: str, rows: Sequence[Scored], *, bootstrap: int = 1000, seed: int = 0) -> Measured:
    """The numbers of a score file; nothing is computed from what it does not hold.

    Raises: ValueError as `evaluate_predictions`.
    """
    rows, missing = list(rows), []
    graded = [row for row in rows if row.judgement.grade is not None]
    if not graded:
        missing.append("no gold grades: only how often each grade and tier was given, and the rows")
        return Measured(name, rows, missing=tuple(missing))
    if len(graded) < len(rows):
        missing.append(f"{counted(len(rows) - len(graded), 'row')} without a gold grade, in no number below")
    pairs = [row.judgement for row in graded], [row.prediction for row in graded]
    summary = evaluate_predictions(*pairs, bootstrap=bootstrap, seed=seed)
    if set(summary["by_kind"]) == {"(none)"}:
        missing.append("no query_kind: nothing per kind of query")
    if not any(row.reply for row in rows):
        missing.append("no replies (infer/explain.py writes them): no reasons beside the rows")
    known = [row for row in graded if row.prediction.probs is not None]
    if not known:
        missing.append("no label probabilities: no reliability diagram, no CumPT over beta")
        return Measured(name, rows, summary, missing=tuple(missing))
    if len(known) < len(graded):
        lack = counted(len(graded) - len(known), "row")
        missing.append(f"{lack} without label probabilities, in neither the reliability diagram nor CumPT over beta")
    probs = np.array([row.prediction.probs for row in known])
    gold = np.array([row.judgement.grade for row in known])
    sweep = [{"beta": beta, **_tier_scores(gold, cumulative_grade(probs, beta))} for beta in BETAS]
    served = betas_behind(probs, [row.prediction.tier for row in known])
    if served is None:
        missing.append("its tiers are not those of CumPT with one beta: none is marked in the sweep")
    calibration = cross_fitted(probs, gold, query_keys([row.judgement for row in known]))
    if calibration is None:
        missing.append("a single query: no temperature can be fitted on other queries than it is measured on")
    argmax = _tier_scores(gold, probs.argmax(-1) + 1)
    return Measured(name, rows, summary, sweep, argmax, served, calibration, tuple(missing))


def _tier_scores(gold: np.ndarray, grades: np.ndarray) -> dict[str, float]:
    """`SWEPT` of predicted grades (any grade of a tier stands for it)."""
    width = len(GRADES) + 1
    counts = np.bincount((gold - 1) * width + grades - 1, minlength=len(GRADES) * width).reshape(len(GRADES), width)
    return {name: float(metrics.COUNT_METRICS[name](counts)) for name in SWEPT}


def betas_behind(probs: np.ndarray, tiers: Sequence[str | None]) -> tuple[float, float] | None:
    """The range of betas with which CumPT gives exactly these tiers; None where there is none, or a tier is missing.

    A row is Good for beta up to P(4) + P(3), Mid up to P(4) + P(3) + P(2), then Bad. Shapes: probs (N, 4), tiers (N,).
    """
    if any(tier not in TIERS for tier in tiers):
        return None
    good, mid = probs[:, 3] + probs[:, 2], probs[:, 3] + probs[:, 2] + probs[:, 1]
    low, high = 0.0, 1.0
    for tier, until_good, until_mid in zip(tiers, good, mid):
        above, up_to = {"Good": (0.0, until_good), "Mid": (until_good, until_mid), "Bad": (until_mid, 1.0)}[tier]
        low, high = max(low, above), min(high, up_to)
    return (float(min(low, high)), float(max(low, high))) if low <= high + ROUNDING else None


def cross_fitted(probs: np.ndarray, gold: np.ndarray, queries: Sequence[str]) -> dict | None:
    """Calibration before and after a temperature that was fitted on the other half of the queries; None over one.

    A temperature that is fitted on the rows that it is measured on looks better than it is. Queries are halved in the
    order of their names: every second one.
    Shapes: probs (N, 4), gold (N,), queries (N,). Returns: `temperatures` (two), `before` and `after`, each with ece,
        brier, nll, bins.
    """
    names = {name: place for place, name in enumerate(sorted(set(queries)))}
    if len(names) < 2:
        return None
    half = np.array([names[query] % 2 for query in queries])
    after, temperatures = probs.copy(), []
    for part in (0, 1):
        temperatures.append(fit_temperature(probs[half != part], gold[half != part]))
        after[half == part] = apply_temperature(probs[half == part], temperatures[-1])
    return {"temperatures": temperatures, "before": _errors(probs, gold), "after": _errors(after, gold)}


def _errors(probs: np.ndarray, gold: np.ndarray) -> dict:
    return {
        "ece": ranking.expected_calibration_error(probs, gold),
        "brier": ranking.brier_score(probs, gold),
        "nll": mean_nll(probs, gold),
        "bins": ranking.reliability_bins(probs, gold),
    }


def same_pairs(files: Sequence[Measured]) -> list[list[Scored]] | None:
    """The rows of every file in the order of the first, where all hold the same pairs with the same gold; else None."""
    keys = [[_pair(row) for row in each.rows] for each in files]
    if len(files) < 2 or any(len(set(own)) < len(own) or set(own) != set(keys[0]) for own in keys):
        return None
    of_key = [dict(zip(own, each.rows)) for own, each in zip(keys, files)]
    return [[of[key] for key in keys[0]] for of in of_key]


def _pair(row: Scored) -> tuple:
    pair = row.judgement
    product = (pair.title, pair.brand, pair.attributes, pair.category, pair.description, pair.price)
    return (pair.query_id, pair.item_id, pair.query, *product, pair.grade)


def differences(files: Sequence[Sequence[Scored]], names: Sequence[str], bootstrap: int, seed: int) -> dict[str, dict]:
    """`bootstrap_difference` of the graded rows of two files, the second minus the first, rows in the same order."""
    pairs = [(one, two) for one, two in zip(*files) if one.judgement.grade is not None]
    gold = [one.judgement.grade for one, _ in pairs]
    before, after = ([row.prediction.grade for row in column] for column in zip(*pairs))
    queries = query_keys([one.judgement for one, _ in pairs])
    found = {n: metrics.bootstrap_difference(n, gold, before, after, queries, bootstrap, seed) for n in names}
    return {name: {key: None if np.isnan(x) else x for key, x in vars(each).items()} for name, each in found.items()}
