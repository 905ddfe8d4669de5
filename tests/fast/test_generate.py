"""Continuous batching against the plain sampler: what enters, what leaves, and what is never in memory at once."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch

from taosr1.fast import generate as fast_generate
from taosr1.fast.decoder import use_fast_modules
from taosr1.fast.generate import generate
from taosr1.fast.label_probs import label_probabilities
from taosr1.model.config import DecoderConfig
from taosr1.model.decoder import Decoder
from taosr1.sampling import generate as plain_generate
from taosr1.sampling.rollouts import Rollouts

VOCAB, STOPS = 61, (3, 7, 11, 13, 17, 19)
LENGTHS = [5, 1, 9, 3, 9, 2]


@pytest.fixture(scope="module")
def plain_model() -> Decoder:
    shape = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    model = Decoder(DecoderConfig(VOCAB, **shape, **heads, max_position_embeddings=64, tie_word_embeddings=False))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # weights large enough that the prompt matters to the reply
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3 + (1.0 if "norm" in name else 0.0))
    return model


@pytest.fixture(scope="module")
def model(plain_model) -> Decoder:
    return use_fast_modules(copy.deepcopy(plain_model))


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(VOCAB, (length,), generator=generator).tolist() for length in LENGTHS]


def sample(model, prompts, seed: int = 0, function=generate, **settings) -> Rollouts:
    settings = {"samples": 4, "max_new_tokens": 12, "stop_ids": STOPS, **settings}
    return function(model, prompts, generator=torch.Generator().manual_seed(seed), **settings)


def draw_first_tokens(model, prompts, uniform: torch.Tensor, temperature: float, **settings) -> torch.Tensor:
    tokenizer = SimpleNamespace(label_ids=(20, 21, 22, 23))
    found = label_probabilities(model, tokenizer, prompts, uniform=uniform, temperature=temperature, **settings)
    return found.first_tokens


def assert_same(got: Rollouts, expected: Rollouts) -> None:
    assert got.replies() == expected.replies() and torch.equal(got.tokens, expected.tokens)
    assert torch.equal(got.finished, expected.finished)
    torch.testing.assert_close(got.logp, expected.logp, rtol=0, atol=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_dropping_finished_rows_changes_nothing(model, prompts, share, monkeypatch):
    expected = sample(model, prompts)
    monkeypatch.setattr(fast_generate, "COMPACT_BELOW", share)
    assert_same(sample(model, prompts), expected)


@pytest.mark.parametrize("max_rows", [1, 4, 9])
def test_the_memory_bound_changes_no_reply(model, prompts, max_rows):
    assert_same(sample(model, prompts, max_rows=max_rows), sample(model, prompts))
    assert_same(sample(model, prompts, temperature=0, max_rows=max_rows), sample(model, prompts, temperature=0))
    uniform = torch.rand(len(prompts), 4, generator=torch.Generator().manual_seed(0))
    draws = [draw_first_tokens(model, prompts, uniform, 1.0, max_tokens_per_batch=n) for n in (max_rows, 1024)]
    assert torch.equal(*draws)


def test_each_distinct_prompt_is_prefilled_once_and_finished_rows_leave(model, prompts, monkeypatch):
    calls, hidden = [], model.hidden
    monkeypatch.setattr(model, "hidden", lambda ids, **given: calls.append(tuple(ids.shape)) or hidden(ids, **given))
    found = sample(model, prompts, samples=8)
    assert calls[0] == (len(prompts), max(LENGTHS))
    assert calls[1:] and all(width == 1 for _, width in calls[1:])
    rows = [height for height, _ in calls[1:]]
    assert rows[0] <= 8 * len(prompts) and rows[-1] < max(rows)
    alive = [int((found.lengths > step).sum()) for step in range(1, 12)]
    assert all(height <= max(left / fast_generate.COMPACT_BELOW, 1) for height, left in zip(rows, alive))


def test_waiting_prompts_enter_while_others_are_still_being_answered(model, monkeypatch):
    """And none of them is in memory before: rows in flight never exceed the bound, however many prompts wait."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, 10, (40,), generator=generator).tolist()
    prompts = [torch.randint(VOCAB, (length,), generator=generator).tolist() for length in lengths]
    expected, calls, hidden = sample(model, prompts), [], model.hidden

    def counted(ids, **given):
        calls.append((tuple(ids.shape), given["cache"].rows))
        return hidden(ids, **given)

    monkeypatch.setattr(model, "hidden", counted)
    assert_same(sample(model, prompts, max_rows=32), expected)
    steps = [rows for (_, width), rows in calls if rows > 8]
    assert max(steps) == 32
    # Batches that wait for their last row would take 5 x 11 steps of ever fewer rows.
    entered = [number for number, (shape, _) in enumerate(calls) if shape[0] <= 8 and number]
    assert len(entered) > 5 and sum(rows for _, rows in calls) < 1.4 * int(expected.lengths.sum())


