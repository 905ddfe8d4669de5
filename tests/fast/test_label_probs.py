"""Shared prefixes in scoring: computed once, with little padding, within the model's positions and the memory bound."""

from __future__ import annotations

import copy

import pytest
import torch

from taosr1.fast import label_probs
from taosr1.fast.decoder import use_fast_modules
from taosr1.fast.label_probs import label_probabilities
from taosr1.model.config import DecoderConfig
from taosr1.model.decoder import Decoder
from taosr1.model.tokenizer import Tokenizer, train_tokenizer
from taosr1.sampling import label_probabilities as plain_label_probabilities


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    texts = [f"query {n} boots not leather title steel mug grade {n % 4 + 1}" for n in range(200)]
    return train_tokenizer(texts, 300, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def plain_model(tokenizer) -> Decoder:
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = DecoderConfig(tokenizer.vocab_size, **shape, num_key_value_heads=2, head_dim=8, max_position_embeddings=64)
    model = Decoder(config).init_weights(torch.Generator().manual_seed(0))
    with torch.no_grad():  # fresh weights are so small that every probability is alike: a wrong row would go unseen
        model.model.embed_tokens.weight.mul_(30)
    return model


@pytest.fixture(scope="module")
def model(plain_model) -> Decoder:
    return use_fast_modules(copy.deepcopy(plain_model))


@torch.no_grad()
def by_hand(model: Decoder, tokenizer: Tokenizer, prompt: list[int]) -> tuple[torch.Tensor, float]:
    """Full softmax over the vocabulary at the last position: its four labels, and the same renormalised."""
    everything = model(torch.tensor([prompt]))[0, -1].double().softmax(-1)
    labels = everything[list(tokenizer.label_ids)]
    return (labels / labels.sum()).float(), float(labels.sum())


@pytest.fixture(scope="module")
def shared(tokenizer) -> list[list[int]]:
    """Three queries with products, shuffled, and two prompts that share nothing."""
    generator = torch.Generator().manual_seed(2)

    def draw(length):
        return torch.randint(tokenizer.vocab_size, (length,), generator=generator).tolist()

    queries = [(draw(length), number) for length, number in ((20, 7), (33, 5), (17, 2))]
    prompts = [query + draw(1 + (3 * product) % 11) for query, number in queries for product in range(number)]
    prompts += [draw(30), draw(9)]
    return [prompts[i] for i in torch.randperm(len(prompts), generator=generator).tolist()]


@pytest.mark.parametrize("budget", [30, 64, 16384])
def test_scores_are_those_of_the_plain_function(plain_model, model, tokenizer, shared, budget):
    plain = plain_label_probabilities(plain_model, tokenizer, shared, max_tokens_per_batch=budget)
    found = label_probabilities(model, tokenizer, shared, max_tokens_per_batch=budget)
    torch.testing.assert_close(found.probs, plain.probs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.label_mass, plain.label_mass, rtol=1e-4, atol=1e-5)


def test_a_prefix_is_computed_once_and_little_is_padding(model, tokenizer, monkeypatch):
    generator = torch.Generator().manual_seed(3)

    def draw(length):
        return torch.randint(tokenizer.vocab_size, (length,), generator=generator).tolist()

    query, lengths = draw(24), [2 + product % 20 for product in range(400)]
    prompts = [query + draw(length) for length in lengths]
    shapes, hidden = [], model.hidden
    monkeypatch.setattr(model, "hidden", lambda ids, **given: shapes.append(tuple(ids.shape)) or hidden(ids, **given))
    label_probabilities(model, tokenizer, prompts)
    assert shapes[0][0] == 1 and 24 <= shapes[0][1] <= 25 and len(shapes) > 3
    assert sum(rows * width for rows, width in shapes[1:]) < 1.2 * sum(lengths)  # unsorted: 1.8
    shapes.clear()
    plain_label_probabilities(model, tokenizer, prompts)
    assert sum(rows * width for rows, width in shapes) > 400 * 26


def test_prompts_close_to_the_models_positions_are_scored_whatever_their_batch_holds(model, tokenizer):
    """The longest prefix and the longest suffix belong to different queries: together they would not fit."""
    prompts = [[5] * 60 + [7], [5] * 60 + [8], [6] * 17 + [9] * 40 + [1], [6] * 17 + [10] * 40 + [2]]
    found = label_probabilities(model, tokenizer, prompts)
    for row, prompt in enumerate(prompts):
        torch.testing.assert_close(found.probs[row], by_hand(model, tokenizer, prompt)[0], rtol=1e-4, atol=1e-5)


def test_scores_at_once_bound_the_rows_of_a_batch(model, tokenizer, shared, monkeypatch):
    expected, rows, hidden = label_probabilities(model, tokenizer, shared), [], model.hidden
    monkeypatch.setattr(label_probs, "SCORES_AT_ONCE", 4 * 44 * 11 * 2)
    monkeypatch.setattr(model, "hidden", lambda ids, **given: rows.append(len(ids)) or hidden(ids, **given))
    found = label_probabilities(model, tokenizer, shared)
    torch.testing.assert_close(found.probs, expected.probs, rtol=1e-4, atol=1e-5)
    assert len(rows) > 5 and all(count <= 6 for count in rows[2:])
