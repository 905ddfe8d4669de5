"""Log-probabilities of reply tokens: logits are built at the masked positions only, never as (B, T, V)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def completion_logp(
    model, ids: Tensor, mask: Tensor, *, temperature: float = 1.0, with_entropy: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """log p(ids[b, t] | ids[b, :t]) at the masked positions, 0 everywhere else; differentiable.

    The hidden state of position t - 1 predicts token t, so only hidden states before a masked token reach the head:
    N = mask.sum() rows of V logits instead of B * T. Right padding needs no attention mask in a causal model.
    `temperature` divides the logits, as in sampling: log-probs of rollouts and of training then agree.

    Shapes: ids (B, T) int64, right padded; mask (B, T) bool, True at reply tokens, the end-of-sequence token included.
    Returns: logp (B, T) float32 (float64 for a float64 model); with `with_entropy` also the entropy in nats of the
        tempered distribution at the masked positions, (B, T), detached.
    Raises: ValueError for shapes or dtypes that do not fit, a True in column 0 (nothing predicts the first token),
        or a temperature that is not a positive number.
    """
    check_inputs(ids, mask, temperature)
    hidden = model.hidden(ids[:, :-1])[mask[:, 1:]]  # (N, C)
    tokens = ids[mask]  # (N,)
    # Half precision would lose the small probabilities that ratios of policies are made of.
    log_probs = (as_float32(model.head(hidden)) / temperature).log_softmax(-1)  # (N, V)
    logp = scatter(log_probs.gather(-1, tokens[:, None])[:, 0], mask)
    if not with_entropy:
        return logp
    probs = log_probs.detach().exp()
    # A token of probability 0 has log-prob -inf and adds nothing to the entropy.
    entropy = -(probs * log_probs.detach().masked_fill(probs == 0, 0.0)).sum(-1)
    return logp, scatter(entropy, mask)


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


def as_float32(logits: Tensor) -> Tensor:
    """Logits of half types in float32; float64 stays."""
    return logits if logits.dtype == torch.float64 else logits.float()


def scatter(values: Tensor, mask: Tensor) -> Tensor:
    """Values (N,) in row-major order of the mask, at its places in a (B, T) tensor of zeros."""
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)


def check_inputs(ids: Tensor, mask: Tensor, temperature: float) -> None:
    """Raises: ValueError as `completion_logp`."""
    if ids.dim() != 2 or ids.shape[1] < 2 or ids.dtype != torch.int64:
        raise ValueError(f"ids must be (B, T) int64 with T >= 2, got {tuple(ids.shape)} {ids.dtype}")
    if mask.shape != ids.shape or mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool {tuple(ids.shape)} like ids, got {tuple(mask.shape)} {mask.dtype}")
    if bool(mask[:, 0].any()):
        raise ValueError("mask is True in column 0: nothing precedes the first token, so it has no log-prob")
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature must be a positive number, got {temperature} (greedy replies are scored at 1.0)")
