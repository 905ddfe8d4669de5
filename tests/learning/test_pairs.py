"""Preference pairs: which replies meet, and the flow from label to label."""

import math
from collections import Counter

import pytest
import torch

from taosr1.learning.pairs import TEACHER, Pair, balance_label_flow, mine_pairs, mining_outcome


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


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
    """Every prefix of the list uses the replies of a side equally often, to within one; the list has each pair once."""
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


# ---- label flow ------------------------------------------------------------------------------------------------------


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


def test_pairs_that_move_no_label_are_kept():
    flows = [(4, None), (2, 2), (4, 2), (None, 1)]
    assert balance_label_flow(flows, generator()) == [0, 1, 3]
    assert balance_label_flow([], generator()) == []


def test_label_flow_is_repeatable_and_refuses_nonsense():
    flows = [(4, 2)] * 9 + [(2, 4)] * 4
    assert balance_label_flow(flows, generator(2)) == balance_label_flow(flows, generator(2))
    assert len({tuple(balance_label_flow(flows, generator(seed))) for seed in range(20)}) > 1
    with pytest.raises(ValueError, match="pair 1"):
        balance_label_flow([(4, 2), (5, 2)], generator())
