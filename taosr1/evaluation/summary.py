"""The report on one set of predictions: a JSON-ready dict, and the same as a text of tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from taosr1.data.queries import query_keys
from taosr1.evaluation import metrics, ranking
from taosr1.runtime.messages import aligned
from taosr1.task.grades import GOOD_TIER, GRADES, GRADES_OF_TIER, TIERS, grade_name
from taosr1.task.judgement import Judgement
from taosr1.task.probabilities import checked_probs

NDCG_K = 10
KIND_METRICS = ("macro_f1", "accuracy", "tier_accuracy", "parse_failure_rate")
TIER_METRICS = ("tier_accuracy", "tier_macro_f1", "good_f1")


@dataclass(frozen=True)
class Prediction:
    """A judge's prediction for one pair. Every field may be None: replies may not parse, baselines lack most fields.

    grade: 1-4, or None where the reply could not be parsed (counted as wrong). probs: P(grade 1..4). label_mass:
    full-vocabulary probability of the four labels. decision: grade on the Decision line of the chain of thought.
    implied: grade that its steps imply under the rules. tier: Good, Mid or Bad by a tiering rule such as CumPT (argmax
    tiers follow from `probs`). reply: the text that grade or reasons were read from.
    """

    grade: int | None = None
    probs: tuple[float, float, float, float] | None = None
    label_mass: float | None = None
    decision: int | None = None
    implied: int | None = None
    tier: str | None = None
    reply: str | None = None


def evaluate_predictions(
    judgements: Sequence[Judgement],
    predictions: Sequence[Prediction],
    *,
    bootstrap: int = 1000,
    seed: int = 0,
    beta: float | None = None,
) -> dict:
    """Measures predictions against gold grades; the result is JSON-serialisable, undefined numbers are None.

    bootstrap: number of resamples over queries (0: no intervals; nor is there one over a single query). A query is a
        `query_id`, or the query's text where that is empty.
    beta: the CumPT parameter behind `Prediction.tier`, recorded as given: the caller makes the tiers.
    Returns: `rows`, `queries`, `bootstrap`, `metrics` {name: {value, low, high}}, `grades`, `confusion` (4 x 5),
        `by_kind`, `ranking`; `calibration`, `hallucination` and `tiering` are None where predictions lack their fields.
    Raises: ValueError for no rows, lists of different length, a judgement without a grade, or a bad prediction, naming
        the row.
    """
    gold, grades, queries = _checked(judgements, predictions)
    draw = {"samples": bootstrap, "seed": seed}
    counts = metrics.confusion_matrix(gold, grades)
    f1_of_grades = metrics.bootstrap_intervals(list(metrics.GRADE_F1), gold, grades, queries, **draw)
    report = {
        "rows": len(gold),
        "queries": len(set(queries)),
        "bootstrap": {**draw, "level": metrics.LEVEL, "over": "queries"},
        "metrics": metrics.bootstrap_intervals(list(metrics.COUNT_METRICS), gold, grades, queries, **draw),
        "grades": _per_grade(counts, f1_of_grades),
        "confusion": counts.tolist(),
        "by_kind": _by_kind(judgements, gold, grades, queries, draw),
        "ranking": _ranking(gold, predictions, queries),
        "calibration": _calibration(gold, predictions),
        "hallucination": _hallucination(gold, predictions),
        "tiering": _tiering(gold, predictions, queries, beta, draw),
    }
    return jsonable(report)


def _checked(judgements: Sequence[Judgement], predictions: Sequence[Prediction]) -> tuple[list[int], list, list[str]]:
    """Gold grades, predicted grades and query names."""
    if len(judgements) != len(predictions):
        raise ValueError(f"{len(judgements)} judgements, {len(predictions)} predictions: they must be parallel")
    for row, (judgement, prediction) in enumerate(zip(judgements, predictions)):
        if judgement.grade is None:
            raise ValueError(f"judgements[{row}] has no grade: evaluate graded rows only (query {judgement.query!r})")
        if prediction.tier not in (None, *TIERS):
            raise ValueError(f"predictions[{row}].tier is {prediction.tier!r}, expected one of {', '.join(TIERS)}")
    queries = query_keys(judgements)
    return [j.grade for j in judgements], [p.grade for p in predictions], queries


def jsonable(value):
    """NaN as None, numpy's numbers as Python's, intervals as objects."""
    if isinstance(value, dict):
        return {str(key): jsonable(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(inner) for inner in value]
    if isinstance(value, metrics.Interval):
        return jsonable(vars(value))
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and math.isnan(value) else value


# ---- sections of the report ------------------------------------------------------------------------------------------


def _per_grade(counts: np.ndarray, f1: dict[str, metrics.Interval]) -> dict:
    hits, gold, predicted = np.diagonal(counts), counts.sum(1), counts.sum(0)[: len(GRADES)]
    shares = {"precision": metrics.ratio(hits, predicted), "recall": metrics.ratio(hits, gold)}
    columns = {**shares, "gold": gold, "predicted": predicted}
    of_grade = {grade: {name: column[grade - 1] for name, column in columns.items()} for grade in GRADES}
    for grade, found in zip(GRADES, f1.values()):
        of_grade[grade] = {"f1": found.value, "f1_low": found.low, "f1_high": found.high, **of_grade[grade]}
    return of_grade


def _by_kind(
    judgements: Sequence[Judgement], gold: Sequence, grades: Sequence, queries: Sequence, draw: dict
) -> dict[str, dict]:
    rows_of: dict[str, list[tuple]] = {}
    for judgement, *row in zip(judgements, gold, grades, queries):
        rows_of.setdefault(judgement.query_kind or "(none)", []).append(row)
    table = {}
    for kind, rows in sorted(rows_of.items()):
        columns = list(zip(*rows))
        scores = metrics.bootstrap_intervals(KIND_METRICS, *columns, **draw)
        table[kind] = {"rows": len(rows), "queries": len(set(columns[2])), **scores}
    return table


def _ranking(gold: Sequence, predictions: Sequence[Prediction], queries: Sequence) -> dict:
    """AUC and nDCG of the order by `scores_to_rank_by`."""
    scored_by, scores = scores_to_rank_by(predictions)
    table = {
        "scored_by": scored_by,
        "auc_good_vs_bad": ranking.good_auc(scores, gold),
        "auc_good_vs_rest": ranking.good_auc(scores, gold, against=[tier for tier in TIERS if tier != GOOD_TIER]),
        "ndcg": {},
    }
    for name, gains in (("esci", ranking.ESCI_GAINS), ("esci_swapped", ranking.ESCI_GAINS_SWAPPED)):
        per_query = list(ranking.ndcg_by_query(scores, gold, queries, NDCG_K, gains).values())
        value = float(np.mean(per_query)) if per_query else math.nan
        table["ndcg"][name] = {"k": NDCG_K, "gains": gains, "value": value, "queries": len(per_query)}
    return table


def scores_to_rank_by(predictions: Sequence[Prediction]) -> tuple[str, np.ndarray]:
    """("expected grade", (N,)) where every row has probabilities, else ("grade", (N,)), an unparsable reply as 0."""
    if all(prediction.probs is not None for prediction in predictions):
        return "expected grade", ranking.expected_grade([prediction.probs for prediction in predictions])
    grades = metrics.grade_array([prediction.grade for prediction in predictions], "predicted", unparsable=True)
    return "grade", grades.astype(np.float64)


def _calibration(gold: Sequence, predictions: Sequence[Prediction]) -> dict | None:
    rows = [(grade, p.probs, p.label_mass) for grade, p in zip(gold, predictions) if p.probs is not None]
    if not rows:
        return None
    known, probs, masses = zip(*rows)
    masses = [mass for mass in masses if mass is not None]
    return {
        "rows": len(rows),
        "ece": ranking.expected_calibration_error(probs, known),
        "brier": ranking.brier_score(probs, known),
        "label_mass_mean": float(np.mean(masses)) if masses else math.nan,
        "label_mass_min": min(masses, default=math.nan),
        "bins": ranking.reliability_bins(probs, known),
    }


def _hallucination(gold: Sequence, predictions: Sequence[Prediction]) -> dict | None:
    labels = [prediction.grade for prediction in predictions]
    stated = {"decision": [p.decision for p in predictions], "implied": [p.implied for p in predictions]}
    rates = {name: metrics.hallucination_rates(gold, labels, grades) for name, grades in stated.items() if any(grades)}
    return rates or None


def _tiering(
    gold: Sequence, predictions: Sequence[Prediction], queries: Sequence, beta: float | None, draw: dict
) -> dict | None:
    """Argmax tiers against the caller's, on the rows that have both."""
    both = [(grade, query, p) for grade, query, p in zip(gold, queries, predictions) if p.probs is not None and p.tier]
    if not both:
        return None
    known, names, rows = zip(*both)
    argmax = checked_probs([row.probs for row in rows]).argmax(-1) + 1
    given = [GRADES_OF_TIER[row.tier][0] for row in rows]  # any grade of the tier: tiers are counted from grades
    table = {"beta": beta, "rows": len(rows), "difference": {}}
    for side, grades in (("argmax", argmax), ("cumpt", given)):
        counts = metrics.tier_counts(metrics.confusion_matrix(known, grades))
        table[side] = metrics.bootstrap_intervals(TIER_METRICS, known, grades, names, **draw)
        table[f"confusion_{side}"] = counts[:, : len(TIERS)].astype(int).tolist()
    for name in TIER_METRICS:
        table["difference"][name] = metrics.bootstrap_difference(name, known, argmax, given, names, **draw)
    return table


