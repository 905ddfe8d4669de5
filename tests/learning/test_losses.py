"""Every loss: values derived by hand, wrong twins rejected, float64 gradients, masks, splits, and a bandit to solve."""

import math

import pytest
import torch

from taosr1.learning.losses import LossSum, dpo_loss, group_advantages, grpo_loss, kl_estimate, ordinal_target, sft_loss

EXACT = 1e-12  # float64 throughout: anything larger than rounding is a different formula


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def close(actual, expected, tolerance=EXACT):
    torch.testing.assert_close(
        torch.as_tensor(actual, dtype=torch.float64),
        torch.as_tensor(expected, dtype=torch.float64),
        rtol=0,
        atol=tolerance,
    )


def differs(actual, *twins):
    """None of the wrong twins gives this number: a test that could not tell them apart proves nothing."""
    assert all(abs(float(actual) - float(twin)) > 1e-3 for twin in twins)


def ragged(rows=6, width=5, seed=0):
    """Log-probs, old, ref (B, T), advantages (B,), mask (B, T) and token weights of ragged rows; row 2 has no True."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    logp = -normal(rows, width).abs() - 0.1
    mask = torch.arange(width) < torch.tensor([3, 5, 0, 1, 4, 2])[:rows, None]
    old, ref = logp + 0.3 * normal(rows, width), logp + 0.3 * normal(rows, width)
    return logp, old, ref, normal(rows), mask, 1 + 2 * torch.rand(rows, width, dtype=torch.float64, generator=generator)


GRPO_VARIANTS = [
    {"ratio": ratio, "normalise": normalise, "max_length": 7, "clip_low": 0.1, "clip_high": 0.3, "kl_beta": beta}
    for ratio in ("token", "sequence")
    for normalise in ("sequence", "token", "constant")
    for beta in (0.0, 0.05)
] + [{"kl_beta": 0.05, "kl_estimator": estimator} for estimator in ("k1", "k2")]
DPO_VARIANTS = [
    {"loss_type": "sigmoid"},
    {"loss_type": "sigmoid", "label_smoothing": 0.2},
    {"loss_type": "robust", "label_smoothing": 0.2},
    {"loss_type": "hinge"},
    {"loss_type": "ipo"},
    {"loss_type": "sigmoid", "nll_coef": 0.3},
]


# ---- SFT ------------------------------------------------------------------------------------------------------------

SFT_LOGP = tensor([-1.0, -2.0, -7.0], [-3.0, -9.0, -9.0])
SFT_MASK = torch.tensor([[True, True, False], [True, False, False]])


def test_sft_is_the_sum_over_reply_tokens_and_counts_tokens():
    """Rows (-1 -2) and (-3): sum 6 over 3 tokens, mean 2.

    Wrong twins: mean of row means (1.5 + 3) / 2 = 2.25; mean over padding 6 / 6 = 1; padding included 31 / 6.
    """
    loss = sft_loss(SFT_LOGP, SFT_MASK)
    assert (loss.sum.item(), loss.count) == (6.0, 3.0)
    differs(loss.sum / loss.count, 2.25, 1.0, 31 / 6)
    assert loss.metrics["mean_token_prob"] == pytest.approx((math.exp(-1) + math.exp(-2) + math.exp(-3)) / 3)


def test_sft_weights_enter_the_sum_and_the_count():
    """Weight 3 on each row's first token: 3*1 + 2 + 3*3 = 14 over 3 + 1 + 3 = 7, mean 2; over 3 tokens 14/3."""
    weights = tensor([3.0, 1.0, 5.0], [3.0, 5.0, math.nan])  # the padding's weights do not count
    loss = sft_loss(SFT_LOGP, SFT_MASK, weights=weights)
    assert (loss.sum.item(), loss.count) == (14.0, 7.0)
    assert loss.metrics["mean_token_prob"] == pytest.approx((3 * math.exp(-1) + math.exp(-2) + 3 * math.exp(-3)) / 7)


def test_sft_padding_content_is_irrelevant():
    """NaN and infinity under every False: the same sum, count and metrics, and a gradient of 0 there."""
    dirty = SFT_LOGP.clone()
    dirty[0, 2], dirty[1, 1], dirty[1, 2] = math.nan, math.inf, -math.inf
    dirty.requires_grad_()
    loss, clean = sft_loss(dirty, SFT_MASK), sft_loss(SFT_LOGP, SFT_MASK)
    assert torch.equal(loss.sum, clean.sum) and loss[1:] == clean[1:]
    loss.sum.backward()
    close(dirty.grad, -SFT_MASK.double())


def test_sft_gradient_is_minus_the_weight():
    logp = SFT_LOGP.clone().requires_grad_()
    weights = tensor([3.0, 1.0, 1.0], [3.0, 1.0, 1.0])
    sft_loss(logp, SFT_MASK, weights=weights).sum.backward()
    close(logp.grad, -weights * SFT_MASK)


def test_sft_rejects_what_does_not_fit():
    for arguments, message in (
        ((SFT_LOGP[0], SFT_MASK[0]), "logp must be"),
        ((SFT_LOGP.bfloat16(), SFT_MASK), "float32 or float64"),
        ((SFT_LOGP, SFT_MASK[:1]), "mask must be bool"),
        ((SFT_LOGP, SFT_MASK.long()), "mask must be bool"),
    ):
        with pytest.raises(ValueError, match=message):
            sft_loss(*arguments)
    for weights in (torch.ones(2, 2), -torch.ones(2, 3), torch.full((2, 3), math.nan)):
        with pytest.raises(ValueError, match="weights"):
            sft_loss(SFT_LOGP, SFT_MASK, weights=weights)


# ---- Soft labels -----------------------------------------------------------------------------------------------------

HALVES = 1 / math.log(2)  # the tau at which every grade of distance halves a share: exp(-1 / tau) = 1/2


def test_the_ordinal_target_by_hand():
    """Gold 3: shares 1/4 1/2 1 1/2 over 9/4, that is 1 2 4 2 ninths; gold 4: 1/8 1/4 1/2 1, that is 1 2 4 8 of 15.

    Wrong twins at gold 3: squared distance 1/16 in place of 1/4; tau times the distance, exp(-1.4427) = 0.2363 in place
    of 1/2; no division by the sum; grades from 0, which is the target of gold 4.
    """
    found = ordinal_target(torch.tensor([3, 4, 1]), HALVES)
    close(found, [[1 / 9, 2 / 9, 4 / 9, 2 / 9], [1 / 15, 2 / 15, 4 / 15, 8 / 15], [8 / 15, 4 / 15, 2 / 15, 1 / 15]])
    differs(found[0, 0], (1 / 16) / (1 / 16 + 1 / 2 + 1 + 1 / 2), 1 / 4, 1 / 15)
    differs(found[0, 1], math.exp(-HALVES) / (1 + 2 * math.exp(-HALVES) + math.exp(-2 * HALVES)), 1 / 2, 2 / 15)


