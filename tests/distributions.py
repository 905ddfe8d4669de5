"""Whether draws follow a distribution."""

from __future__ import annotations

import torch


def assert_distributed(tokens: torch.Tensor, probs: torch.Tensor) -> None:
    """Pearson's chi-square within five standard deviations of its mean, rare tokens pooled."""
    counts, expected = torch.bincount(tokens, minlength=len(probs)).double(), probs.double() * len(tokens)
    common = expected >= 5
    assert counts[expected == 0].sum() == 0
    counts = torch.cat([counts[common], counts[~common].sum()[None]])
    expected = torch.cat([expected[common], expected[~common].sum()[None].clamp(min=1e-9)])
    freedom, statistic = len(counts) - 1, float(((counts - expected) ** 2 / expected).sum())
    assert statistic < freedom + 5 * (2 * freedom) ** 0.5, f"chi-square {statistic:.1f}, degrees of freedom {freedom}"
