"""What is trained on: difficulty by integer counts, balance, resumable order, preference pairs."""

import math
from collections import Counter

import pytest
import torch

from taosr1.learning.selection import (
    TEACHER,
    Pair,
    balance_by_grade,
    balance_label_flow,
    balanced_order,
    drop_reason,
    grade_share_cv,
    keep_groups,
    keyed_generator,
    mine_pairs,
    mining_outcome,
    shuffled_order,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# ---- difficulty -----------------------------------------------------------------------------------------------------


def test_only_mixed_groups_are_kept():
    assert keep_groups([0, 1, 2, 3, 4], 4).tolist() == [False, True, True, True, False]
    assert keep_groups(torch.tensor([0, 1, 2, 3, 4]), 4, gamma=3).tolist() == [False, True, True, False, False]
    assert keep_groups([1, 2], 4, gamma=2).tolist() == [True, False]


def test_kept_and_named_reasons_agree():
    for size in range(1, 6):
        for gamma in (None, *range(2, size + 1)):
            for right in range(size + 1):
                assert bool(keep_groups([right], size, gamma)[0]) == (drop_reason(right, size, gamma) == "")
    assert [drop_reason(right, 4, 3) for right in range(5)] == ["all wrong", "", "", "too easy", "all right"]


def test_groups_of_one_and_empty_pools_are_defined():
    assert keep_groups([0, 1], 1).tolist() == [False, False]
    assert keep_groups([], 4).tolist() == [] and keep_groups([], 4).dtype == torch.bool


def test_counts_that_are_no_counts_are_refused():
    for counts in ([5], [-1], [0.5], torch.tensor([1.0]), [True], [[1]]):
        with pytest.raises(ValueError, match="right_counts"):
            keep_groups(counts, 4)
    for gamma in (1, 0, 5):
        with pytest.raises(ValueError, match="gamma"):
            keep_groups([1], 4, gamma)


# ---- balance --------------------------------------------------------------------------------------------------------

NATURAL = [4] * 50 + [2] * 36 + [1] * 9 + [3] * 5


def test_balanced_sampling_keeps_the_rarest_grade_s_number_of_each():
    kept = balance_by_grade(NATURAL, generator())
    assert kept == sorted(set(kept)) and len(kept) == 20
    grades = [NATURAL[row] for row in kept]
    assert Counter(grades) == {1: 5, 2: 5, 3: 5, 4: 5} and grade_share_cv(grades) == 0.0


def test_balanced_sampling_is_repeatable_and_draws_from_all_rows():
    assert balance_by_grade(NATURAL, generator(1)) == balance_by_grade(NATURAL, generator(1))
    seen = {row for seed in range(100) for row in balance_by_grade(NATURAL, generator(seed))}
    assert seen == set(range(100))


def test_balance_without_some_grade_balances_the_rest():
    assert Counter([4, 4, 2][row] for row in balance_by_grade([4, 4, 2], generator())) == {4: 1, 2: 1}
    assert balance_by_grade([3, 3], generator()) == [0, 1]
    assert balance_by_grade([], generator()) == []


def test_cv_by_hand():
    """Shares .09 .36 .05 .5, mean .25: sqrt((.16^2 + .11^2 + .2^2 + .25^2) / 4) / .25 = .74887 (sample std: .86472).
    One grade alone: sqrt((.75^2 + 3 * .25^2) / 4) / .25 = sqrt(3). Two of four: 1."""
    expected = math.sqrt((0.16**2 + 0.11**2 + 0.2**2 + 0.25**2) / 4) / 0.25
    assert grade_share_cv(NATURAL) == pytest.approx(expected) == pytest.approx(0.74887, abs=1e-5)
    assert grade_share_cv([2, 2, 2]) == pytest.approx(math.sqrt(3))
    assert grade_share_cv([1, 4]) == pytest.approx(1.0)
    assert grade_share_cv([1, 2, 3, 4] * 7) == 0.0 and grade_share_cv([]) == 0.0


def flow_counts(flows, kept):
    return Counter(flows[row] for row in kept)


def test_label_flow_is_equal_both_ways_for_every_two_grades():
    flows = [(4, 2)] * 7 + [(2, 4)] * 3 + [(4, 3)] * 2 + [(3, 4)] * 5 + [(1, 2)] * 4
    kept = balance_label_flow(flows, generator())
    assert kept == sorted(set(kept))
    assert flow_counts(flows, kept) == {(4, 2): 3, (2, 4): 3, (4, 3): 2, (3, 4): 2}


def test_balancing_by_gold_grade_would_not_balance_the_flow():
    """Twin: as many pairs of each chosen grade, yet grade 3 is only ever rejected: its share could only fall."""
    flows = [(4, 3)] * 5 + [(2, 3)] * 5 + [(1, 3)] * 5
    assert balance_label_flow(flows, generator()) == []


def test_label_flow_may_be_allowed_a_ratio():
    flows = [(4, 2)] * 7 + [(2, 4)] * 3 + [(1, 2)] * 4
    assert flow_counts(flows, balance_label_flow(flows, generator(), max_ratio=2)) == {(4, 2): 6, (2, 4): 3}
    assert flow_counts(flows, balance_label_flow(flows, generator(), max_ratio=1.5)) == {(4, 2): 4, (2, 4): 3}
    assert len(balance_label_flow(flows, generator(), max_ratio=math.inf)) == len(flows)


def test_pairs_that_move_no_label_are_kept():
    flows = [(4, None), (2, 2), (4, 2), (None, 1)]
    assert balance_label_flow(flows, generator()) == [0, 1, 3]
    assert balance_label_flow([], generator()) == []


def test_label_flow_is_repeatable_and_refuses_nonsense():
    flows = [(4, 2)] * 9 + [(2, 4)] * 4
    assert balance_label_flow(flows, generator(2)) == balance_label_flow(flows, generator(2))
    assert len({tuple(balance_label_flow(flows, generator(seed))) for seed in range(20)}) > 1
    with pytest.raises(ValueError, match="max_ratio"):
        balance_label_flow(flows, generator(), max_ratio=0.5)
    with pytest.raises(ValueError, match="pair 1"):
        balance_label_flow([(4, 2), (5, 2)], generator())


# ---- the order of prompts -------------------------------------------------------------------------------------------


def test_every_epoch_is_a_new_shuffle_of_all_rows():
    order = shuffled_order(10, seed=0, start=0, count=30)
    epochs = [order[start : start + 10] for start in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] and order != shuffled_order(10, seed=1, start=0, count=30)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_the_stream_continues_from_its_cursor(power):
    """Any cut into (start, count) pieces gives the same stream: a resumed run needs the integer alone."""
    whole = balanced_order(NATURAL, seed=3, start=0, count=300, power=power)
    plain = shuffled_order(100, seed=3, start=0, count=300)
    for step in (1, 7, 64):
        starts = range(0, 300, step)
        pieces = [balanced_order(NATURAL, 3, start, min(step, 300 - start), power=power) for start in starts]
        assert [row for piece in pieces for row in piece] == whole
        pieces = [shuffled_order(100, 3, start, min(step, 300 - start)) for start in starts]
        assert [row for piece in pieces for row in piece] == plain


def test_the_balanced_stream_has_equally_many_of_every_grade_in_every_round():
    order = balanced_order(NATURAL, seed=0, start=0, count=400)
    grades = [NATURAL[row] for row in order]
    assert all(sorted(grades[start : start + 4]) == [1, 2, 3, 4] for start in range(0, 400, 4))
    assert len({tuple(grades[start : start + 4]) for start in range(0, 400, 4)}) > 4  # no fixed order inside a round


def test_each_grade_is_used_up_before_a_row_comes_again():
    order = balanced_order(NATURAL, seed=0, start=0, count=400)
    uses = Counter(order)
    for grade in (1, 2, 3, 4):
        counts = [uses[row] for row, value in enumerate(NATURAL) if value == grade]
        assert max(counts) - min(counts) <= 1


def test_the_power_moves_shares_from_equal_to_natural():
    for power, expected in ((0.0, [25, 25, 25, 25]), (1.0, [9, 36, 5, 50])):
        shares = Counter(NATURAL[row] for row in balanced_order(NATURAL, 0, 0, 1000, power=power))
        assert [shares[grade] / 10 for grade in (1, 2, 3, 4)] == pytest.approx(expected, abs=0.5)
    roots = [math.sqrt(count) for count in (9, 36, 5, 50)]
    shares = Counter(NATURAL[row] for row in balanced_order(NATURAL, 0, 0, 5000, power=0.5))
    for grade, root in zip((1, 2, 3, 4), roots):
        assert shares[grade] / 5000 == pytest.approx(root / sum(roots), abs=0.01)


def test_absent_grades_and_tiny_pools_are_defined():
    assert Counter(balanced_order([4, 4, 4, 2], 0, 0, 8))[3] == 4
    assert balanced_order([3], 0, 5, 3) == [0, 0, 0] and balanced_order([3], 0, 5, 0) == []
    assert balanced_order([1, 4], 0, 10**12, 4) is not None  # a late cursor costs no replay
    for call in (
        lambda: balanced_order([], 0, 0, 1),
        lambda: balanced_order([4], 0, -1, 1),
        lambda: balanced_order([4], 0, 0, -1),
        lambda: balanced_order([4], 0, 0, 1, power=2.0),
        lambda: shuffled_order(0, 0, 0, 1),
        lambda: shuffled_order(5, 0, -1, 1),
    ):
        with pytest.raises(ValueError, match="need"):
            call()
    with pytest.raises(ValueError, match="row 1 is 7"):
        balanced_order([4, 7], 0, 0, 1)


def test_keyed_generators_differ_by_every_part_of_the_key():
    """The seed of one key is written down: it must not change between machines or versions of this code."""
    keys = [(0, "rollout", 0), (0, "rollout", 1), (1, "rollout", 0), (0, "order", 0), (0,)]
    numbers = [torch.randint(2**31, (), generator=keyed_generator(*key)).item() for key in keys]
    assert len(set(numbers)) == len(keys)
    assert keyed_generator(0, "rollout", 0).initial_seed() == 8374352737654752217


# ---- preference pairs -----------------------------------------------------------------------------------------------


def test_own_right_reply_over_own_wrong_reply():
    assert mine_pairs([2, 4, 2], 4, ["a", "b", "c"], has_teacher=True) == [Pair(1, 0, "self")]


def test_the_teacher_is_chosen_where_no_reply_is_right():
    assert mine_pairs([2, None], 4, ["a", "b"], has_teacher=True) == [Pair(TEACHER, 0, "oracle")]
    assert mine_pairs([2, None], 4, ["a", "b"], has_teacher=True, pairs_per_prompt=5) == [
        Pair(TEACHER, 0, "oracle"),
        Pair(TEACHER, 1, "oracle"),
    ]
    assert mine_pairs([2, None], 4, ["a", "b"], has_teacher=False) == []
    assert TEACHER == -1  # never the index of a reply


def test_all_right_and_no_replies_give_no_pair():
    assert mine_pairs([4, 4], 4, ["a", "b"], has_teacher=True) == []
    assert mine_pairs([], 4, [], has_teacher=True) == []


@pytest.mark.parametrize(
    ("grades", "has_teacher", "outcome"),
    [
        ([4, 1], False, "self"),
        ([2, 1], True, "oracle"),
        ([None], False, "no teacher"),
        ([4, 4], True, "all right"),
        ([], True, "no replies"),
    ],
)
def test_every_prompt_has_one_outcome_to_count(grades, has_teacher, outcome):
    assert mining_outcome(grades, 4, has_teacher=has_teacher) == outcome
    pairs = mine_pairs(grades, 4, [str(index) for index in range(len(grades))], has_teacher=has_teacher)
    assert {pair.source for pair in pairs} == ({outcome} if outcome in ("self", "oracle") else set())


def test_equal_texts_count_once():
    pairs = mine_pairs([4, 4, 2, 2, 2], 4, ["r", "r", "w", "w", "v"], has_teacher=False, pairs_per_prompt=9)
    assert sorted(pairs) == [Pair(0, 2, "self"), Pair(0, 4, "self")]


@pytest.mark.parametrize(("right", "wrong"), [(1, 1), (1, 4), (4, 1), (2, 2), (2, 4), (3, 4), (3, 3), (4, 6)])
def test_pairs_never_repeat_and_spread_over_the_replies(right, wrong):
    """Every prefix of the list uses the replies of a side equally often, to within one; the full list has every pair once."""
    grades = [4] * right + [1] * wrong
    texts = [str(index) for index in range(right + wrong)]
    for limit in range(1, right * wrong + 3):
        pairs = mine_pairs(grades, 4, texts, has_teacher=False, pairs_per_prompt=limit, generator=generator())
        assert len(set(pairs)) == len(pairs) == min(limit, right * wrong)
        assert all(grades[pair.chosen] == 4 and grades[pair.rejected] == 1 for pair in pairs)
        for used, size in (
            (Counter(pair.chosen for pair in pairs), right),
            (Counter(pair.rejected for pair in pairs), wrong),
        ):
            assert max(used.values()) <= math.ceil(len(pairs) / size)


def test_the_generator_decides_which_replies_meet():
    arguments = ([4, 4, 4, 1, 1, 1], 4, list("abcdef"))
    drawn = {tuple(mine_pairs(*arguments, has_teacher=False, generator=generator(seed))) for seed in range(200)}
    assert len(drawn) == 9  # each of the 3 x 3 pairs is possible
    again = [mine_pairs(*arguments, has_teacher=False, generator=generator(7)) for _ in range(2)]
    assert again[0] == again[1]


def test_mining_refuses_what_does_not_fit():
    for arguments, options in (
        (([4], 4, ["a", "b"]), {}),
        (([4], 5, ["a"]), {}),
        (([4], 4, ["a"]), {"pairs_per_prompt": 0}),
    ):
        with pytest.raises(ValueError, match="need one grade per text"):
            mine_pairs(*arguments, has_teacher=False, **options)
