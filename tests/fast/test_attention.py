"""Fused attention against the plain one, and over a shared prefix against rows that each have a copy of the prefix."""

from __future__ import annotations

import pytest
import torch

from taosr1.fast.attention import PrefixGrouping, copied_prefix_attention, fused_attention, shared_attention
from taosr1.model.attention import attention, causal_mask

HEADS, SIZE = 6, 8


def case(prefix_of, lengths, *, kv_heads: int = 2, length: int = 1, own: int = 3, seed: int = 0, dtype: torch.dtype = torch.float32):
    """Arguments up to `mask`, and prefix_of; prefixes of different lengths, padded with garbage."""
    generator = torch.Generator().manual_seed(seed)
    rows, prefixes, longest = len(prefix_of), len(lengths), max(lengths)
    query = torch.randn(rows, length, HEADS, SIZE, generator=generator)
    prefix = torch.randn(2, prefixes, kv_heads, longest, SIZE, generator=generator)
    mine = torch.randn(2, rows, kv_heads, own + length, SIZE, generator=generator)
    real = torch.arange(longest) < torch.tensor(lengths)[:, None]
    prefix[:, ~real[:, None].expand(-1, kv_heads, -1)] = 50.0
    mask = None
    if length > 1:
        columns = torch.arange(own + length)
        mask = (columns <= columns[own:, None])[None, None]
    return [query.to(dtype), *prefix.to(dtype), None if bool(real.all()) else real, *mine.to(dtype), mask], torch.tensor(prefix_of)


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
@pytest.mark.parametrize("length", [1, 4])
@pytest.mark.parametrize(
    ("prefix_of", "lengths"),
    [([0], [5]), ([0, 0, 0], [5]), ([0, 0, 1, 1], [4, 4]), ([0, 0, 0, 1, 2, 2], [3, 7, 5]), ([1, 1, 3], [3, 4, 6, 2])],
)
def test_shared_equals_copied(prefix_of, lengths, length, kv_heads):
    arguments, of = case(prefix_of, lengths, length=length, kv_heads=kv_heads)
    got = shared_attention(*arguments, PrefixGrouping(of, len(lengths)))
    torch.testing.assert_close(got, copied_prefix_attention(*arguments, of), rtol=1e-5, atol=1e-5)
    assert got.shape == (len(prefix_of), length, HEADS * SIZE)


def test_wrong_twins_are_told_apart():
    arguments, of = case([0, 0, 0, 1, 2, 2], [3, 7, 5], length=4)
    right = copied_prefix_attention(*arguments, of)
    for place, wrong in ((3, None), (6, None)):  # without the prefix's mask, without the causal one
        twin = shared_attention(*(wrong if i == place else x for i, x in enumerate(arguments)), PrefixGrouping(of, 3))
        assert (twin - right).abs().max() > 0.05
    other = shared_attention(*arguments, PrefixGrouping(torch.tensor([0, 0, 1, 1, 2, 2]), 3))  # a row behind another prefix
    assert (other[2] - right[2]).abs().max() > 0.05 and torch.allclose(other[3:], right[3:], atol=1e-5)


def test_masks_are_not_written_into_the_keys():
    arguments, of = case([0, 1], [3, 5], length=4)
    before = [x.clone() for x in arguments if x is not None]
    shared_attention(*arguments, PrefixGrouping(of, 2))
    assert all(torch.equal(x, y) for x, y in zip(before, [x for x in arguments if x is not None]))


def test_bfloat16_scores_are_normalised_in_float32():
    arguments, of = case([0, 0, 1], [300, 300], dtype=torch.bfloat16)
    wide = [x.float() if x is not None and x.is_floating_point() else x for x in arguments]
    torch.testing.assert_close(shared_attention(*arguments, PrefixGrouping(of, 2)).float(), shared_attention(*wide, PrefixGrouping(of, 2)), rtol=0, atol=0.02)


@pytest.mark.parametrize("prefix_of", [[0], [0, 0, 1, 1], [0, 1, 1, 1, 3]])
def test_a_grid_gives_rows_back_as_they_were(prefix_of):
    grid, x = PrefixGrouping(torch.tensor(prefix_of), 4), torch.randn(len(prefix_of), 2, 3, 5)
    there = grid.to_prefixes(x)
    assert there.shape == (4, 2, grid.places * 3, 5) and torch.equal(grid.to_rows(there), x)
    for row, prefix in enumerate(prefix_of):  # and each row does stand with its prefix
        place = prefix_of[:row].count(prefix)
        assert torch.equal(there[prefix, :, 3 * place : 3 * place + 3], x[row])


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fused_attention_is_the_plain_one(kv_heads, dtype):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(3, 5, HEADS, SIZE, generator=generator, dtype=dtype)
    key, value = torch.randn(2, 3, kv_heads, 5, SIZE, generator=generator, dtype=dtype)
    causal = causal_mask(torch.arange(5)[None], 5, None)
    window = causal_mask(torch.arange(5)[None], 5, 2)
    torch.testing.assert_close(fused_attention(query, key, value, None), attention(query, key, value, causal))
    torch.testing.assert_close(fused_attention(query, key, value, window), attention(query, key, value, window))
    last, everything = query[:, -1:], torch.ones(1, 1, 1, 5, dtype=torch.bool)
    torch.testing.assert_close(fused_attention(last, key, value, None), attention(last, key, value, everything))