@pytest.mark.parametrize("grade", [1, 2, 3, 4])
def test_the_ordinal_target_falls_with_the_distance_from_one_hot_to_uniform(grade):
    for tau in (0.1, 0.5, 1.0, 7.0):
        (target,) = ordinal_target(torch.tensor([grade]), tau)
        by_distance = sorted(range(4), key=lambda place: abs(place + 1 - grade))
        shares = target[by_distance].tolist()
        assert target.sum() == pytest.approx(1) and shares == sorted(shares, reverse=True)
        assert target.argmax() == grade - 1 and shares[0] > shares[1]
    one_hot = torch.nn.functional.one_hot(torch.tensor(grade - 1), 4).double()
    close(ordinal_target(torch.tensor([grade]), 1e-3)[0], one_hot)
    close(ordinal_target(torch.tensor([grade]), 1e6)[0], [0.25] * 4, tolerance=1e-5)


def soft_label_loss(logits, grade, tau):
    """`sft_loss` of the four labels, tokens 0 to 3 of a vocabulary, each weighted with its share of the target."""
    logp, mask = logits.log_softmax(-1)[:4, None], torch.ones(4, 1, dtype=torch.bool)
    return sft_loss(logp, mask, weights=ordinal_target(torch.tensor([grade]), tau).T)


def test_the_soft_label_loss_and_its_gradient_by_hand():
    """Tokens with weights 1 2 3 4 (labels) and 5 5: p = 1 2 3 4 twentieths. Gold 3: q = 1 2 4 2 ninths, and
    (log 20 + 2 log 10 + 4 log(20/3) + 2 log 5) / 9 = 2.04536, counted once. The gradient is p - q on the labels and
    p elsewhere.

    Wrong twins: one-hot log(20/3) = 1.89712; over the four labels alone 2.04536 - log 2 = 1.35221; the KL divergence,
    which leaves out the entropy of q; q of a neighbouring grade.
    """
    logits = tensor(1.0, 2.0, 3.0, 4.0, 5.0, 5.0).log().requires_grad_()
    loss = soft_label_loss(logits, 3, HALVES)
    found = loss.sum.item()
    expected = (math.log(20) + 2 * math.log(10) + 4 * math.log(20 / 3) + 2 * math.log(5)) / 9
    close(found, expected)
    assert loss.count == pytest.approx(1.0)
    q = tensor(1 / 9, 2 / 9, 4 / 9, 2 / 9, 0, 0)
    entropy = -float((q[:4] * q[:4].log()).sum())
    differs(found, math.log(20 / 3), expected - math.log(2), expected - entropy)
    differs(found, *(soft_label_loss(logits.detach(), grade, HALVES).sum for grade in (2, 4)))
    loss.sum.backward()
    close(logits.grad, logits.detach().exp() / 20 - q)


def test_the_soft_label_loss_is_least_at_the_target_and_equals_the_hard_one_without_softness():
    q = ordinal_target(torch.tensor([2]), 0.7)[0]
    at_target = torch.cat([q.log(), tensor(-40.0, -40.0)]).requires_grad_()
    soft_label_loss(at_target, 2, 0.7).sum.backward()
    close(at_target.grad, torch.zeros(6))
    logits = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: soft_label_loss(x, 3, 0.7).sum, (logits,))
    hard = sft_loss(logits.log_softmax(-1)[1:2, None], torch.ones(1, 1, dtype=torch.bool))
    soft = soft_label_loss(logits, 2, 1e-3)
    close(soft.sum, hard.sum)
    assert soft.count == hard.count
    assert soft.metrics["mean_token_prob"] == pytest.approx(hard.metrics["mean_token_prob"])


@pytest.mark.parametrize(
    ("grades", "tau", "message"),
    [([1, 5], 0.5, "each 1 to 4"), ([0], 0.5, "each 1 to 4"), ([[1]], 0.5, "each 1 to 4"), ([1], 0.0, "positive"),
     ([1], -1.0, "positive"), ([1], math.inf, "positive"), ([1], math.nan, "positive")],
)  # fmt: skip
def test_the_ordinal_target_rejects_what_does_not_fit(grades, tau, message):
    with pytest.raises(ValueError, match=message):
        ordinal_target(torch.tensor(grades), tau)


# ---- DPO ------------------------------------------------------------------------------------------------------------

# chosen: pi -1, ref -2, so c = +1; rejected: pi -4, ref -3, so r = -1; beta 0.5: h = 0.5 * (1 + 1) = 1.
PAIR = tensor(-1.0), tensor(-4.0), tensor(-2.0), tensor(-3.0)
LENGTHS = {"chosen_length": torch.tensor([2]), "rejected_length": torch.tensor([4])}
SOFTPLUS_MINUS_1 = math.log1p(math.exp(-1))  # -log s(1) = 0.31326
SOFTPLUS_PLUS_1 = math.log1p(math.exp(1))  # -log s(-1) = 1.31326


def test_dpo_sigmoid_by_hand():
    """h = 1: -log s(1) = 0.31326. Twins: pair swapped -log s(-1) = 1.31326; no reference h = 1.5: 0.20141; ratio
    inverted (ref - pi) is the swapped pair again; beta left out h = 2: 0.12693."""
    loss = dpo_loss(*PAIR, beta=0.5)
    close(loss.sum, SOFTPLUS_MINUS_1)
    assert loss.count == 1.0
    swapped = dpo_loss(PAIR[1], PAIR[0], PAIR[3], PAIR[2], beta=0.5)
    close(swapped.sum, SOFTPLUS_PLUS_1)
    differs(loss.sum, swapped.sum, math.log1p(math.exp(-1.5)), math.log1p(math.exp(-2)))


def test_dpo_starts_at_log_two_where_the_policy_is_the_reference():
    loss = dpo_loss(PAIR[0], PAIR[1], PAIR[0], PAIR[1])
    close(loss.sum, math.log(2))
    assert loss.metrics["rewards/accuracies"] == 0.0  # a tie is not won


def test_conservative_dpo_by_hand():
    """e = 0.1: 0.9 * 0.31326 + 0.1 * 1.31326 = 0.41326 (twin with the shares swapped: 1.21326)."""
    loss = dpo_loss(*PAIR, beta=0.5, label_smoothing=0.1).sum
    close(loss, 0.9 * SOFTPLUS_MINUS_1 + 0.1 * SOFTPLUS_PLUS_1)
    differs(loss, 0.1 * SOFTPLUS_MINUS_1 + 0.9 * SOFTPLUS_PLUS_1)


def test_robust_dpo_by_hand():
    """e = 0.1: (0.9 * 0.31326 - 0.1 * 1.31326) / 0.8 = 0.18826 (twins: plus sign 0.51658, not divided 0.15061)."""
    loss = dpo_loss(*PAIR, beta=0.5, loss_type="robust", label_smoothing=0.1).sum
    expected = (0.9 * SOFTPLUS_MINUS_1 - 0.1 * SOFTPLUS_PLUS_1) / 0.8
    close(loss, expected)
    differs(loss, 0.8 * expected, (0.9 * SOFTPLUS_MINUS_1 + 0.1 * SOFTPLUS_PLUS_1) / 0.8)


