"""The report on one set of predictions: a JSON-ready dict, and the same as a text of tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from taosr1.evaluation.metrics import (
    COUNT_METRICS,
    LEVEL,
    Interval,
    bootstrap_difference,
    confusion_matrix,
    f1_of,
    grade_array,
    hallucination_rates,
    percentile_interval,
    query_counts,
    resampled_counts,
    tier_counts,
)
from taosr1.evaluation.ranking import (
    ESCI_GAINS,
    ESCI_GAINS_SWAPPED,
    brier_score,
    expected_calibration_error,
    expected_grade,
    good_auc,
    ndcg_by_query,
    reliability_bins,
)
from taosr1.task.grades import GOOD_TIER, GRADES, GRADES_OF_TIER, TIERS, grade_name
from taosr1.task.judgement import Judgement
from taosr1.task.probabilities import checked_probs

NDCG_K = 10
TIER_METRICS = ("tier_accuracy", "tier_macro_f1", "good_f1")


@dataclass(frozen=True)
class Prediction:
    """A judge's prediction for one pair. Every field may be None: replies may not parse, baselines lack most fields.

    grade: 1-4, or None where the reply could not be parsed (counted as wrong). probs: P(grade 1..4). label_mass:
    full-vocabulary probability of the four labels. decision: grade on the Decision line of the chain of thought.
    implied: grade that its steps imply under the rules. tier: Good, Mid or Bad by a tiering rule such as CumPT (argmax
    tiers follow from `probs`).
    """

    grade: int | None = None
    probs: tuple[float, float, float, float] | None = None
    label_mass: float | None = None
    decision: int | None = None
    implied: int | None = None
    tier: str | None = None


def evaluate_predictions(
    judgements: Sequence[Judgement],
    predictions: Sequence[Prediction],
    *,
    bootstrap: int = 1000,
    seed: int = 0,
    beta: float | None = None,
) -> dict:
    """Measures predictions against gold grades; the result is JSON-serialisable, undefined numbers are None.

    bootstrap: number of resamples over queries (0: no intervals). A query is a `query_id`, or the query's text where
        that is empty.
    beta: the CumPT parameter behind `Prediction.tier`, recorded as given: the caller makes the tiers.
    Returns: `rows`, `queries`, `bootstrap`, `metrics` {name: {value, low, high}}, `grades`, `confusion` (4 x 5),
        `by_kind`, `ranking`; `calibration`, `hallucination` and `tiering` are None where predictions lack their fields.
    Raises: ValueError for no rows, lists of different length, a judgement without a grade, or a bad prediction, naming
        the row.
    """
    gold, grades, queries = _checked(judgements, predictions)
    draw = {"samples": bootstrap, "seed": seed}
    counts = confusion_matrix(gold, grades)
    report = {
        "rows": len(gold),
        "queries": len(set(queries)),
        "bootstrap": {**draw, "level": LEVEL, "over": "queries"},
        "metrics": _intervals(gold, grades, queries, COUNT_METRICS, draw),
        "grades": _per_grade(counts),
        "confusion": counts.tolist(),
        "by_kind": _by_kind(judgements, gold, grades, queries, draw),
        "ranking": _ranking(gold, predictions, queries),
        "calibration": _calibration(gold, predictions),
        "hallucination": _hallucination(gold, predictions),
        "tiering": _tiering(gold, predictions, queries, beta, draw),
    }
    return _jsonable(report)


def _checked(judgements: Sequence[Judgement], predictions: Sequence[Prediction]) -> tuple[list[int], list, list[str]]:
    """Gold grades, predicted grades and query names."""
    if len(judgements) != len(predictions):
        raise ValueError(f"{len(judgements)} judgements, {len(predictions)} predictions: they must be parallel")
    if not judgements:
        raise ValueError("no rows to evaluate: judgements is empty")
    for row, (judgement, prediction) in enumerate(zip(judgements, predictions)):
        if judgement.grade is None:
            raise ValueError(f"judgements[{row}] has no grade: evaluate graded rows only (query {judgement.query!r})")
        if prediction.tier not in (None, *TIERS):
            raise ValueError(f"predictions[{row}].tier is {prediction.tier!r}, expected one of {', '.join(TIERS)}")
    # The prefixes keep a query's text apart from an equal query_id.
    queries = [f"id {j.query_id}" if j.query_id else f"text {j.query}" for j in judgements]
    return [j.grade for j in judgements], [p.grade for p in predictions], queries


def _jsonable(value):
    """NaN as None, and numpy's numbers as Python's."""
    if isinstance(value, dict):
        return {str(key): _jsonable(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(inner) for inner in value]
    if isinstance(value, Interval):
        return _jsonable({"value": value.value, "low": value.low, "high": value.high})
    if isinstance(value, (float, np.floating)):
        return None if math.isnan(value) else float(value)
    return int(value) if isinstance(value, np.integer) else value


# ---- sections of the report ------------------------------------------------------------------------------------------


def _intervals(
    gold: Sequence, grades: Sequence, queries: Sequence, names: Sequence[str], draw: dict
) -> dict[str, Interval]:
    """Each named metric with its interval, all from the same resamples."""
    per_query = query_counts(gold, grades, queries)
    total, resamples = per_query.sum(0), resampled_counts(per_query, **draw)
    return {name: percentile_interval(COUNT_METRICS[name](total), COUNT_METRICS[name](resamples)) for name in names}


def _per_grade(counts: np.ndarray) -> dict:
    f1 = f1_of(counts)
    table = {}
    for grade in GRADES:
        hits, gold, predicted = counts[grade - 1, grade - 1], counts[grade - 1].sum(), counts[:, grade - 1].sum()
        table[grade] = {
            "f1": f1[grade - 1],
            "precision": hits / predicted if predicted else math.nan,
            "recall": hits / gold if gold else math.nan,
            "gold": gold,
            "predicted": predicted,
        }
    return table


def _by_kind(
    judgements: Sequence[Judgement], gold: Sequence, grades: Sequence, queries: Sequence, draw: dict
) -> dict[str, dict]:
    rows_of: dict[str, list[int]] = {}
    for row, judgement in enumerate(judgements):
        rows_of.setdefault(judgement.query_kind or "(none)", []).append(row)
    names = ("macro_f1", "accuracy", "tier_accuracy", "parse_failure_rate")
    table = {}
    for kind, rows in sorted(rows_of.items()):
        columns = [[values[row] for row in rows] for values in (gold, grades, queries)]
        table[kind] = {"rows": len(rows), "queries": len(set(columns[2])), **_intervals(*columns, names, draw)}
    return table


def _ranking(gold: Sequence, predictions: Sequence[Prediction], queries: Sequence) -> dict:
    """AUC and nDCG, by expected grade where every row has probabilities, else by the grade (unparsable lowest)."""
    if all(prediction.probs is not None for prediction in predictions):
        scored_by, scores = "expected grade", expected_grade([prediction.probs for prediction in predictions])
    else:
        grades = grade_array([prediction.grade for prediction in predictions], "predicted", unparsable=True)
        scored_by, scores = "grade", grades.astype(np.float64)
    table = {
        "scored_by": scored_by,
        "auc_good_vs_bad": good_auc(scores, gold),
        "auc_good_vs_rest": good_auc(scores, gold, against=[tier for tier in TIERS if tier != GOOD_TIER]),
        "ndcg": {},
    }
    for name, gains in (("esci", ESCI_GAINS), ("esci_swapped", ESCI_GAINS_SWAPPED)):
        per_query = list(ndcg_by_query(scores, gold, queries, NDCG_K, gains).values())
        value = float(np.mean(per_query)) if per_query else math.nan
        table["ndcg"][name] = {"k": NDCG_K, "gains": gains, "value": value, "queries": len(per_query)}
    return table


def _calibration(gold: Sequence, predictions: Sequence[Prediction]) -> dict | None:
    rows = [row for row, prediction in enumerate(predictions) if prediction.probs is not None]
    if not rows:
        return None
    probs, known = [predictions[row].probs for row in rows], [gold[row] for row in rows]
    masses = [predictions[row].label_mass for row in rows if predictions[row].label_mass is not None]
    return {
        "rows": len(rows),
        "ece": expected_calibration_error(probs, known),
        "brier": brier_score(probs, known),
        "label_mass_mean": float(np.mean(masses)) if masses else math.nan,
        "label_mass_min": min(masses, default=math.nan),
        "bins": reliability_bins(probs, known),
    }


def _hallucination(gold: Sequence, predictions: Sequence[Prediction]) -> dict | None:
    labels = [prediction.grade for prediction in predictions]
    stated = {"decision": [p.decision for p in predictions], "implied": [p.implied for p in predictions]}
    rates = {name: hallucination_rates(gold, labels, grades) for name, grades in stated.items() if any(grades)}
    return rates or None


def _tiering(
    gold: Sequence, predictions: Sequence[Prediction], queries: Sequence, beta: float | None, draw: dict
) -> dict | None:
    """Argmax tiers against the caller's, on the rows that have both."""
    rows = [row for row, p in enumerate(predictions) if p.probs is not None and p.tier is not None]
    if not rows:
        return None
    known, names = [gold[row] for row in rows], [queries[row] for row in rows]
    argmax = checked_probs([predictions[row].probs for row in rows]).argmax(-1) + 1
    # Any grade of a tier: tiers are counted by the functions that count grades.
    given = [GRADES_OF_TIER[predictions[row].tier][0] for row in rows]
    return {
        "beta": beta,
        "rows": len(rows),
        "argmax": _intervals(known, argmax, names, TIER_METRICS, draw),
        "cumpt": _intervals(known, given, names, TIER_METRICS, draw),
        "difference": {name: bootstrap_difference(name, known, argmax, given, names, **draw) for name in TIER_METRICS},
        "confusion_argmax": tier_counts(confusion_matrix(known, argmax))[:, : len(TIERS)].astype(int).tolist(),
        "confusion_cumpt": tier_counts(confusion_matrix(known, given))[:, : len(TIERS)].astype(int).tolist(),
    }


