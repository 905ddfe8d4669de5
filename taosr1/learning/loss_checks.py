"""What the losses refuse, and how what they are given is made ready: masks applied, stored numbers detached."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LOSS_TYPES = ("sigmoid", "ipo", "hinge", "robust")
SCALES = ("group", "batch", "none")
RATIOS = ("token", "sequence")
NORMALISES = ("sequence", "token", "constant")
KL_ESTIMATORS = ("k1", "k2", "k3")


# ---- Tensors ---------------------------------------------------------------------------------------------------------


def token_weights(logp: Tensor, mask: Tensor, weights: Tensor | None) -> Tensor:
    """The weight of every token, (B, T) in logp's dtype: 0 outside the mask. Checks all three."""
    if logp.dim() != 2 or logp.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"logp must be (B, T) float32 or float64, got {tuple(logp.shape)} {logp.dtype}")
    if mask.shape != logp.shape or mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool {tuple(logp.shape)} like logp, got {tuple(mask.shape)} {mask.dtype}")
    if weights is None:
        return mask.to(logp.dtype)
    if weights.shape != logp.shape:
        raise ValueError(f"weights must be {tuple(logp.shape)} like logp, got {tuple(weights.shape)}")
    weights = weights.detach().to(logp.dtype).masked_fill(~mask, 0.0)
    if not bool((weights.isfinite() & (weights >= 0)).all()):
        raise ValueError("weights must be finite and at least 0 wherever the mask is True")
    return weights


def stored(values: Tensor, mask: Tensor, name: str) -> Tensor:
    """Stored log-probs (or entropies): detached, zeroed outside the mask."""
    if values.shape != mask.shape:
        raise ValueError(f"{name} must be {tuple(mask.shape)} like logp, got {tuple(values.shape)}")
    if values.dtype not in (torch.float32, torch.float64):
        reason = "a ratio close to 1 is lost in the rounding of half precision"
        raise ValueError(f"{name} is {values.dtype}, expected float32 or float64: {reason}")
    return values.detach().masked_fill(~mask, 0.0)


def over_time(advantages: Tensor, mask: Tensor) -> Tensor:
    """Advantages that broadcast over time: (B, 1) or (B, T), detached, zero where no token counts."""
    if advantages.shape != mask.shape and advantages.shape != mask.shape[:1]:
        expected = f"{tuple(mask.shape[:1])} or {tuple(mask.shape)}"
        raise ValueError(f"advantages must be {expected}, got {tuple(advantages.shape)}")
    if advantages.dim() == 1:
        advantages, mask = advantages[:, None], mask.any(dim=1, keepdim=True)
    return advantages.detach().masked_fill(~mask, 0.0)


def check_pairs(*logps: Tensor) -> None:
    """Raises: ValueError unless the log-probs of pairs are (B,), all of one precision that is not half."""
    shapes, dtypes = [tuple(value.shape) for value in logps], {value.dtype for value in logps}
    if logps[0].dim() != 1 or len(set(shapes)) != 1 or dtypes not in ({torch.float32}, {torch.float64}):
        expected = "(B,), summed over the reply, all float32 or all float64"
        raise ValueError(f"log-probs must be {expected}: {shapes} {dtypes}")


def reply_lengths(lengths: Tensor | None, logp: Tensor, name: str) -> Tensor:
    """Reply lengths (B,) to divide log-probs (B,) by, detached."""
    if lengths is None or lengths.shape != logp.shape:
        got = getattr(lengths, "shape", None)
        raise ValueError(f"{name} must be {tuple(logp.shape)} reply tokens for ipo and nll_coef, got {got}")
    if bool((lengths < 1).any()):
        raise ValueError(f"{name} must be at least 1 for every pair")
    return lengths.detach()


