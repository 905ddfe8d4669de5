"""Batches: what is padded, what counts, and how a step is cut."""

from __future__ import annotations

import pytest
import torch

from taosr1.learning.batches import Example, collate, common_tok, label_token_weights, micro_batches, padded_tok
from taosr1.learning.rollout_group import Group, read_rollout

EXAMPLES = [Example([5, 6], [7, 8, 9]), Example([4], [0, 3]), Example([1, 2, 3], [0])]


def test_ids_are_padded_on_the_right_and_the_mask_is_true_on_the_reply_alone():
    batch = collate(EXAMPLES)
    assert batch.ids.tolist() == [[5, 6, 7, 8, 9], [4, 0, 3, 0, 0], [1, 2, 3, 0, 0]]
    assert batch.mask.int().tolist() == [[0, 0, 1, 1, 1], [0, 1, 1, 0, 0], [0, 0, 0, 1, 0]]
    assert batch.ids.dtype == torch.int64 and batch.mask.dtype == torch.bool


def test_masks_come_from_lengths_so_a_reply_may_hold_the_pad_id():
    batch = collate([Example([0, 0], [0, 0])])
    assert batch.mask.tolist() == [[False, False, True, True]]


@pytest.mark.parametrize("budget", [1, 6, 11, 20, 10_000])
def test_every_item_is_in_one_micro_batch_and_each_respects_the_budget(budget):
    items = [Example([1] * (1 + n % 5), [2] * (1 + n % 3)) for n in range(23)]
    parts = micro_batches(items, budget)
    assert sorted(map(id, sum(parts, []))) == sorted(map(id, items))
    for part in parts:
        assert len(part) == 1 or len(part) * max(item.length_tok for item in part) <= budget
    lengths = [item.length_tok for part in parts for item in part]
    assert lengths == sorted(lengths)  # alike in length, so little is padded
    assert len(micro_batches(items, 10_000)) == 1 and micro_batches([], 5) == []


def test_tokens_that_all_items_begin_with_count_once_in_a_micro_batch():
    """Prompts of 10 shared tokens and 1 to 4 of their own, with replies of 2."""
    items = [Example([7] * 10 + [n] * (1 + n % 4), [5, 6]) for n in range(8)]
    assert common_tok(items) == 10 and common_tok(items[:1]) == 11 and common_tok([]) == 0
    assert common_tok([*items, Example([7, 8], [9])]) == 1 and common_tok([*items, Example([], [9])]) == 0
    parts = micro_batches(items, 28, shared_tok=10)
    assert [len(part) for part in parts] == [4, 3, 1]
    assert [padded_tok(part, 10) for part in parts] == [10 + 4 * 4, 10 + 3 * 6, 10 + 6]
    assert [len(part) for part in micro_batches(items, 28)] == [2, 2, 1, 1, 1, 1]
    assert sorted(map(id, sum(parts, []))) == sorted(map(id, items))


def test_items_of_equal_length_keep_their_order():
    items = [Example([n], [n]) for n in range(6)]
    assert sum(micro_batches(items, 4), []) == items


def test_replies_to_one_prompt_stay_side_by_side_and_count_their_prompt_once():
    def group(prompt: int) -> Group:
        replies = [read_rollout("4", "label", ids=[10 * prompt + n] * 4, advantage=0.0) for n in range(4)]
        return Group(prompt, [prompt] * 20, 4, replies)

    groups = [group(number) for number in range(5)]  # 36 tokens each; 96 if every reply had a prompt of its own
    assert [[piece.row for piece in part] for part in micro_batches(groups, 72)] == [[0, 1], [2, 3], [4]]
    batch = Group.collate(groups[:2])
    assert batch.ids[:, 0].tolist() == [0] * 4 + [1] * 4 and batch.ids[:, 20].tolist() == [0, 1, 2, 3, 10, 11, 12, 13]
    for budget, sizes in ((28, [2, 2]), (1, [1, 1, 1, 1])):  # two replies fit beside their prompt; none does
        pieces = [piece for part in micro_batches(groups[:1], budget) for piece in part]
        assert [len(piece.replies) for piece in pieces] == sizes
        assert sum((piece.replies for piece in pieces), []) == groups[0].replies


def test_the_label_token_alone_is_weighted_where_it_comes_first():
    mask = collate(EXAMPLES).mask
    assert label_token_weights(mask, 3.0, "post-cot").tolist() == [[0, 0, 3, 1, 1], [0, 3, 1, 0, 0], [0, 0, 0, 3, 0]]
    assert label_token_weights(mask, 0.0, "label").tolist() == [[0, 0, 0, 1, 1], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]]
    for weight, order in ((3.0, "pre-cot"), (1.0, "post-cot")):
        assert torch.equal(label_token_weights(mask, weight, order), mask.float())
