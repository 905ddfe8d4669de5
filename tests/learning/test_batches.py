"""Batches: what is padded, what counts, and how a step is cut."""

from __future__ import annotations

import pytest
import torch

from taosr1.learning.batches import Example, collate, label_token_weights, micro_batches

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


def test_items_of_equal_length_keep_their_order():
    items = [Example([n], [n]) for n in range(6)]
    assert sum(micro_batches(items, 4), []) == items


def test_the_label_token_alone_is_weighted_where_it_comes_first():
    mask = collate(EXAMPLES).mask
    assert label_token_weights(mask, 3.0, "first").tolist() == [[0, 0, 3, 1, 1], [0, 3, 1, 0, 0], [0, 0, 0, 3, 0]]
    assert label_token_weights(mask, 0.0, "first").tolist() == [[0, 0, 0, 1, 1], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]]
    for weight, position in ((3.0, "none"), (1.0, "first")):
        assert torch.equal(label_token_weights(mask, weight, position), mask.float())