def test_robust_dpo_is_unbiased_under_swapped_pairs():
    """With a share e of the pairs swapped, its mean over the noise is the clean loss: (1-e) f(h) + e f(-h) = f(h)."""
    e = 0.3
    clean = dpo_loss(*PAIR, beta=0.5, loss_type="robust", label_smoothing=e).sum
    swapped = dpo_loss(PAIR[1], PAIR[0], PAIR[3], PAIR[2], beta=0.5, loss_type="robust", label_smoothing=e).sum
    close((1 - e) * clean + e * swapped, SOFTPLUS_MINUS_1)


def test_hinge_by_hand():
    """beta 0.25: h = 0.5, loss 0.5; beta 1: h = 2, loss 0 with no gradient; swapped at 0.25: 1.5."""
    close(dpo_loss(*PAIR, beta=0.25, loss_type="hinge").sum, 0.5)
    swapped = dpo_loss(PAIR[1], PAIR[0], PAIR[3], PAIR[2], beta=0.25, loss_type="hinge").sum
    close(swapped, 1.5)
    differs(swapped, 0.5, 1 - 2, 1 + 2)  # twins: the pair the right way round, beta left out, both
    policy = PAIR[0].clone().requires_grad_()
    beyond = dpo_loss(policy, *PAIR[1:], beta=1.0, loss_type="hinge").sum
    beyond.backward()
    assert beyond.item() == 0.0 and policy.grad.item() == 0.0


def test_ipo_by_hand():
    """Lengths 2 and 4: 1/2 - (-1/4) = 0.75, target 1/(2 * 0.5) = 1: 0.0625. Twins: sums (2 - 1)^2 = 1; lengths swapped
    1/4 + 1/2 = 0.75 too, so the test below uses other numbers; target beta/2: 0.25."""
    loss = dpo_loss(*PAIR, beta=0.5, loss_type="ipo", **LENGTHS).sum
    close(loss, 0.0625)
    differs(loss, 1.0, (0.75 - 0.25) ** 2)
    # c = 3 over 3 tokens, r = -1 over 2: 1 + 0.5 = 1.5, target 1: 0.25; lengths swapped: 1.5 + 1/3 - 1 squared.
    lengths = {"chosen_length": torch.tensor([3]), "rejected_length": torch.tensor([2])}
    loss = dpo_loss(tensor(1.0), *PAIR[1:], beta=0.5, loss_type="ipo", **lengths).sum
    close(loss, 0.25)
    differs(loss, (1.5 + 1 / 3 - 1) ** 2)


def test_nll_anchor_adds_the_mean_nll_of_the_chosen_reply():
    """-(-1) / 2 tokens = 0.5, times 0.3; the anchor is of the policy, so the reference does not enter it."""
    loss = dpo_loss(*PAIR, beta=0.5, nll_coef=0.3, chosen_length=torch.tensor([2]))
    close(loss.sum, SOFTPLUS_MINUS_1 + 0.15)
    # Twins: summed instead of per token, of the rejected reply, measured against the reference.
    differs(loss.sum, SOFTPLUS_MINUS_1 + 0.3, SOFTPLUS_MINUS_1 + 0.3 * 4 / 2, SOFTPLUS_MINUS_1 - 0.15)
    assert loss.metrics["nll"] == pytest.approx(0.5)
    assert dpo_loss(*PAIR, nll_coef=0.3, chosen_length=torch.tensor([1])).metrics["nll"] == pytest.approx(1.0)


def test_dpo_metrics_are_means_over_pairs():
    """At beta 0.5 pairs h = 2 (c 2, r -2) and h = -0.5 (c -1, r 0): chosen (1 - 0.5)/2, rejected -1/2, margin 1.5/2."""
    policy = tensor(-1.0, -3.0), tensor(-5.0, -3.0)
    reference = tensor(-3.0, -2.0), tensor(-3.0, -3.0)
    metrics = dpo_loss(*policy, *reference, beta=0.5).metrics
    assert metrics == {
        "rewards/chosen": 0.25,
        "rewards/rejected": -0.5,
        "rewards/margins": 0.75,
        "rewards/accuracies": 0.5,
        "logps/chosen": -2.0,
        "logps/rejected": -4.0,
    }


def test_dpo_gradient_at_the_reference_is_half_beta():
    """d/dh -log s(h) = -(1 - s(h)) = -1/2 at h = 0, times beta: -0.05 for the chosen reply, +0.05 for the rejected."""
    chosen, rejected = (tensor(-2.0).requires_grad_() for _ in range(2))
    dpo_loss(chosen, rejected, chosen.detach(), rejected.detach(), beta=0.1).sum.backward()
    close(chosen.grad, [-0.05])
    close(rejected.grad, [0.05])


def test_dpo_rejects_what_does_not_fit():
    for options, message in (
        ({"loss_type": "kto"}, "loss_type"),
        ({"beta": 0.0}, "beta"),
        ({"beta": math.inf}, "beta"),
        ({"label_smoothing": 0.5}, "label_smoothing"),
        ({"label_smoothing": -0.1}, "label_smoothing"),
        ({"label_smoothing": 0.1, "loss_type": "hinge"}, "sigmoid and robust"),
        ({"loss_type": "ipo"}, "chosen_length"),
        ({"loss_type": "ipo", "chosen_length": torch.tensor([2])}, "rejected_length"),
        ({"loss_type": "ipo", "chosen_length": torch.tensor([0]), "rejected_length": torch.tensor([1])}, "at least 1"),
        ({"nll_coef": 0.1}, "chosen_length"),
        ({"nll_coef": -0.1}, "nll_coef"),
        ({"nll_coef": math.inf}, "nll_coef"),
    ):
        with pytest.raises(ValueError, match=message):
            dpo_loss(*PAIR, **options)
    with pytest.raises(ValueError, match="summed over the reply"):
        dpo_loss(*(value[None] for value in PAIR))
    with pytest.raises(ValueError, match="summed over the reply"):
        dpo_loss(PAIR[0], PAIR[1], PAIR[2], tensor(1.0, 2.0))
    with pytest.raises(ValueError, match="bfloat16"):
        dpo_loss(*(value.bfloat16() for value in PAIR))


# ---- advantages -----------------------------------------------------------------------------------------------------

REWARDS = tensor(1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0)  # two groups of four: one right, three right


