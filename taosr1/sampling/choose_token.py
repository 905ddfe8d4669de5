"""One token for every row of logits: temperature, top-k, top-p, and a draw by inverting the cumulative distribution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def choose_token(
    logits: Tensor, uniform: Tensor, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Draw one token a row: the first one whose cumulative probability exceeds `uniform`. Temperature 0 is argmax.

    A number of its own for every row makes a reply independent of which rows share its batch.

    Shapes: logits (R, V) float32, uniform (R,) in [0, 1).
    Returns: tokens (R,) int64 and their log-probs (R,) at the temperature (1 where it is 0), without top-k and top-p.
    """
    log_probs = (logits / (temperature or 1.0)).log_softmax(-1)  # (R, V)
    if temperature == 0:
        tokens = log_probs.argmax(-1)
    else:
        probs = keep_likely(log_probs, top_k, top_p).softmax(-1)
        tokens = invert_cdf(probs, uniform)
    return tokens, log_probs.gather(1, tokens[:, None])[:, 0]


def keep_likely(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Logits (R, V) with -inf outside the k likeliest tokens, and outside the likeliest that together reach p.

    Log-probs are logits too. Where nothing is left out, the tensor itself is returned.
    """
    kept = logits
    if 0 < top_k < logits.shape[-1]:
        kept = kept.masked_fill(logits < logits.topk(top_k).values[:, -1:], -torch.inf)
    if top_p < 1.0:
        ordered, index = kept.softmax(-1).sort(-1, descending=True)
        outside = ordered.cumsum(-1) - ordered >= top_p  # the most likely token always stays
        kept = kept.masked_fill(torch.zeros_like(outside).scatter(-1, index, outside), -torch.inf)
    return kept


def invert_cdf(probs: Tensor, uniform: Tensor) -> Tensor:
    """The first token whose running sum exceeds `uniform`, never one of probability 0. Shapes: (R, V), (R,) -> (R,).

    Choice: inverse CDF instead of `torch.multinomial`, which is many times slower on a CPU.
    """
    cumulative = probs.cumsum(-1, dtype=torch.float64)
    target = uniform[:, None].double() * cumulative[:, -1:]
    tokens = torch.searchsorted(cumulative, target, right=True)[:, 0]
    last_possible = probs.shape[1] - 1 - (probs > 0).flip(-1).to(torch.uint8).argmax(-1)  # rounding may pass the end
    return torch.minimum(tokens, last_possible)


def draw_uniform(
    prompts: Sequence[Sequence[int]], samples: int, max_new_tokens: int, generator: torch.Generator | None
) -> Tensor:
    """The numbers in [0, 1) that a `generate` call draws its tokens with: (P * samples, max_new_tokens).

    Several ranks that answer a share of the prompts each draw the numbers for all, and so give the replies that one
    rank would. They are drawn in order of prompt length.
    """
    order = torch.tensor(sorted(range(len(prompts)), key=lambda p: len(prompts[p])), dtype=torch.int64)
    uniform = torch.empty(len(prompts), samples, max_new_tokens)
    uniform[order] = torch.rand(len(prompts), samples, max_new_tokens, generator=generator)
    return uniform.flatten(0, 1)
