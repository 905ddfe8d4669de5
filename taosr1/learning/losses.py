"""The three training losses and the GRPO advantages, as pure functions of tensors.

Each loss returns `LossSum(sum, count, metrics)`. The loop calls backward on sums and divides the gradients once per
optimizer step by the step's total count, so 1 x 8 and 4 x 2 micro-batches are the same step. A mean of micro-batch
means is not: on ragged batches it is a different, wrong gradient.

The reference and the old policy are stored numbers: they are detached here, and so are advantages and weights. The
gradient reaches the policy's log-probs only. What lies under a False of a mask, NaN included, changes nothing.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LOSS_TYPES = ("sigmoid", "ipo", "hinge", "robust")
SCALES = ("group", "batch", "none")
RATIOS = ("token", "sequence")
NORMALISES = ("sequence", "token", "constant")
KL_ESTIMATORS = ("k1", "k2", "k3")


class LossSum(NamedTuple):
    """A loss before its division.

    sum: () tensor with a graph, the loss summed over what `count` counts.
    count: what a mean would divide by; 0.0 where nothing counted (then `sum` is 0 and so is its gradient).
    metrics: detached floats, each a mean over the same units as the loss. So the count-weighted mean of the
        micro-batches' metrics is the step's metric; all 0.0 where count is 0.
    """

    sum: Tensor
    count: float
    metrics: dict[str, float]


def sft_loss(logp: Tensor, mask: Tensor, *, weights: Tensor | None = None) -> LossSum:
    """Cross-entropy of the reply tokens: -sum w * logp. Count: reply tokens, each as often as its weight.

    Shapes: logp (B, T); mask (B, T) bool; weights (B, T) >= 0 or None for all ones (a label token may weigh more).
    Raises: ValueError for shapes, dtypes or weights that do not fit.
    """
    weight = _token_weights(logp, mask, weights)  # (B, T), 0 where it does not count
    logp = logp.masked_fill(~mask, 0.0)
    total = -(weight * logp).sum()
    count = weight.sum()
    metrics = {"mean_token_prob": (weight * logp.detach().exp()).sum() / _at_least(count)}
    return LossSum(total, float(count), _floats(metrics))


def dpo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    *,
    beta: float = 0.1,
    loss_type: str = "sigmoid",
    label_smoothing: float = 0.0,
    chosen_length: Tensor | None = None,
    rejected_length: Tensor | None = None,
    nll_coef: float = 0.0,
    mask: Tensor | None = None,
) -> LossSum:
    """Preference loss on pairs of replies to one prompt. Count: pairs.

    With c = log pi(y+) - log ref(y+), r the same for y-, and h = beta * (c - r):
        sigmoid  -log s(h); with label_smoothing e (conservative DPO) -(1-e) log s(h) - e log s(-h)
        robust   (-(1-e) log s(h) + e log s(-h)) / (1 - 2e): unbiased where a share e of the pairs is swapped
        hinge    max(0, 1 - h)
        ipo      (c/|y+| - r/|y-| - 1/(2 beta))^2, per-token averages, so long replies do not set the scale
    `nll_coef` adds that multiple of -log pi(y+)/|y+|, which keeps the chosen reply likely while the margin grows.

    Shapes: the four log-probs (B,), summed over the reply (`sequence_logp`); lengths (B,) reply tokens, needed by
        ipo (both) and nll_coef (chosen); mask (B,) bool or None, False = a pair that only fills the batch.
    Returns: metrics in TRL's names (rewards/chosen|rejected|margins|accuracies, logps/chosen|rejected) and `nll`
        where its coefficient is not 0. Given the label token's log-probs alone, rewards/margins is the label margin.
    Raises: ValueError for shapes and options that do not fit.
    Source: Rafailov et al. 2305.18290 eq. 7 (TaoSR1 2508.12365, pass@N DPO); conservative: Mitchell 2023; robust:
        2403.00409; hinge: SLiC 2305.10425; ipo: 2310.12036 eq. 17; nll: iterative RPO 2404.19733.
    """
    _check_dpo(beta, loss_type, label_smoothing, nll_coef)
    pairs = (policy_chosen, policy_rejected, ref_chosen, ref_rejected)
    mask = _pair_mask(pairs, mask)
    policy_chosen, policy_rejected = (value.masked_fill(~mask, 0.0) for value in pairs[:2])
    ref_chosen, ref_rejected = (value.detach().masked_fill(~mask, 0.0) for value in pairs[2:])
    chosen = policy_chosen - ref_chosen  # (B,)
    rejected = policy_rejected - ref_rejected  # (B,)
    margin = beta * (chosen - rejected)
    if loss_type == "sigmoid":
        losses = -(1 - label_smoothing) * F.logsigmoid(margin) - label_smoothing * F.logsigmoid(-margin)
    elif loss_type == "robust":
        losses = -(1 - label_smoothing) * F.logsigmoid(margin) + label_smoothing * F.logsigmoid(-margin)
        losses = losses / (1 - 2 * label_smoothing)
    elif loss_type == "hinge":
        losses = F.relu(1 - margin)
    else:
        chosen_mean = chosen / _lengths(chosen_length, mask, "chosen_length")
        rejected_mean = rejected / _lengths(rejected_length, mask, "rejected_length")
        losses = (chosen_mean - rejected_mean - 1 / (2 * beta)) ** 2
    means = {
        "rewards/chosen": beta * chosen,
        "rewards/rejected": beta * rejected,
        "rewards/margins": margin,
        "rewards/accuracies": (margin > 0).to(margin.dtype),
        "logps/chosen": policy_chosen,
        "logps/rejected": policy_rejected,
    }
    if nll_coef:
        means["nll"] = -policy_chosen / _lengths(chosen_length, mask, "chosen_length")
        losses = losses + nll_coef * means["nll"]
    counts = mask.to(losses.dtype)
    total = counts.sum()
    metrics = {name: (value.detach() * counts).sum() / _at_least(total) for name, value in means.items()}
    return LossSum((losses * counts).sum(), float(total), _floats(metrics))


def group_advantages(
    rewards: Tensor, group_size: int, *, scale: str = "group", clamp: float | None = None, eps: float = 1e-4
) -> Tensor:
    """How much better each reply is than its group: reward - group mean, divided by group, batch or no std.

    A group whose rewards are all equal gets exact zeros (never rounding error over eps), and so does a group of one.
    `clamp` bounds the result to [-clamp, clamp] (sister work DyKnow-RAG uses 2).

    Shapes: rewards (P*G,), prompt-major -> (P*G,), detached.
    Raises: ValueError for a length that is no multiple of group_size, an unknown scale, or a non-finite reward.
    Source: DeepSeekMath 2402.03300, section 4.1; none: Dr. GRPO 2503.20783; batch: Lite PPO 2508.08221.
    Choice: the sample (n - 1) standard deviation plus 1e-4, as TRL 1.16 does; the paper does not say which.
    """
    if scale not in SCALES:
        raise ValueError(f"scale is {scale!r}, expected one of {SCALES}")
    if group_size < 1 or rewards.dim() != 1 or rewards.numel() % group_size:
        raise ValueError(f"rewards must be (P * {group_size},) with group_size >= 1, got {tuple(rewards.shape)}")
    if clamp is not None and not clamp > 0:
        raise ValueError(f"clamp must be positive or None, got {clamp}")
    rewards = rewards.detach()
    rewards = rewards if rewards.is_floating_point() else rewards.float()
    bad = (~rewards.isfinite()).nonzero().flatten().tolist()
    if bad:
        raise ValueError(f"reward of row {bad[0]} is {rewards[bad[0]].item()} ({len(bad)} non-finite rewards)")
    groups = rewards.view(-1, group_size)  # (P, G)
    if groups.numel() == 0 or group_size == 1:
        return torch.zeros_like(rewards)
    centred = groups - groups.mean(dim=1, keepdim=True)
    centred = centred.masked_fill((groups == groups[:, :1]).all(dim=1, keepdim=True), 0.0)
    if scale == "group":
        centred = centred / (groups.std(dim=1, keepdim=True) + eps)
    elif scale == "batch":
        centred = centred / (rewards.std() + eps)
    if clamp is not None:
        centred = centred.clamp(-clamp, clamp)
    return centred.flatten()


def grpo_loss(
    logp: Tensor,
    old_logp: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    *,
    ref_logp: Tensor | None = None,
    kl_beta: float = 0.0,
    kl_estimator: str = "k3",
    clip_low: float = 0.2,
    clip_high: float | None = None,
    ratio: str = "token",
    normalise: str = "sequence",
    max_length: int | None = None,
    weights: Tensor | None = None,
    entropy: Tensor | None = None,
) -> LossSum:
    """Clipped policy gradient with a KL term: sum of -min(r A, clip(r, 1 - low, 1 + high) A) + kl_beta * KL(pi, ref).

    The minimum holds for both signs of A: at A < 0 it keeps the full penalty when r is above the range and stops
    the push when r is below 1 - low. The first update of a rollout may pass old_logp=None: r = 1 with its gradient.

    ratio: "token" r_t = exp(logp - old); "sequence" (GSPO) its geometric mean over the reply, one r for all tokens.
    normalise: what the sum is made of and what count counts, with w the token weights (1 where none are given):
        "sequence"  sum_i (sum_t w l / sum_t w); replies        (GRPO: every reply weighs the same)
        "token"     sum_i sum_t w l;             w-fold tokens  (DAPO: every token of the step weighs the same)
        "constant"  sum_i sum_t w l / max_length; replies       (Dr. GRPO: no length bias)
    kl_estimator, with d = logp - ref: "k1" d, "k2" d^2 / 2, "k3" exp(-d) - 1 + d (never negative).

    Shapes: logp, old_logp, ref_logp (B, T); advantages (B,), or (B, T) for rewards per step; mask (B, T) bool; weights
        (B, T) >= 0; entropy (B, T), logged only. ref_logp is needed where kl_beta > 0; `kl` is logged wherever it is given.
    Returns: metrics ratio, approx_kl (k3 of the old policy to this one), clip_ratio/low_mean, /high_mean,
        /region_mean (share of tokens whose gradient the clip stopped); kl and entropy where they are given.
    Raises: ValueError for shapes and options that do not fit.
    Source: TaoSR1 2508.12365 (GRPO objective); DeepSeekMath 2402.03300 eq. 3-4; GSPO 2507.18071 eq. 5-7; clip-higher
        and token mean: DAPO 2503.14476; constant: 2503.20783; estimators: Schulman, "Approximating KL divergence".
    Choice: a row whose mask is all False is not there: it adds 0 to the sum and 0 to the count, so that ranks may
        fill up with such rows. TRL divides by all rows. The sequence ratio averages over the mask, unweighted.
    """
    clip_high = clip_low if clip_high is None else clip_high
    _check_grpo(kl_beta, kl_estimator, clip_low, clip_high, ratio, normalise, max_length, ref_logp)
    weight = _token_weights(logp, mask, weights)  # (B, T)
    logp = logp.masked_fill(~mask, 0.0)
    old_logp = logp.detach() if old_logp is None else _stored(old_logp, mask, "old_logp")
    advantages = _advantages(advantages, mask)  # (B, 1) or (B, T)

    log_ratio = logp - old_logp  # (B, T), 0 outside the mask
    if ratio == "sequence":
        log_ratio = (log_ratio.sum(dim=1) / mask.sum(dim=1).clamp_min(1))[:, None].expand_as(logp)
    policy_ratio = log_ratio.exp()
    clipped = policy_ratio.clamp(1 - clip_low, 1 + clip_high)
    losses = -torch.minimum(policy_ratio * advantages, clipped * advantages)  # (B, T)
    low = (policy_ratio < 1 - clip_low) & (advantages < 0)
    high = (policy_ratio > 1 + clip_high) & (advantages > 0)
    means = {
        "ratio": policy_ratio,
        "approx_kl": policy_ratio - 1 - log_ratio,
        "clip_ratio/low_mean": low,
        "clip_ratio/high_mean": high,
        "clip_ratio/region_mean": low | high,
    }
    if ref_logp is not None:
        means["kl"] = kl_estimate(logp, _stored(ref_logp, mask, "ref_logp"), kl_estimator)
        if kl_beta:
            losses = losses + kl_beta * means["kl"]
    if entropy is not None:
        means["entropy"] = _stored(entropy, mask, "entropy")

    row_weight = weight.sum(dim=1)  # (B,)
    share = weight / _at_least(row_weight)[:, None]  # each row's weights made to sum to 1
    rows = (row_weight > 0).sum()
    count, metric_weight = (row_weight.sum(), weight) if normalise == "token" else (rows, share)
    loss_weight = {"sequence": share, "token": weight, "constant": weight / (max_length or 1)}[normalise]
    metrics = {name: (x.detach() * metric_weight).sum() / _at_least(count) for name, x in means.items()}
    return LossSum((losses * loss_weight).sum(), float(count), _floats(metrics))


def kl_estimate(logp: Tensor, ref_logp: Tensor, estimator: str = "k3") -> Tensor:
    """Per-token estimate of KL(pi, ref) from one sample of pi: k1, k2 or k3 of d = logp - ref_logp, same shape.

    Raises: ValueError for an unknown estimator.
    """
    if estimator not in KL_ESTIMATORS:
        raise ValueError(f"kl_estimator is {estimator!r}, expected one of {KL_ESTIMATORS}")
    difference = logp - ref_logp
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return difference.square() / 2
    return torch.expm1(-difference) + difference


def _token_weights(logp: Tensor, mask: Tensor, weights: Tensor | None) -> Tensor:
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


def _stored(values: Tensor, mask: Tensor, name: str) -> Tensor:
    """Stored log-probs (or entropies): detached, zeroed outside the mask."""
    if values.shape != mask.shape:
        raise ValueError(f"{name} must be {tuple(mask.shape)} like logp, got {tuple(values.shape)}")
    if values.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{name} is {values.dtype}, expected float32 or float64: a ratio close to 1 is lost in the rounding of half precision")
    return values.detach().masked_fill(~mask, 0.0)


def _advantages(advantages: Tensor, mask: Tensor) -> Tensor:
    """Advantages that broadcast over time: (B, 1) or (B, T), detached, zero where no token counts."""
    if advantages.shape != mask.shape and advantages.shape != mask.shape[:1]:
        raise ValueError(
            f"advantages must be {tuple(mask.shape[:1])} or {tuple(mask.shape)}, got {tuple(advantages.shape)}"
        )
    if advantages.dim() == 1:
        advantages, mask = advantages[:, None], mask.any(dim=1, keepdim=True)
    return advantages.detach().masked_fill(~mask, 0.0)


def _pair_mask(pairs: tuple[Tensor, ...], mask: Tensor | None) -> Tensor:
    """The mask of pairs that count, (B,) bool, after checking the four log-probs."""
    shapes = [tuple(value.shape) for value in pairs]
    dtypes = {value.dtype for value in pairs}
    if pairs[0].dim() != 1 or len(set(shapes)) != 1 or dtypes not in ({torch.float32}, {torch.float64}):
        raise ValueError(f"log-probs must be (B,), summed over the reply, all float32 or all float64: {shapes} {dtypes}")
    if mask is None:
        return torch.ones_like(pairs[0], dtype=torch.bool)
    if mask.shape != pairs[0].shape or mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool {shapes[0]}, got {tuple(mask.shape)} {mask.dtype}")
    return mask


def _lengths(lengths: Tensor | None, mask: Tensor, name: str) -> Tensor:
    if lengths is None or lengths.shape != mask.shape:
        got = getattr(lengths, "shape", None)
        raise ValueError(f"{name} must be {tuple(mask.shape)} reply tokens for ipo and nll_coef, got {got}")
    if bool((lengths[mask] < 1).any()):
        raise ValueError(f"{name} must be at least 1 for every pair that counts")
    return lengths.detach().clamp_min(1)


def _check_dpo(beta: float, loss_type: str, label_smoothing: float, nll_coef: float) -> None:
    if loss_type not in LOSS_TYPES:
        raise ValueError(f"loss_type is {loss_type!r}, expected one of {LOSS_TYPES}")
    if not (math.isfinite(beta) and beta > 0):
        raise ValueError(f"beta must be a positive number, got {beta}")
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing must be in [0, 0.5), got {label_smoothing}")
    if label_smoothing and loss_type in ("hinge", "ipo"):
        raise ValueError(f"label_smoothing is for sigmoid and robust, not for {loss_type}; set it to 0")
    if not (math.isfinite(nll_coef) and nll_coef >= 0):
        raise ValueError(f"nll_coef must be at least 0, got {nll_coef}")


def _check_grpo(kl_beta, kl_estimator, clip_low, clip_high, ratio, normalise, max_length, ref_logp) -> None:
    for name, value, allowed in (
        ("ratio", ratio, RATIOS),
        ("normalise", normalise, NORMALISES),
        ("kl_estimator", kl_estimator, KL_ESTIMATORS),
    ):
        if value not in allowed:
            raise ValueError(f"{name} is {value!r}, expected one of {allowed}")
    if not (0 <= clip_low <= 1 and clip_high >= 0):
        raise ValueError(f"clip_low must be in [0, 1] and clip_high at least 0, got {clip_low} and {clip_high}")
    if not (math.isfinite(kl_beta) and kl_beta >= 0):
        raise ValueError(f"kl_beta must be at least 0, got {kl_beta}")
    if kl_beta and ref_logp is None:
        raise ValueError(f"kl_beta is {kl_beta} but ref_logp is missing: store reference log-probs or set kl_beta to 0")
    if normalise == "constant" and (max_length is None or max_length < 1):
        raise ValueError(f"normalise='constant' needs max_length >= 1, got {max_length}")


def _at_least(count: Tensor) -> Tensor:
    """A denominator that is never 0: whatever is divided by it is 0 then."""
    return torch.where(count > 0, count, torch.ones_like(count))


def _floats(metrics: dict[str, Tensor]) -> dict[str, float]:
    """Detached Python floats, with one transfer from the device for all of them."""
    values = torch.stack([value.detach() for value in metrics.values()]).tolist()
    return dict(zip(metrics, values))
