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
    if len(ids) > 1:
        least = ids.min()  # padding in the last column may be negative
        both = torch.where(mask, ids - least, ~(ids - least))  # prompts below zero, replies from zero on
        distinct, row_of = both.unique(dim=0, return_inverse=True)  # sorted, so that replies to one prompt stay neighbours
        if len(distinct) < len(ids):
            mask = distinct >= 0
            ids = torch.where(mask, distinct, ~distinct) + least
            found = completion_logp(model, ids, mask, temperature=temperature, with_entropy=with_entropy, chunk_tok=chunk_tok)
            return tuple(each.index_select(0, row_of) for each in found) if with_entropy else found.index_select(0, row_of)
    targets = mask[:, 1:]  # (B, T-1)
    hidden = reply_hidden(model, ids, mask)  # (N, C)
    tokens = ids[:, 1:][targets]  # (N,)
    if chunk_tok is None:
        chunk_tok = max(1, LOGITS_AT_ONCE // model.config.vocab_size)
    if len(tokens) <= chunk_tok:
        pieces = [_token_logp(model, hidden, tokens, temperature, with_entropy)]
    else:
        pieces = [
            checkpoint(
                *(_token_logp, model, rows, wanted, temperature, with_entropy),
                use_reentrant=False,
                preserve_rng_state=False,  # the head draws nothing
            )
            for rows, wanted in zip(hidden.split(chunk_tok), tokens.split(chunk_tok))
        ]
    logp = scatter(torch.cat([piece[0] for piece in pieces]), mask)  # (B, T)
    if not with_entropy:
        return logp
    return logp, scatter(torch.cat([piece[1] for piece in pieces]), mask)


def _token_logp(model, hidden: Tensor, tokens: Tensor, temperature: float, with_entropy: bool) -> tuple[Tensor, ...]:
    """Log-probs (N,) of `tokens` (and entropies (N,)) from hidden states (N, C); the logits live only in here."""
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
    for part, of_rows in zip(logits.split(rows), normaliser[:, None].split(rows)):
        probs = (part - of_rows).exp_()
        # xlogy-style guard: a token masked to -inf has probability 0 and adds nothing to the entropy.
        mean_logits.append(part.masked_fill(probs == 0, 0.0).mul_(probs).sum(dim=-1))
    return normaliser - torch.cat(mean_logits)


def _rows_at_once(logits: Tensor) -> int:
    """Of (N, V): so many that on a CPU what is computed from them stays in the processor's cache between one pass and the next."""
    return max(1, NUMBERS_AT_ONCE // logits.shape[1] if logits.device.type == "cpu" else len(logits))


def _log_softmax_at(logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """log_softmax(logits) at `tokens`, (N,), and the normaliser, (N,): gather - logsumexp, without a second (N, V) tensor."""
    normaliser = torch.cat([part.logsumexp(dim=-1) for part in logits.split(_rows_at_once(logits))])
    return logits.gather(-1, tokens[:, None]).squeeze(-1) - normaliser, normaliser


class _LogSoftmaxAt(torch.autograd.Function):
    """`_log_softmax_at` with its gradient written out, dlogits = dlogp (onehot - softmax): autograd would build it from three (N, V) tensors."""

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
        of_logits, rows = torch.empty_like(logits), _rows_at_once(logits)
        for out, part, of_rows, slope in zip(*(x.split(rows) for x in (of_logits, logits, normaliser[:, None], -grad[:, None]))):
            torch.sub(part, of_rows, out=out).exp_().mul_(slope)
        return of_logits.scatter_add_(-1, tokens[:, None], grad[:, None]), None
