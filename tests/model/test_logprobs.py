"""Log-probabilities: hand-worked values on a bigram table, and the real decoder against a full log-softmax.

Every test runs with the plain function and with the fast one.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from taosr1.engine import PLAIN
from taosr1.fast import FAST
from taosr1.model.config import DecoderConfig
from taosr1.model.decoder import Decoder
from taosr1.model.logprobs import sequence_logp


class Bigram(nn.Module):
    """p(next | current) = softmax(table[current]): every log-prob can be read off the table."""

    def __init__(self, table):
        super().__init__()
        self.table = nn.Parameter(torch.as_tensor(table))
        self.rows_at_head = []
        self.config = SimpleNamespace(vocab_size=len(self.table), num_attention_heads=1, sliding_window=None)

    def hidden(self, ids, **_):
        return nn.functional.one_hot(ids, len(self.table)).to(self.table.dtype)  # (B, T, C = V)

    def head(self, hidden):
        self.rows_at_head.append(hidden.shape[0])
        return self.table[hidden.argmax(-1)]  # a product would make nan of 0 * -inf


@pytest.fixture(params=[PLAIN, FAST], ids=lambda engine: engine.name)
def engine(request):
    return request.param


@pytest.fixture
def completion_logp(engine):
    return engine.completion_logp


@pytest.fixture
def decoder(engine):
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
    return engine.prepare(model)


def ragged(vocab_size=23, pad=0):
    """Three rows of prompt + reply lengths (2, 3), (1, 5), (4, 1), right padded to 6."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.full((3, 6), pad)
    mask = torch.zeros(3, 6, dtype=torch.bool)
    for row, (prompt, reply) in enumerate(((2, 3), (1, 5), (4, 1))):
        ids[row, : prompt + reply] = torch.randint(1, vocab_size, (prompt + reply,), generator=generator)
        mask[row, prompt : prompt + reply] = True
    return ids, mask


def full_logp(model, ids, mask, temperature=1.0):
    """The plain way: all logits, a log-softmax, a shift by one."""
    logits = model.head(model.hidden(ids)) / temperature  # (B, T, V)
    logp = logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None]).squeeze(-1)
    return nn.functional.pad(logp, (1, 0)) * mask


def close(actual, expected, tolerance=1e-5):
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance, check_dtype=False)


def same_gradients(model, ours, theirs):
    """Equal to 1e-5 of the largest entry: float32 rounding; a shifted or dropped token changes the leading digit."""
    parameters = list(model.parameters())
    for left, right in zip(torch.autograd.grad(ours, parameters), torch.autograd.grad(theirs, parameters)):
        close(left, right, 1e-5 * max(1.0, right.abs().max().item()))


def test_a_token_is_predicted_from_the_token_before_it(completion_logp):
    """Table rows log(1/4, 3/4) and log(1/5, 4/5); ids 0 1 1 0 with a reply from t = 1.

    log p: t=1 from 0 to 1: log 3/4; t=2 from 1 to 1: log 4/5; t=3 from 1 to 0: log 1/5; t=0 is outside: 0.
    Shifted by one it would read p(1|1), p(0|1), ..., or p(0|0), p(1|1), p(1|1): other numbers.
    """
    table = torch.tensor([[0.25, 0.75], [0.2, 0.8]]).log()
    ids = torch.tensor([[0, 1, 1, 0]])
    mask = torch.tensor([[False, True, True, True]])
    logp = completion_logp(Bigram(table), ids, mask)
    close(logp, torch.tensor([[0.0, math.log(0.75), math.log(0.8), math.log(0.2)]]))
    too_early = table[ids[0], ids[0]]
    assert not torch.allclose(logp[0, 1:], too_early[1:])


