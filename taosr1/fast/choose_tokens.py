"""Draw tokens without a running sum over the vocabulary; the plain twin is `taosr1.sampling.choose_token`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from taosr1.fast.fused_ops import block_sums
from taosr1.sampling.choose_token import keep_likely

BLOCK = 64  # tokens; see `invert_cdf`


def choose_tokens(
    logits: Tensor,
    uniform: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    row_of: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`choose_token` for M replies that share R rows of logits.

    Shapes: logits (R, V) float32, uniform (M,), row_of (M,) int64, each reply's row of logits (None: reply m has row m)
        -> tokens (M,) int64 and their log-probs (M,) at the temperature, without top-k and top-p.
    """
    if temperature not in (0, 1):
        logits = logits / temperature
    top = logits.amax(-1, keepdim=True)
    if temperature == 0:
        tokens, logp = logits.argmax(-1), -block_sums(_in_blocks(logits), top).sum(-1).log()
        return (tokens, logp) if row_of is None else (tokens[row_of], logp[row_of])
    kept = keep_likely(logits, top_k, top_p)
    tokens, total = invert_cdf(kept, top, uniform, row_of)
    if kept is not logits:  # log-probs are those of the whole distribution
        total = (logits - top).exp_().sum(-1)
    normaliser = top[:, 0] + total.log()
    if row_of is None:
        return tokens, logits.gather(1, tokens[:, None])[:, 0] - normaliser
    return tokens, logits[row_of, tokens] - normaliser[row_of]


def invert_cdf(logits: Tensor, top: Tensor, uniform: Tensor, row_of: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The first token where the running sum of e^(logit - top) exceeds `uniform` times its total; never a masked one.

    The block of BLOCK tokens is found first, by the sums of the blocks, and then the token in it: the exponentials of a
    whole vocabulary are not kept, and their running sum, a chain of V dependent additions, is never computed.

    Shapes: logits (R, V) float32, -inf where nothing may be drawn; top (R, 1); uniform, row_of (M,) -> tokens (M,)
        int64, totals (R,).
    """
    blocks = _in_blocks(logits)
    sums = block_sums(blocks, top)  # (R, V / BLOCK)
    ends = sums.cumsum(-1)
    totals = ends[:, -1]
    if row_of is None:
        row_of = torch.arange(len(logits), device=logits.device)
    else:
        sums, ends, top = sums[row_of], ends[row_of], top[row_of]  # (M, V / BLOCK), and (M, 1)
    target = uniform[:, None] * ends[:, -1:]
    # right=True: a weight of 0 is never drawn, not even at uniform = 0.
    block = torch.searchsorted(ends, target, right=True).clamp_(max=_last_possible(sums))  # (M, 1)
    inside = (blocks[row_of, block[:, 0]] - top).exp()  # (M, BLOCK)
    target = (target - ends.gather(1, block) + sums.gather(1, block)).clamp_(min=0)  # rounding may give less than 0
    token = torch.searchsorted(inside.cumsum(-1), target, right=True).clamp_(max=_last_possible(inside))
    # Clamped, because with NaN the index may be anything.
    return (block * BLOCK + token)[:, 0].clamp_(max=logits.shape[1] - 1), totals


def _in_blocks(logits: Tensor) -> Tensor:
    """(R, V) -> (R, N, BLOCK), the last block filled up with -inf."""
    if logits.shape[1] % BLOCK:
        logits = F.pad(logits, (0, -logits.shape[1] % BLOCK), value=-torch.inf)
    return logits.unflatten(1, (-1, BLOCK))


def _last_possible(weights: Tensor) -> Tensor:
    """Index of the last weight > 0, (R, 1): rounding may step past the end of the CDF."""
    return weights.shape[1] - 1 - (weights > 0).flip(-1).to(torch.uint8).argmax(-1, keepdim=True)
