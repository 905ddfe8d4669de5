"""What the fast log-probs do beyond the plain ones: chunks, shared prompts, a gradient written out.

That values and gradients are those of the plain function is tested in tests/model/test_logprobs.py, with both.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from taosr1.fast import logprobs
from taosr1.fast.decoder import use_fast_modules
from taosr1.fast.logprobs import completion_logp
from taosr1.model.config import DecoderConfig
from taosr1.model.decoder import Decoder
from taosr1.model.logprobs import completion_logp as plain_completion_logp


class Bigram(nn.Module):
    """p(next | current) = softmax(table[current]): every log-prob can be read off the table."""

    def __init__(self, table):
        super().__init__()
        self.table = nn.Parameter(torch.as_tensor(table))
        self.rows_at_head = []
        self.config = SimpleNamespace(vocab_size=len(self.table), num_attention_heads=1, sliding_window=None)

    def hidden(self, ids, *, keep, **_):
        ids = ids.gather(1, keep)
        return nn.functional.one_hot(ids, len(self.table)).to(self.table.dtype)  # (B, T, C = V)

    def head(self, hidden):
        self.rows_at_head.append(hidden.shape[0])
        return self.table[hidden.argmax(-1)]  # a product would make nan of 0 * -inf


@pytest.fixture
def decoder():
    config = DecoderConfig(
        vocab_size=23,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        tie_word_embeddings=False,  # a tied random model repeats its last token for ever
    )
    model = Decoder(config).init_weights(torch.Generator().manual_seed(0))
    with torch.no_grad():  # sharper than the initialisation, so that neighbouring positions differ clearly
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(20.0)
    return use_fast_modules(model)


def ragged(vocab_size=23, pad=0):
    """Three rows of prompt + reply lengths (2, 3), (1, 5), (4, 1), right padded to 6."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.full((3, 6), pad)
    mask = torch.zeros(3, 6, dtype=torch.bool)
    for row, (prompt, reply) in enumerate(((2, 3), (1, 5), (4, 1))):
        ids[row, : prompt + reply] = torch.randint(1, vocab_size, (prompt + reply,), generator=generator)
        mask[row, prompt : prompt + reply] = True
    return ids, mask


def close(actual, expected, tolerance=1e-5):
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance, check_dtype=False)


def same_gradients(model, ours, theirs):
    """Equal to 1e-5 of the largest entry: float32 rounding; a shifted or dropped token changes the leading digit."""
    parameters = list(model.parameters())
    for left, right in zip(torch.autograd.grad(ours, parameters), torch.autograd.grad(theirs, parameters)):
        close(left, right, 1e-5 * max(1.0, right.abs().max().item()))


