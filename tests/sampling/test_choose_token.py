"""Drawing one token a row: exact probabilities, filters, and the ends of the unit interval. Both engines are tested."""

from __future__ import annotations

import pytest
import torch

from taosr1.fast.choose_tokens import choose_tokens
from taosr1.sampling.choose_token import choose_token
from tests.distributions import assert_distributed


@pytest.fixture(params=[choose_token, choose_tokens], ids=["plain", "fast"])
def choose(request):
    """choose(logits (1, V), uniform (R,), **settings): tokens (R,), all drawn from the same logits."""
    return lambda logits, uniform, **settings: request.param(logits.expand(len(uniform), -1), uniform, **settings)[0]


LOGITS = torch.tensor([-torch.inf, 1.0, 2.0, -1.0, 0.5, -torch.inf, 1.5, -torch.inf])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_with_their_probabilities(choose, temperature):
    uniform = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    tokens = choose(LOGITS[None], uniform, temperature=temperature)
    assert_distributed(tokens, (LOGITS / temperature).softmax(-1))
    with pytest.raises(AssertionError, match="chi-square"):
        assert_distributed(tokens, (LOGITS / (temperature + 0.2)).softmax(-1))


def test_tokens_without_probability_are_never_drawn_not_even_at_the_ends(choose):
    edges = torch.tensor([0.0, 1e-45, 1e-8, 0.5, 1 - 2**-24, 1.0])
    tokens = choose(LOGITS[None], edges)
    assert set(tokens.tolist()) <= {1, 2, 3, 4, 6} and tokens[0] == 1 and tokens[-1] == tokens[-2] == 6
    cdf = LOGITS.softmax(-1).cumsum(-1)
    on_the_steps = choose(LOGITS[None], cdf[:-1] / cdf[-1])
    assert set(on_the_steps.tolist()) <= {1, 2, 3, 4, 6}
    one_only = torch.full((1, 8), -torch.inf)
    one_only[0, 5] = 0.0
    assert (choose(one_only, edges) == 5).all()


def test_temperature_zero_is_argmax_and_its_limit(choose):
    uniform = torch.rand(50, generator=torch.Generator().manual_seed(0))
    assert (choose(LOGITS[None], uniform, temperature=0) == 2).all()
    assert (choose(LOGITS[None], uniform, temperature=1e-4) == 2).all()


def test_top_k_keeps_the_k_most_likely_in_proportion(choose):
    uniform = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    kept = LOGITS.masked_fill(~torch.isin(torch.arange(8), torch.tensor([1, 2, 6])), -torch.inf)
    assert_distributed(choose(LOGITS[None], uniform, top_k=3), kept.softmax(-1))
    assert (choose(LOGITS[None], uniform, top_k=1) == 2).all()
    assert torch.equal(choose(LOGITS[None], uniform, top_k=99), choose(LOGITS[None], uniform))


def test_top_p_keeps_the_fewest_tokens_that_reach_p(choose):
    logits = torch.tensor([0.1, 0.5, 0.25, 0.15]).log()
    uniform = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    for top_p, kept in (
        (0.01, [1]),
        (0.5, [1]),
        (0.51, [1, 2]),
        (0.74, [1, 2]),
        (0.8, [1, 2, 3]),
        (0.95, [0, 1, 2, 3]),
    ):
        tokens = choose(logits[None], uniform, top_p=top_p)
        probs = torch.zeros(4).scatter(0, torch.tensor(kept), logits.exp()[kept])
        assert_distributed(tokens, probs / probs.sum())
        assert set(tokens.tolist()) == set(kept)


@pytest.mark.parametrize("function", [choose_token, choose_tokens])
def test_rows_are_filtered_each_by_itself(function):
    logits = torch.tensor([[0.0, 5.0, 4.0], [9.0, 1.0, 8.0]])
    for settings in ({"top_k": 2, "top_p": 1.0}, {"top_k": 0, "top_p": 0.95}):
        drawn = {
            tuple(function(logits, torch.tensor([u, u]), **settings)[0].tolist())
            for u in torch.linspace(0, 0.999, 200).tolist()
        }
        assert {first for first, _ in drawn} == {1, 2} and {second for _, second in drawn} == {0, 2}
