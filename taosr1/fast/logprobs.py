"""Log-probabilities of reply tokens with shared prompts and bounded logits; the plain twin is `model/logprobs.py`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from taosr1.fast.fused_ops import NUMBERS_AT_ONCE
from taosr1.fast.shared_prompts import reply_hidden
from taosr1.model.logprobs import as_float32, check_inputs, scatter

LOGITS_AT_ONCE = 2**25  # 128 MiB in float32: 220 tokens of Qwen3, and more than any micro-batch of a tiny vocabulary


def completion_logp(
    model,
    ids: Tensor,
    mask: Tensor,
    *,
    temperature: float = 1.0,
    with_entropy: bool = False,
    chunk_tok: int | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """`taosr1.model.logprobs.completion_logp` with less work and memory; arguments, results and errors are those.

    Equal rows are computed once (of a GRPO group that is kept, two in three), and neighbouring rows with the same
    prompt (a group, a DPO pair) share its computation if that saves any (`shared_prompts`). What is computed once has
    one mask of LoRA dropout.

    chunk_tok: reply tokens whose logits are in memory at once (None: LOGITS_AT_ONCE numbers). Each chunk's logits are
        discarded and computed again in the backward pass: the same values for one more matrix product.
    """
    check_inputs(ids, mask, temperature)
    if chunk_tok is not None and chunk_tok < 1:
        raise ValueError(f"chunk_tok must be at least 1 or None, got {chunk_tok}")
    distinct_ids, distinct_mask, row_of = _distinct_rows(ids, mask)
    logp, entropy = _completion_logp(model, distinct_ids, distinct_mask, temperature, with_entropy, chunk_tok)
    if row_of is not None:
        logp = logp.index_select(0, row_of)
        entropy = entropy.index_select(0, row_of) if with_entropy else None
    return (logp, entropy) if with_entropy else logp


def _distinct_rows(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """The different rows, ids and mask (B', T), and the index of each row among them (B,); None: all are different."""
    if len(ids) < 2:
        return ids, mask, None
    least = ids.min()  # padding in the last column may be negative
    both = torch.where(mask, ids - least, ~(ids - least))  # prompts below zero, replies from zero on
    distinct, row_of = both.unique(dim=0, return_inverse=True)  # sorted, so that replies to one prompt stay neighbours
    if len(distinct) == len(ids):
        return ids, mask, None
    mask = distinct >= 0
    return torch.where(mask, distinct, ~distinct) + least, mask, row_of


def _completion_logp(
    model, ids: Tensor, mask: Tensor, temperature: float, with_entropy: bool, chunk_tok: int | None
) -> tuple[Tensor, Tensor | None]:
    """Log-probs (B, T) and entropies (B, T) or None, of different rows."""
    hidden, tokens = reply_hidden(model, ids, mask), ids[mask]  # (N, C), (N,)
    chunk_tok = chunk_tok or max(1, LOGITS_AT_ONCE // model.config.vocab_size)
    if len(tokens) <= chunk_tok:
        chunks = [_token_logp(model, hidden, tokens, temperature, with_entropy)]
    else:
        chunks = [
            checkpoint(
                *(_token_logp, model, *chunk, temperature, with_entropy),
                use_reentrant=False,
                preserve_rng_state=False,  # the head draws nothing
            )
            for chunk in zip(hidden.split(chunk_tok), tokens.split(chunk_tok))
        ]
    found = [scatter(torch.cat(parts), mask) for parts in zip(*chunks)]  # (B, T) each
    return found[0], found[1] if with_entropy else None


def _token_logp(model, hidden: Tensor, tokens: Tensor, temperature: float, with_entropy: bool) -> tuple[Tensor, ...]:
    """Log-probs (N,) of `tokens`, and entropies (N,), from hidden states (N, C)."""
    logits = as_float32(model.head(hidden))  # (N, V)
    if temperature != 1.0:
        logits = logits / temperature
    if not logits.requires_grad:
        logp, normaliser = _log_softmax_at(logits, tokens)
    else:
        logp, normaliser = _LogSoftmaxAt.apply(logits, tokens)
    return (logp, _entropy(logits.detach(), normaliser.detach())) if with_entropy else (logp,)


def _entropy(logits: Tensor, normaliser: Tensor) -> Tensor:
    """Of softmax(logits), in nats. Shapes: logits (N, V), normaliser (N,) -> (N,)."""
    mean_logits, rows = [], _rows_at_once(logits)
    for some, normalisers in zip(logits.split(rows), normaliser[:, None].split(rows)):
        probs = (some - normalisers).exp_()
        # A token of probability 0 has logit -inf and adds nothing to the entropy.
        mean_logits.append(some.masked_fill(probs == 0, 0.0).mul_(probs).sum(dim=-1))
    return normaliser - torch.cat(mean_logits)


def _rows_at_once(logits: Tensor) -> int:
    """Rows of (N, V) after which a loop goes on, so that on a CPU temporary tensors stay in the processor's cache."""
    return max(1, NUMBERS_AT_ONCE // logits.shape[1] if logits.device.type == "cpu" else len(logits))


def _log_softmax_at(logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """log_softmax(logits) at `tokens`, (N,), and logsumexp(logits), (N,), without a second (N, V) tensor."""
    normaliser = torch.cat([some.logsumexp(dim=-1) for some in logits.split(_rows_at_once(logits))])
    return logits.gather(-1, tokens[:, None]).squeeze(-1) - normaliser, normaliser


class _LogSoftmaxAt(torch.autograd.Function):
    """`_log_softmax_at` with its gradient, dlogits = dlogp (onehot - softmax): one (N, V) tensor, not three."""

    @staticmethod
    def forward(ctx, logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        logp, normaliser = _log_softmax_at(logits, tokens)
        ctx.save_for_backward(logits, tokens, normaliser)
        ctx.mark_non_differentiable(normaliser)
        return logp, normaliser

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor, _: None) -> tuple[Tensor, None]:
        logits, tokens, normaliser = ctx.saved_tensors
        logits_grad, rows = torch.empty_like(logits), _rows_at_once(logits)
        chunks = zip(*(x.split(rows) for x in (logits_grad, logits, normaliser[:, None], -grad[:, None])))
        for out, some, normalisers, negative_grad in chunks:
            torch.sub(some, normalisers, out=out).exp_().mul_(negative_grad)
        return logits_grad.scatter_add_(-1, tokens[:, None], grad[:, None]), None