def test_group_advantages_by_hand():
    """Group (1 0 0 0): mean 1/4, sample std sqrt((9/16 + 3/16) / 3) = 1/2: 0.75 / 0.5001 and -0.25 / 0.5001.
    Twins: the population std sqrt(3)/4 = 0.433 would give 1.73; the batch mean 1/2 would give 1.0."""
    advantages = group_advantages(REWARDS, 4)
    up, down = 0.75 / 0.5001, 0.25 / 0.5001
    close(advantages, [up, -down, -down, -down, down, down, -up, down])
    differs(advantages[0], 0.75 / (math.sqrt(3) / 4), 0.5 / 0.5001)


def test_batch_and_no_std_by_hand():
    """Batch of four ones and four zeros: sample std sqrt(8 * 1/4 / 7) = 0.53452; without std plain r - mean."""
    plain = tensor(0.75, -0.25, -0.25, -0.25, 0.25, 0.25, -0.75, 0.25)
    close(group_advantages(REWARDS, 4, scale="none"), plain)
    close(group_advantages(REWARDS, 4, scale="batch"), plain / (math.sqrt(2 / 7) + 1e-4))


def test_groups_are_contiguous_rows():
    """Prompt-major: row p * G + g. Strided groups (1 0 1 0), (0 0 1 1), ... would have means 1/2."""
    close(group_advantages(REWARDS, 4, scale="none").view(2, 4).sum(1), [0.0, 0.0])
    assert group_advantages(REWARDS, 2, scale="none")[0].item() == 0.5


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_equal_rewards_give_exact_zeros(scale):
    """Seven times 0.1 in float32 does not have the mean 0.1: rounding over 0 + 1e-4 must not become a gradient."""
    rewards = torch.cat([torch.full((7,), 0.1), torch.tensor([1.0, 0, 0, 0, 0, 0, 0])])
    advantages = group_advantages(rewards, 7, scale=scale)
    assert (advantages[:7] == 0).all() and (advantages[7:] != 0).all()


def test_groups_of_one_and_empty_batches_are_defined():
    for scale in ("group", "batch", "none"):
        assert group_advantages(tensor(1.0, 5.0), 1, scale=scale).tolist() == [0.0, 0.0]
        assert group_advantages(tensor(), 4, scale=scale).shape == (0,)


def test_advantages_are_clamped_on_both_sides_and_take_integers():
    rewards = torch.tensor([1] + [0] * 7 + [0] + [1] * 7)
    advantages = group_advantages(rewards, 8, clamp=2.0)
    assert advantages.is_floating_point()
    assert advantages.max().item() == 2.0 and advantages.min().item() == -2.0
    assert group_advantages(rewards, 8).max().item() > 2.4
    assert group_advantages(rewards, 8, clamp=0.5).abs().max().item() == 0.5


def test_bad_rewards_are_named():
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match="row 2"):
            group_advantages(tensor(0.0, 1.0, value, 1.0), 2)
    for rewards, size, options, message in (
        (REWARDS, 3, {}, r"P \* 3"),
        (REWARDS, 0, {}, "group_size"),
        (REWARDS.view(2, 4), 4, {}, r"P \* 4"),
        (REWARDS, 4, {"scale": "std"}, "scale"),
        (REWARDS, 4, {"clamp": 0.0}, "clamp"),
    ):
        with pytest.raises(ValueError, match=message):
            group_advantages(rewards, size, **options)


# ---- GRPO -----------------------------------------------------------------------------------------------------------


def one_token(ratio, advantage, **options):
    """Loss and gradient d loss / d logp of a single token with this probability ratio."""
    logp = tensor([-1.0]).requires_grad_()
    old = logp.detach() - math.log(ratio)
    loss = grpo_loss(logp, old, tensor(advantage), torch.ones(1, 1, dtype=torch.bool), **options)
    loss.sum.backward()
    return loss, loss.sum.item(), logp.grad.item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "gradient"),
    [
        (1.0, 1.0, -1.0, -1.0),  # on policy: the plain policy gradient
        (1.5, 1.0, -1.2, 0.0),  # already too likely: clipped, no further push
        (0.5, 1.0, -0.5, -0.5),  # right and too rare: not clipped (a clip on the wrong side gives -0.8)
        (2.0, -1.0, 2.0, 2.0),  # wrong and too likely: the full penalty (the maximum would give 1.2)
        (0.5, -1.0, 0.8, 0.0),  # wrong and already rare: clipped
        (1.1, -1.0, 1.1, 1.1),  # inside the range
    ],
)
def test_the_clip_keeps_the_pessimistic_side(ratio, advantage, value, gradient):
    _, loss, slope = one_token(ratio, advantage)
    assert loss == pytest.approx(value) and slope == pytest.approx(gradient)


def test_the_ratio_is_new_over_old():
    """Ratio 1.1, A = 2: -2.2; inverted it would be -2 / 1.1 = -1.818; the log-ratio alone 2 * 0.0953."""
    _, loss, _ = one_token(1.1, 2.0)
    assert loss == pytest.approx(-2.2)
    differs(loss, -2 / 1.1, -2 * math.log(1.1))


def test_the_clip_is_asymmetric():
    """low 0.1, high 0.3: 1.25 is inside above, 0.85 is outside below. clip_high defaults to clip_low."""
    assert one_token(1.25, 1.0, clip_low=0.1, clip_high=0.3)[1] == pytest.approx(-1.25)
    assert one_token(1.5, 1.0, clip_low=0.1, clip_high=0.3)[1] == pytest.approx(-1.3)
    assert one_token(0.85, -1.0, clip_low=0.1, clip_high=0.3)[1] == pytest.approx(0.9)
    assert one_token(1.25, 1.0, clip_low=0.1)[1] == pytest.approx(-1.1)


def test_clip_metrics_count_only_what_the_clip_stopped():
    for ratio, advantage, low, high in (
        (1.5, 1.0, 0, 1),
        (1.5, -1.0, 0, 0),
        (0.5, -1.0, 1, 0),
        (0.5, 1.0, 0, 0),
        (1.0, 1.0, 0, 0),
        (1.1, 1.0, 0, 0),  # inside the range
        (0.9, -1.0, 0, 0),
        (1.1, -1.0, 0, 0),
        (1.5, 0.0, 0, 0),  # nothing to stop
        (0.5, 0.0, 0, 0),
    ):
        metrics = one_token(ratio, advantage)[0].metrics
        assert metrics["clip_ratio/low_mean"] == low and metrics["clip_ratio/high_mean"] == high
        assert metrics["clip_ratio/region_mean"] == low + high
        assert metrics["ratio"] == pytest.approx(ratio)
        assert metrics["approx_kl"] == pytest.approx(ratio - 1 - math.log(ratio))


def test_the_edge_of_the_clip_is_inside_and_its_limits_are_allowed():
    """Ratio 1 exactly with a range of [1, 1], and a range of [0, 2]: no gradient is stopped, none is counted."""
    for advantage in (1.0, -1.0):
        for clip in (0.0, 1.0):
            loss, value, gradient = one_token(1.0, advantage, clip_low=clip, clip_high=clip)
            assert value == -advantage and gradient == -advantage
            assert loss.metrics["clip_ratio/region_mean"] == 0.0


