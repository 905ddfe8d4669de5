"""Log-probabilities of reply tokens: logits are built at the masked positions only, never as (B, T, V)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from taosr1.fast.fused_ops import NUMBERS_AT_ONCE
from taosr1.fast.onednn_linear import is_plain
from taosr1.fast.shared_prompts import reply_hidden

LOGITS_AT_ONCE = 2**25  # 128 MiB in float32: 220 tokens of Qwen3, and more than any micro-batch of a tiny vocabulary


def completion_logp(
    model,
    ids: Tensor,
    mask: Tensor,
    *,
    temperature: float = 1.0,
    with_entropy: bool = False,
    chunk_tok: int | None = None,
    plain: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """log p(ids[b, t] | ids[b, :t]) at the masked positions, 0 everywhere else; differentiable.

    The hidden states of position t - 1 predict token t, so only `hidden(ids[:, :-1])` at masked targets reaches the
    head: N = mask.sum() rows of V logits instead of B * T. Right padding needs no attention mask in a causal model.

    Rows that are equal are run once (of a GRPO group that is kept, two in three), and neighbouring rows with the same prompt (a group, a DPO
    pair) share its computation where that saves any: the same numbers, see `shared_prompts`. What is run once has one mask of LoRA dropout. With
    `plain` every row is run by itself.

    `temperature` divides the logits, as the sampler does: rollout and training log-probs then agree.
    `chunk_tok` bounds the memory of the head to that many reply tokens at once (None: LOGITS_AT_ONCE numbers): each chunk's
    logits are thrown away and computed again in the backward pass (same values, one more matrix product).

    Shapes: ids (B, T) int64, right padded; mask (B, T) bool, True at reply tokens, EOS included.
        `model.hidden(ids)` -> (B, T, C) and `model.head(hidden)` -> (N, V).
    Returns: logp (B, T) float32 (float64 for a float64 model); with `with_entropy` also the entropy in nats of the
        tempered distribution at the masked positions, (B, T), detached.
    Raises: ValueError for shapes or dtypes that do not fit, a True in column 0 (nothing predicts the first token),
        or a temperature that is not a positive number.
    """
    _check(ids, mask, temperature, chunk_tok)
    plain = plain or is_plain()
    if not plain and len(ids) > 1:
        least = ids.min()  # padding in the last column may be negative
        both = torch.where(mask, ids - least, ~(ids - least))  # prompts below zero, replies from zero on
        distinct, row_of = both.unique(dim=0, return_inverse=True)  # sorted, so that replies to one prompt stay neighbours
        if len(distinct) < len(ids):
            mask = distinct >= 0
            ids = torch.where(mask, distinct, ~distinct) + least
            found = completion_logp(model, ids, mask, temperature=temperature, with_entropy=with_entropy, chunk_tok=chunk_tok)
            return tuple(each.index_select(0, row_of) for each in found) if with_entropy else found.index_select(0, row_of)
    targets = mask[:, 1:]  # (B, T-1)
    hidden = model.hidden(ids[:, :-1])[targets] if plain else reply_hidden(model, ids, mask)  # (N, C)
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
    logp = _scatter(torch.cat([piece[0] for piece in pieces]), mask)  # (B, T)
    if not with_entropy:
        return logp
    return logp, _scatter(torch.cat([piece[1] for piece in pieces]), mask)


def sequence_logp(logp: Tensor, mask: Tensor, *, weights: Tensor | None = None) -> Tensor:
    """The (weighted) sum of each row's reply log-probs: what `dpo_loss` compares.

    Shapes: logp (B, T); mask (B, T) bool; weights (B, T) or None, e.g. a larger weight on the label token.
    Returns: (B,); a row without a True is 0.
    Raises: ValueError for shapes that do not fit.
    """
    if logp.dim() != 2 or mask.shape != logp.shape or mask.dtype != torch.bool:
        raise ValueError(
            f"logp must be (B, T) with a bool mask of the same shape, got {tuple(logp.shape)} and "
            f"{tuple(mask.shape)} {mask.dtype}"
        )
    logp = logp.masked_fill(~mask, 0.0)
    if weights is not None:
        if weights.shape != logp.shape:
            raise ValueError(f"weights must be {tuple(logp.shape)} like logp, got {tuple(weights.shape)}")
        logp = logp * weights.detach().masked_fill(~mask, 0.0)
    return logp.sum(dim=1)


def _token_logp(model, hidden: Tensor, tokens: Tensor, temperature: float, with_entropy: bool) -> tuple[Tensor, ...]:
    """Log-probs (N,) of `tokens` (and entropies (N,)) from hidden states (N, C); the logits live only in here."""
    logits = model.head(hidden)  # (N, V)
    if logits.dtype != torch.float64:
        logits = logits.float()  # half precision log-softmax loses the small probabilities the ratios are made of
    if temperature != 1.0:
        logits = logits / temperature
    if is_plain() or not logits.requires_grad:
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
    return max(1, NUMBERS_AT_ONCE // logits.shape[1] if logits.device.type == "cpu" and not is_plain() else len(logits))


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


def _scatter(values: Tensor, mask: Tensor) -> Tensor:
    """Values (N,) in row-major mask order put back at their places of a (B, T) tensor of zeros."""
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)


def _check(ids: Tensor, mask: Tensor, temperature: float, chunk_tok: int | None) -> None:
    if ids.dim() != 2 or ids.shape[1] < 2 or ids.dtype != torch.int64:
        raise ValueError(f"ids must be (B, T) int64 with T >= 2, got {tuple(ids.shape)} {ids.dtype}")
    if mask.shape != ids.shape or mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool {tuple(ids.shape)} like ids, got {tuple(mask.shape)} {mask.dtype}")
    if bool(mask[:, 0].any()):
        raise ValueError("mask is True in column 0: nothing precedes the first token, so it has no log-prob")
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature must be a positive number, got {temperature} (greedy replies are scored at 1.0)")
    if chunk_tok is not None and chunk_tok < 1:
        raise ValueError(f"chunk_tok must be at least 1 or None, got {chunk_tok}")