# ---- as text ---------------------------------------------------------------------------------------------------------

_TITLES = {
    "macro_f1": "macro-F1",
    "accuracy": "accuracy",
    "good_f1": f"{GOOD_TIER} F1",
    "tier_accuracy": "tier accuracy",
    "tier_macro_f1": "tier macro-F1",
    "quadratic_kappa": "quadratic kappa",
    "signed_bias": "signed bias (grades)",
    "parse_failure_rate": "unparsable",
}
_NO_SHARES = ("quadratic_kappa", "signed_bias")  # shown as they are, not times 100


def render_report(report: dict) -> str:
    """The result of `evaluate_predictions` as aligned tables; shares and F1 times 100, "-" where undefined."""
    draw = report["bootstrap"]
    head = f"{report['rows']:,} pairs, {report['queries']:,} queries. F1 and shares x 100."
    if draw["samples"]:
        head += f" [95 % intervals: {draw['samples']:,} bootstrap resamples of queries, seed {draw['seed']}]"
    metrics = [[_TITLES[name], *_shown(name, value)] for name, value in report["metrics"].items()]
    sections = [head, _table(["metric", "value", "interval"], metrics), _render_grades(report)]
    sections.append(_render_kinds(report["by_kind"]))
    for name, render in (
        ("calibration", _render_calibration),
        ("tiering", _render_tiering),
        ("hallucination", _render_hallucination),
        ("ranking", _render_ranking),
    ):
        if report[name] is not None:
            sections.append(render(report[name]))
    return "\n\n".join(sections) + "\n"