def test_kl_estimators_by_hand():
    """d = log pi - log ref = log 2: k1 0.69315, k2 0.24023, k3 1/2 - 1 + log 2 = 0.19315 (inverted: 0.30685)."""
    logp, ref = tensor([-1.0]), tensor([-1.0 - math.log(2)])
    for estimator, expected in (("k1", math.log(2)), ("k2", math.log(2) ** 2 / 2), ("k3", math.log(2) - 0.5)):
        close(kl_estimate(logp, ref, estimator), [[expected]])
        loss = grpo_loss(
            *(logp, None, tensor(0.0), torch.ones(1, 1, dtype=torch.bool)),
            ref_logp=ref,
            kl_beta=0.1,
            kl_estimator=estimator,
        )
        close(loss.sum, 0.1 * expected)
        assert loss.metrics["kl"] == pytest.approx(expected)
        differs(loss.sum, 0.1 * (1 - math.log(2)))


def test_k1_and_k3_are_unbiased_estimates_of_the_kl():
    """Exactly, by summing over a three-token vocabulary under pi; k3 is never negative."""
    pi, ref = tensor(0.5, 0.3, 0.2), tensor(0.2, 0.2, 0.6)
    exact = (pi * (pi / ref).log()).sum()
    for estimator in ("k1", "k3"):
        close((pi * kl_estimate(pi.log(), ref.log(), estimator)).sum(), exact)
    assert (kl_estimate(pi.log(), ref.log(), "k3") >= 0).all()


def test_kl_is_logged_but_not_added_where_its_coefficient_is_zero():
    logp, old, ref, advantages, mask, _ = ragged()
    without = grpo_loss(logp, old, advantages, mask)
    logged = grpo_loss(logp, old, advantages, mask, ref_logp=ref)
    assert torch.equal(without.sum, logged.sum)
    assert "kl" not in without.metrics and logged.metrics["kl"] > 0


def test_entropy_is_logged_as_a_mean_over_what_counts_and_never_added():
    """Replies of one token (entropy 1) and of three (0, 0, 3): a mean of means (1 + 1) / 2 = 1; over tokens 4 / 4 = 1
    also, with a last entropy of 7 it is 8 / 4 = 2 against (1 + 7/3) / 2. Entropies outside the mask are ignored."""
    logp = tensor([-1.0, 0.0, 0.0], [-1.0, -2.0, -3.0]).requires_grad_()
    mask = torch.tensor([[True, False, False], [True, True, True]])
    entropy = tensor([1.0, math.nan, 99.0], [0.0, 0.0, 7.0]).requires_grad_()
    for normalise, expected in (("sequence", (1 + 7 / 3) / 2), ("token", 2.0)):
        plain = grpo_loss(logp, None, tensor(1.0, -1.0), mask, normalise=normalise)
        loss = grpo_loss(logp, None, tensor(1.0, -1.0), mask, normalise=normalise, entropy=entropy)
        assert loss.metrics["entropy"] == pytest.approx(expected) and "entropy" not in plain.metrics
        close(loss.sum, plain.sum)
        loss.sum.backward()
        assert entropy.grad is None
    with pytest.raises(ValueError, match="entropy"):
        grpo_loss(logp, None, tensor(1.0, -1.0), mask, entropy=entropy[:, :2])


def test_plain_reinforce_is_an_option_of_grpo():
    """Two prompts, two replies each, rewards (1, 0) and (1, 1); log-probs sum to -3, -4 and -1, -5. The surrogate of
    REINFORCE with the mean of the prompt as its baseline is -(1/4) sum (R - mean) log pi(o), per reply and undivided by
    its length: -(1/4) (0.5 * -3 - 0.5 * -4 + 0 + 0), so its gradient is -+0.125 on every token of the first two
    replies. The group that is all right counts in the mean.

    Wrong twins: without that group 0.25; with the group's std 0.125 / 0.7072; per reply length 0.0625 on two tokens.
    """
    mask = torch.tensor([[True, True, False], [True, True, True], [True, False, False], [True, True, False]])
    logp = tensor([-1.0, -2.0, 0.0], [-1.0, -1.0, -2.0], [-1.0, 0.0, 0.0], [-2.0, -3.0, 0.0]).requires_grad_()
    rewards = tensor(1.0, 0.0, 1.0, 1.0)
    advantages = group_advantages(rewards, 2, scale="none")
    loss = grpo_loss(logp, logp.detach(), advantages, mask, normalise="constant", max_length=1)
    (found,) = torch.autograd.grad(loss.sum / loss.count, logp)
    baseline = rewards.view(2, 2).mean(dim=1).repeat_interleave(2)
    surrogate = -((rewards - baseline) * logp.masked_fill(~mask, 0.0).sum(dim=1)).mean()
    (expected,) = torch.autograd.grad(surrogate, logp)
    close(found, expected)
    close(found[0], [-0.125, -0.125, 0.0])
    close(found[1], [0.125, 0.125, 0.125])
    close(found[2:], torch.zeros(2, 3))
    differs(found[1, 0], 0.25, 0.125 / (0.5**0.5 + 1e-4), 0.0625)



def test_normalisations_by_hand():
    """On policy, reply A (1 token, A = 1) and reply B (3 tokens, A = -1): token losses -1 and +1 +1 +1.

    sequence: -1 + 1 = 0 over 2 replies. token: -1 + 3 = 2 over 4 tokens. constant, length 8: 2/8 over 2 replies.
    """
    logp = torch.zeros(2, 3, dtype=torch.float64)
    mask = torch.tensor([[True, False, False], [True, True, True]])
    for normalise, total, count in (("sequence", 0.0, 2.0), ("token", 2.0, 4.0), ("constant", 0.25, 2.0)):
        loss = grpo_loss(logp, None, tensor(1.0, -1.0), mask, normalise=normalise, max_length=8)
        close(loss.sum, total)
        assert loss.count == count


def test_token_weights_by_hand():
    """The same two replies with weight 5 on each first token, losses -1 | +2 +2 +2 (A = 1, -2).

    sequence: -5/5 + (10 + 2 + 2)/7 = 1; token: (-5 + 14) over 5 + 7 = 12; constant 8: 9/8 over 2.
    With an advantage per token (-2, 0, 0) only the weighted label is left: -1 + 10/7.
    """
    logp = torch.zeros(2, 3, dtype=torch.float64)
    mask = torch.tensor([[True, False, False], [True, True, True]])
    weights = tensor([5.0, 9.0, 9.0], [5.0, 1.0, 1.0])
    for normalise, total, count in (("sequence", 1.0, 2.0), ("token", 9.0, 12.0), ("constant", 9 / 8, 2.0)):
        loss = grpo_loss(logp, None, tensor(1.0, -2.0), mask, normalise=normalise, max_length=8, weights=weights)
        close(loss.sum, total)
        assert loss.count == count
    per_token = tensor([1.0, math.nan, math.nan], [-2.0, 0.0, 0.0])
    close(grpo_loss(logp, None, per_token, mask, weights=weights).sum, -1 + 10 / 7)


