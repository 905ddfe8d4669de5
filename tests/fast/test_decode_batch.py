"""Replies that share a row until they diverge: the plain sampler's replies, with a row for each distinct beginning."""

from __future__ import annotations

import copy

import pytest
import torch

from taosr1.fast import generate as fast_generate
from taosr1.fast import shared_prefix_cache
from taosr1.fast.decoder import use_fast_modules
from taosr1.fast.generate import generate
from taosr1.model.config import DecoderConfig
from taosr1.model.decoder import Decoder
from taosr1.sampling.generate import generate as plain_generate
from taosr1.sampling.rollouts import Rollouts

VOCAB, STOPS, SAMPLES = 61, (3, 7, 11, 13, 17, 19), 6


@pytest.fixture(scope="module")
def plain_model() -> Decoder:
    shape = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    model = Decoder(DecoderConfig(VOCAB, **shape, **heads, max_position_embeddings=64, tie_word_embeddings=False))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3 + (1.0 if "norm" in name else 0.0))
    return model.double()  # low temperatures magnify rounding


@pytest.fixture(scope="module")
def model(plain_model) -> Decoder:
    return use_fast_modules(copy.deepcopy(plain_model))


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(VOCAB, (length,), generator=generator).tolist() for length in (5, 1, 9, 3, 9, 2, 4)]


def sample(model, prompts, seed: int = 0, function=generate, **settings) -> Rollouts:
    settings = {"samples": SAMPLES, "max_new_tokens": 14, "stop_ids": STOPS, **settings}
    return function(model, prompts, generator=torch.Generator().manual_seed(seed), **settings)


def assert_same(got: Rollouts, expected: Rollouts) -> None:
    assert got.replies() == expected.replies()
    assert torch.equal(got.tokens, expected.tokens) and torch.equal(got.finished, expected.finished)
    torch.testing.assert_close(got.logp, expected.logp, rtol=0, atol=1e-5)


@pytest.fixture
def rows_of_steps(model, monkeypatch) -> list[int]:
    """Rows of every decode step."""
    rows, hidden = [], model.hidden

    def counted(ids, **given):
        if ids.shape[1] == 1:
            rows.append(len(ids))
        return hidden(ids, **given)

    monkeypatch.setattr(model, "hidden", counted)
    return rows


def distinct_beginnings(found: Rollouts) -> set[tuple]:
    """Every beginning of a reply after which a reply continues, with its prompt: what has to be computed."""
    replies = enumerate(found.replies())
    return {(row // SAMPLES, tuple(reply[:end])) for row, reply in replies for end in range(1, len(reply))}


@pytest.mark.parametrize(
    "settings",
    [{}, {"temperature": 0.2}, {"temperature": 0.5}, {"top_k": 2}, {"top_p": 0.7}, {"max_rows": 13}, {"samples": 1}],
)
def test_replies_and_log_probs_are_those_of_the_plain_sampler(model, plain_model, prompts, settings):
    for seed in range(4):
        plain_settings = {name: value for name, value in settings.items() if name != "max_rows"}
        expected = sample(plain_model, prompts, seed, plain_generate, **plain_settings)
        assert_same(sample(model, prompts, seed, **settings), expected)


@pytest.mark.parametrize("temperature", [0.15, 0.3, 1.0])
def test_what_several_replies_have_in_common_is_computed_once(model, prompts, rows_of_steps, monkeypatch, temperature):
    monkeypatch.setattr(fast_generate, "COMPACT_BELOW", 1.0)  # rows leave as soon as they are finished
    found = sample(model, prompts, temperature=temperature)
    assert sum(rows_of_steps) == len(distinct_beginnings(found))
    replies = int((found.lengths - 1).sum())  # tokens that are fed back
    assert {0.15: 0.55, 0.3: 0.75, 1.0: 1.0}[temperature] * replies > sum(rows_of_steps) > 0.15 * replies


def test_greedy_replies_to_a_prompt_are_one_row(model, prompts, rows_of_steps):
    found = sample(model, prompts, temperature=0)
    assert max(rows_of_steps) <= len(prompts)
    single = sample(model, prompts, temperature=0, samples=1)
    assert found.replies() == [reply for reply in single.replies() for _ in range(SAMPLES)]


def test_forced_first_tokens_that_are_equal_begin_one_row(model, plain_model, prompts, rows_of_steps):
    first = torch.tensor([[20, 21, 20, 20, STOPS[0], 21]] * len(prompts))
    expected = sample(plain_model, prompts, function=plain_generate, first_tokens=first)
    assert_same(sample(model, prompts, first_tokens=first), expected)
    assert rows_of_steps[0] == 2 * len(prompts)  # 20 and 21; a reply that stops at once has no row


def test_a_reply_that_ends_does_not_end_the_others_of_its_row(model, plain_model, prompts):
    """Every second token is a stop: of replies in one row some stop and some continue, whichever came first."""
    stops, several = tuple(range(0, VOCAB, 2)), 0
    for seed in range(6):
        found = sample(model, prompts, seed, stop_ids=stops, temperature=0.5, max_rows=12)
        assert_same(found, sample(plain_model, prompts, seed, plain_generate, stop_ids=stops, temperature=0.5))
        groups = [found.replies()[at : at + SAMPLES] for at in range(0, len(found.lengths), SAMPLES)]
        for group in groups:
            several += any(a[:-1] == b[: len(a) - 1] and len(a) < len(b) for a in group for b in group)
    assert several > 10


def test_finished_replies_make_room_even_if_another_continues_in_their_row(model, monkeypatch):
    """All tokens of a prompt's replies are equal, but five of six stop after three: the next prompts enter then."""
    calls, hidden = [], model.hidden

    def counted(ids, **given):
        calls.append(tuple(ids.shape))
        return hidden(ids, **given)

    def choose(logits, uniform, *, row_of, **settings):
        replies = torch.arange(len(row_of))
        return torch.where((uniform > 0.5) & (len(calls) % 3 == 0), STOPS[0], 20), replies * 0.0

    monkeypatch.setattr(model, "hidden", counted)
    monkeypatch.setattr(fast_generate, "choose_tokens", choose)
    uniform = torch.ones(20 * SAMPLES, 30)
    uniform[::SAMPLES] = 0  # the first of each six never stops
    settings = {"samples": SAMPLES, "max_new_tokens": 30, "stop_ids": STOPS, "uniform": uniform}
    found = generate(model, [[5, number] for number in range(20)], **settings, max_rows=4 * SAMPLES)
    lengths = found.lengths.view(20, SAMPLES)
    assert lengths[:, 0].tolist() == [30] * 20 and int(lengths[:, 1:].max()) < 5
    assert len(calls) < 100  # four prompts at a time, each until its longest reply ends, would be 5 x 30


def test_where_rows_cannot_fork_every_reply_has_its_own(model, plain_model, prompts, rows_of_steps, monkeypatch):
    expected = sample(plain_model, prompts, function=plain_generate)
    monkeypatch.setattr(shared_prefix_cache, "can_use_triton", lambda keys, head_dim: True)  # the caches of a GPU
    assert_same(sample(model, prompts), expected)
    assert rows_of_steps[0] >= sum(length > 1 for length in expected.lengths.tolist())
