"""Everything worth knowing about one set of predictions: as a JSON-ready dict, and as a table a person reads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from taosr1.data.judgements import Judgement
from taosr1.evaluation.metrics import (
    COUNT_METRICS,
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
from taosr1.task.grades import GRADES, TIERS, grade_name
from taosr1.task.probabilities import checked_probs

NDCG_K = 10
# A grade of each tier, so that tiers can be counted by the functions that count grades.
_GRADE_OF_TIER = {"Good": 4, "Mid": 2, "Bad": 1}


@dataclass(frozen=True)
class Prediction:
    """What a judge said about one pair. Everything may be None: a reply may not parse, a rival may have no `probs`.

    grade: 1-4, or None where the reply could not be parsed (counted as wrong). probs: P(grade 1..4). label_mass:
    full-vocabulary probability of the four labels. decision: grade named by the chain of thought's Decision line.
    implied: grade that its steps imply under the rules. tier: Good, Mid or Bad from a tiering rule such as CumPT
    (argmax tiers follow from `probs`).
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

    `bootstrap` is the number of resamples over queries (0: no intervals). A query is a `query_id`, or the query's text
    where that is empty. `beta` is the CumPT knob behind `Prediction.tier`, recorded as given; tiers are made by the
    caller (`taosr1.serving.tiering`), since evaluation knows no deployment.

    Returns: `rows`, `queries`, `bootstrap`, `metrics` {name: {value, low, high}}, `grades`, `confusion` (4 x 5),
    `by_kind`, `ranking`, and where predictions have what it takes `calibration`, `hallucination` and `tiering`, else
    None.
    Raises: ValueError for no rows, lists of different length, a judgement without a grade, or a bad prediction, naming
    the row.
    """
    gold, grades, queries = _checked(judgements, predictions)
    draw = {"samples": bootstrap, "seed": seed}
    counts = confusion_matrix(gold, grades)
    report = {
        "rows": len(gold),
        "queries": len(set(queries)),
        "bootstrap": {**draw, "level": 0.95, "over": "queries"},
        "metrics": _intervals(gold, grades, queries, tuple(COUNT_METRICS), draw),
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
    if len(judgements) != len(predictions):
        raise ValueError(f"{len(judgements)} judgements, {len(predictions)} predictions: they must be parallel")
    if not judgements:
        raise ValueError("no rows to evaluate: judgements is empty")
    for row, judgement in enumerate(judgements):
        if judgement.grade is None:
            raise ValueError(f"judgements[{row}] has no grade: evaluate graded rows only (query {judgement.query!r})")
    for row, prediction in enumerate(predictions):
        if prediction.tier is not None and prediction.tier not in TIERS:
            raise ValueError(f"predictions[{row}].tier is {prediction.tier!r}, expected one of {', '.join(TIERS)}")
    # A query's text and another's id must not fall together, hence the prefixes.
    queries = [f"id {j.query_id}" if j.query_id else f"text {j.query}" for j in judgements]
    return [j.grade for j in judgements], [p.grade for p in predictions], queries


def _jsonable(value):
    """NaN is no JSON, and numpy's scalars are no Python numbers."""
    if isinstance(value, dict):
        return {str(key): _jsonable(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(part) for part in value]
    if isinstance(value, Interval):
        return _jsonable({"value": value.value, "low": value.low, "high": value.high})
    if isinstance(value, (float, np.floating)):
        return None if math.isnan(value) else float(value)
    return int(value) if isinstance(value, np.integer) else value


# ---- the parts -------------------------------------------------------------------------------------------------------


def _intervals(
    gold: Sequence, grades: Sequence, queries: Sequence, names: Sequence[str], draw: dict
) -> dict[str, Interval]:
    """Every named metric with its interval, all from one set of resamples."""
    per_query = query_counts(gold, grades, queries)
    total = per_query.sum(0)
    resamples = resampled_counts(per_query, **draw)
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
    kinds: dict[str, list[int]] = {}
    for row, judgement in enumerate(judgements):
        kinds.setdefault(judgement.query_kind or "(none)", []).append(row)
    table = {}
    for kind, rows in sorted(kinds.items()):
        part = [[values[row] for row in rows] for values in (gold, grades, queries)]
        names = ("macro_f1", "accuracy", "tier_accuracy", "parse_failure_rate")
        table[kind] = {"rows": len(rows), "queries": len(set(part[2])), **_intervals(*part, names, draw)}
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
        "auc_good_vs_rest": good_auc(scores, gold, against=("Mid", "Bad")),
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
        "label_mass_min": float(np.min(masses)) if masses else math.nan,
        "bins": reliability_bins(probs, known),
    }