def test_the_sequence_ratio_is_a_geometric_mean_over_the_reply():
    """Log-ratios (log 4, 0): s = 4^(1/2) = 2, so A = -1 costs 2 per reply; token-wise (4 + 1)/2 = 2.5; summed over
    T = 3 columns instead of 2 tokens it would be 4^(1/3) = 1.587. A = 1 is clipped to 1.2."""
    logp = tensor([0.0, 0.0, -5.0])
    old = tensor([-math.log(4), 0.0, -9.0])
    mask = torch.tensor([[True, True, False]])
    loss = grpo_loss(logp, old, tensor(-1.0), mask, ratio="sequence")
    close(loss.sum, 2.0)
    assert loss.metrics["ratio"] == pytest.approx(2.0)
    close(grpo_loss(logp, old, tensor(-1.0), mask).sum, 2.5)
    clipped = grpo_loss(logp, old, tensor(1.0), mask, ratio="sequence")
    close(clipped.sum, -1.2)
    assert clipped.metrics["clip_ratio/high_mean"] == 1.0
    # Every token of the reply carries the same ratio, so a token sum counts it once per token.
    close(grpo_loss(logp, old, tensor(-1.0), mask, ratio="sequence", normalise="token").sum, 4.0)


def test_a_missing_old_policy_means_the_first_update():
    """old = the policy itself: value -A, gradient -A / |o|, never zero."""
    logp, _, _, advantages, mask, _ = ragged()
    logp.requires_grad_()
    loss = grpo_loss(logp, None, advantages, mask)
    same = grpo_loss(logp, logp.detach(), advantages, mask)
    assert torch.equal(loss.sum, same.sum) and loss.metrics["ratio"] == 1.0 and loss.metrics["approx_kl"] == 0.0
    loss.sum.backward()
    close(logp.grad, -advantages[:, None] * mask / mask.sum(1, keepdim=True).clamp_min(1))


@pytest.mark.parametrize("options", GRPO_VARIANTS)
def test_masked_rows_and_padding_content_change_nothing(options):
    """NaN and infinity under every False, in every tensor: the same sum, count, metrics and gradient."""
    logp, old, ref, advantages, mask, weights = ragged()
    clean = logp.clone().requires_grad_()
    loss = grpo_loss(clean, old, advantages, mask, ref_logp=ref, weights=weights, **options)
    loss.sum.backward()
    rows = mask.any(dim=1)
    dirty = logp.masked_fill(~mask, math.nan).requires_grad_()
    poisoned = grpo_loss(
        dirty,
        old.masked_fill(~mask, math.inf),
        advantages.masked_fill(~rows, math.nan),
        mask,
        ref_logp=ref.masked_fill(~mask, -math.inf),
        weights=weights.masked_fill(~mask, math.nan),
        **options,
    )
    poisoned.sum.backward()
    assert torch.equal(poisoned.sum, loss.sum) and poisoned[1:] == loss[1:]
    assert torch.equal(dirty.grad, clean.grad) and (clean.grad[~mask] == 0).all()
    # The row without a True is not there at all; TRL would count it.
    alone = grpo_loss(
        logp[rows], old[rows], advantages[rows], mask[rows], ref_logp=ref[rows], weights=weights[rows], **options
    )
    close(alone.sum, loss.sum)
    close(alone.count, loss.count)


def test_grpo_rejects_what_does_not_fit():
    logp, old, ref, advantages, mask, weights = ragged()
    for options, message in (
        ({"ratio": "row"}, "ratio"),
        ({"normalise": "mean"}, "normalise"),
        ({"kl_estimator": "k4"}, "kl_estimator"),
        ({"clip_low": -0.1}, "clip_low"),
        ({"clip_low": 1.1}, "clip_low"),
        ({"clip_high": -0.1}, "clip_high"),
        ({"kl_beta": -1.0}, "kl_beta"),
        ({"kl_beta": math.inf}, "kl_beta"),
        ({"kl_beta": 0.1}, "ref_logp is missing"),
        ({"normalise": "constant"}, "max_length"),
        ({"normalise": "constant", "max_length": 0}, "max_length"),
        ({"ref_logp": ref[:, :2]}, "ref_logp"),
        ({"weights": weights[:, :2]}, "weights"),
        ({"weights": -weights}, "weights"),
    ):
        with pytest.raises(ValueError, match=message):
            grpo_loss(logp, old, advantages, mask, **options)
    for arguments, message in (
        ((logp, old[:, :2], advantages, mask), "old_logp"),
        ((logp, old, advantages[:2], mask), "advantages"),
        ((logp, old, advantages[None], mask), "advantages"),
        ((logp, old, advantages, mask.double()), "mask"),
    ):
        with pytest.raises(ValueError, match=message):
            grpo_loss(*arguments)
    with pytest.raises(ValueError, match="kl_estimator"):
        kl_estimate(logp, ref, "k0")


# ---- what holds for all three ---------------------------------------------------------------------------------------


def sft_case(rows):
    logp, _, _, _, mask, weights = ragged()
    leaf = logp.clone().requires_grad_()
    return leaf, lambda part: sft_loss(leaf[part], mask[part], weights=weights[part])


def grpo_case(options):
    logp, old, ref, advantages, mask, weights = ragged()
    leaf = logp.clone().requires_grad_()

    def loss_of(part):
        return grpo_loss(
            *(leaf[part], old[part], advantages[part], mask[part]), ref_logp=ref[part], weights=weights[part], **options
        )

    return leaf, loss_of


def dpo_case(options):
    logp, old, ref, _, _, _ = ragged()
    leaf = logp[:, :2].clone().requires_grad_()
    lengths = torch.tensor([3, 1, 4, 2, 6, 5])

    def loss_of(part):
        return dpo_loss(
            *(leaf[part, 0], leaf[part, 1], ref[part, 0], old[part, 1]),
            chosen_length=lengths[part],
            rejected_length=lengths.flip(0)[part],
            **options,
        )

    return leaf, loss_of


CASES = (
    [(sft_case, None)]
    + [(dpo_case, options) for options in DPO_VARIANTS]
    + [(grpo_case, options) for options in GRPO_VARIANTS]
)


