"""The training losses, soft labels and GRPO's advantages, as pure functions of tensors; checks are in `loss_checks.py`.

Each loss returns `LossSum(sum, count, metrics)`. The loop calls backward on sums and divides the gradients once per
optimizer step by the step's total count, so 1 x 8 and 4 x 2 micro-batches are the same step. A mean of micro-batch
means is not: on ragged batches it is a different, wrong gradient.

The reference and the old policy are stored numbers: they are detached here, and so are advantages and weights. The
gradient reaches the policy's log-probs only. What is under a False of a mask, NaN included, changes nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from taosr1.learning.loss_checks import (
    KL_ESTIMATORS,
    at_least_one,
    check_dpo,
    check_grpo,
    check_ordinal,
    check_pairs,
    check_rewards,
    floats,
    one_of,
    over_time,
    pair_means,
    reply_lengths,
    stored,
    token_weights,
)

STD_EPS = 1e-4  # added to a standard deviation that divides advantages, as in TRL


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
    weight = token_weights(logp, mask, weights)  # (B, T), 0 where it does not count
    logp = logp.masked_fill(~mask, 0.0)
    count = weight.sum()
    metrics = {"mean_token_prob": (weight * logp.detach().exp()).sum() / at_least_one(count)}
    return LossSum(-(weight * logp).sum(), float(count), floats(metrics))


def ordinal_target(grades: Tensor, tau: float) -> Tensor:
    """What a label is taught in place of its gold grade alone: q_k = softmax over k of -|k - grade| / tau.

    A grade that is d away gets exp(-d / tau) times the gold grade's share; one-hot as tau goes to 0. The loss is
    `sft_loss` of the four labels' log-probs, weighted by q: least where the model says q and nothing but a label.

    Shapes: grades (B,) int64, 1 to 4 -> (B, 4) float64, column k - 1 is grade k, rows sum to 1.
    Raises: ValueError for a grade outside 1-4, or a tau that is not a positive number.
    Source: soft ordinal labels (SORD), Diaz and Marathe, CVPR 2019, with the absolute distance.
    Choice: log-probs over the whole vocabulary, not over the four labels. Their cross-entropy is that over the four
        plus -log(label mass): so a label stays what the model answers with.
    """
    check_ordinal(grades, tau)
    distance = (grades[:, None] - torch.arange(1, 5, device=grades.device)).abs().double()  # (B, 4)
    return (-distance / tau).softmax(dim=1)


def dpo_loss(
    policy_chosen: Tensor, policy_rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *,
    beta: float = 0.1, loss_type: str = "sigmoid", label_smoothing: float = 0.0,
    chosen_length: Tensor | None = None, rejected_length: Tensor | None = None, nll_coef: float = 0.0,
) -> LossSum:  # fmt: skip
    """Preference loss on pairs of replies to one prompt. Count: pairs.

    With c = log pi(y+) - log ref(y+), r the same for y-, and h = beta * (c - r):
        sigmoid  -log s(h); with label_smoothing e (conservative DPO) -(1-e) log s(h) - e log s(-h)
        robust   (-(1-e) log s(h) + e log s(-h)) / (1 - 2e): unbiased where a share e of the pairs is swapped
        hinge    max(0, 1 - h)
        ipo      (c/|y+| - r/|y-| - 1/(2 beta))^2, per-token averages, so long replies do not set the scale
    `nll_coef` adds that multiple of -log pi(y+)/|y+|, which keeps the chosen reply likely while the margin grows.

    Shapes: the four log-probs (B,), summed over the reply (`sequence_logp`); lengths (B,), reply tokens, needed by ipo
        (both) and nll_coef (chosen).
    Returns: metrics in TRL's names, and `nll` where its coefficient is not 0.
    Raises: ValueError for shapes and options that do not fit.
    Source: Rafailov et al. 2305.18290 eq. 7 (TaoSR1 2508.12365, pass@N DPO); conservative: Mitchell 2023; robust:
        2403.00409; hinge: SLiC 2305.10425; ipo: 2310.12036 eq. 17; nll: iterative RPO 2404.19733.
    """
    check_dpo(beta, loss_type, label_smoothing, nll_coef)
    check_pairs(policy_chosen, policy_rejected, ref_chosen, ref_rejected)
    chosen = policy_chosen - ref_chosen.detach()  # (B,), as all that follows
    rejected = policy_rejected - ref_rejected.detach()
    margin = beta * (chosen - rejected)
    if loss_type == "sigmoid":
        losses = -(1 - label_smoothing) * F.logsigmoid(margin) - label_smoothing * F.logsigmoid(-margin)
    elif loss_type == "robust":
        losses = -(1 - label_smoothing) * F.logsigmoid(margin) + label_smoothing * F.logsigmoid(-margin)
        losses = losses / (1 - 2 * label_smoothing)
    elif loss_type == "hinge":
        losses = F.relu(1 - margin)
    else:
        chosen_mean = chosen / reply_lengths(chosen_length, chosen, "chosen_length")
        rejected_mean = rejected / reply_lengths(rejected_length, rejected, "rejected_length")
        losses = (chosen_mean - rejected_mean - 1 / (2 * beta)) ** 2
    logged = {
        "rewards/chosen": beta * chosen, "rewards/rejected": beta * rejected, "rewards/margins": margin,
        "rewards/accuracies": (margin > 0).to(margin.dtype),
        "logps/chosen": policy_chosen, "logps/rejected": policy_rejected,
    }  # fmt: skip
    if nll_coef:
        logged["nll"] = -policy_chosen / reply_lengths(chosen_length, chosen, "chosen_length")
        losses = losses + nll_coef * logged["nll"]
    return LossSum(losses.sum(), float(len(losses)), pair_means(logged))


def group_advantages(rewards: Tensor, group_size: int, *, scale: str = "group", clamp: float | None = None) -> Tensor:
    """How much better each reply is than its group: reward - group mean, divided by group, batch or no std.

    A group whose rewards are all equal gets exact zeros (never rounding error over 1e-4), and so does a group of one.
    `clamp` bounds the result to [-clamp, clamp] (sister work DyKnow-RAG uses 2).

    Shapes: rewards (P*G,), prompt-major -> (P*G,), detached.
    Raises: ValueError for a length that is no multiple of group_size, an unknown scale, or a non-finite reward.
    Source: DeepSeekMath 2402.03300, section 4.1; none: Dr. GRPO 2503.20783; batch: Lite PPO 2508.08221.
    Choice: the sample (n - 1) standard deviation plus 1e-4, as TRL 1.16 does; the paper does not say which.
    """
    rewards = check_rewards(rewards, group_size, scale, clamp)
    groups = rewards.view(-1, group_size)  # (P, G)
    if groups.numel() == 0 or group_size == 1:
        return torch.zeros_like(rewards)
    centred = groups - groups.mean(dim=1, keepdim=True)
    centred = centred.masked_fill((groups == groups[:, :1]).all(dim=1, keepdim=True), 0.0)
    if scale == "group":
        centred = centred / (groups.std(dim=1, keepdim=True) + STD_EPS)
    elif scale == "batch":
        centred = centred / (rewards.std() + STD_EPS)
    if clamp is not None:
        centred = centred.clamp(-clamp, clamp)
    return centred.flatten()


def grpo_loss(
    logp: Tensor, old_logp: Tensor | None, advantages: Tensor, mask: Tensor, *,
    ref_logp: Tensor | None = None, kl_beta: float = 0.0, kl_estimator: str = "k3",
    clip_low: float = 0.2, clip_high: float | None = None, ratio: str = "token", normalise: str = "sequence",
    max_length: int | None = None, weights: Tensor | None = None, entropy: Tensor | None = None,
) -> LossSum:  # fmt: skip
    """Clipped policy gradient with a KL term: sum of -min(r A, clip(r, 1 - low, 1 + high) A) + kl_beta * KL(pi, ref).

    The minimum holds for both signs of A: at A < 0 it keeps the full penalty when r is above the range and stops
    the push when r is below 1 - low. The first update of a rollout may pass old_logp=None: r = 1 with its gradient.

    ratio: "token" r_t = exp(logp - old); "sequence" (GSPO) its geometric mean over the reply, one r for all tokens.
    normalise: what the sum is made of and what count counts, with w the token weights (1 where none are given):
        "sequence"  sum_i (sum_t w l / sum_t w); replies        (GRPO: every reply weighs the same)
        "token"     sum_i sum_t w l;             w-fold tokens  (DAPO: every token of the step weighs the same)
        "constant"  sum_i sum_t w l / max_length; replies       (Dr. GRPO: no length bias)
    kl_estimator: see `kl_estimate`; `kl` is logged wherever ref_logp is given.

    Shapes: logp, old_logp, ref_logp (B, T); advantages (B,), or (B, T) for rewards per step; mask (B, T) bool; weights
        (B, T) >= 0; entropy (B, T), logged only.
    Returns: metrics ratio, approx_kl (k3 of the old policy to this one), clip_ratio/low_mean, /high_mean,
        /region_mean (share of tokens whose gradient the clip stopped); kl and entropy where they are given.
    Raises: ValueError for shapes and options that do not fit.
    Source: TaoSR1 2508.12365 (GRPO objective); DeepSeekMath 2402.03300 eq. 3-4; GSPO 2507.18071 eq. 5-7; clip-higher
        and token mean: DAPO 2503.14476; constant: 2503.20783.
    Choice: a row whose mask is all False adds 0 to the sum and 0 to the count, so that ranks may fill up with such
        rows. TRL divides by all rows. The sequence ratio averages over the mask, unweighted.
    """
    clip_high = clip_low if clip_high is None else clip_high
    check_grpo(kl_beta, kl_estimator, clip_low, clip_high, ratio, normalise, max_length, ref_logp)
    weight = token_weights(logp, mask, weights)  # (B, T)
    logp = logp.masked_fill(~mask, 0.0)
    old_logp = logp.detach() if old_logp is None else stored(old_logp, mask, "old_logp")
    advantages = over_time(advantages, mask)  # (B, 1) or (B, T)

    log_ratio = logp - old_logp  # (B, T), 0 outside the mask
    if ratio == "sequence":
        log_ratio = (log_ratio.sum(dim=1) / mask.sum(dim=1).clamp_min(1))[:, None].expand_as(logp)
    r = log_ratio.exp()
    losses = -torch.minimum(r * advantages, r.clamp(1 - clip_low, 1 + clip_high) * advantages)  # (B, T)
    low, high = (r < 1 - clip_low) & (advantages < 0), (r > 1 + clip_high) & (advantages > 0)
    logged = {"ratio": r, "approx_kl": r - 1 - log_ratio, "clip_ratio/low_mean": low, "clip_ratio/high_mean": high,
              "clip_ratio/region_mean": low | high}  # fmt: skip
    if ref_logp is not None:
        logged["kl"] = kl_estimate(logp, stored(ref_logp, mask, "ref_logp"), kl_estimator)
        losses = losses + kl_beta * logged["kl"] if kl_beta else losses
    if entropy is not None:
        logged["entropy"] = stored(entropy, mask, "entropy")

    row_weight = weight.sum(dim=1)  # (B,)
    share = weight / at_least_one(row_weight)[:, None]  # each row's weights made to sum to 1
    count, mean_weight = (row_weight.sum(), weight) if normalise == "token" else ((row_weight > 0).sum(), share)
    loss_weight = {"sequence": share, "token": weight, "constant": weight / (max_length or 1)}[normalise]
    metrics = {name: (x.detach() * mean_weight).sum() / at_least_one(count) for name, x in logged.items()}
    return LossSum((losses * loss_weight).sum(), float(count), floats(metrics))


def kl_estimate(logp: Tensor, ref_logp: Tensor, estimator: str = "k3") -> Tensor:
    """Per-token estimate of KL(pi, ref) from one sample of pi, same shape. With d = logp - ref_logp:

    k1  d;    k2  d^2 / 2;    k3  exp(-d) - 1 + d, which is never negative.

    Raises: ValueError for an unknown estimator.
    Source: Schulman, "Approximating KL divergence"; k3: DeepSeekMath 2402.03300 eq. 4.
    """
    one_of(KL_ESTIMATORS, kl_estimator=estimator)
    difference = logp - ref_logp
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return difference.square() / 2
    return torch.expm1(-difference) + difference