def _number(value: float | None, scale: float = 100.0, digits: int = 2) -> str:
    return "-" if value is None else f"{value * scale:.{digits}f}"


def _shown(name: str, interval: dict) -> list[str]:
    scale, digits = (1.0, 3) if name in _NO_SHARES else (100.0, 2)
    value, low, high = (_number(interval[key], scale, digits) for key in ("value", "low", "high"))
    return [value, f"[{low}, {high}]" if low != "-" else ""]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their longest cell; the first is aligned left, the others right."""
    widths = [max(map(len, column)) for column in zip(header, *rows)]
    lines = []
    for first, *rest in (header, *rows):
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:]))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _render_grades(report: dict) -> str:
    """Scores of each grade beside its row of the confusion matrix, best grade first."""
    best_first = GRADES[::-1]
    header = ["gold grade", "F1", "precision", "recall", "pairs", "|", *(f"as {g}" for g in best_first), "unparsable"]
    rows = []
    for grade in best_first:
        scores, counts = report["grades"][str(grade)], report["confusion"][grade - 1]
        shown = [_number(scores[key]) for key in ("f1", "precision", "recall")]
        confused = [f"{counts[g - 1]:,}" for g in best_first] + [f"{counts[-1]:,}"]
        rows.append([grade_name(grade), *shown, f"{scores['gold']:,}", "|", *confused])
    return _table(header, rows)


def _render_kinds(by_kind: dict) -> str:
    header = ["query kind", "pairs", "queries", "macro-F1", "interval", "accuracy", "tier accuracy", "unparsable"]
    rows = [
        [kind, f"{scores['rows']:,}", f"{scores['queries']:,}", *_shown("macro_f1", scores["macro_f1"])]
        + [_number(scores[name]["value"]) for name in ("accuracy", "tier_accuracy", "parse_failure_rate")]
        for kind, scores in by_kind.items()
    ]
    return _table(header, rows)


def _render_calibration(calibration: dict) -> str:
    header = ["label probabilities", "ECE", "Brier", "mean label mass", "lowest label mass"]
    shown = [_number(calibration[name], 1.0, 4) for name in ("brier", "label_mass_mean", "label_mass_min")]
    table = _table(header, [[f"{calibration['rows']:,} pairs", _number(calibration["ece"]), *shown]])
    bins = [
        [f"{b['low']:.2f} - {b['high']:.2f}", f"{b['rows']:,}", _number(b["confidence"]), _number(b["accuracy"])]
        for b in calibration["bins"]
    ]
    return table + "\n\n" + _table(["confidence", "pairs", "mean confidence", "accuracy"], bins)


def _render_tiering(tiering: dict) -> str:
    header = ["tiers"] + [cell for name in TIER_METRICS for cell in (_TITLES[name], "interval")]
    beta = "" if tiering["beta"] is None else f" (beta {tiering['beta']:.4g})"
    titles = {"argmax": "argmax", "cumpt": f"CumPT{beta}", "difference": "CumPT - argmax, paired"}
    rows = [[title, *(cell for name in TIER_METRICS for cell in _shown(name, tiering[key][name]))]
            for key, title in titles.items()]  # fmt: skip
    return _table(header, rows)


def _render_hallucination(hallucination: dict) -> str:
    titles = {"decision": "its Decision line", "implied": "the grade its steps imply"}
    header = ["reasoning against label", "pairs", "disagrees", "reasoning right, label wrong"]
    rows = [
        [titles[name], f"{rates['rows']:,}", _number(rates["disagrees"]), _number(rates["right_but_label_wrong"])]
        for name, rates in hallucination.items()
    ]
    return _table(header, rows)


def _render_ranking(ranking: dict) -> str:
    good, worst = GOOD_TIER, TIERS[-1]
    rows = [
        [f"AUC, {good} against {worst}", _number(ranking["auc_good_vs_bad"]), "pairs"],
        [f"AUC, {good} against the rest", _number(ranking["auc_good_vs_rest"]), "pairs"],
    ]
    for ndcg in ranking["ndcg"].values():
        gains = " ".join(f"{grade}={ndcg['gains'][str(grade)]:g}" for grade in GRADES[::-1])
        rows.append([f"nDCG@{ndcg['k']}, gains {gains}", _number(ndcg["value"]), f"{ndcg['queries']:,} queries"])
    return _table([f"ranking by {ranking['scored_by']}", "value", "over"], rows)
