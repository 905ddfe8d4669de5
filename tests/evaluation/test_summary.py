"""The report: complete, JSON-ready, readable, and equal to the metrics it is made of."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from taosr1.evaluation.metrics import accuracy_of, bootstrap_interval, confusion_matrix, macro_f1
from taosr1.evaluation.summary import Prediction, evaluate_predictions, render_report
from taosr1.serving.tiering import cumulative_tier
from taosr1.task.judgement import Judgement

KINDS = ("plain", "negation", "question")


def judged(rows: int = 240, seed: int = 0) -> tuple[list[Judgement], list[Prediction]]:
    """Rows with everything a report can show; every twentieth reply is unparsable."""
    rng = np.random.default_rng(seed)
    gold = rng.integers(1, 5, rows)
    likely = np.where(rng.random(rows) < 0.7, gold, gold % 4 + 1)
    probs = 0.6 * np.eye(4)[likely - 1] + 0.4 * rng.dirichlet(np.ones(4), rows)
    judgements, predictions = [], []
    for row in range(rows):
        query, grade = row // 4, int(gold[row])
        kind = KINDS[query % 3]
        judgements.append(Judgement(f"query {query}", "title", grade=grade, query_kind=kind, query_id=f"q{query}"))
        grade = None if row % 20 == 0 else int(probs[row].argmax()) + 1
        tier = cumulative_tier(probs[row : row + 1], 0.5)[0]
        predictions.append(Prediction(grade, tuple(probs[row].tolist()), 0.9, grade, int(gold[row]), tier))
    return judgements, predictions


def test_report_is_json_and_survives_a_round_trip_to_text():
    report = evaluate_predictions(*judged(), bootstrap=50, beta=0.5)
    again = json.loads(json.dumps(report, allow_nan=False))
    assert again == report
    assert render_report(again) == render_report(report)


def test_report_numbers_are_the_metrics():
    judgements, predictions = judged()
    gold, grades = [j.grade for j in judgements], [p.grade for p in predictions]
    report = evaluate_predictions(judgements, predictions, bootstrap=100, seed=5)
    assert (report["rows"], report["queries"]) == (240, 60)
    alone = bootstrap_interval("macro_f1", gold, grades, [j.query_id for j in judgements], samples=100, seed=5)
    assert report["metrics"]["macro_f1"]["value"] == alone.value == macro_f1(gold, grades)
    assert report["metrics"]["accuracy"]["value"] == accuracy_of(confusion_matrix(gold, grades))
    assert report["metrics"]["macro_f1"]["low"] == pytest.approx(alone.low, abs=0.02)
    assert report["metrics"]["parse_failure_rate"]["value"] == pytest.approx(1 / 20)
    assert sum(map(sum, report["confusion"])) == 240
    assert [row[4] for row in report["confusion"]] == [gold[::20].count(grade) for grade in (1, 2, 3, 4)]


def test_report_by_kind_covers_every_row_once():
    judgements, predictions = judged()
    report = evaluate_predictions(judgements, predictions, bootstrap=20)
    assert list(report["by_kind"]) == sorted(KINDS)
    assert sum(kind["rows"] for kind in report["by_kind"].values()) == 240
    plain = [row for row, judgement in enumerate(judgements) if judgement.query_kind == "plain"]
    alone = evaluate_predictions([judgements[r] for r in plain], [predictions[r] for r in plain], bootstrap=20)
    assert report["by_kind"]["plain"]["macro_f1"] == alone["metrics"]["macro_f1"]


def test_report_compares_the_callers_tiers_with_argmax():
    judgements, predictions = judged()
    report = evaluate_predictions(judgements, predictions, bootstrap=50, beta=0.5)["tiering"]
    assert report["beta"] == 0.5 and report["rows"] == 240
    for name, difference in report["difference"].items():
        assert difference["value"] == pytest.approx(report["cumpt"][name]["value"] - report["argmax"][name]["value"])
    assert sum(map(sum, report["confusion_cumpt"])) == sum(map(sum, report["confusion_argmax"])) == 240


def test_report_hallucination_counts_decision_and_implied_grade_apart():
    judgements = [Judgement("q", "t", grade=4), Judgement("q", "t", grade=2)]
    predictions = [Prediction(2, decision=2, implied=4), Prediction(2, decision=3, implied=2)]
    report = evaluate_predictions(judgements, predictions, bootstrap=0)["hallucination"]
    assert report["decision"] == {"disagrees": 0.5, "right_but_label_wrong": 0.0, "rows": 2}
    assert report["implied"] == {"disagrees": 0.5, "right_but_label_wrong": 0.5, "rows": 2}


def test_grades_alone_make_a_report_without_the_sections_that_need_more():
    judgements, predictions = judged(40)
    bare = [Prediction(prediction.grade) for prediction in predictions]
    report = evaluate_predictions(judgements, bare, bootstrap=20)
    assert report["calibration"] is report["tiering"] is report["hallucination"] is None
    assert report["ranking"]["scored_by"] == "grade"
    text = render_report(report)
    assert "ECE" not in text and "CumPT" not in text and "macro-F1" in text


def test_rendered_tables_are_aligned_and_show_every_section():
    text = render_report(evaluate_predictions(*judged(), bootstrap=50, seed=7, beta=0.5))
    for words in (
        "240 pairs, 60 queries", "seed 7", "macro-F1", "4-Excellent", "1-Irrelevant", "unparsable", "negation", "ECE",
        "Brier", "CumPT (beta 0.5)", "paired", "its Decision line", "AUC", "nDCG@10, gains 4=1 3=0.1 2=0.01 1=0",
        "3=0.01 2=0.1",
    ):  # fmt: skip
        assert words in text, words
    for table in text.split("\n\n")[1:4]:
        assert len({len(line) for line in table.splitlines()}) == 1, table
    assert "nan" not in text and "None" not in text


def test_undefined_numbers_are_null_in_json_and_dashes_in_text():
    report = evaluate_predictions([Judgement("q", "t", grade=4)], [Prediction(4)], bootstrap=0)
    assert report["metrics"]["quadratic_kappa"] == {"value": None, "low": None, "high": None}
    assert report["grades"]["1"]["f1"] is None
    assert report["by_kind"]["(none)"]["rows"] == 1
    assert "-" in render_report(report) and "[" not in render_report(report)


def test_rows_without_query_ids_are_clustered_by_query_text():
    judgements = [Judgement("a", "t", grade=4), Judgement("a", "u", grade=2), Judgement("b", "t", grade=1)]
    assert evaluate_predictions(judgements, [Prediction(4)] * 3, bootstrap=5)["queries"] == 2


def test_same_seed_gives_the_same_report():
    assert evaluate_predictions(*judged(), bootstrap=30) == evaluate_predictions(*judged(), bootstrap=30)


def test_wrong_input_is_named():
    judgements, predictions = judged(8)
    with pytest.raises(ValueError, match="8 judgements, 7 predictions"):
        evaluate_predictions(judgements, predictions[:-1])
    with pytest.raises(ValueError, match="no rows"):
        evaluate_predictions([], [])
    with pytest.raises(ValueError, match=r"judgements\[2\] has no grade"):
        ungraded = [*judgements[:2], dataclasses.replace(judgements[2], grade=None), *judgements[3:]]
        evaluate_predictions(ungraded, predictions)
    with pytest.raises(ValueError, match=r"predictions\[0\].tier is 'good'"):
        evaluate_predictions(judgements, [dataclasses.replace(predictions[0], tier="good"), *predictions[1:]])


def test_the_text_shows_confidence_beside_accuracy():
    """Two rows at 0.9, one of them right; one row at 0.4, right; a prediction without probabilities is left out."""
    rows = [Judgement(f"q{n}", "t", grade=4) for n in range(4)]
    high, low = (0.03, 0.03, 0.04, 0.9), (0.2, 0.2, 0.2, 0.4)
    predictions = [Prediction(4, high), Prediction(1, high[::-1]), Prediction(4, low), Prediction(4)]
    text = render_report(evaluate_predictions(rows, predictions))
    table = [line.split() for line in text[text.index("confidence ") :].splitlines()[1:3]]
    assert table == [["0.33", "-", "0.40", "1", "40.00", "100.00"], ["0.87", "-", "0.93", "2", "90.00", "50.00"]]
