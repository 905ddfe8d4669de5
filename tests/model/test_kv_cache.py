"""The key/value cache, plain and fast: what is written where, and what repeat_interleave and select keep."""

from __future__ import annotations

import pytest
import torch

from taosr1.fast.decoder import use_fast_modules
from taosr1.fast.kv_cache import FastKVCache
from taosr1.model.kv_cache import KVCache


@pytest.fixture(params=[KVCache, FastKVCache], ids=["plain", "fast"])
def filled(request, make_model):
    """A model and a cache holding three prompts of 2, 5 and 3 tokens, with those prompts."""
    model = make_model() if request.param is KVCache else use_fast_modules(make_model())
    ids = torch.randint(97, (3, 5), generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([2, 5, 3])
    cache = request.param(model.config, 3, 8)
    with torch.no_grad():
        model(ids, cache=cache)
    cache.lengths.copy_(lengths)
    return model, cache, ids, lengths


def next_logits(model, cache, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens[:, None], cache=cache)[:, 0]


def test_repeated_rows_decode_like_their_prompt(filled, assert_close):
    model, cache, ids, lengths = filled
    expanded = cache.repeat_interleave(2)
    assert (expanded.rows, expanded.capacity, type(expanded)) == (6, 8, type(cache))
    assert expanded.lengths.tolist() == [2, 2, 5, 5, 3, 3]
    tokens = torch.arange(6) + 10  # different first tokens for the samples of one prompt
    got = next_logits(model, expanded, tokens)
    with torch.no_grad():
        for row in range(6):
            prompt = ids[row // 2, : lengths[row // 2]]
            assert_close(got[row], model(torch.cat((prompt, tokens[row : row + 1]))[None])[0, -1])


def test_selected_rows_keep_their_content_and_order(filled, assert_close):
    model, cache, _, _ = filled
    tokens = torch.tensor([11, 12, 13])
    expected = next_logits(model, cache.select(torch.arange(3)), tokens)
    by_index = cache.select(torch.tensor([2, 0]))
    assert by_index.lengths.tolist() == [3, 2]
    assert_close(next_logits(model, by_index, tokens[[2, 0]]), expected[[2, 0]])
    by_mask = cache.select(torch.tensor([False, True, True]))
    assert_close(next_logits(model, by_mask, tokens[1:]), expected[1:])


def test_a_copy_shares_nothing_with_its_source(filled):
    model, cache, _, _ = filled
    keys, lengths = cache.keys.clone(), cache.lengths.clone()
    copy = cache.repeat_interleave(1)
    next_logits(model, copy, torch.tensor([1, 2, 3]))
    copy.lengths += 1
    assert torch.equal(cache.keys, keys) and torch.equal(cache.lengths, lengths)


def test_only_slots_up_to_the_furthest_position_are_read(filled):
    model, cache, _, _ = filled
    keys = []
    update = cache.update
    cache.update = lambda *new: keys.append(update(*new)) or keys[-1]
    next_logits(model, cache, torch.tensor([1, 2, 3]))
    assert cache.used == 6 and all(key.shape[2] == value.shape[2] == 6 for key, value in keys)  # of 8


def test_garbage_beyond_a_rows_position_is_never_seen(filled, assert_close):
    model, cache, _, lengths = filled
    tokens = torch.tensor([11, 12, 13])
    expected = next_logits(model, cache.select(torch.arange(3)), tokens)
    for row, length in enumerate(lengths.tolist()):
        cache.keys[:, row, :, length:], cache.values[:, row, :, length:] = 1e4, -1e4
    assert_close(next_logits(model, cache, tokens), expected)


def test_bad_use_says_what_is_wrong(filled):
    model, cache, ids, _ = filled
    with pytest.raises(ValueError, match="2 rows but the cache has 3"):
        next_logits(model, cache, torch.tensor([1, 2]))
    with pytest.raises(ValueError, match=r"positions run from 2 to 9 but the cache holds 0 to 7"):
        with torch.no_grad():
            model(ids, cache=cache)
    with pytest.raises(ValueError, match="rows >= 1"):
        KVCache(model.config, 0, 8)
