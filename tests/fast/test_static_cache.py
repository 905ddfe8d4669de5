"""Samples of shared prompts as a GPU decodes them against each row alone; test_gpu.py records the same steps."""

from __future__ import annotations

import pytest
import torch

from taosr1.fast import generate as fast_generate
from taosr1.fast import shared_prefix_cache
from taosr1.fast.decoder import use_fast_modules
from taosr1.fast.generate import generate
from taosr1.fast.kv_cache import ConcatCache
from taosr1.fast.static_cache import StaticCache
from taosr1.model.config import DecoderConfig
from taosr1.model.decoder import Decoder
from taosr1.sampling.generate import generate as plain_generate
from tests.prefix_cases import PREFIX_OF, PREFIXES, alone, draw, prefilled


@pytest.mark.parametrize("prefix_of", [PREFIX_OF, [0, 0, 1, 1, 2, 2]])
def test_rows_equal_each_row_alone(family, twins, assert_close, prefix_of):
    # A sliding window that all rows fit into.
    plain, model = twins(family, **({"sliding_window": 11} if family == "mistral" else {}))
    cache, prefixes = prefilled(model)
    rows, own, parts = StaticCache.of(cache, torch.tensor(prefix_of), 4), draw(6, 4, 1), []
    with torch.no_grad():
        for token in own.split(1, dim=1):
            parts.append(model(token, cache=rows))
            rows.advance(1)
    assert rows.lengths.tolist() == [PREFIXES[prefix] + 4 for prefix in prefix_of] and rows.used == 7 + 4
    for row, prefix in enumerate(prefix_of):
        assert_close(torch.cat(parts, 1)[row], alone(plain, prefixes[prefix], own[row].tolist()))


def test_selected_and_concatenated_rows_continue_as_before(twins, assert_close):
    plain, model = twins()
    cache, prefixes = prefilled(model)
    rows, later = (StaticCache.of(cache, torch.tensor(PREFIX_OF), 4) for _ in range(2))
    own = draw(6, 4, 1)
    with torch.no_grad():
        for column in range(2):
            model(own[:, column : column + 1], cache=rows)
            rows.advance(1)
        kept = torch.tensor([1, 3, 5])
        selected = rows.select(kept)
        both = ConcatCache([selected, later])
        assert selected.keys.shape[1] == 2 and both.lengths.tolist() == [7, 9, 9, 5, 5, 2, 7, 7, 7]
        got = model(torch.cat([own[kept, 2:3], own[:, :1]]), cache=both)
        both.advance(1)
        assert both.lengths.tolist() == [8, 10, 10, 6, 6, 3, 8, 8, 8]
        fewer = ConcatCache([selected.select(torch.tensor([2])), later.select(torch.tensor([0, 5]))])
        then = model(torch.cat([own[5:, 3:], own[[0, 5], 1:2]]), cache=fewer)
    for place, row in enumerate(kept.tolist()):
        assert_close(got[place], alone(plain, prefixes[PREFIX_OF[row]], own[row].tolist())[2:3])
    for place, (row, column) in enumerate(((5, 3), (0, 1), (5, 1))):
        assert_close(then[place, 0], alone(plain, prefixes[PREFIX_OF[row]], own[row].tolist())[column])


@pytest.mark.parametrize("recorded", [False, True])
def test_the_longest_row_may_leave_before_the_others_reach_the_models_last_position(monkeypatch, recorded):
    """40 positions, prompts of 5 and 30 tokens, replies of up to 25: the second stops after three tokens."""
    config = DecoderConfig(97, 24, 40, 2, 4, 2, 8, max_position_embeddings=40)
    model = use_fast_modules(Decoder(config).init_weights(torch.Generator().manual_seed(0)))
    settings = {"max_new_tokens": 25, "stop_ids": [96], "temperature": 0, "first_tokens": torch.tensor([1, 2])}
    prompts, steps, head = [[1, 2, 3, 4, 5], [7] * 30], [], model.head

    def forced(states):  # the long row's third token is the stop
        logits = head(states)
        steps.append(len(logits))
        if len(steps) == 3:
            logits[1, 96] = 1e4
        return logits

    monkeypatch.setattr(model, "head", forced)
    monkeypatch.setattr(shared_prefix_cache, "can_use_triton", lambda keys, head_dim: True)
    monkeypatch.setattr(fast_generate, "can_record", lambda model, caches: recorded)
    assert generate(model, prompts, **settings).lengths.tolist() == [25, 3]
    if recorded:  # half of the rows may be finished before any leaves
        assert steps[:12] == [*[2] * 11, 1]
    else:
        assert steps[:4] == [2, 2, 2, 1]


def test_too_many_tokens_several_at_once_and_sliding_windows_are_refused(make_fast_model):
    model = make_fast_model()
    cache, _ = prefilled(model)
    rows = StaticCache.of(cache, torch.tensor(PREFIX_OF), 1)
    with torch.no_grad(), pytest.raises(ValueError, match="2 tokens a row: StaticCache takes one"):
        model(draw(6, 2, 1), cache=rows)
    with torch.no_grad(), pytest.raises(ValueError, match="2 tokens a row, but the cache holds 1"):
        for _ in range(2):
            model(draw(6, 1, 1), cache=rows)
            rows.advance(1)
    cache, _ = prefilled(make_fast_model("mistral", sliding_window=10))
    with pytest.raises(ValueError, match="sliding window of 10"):
        StaticCache.of(cache, torch.tensor(PREFIX_OF), 4)


@pytest.mark.parametrize("recorded", [False, True])
def test_replies_are_those_of_the_plain_sampler(twins, monkeypatch, recorded):
    """Everything that would use `SharedPrefixCache` uses `StaticCache`; rows end, leave, and others enter."""
    monkeypatch.setattr(fast_generate, "can_record", lambda model, caches: recorded)
    monkeypatch.setattr(shared_prefix_cache, "can_use_triton", lambda keys, head_dim: True)
    (plain, model), generator = twins(), torch.Generator().manual_seed(0)
    prompts = [torch.randint(97, (length,), generator=generator).tolist() for length in (20, 9, 31, 20)]
    settings = {"samples": 3, "max_new_tokens": 12, "stop_ids": (3, 7, 11, 13, 17, 19)}
    found = generate(model, prompts, **settings, generator=torch.Generator().manual_seed(1), max_rows=6)
    expected = plain_generate(plain, prompts, **settings, generator=torch.Generator().manual_seed(1))
    assert torch.equal(found.tokens, expected.tokens) and torch.equal(found.lengths, expected.lengths)
    assert found.lengths.unique().numel() > 3
    torch.testing.assert_close(found.logp, expected.logp, rtol=1e-4, atol=1e-5)
