"""Label probabilities against one forward pass of the real decoder, a prompt at a time.

Every test runs with both engines: `model.engine` is the one that the model was prepared for.
"""

from __future__ import annotations

import pytest
import torch

from taosr1.engine import PLAIN
from taosr1.fast import FAST
from taosr1.fast import label_probs as fast_label_probs
from taosr1.model.config import DecoderConfig
from taosr1.model.decoder import Decoder
from taosr1.model.tokenizer import Tokenizer, train_tokenizer
from taosr1.runtime.progress import listening
from taosr1.sampling.batching import batch_by_length
from taosr1.sampling.label_probs import LabelProbs
from taosr1.serving.tiering import cumulative_tier

LENGTHS = [5, 1, 17, 3, 17, 9, 2, 30, 5, 12]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    texts = [f"query {n} boots not leather title steel mug grade {n % 4 + 1}" for n in range(200)]
    return train_tokenizer(texts, 300, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module", params=[PLAIN, FAST], ids=lambda engine: engine.name)
def model(tokenizer, request) -> Decoder:
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = DecoderConfig(tokenizer.vocab_size, **shape, num_key_value_heads=2, head_dim=8, max_position_embeddings=64)
    model = Decoder(config).init_weights(torch.Generator().manual_seed(0))
    with torch.no_grad():  # fresh weights are so small that every probability is alike: a wrong row would go unseen
        model.model.embed_tokens.weight.mul_(30)
    return prepared(model, request.param)


def prepared(model: Decoder, engine) -> Decoder:
    model.engine = engine
    return engine.prepare(model)


def label_probabilities(model, tokenizer, prompts, **settings) -> LabelProbs:
    return model.engine.label_probabilities(model, tokenizer, prompts, **settings)


@pytest.fixture(scope="module")
def prompts(tokenizer) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(tokenizer.vocab_size, (length,), generator=generator).tolist() for length in LENGTHS]


@torch.no_grad()
def by_hand(model: Decoder, tokenizer: Tokenizer, prompt: list[int]) -> tuple[torch.Tensor, float]:
    """Full softmax over the vocabulary at the last position: its four labels, and the same renormalised."""
    everything = model(torch.tensor([prompt]))[0, -1].double().softmax(-1)
    labels = everything[list(tokenizer.label_ids)]
    return (labels / labels.sum()).float(), float(labels.sum())


@pytest.mark.parametrize("budget", [1, 30, 64, 16384])
def test_batched_scores_equal_each_prompt_alone_whatever_the_budget(model, tokenizer, prompts, budget):
    found = label_probabilities(model, tokenizer, prompts, max_tokens_per_batch=budget)
    assert found.probs.shape == (10, 4) and found.label_mass.shape == (10,)
    for row, prompt in enumerate(prompts):
        probs, mass = by_hand(model, tokenizer, prompt)
        torch.testing.assert_close(found.probs[row], probs, rtol=1e-4, atol=1e-5)
        assert float(found.label_mass[row]) == pytest.approx(mass, rel=1e-4)
    assert found.probs.std(0).min() > 1e-3  # rows differ, so a wrong order would have shown


@pytest.fixture(scope="module")
def shared(tokenizer) -> list[list[int]]:
    """Three queries with products, shuffled, and two prompts that share nothing."""
    generator = torch.Generator().manual_seed(2)

    def draw(length):
        return torch.randint(tokenizer.vocab_size, (length,), generator=generator).tolist()

    queries = [(draw(length), number) for length, number in ((20, 7), (33, 5), (17, 2))]
    prompts = [query + draw(1 + (3 * product) % 11) for query, number in queries for product in range(number)] + [
        draw(30),
        draw(9),
    ]
    return [prompts[i] for i in torch.randperm(len(prompts), generator=generator).tolist()]


@pytest.mark.parametrize("budget", [1, 30, 64, 16384])
def test_prompts_that_share_a_prefix_score_like_each_prompt_alone(model, tokenizer, shared, budget):
    found = label_probabilities(model, tokenizer, shared, max_tokens_per_batch=budget)
    for row, prompt in enumerate(shared):
        probs, mass = by_hand(model, tokenizer, prompt)
        torch.testing.assert_close(found.probs[row], probs, rtol=1e-4, atol=1e-5)
        assert float(found.label_mass[row]) == pytest.approx(mass, rel=1e-4)


def test_no_draws_give_no_tokens(model, tokenizer, shared):
    assert label_probabilities(model, tokenizer, shared, uniform=torch.zeros(len(shared), 0)).first_tokens.shape == (
        len(shared),
        0,
    )


def test_a_sliding_window_shorter_than_the_prompts_is_kept(model, tokenizer, shared):
    config = DecoderConfig(tokenizer.vocab_size, 32, 48, 2, 4, 2, 8, max_position_embeddings=64, sliding_window=8)
    windowed = prepared(Decoder(config).init_weights(torch.Generator().manual_seed(0)), model.engine)
    found = label_probabilities(windowed, tokenizer, shared)
    for row, prompt in enumerate(shared):
        torch.testing.assert_close(found.probs[row], by_hand(windowed, tokenizer, prompt)[0], rtol=1e-4, atol=1e-5)