def check_rewards(rewards: Tensor, group_size: int, scale: str, clamp: float | None) -> Tensor:
    """The rewards as detached floats."""
    one_of(SCALES, scale=scale)
    if group_size < 1 or rewards.dim() != 1 or rewards.numel() % group_size:
        raise ValueError(f"rewards must be (P * {group_size},) with group_size >= 1, got {tuple(rewards.shape)}")
    if clamp is not None and not clamp > 0:
        raise ValueError(f"clamp must be positive or None, got {clamp}")
    rewards = rewards.detach()
    rewards = rewards if rewards.is_floating_point() else rewards.float()
    bad = (~rewards.isfinite()).nonzero().flatten().tolist()
    if bad:
        raise ValueError(f"reward of row {bad[0]} is {rewards[bad[0]].item()} ({len(bad)} non-finite rewards)")
    return rewards


# ---- Options ---------------------------------------------------------------------------------------------------------


def one_of(allowed: tuple[str, ...], **option: str) -> None:
    """Raises: ValueError where the option's value is not among those allowed."""
    ((name, value),) = option.items()
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}, expected one of {allowed}")


def check_ordinal(grades: Tensor, tau: float) -> None:
    """Raises: ValueError for grades that are not (B,), each 1 to 4, or a tau that is not a positive number."""
    if not (math.isfinite(tau) and tau > 0):
        raise ValueError(f"tau must be a positive number, got {tau} (a hard label needs no target)")
    if grades.dim() != 1 or not bool(((grades >= 1) & (grades <= 4)).all()):
        raise ValueError(f"grades must be (B,), each 1 to 4, got {tuple(grades.shape)} {grades.flatten().tolist()[:8]}")


def check_dpo(beta: float, loss_type: str, label_smoothing: float, nll_coef: float) -> None:
    """Raises: ValueError for options of `dpo_loss` that do not fit."""
    one_of(LOSS_TYPES, loss_type=loss_type)
    if not (math.isfinite(beta) and beta > 0):
        raise ValueError(f"beta must be a positive number, got {beta}")
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing must be in [0, 0.5), got {label_smoothing}")
    if label_smoothing and loss_type in ("hinge", "ipo"):
        raise ValueError(f"label_smoothing is for sigmoid and robust, not for {loss_type}; set it to 0")
    if not (math.isfinite(nll_coef) and nll_coef >= 0):
        raise ValueError(f"nll_coef must be at least 0, got {nll_coef}")


def check_grpo(
    kl_beta: float, kl_estimator: str, clip_low: float, clip_high: float, ratio: str, normalise: str,
    max_length: int | None, ref_logp: Tensor | None,
) -> None:  # fmt: skip
    """Raises: ValueError for options of `grpo_loss` that do not fit."""
    one_of(RATIOS, ratio=ratio)
    one_of(NORMALISES, normalise=normalise)
    one_of(KL_ESTIMATORS, kl_estimator=kl_estimator)
    if not (0 <= clip_low <= 1 and clip_high >= 0):
        raise ValueError(f"clip_low must be in [0, 1] and clip_high at least 0, got {clip_low} and {clip_high}")
    if not (math.isfinite(kl_beta) and kl_beta >= 0):
        raise ValueError(f"kl_beta must be at least 0, got {kl_beta}")
    if kl_beta and ref_logp is None:
        raise ValueError(f"kl_beta is {kl_beta} but ref_logp is missing: store reference log-probs or set kl_beta to 0")
    if normalise == "constant" and (max_length is None or max_length < 1):
        raise ValueError(f"normalise='constant' needs max_length >= 1, got {max_length}")


# ---- Results ---------------------------------------------------------------------------------------------------------


def at_least_one(count: Tensor) -> Tensor:
    """A denominator that is never 0: 1 in place of 0, so that 0 / 0 is 0."""
    return torch.where(count > 0, count, torch.ones_like(count))


def pair_means(logged: dict[str, Tensor]) -> dict[str, float]:
    """The mean of every metric (B,) over pairs; 0.0 without a pair."""
    values = torch.stack(list(logged.values()))  # (metrics, B)
    return dict(zip(logged, (values.sum(dim=1) / max(1, values.shape[1])).tolist()))


def floats(metrics: dict[str, Tensor]) -> dict[str, float]:
    """Python floats, with one transfer from the device for all of them."""
    return dict(zip(metrics, torch.stack(list(metrics.values())).tolist()))