def test_temperature_divides_the_logits(completion_logp):
    """Logits (log 3, 0): p = 3/4 at T = 1, 9/10 at T = 1/2, sqrt(3)/(1 + sqrt(3)) at T = 2."""
    model = Bigram(torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]]))
    ids, mask = torch.tensor([[0, 0]]), torch.tensor([[False, True]])
    for temperature, expected in ((1.0, 0.75), (0.5, 0.9), (2.0, math.sqrt(3) / (1 + math.sqrt(3)))):
        assert completion_logp(model, ids, mask, temperature=temperature)[0, 1].exp().item() == pytest.approx(expected)


def test_only_masked_positions_reach_the_head(completion_logp):
    ids, mask = ragged()
    model = Bigram(torch.randn(23, 23))
    completion_logp(model, ids, mask)
    assert model.rows_at_head == [int(mask.sum())]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_values_and_gradients_equal_a_full_log_softmax(completion_logp, decoder, temperature):
    ids, mask = ragged()
    logp = completion_logp(decoder, ids, mask, temperature=temperature)
    expected = full_logp(decoder, ids, mask, temperature)
    assert logp.shape == ids.shape and logp.dtype == torch.float32
    close(logp, expected)
    assert (logp[mask] < 0).all() and (logp[~mask] == 0).all()
    weights = torch.rand(ids.shape, generator=torch.Generator().manual_seed(2))
    same_gradients(decoder, (logp * weights).sum(), (expected * weights).sum())


def test_padding_content_is_irrelevant_and_a_batch_equals_its_rows(completion_logp, decoder):
    ids, mask = ragged(pad=0)
    other, _ = ragged(pad=22)
    logp = completion_logp(decoder, ids, mask)
    assert torch.equal(logp, completion_logp(decoder, other, mask))
    for row, length in enumerate((5, 6, 5)):
        alone = completion_logp(decoder, ids[row : row + 1, :length], mask[row : row + 1, :length])
        close(alone[0], logp[row, :length])


def test_later_tokens_do_not_change_earlier_log_probs(completion_logp, decoder):
    ids, mask = ragged()
    changed = ids.clone()
    changed[1, 5] = (ids[1, 5] + 1) % 23
    close(completion_logp(decoder, ids, mask)[1, :5], completion_logp(decoder, changed, mask)[1, :5])


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_rollout_log_probs_equal_training_log_probs(engine, completion_logp, decoder, temperature):
    """The sampler scores its own tokens through the cache; training scores them in one pass: the same numbers."""
    prompts = [[3, 1, 4], [1, 5], [9, 2, 6, 5]]
    rollouts = engine.generate(
        *(decoder, prompts),
        samples=4,
        max_new_tokens=6,
        temperature=temperature,
        stop_ids=[7],
        generator=torch.Generator().manual_seed(5),
    )
    assert len(set(rollouts.lengths.tolist())) > 1
    for row, reply in enumerate(rollouts.replies()):
        prompt = prompts[row // 4]
        ids = torch.tensor([prompt + reply])
        mask = torch.arange(ids.shape[1])[None] >= len(prompt)
        logp = completion_logp(decoder, ids, mask, temperature=temperature)
        close(logp[0, len(prompt) :], rollouts.logp[row, : len(reply)])


def test_entropy_is_that_of_the_tempered_distribution_and_has_no_gradient(completion_logp):
    """Uniform over 4: log 4 at any T. (3/4, 1/4) at T = 1/2 is (9/10, 1/10): H = -.9 log .9 - .1 log .1.

    Tokens of probability 0 add 0.
    """
    ids, mask = torch.tensor([[0, 1]]), torch.tensor([[False, True]])
    uniform = Bigram(torch.zeros(4, 4))
    logp, entropy = completion_logp(uniform, ids, mask, temperature=3.0, with_entropy=True)
    close(entropy, torch.tensor([[0.0, math.log(4)]]))
    assert logp.requires_grad and not entropy.requires_grad
    table = torch.full((4, 4), -math.inf)
    table[:, 0], table[:, 1] = math.log(3.0), 0.0
    _, entropy = completion_logp(Bigram(table), ids, mask, temperature=0.5, with_entropy=True)
    close(entropy, torch.tensor([[0.0, -0.9 * math.log(0.9) - 0.1 * math.log(0.1)]]))


@pytest.mark.parametrize("low", [False, True])
def test_log_probs_are_the_same_bits_whether_gradients_are_recorded_or_not(completion_logp, decoder, low):
    """Old and reference log-probs are measured without. At the first update the ratio is 1 exactly."""
    ids, mask = ragged()
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        with torch.no_grad():
            old = completion_logp(decoder, ids, mask)
        assert torch.equal(completion_logp(decoder, ids, mask).detach(), old)


def test_half_precision_logits_are_normalised_in_float32(completion_logp):
    table = torch.randn(23, 23, generator=torch.Generator().manual_seed(3)).bfloat16()
    ids, mask = ragged()
    logp = completion_logp(Bigram(table), ids, mask)
    assert logp.dtype == torch.float32
    close(logp, completion_logp(Bigram(table.double()), ids, mask))


def test_float64_gradcheck(completion_logp):
    ids, mask = ragged(vocab_size=5)
    model = Bigram(torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(4)))

    def logp_of(table):
        model.__dict__["_parameters"]["table"] = table
        return completion_logp(model, ids, mask, temperature=0.8)

    assert torch.autograd.gradcheck(logp_of, (model.table.detach().requires_grad_(),))