def _hallucination(gold: Sequence, predictions: Sequence[Prediction]) -> dict | None:
    labels = [prediction.grade for prediction in predictions]
    stated = {"decision": [p.decision for p in predictions], "implied": [p.implied for p in predictions]}
    parts = {name: hallucination_rates(gold, labels, grades) for name, grades in stated.items() if any(grades)}
    return parts or None


def _tiering(
    gold: Sequence, predictions: Sequence[Prediction], queries: Sequence, beta: float | None, draw: dict
) -> dict | None:
    """Argmax tiers against the caller's, on the rows that have both."""
    rows = [row for row, p in enumerate(predictions) if p.probs is not None and p.tier is not None]
    if not rows:
        return None
    known, of = [gold[row] for row in rows], [queries[row] for row in rows]
    argmax = checked_probs([predictions[row].probs for row in rows]).argmax(-1) + 1
    given = [_GRADE_OF_TIER[predictions[row].tier] for row in rows]
    names = ("tier_accuracy", "tier_macro_f1", "good_f1")
    return {
        "beta": beta,
        "rows": len(rows),
        "argmax": _intervals(known, argmax, of, names, draw),
        "cumpt": _intervals(known, given, of, names, draw),
        "difference": {name: bootstrap_difference(name, known, argmax, given, of, **draw) for name in names},
        "confusion_argmax": tier_counts(confusion_matrix(known, argmax))[:, : len(TIERS)].astype(int).tolist(),
        "confusion_cumpt": tier_counts(confusion_matrix(known, given))[:, : len(TIERS)].astype(int).tolist(),
    }


# ---- for people ------------------------------------------------------------------------------------------------------

_TITLES = {
    "macro_f1": "macro-F1",
    "accuracy": "accuracy",
    "good_f1": "Good F1",
    "tier_accuracy": "tier accuracy",
    "tier_macro_f1": "tier macro-F1",
    "quadratic_kappa": "quadratic kappa",
    "signed_bias": "signed bias (grades)",
    "parse_failure_rate": "unparsable",
}
_PLAIN = ("quadratic_kappa", "signed_bias")  # not shares of 100


def render_report(report: dict) -> str:
    """The result of `evaluate_predictions` as text: aligned tables, shares and F1 times 100, "-" where undefined."""
    resamples = report["bootstrap"]
    head = f"{report['rows']:,} pairs, {report['queries']:,} queries. F1 and shares x 100."
    if resamples["samples"]:
        head += f" [95 % intervals: {resamples['samples']:,} bootstrap resamples of queries, seed {resamples['seed']}]"
    metrics = [[_TITLES[name], *_shown(name, value)] for name, value in report["metrics"].items()]
    parts = [head, _table(["metric", "value", "interval"], metrics), _render_grades(report), _render_kinds(report)]
    for section in (_render_calibration, _render_tiering, _render_hallucination, _render_ranking):
        parts.append(section(report))
    return "\n\n".join(part for part in parts if part) + "\n"


def _number(value: float | None, scale: float = 100.0, digits: int = 2) -> str:
    return "-" if value is None else f"{value * scale:.{digits}f}"


def _shown(name: str, interval: dict) -> list[str]:
    scale, digits = (1.0, 3) if name in _PLAIN else (100.0, 2)
    value, low, high = (_number(interval[key], scale, digits) for key in ("value", "low", "high"))
    return [value, f"[{low}, {high}]" if low != "-" else ""]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """First column flush left, the others flush right, columns no wider than they must be."""
    lines = [[str(cell) for cell in line] for line in (header, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    shown = []
    for first, *rest in lines:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:]))]
        shown.append("  ".join(cells).rstrip())
    return "\n".join(shown)


