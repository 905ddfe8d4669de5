"""Bootstrap intervals where a resample loses a grade, a tier, or every query but one; by hand and against scikit-learn.

By hand: two queries give the resamples AA, AB, BA and BB, so every interval of many resamples reaches from the lowest
to the highest of these values. In all cases below query B is the only one with the grade that is missed.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from taosr1.evaluation.metrics import (
    COUNT_METRICS,
    bootstrap_difference,
    bootstrap_interval,
    query_counts,
)
from taosr1.evaluation.summary import Prediction, evaluate_predictions, render_report
from taosr1.task.judgement import Judgement

QUERIES = ["a", "a", "b"]
# metric, gold, predicted, its value in AA, in AB (the full sample) and in BB; the wrong twin's value in AA, which
# averages over the classes that are left.
BY_HAND = [
    # AA: F1(4) = F1(3) = 1, F1(1) = F1(2) = 0 of four classes. BB: all four 0.
    ("macro_f1", [4, 3, 1], [4, 3, 2], 0.5, 0.5, 0.0, 1.0),
    # Three classes, since nobody says 2: the missed reply cannot be read. AA: 2/3.
    ("macro_f1", [4, 3, 1], [4, 3, None], 2 / 3, 2 / 3, 0.0, 1.0),
    # Tiers Good and Bad (grades 4, 3 and 1), Mid (2) predicted. AA: F1(Good) = 1 of three.
    ("tier_macro_f1", [4, 3, 1], [4, 4, 2], 1 / 3, 1 / 3, 0.0, 1.0),
    # Good in query a alone. BB has no Good pair and none predicted: 0, not undefined.
    ("good_f1", [4, 3, 1], [4, 3, 1], 1.0, 1.0, 0.0, 1.0),
]


def in_aa(metric: str, gold, predicted) -> float:
    counts = query_counts(gold, predicted, QUERIES)
    return float(COUNT_METRICS[metric](2 * counts[0]))  # without the full sample: the wrong twin


@pytest.mark.parametrize(("metric", "gold", "predicted", "aa", "ab", "bb", "twin"), BY_HAND)
def test_a_resample_that_lost_a_class_counts_it_as_zero(metric, gold, predicted, aa, ab, bb, twin):
    found = bootstrap_interval(metric, gold, predicted, QUERIES, samples=400)
    assert found.value == pytest.approx(ab)
    assert (found.low, found.high) == pytest.approx((min(aa, ab, bb), max(aa, ab, bb)))
    assert in_aa(metric, gold, predicted) == pytest.approx(twin)


@pytest.mark.parametrize(
    ("metric", "before", "after", "value", "low", "high"),
    [
        # AA: both sides judge grades 4 and 3 rightly; classes 1-4 on both sides, as `before` says 2. A twin with the
        # classes of each side and resample would find 1 - 1 = 0 in AA and 1 - 0.5 in AB.
        ("macro_f1", [4, 3, 2], [4, 3, 1], 0.25, 0.0, 0.25),
        ("tier_macro_f1", [4, 3, 2], [4, 3, 1], 1 / 3, 0.0, 1 / 3),
        ("macro_f1", [4, 3, 1], [4, 3, 1], 0.0, 0.0, 0.0),
    ],
)
def test_both_sides_of_a_difference_are_averaged_over_the_same_classes(metric, before, after, value, low, high):
    found = bootstrap_difference(metric, [4, 3, 1], before, after, QUERIES, samples=400)
    assert (found.value, found.low, found.high) == pytest.approx((value, low, high))


def rare(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """12 queries of 4 rows; grade 1 and 2 are rare, a tenth of the replies cannot be read."""
    rng = np.random.default_rng(seed)
    gold = rng.choice([1, 2, 3, 4], 48, p=[0.03, 0.05, 0.32, 0.6])
    predicted = np.where(rng.random(48) < 0.6, gold, rng.choice([2, 3, 4], 48))
    return gold, np.where(rng.random(48) < 0.1, 0, predicted), np.repeat(np.arange(12), 4).astype(str)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("metric", ["macro_f1", "tier_macro_f1", "good_f1"])
def test_intervals_equal_those_of_scikit_learn_with_the_labels_of_the_full_sample(sklearn_metrics, metric, seed):
    gold, predicted, queries = rare(seed)
    tier = np.array([9, 0, 1, 2, 2]) if metric != "macro_f1" else np.array([9, 1, 2, 3, 4])  # 9: unparsable
    truth, said = tier[gold], tier[predicted]
    labels = sorted({*truth.tolist(), *said.tolist()} - {9}) if metric != "good_f1" else [2]
    names, values = np.unique(queries), []
    for draw in np.random.default_rng(seed).integers(len(names), size=(200, len(names))):
        rows = np.concatenate([np.flatnonzero(queries == names[index]) for index in draw])
        score = sklearn_metrics.f1_score(truth[rows], said[rows], labels=labels, average="macro", zero_division=0)
        values.append(score)
    found = bootstrap_interval(metric, gold, predicted, queries, samples=200, seed=seed)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])))


def test_a_metric_without_a_value_in_many_resamples_has_no_interval():
    """Kappa needs two grades: AA and BB, half of all resamples, have one each. With 40 queries that is rare."""
    few = bootstrap_interval("quadratic_kappa", [4, 4, 1], [4, 4, 1], QUERIES, samples=400)
    assert few.value == 1.0 and math.isnan(few.low) and math.isnan(few.high)
    many = bootstrap_interval("quadratic_kappa", [4, 1] * 20, [4, 1] * 20, range(40), samples=400)
    assert (many.low, many.high) == (1.0, 1.0)
    unread = bootstrap_interval("signed_bias", [4, 4, 1], [None, None, 2], QUERIES, samples=400)
    assert unread.value == 1.0 and math.isnan(unread.low)


def test_a_kind_without_a_grade_is_averaged_over_the_grades_that_it_has():
    """Kind "plain" has grades 4 and 3 and is judged rightly: 100 in every resample. Kind "odd" has one query."""
    rows, predictions = [], []
    of_query = {"a": (4, 3), "b": (4,), "c": (3,), "d": (1, 2)}
    for query, grades in of_query.items():
        for grade in grades:
            kind = "odd" if query == "d" else "plain"
            rows.append(Judgement(query, f"title {grade}", grade=grade, query_kind=kind))
            predictions.append(Prediction(grade))
    report = evaluate_predictions(rows, predictions, bootstrap=300)
    assert report["by_kind"]["plain"]["macro_f1"] == {"value": 1.0, "low": 0.5, "high": 1.0}  # bb and cc lost a grade
    assert report["by_kind"]["odd"]["macro_f1"] == {"value": 1.0, "low": None, "high": None}
    assert "A single query has no interval." in render_report(report)
