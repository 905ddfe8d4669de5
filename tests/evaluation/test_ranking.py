"""Calibration, AUC and nDCG against hand-worked cases, invariances and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest

from taosr1.evaluation.ranking import (
    ESCI_GAINS,
    ESCI_GAINS_SWAPPED,
    auc,
    brier_score,
    expected_calibration_error,
    expected_grade,
    good_auc,
    ndcg_by_query,
    reliability_bins,
)


def one_hot(grade: int) -> list[float]:
    return [float(g == grade) for g in (1, 2, 3, 4)]


def mean_ndcg(scores, gold, queries, k=None, gains=ESCI_GAINS) -> float:
    per_query = ndcg_by_query(scores, gold, queries, k, gains)
    return float(np.mean(list(per_query.values()))) if per_query else math.nan


def random_probs(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.ones(4), rows), rng.integers(1, 5, rows)


def test_certain_and_right_is_perfectly_calibrated_and_certain_and_wrong_is_the_worst():
    assert expected_calibration_error([one_hot(4), one_hot(2)], [4, 2]) == 0.0
    assert brier_score([one_hot(4), one_hot(2)], [4, 2]) == 0.0
    assert expected_calibration_error([one_hot(4), one_hot(2)], [1, 1]) == 1.0
    assert brier_score([one_hot(4), one_hot(2)], [1, 1]) == 2.0


def test_hand_worked_ece_and_brier():
    # Confidences .7 .7 .4 fall in bins (10/15, 11/15] and (5/15, 6/15]. The first is right once in two: |1/2 - .7| =
    # .2, weight 2/3. The second is wrong: |0 - .4| = .4, weight 1/3. ECE = .4/3 + .4/3.
    probs = [[0.7, 0.1, 0.1, 0.1], [0.1, 0.7, 0.1, 0.1], [0.2, 0.2, 0.2, 0.4]]
    gold = [1, 4, 1]
    assert expected_calibration_error(probs, gold) == pytest.approx(0.8 / 3)
    # Rows: .09+.03 = .12; .01+.49+.01+.81 = 1.32; .64+.04+.04+.16 = .88.
    assert brier_score(probs, gold) == pytest.approx((0.12 + 1.32 + 0.88) / 3)


def test_a_bin_holds_its_upper_edge():
    table = reliability_bins([[0.2, 0.2, 0.2, 0.4], one_hot(1)], [4, 1], bins=10)
    assert [(row["low"], row["high"], row["rows"]) for row in table] == [(0.3, 0.4, 1), (0.9, 1.0, 1)]


def test_ece_with_one_bin_is_the_gap_between_mean_confidence_and_accuracy():
    probs, gold = random_probs(200)
    gap = abs(probs.max(-1).mean() - (probs.argmax(-1) + 1 == gold).mean())
    assert expected_calibration_error(probs, gold, bins=1) == pytest.approx(gap)


def test_calibration_ignores_row_order_and_which_grade_is_which():
    probs, gold = random_probs(300)
    order, columns = np.random.default_rng(1).permutation(300), np.array([2, 0, 3, 1])
    renamed = np.argsort(columns)[gold - 1] + 1
    for metric in (expected_calibration_error, brier_score):
        assert metric(probs[order], gold[order]) == pytest.approx(metric(probs, gold))
        assert metric(probs[:, columns], renamed) == pytest.approx(metric(probs, gold))


def test_logits_are_refused_with_their_row():
    with pytest.raises(ValueError, match=r"probs\[1\] is .* not logits"):
        brier_score([one_hot(1), [2.0, -1.0, 0.0, 0.0]], [1, 1])


def test_hand_worked_auc_counts_ties_one_half():
    # Positives .9 and .5 against negatives .5 and .1: 1 + 1 + 1/2 + 1 of 4.
    assert auc([0.9, 0.5, 0.5, 0.1], [True, True, False, False]) == pytest.approx(3.5 / 4)
    assert auc([1.0, 1.0, 1.0], [True, False, False]) == 0.5
    assert math.isnan(auc([1.0, 2.0], [True, True]))


def test_auc_is_kept_by_monotone_maps_and_mirrored_by_negation():
    probs, gold = random_probs(200)
    scores = expected_grade(probs)
    assert auc(np.exp(scores), gold >= 3) == auc(scores, gold >= 3)
    assert auc(-scores, gold >= 3) == pytest.approx(1 - auc(scores, gold >= 3))


def test_good_auc_leaves_mid_out_unless_asked():
    scores, gold = [3.0, 2.0, 9.0, 1.0], [4, 3, 2, 1]
    assert good_auc(scores, gold) == 1.0
    assert good_auc(scores, gold, against=("Mid", "Bad")) == 0.5


def test_auc_equals_scikit_learn(sklearn_metrics):
    probs, gold = random_probs(300)
    scores = np.round(expected_grade(probs), 1)  # rounding makes ties
    assert auc(scores, gold >= 3) == pytest.approx(sklearn_metrics.roc_auc_score(gold >= 3, scores))


def test_hand_worked_ndcg_with_both_gain_tables():
    # Ranked 2, 4, 3: gains .01, 1, .1 at discounts 1, 1/log2(3), 1/2; ideal 1, .1, .01.
    scores, gold, queries = [3.0, 2.0, 1.0], [2, 4, 3], ["q"] * 3
    third = 1 / math.log2(3)
    found, ideal = 0.01 + third + 0.05, 1 + 0.1 * third + 0.005
    assert mean_ndcg(scores, gold, queries, gains=ESCI_GAINS) == pytest.approx(found / ideal)
    swapped, swapped_ideal = 0.1 + third + 0.005, 1 + 0.1 * third + 0.005
    assert mean_ndcg(scores, gold, queries, gains=ESCI_GAINS_SWAPPED) == pytest.approx(swapped / swapped_ideal)
    assert mean_ndcg(scores, gold, queries, k=1, gains=ESCI_GAINS) == pytest.approx(0.01)


def test_perfect_order_scores_one_and_query_without_gain_is_left_out():
    per_query = ndcg_by_query([3, 2, 1, 5, 4], [4, 3, 1, 1, 1], ["a", "a", "a", "b", "b"])
    assert per_query == {"a": 1.0}
    assert math.isnan(mean_ndcg([1.0], [1], ["a"]))


def test_ndcg_of_tied_scores_is_the_mean_over_their_orders():
    gold, queries = [4, 1, 2], ["q"] * 3
    orders = [mean_ndcg([s, t, 0.0], gold, queries, k=2) for s, t in ((2.0, 1.0), (1.0, 2.0))]
    tied = mean_ndcg([1.0, 1.0, 0.0], gold, queries, k=2)
    assert tied == pytest.approx(sum(orders) / 2)
    assert mean_ndcg([1.0, 1.0, 0.0], [1, 4, 2], queries, k=2) == pytest.approx(tied)


def test_ndcg_of_many_queries_is_the_mean_of_each_alone_in_any_order():
    rng = np.random.default_rng(0)
    scores, gold, queries = rng.integers(0, 5, 200), rng.integers(1, 5, 200), rng.integers(0, 30, 200)
    alone = {
        str(q): mean_ndcg(scores[queries == q], gold[queries == q], queries[queries == q], k=3)
        for q in set(queries.tolist())
    }
    together = ndcg_by_query(scores, gold, queries, k=3)
    assert together == pytest.approx({q: value for q, value in alone.items() if not math.isnan(value)})
    order = rng.permutation(200)
    assert mean_ndcg(scores[order], gold[order], queries[order], k=3) == pytest.approx(np.mean(list(together.values())))


@pytest.mark.parametrize("k", [None, 3])
def test_ndcg_equals_scikit_learn(sklearn_metrics, k):
    rng = np.random.default_rng(1)
    scores, gold = rng.integers(0, 6, 12).astype(float), rng.integers(1, 5, 12)
    gains = np.array([[ESCI_GAINS[int(grade)] for grade in gold]])
    assert mean_ndcg(scores, gold, ["q"] * 12, k) == pytest.approx(sklearn_metrics.ndcg_score(gains, scores[None], k=k))


def test_bad_ranking_input_is_named():
    with pytest.raises(ValueError, match=r"scores\[1\] is nan"):
        mean_ndcg([1.0, float("nan")], [1, 2], ["q", "q"])
    with pytest.raises(ValueError, match="k is 0"):
        mean_ndcg([1.0], [1], ["q"], k=0)
    with pytest.raises(ValueError, match="a gain for each"):
        mean_ndcg([1.0], [1], ["q"], gains={4: 1.0})
