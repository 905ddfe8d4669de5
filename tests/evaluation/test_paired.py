"""Paired statistics by hand: differences, sign test, goodrate, rank correlation, and the twins that are wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest

from taosr1.evaluation.metrics import COUNT_METRICS, GRADE_F1, bootstrap_difference
from taosr1.evaluation.paired import (
    auc_statistic,
    count_statistics,
    mean_interval,
    mean_statistic,
    paired_differences,
    rank_correlation_by_query,
    resampled_values,
    sign_test,
)
from taosr1.evaluation.ranking import auc, item_goodrate_by_query

NAMES = ["a", "a", "b", "b", "b", "c"]
ONE = np.ones((1, 3))


def test_the_sign_test_counts_queries_and_is_exact():
    """8 better, 2 worse: 2 * (1 + 10 + 45) / 2^10 = 112 / 1024; the same and the unknown count on neither side."""
    found = sign_test([0.1] * 8 + [-0.1] * 2 + [0.0, 1e-12, math.nan])
    assert found == {"better": 8, "same": 3, "worse": 2, "p": 112 / 1024}
    assert sign_test([-1] * 3)["p"] == 2 / 8 and sign_test([1, -1])["p"] == 1.0 and sign_test([0, 0])["p"] == 1.0
    assert sign_test([1] * 3000 + [-1] * 100)["p"] < 1e-300  # 2^3100 is beyond a float


def test_an_auc_of_weights_is_that_of_rows_as_often_as_their_query_was_drawn():
    score, good = [0.9, 0.4, 0.4, 0.7, 0.1, 0.5], [True, False, True, False, False, True]
    found = auc_statistic(score, good, NAMES)(np.array([[1, 1, 1], [2, 0, 1], [0, 3, 0], [0, 0, 2]], dtype=float))
    # All: 0.9 beats 3; 0.5 beats 0.4 and 0.1; 0.4 ties one and beats one: 6.5 of 9. Query b alone: 0.4 beats 0.1 of 2.
    assert found[:3] == pytest.approx([6.5 / 9, auc([0.9, 0.4] * 2 + [0.5], [1, 0, 1, 0, 1]), 1 / 2])
    assert math.isnan(found[3])  # query c has no other row


def test_a_mean_leaves_out_queries_without_a_value():
    mean = mean_statistic([1.0, math.nan, 4.0])
    assert mean(np.array([[1.0, 1, 1], [3, 5, 1]])) == pytest.approx([2.5, 7 / 4])
    assert math.isnan(mean(np.array([[0.0, 2, 0]]))[0])
    assert mean_interval([0.5] * 9, 50, 0) == mean_interval([0.5, math.nan] + [0.5] * 7, 50, 0)


@pytest.mark.parametrize(
    ("scores", "gold", "k", "rate"),
    [
        ([3, 2, 1], [4, 1, 3], 2, 1 / 2),
        ([3, 2, 1], [4, 1, 3], None, 2 / 3),
        ([3, 2, 1], [4, 1, 3], 9, 2 / 3),  # a list of three has three places, not nine
        ([2, 2, 1], [4, 1, 1], 1, 1 / 2),  # either of the first two, by chance
        ([1, 2, 3], [4, 2, 2], 2, 0.0),  # 2-Mismatch is not Good
    ],
)
def test_item_goodrate_is_the_share_of_good_products_at_the_top(scores, gold, k, rate):
    found = item_goodrate_by_query([0.0, *scores], [3, *gold], ["a", "b", "b", "b"], k)
    assert found == {"a": 1.0, "b": pytest.approx(rate)}
    with pytest.raises(ValueError, match="k is 0"):
        item_goodrate_by_query(scores, gold, "bbb", 0)


def test_rank_correlation_is_kendalls_tau_b_in_each_query():
    """a: 2 of 3 pairs in the same order, 1 reversed. b: a tie in one of three. c: one order is all ties: none."""
    first = [1, 2, 3, 1, 1, 2, 5, 5]
    second = [1, 3, 2, 1, 2, 3, 1, 2]
    found = rank_correlation_by_query(first, second, list("aaabbbcc"))
    assert found[:2] == pytest.approx([1 / 3, 2 / math.sqrt(2 * 3)]) and math.isnan(found[2])
    assert rank_correlation_by_query(first, first[::-1], ["q"] * 8)[0] < 0


def judges(queries: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Gold grades, two judges that find the same queries hard, and the queries of 4 rows each."""
    rng = np.random.default_rng(1)
    gold, hard = rng.integers(1, 5, 4 * queries), np.repeat(rng.random(queries) < 0.5, 4)
    first = np.where(hard, 5 - gold, gold)  # right in easy queries, never in hard ones
    second = np.where(rng.random(4 * queries) < 0.1, 0, first)  # the same, but a tenth cannot be read
    return gold, first, second, np.repeat(np.arange(queries), 4).astype(str)


def compared(gold, first, second, names, samples=400) -> dict:
    metrics = {"accuracy": COUNT_METRICS["accuracy"], "macro_f1": COUNT_METRICS["macro_f1"], **GRADE_F1}
    sides = [count_statistics(metrics, gold, grades, names) for grades in (first, second)]
    return paired_differences(*sides, len(np.unique(names)), samples, 0)


def test_a_paired_difference_is_that_of_bootstrap_difference():
    found = compared(*(data := judges()))
    for name in ("accuracy", "macro_f1"):
        assert found[name]["difference"] == bootstrap_difference(name, *data, samples=400)
    assert found["accuracy"]["difference"].value == pytest.approx(found["accuracy"]["b"] - found["accuracy"]["a"])


def test_swapped_sides_flip_every_sign():
    gold, first, second, names = judges()
    found, swapped = compared(gold, first, second, names), compared(gold, second, first, names)
    for name, values in found.items():
        there, back = values["difference"], swapped[name]["difference"]
        assert (back.value, back.low, back.high) == pytest.approx((-there.value, -there.high, -there.low))
        assert there.high < 0 or name.startswith("f1_")


def test_resampling_each_side_by_itself_is_wider_where_both_find_the_same_queries_hard():
    """The wrong twin: other draws for the second side. By hand, an accuracy of each side spreads by query difficulty
    (half of them all right, half all wrong), the difference by a tenth of the rows alone."""
    gold, first, second, names = judges()
    change = compared(gold, first, second, names)["accuracy"]["difference"]
    accuracy = {"accuracy": COUNT_METRICS["accuracy"]}
    one, other = (count_statistics(accuracy, gold, grades, names) for grades in (first, second))
    unpaired = resampled_values(other, 60, 400, 7)["accuracy"] - resampled_values(one, 60, 400, 0)["accuracy"]
    low, high = np.quantile(unpaired, [0.025, 0.975])
    assert high - low > 3 * (change.high - change.low)
    assert change.high < 0 < high  # unpaired, the loss would go unseen