def test_wrong_twin_that_reads_the_padded_end_is_told_apart(model, tokenizer, prompts):
    padded = torch.tensor([prompts[0] + [0] * 25, prompts[7]])
    with torch.no_grad():
        twin = model(padded)[0, -1, list(tokenizer.label_ids)].softmax(-1)
    assert (twin - label_probabilities(model, tokenizer, prompts).probs[0]).abs().max() > 1e-3


def test_head_sees_one_position_per_prompt(model, tokenizer, prompts, monkeypatch):
    seen = []
    head = model.head
    monkeypatch.setattr(model, "head", lambda hidden: seen.append(tuple(hidden.shape)) or head(hidden))
    label_probabilities(model, tokenizer, prompts)
    assert seen == [(10, 32)]
    if model.engine is PLAIN:
        return
    seen.clear()  # the fast engine bounds the logits in memory
    monkeypatch.setattr(fast_label_probs, "LOGITS_AT_ONCE", 3 * tokenizer.vocab_size)
    chunked = label_probabilities(model, tokenizer, prompts)
    assert seen == [(3, 32), (3, 32), (3, 32), (1, 32)]
    monkeypatch.undo()
    torch.testing.assert_close(chunked.probs, label_probabilities(model, tokenizer, prompts).probs)


def test_result_is_detached_float32_on_the_cpu_and_fit_for_tiering(model, tokenizer, prompts):
    found = label_probabilities(model, tokenizer, prompts)
    for tensor in (found.probs, found.label_mass):
        assert tensor.dtype == torch.float32 and tensor.device.type == "cpu" and not tensor.requires_grad
    assert ((found.label_mass > 0) & (found.label_mass <= 1)).all()
    torch.testing.assert_close(found.probs.sum(-1), torch.ones(10))
    assert len(cumulative_tier(found.probs, 0.5)) == 10


def test_bfloat16_weights_score_in_float32(model, tokenizer, prompts):
    half = prepared(Decoder(model.config), model.engine)
    half.load_state_dict(model.state_dict())
    found = label_probabilities(half.to(torch.bfloat16), tokenizer, prompts)
    torch.testing.assert_close(found.probs.sum(-1), torch.ones(10), rtol=0, atol=1e-6)  # bfloat16 sums miss by 1e-3
    torch.testing.assert_close(found.probs, label_probabilities(model, tokenizer, prompts).probs, rtol=0, atol=0.15)


def test_a_tuple_of_ids_scores_like_a_list_and_repeats_bit_for_bit(model, tokenizer, prompts):
    first = label_probabilities(model, tokenizer, prompts)
    again = label_probabilities(model, tokenizer, [tuple(prompt) for prompt in prompts])
    assert torch.equal(first.probs, again.probs) and torch.equal(first.label_mass, again.label_mass)


def test_no_prompts_give_no_rows(model, tokenizer):
    found = label_probabilities(model, tokenizer, [])
    assert found.probs.shape == (0, 4) and found.label_mass.shape == (0,)


def test_wrong_prompts_are_named(model, tokenizer, prompts):
    with pytest.raises(ValueError, match=r"prompt 1 has 0 tokens, expected 1 to 64"):
        label_probabilities(model, tokenizer, [prompts[0], []])
    with pytest.raises(ValueError, match=r"prompt 0 has 65 tokens"):
        label_probabilities(model, tokenizer, [[1] * 65])
    with pytest.raises(ValueError, match="max_tokens_per_batch is 0"):
        label_probabilities(model, tokenizer, prompts, max_tokens_per_batch=0)


def test_broken_weights_are_reported_with_the_prompt(model, tokenizer, prompts):
    broken = prepared(Decoder(model.config), model.engine)
    broken.load_state_dict(model.state_dict())
    with torch.no_grad():
        broken.model.embed_tokens.weight[prompts[3][0]] = float("nan")
    with pytest.raises(ValueError, match=r"prompt \d+: label probabilities are not finite"):
        label_probabilities(broken, tokenizer, prompts)


def test_it_reports_every_batch_to_one_who_listens(model, tokenizer, prompts):
    heard = []
    with listening(lambda what, done, total: heard.append((what, done, total))):
        label_probabilities(model, tokenizer, prompts, max_tokens_per_batch=40)
    label_probabilities(model, tokenizer, prompts)
    assert len(heard) > 2 and heard[-1] == ("pairs scored", 10, 10) and heard == sorted(heard)


@pytest.mark.parametrize("budget", [1, 17, 40, 100, 10_000])
def test_batches_hold_every_row_once_and_respect_the_budget(budget):
    batches = list(batch_by_length(LENGTHS, budget))
    assert sorted(row for batch in batches for row in batch) == list(range(10))
    for batch in batches:
        longest = max(LENGTHS[row] for row in batch)
        assert len(batch) * longest <= budget or len(batch) == 1
    flat = [LENGTHS[row] for batch in batches for row in batch]
    assert flat == sorted(LENGTHS, reverse=True)
    assert list(batch_by_length([], budget)) == []
