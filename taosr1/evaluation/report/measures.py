"""What a score file is worth, as numbers: `evaluate_predictions`, CumPT over beta, calibration with a temperature."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from taosr1.data.gold import LABELLED_BY
from taosr1.data.queries import query_keys
from taosr1.evaluation import metrics, ranking
from taosr1.evaluation.pairing import Paired, Side, pair_rows
from taosr1.evaluation.summary import Prediction, evaluate_predictions, jsonable
from taosr1.runtime.messages import counted
from taosr1.serving.calibration import apply_temperature, fit_temperature, mean_nll
from taosr1.serving.tiering import cumulative_grade
from taosr1.task.grades import GRADES, TIERS
from taosr1.task.judgement import Judgement

BETAS = tuple(round(0.01 * step, 2) for step in range(1, 101))
ROUNDING = 5e-6  # of a sum of probabilities that were written with 6 digits
SWEPT = ("tier_macro_f1", "tier_accuracy", "good_f1")


@dataclass(frozen=True)
class Measured:
    """A score file and its numbers.

    rows, predictions: (N,); a row without a gold grade has grade None, also where it has a judge's pseudo-label.
    summary: of `evaluate_predictions` over the graded rows, None without any. sweep: {"beta": ..., each of `SWEPT`}
    for each of `BETAS`; argmax: the same of the most probable grade. served: the betas that give the tiers in the file,
    None where no single one does. calibration: "before" and "after" a temperature, and the temperatures.
    missing: what the file lacks, and what is left out for it.
    """

    name: str
    rows: list[Judgement]
    predictions: list[Prediction]
    summary: dict | None = None
    sweep: list[dict] = field(default_factory=list)
    argmax: dict | None = None
    served: tuple[float, float] | None = None
    calibration: dict | None = None
    missing: tuple[str, ...] = ()


def measure(name: str, scored: Sequence[tuple[Judgement, Prediction]], *, bootstrap: int, seed: int) -> Measured:
    """The numbers of a score file; nothing is computed from what it does not hold.

    Raises: ValueError as `evaluate_predictions`.
    """
    rows, predictions = [row for row, _ in scored], [prediction for _, prediction in scored]
    missing = []
    if labelled := sum(bool(row.extra.get(LABELLED_BY)) for row in rows):
        missing.append(f"{counted(labelled, 'grade')} from a judge (labelled_by): no gold grades")
        rows = [replace(row, grade=None) if row.extra.get(LABELLED_BY) else row for row in rows]
    graded = [(row, prediction) for row, prediction in zip(rows, predictions) if row.grade is not None]
    if not graded:
        missing.append("no gold grades: only how often each grade and tier was given, and the rows")
        return Measured(name, rows, predictions, missing=tuple(missing))
    if len(graded) < len(rows):
        missing.append(f"{counted(len(rows) - len(graded), 'row')} without a gold grade, in no number below")
    pairs = tuple(list(column) for column in zip(*graded))
    summary = evaluate_predictions(*pairs, bootstrap=bootstrap, seed=seed)
    if set(summary["by_kind"]) == {"(none)"}:
        missing.append("no query_kind: nothing per kind of query")
    if not any(prediction.reply for prediction in predictions):
        missing.append("no replies (infer/explain.py writes them): no reasons beside the rows")
    known = [(row, prediction) for row, prediction in graded if prediction.probs is not None]
    if not known:
        missing.append("no label probabilities: no reliability diagram, no CumPT over beta")
        return Measured(name, rows, predictions, summary, missing=tuple(missing))
    if len(known) < len(graded):
        lack = counted(len(graded) - len(known), "row")
        missing.append(f"{lack} without label probabilities, in neither the reliability diagram nor CumPT over beta")
    probs = np.array([prediction.probs for _, prediction in known])
    gold = np.array([row.grade for row, _ in known])
    sweep = [{"beta": beta, **_tier_scores(gold, cumulative_grade(probs, beta))} for beta in BETAS]
    served = betas_behind(probs, [prediction.tier for _, prediction in known])
    if served is None:
        missing.append("its tiers are not those of CumPT with one beta: none is marked in the sweep")
    calibration = cross_fitted(probs, gold, query_keys([row for row, _ in known]))
    if calibration is None:
        missing.append("a single query: no temperature can be fitted on other queries than it is measured on")
    argmax = _tier_scores(gold, probs.argmax(-1) + 1)
    return Measured(name, rows, predictions, summary, sweep, argmax, served, calibration, tuple(missing))


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


def paired(files: Sequence[Measured]) -> Paired | str:
    """The pairs that all files hold, by query and product; why there are none where any file lacks one of them."""
    try:
        return pair_rows([Side(each.name, each.rows, each.predictions) for each in files])
    except ValueError as problem:
        return str(problem).partition(" (--max-unpaired")[0].partition(". Are they")[0]


def differences(pairs: Paired, names: Sequence[str], bootstrap: int, seed: int) -> dict[str, dict]:
    """`bootstrap_difference` of the graded pairs of two files, the second minus the first."""
    graded = [place for place, row in enumerate(pairs.rows) if row.grade is not None]
    gold, queries = [pairs.rows[place].grade for place in graded], [pairs.queries[place] for place in graded]
    before, after = ([column[place].grade for place in graded] for column in pairs.predictions)
    found = {n: metrics.bootstrap_difference(n, gold, before, after, queries, bootstrap, seed) for n in names}
    return jsonable(found)
