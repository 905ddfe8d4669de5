"""Fused attention against the plain one, and over a shared prefix against rows that each have a copy of the prefix."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from taosr1.fast.attention import (
    PrefixGrouping,
    copied_prefix_attention,
    fused_attention,
    one_token_attention,
    shared_attention,
)
from taosr1.model.attention import attention, causal_mask

HEADS, SIZE = 6, 8


def case(prefix_of, lengths, *, kv_heads: int = 2, length: int = 1, own: int = 3, dtype: torch.dtype = torch.float32):
    """Arguments up to `mask`, and prefix_of; prefixes of different lengths, padded with garbage."""
    generator = torch.Generator().manual_seed(0)
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
    prefix_mask = None if bool(real.all()) else real
    return [query.to(dtype), *prefix.to(dtype), prefix_mask, *mine.to(dtype), mask], torch.tensor(prefix_of)


def row_by_row(query, prefix_key, prefix_value, prefix_mask, key, value, mask, prefix_of) -> torch.Tensor:
    """Plain attention of each row to the real tokens of its prefix and to its own."""
    rows = []
    for row, prefix in enumerate(prefix_of.tolist()):
        real = slice(None) if prefix_mask is None else prefix_mask[prefix]
        keys = torch.cat([prefix_key[prefix, :, real], key[row]], 1)[None]
        values = torch.cat([prefix_value[prefix, :, real], value[row]], 1)[None]
        own = torch.ones(1, 1, query.shape[1], key.shape[2], dtype=torch.bool) if mask is None else mask
        prefix_columns = own.new_ones(1, 1, query.shape[1], keys.shape[2] - key.shape[2])
        rows.append(attention(query[row : row + 1], keys, values, torch.cat([prefix_columns, own], -1)))
    return torch.cat(rows)


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
@pytest.mark.parametrize("length", [1, 4])
@pytest.mark.parametrize(
    ("prefix_of", "lengths"),
    [([0], [5]), ([0, 0, 0], [5]), ([0, 0, 1, 1], [4, 4]), ([0, 0, 0, 1, 2, 2], [3, 7, 5]), ([1, 1, 3], [3, 4, 6, 2])],
)
def test_attention_with_shared_and_with_copied_prefixes_is_the_plain_one(prefix_of, lengths, length, kv_heads):
    arguments, of = case(prefix_of, lengths, length=length, kv_heads=kv_heads)
    expected = row_by_row(*arguments, of)
    assert expected.shape == (len(prefix_of), length, HEADS * SIZE)
    shared = shared_attention(*arguments, PrefixGrouping(of, len(lengths)))
    torch.testing.assert_close(shared, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(copied_prefix_attention(*arguments, of), expected, rtol=1e-5, atol=1e-5)


def test_wrong_twins_are_told_apart():
    arguments, of = case([0, 0, 0, 1, 2, 2], [3, 7, 5], length=4)
    right = copied_prefix_attention(*arguments, of)
    for place, wrong in ((3, None), (6, None)):  # without the prefix's mask, without the causal one
        twin = shared_attention(*(wrong if i == place else x for i, x in enumerate(arguments)), PrefixGrouping(of, 3))
        assert (twin - right).abs().max() > 0.05
    another_prefix = torch.tensor([0, 0, 1, 1, 2, 2])
    other = shared_attention(*arguments, PrefixGrouping(another_prefix, 3))
    assert (other[2] - right[2]).abs().max() > 0.05 and torch.allclose(other[3:], right[3:], atol=1e-5)


def test_masks_are_not_written_into_the_keys():
    arguments, of = case([0, 1], [3, 5], length=4)
    before = [x.clone() for x in arguments if x is not None]
    shared_attention(*arguments, PrefixGrouping(of, 2))
    assert all(torch.equal(x, y) for x, y in zip(before, [x for x in arguments if x is not None]))


def test_bfloat16_scores_are_normalised_in_float32():
    arguments, of = case([0, 0, 1], [300, 300], dtype=torch.bfloat16)
    wide = [x.float() if x is not None and x.is_floating_point() else x for x in arguments]
    half, full = (shared_attention(*given, PrefixGrouping(of, 2)).float() for given in (arguments, wide))
    torch.testing.assert_close(half, full, rtol=0, atol=0.02)


@pytest.mark.parametrize("prefix_of", [[0], [0, 0, 1, 1], [0, 1, 1, 1, 3]])
def test_grouped_rows_come_back_as_they_were(prefix_of):
    grouping, x = PrefixGrouping(torch.tensor(prefix_of), 4), torch.randn(len(prefix_of), 2, 3, 5)
    grouped = grouping.to_prefixes(x)
    assert grouped.shape == (4, 2, grouping.places * 3, 5) and torch.equal(grouping.to_rows(grouped), x)
    for row, prefix in enumerate(prefix_of):  # and each row is with its prefix
        place = prefix_of[:row].count(prefix)
        assert torch.equal(grouped[prefix, :, 3 * place : 3 * place + 3], x[row])


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


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_one_token_attention_is_the_plain_one(kv_heads):
    """Keys have two more columns than values, which are ignored; the first three columns may be masked."""
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(3, 1, HEADS, SIZE, generator=generator), torch.randn(3, kv_heads, 7, SIZE)
    value, hidden = torch.randn(3, kv_heads, 5, SIZE, generator=generator), torch.zeros(3, 1, 1, 3, dtype=torch.bool)
    hidden[1, ..., 1:] = True
    for masked, mask in ((None, torch.ones(3, 1, 1, 5, dtype=torch.bool)), (hidden, ~F.pad(hidden, (0, 2)))):
        expected = attention(query, key[:, :, :5], value, mask)
        torch.testing.assert_close(one_token_attention(query, key, value, masked), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("length", [8, 400])  # by the math kernel and by the fused one
def test_attention_under_autocast_is_the_plain_one_with_its_gradients(length):
    generator, results = torch.Generator().manual_seed(0), []
    tensors = [torch.randn(1, *shape, SIZE, generator=generator) for shape in ((length, 4), (2, length), (2, length))]
    causal = causal_mask(torch.arange(length)[None], length, None)
    for function, mask, dtype in ((fused_attention, None, torch.bfloat16), (attention, causal, torch.float32)):
        query, key, value = (x.to(dtype).requires_grad_() for x in tensors)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            out = function(query, key, value, mask)
        out.float().square().sum().backward()
        results.append([x.float().flatten() for x in (out.detach(), query.grad, key.grad, value.grad)])
    for ours, plain in zip(*results):
        assert F.cosine_similarity(ours, plain, dim=0) > 0.999