@pytest.mark.parametrize(("case", "options"), CASES)
def test_micro_batches_change_nothing(case, options):
    """1 x 6 equals 3 x 2 and 6 x 1, in the divided gradient and the weighted metrics; a mean of means does not."""
    leaf, loss_of = case(options)
    whole = loss_of(slice(None))
    (gradient,) = torch.autograd.grad(whole.sum, leaf)
    for size in (1, 2):
        parts = [loss_of(slice(start, start + size)) for start in range(0, 6, size)]
        count = sum(part.count for part in parts)
        assert count == pytest.approx(whole.count, abs=EXACT)
        (summed,) = torch.autograd.grad(sum(part.sum for part in parts), leaf, retain_graph=True)
        close(summed / count, gradient / whole.count)
        for name, value in whole.metrics.items():
            assert sum(part.metrics[name] * part.count for part in parts) / count == pytest.approx(value)
        if len({part.count for part in parts}) > 1 and size == 2:
            (mean_of_means,) = torch.autograd.grad(sum(part.sum / part.count for part in parts), leaf)
            assert (mean_of_means / len(parts) - gradient / count).abs().max() > 1e-3


@pytest.mark.parametrize(("case", "options"), CASES)
def test_gradients_equal_finite_differences(case, options):
    leaf, loss_of = case(options)
    values = leaf.detach().clone()
    (gradient,) = torch.autograd.grad(loss_of(slice(None)).sum, leaf)
    step = 1e-6
    for index in range(values.numel()):
        shifted = []
        for sign in (1, -1):
            moved = values.clone()
            moved.view(-1)[index] += sign * step
            leaf.data = moved
            shifted.append(loss_of(slice(None)).sum.item())
        close(gradient.view(-1)[index], (shifted[0] - shifted[1]) / (2 * step), 1e-6)


def test_gradcheck_in_float64():
    logp, old, ref, advantages, mask, weights = ragged()
    leaf = logp.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: sft_loss(x, mask, weights=weights).sum, (leaf,))
    for options in GRPO_VARIANTS:
        assert torch.autograd.gradcheck(
            lambda x, options=options: (
                grpo_loss(x, old, advantages, mask, ref_logp=ref, weights=weights, **options).sum
            ),
            (leaf,),
        )
    chosen, rejected = (logp[:, column].clone().requires_grad_() for column in (0, 1))
    lengths = {"chosen_length": torch.arange(1, 7), "rejected_length": torch.arange(6, 0, -1)}
    for options in DPO_VARIANTS:
        assert torch.autograd.gradcheck(
            lambda x, y, options=options: dpo_loss(x, y, ref[:, 0], ref[:, 1], **lengths, **options).sum,
            (chosen, rejected),
        )


def test_the_gradient_reaches_the_policy_only():
    leaves = [value.clone().requires_grad_() for value in ragged()[:4]]
    logp, old, ref, advantages = leaves
    mask, weights = ragged()[4], ragged()[5].requires_grad_()
    grpo_loss(logp, old, advantages, mask, ref_logp=ref, kl_beta=0.1, weights=weights).sum.backward()
    assert logp.grad.abs().sum() > 0
    assert all(value.grad is None for value in (old, ref, advantages, weights))
    chosen, rejected, ref_chosen, ref_rejected = (
        value[:, 0].detach().requires_grad_() for value in (logp, old, ref, ref)
    )
    dpo_loss(chosen, rejected, ref_chosen, ref_rejected).sum.backward()
    assert chosen.grad.abs().sum() > 0 and rejected.grad.abs().sum() > 0
    assert ref_chosen.grad is None and ref_rejected.grad is None
    weights.grad = None
    sft_loss(logp, mask, weights=weights).sum.backward()
    assert weights.grad is None
    assert not group_advantages(advantages.requires_grad_(), 2).requires_grad


@pytest.mark.parametrize("rows", [0, 3])
def test_nothing_to_count_is_a_zero_with_a_graph(rows):
    """All-False masks and empty batches: sum 0, count 0, zero gradients, no NaN in any metric."""
    logp = torch.full((rows, 4), -1.0, requires_grad=True)
    nothing = torch.zeros(rows, 4, dtype=torch.bool)
    summed = torch.full((rows,), -1.0, requires_grad=True)
    losses: list[LossSum] = [sft_loss(logp, nothing)]
    if rows == 0:  # pairs have no mask
        lengths = {"chosen_length": torch.zeros(0), "rejected_length": torch.zeros(0)}
        losses += [dpo_loss(*(summed,) * 4), dpo_loss(*(summed,) * 4, loss_type="ipo", **lengths)]
    for options in GRPO_VARIANTS:
        losses.append(grpo_loss(logp, logp.detach(), torch.ones(rows), nothing, ref_logp=logp.detach(), **options))
    for loss in losses:
        assert loss.sum.item() == 0.0 and loss.count == 0.0 and set(loss.metrics.values()) == {0.0}
        (gradient,) = torch.autograd.grad(loss.sum, summed if "rewards/chosen" in loss.metrics else logp)
        assert (gradient == 0).all()


def test_only_the_ratio_of_the_weights_matters_within_a_reply():
    """Weights (0.5, 0.25) are weights (2, 1): also where a reply's weights sum to less than one."""
    logp, mask = torch.zeros(1, 2, dtype=torch.float64), torch.ones(1, 2, dtype=torch.bool)
    advantages = tensor([3.0, 0.0])
    for weights in (tensor([2.0, 1.0]), tensor([0.5, 0.25])):
        loss = grpo_loss(logp, None, advantages, mask, weights=weights)
        close(loss.sum, -2.0)
        assert loss.count == 1.0
    assert sft_loss(logp - 1, mask, weights=tensor([0.5, 0.25])).metrics["mean_token_prob"] == pytest.approx(
        math.exp(-1)
    )


def test_weights_of_zero_take_a_row_away():
    logp, old, _, advantages, mask, weights = ragged()
    weights[0] = 0.0
    loss = grpo_loss(logp, old, advantages, mask, weights=weights)
    rest = grpo_loss(logp[1:], old[1:], advantages[1:], mask[1:], weights=weights[1:])
    close(loss.sum, rest.sum)
    assert loss.count == rest.count == 4.0


def test_metrics_are_plain_floats():
    logp, old, ref, advantages, mask, _ = ragged()
    for loss in (sft_loss(logp, mask), grpo_loss(logp, old, advantages, mask, ref_logp=ref), dpo_loss(*PAIR)):
        assert isinstance(loss.count, float) and not isinstance(loss.sum, float)
        assert all(type(value) is float for value in loss.metrics.values())


# ---- does it learn? -------------------------------------------------------------------------------------------------


def bandit_step(logits, generator, learning_rate, best, **options):
    """A GRPO step of a one-token policy: a group of 16 replies, reward 1 for the best arm, two updates per rollout."""
    with torch.no_grad():
        arms = torch.multinomial(logits.softmax(0), 16, replacement=True, generator=generator)
        old = logits.log_softmax(0)[arms][:, None]
    advantages = group_advantages((arms == best).double(), 16)
    for _ in range(2):
        loss = grpo_loss(
            logits.log_softmax(0)[arms][:, None], old, advantages, torch.ones(16, 1, dtype=torch.bool), **options
        )
        (gradient,) = torch.autograd.grad(loss.sum / loss.count, logits)
        logits.data -= learning_rate * gradient


