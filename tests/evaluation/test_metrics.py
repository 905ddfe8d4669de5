"""Metrics against tables worked by hand, against invariances, and against scikit-learn."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

from taosr1.evaluation.metrics import (
    COUNT_METRICS,
    bootstrap_difference,
    bootstrap_interval,
    confusion_matrix,
    f1_of,
    hallucination_rates,
    macro_f1,
    query_counts,
    resampled_counts,
    tier_counts,
)

# Ten rows worked by hand. Confusion, gold 1..4 down, predicted 1 2 3 4 unparsable across:
#   1 |  1  1  0  0  0        F1(1) = 2*1/(2+2) = 1/2
#   2 |  1  2  0  0  0        F1(2) = 2*2/(3+3) = 2/3
#   3 |  0  0  0  1  0        F1(3) = 2*0/(1+1) = 0
#   4 |  0  0  1  2  1        F1(4) = 2*2/(4+3) = 4/7
GOLD = [1, 1, 2, 2, 2, 3, 4, 4, 4, 4]
PREDICTED = [1, 2, 1, 2, 2, 4, 3, 4, 4, None]


def measure(metric: str, gold, predicted) -> float:
    return float(COUNT_METRICS[metric](confusion_matrix(gold, predicted)))


def per_grade_f1(gold, predicted) -> list[float]:
    return f1_of(confusion_matrix(gold, predicted)).tolist()


def random_rows(rows: int = 500, seed: int = 0, failures: float = 0.1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    gold = rng.integers(1, 5, rows)
    predicted = np.where(rng.random(rows) < 0.6, gold, rng.integers(1, 5, rows))
    predicted = np.where(rng.random(rows) < failures, 0, predicted)
    return gold, predicted, rng.integers(0, rows // 5, rows)


def test_hand_worked_confusion_counts_unparsable_in_its_own_column():
    assert confusion_matrix(GOLD, PREDICTED).tolist() == [
        [1, 1, 0, 0, 0],
        [1, 2, 0, 0, 0],
        [0, 0, 0, 1, 0],
        [0, 0, 1, 2, 1],
    ]


def test_hand_worked_f1_counts_an_unparsable_reply_against_recall_only():
    assert per_grade_f1(GOLD, PREDICTED) == pytest.approx([1 / 2, 2 / 3, 0.0, 4 / 7])
    assert macro_f1(GOLD, PREDICTED) == pytest.approx((1 / 2 + 2 / 3 + 0 + 4 / 7) / 4)
    # The wrong twin drops the unparsable row: grade 4 would have F1 4/6.
    assert per_grade_f1(GOLD[:-1], PREDICTED[:-1])[3] == pytest.approx(4 / 6)


def test_hand_worked_accuracy_tiers_bias_and_failures():
    assert measure("accuracy", GOLD, PREDICTED) == pytest.approx(5 / 10)
    # Good is 3 and 4 together: 4 of the 5 Good rows are called Good, and nothing else is: F1 = 2*4/(5+4).
    assert measure("good_f1", GOLD, PREDICTED) == pytest.approx(8 / 9)
    assert measure("tier_accuracy", GOLD, PREDICTED) == pytest.approx((4 + 2 + 1) / 10)
    assert measure("parse_failure_rate", GOLD, PREDICTED) == pytest.approx(1 / 10)
    # Over nine parsed rows: +1 (1 as 2), -1 (2 as 1), +1 (3 as 4), -1 (4 as 3).
    assert measure("signed_bias", GOLD, PREDICTED) == pytest.approx(0.0)
    assert measure("signed_bias", [1, 2, 3], [2, 4, None]) == pytest.approx(1.5)


def test_hand_worked_quadratic_kappa():
    # gold 1 1 4 4, predicted 1 4 4 4. Squared distances: observed 9 in 4 rows = 9/4. By chance, from the margins:
    # gold 1 with predicted 4 is 2*3/16, gold 4 with predicted 1 is 2*1/16, together 8/16 of 9 = 9/2.
    # Kappa = 1 - (9/4)/(9/2) = 1/2.
    assert measure("quadratic_kappa", [1, 1, 4, 4], [1, 4, 4, 4]) == pytest.approx(0.5)
    assert measure("quadratic_kappa", [1, 2, 3, 4], [1, 2, 3, 4]) == pytest.approx(1.0)
    assert measure("quadratic_kappa", [1, 4], [4, 1]) == pytest.approx(-1.0)
    assert math.isnan(measure("quadratic_kappa", [4, 4], [4, 4]))


def test_tier_counts_merge_three_and_four_and_keep_unparsable():
    # Order Good, Mid, Bad, unparsable.
    assert tier_counts(confusion_matrix(GOLD, PREDICTED)).tolist() == [[4, 0, 0, 1], [0, 2, 1, 0], [0, 1, 1, 0]]


def test_grade_absent_from_gold_and_predictions_leaves_the_mean():
    assert macro_f1([4, 4, 2], [4, 4, 2]) == 1.0
    assert math.isnan(per_grade_f1([4, 4, 2], [4, 4, 2])[2])


def test_grade_present_on_one_side_only_counts_zero():
    assert macro_f1([4, 4, 3], [4, 4, 4]) == pytest.approx((0.8 + 0.0) / 2)
    assert macro_f1([4, 4, 4], [4, 4, 1]) == pytest.approx((0.8 + 0.0) / 2)


def test_everything_unparsable_scores_zero():
    assert macro_f1([1, 2, 3, 4], [None] * 4) == 0.0
    assert measure("accuracy", [1, 2], [0, None]) == 0.0
    assert math.isnan(measure("signed_bias", [1, 2], [0, None]))
    assert math.isnan(measure("quadratic_kappa", [1, 2], [0, None]))


def test_macro_f1_and_accuracy_survive_relabelling_of_grades():
    gold, predicted, _ = random_rows()
    rename = np.array([0, 3, 1, 4, 2])
    assert macro_f1(rename[gold], rename[predicted]) == pytest.approx(macro_f1(gold, predicted))
    assert measure("accuracy", rename[gold], rename[predicted]) == pytest.approx(measure("accuracy", gold, predicted))
    kappa, bias = measure("quadratic_kappa", gold, predicted), measure("signed_bias", gold, predicted)
    assert measure("quadratic_kappa", rename[gold], rename[predicted]) != pytest.approx(kappa)
    # Mirroring keeps distances, so kappa stays and the bias changes its sign.
    mirror = np.array([0, 4, 3, 2, 1])
    assert measure("quadratic_kappa", mirror[gold], mirror[predicted]) == pytest.approx(kappa)
    assert measure("signed_bias", mirror[gold], mirror[predicted]) == pytest.approx(-bias)


def test_every_count_metric_ignores_row_order_and_duplication():
    gold, predicted, _ = random_rows()
    order = np.random.default_rng(1).permutation(len(gold))
    once, shuffled = confusion_matrix(gold, predicted), confusion_matrix(gold[order], predicted[order])
    for name, metric in COUNT_METRICS.items():
        assert metric(once) == metric(shuffled), name
        assert metric(3 * once) == pytest.approx(metric(once)), name


def test_count_metrics_of_a_stack_equal_each_alone():
    stack = np.stack([confusion_matrix(*random_rows(200, seed)[:2]) for seed in range(6)]).reshape(2, 3, 4, 5)
    for name, metric in COUNT_METRICS.items():
        together = metric(stack)
        assert together.shape == (2, 3), name
        assert together[1, 2] == pytest.approx(float(metric(stack[1, 2]))), name


@pytest.mark.parametrize("seed", range(3))
def test_metrics_equal_scikit_learn(sklearn_metrics, seed):
    gold, predicted, _ = random_rows(300, seed)
    labels = [1, 2, 3, 4]
    per_grade = sklearn_metrics.f1_score(gold, predicted, labels=labels, average=None)
    assert per_grade_f1(gold, predicted) == pytest.approx(per_grade.tolist())
    macro = sklearn_metrics.f1_score(gold, predicted, labels=labels, average="macro")
    assert macro_f1(gold, predicted) == pytest.approx(macro)
    assert measure("accuracy", gold, predicted) == pytest.approx(sklearn_metrics.accuracy_score(gold, predicted))
    assert measure("good_f1", gold, predicted) == pytest.approx(sklearn_metrics.f1_score(gold >= 3, predicted >= 3))
    parsed = predicted > 0
    kappa = sklearn_metrics.cohen_kappa_score(gold[parsed], predicted[parsed], labels=labels, weights="quadratic")
    assert measure("quadratic_kappa", gold, predicted) == pytest.approx(kappa)


@pytest.mark.parametrize(
    ("gold", "predicted", "message"),
    [
        ([1, 5], [1, 1], r"gold\[1\] is 5, expected 1-4"),
        ([1, None], [1, 1], r"gold\[1\] is None"),
        ([1, 2], [1, 2.5], r"predicted\[1\] is 2.5"),
        ([1, 2], [1, float("nan")], r"predicted\[1\] is nan"),
        ([1, 2], [1, "2"], r"predicted\[1\] is '2'"),
        ([1, 2], [1], "gold has 2 rows, predicted has 1"),
        ([], [], "no rows"),
    ],
)
def test_bad_grades_are_named(gold, predicted, message):
    with pytest.raises(ValueError, match=message):
        macro_f1(gold, predicted)


def test_hand_worked_hallucination_rates():
    gold = [4, 4, 2, 2, 1, 3]
    labels = [4, 2, 2, 4, None, 3]
    stated = [4, 4, 3, 2, 1, None]
    # Rows 0-3 have both. Rows 1, 2, 3 disagree; in rows 1 and 3 the reasoning is right and the label wrong.
    assert hallucination_rates(gold, labels, stated) == {"disagrees": 3 / 4, "right_but_label_wrong": 2 / 4, "rows": 4}


def test_hallucination_rates_without_reasoning_are_undefined():
    rates = hallucination_rates([1, 2], [1, 2], [None, None])
    assert rates["rows"] == 0 and math.isnan(rates["disagrees"]) and math.isnan(rates["right_but_label_wrong"])


# ---- intervals -------------------------------------------------------------------------------------------------------


def test_query_counts_sum_to_the_confusion_matrix():
    gold, predicted, queries = random_rows()
    counts = query_counts(gold, predicted, queries)
    assert counts.shape == (len(set(queries.tolist())), 4, 5)
    assert (counts.sum(0) == confusion_matrix(gold, predicted)).all()


def test_resampled_counts_equal_a_row_by_row_bootstrap():
    gold, predicted, queries = random_rows(60)
    names = sorted(set(queries.tolist()), key=str)
    draws = np.random.default_rng(7).integers(len(names), size=(20, len(names)))
    totals = resampled_counts(query_counts(gold, predicted, queries), samples=20, seed=7)
    for draw, total in zip(draws, totals):
        rows = np.concatenate([np.flatnonzero(queries == names[index]) for index in draw])
        assert (confusion_matrix(gold[rows], predicted[rows]) == total).all()


def test_chunked_resampling_gives_complete_queries_and_the_right_total():
    counts = np.zeros((3_000, 4, 5))
    counts[:, 3, 3] = 2
    totals = resampled_counts(counts, samples=1500, seed=0)  # more than one chunk of weights
    assert totals.shape == (1500, 4, 5)
    assert (totals.sum((1, 2)) == 6_000).all()


def test_interval_holds_its_value_and_ignores_row_order():
    gold, predicted, queries = random_rows()
    first = bootstrap_interval("macro_f1", gold, predicted, queries, samples=200, seed=3)
    assert first.low < first.value < first.high
    assert first.value == macro_f1(gold, predicted)
    order = np.random.default_rng(1).permutation(len(gold))
    assert bootstrap_interval("macro_f1", gold[order], predicted[order], queries[order], samples=200, seed=3) == first
    assert bootstrap_interval("macro_f1", gold, predicted, queries, samples=200, seed=4) != first


def test_interval_of_accuracy_matches_the_normal_approximation():
    rng = np.random.default_rng(0)
    gold = rng.integers(1, 5, 2000)
    predicted = np.where(rng.random(2000) < 0.7, gold, gold % 4 + 1)
    found = bootstrap_interval("accuracy", gold, predicted, np.arange(2000), samples=2000)
    half = 1.96 * math.sqrt(found.value * (1 - found.value) / 2000)
    assert found.high - found.low == pytest.approx(2 * half, rel=0.08)


def test_clustered_interval_is_wider_than_the_wrong_twin_over_rows():
    # Twenty copies of each row in one query carry the information of one: sqrt(20) wider than rows would claim.
    rng = np.random.default_rng(0)
    gold = np.repeat(rng.integers(1, 5, 100), 20)
    predicted = np.repeat(np.where(rng.random(100) < 0.7, gold[::20], gold[::20] % 4 + 1), 20)
    by_query = bootstrap_interval("accuracy", gold, predicted, np.repeat(np.arange(100), 20))
    by_row = bootstrap_interval("accuracy", gold, predicted, np.arange(2000))
    assert (by_query.high - by_query.low) / (by_row.high - by_row.low) == pytest.approx(math.sqrt(20), rel=0.2)


def test_one_query_has_no_interval():
    found = bootstrap_interval("macro_f1", GOLD, PREDICTED, ["q"] * len(GOLD), samples=50)
    assert found.value == macro_f1(GOLD, PREDICTED) and math.isnan(found.low) and math.isnan(found.high)


def test_no_resamples_give_a_value_without_an_interval():
    found = bootstrap_interval("macro_f1", GOLD, PREDICTED, ["q"] * len(GOLD), samples=0)
    assert found.value == macro_f1(GOLD, PREDICTED) and math.isnan(found.low) and math.isnan(found.high)


def test_paired_difference_is_zero_against_itself_and_narrower_than_unpaired():
    gold, before, queries = random_rows(600)
    same = bootstrap_difference("macro_f1", gold, before, before, queries, samples=100)
    assert same.value == same.low == same.high == 0.0
    after = before.copy()
    after[:40] = gold[:40]
    found = bootstrap_difference("macro_f1", gold, before, after, queries, samples=400)
    assert found.value == pytest.approx(macro_f1(gold, after) - macro_f1(gold, before))
    alone = bootstrap_interval("macro_f1", gold, after, queries, samples=400)
    assert 0 < found.low and found.high - found.low < 0.6 * (alone.high - alone.low)


def test_an_unknown_metric_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="metric is 'f2', expected one of macro_f1"):
        bootstrap_interval("f2", GOLD, PREDICTED, range(10))


def test_thousand_resamples_of_four_thousand_rows_take_under_a_second():
    gold, predicted, _ = random_rows(4000)
    start = time.process_time()  # processor time: a busy machine must not fail this
    bootstrap_interval("macro_f1", gold, predicted, np.arange(4000), samples=1000)
    assert time.process_time() - start < 1.0
