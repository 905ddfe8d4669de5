"""Plain attention: values worked out by hand, masks, and grouped heads."""

from __future__ import annotations

import math

import pytest
import torch

from taosr1.model.attention import attention, causal_mask


def test_one_query_over_two_keys_worked_out_by_hand():
    """D = 4, so scores are divided by 2. Query (2, 0, 0, 0), keys (1, ..) and (0, ..): scores 1 and 0, weights
    e / (e + 1) and 1 / (e + 1); values 10 and 20."""
    query = torch.tensor([2.0, 0.0, 0.0, 0.0]).view(1, 1, 1, 4)
    key = torch.tensor([[1.0, 0, 0, 0], [0.0, 0, 0, 0]]).view(1, 1, 2, 4)
    value = torch.tensor([[10.0] * 4, [20.0] * 4]).view(1, 1, 2, 4)
    everything = torch.ones(1, 1, 1, 2, dtype=torch.bool)
    expected = (10 * math.e + 20) / (math.e + 1)
    assert attention(query, key, value, everything)[0, 0, 0].item() == pytest.approx(expected, rel=1e-6)
    first_only = torch.tensor([True, False]).view(1, 1, 1, 2)
    assert attention(query, key, value, first_only)[0, 0, 0].item() == 10.0


def test_query_heads_share_key_heads_in_order():
    """Four query heads over two key heads: heads 0 and 1 use the first, 2 and 3 the second."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 3, 4, 8, generator=generator)
    key, value = torch.randn(2, 2, 2, 3, 8, generator=generator)
    mask = causal_mask(torch.arange(3)[None], 3, None)
    grouped = attention(query, key, value, mask)
    repeated = attention(query, key[:, [0, 0, 1, 1]], value[:, [0, 0, 1, 1]], mask)
    assert torch.equal(grouped, repeated)
    assert not torch.allclose(grouped, attention(query, key[:, [0, 1, 0, 1]], value[:, [0, 1, 0, 1]], mask))


def test_masked_keys_change_nothing_whatever_they_hold():
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 4, 2, 8, generator=generator)
    key, value = torch.randn(2, 1, 2, 4, 8, generator=generator)
    mask = causal_mask(torch.arange(4)[None], 4, None)
    before = attention(query, key, value, mask)
    key[:, :, 3], value[:, :, 3] = 1e4, -1e4
    assert torch.equal(attention(query, key, value, mask)[:, :3], before[:, :3])


def test_a_causal_mask_follows_positions_and_window():
    positions = torch.tensor([[0, 1, 2], [3, 4, 5]])
    mask = causal_mask(positions, 6, None)
    assert mask.shape == (2, 1, 3, 6)
    assert mask.sum(-1).flatten().tolist() == [1, 2, 3, 4, 5, 6]
    assert causal_mask(positions, 6, 2)[1, 0].int().tolist() == [
        [0, 0, 1, 1, 0, 0],
        [0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 1, 1],
    ]