def test_no_masked_position_gives_zeros_with_a_zero_gradient(completion_logp, decoder):
    ids, mask = ragged()
    logp, entropy = completion_logp(decoder, ids, torch.zeros_like(mask), with_entropy=True)
    assert (logp == 0).all() and (entropy == 0).all()
    logp.sum().backward()
    assert all((parameter.grad == 0).all() for parameter in decoder.parameters() if parameter.grad is not None)


def test_an_empty_batch_is_defined(completion_logp):
    ids, mask = ragged()
    assert completion_logp(Bigram(torch.zeros(23, 23)), ids[:0], mask[:0]).shape == (0, 6)


def test_wrong_inputs_are_named(completion_logp, decoder):
    ids, mask = ragged()
    first = mask.clone()
    first[0, 0] = True
    for arguments, message in (
        ((ids.int(), mask), "int64"),
        ((ids[:, :1], mask[:, :1]), "T >= 2"),
        ((ids, mask[:, :-1]), "mask must be bool"),
        ((ids, mask.float()), "mask must be bool"),
        ((ids, first), "column 0"),
    ):
        with pytest.raises(ValueError, match=message):
            completion_logp(decoder, *arguments)
    for temperature in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="temperature"):
            completion_logp(decoder, ids, mask, temperature=temperature)


def test_sequence_logp_sums_the_reply_and_nothing_else():
    """Rows (-1 -2 | nan) and (-3 | ..): -3 and -3; with weight 4 on each first token: -6 and -12; no True: 0."""
    logp = torch.tensor([[-1.0, -2.0, math.nan], [-3.0, math.inf, -9.0], [-1.0, -1.0, -1.0]], requires_grad=True)
    mask = torch.tensor([[True, True, False], [True, False, False], [False, False, False]])
    total = sequence_logp(logp, mask)
    close(total, torch.tensor([-3.0, -3.0, 0.0]))
    total.sum().backward()
    close(logp.grad, mask.float())
    weights = torch.tensor([[4.0, 1.0, math.nan], [4.0, math.inf, 1.0], [1.0, 1.0, 1.0]])
    logp.grad = None
    weighted = sequence_logp(logp, mask, weights=weights.requires_grad_())
    close(weighted, torch.tensor([-6.0, -12.0, 0.0]))
    weighted.sum().backward()
    assert weights.grad is None
    close(logp.grad, torch.tensor([[4.0, 1.0, 0.0], [4.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    for bad in (mask[:2], mask.float()):
        with pytest.raises(ValueError, match="bool mask"):
            sequence_logp(logp, bad)
    with pytest.raises(ValueError, match="weights"):
        sequence_logp(logp, mask, weights=weights[:, 0])
