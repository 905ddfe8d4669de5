"""Replies that have said the same so far are one row: the same replies as with a row for each, and no more rows than there are things said."""

from __future__ import annotations

import pytest
import torch

from taosr1.fast import generate as sampler
from taosr1.fast import shared_prefix_cache as shared_cache
from taosr1.fast.generate import Rollouts, generate
from taosr1.fast.onednn_linear import plain_paths
from taosr1.model.decoder import Decoder, DecoderConfig

VOCAB, STOPS, SAMPLES = 61, (3, 7, 11, 13, 17, 19), 6


@pytest.fixture(scope="module")
def model() -> Decoder:
    shape = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = Decoder(DecoderConfig(VOCAB, **shape, head_dim=8, max_position_embeddings=64, tie_word_embeddings=False))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3 + (1.0 if "norm" in name else 0.0))
    return model.double()  # low temperatures magnify what is rounded


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(VOCAB, (length,), generator=generator).tolist() for length in (5, 1, 9, 3, 9, 2, 4)]


def sample(model, prompts, seed: int = 0, **settings) -> Rollouts:
    settings = {"samples": SAMPLES, "max_new_tokens": 14, "stop_ids": STOPS, **settings}
    return generate(model, prompts, generator=torch.Generator().manual_seed(seed), **settings)


def assert_same(got: Rollouts, expected: Rollouts) -> None:
    assert got.replies() == expected.replies() and torch.equal(got.tokens, expected.tokens) and torch.equal(got.finished, expected.finished)
    torch.testing.assert_close(got.logp, expected.logp, rtol=0, atol=1e-5)


@pytest.fixture
def heights(model, monkeypatch) -> list[int]:
    """Rows of every decode step."""
    seen, hidden = [], model.hidden
    monkeypatch.setattr(model, "hidden", lambda ids, **given: (seen.append(len(ids)) if ids.shape[1] == 1 else None, hidden(ids, **given))[1])
    return seen


def said(found: Rollouts, samples: int = SAMPLES) -> set[tuple]:
    """Every beginning of a reply after which somebody goes on, with its prompt: what has to be computed."""
    return {(row // samples, tuple(reply[:end])) for row, reply in enumerate(found.replies()) for end in range(1, len(reply))}


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.2}, {"temperature": 0.5}, {"top_k": 2}, {"top_p": 0.7}, {"max_rows": 13}, {"samples": 1}])
def test_replies_and_log_probs_are_those_of_a_row_for_each(model, prompts, settings):
    for seed in range(4):
        with plain_paths():
            expected = sample(model, prompts, seed, **settings)
        assert_same(sample(model, prompts, seed, **settings), expected)


@pytest.mark.parametrize("temperature", [0.15, 0.3, 1.0])
def test_what_several_replies_say_alike_is_computed_once(model, prompts, heights, monkeypatch, temperature):
    monkeypatch.setattr(sampler, "COMPACT_BELOW", 1.0)  # rows leave as soon as nobody writes in them
    found = sample(model, prompts, temperature=temperature)
    assert sum(heights) == len(said(found))
    replies = int((found.lengths - 1).sum())  # tokens that are fed back
    assert {0.15: 0.55, 0.3: 0.75, 1.0: 1.0}[temperature] * replies > sum(heights) > 0.15 * replies
    heights.clear()
    with plain_paths():
        sample(model, prompts, temperature=temperature)
    assert sum(heights) == replies


def test_greedy_replies_to_a_prompt_are_one_row(model, prompts, heights):
    found = sample(model, prompts, temperature=0)
    assert max(heights) <= len(prompts)
    single = sample(model, prompts, temperature=0, samples=1)
    assert found.replies() == [reply for reply in single.replies() for _ in range(SAMPLES)]


def test_forced_first_tokens_that_are_equal_begin_one_row(model, prompts, heights):
    first = torch.tensor([[20, 21, 20, 20, STOPS[0], 21]] * len(prompts))
    with plain_paths():
        expected = sample(model, prompts, first_tokens=first)
    heights.clear()
    found = sample(model, prompts, first_tokens=first)
    assert_same(found, expected)
    assert heights[0] == 2 * len(prompts)  # 20 and 21; who stops at once has no row


def test_a_reply_that_ends_does_not_take_the_others_of_its_row_along(model, prompts):
    """Every token may be the last: of replies in one row some stop and some go on, whichever of them came first."""
    stops, several = tuple(range(0, VOCAB, 2)), 0
    for seed in range(6):
        found = sample(model, prompts, seed, stop_ids=stops, temperature=0.5, max_rows=12)
        with plain_paths():
            assert_same(found, sample(model, prompts, seed, stop_ids=stops, temperature=0.5))
        replies = [found.replies()[at : at + SAMPLES] for at in range(0, len(found.lengths), SAMPLES)]
        several += sum(any(a[:-1] == b[: len(a) - 1] and len(a) < len(b) for a in group for b in group) for group in replies)
    assert several > 10


def test_replies_that_have_ended_make_room_though_another_goes_on_in_their_row(model, monkeypatch):
    """All tokens of a prompt's replies are alike, but five of six stop after three: the next prompts may enter then."""
    calls, forced = [], model.hidden

    def hidden(ids, **given):
        calls.append(tuple(ids.shape))
        return forced(ids, **given)

    def choose(logits, uniform, *, row_of, **settings):
        replies = torch.arange(len(row_of))
        return torch.where((uniform > 0.5) & (len(calls) % 3 == 0), STOPS[0], 20), replies * 0.0

    monkeypatch.setattr(model, "hidden", hidden)
    monkeypatch.setattr(sampler, "choose_tokens", choose)
    uniform = torch.ones(20 * SAMPLES, 30)
    uniform[::SAMPLES] = 0  # the first of each six never stops
    found = generate(model, [[5, number] for number in range(20)], samples=SAMPLES, max_new_tokens=30, stop_ids=STOPS, uniform=uniform, max_rows=4 * SAMPLES)
    assert found.lengths.view(20, SAMPLES)[:, 0].tolist() == [30] * 20 and int(found.lengths.view(20, SAMPLES)[:, 1:].max()) < 5
    assert len(calls) < 100  # four prompts at a time, each until its longest reply ends, would be 5 x 30


def test_where_rows_cannot_fork_every_reply_has_its_own(model, prompts, heights, monkeypatch):
    with plain_paths():
        expected = sample(model, prompts)
    heights.clear()
    monkeypatch.setattr(shared_cache, "can_use_triton", lambda keys, head_dim: True)  # the caches of a GPU
    assert_same(sample(model, prompts), expected)
    assert heights[0] >= sum(length > 1 for length in expected.lengths.tolist())
