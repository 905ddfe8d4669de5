"""Sampled replies against forward passes of the real decoder, and draws against the distributions they come from.

Every test runs with both engines: `model.engine` is the one that the model was prepared for.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from taosr1.engine import PLAIN
from taosr1.fast import FAST
from taosr1.model.config import DecoderConfig
from taosr1.model.decoder import Decoder
from taosr1.model.logprobs import completion_logp
from taosr1.sampling.rollouts import Rollouts
from tests.distributions import assert_distributed

VOCAB, STOPS = 61, (3, 7, 11, 13, 17, 19)


LENGTHS = [5, 1, 9, 3, 9, 2]


@pytest.fixture(scope="module", params=[PLAIN, FAST], ids=lambda engine: engine.name)
def model(request) -> Decoder:
    shape = {
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    model = Decoder(DecoderConfig(VOCAB, **shape, head_dim=8, max_position_embeddings=64, tie_word_embeddings=False))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # weights large enough that what was read matters to what is written
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3 + (1.0 if "norm" in name else 0.0))
    return prepared(model, request.param)


def prepared(model: Decoder, engine) -> Decoder:
    model.engine = engine
    return engine.prepare(model)


def generate(model, prompts, **settings) -> Rollouts:
    return model.engine.generate(model, prompts, **settings)


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(VOCAB, (length,), generator=generator).tolist() for length in LENGTHS]


def sample(model, prompts, seed: int = 0, **settings) -> Rollouts:
    settings = {"samples": 4, "max_new_tokens": 12, "stop_ids": STOPS, **settings}
    return generate(model, prompts, generator=torch.Generator().manual_seed(seed), **settings)


def draw_first_tokens(model, prompts, uniform: torch.Tensor, temperature: float, **settings) -> torch.Tensor:
    tokenizer = SimpleNamespace(label_ids=(20, 21, 22, 23))
    found = model.engine.label_probabilities(
        model, tokenizer, prompts, uniform=uniform, temperature=temperature, **settings
    )
    return found.first_tokens


def assert_same(got: Rollouts, expected: Rollouts) -> None:
    assert got.replies() == expected.replies() and torch.equal(got.tokens, expected.tokens)
    assert torch.equal(got.finished, expected.finished)
    torch.testing.assert_close(got.logp, expected.logp, rtol=0, atol=1e-5)


@torch.no_grad()
def greedy_by_hand(model: Decoder, prompt: list[int], longest: int) -> tuple[list[int], list[float]]:
    """The whole sequence through the model again for every token, without a cache."""
    reply, logp = [], []
    while len(reply) < longest and not (reply and reply[-1] in STOPS):
        logits = model(torch.tensor([prompt + reply]))[0, -1]
        reply.append(int(logits.argmax()))
        logp.append(float(logits.log_softmax(-1)[reply[-1]]))
    return reply, logp


def test_cached_greedy_equals_uncached_greedy_for_ragged_prompts(model, prompts):
    found = generate(model, prompts, max_new_tokens=12, temperature=0, stop_ids=STOPS)
    for row, prompt in enumerate(prompts):
        reply, logp = greedy_by_hand(model, prompt, 12)
        assert found.replies()[row] == reply
        torch.testing.assert_close(found.logp[row, : len(reply)], torch.tensor(logp), rtol=0, atol=1e-5)
    assert len({int(length) for length in found.lengths}) > 1  # rows end at different steps, or little is shown here


def test_batched_equals_single(model, prompts):
    batched = generate(model, prompts, max_new_tokens=12, temperature=0, stop_ids=STOPS)
    for row, prompt in enumerate(prompts):
        single = generate(model, [prompt], max_new_tokens=12, temperature=0, stop_ids=STOPS)
        assert single.replies()[0] == batched.replies()[row] and bool(single.finished[0]) == bool(batched.finished[row])


def test_the_same_seed_gives_the_same_ids_and_another_seed_others(model, prompts):
    assert_same(sample(model, prompts, 0), sample(model, prompts, 0))
    assert sample(model, prompts, 1).replies() != sample(model, prompts, 0).replies()


def test_the_samples_of_a_prompt_differ_and_stand_beside_each_other(model, prompts):
    found = sample(model, prompts, samples=6)
    groups = [found.replies()[p * 6 : (p + 1) * 6] for p in range(len(prompts))]
    assert all(len({tuple(reply) for reply in group}) > 2 for group in groups)
    scores = completion_of(model, prompts, found, samples=6)
    torch.testing.assert_close(found.logp, scores, rtol=0, atol=1e-5)  # so each row continues its own prompt


def completion_of(model, prompts, rollouts: Rollouts, samples: int, temperature: float = 1.0) -> torch.Tensor:
    """Log-probs of the replies as training computes them, (R, N)."""
    scores = torch.zeros_like(rollouts.logp)
    for row, reply in enumerate(rollouts.replies()):
        prompt = prompts[row // samples]
        ids = torch.tensor([prompt + reply])
        mask = torch.zeros_like(ids, dtype=torch.bool)
        mask[:, len(prompt) :] = True
        with torch.no_grad():
            scores[row, : len(reply)] = completion_logp(model, ids, mask, temperature=temperature)[0, len(prompt) :]
    return scores


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_log_probs_are_those_that_training_computes_at_the_sampling_temperature(model, prompts, temperature):
    found = sample(model, prompts, temperature=temperature)
    torch.testing.assert_close(found.logp, completion_of(model, prompts, found, 4, temperature), rtol=0, atol=1e-5)
    if temperature != 1.0:  # the wrong twin: scored at another temperature than drawn
        assert (found.logp - completion_of(model, prompts, found, 4)).abs().max() > 0.1


def test_log_probs_ignore_top_k_and_top_p_and_greedy_ones_are_at_temperature_one(model, prompts):
    for settings in ({"top_k": 3}, {"top_p": 0.5}, {"temperature": 0}):
        found = sample(model, prompts, **settings)
        torch.testing.assert_close(found.logp, completion_of(model, prompts, found, 4), rtol=0, atol=1e-5)


def test_a_sliding_window_is_kept(model, prompts):
    config = DecoderConfig(VOCAB, 24, 40, 2, 4, 2, 8, max_position_embeddings=64, sliding_window=6)
    windowed = prepared(Decoder(config).init_weights(torch.Generator().manual_seed(0)), model.engine)
    with torch.no_grad():
        windowed.model.embed_tokens.weight.mul_(30)
    found = generate(windowed, prompts, max_new_tokens=8, temperature=0, stop_ids=STOPS)
    for row, prompt in enumerate(prompts):
        assert found.replies()[row] == greedy_by_hand(windowed, prompt, 8)[0]


def test_first_tokens_are_drawn_from_one_prefill_without_decoding(model, prompts, monkeypatch):
    calls, hidden = [], model.hidden
    monkeypatch.setattr(model, "hidden", lambda ids, **given: calls.append(tuple(ids.shape)) or hidden(ids, **given))
    assert draw_first_tokens(model, prompts, torch.rand(len(prompts), 8), 1.0).shape == (len(prompts), 8)
    assert calls == [(len(prompts), max(LENGTHS))]


def test_a_reply_ends_with_its_first_stop_token_and_truncation_is_told(model, prompts):
    found = sample(model, prompts, samples=8, max_new_tokens=5)
    for row, reply in enumerate(found.replies()):
        assert 1 <= len(reply) <= 5 and not set(reply[:-1]) & set(STOPS)
        assert bool(found.finished[row]) == (reply[-1] in STOPS)
        assert bool(found.finished[row]) or len(reply) == 5
        assert (found.tokens[row, len(reply) :] == STOPS[0]).all() and (found.logp[row, len(reply) :] == 0).all()
    last = [reply[-1] in STOPS for reply in found.replies() if len(reply) == 5]
    assert any(last) and not all(last)  # both the reply that ends just in time and the one that is cut were seen


def test_without_stop_ids_every_reply_is_cut_at_the_longest_length(model, prompts):
    found = sample(model, prompts, samples=2, max_new_tokens=5, stop_ids=())
    assert (found.lengths == 5).all() and not found.finished.any()
    assert torch.equal(sample(model, prompts, samples=2, max_new_tokens=5, stop_ids=(VOCAB + 1,)).tokens, found.tokens)


def test_one_token_is_enough(model, prompts):
    found = sample(model, prompts, samples=8, max_new_tokens=1)
    assert found.tokens.shape == (48, 1) and (found.lengths == 1).all() and 0 < found.finished.float().mean() < 1


def test_no_prompts_give_no_rows_and_no_result_records_gradients(model, prompts):
    found = sample(model, [])
    assert found.tokens.shape == (0, 12) and found.replies() == []
    found = sample(model, prompts)
    assert found.tokens.dtype == found.lengths.dtype == torch.int64 and found.logp.dtype == torch.float32
    assert not found.logp.requires_grad and found.finished.dtype == torch.bool


def test_greedy_replies_leave_the_global_generator_alone(model, prompts):
    before = torch.get_rng_state()
    generate(model, prompts, max_new_tokens=3, temperature=0, stop_ids=STOPS)
    sample(model, prompts)
    assert torch.equal(torch.get_rng_state(), before)


def test_forced_first_tokens_begin_the_replies_and_are_scored(model, prompts):
    first = torch.arange(24).view(6, 4) + 20
    found = sample(model, prompts, first_tokens=first)
    assert torch.equal(found.tokens[:, 0], first.flatten())
    torch.testing.assert_close(found.logp, completion_of(model, prompts, found, 4), rtol=0, atol=1e-5)
    assert_same(sample(model, prompts, first_tokens=first.flatten()), found)


def test_replies_from_their_own_first_tokens_are_the_same_replies(model, prompts):
    free = sample(model, prompts)
    assert_same(sample(model, prompts, first_tokens=free.tokens[:, 0]), free)


def test_a_forced_stop_token_is_a_whole_reply(model, prompts):
    found = sample(model, prompts[:1], samples=2, first_tokens=torch.tensor([STOPS[1], 20]))
    assert found.replies()[0] == [STOPS[1]] and bool(found.finished[0]) and len(found.replies()[1]) > 1


def test_first_tokens_drawn_from_a_prefill_have_the_distribution_of_generate(model, prompts):
    samples = 4000
    with torch.no_grad():
        logits = torch.stack([model(torch.tensor([prompt]))[0, -1] for prompt in prompts[:2]])
    drawn = draw_first_tokens(
        model, prompts[:2], torch.rand(2, samples, generator=torch.Generator().manual_seed(5)), 0.8
    )
    settings = {"samples": samples, "max_new_tokens": 1, "temperature": 0.8}
    generated = sample(model, prompts[:2], 6, **settings).tokens[:, 0].view(2, samples)
    for row, probs in enumerate((logits / 0.8).softmax(-1)):
        assert_distributed(drawn[row], probs)
        assert_distributed(generated[row], probs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": 0}, "samples is 0, expected at least 1"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"temperature": -1}, "temperature is -1, expected 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 0}, "top_p is 0"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"first_tokens": torch.tensor([1, 2])}, r"first_tokens are \(2,\), expected one for each of 6 x 4 replies"),
    ],
)
def test_settings_out_of_range_are_named(model, prompts, changes, message):
    with pytest.raises(ValueError, match=message):
        sample(model, prompts, **changes)


def test_an_empty_prompt_and_one_too_long_for_the_model_are_named(model, prompts):
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        sample(model, [[1], []])
    with pytest.raises(ValueError, match="max_position_embeddings=64"):
        sample(model, [[1] * 65])


def test_weights_that_give_nan_are_an_error_not_a_reply(model, prompts):
    broken = prepared(Decoder(model.config), model.engine)
    broken.load_state_dict(model.state_dict())
    with torch.no_grad():
        broken.model.norm.weight[0] = float("nan")
    with pytest.raises(ValueError, match="logits are not finite"):
        sample(broken, prompts)
