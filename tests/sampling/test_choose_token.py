"""Drawing one token a row: exact probabilities, filters, and the ends of the unit interval."""

from __future__ import annotations

import pytest
import torch

from taosr1.fast.generate import choose_tokens, invert_cdf, most_likely
from tests.distributions import assert_distributed


def choose(logits: torch.Tensor, uniform: torch.Tensor, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> torch.Tensor:
    return choose_tokens(logits.expand(len(uniform), -1), uniform, temperature=temperature, top_k=top_k, top_p=top_p)[0]


LOGITS = torch.tensor([-torch.inf, 1.0, 2.0, -1.0, 0.5, -torch.inf, 1.5, -torch.inf])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_with_their_probabilities(temperature):
    uniform = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    tokens = choose(LOGITS[None], uniform, temperature=temperature)
    assert_distributed(tokens, (LOGITS / temperature).softmax(-1))
    with pytest.raises(AssertionError, match="chi-square"):
        assert_distributed(tokens, (LOGITS / (temperature + 0.2)).softmax(-1))


def test_tokens_without_probability_are_never_drawn_not_even_at_the_ends():
    edges = torch.tensor([0.0, 1e-45, 1e-8, 0.5, 1 - 2**-24, 1.0])
    tokens = choose(LOGITS[None], edges)
    assert set(tokens.tolist()) <= {1, 2, 3, 4, 6} and tokens[0] == 1 and tokens[-1] == tokens[-2] == 6
    cdf = LOGITS.softmax(-1).cumsum(-1)
    on_the_steps = choose(LOGITS[None], cdf[:-1] / cdf[-1])
    assert set(on_the_steps.tolist()) <= {1, 2, 3, 4, 6}
    one_only = torch.full((1, 8), -torch.inf)
    one_only[0, 5] = 0.0
    assert (choose(one_only, edges) == 5).all()


@torch.no_grad()
def invert_cdf_plain(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """The running sum over everything, in float64."""
    cdf = weights.double().cumsum(-1)
    return torch.searchsorted(cdf, uniform[:, None].double() * cdf[:, -1:], right=True)[:, 0]


@pytest.mark.parametrize("width", [5, 64, 65, 1000])
def test_drawing_by_blocks_equals_one_running_sum(width):
    generator = torch.Generator().manual_seed(width)
    weights = torch.rand(4000, width, generator=generator) ** 4 * (torch.rand(4000, width, generator=generator) < 0.3)
    weights[:, -1] += (weights.sum(-1) == 0).float()
    uniform = torch.rand(4000, generator=generator)
    logits, top = weights.log() + 3, torch.full((4000, 1), 3.0)
    (tokens, totals), expected = invert_cdf(logits, top, uniform), invert_cdf_plain(weights, uniform)
    torch.testing.assert_close(totals, weights.sum(-1), rtol=1e-5, atol=1e-6)
    assert (tokens == expected).float().mean() > 0.999  # a draw on the border of two tokens may round to either
    assert (weights.gather(1, tokens[:, None]) > 0).all()
    for edge in (0.0, 1.0):
        assert (weights.gather(1, invert_cdf(logits, top, torch.full((4000,), edge))[0][:, None]) > 0).all()


@pytest.mark.parametrize("settings", [{}, {"temperature": 0}, {"temperature": 0.7, "top_k": 3}, {"top_p": 0.6}])
def test_several_draws_from_one_row_equal_draws_from_copies_of_it(settings):
    generator = torch.Generator().manual_seed(0)
    logits, row_of = torch.randn(5, 130, generator=generator) * 3, torch.tensor([0, 0, 0, 4, 1, 1, 4, 2])
    uniform, settings = torch.rand(8, generator=generator), {"temperature": 1.0, "top_k": 0, "top_p": 1.0, **settings}
    found, expected = choose_tokens(logits, uniform, row_of=row_of, **settings), choose_tokens(logits[row_of], uniform, **settings)
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("width", [5, 64, 130])
def test_the_likeliest_token_is_the_first_of_the_largest_with_its_log_prob(width):
    logits = torch.randn(200, width, generator=torch.Generator().manual_seed(width)).mul(4).round()  # so that many are equal
    logits[0], logits[1, :-1] = -3.0, -torch.inf
    tokens, logp = most_likely(logits)
    top = logits.amax(-1, keepdim=True)
    assert tokens.tolist() == [row.index(max(row)) for row in logits.tolist()]
    torch.testing.assert_close(logp, logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0], rtol=0, atol=1e-5)
    assert ((logits == top).sum(-1) > 1).any()


def test_temperature_zero_is_argmax_and_its_limit():
    uniform = torch.rand(50, generator=torch.Generator().manual_seed(0))
    assert (choose(LOGITS[None], uniform, temperature=0) == 2).all()
    assert (choose(LOGITS[None], uniform, temperature=1e-4) == 2).all()


def test_top_k_keeps_the_k_most_likely_in_proportion():
    uniform = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    kept = LOGITS.masked_fill(~torch.isin(torch.arange(8), torch.tensor([1, 2, 6])), -torch.inf)
    assert_distributed(choose(LOGITS[None], uniform, top_k=3), kept.softmax(-1))
    assert (choose(LOGITS[None], uniform, top_k=1) == 2).all()
    assert torch.equal(choose(LOGITS[None], uniform, top_k=99), choose(LOGITS[None], uniform))


def test_top_p_keeps_the_fewest_tokens_that_reach_p():
    logits = torch.tensor([0.1, 0.5, 0.25, 0.15]).log()
    uniform = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    for top_p, kept in ((0.01, [1]), (0.5, [1]), (0.51, [1, 2]), (0.74, [1, 2]), (0.8, [1, 2, 3]), (0.95, [0, 1, 2, 3])):
        tokens = choose(logits[None], uniform, top_p=top_p)
        probs = torch.zeros(4).scatter(0, torch.tensor(kept), logits.exp()[kept])
        assert_distributed(tokens, probs / probs.sum())
        assert set(tokens.tolist()) == set(kept)


def test_rows_are_filtered_each_by_itself():
    logits = torch.tensor([[0.0, 5.0, 4.0], [9.0, 1.0, 8.0]])
    for settings in ({"top_k": 2, "top_p": 1.0}, {"top_k": 0, "top_p": 0.95}):
        drawn = {
            tuple(choose_tokens(logits, torch.tensor([u, u]), temperature=1.0, **settings)[0].tolist()) for u in torch.linspace(0, 0.999, 200).tolist()
        }
        assert {first for first, _ in drawn} == {1, 2} and {second for _, second in drawn} == {0, 2}
