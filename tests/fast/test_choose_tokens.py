"""Drawing tokens by blocks against the plain running sum."""

from __future__ import annotations

import pytest
import torch

from taosr1.fast.choose_tokens import choose_tokens, invert_cdf
from taosr1.sampling import choose_token as plain


@pytest.mark.parametrize("width", [5, 64, 65, 1000])
def test_drawing_by_blocks_equals_one_running_sum(width):
    generator = torch.Generator().manual_seed(width)
    weights = torch.rand(4000, width, generator=generator) ** 4 * (torch.rand(4000, width, generator=generator) < 0.3)
    weights[:, -1] += (weights.sum(-1) == 0).float()
    uniform = torch.rand(4000, generator=generator)
    logits, top = weights.log() + 3, torch.full((4000, 1), 3.0)
    (tokens, totals), expected = invert_cdf(logits, top, uniform), plain.invert_cdf(weights, uniform)
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
    found = choose_tokens(logits, uniform, row_of=row_of, **settings)
    expected = choose_tokens(logits[row_of], uniform, **settings)
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("width", [5, 64, 130])
def test_at_temperature_zero_the_token_is_the_first_of_the_largest_with_its_log_prob(width):
    logits = torch.randn(200, width, generator=torch.Generator().manual_seed(width)).mul(4).round()  # many are equal
    logits[0], logits[1, :-1] = -3.0, -torch.inf
    tokens, logp = choose_tokens(logits, torch.rand(200), temperature=0)
    assert tokens.tolist() == [row.index(max(row)) for row in logits.tolist()]
    torch.testing.assert_close(logp, logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0], rtol=0, atol=1e-5)
    assert ((logits == logits.amax(-1, keepdim=True)).sum(-1) > 1).any()


@pytest.mark.parametrize("settings", [{"temperature": 0}, {"temperature": 0.7}, {"top_k": 3}, {"top_p": 0.6}])
def test_tokens_and_log_probs_are_those_of_the_plain_function(settings):
    generator = torch.Generator().manual_seed(0)
    logits, uniform = torch.randn(500, 130, generator=generator) * 3, torch.rand(500, generator=generator)
    found, expected = choose_tokens(logits, uniform, **settings), plain.choose_token(logits, uniform, **settings)
    same = found[0] == expected[0]
    assert same.float().mean() > 0.99  # a draw on the border of two tokens may round to either
    torch.testing.assert_close(found[1][same], expected[1][same], rtol=0, atol=1e-5)