# ---- as text ---------------------------------------------------------------------------------------------------------

TITLES = {
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
_REASONING = {"decision": "its Decision line", "implied": "the grade its steps imply"}


def render_report(report: dict) -> str:
    """The result of `evaluate_predictions` as aligned tables; shares and F1 times 100, "-" where undefined."""
    draw = report["bootstrap"]
    head = f"{report['rows']:,} pairs, {report['queries']:,} queries. F1 and shares x 100."
    if draw["samples"]:
        head += f" [95 % intervals: {draw['samples']:,} bootstrap resamples of queries, seed {draw['seed']}]"
        if report["queries"] == 1 or any(kind["queries"] == 1 for kind in report["by_kind"].values()):
            head += " A single query has no interval."
    overall = [[TITLES[name], interval_text(name, value)] for name, value in report["metrics"].items()]
    sections = [head, aligned(["metric", "value"], overall), _grades_table(report), _kinds_table(report["by_kind"])]
    tables = {"calibration": _calibration_tables, "tiering": _tiering_table, "hallucination": _hallucination_table}
    sections += [table(report[name]) for name, table in tables.items() if report[name] is not None]
    return "\n\n".join([*sections, _ranking_table(report["ranking"])]) + "\n"


def _number(value: float | None, scale: float = 100.0, digits: int = 2) -> str:
    return "-" if value is None else f"{value * scale:.{digits}f}"


def _numbers(values: dict, *names: str) -> list[str]:
    return [_number(values[name]) for name in names]


def interval_text(name: str, interval: dict) -> str:
    scale, digits = (1.0, 3) if name in _NO_SHARES else (100.0, 2)
    value, low, high = (_number(interval[key], scale, digits) for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]" if low != "-" else value


def _grades_table(report: dict) -> str:
    """Scores of each grade beside its row of the confusion matrix, best grade first."""
    best_first = GRADES[::-1]
    rows = []
    for grade in best_first:
        scores, counts = report["grades"][str(grade)], report["confusion"][grade - 1]
        confused = [f"{count:,}" for count in (*(counts[g - 1] for g in best_first), counts[-1])]
        shown = _numbers(scores, "f1", "precision", "recall")
        rows.append([grade_name(grade), *shown, f"{scores['gold']:,}", "|", *confused])
    predicted = [*(f"as {grade}" for grade in best_first), "unparsable"]
    return aligned(["gold grade", "F1", "precision", "recall", "pairs", "|", *predicted], rows)


def _kinds_table(by_kind: dict) -> str:
    rows = [
        [kind, f"{scores['rows']:,}", f"{scores['queries']:,}"]
        + [interval_text(name, scores[name]) for name in KIND_METRICS]
        for kind, scores in by_kind.items()
    ]
    return aligned(["query kind", "pairs", "queries", *(TITLES[name] for name in KIND_METRICS)], rows)


def _calibration_tables(calibration: dict) -> str:
    shown = [_number(calibration[name], 1.0, 4) for name in ("brier", "label_mass_mean", "label_mass_min")]
    rows = [[f"{calibration['rows']:,} pairs", _number(calibration["ece"]), *shown]]
    bins = [
        [f"{b['low']:.2f} - {b['high']:.2f}", f"{b['rows']:,}", *_numbers(b, "confidence", "accuracy")]
        for b in calibration["bins"]
    ]
    table = aligned(["label probabilities", "ECE", "Brier", "mean label mass", "lowest label mass"], rows)
    return table + "\n\n" + aligned(["confidence", "pairs", "mean confidence", "accuracy"], bins)


def _tiering_table(tiering: dict) -> str:
    beta = "" if tiering["beta"] is None else f" (beta {tiering['beta']:.4g})"
    titles = {"argmax": "argmax", "cumpt": f"CumPT{beta}", "difference": "CumPT - argmax, paired"}
    rows = [
        [title, *(interval_text(name, tiering[key][name]) for name in TIER_METRICS)] for key, title in titles.items()
    ]
    return aligned(["tiers", *(TITLES[name] for name in TIER_METRICS)], rows)


def _hallucination_table(hallucination: dict) -> str:
    rows = [
        [_REASONING[name], f"{rates['rows']:,}", *_numbers(rates, "disagrees", "right_but_label_wrong")]
        for name, rates in hallucination.items()
    ]
    return aligned(["reasoning against label", "pairs", "disagrees", "reasoning right, label wrong"], rows)


def _ranking_table(ranking: dict) -> str:
    good, worst = GOOD_TIER, TIERS[-1]
    rows = [
        [f"AUC, {good} against {worst}", _number(ranking["auc_good_vs_bad"]), "pairs"],
        [f"AUC, {good} against the rest", _number(ranking["auc_good_vs_rest"]), "pairs"],
    ]
    for ndcg in ranking["ndcg"].values():
        gains = " ".join(f"{grade}={ndcg['gains'][str(grade)]:g}" for grade in GRADES[::-1])
        rows.append([f"nDCG@{ndcg['k']}, gains {gains}", _number(ndcg["value"]), f"{ndcg['queries']:,} queries"])
    return aligned([f"ranking by {ranking['scored_by']}", "value", "over"], rows)