@pytest.mark.parametrize("arms", [2, 4])
@pytest.mark.parametrize(
    "options", [{}, {"ratio": "sequence"}, {"normalise": "token"}, {"normalise": "constant", "max_length": 1}]
)
def test_grpo_finds_the_best_arm(arms, options):
    """From a policy that prefers another arm (P(best) 0.12 or less), within 60 steps of the default settings."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.zeros(arms, dtype=torch.float64).requires_grad_()
    logits.data[0] = 2.0
    start = logits.softmax(0)[arms - 1].item()
    for _ in range(2):
        bandit_step(logits, generator, 0.5, arms - 1, **options)
    assert logits.softmax(0)[arms - 1] > start  # never a zero gradient by default
    for _ in range(58):
        bandit_step(logits, generator, 0.5, arms - 1, **options)
    assert logits.softmax(0)[arms - 1] > 0.95


def test_the_kl_term_holds_the_policy_at_the_optimum_of_the_regularised_objective():
    """max E[r] - beta KL(pi, ref) over two arms has pi(best)/pi(other) = ref ratio * exp(1/beta): with beta = 1 and a
    uniform reference s(1) = 0.73106. Exact gradient, by summing over both arms with their probabilities as weights."""
    logits = torch.zeros(2, dtype=torch.float64).requires_grad_()
    ref = tensor([0.0], [0.0]).sub(math.log(2))
    for _ in range(400):
        logp = logits.log_softmax(0)[:, None]
        loss = grpo_loss(
            *(logp, None, tensor(0.0, 1.0), torch.ones(2, 1, dtype=torch.bool)),
            ref_logp=ref,
            kl_beta=1.0,
            kl_estimator="k2",  # its gradient d * grad logp is the gradient of the KL; k3's is not
            normalise="token",
            weights=logp.exp(),
        )
        (gradient,) = torch.autograd.grad(loss.sum, logits)
        logits.data -= 0.5 * gradient
    close(logits.softmax(0)[1], 1 / (1 + math.exp(-1)), 1e-6)


@pytest.mark.parametrize("options", DPO_VARIANTS)
def test_dpo_finds_the_preferred_arm(options):
    """Two arms, start P(best) = 0.12: the preferred arm passes 0.9 in every variant (ipo: up to its target margin)."""
    logits = tensor(2.0, 0.0).requires_grad_()
    reference = logits.detach().log_softmax(0)
    one = torch.ones(1, dtype=torch.int64)
    for _ in range(600):
        logp = logits.log_softmax(0)
        loss = dpo_loss(
            *(logp[1:], logp[:1], reference[1:], reference[:1]), chosen_length=one, rejected_length=one, **options
        )
        (gradient,) = torch.autograd.grad(loss.sum / loss.count, logits)
        logits.data -= 0.4 * gradient
    assert logits.softmax(0)[1] > 0.9


@pytest.mark.parametrize("options", DPO_VARIANTS)
def test_dpo_finds_the_preferred_one_of_four_labels(options):
    """Label 3 is preferred over each other; the policy starts with P(best) 0.09 and passes 0.8 in every variant."""
    logits = tensor(2.0, 0.0, 0.0, 0.0).requires_grad_()
    reference = logits.detach().log_softmax(0)
    lengths = {"chosen_length": torch.ones(3, dtype=torch.int64), "rejected_length": torch.ones(3, dtype=torch.int64)}
    assert reference[3].exp() < 0.1
    for _ in range(600):
        logp = logits.log_softmax(0)
        loss = dpo_loss(logp[3].expand(3), logp[:3], reference[3].expand(3), reference[:3], **lengths, **options)
        (gradient,) = torch.autograd.grad(loss.sum / loss.count, logits)
        logits.data -= 0.4 * gradient
    assert logits.softmax(0)[3] > 0.8


def test_conservative_dpo_stops_at_its_own_confidence():
    """-(1-e) log s(h) - e log s(-h) is least at s(h) = 1 - e, so h = log((1-e)/e): 2.19722 for e = 0.1."""
    policy = tensor(0.0).requires_grad_()
    for _ in range(300):
        loss = dpo_loss(policy, tensor(0.0), tensor(0.0), tensor(0.0), beta=1.0, label_smoothing=0.1)
        (gradient,) = torch.autograd.grad(loss.sum, policy)
        policy.data -= 2.0 * gradient
    close(policy, [math.log(9)], 1e-6)


# ---- what tests/mutate.py found untested ----------------------------------------------------------------------------


def test_the_default_beta_of_dpo_is_a_tenth():
    """c - r = 2, so the margin is 0.2 and the loss -log s(0.2)."""
    loss = dpo_loss(*PAIR)
    close(loss.sum, math.log1p(math.exp(-0.2)))
    assert loss.metrics["rewards/margins"] == pytest.approx(0.2)


def test_accuracy_counts_the_pairs_that_the_policy_wins():
    """Two pairs with h > 0 and one with h < 0: 2/3, where counting the lost ones would give 1/3."""
    policy = tensor(-1.0, -1.0, -4.0), tensor(-4.0, -4.0, -1.0)
    reference = tensor(-2.0, -2.0, -2.0), tensor(-2.0, -2.0, -2.0)
    assert dpo_loss(*policy, *reference).metrics["rewards/accuracies"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(("ratio", "advantage", "value"), [(1.5, 1.0, -1.2), (2.0, -1.0, 2.0), (0.5, 1.0, -0.5)])
def test_the_sequence_ratio_of_one_token_is_its_ratio(ratio, advantage, value):
    """A geometric mean over one token; divided by 2 instead it would be the square root of the ratio."""
    logp, mask = tensor([-1.0, -9.0]), torch.tensor([[True, False]])
    loss = grpo_loss(logp, logp - math.log(ratio), tensor(advantage), mask, ratio="sequence")
    close(loss.sum, value)
    assert loss.metrics["ratio"] == pytest.approx(ratio)


def test_lengths_get_no_gradient():
    lengths = tensor(2.0).requires_grad_(), tensor(4.0).requires_grad_()
    policy = PAIR[0].clone().requires_grad_()
    dpo_loss(
        policy, *PAIR[1:], loss_type="ipo", nll_coef=0.3, chosen_length=lengths[0], rejected_length=lengths[1]
    ).sum.backward()
    assert policy.grad is not None and lengths[0].grad is None and lengths[1].grad is None


@pytest.mark.parametrize("coefficient", [-0.1, math.inf, math.nan])
def test_a_coefficient_is_refused_for_itself_where_nothing_else_is_missing(coefficient):
    """Lengths and reference are there, so the only error left is the coefficient's own."""
    with pytest.raises(ValueError, match="nll_coef must be"):
        dpo_loss(*PAIR, nll_coef=coefficient, **LENGTHS)
    logp, old, ref, advantages, mask, _ = ragged()
    with pytest.raises(ValueError, match="kl_beta must be"):
        grpo_loss(logp, old, advantages, mask, ref_logp=ref, kl_beta=coefficient)