def _render_grades(report: dict) -> str:
    """Per-grade scores beside the confusion matrix, best grade first."""
    best_first = GRADES[::-1]
    header = ["gold grade", "F1", "precision", "recall", "pairs", "|", *(f"as {g}" for g in best_first), "unparsable"]
    rows = []
    for grade in best_first:
        scores, counts = report["grades"][str(grade)], report["confusion"][grade - 1]
        shown = [_number(scores[key]) for key in ("f1", "precision", "recall")]
        confused = [f"{counts[g - 1]:,}" for g in best_first] + [f"{counts[-1]:,}"]
        rows.append([grade_name(grade), *shown, f"{scores['gold']:,}", "|", *confused])
    return _table(header, rows)


def _render_kinds(report: dict) -> str:
    header = ["query kind", "pairs", "queries", "macro-F1", "interval", "accuracy", "tier accuracy", "unparsable"]
    rows = [
        [kind, f"{part['rows']:,}", f"{part['queries']:,}", *_shown("macro_f1", part["macro_f1"])]
        + [_number(part[name]["value"]) for name in ("accuracy", "tier_accuracy", "parse_failure_rate")]
        for kind, part in report["by_kind"].items()
    ]
    return _table(header, rows)


def _render_calibration(report: dict) -> str:
    part = report["calibration"]
    if part is None:
        return ""
    header = ["label probabilities", "ECE", "Brier", "mean label mass", "lowest label mass"]
    shown = [_number(part["ece"]), _number(part["brier"], 1.0, 4)]
    masses = [_number(part[name], 1.0, 4) for name in ("label_mass_mean", "label_mass_min")]
    table = _table(header, [[f"{part['rows']:,} pairs", *shown, *masses]])
    bins = [
        [f"{bin['low']:.2f} - {bin['high']:.2f}", f"{bin['rows']:,}", _number(bin["confidence"]), _number(bin["accuracy"])]
        for bin in part["bins"]
    ]
    return table + "\n\n" + _table(["sure of its grade", "pairs", "mean sureness", "of them right"], bins)


def _render_tiering(report: dict) -> str:
    part = report["tiering"]
    if part is None:
        return ""
    names = ("tier_accuracy", "tier_macro_f1", "good_f1")
    header = ["tiers"] + [cell for name in names for cell in (_TITLES[name], "interval")]
    beta = "" if part["beta"] is None else f" (beta {part['beta']:.4g})"
    titles = {"argmax": "argmax", "cumpt": f"CumPT{beta}", "difference": "CumPT - argmax, paired"}
    rows = [[title, *(c for name in names for c in _shown(name, part[key][name]))] for key, title in titles.items()]
    return _table(header, rows)


def _render_hallucination(report: dict) -> str:
    part = report["hallucination"]
    if part is None:
        return ""
    titles = {"decision": "its Decision line", "implied": "the grade its steps imply"}
    header = ["reasoning against label", "pairs", "disagrees", "reasoning right, label wrong"]
    rows = [
        [titles[name], f"{rates['rows']:,}", _number(rates["disagrees"]), _number(rates["right_but_label_wrong"])]
        for name, rates in part.items()
    ]
    return _table(header, rows)


def _render_ranking(report: dict) -> str:
    part = report["ranking"]
    header = [f"ranking by {part['scored_by']}", "value", "over"]
    rows = [
        ["AUC, Good against Bad", _number(part["auc_good_vs_bad"]), "pairs"],
        ["AUC, Good against the rest", _number(part["auc_good_vs_rest"]), "pairs"],
    ]
    for ndcg in part["ndcg"].values():
        gains = " ".join(f"{grade}={ndcg['gains'][str(grade)]:g}" for grade in GRADES[::-1])
        rows.append([f"nDCG@{ndcg['k']}, gains {gains}", _number(ndcg["value"]), f"{ndcg['queries']:,} queries"])
    return _table(header, rows)