@pytest.mark.parametrize("numbers", [1, 30, 100])  # a row at a time, 2 of 13 columns each, 7
@pytest.mark.parametrize("grad", [False, True])
def test_passes_over_some_rows_at_a_time_change_nothing(monkeypatch, numbers, grad):
    logits = torch.randn(9, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits[2, 3:5] = -torch.inf
    model, tokens = SimpleNamespace(head=lambda hidden: hidden), torch.tensor([0, 1, 2, 3, 12, 5, 6, 7, 8])
    results = []
    for at_once in (2**20, numbers):
        monkeypatch.setattr(logprobs, "NUMBERS_AT_ONCE", at_once)
        hidden = logits.clone().requires_grad_(grad)
        logp, entropy = logprobs._token_logp(model, hidden, tokens, 1.5, True)
        if grad:
            (logp * torch.linspace(-1, 1, 9)).sum().backward()
        results.append([logp.detach(), entropy, *([hidden.grad] if grad else [])])
        assert not entropy.requires_grad
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("chunk_tok", [1, 2, 4, 9])
def test_chunks_change_neither_values_nor_gradients(decoder, chunk_tok):
    ids, mask = ragged()
    whole, whole_entropy = completion_logp(decoder, ids, mask, with_entropy=True)
    chunked, entropy = completion_logp(decoder, ids, mask, with_entropy=True, chunk_tok=chunk_tok)
    close(chunked, whole)
    close(entropy, whole_entropy)
    same_gradients(decoder, chunked.square().sum(), whole.square().sum())


@pytest.mark.parametrize(("chunk_tok", "rows"), [(None, [9]), (9, [9]), (8, [8, 1, 1, 8])])
def test_only_real_chunks_are_computed_twice(chunk_tok, rows):
    """Nine reply tokens: one chunk that holds them all needs no second pass through the head in the backward pass."""
    ids, mask = ragged()
    model = Bigram(torch.randn(23, 23, generator=torch.Generator().manual_seed(6)))
    completion_logp(model, ids, mask, chunk_tok=chunk_tok).sum().backward()
    assert sorted(model.rows_at_head) == sorted(rows)


def test_without_a_chunk_size_the_logits_alive_at_once_are_bounded(monkeypatch):
    assert logprobs.LOGITS_AT_ONCE == 2**25
    model = Bigram(torch.randn(23, 23, generator=torch.Generator().manual_seed(0)))
    for numbers, rows in ((23 * 9, [9]), (23 * 4 + 22, [4, 4, 1]), (1, [1] * 9)):  # nine reply tokens
        monkeypatch.setattr(logprobs, "LOGITS_AT_ONCE", numbers)
        model.rows_at_head.clear()
        with torch.no_grad():
            completion_logp(model, *ragged())
        assert model.rows_at_head == rows


def test_a_shared_prompt_is_computed_once_and_by_the_plain_function_twice(decoder):
    """Two replies of 3 to a prompt of 12: 12 + 2 + 2 tokens in one row, or two rows of 14."""
    ids = torch.randint(1, 23, (2, 15), generator=torch.Generator().manual_seed(2))
    ids[1, :12] = ids[0, :12]
    mask = torch.arange(15).expand(2, 15) >= 12
    shapes, hidden = [], decoder.hidden
    decoder.hidden = lambda ids, **given: shapes.append(tuple(ids.shape)) or hidden(ids, **given)
    shared, plain = completion_logp(decoder, ids, mask), plain_completion_logp(decoder, ids, mask)
    assert shapes == [(1, 16), (2, 14)]
    close(shared, plain)
    full = hidden(ids)
    expected = decoder.head(full[:, :-1]).log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    close(plain[:, 1:], expected.masked_fill(~mask[:, 1:], 0.0))


def test_the_gradient_written_out_is_autograds():
    """In float64, with an impossible token and one that is certain among them."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 11, dtype=torch.float64, generator=generator) * 3
    logits[2, 4], logits[3] = -torch.inf, -torch.inf
    logits[3, 7] = 1.5
    tokens, wanted = torch.tensor([0, 3, 5, 7, 1, 10]), torch.randn(6, dtype=torch.float64, generator=generator)
    grads = []
    for function in (logprobs._log_softmax_at, logprobs._LogSoftmaxAt.apply):
        leaf = logits.clone().requires_grad_()
        logp, normaliser = function(leaf, tokens)
        torch.testing.assert_close(logp.detach(), logits.log_softmax(-1)[torch.arange(6), tokens])
        torch.testing.assert_close(normaliser.detach(), logits.logsumexp(-1))
        logp.backward(wanted)
        grads.append(leaf.grad)
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-12, atol=1e-12)
    finite = torch.randn(4, 7, dtype=torch.float64, generator=generator).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: logprobs._LogSoftmaxAt.apply(x, torch.tensor([0, 6, 3, 3]))[0], (finite,))


def test_a_chunk_size_below_one_is_refused(decoder):
    with pytest.raises(ValueError, match="chunk_tok must be at least 1 or None, got 0"):
        completion_logp(decoder, *ragged(), chunk_tok=0)


def test_a_token_beyond_the_vocabulary_is_refused_also_where_it_is_only_predicted(decoder):
    ids, mask = ragged()
    ids[1, 5] = 23  # a reply's last token, which no layer sees
    with pytest.raises((IndexError, RuntimeError), match="out of (range|bounds)"):
        completion_logp(decoder, ids, mask)