def test_prompts_prefilled_a_few_at_a_time_give_the_same_replies(model, prompts, monkeypatch):
    calls, hidden, expected = [], model.hidden, sample(model, prompts)
    monkeypatch.setattr(model, "hidden", lambda ids, **given: calls.append(tuple(ids.shape)) or hidden(ids, **given))
    monkeypatch.setattr("taosr1.fast.prefix_groups.CPU_TOKENS", 12)
    assert_same(sample(model, prompts), expected)
    assert calls[:4] == [(3, 3), (1, 5), (1, 9), (1, 9)] and calls[4][1] == 1  # sorted: 1, 2, 3, 5, 9, 9 tokens


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7}, {"temperature": 0}, {"top_k": 3}, {"top_p": 0.7}])
def test_replies_are_those_of_the_plain_sampler(plain_model, model, prompts, settings):
    expected = sample(plain_model, prompts, function=plain_generate, **settings)
    assert_same(sample(model, prompts, **settings), expected)
    assert_same(sample(model, prompts, max_rows=9, **settings), expected)
    assert_same(sample(model, prompts, function=plain_generate, **settings), expected)  # which runs fast models too


def test_a_long_row_that_has_ended_leaves_before_the_positions_run_out(model):
    prompts = [[5] * 60] + [[6, number] for number in range(30, 37)]
    first = torch.full((8, 1), 20)
    first[0] = STOPS[0]  # of 64 positions; the others go on for 20 tokens
    found = generate(model, prompts, max_new_tokens=20, temperature=0, stop_ids=STOPS, first_tokens=first)
    assert found.lengths[0] == 1 and found.lengths[1:].max() > 5


def test_rows_alive_at_once_follow_from_the_memory_of_cache_and_logits(model, prompts, monkeypatch):
    """2 layers x 2 heads of 8 x keys and values x 4 bytes: 256 bytes a token."""
    assert fast_generate.rows_that_fit(model, 100) == 1024
    monkeypatch.setattr(fast_generate, "CACHE_BYTES", 256 * 100 * 7)
    assert fast_generate.rows_that_fit(model, 100) == 7 and fast_generate.rows_that_fit(model, 10_000) == 1
    monkeypatch.undo()
    monkeypatch.setattr(fast_generate, "CPU_LAYER_BYTES", 128 * 100 * 70)  # bytes that a step reads in one layer
    assert fast_generate.rows_that_fit(model, 100) == 70
    assert fast_generate.rows_that_fit(model, 10_000) == fast_generate.FEWEST_ROWS
    rows, fit = [], fast_generate.rows_that_fit
    monkeypatch.setattr(fast_generate, "rows_that_fit", lambda model, length: rows.append(length) or fit(model, length))
    sample(model, prompts)
    monkeypatch.setattr(fast_generate, "copies_prompts", lambda config, tokens: True)
    sample(model, prompts)
    monkeypatch.undo()
    assert rows == [3 + 12, 9 + 12]  # the longest prompt has nine tokens: a fourth of them a sample, or a copy for each
    monkeypatch.setattr(fast_generate, "LOGITS_AT_ONCE", 61 * 5)
    assert fast_generate.rows_that_fit(model, 100) == 5
    alive, step = [], fast_generate.DecodeStep

    def counted(model, caches, last, *rest):
        alive.append(len(last))
        return step(model, caches, last, *rest)

    monkeypatch.setattr(fast_generate, "DecodeStep", counted)
    sample(model, prompts, samples=2)
    assert max(alive) in (4, 5)  # a third prompt enters when three rows are left: never more than the five allowed
    monkeypatch.setattr(fast_generate, "LOGITS_AT_ONCE", 1)
    alive.clear()
    sample(model, prompts, samples=4)
    assert max(alive) == 4  # one prompt with its samples, at least
