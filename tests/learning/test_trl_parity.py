"""Our losses against TRL 1.16's own code: values and gradients. Where we differ on purpose, a test says how and why.

Skipped without TRL, which only the [dev] extra brings: `pip install -c constraints.txt -e ".[dev]"`.
TRL's methods run as they are, on a stand-in `self` that holds only what they read: no formula of theirs is copied here.
"""

import math
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

trl = pytest.importorskip("trl", reason='parity with TRL needs TRL itself: pip install -c constraints.txt -e ".[dev]"')
if not trl.__version__.startswith("1.16."):
    pytest.skip(
        f"the stand-ins fit TRL 1.16, found {trl.__version__}: pip install trl==1.16.0", allow_module_level=True
    )

from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.grpo_trainer import GRPOTrainer

from taosr1.learning.losses import dpo_loss, group_advantages, grpo_loss
from taosr1.model.logprobs import sequence_logp

TOLERANCE = 1e-9  # float64 on both sides: the 1e-6 of float32 would hide a wrong eps
ROWS, WIDTH = 8, 6
LENGTHS = torch.tensor([6, 3, 5, 6, 2, 1, 4, 3])  # 20 tokens in the first half, 10 in the second
MASK = torch.arange(WIDTH) < LENGTHS[:, None]
MAX_LENGTH = 9
NORMALISE = {"grpo": "sequence", "bnpo": "token", "dapo": "token", "dr_grpo": "constant"}
ACCELERATOR = SimpleNamespace(
    gather=lambda value: value,
    gather_for_metrics=lambda value: value,
    reduce=lambda value, reduction: value,
    num_processes=1,
    process_index=0,
    device="cpu",
)


def close(actual, expected, tolerance=TOLERANCE):
    actual, expected = (torch.as_tensor(value, dtype=torch.float64) for value in (actual, expected))
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def differs(actual, expected):
    assert (torch.as_tensor(actual) - torch.as_tensor(expected)).abs().max() > 1e-3


def draws(seed=0):
    """Log-probs of the policy (a leaf), of the old policy and of the reference, (B, T), and advantages (B,).

    Ratios lie on both sides of every clip range used below.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(3, ROWS, WIDTH, dtype=torch.float64, generator=generator)
    logp = -noise[0].abs() - 0.05
    advantages = torch.randn(ROWS, dtype=torch.float64, generator=generator)
    return logp.clone().requires_grad_(), logp + 0.4 * noise[1], logp + 0.4 * noise[2], advantages


# ---- GRPO -----------------------------------------------------------------------------------------------------------


def trl_grpo(
    logp, old, ref, advantages, mask=MASK, *, loss_type="grpo", level="token", beta=0.0, clip=(0.2, 0.2), **options
):
    """TRL's loss, as it would call backward on it, and its metrics."""
    micro_batches = options.get("micro_batches", 1)
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (logp, torch.ones_like(logp), None),
        model=SimpleNamespace(training=True),
        accelerator=ACCELERATOR,
        args=SimpleNamespace(
            use_bias_correction_kl=options.get("correct_kl", False), delta=None, steps_per_generation=micro_batches
        ),
        loss_type=loss_type,
        importance_sampling_level=level,
        beta=beta,
        epsilon_low=clip[0],
        epsilon_high=clip[1],
        max_completion_length=MAX_LENGTH,
        current_gradient_accumulation_steps=micro_batches,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        aux_loss_enabled=False,
        use_vllm=False,
        _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list)},
    )
    rows, width = logp.shape
    inputs = {
        "prompt_ids": torch.zeros(rows, 1, dtype=torch.int64),
        "prompt_mask": torch.ones(rows, 1, dtype=torch.int64),
        "completion_ids": torch.zeros(rows, width, dtype=torch.int64),
        "completion_mask": mask.long(),
        "advantages": advantages,
        "old_per_token_logps": old,
        "ref_per_token_logps": ref,
        "num_items_in_batch": options.get("step_tok", mask.sum()),
    }
    loss = GRPOTrainer._compute_loss(trainer, None, inputs)
    return loss, {name: values[0] for name, values in trainer._metrics["train"].items()}


def our_grpo(logp, old, ref, advantages, mask=MASK, *, loss_type="grpo", level="token", beta=0.0, clip=(0.2, 0.2)):
    """Ours in the same words; divide `sum` by `count` for the loss of a step."""
    return grpo_loss(
        *(logp, old, advantages, mask),
        ref_logp=ref if beta else None,
        kl_beta=beta,
        clip_low=clip[0],
        clip_high=clip[1],
        ratio=level,
        normalise=NORMALISE[loss_type],
        max_length=MAX_LENGTH,
    )


def gradient(loss, leaf):
    return torch.autograd.grad(loss, leaf)[0]


@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("clip", [(0.2, 0.2), (0.1, 0.28), (3e-4, 4e-4)], ids=["clip", "clip-higher", "gspo-clip"])
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", NORMALISE)
def test_grpo_equals_trl(loss_type, level, clip, beta):
    logp, old, ref, advantages = draws()
    options = {"loss_type": loss_type, "level": level, "beta": beta, "clip": clip}
    theirs, metrics = trl_grpo(logp, old, ref, advantages, **options)
    ours = our_grpo(logp, old, ref, advantages, **options)
    close(ours.sum / ours.count, theirs)
    close(gradient(ours.sum / ours.count, logp), gradient(theirs, logp))
    if NORMALISE[loss_type] == "token" and level == "token":  # TRL's metrics are token means whatever the loss is
        for name in ours.metrics.keys() & metrics.keys():
            assert ours.metrics[name] == pytest.approx(metrics[name], abs=1e-6), name  # TRL counts in float32
        assert {"clip_ratio/low_mean", "clip_ratio/high_mean"} <= ours.metrics.keys() & metrics.keys()
        assert ours.metrics["clip_ratio/low_mean"] > 0 and ours.metrics["clip_ratio/high_mean"] > 0


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", NORMALISE)
def test_grpo_without_an_old_policy_equals_trl(loss_type, level):
    logp, _, ref, advantages = draws()
    options = {"loss_type": loss_type, "level": level, "beta": 0.04}
    theirs, _ = trl_grpo(logp, None, ref, advantages, **options)
    ours = our_grpo(logp, None, ref, advantages, **options)
    close(ours.sum / ours.count, theirs)
    close(gradient(ours.sum / ours.count, logp), gradient(theirs, logp))


def test_advantages_per_token_equal_trl():
    logp, old, ref, _ = draws()
    advantages = draws(seed=1)[1]  # (B, T)
    theirs, _ = trl_grpo(logp, old, ref, advantages)
    ours = our_grpo(logp, old, ref, advantages)
    close(ours.sum / ours.count, theirs)
    close(gradient(ours.sum / ours.count, logp), gradient(theirs, logp))


@pytest.mark.parametrize("loss_type", NORMALISE)
def test_micro_batches_add_up_as_in_trl_but_for_bnpo(loss_type):
    """TRL adds micro-batch losses already divided; ours are divided once, at the end: the same step but for bnpo.

    bnpo divides by the tokens of its own micro-batch, so its step depends on the split: we have no such option.
    """
    logp, old, ref, advantages = draws()
    theirs, total, count = 0.0, 0.0, 0.0
    for half in (slice(0, 4), slice(4, 8)):
        part = logp[half], old[half], ref[half], advantages[half], MASK[half]
        theirs = theirs + trl_grpo(*part, loss_type=loss_type, micro_batches=2, step_tok=MASK.sum())[0]
        ours = our_grpo(*part, loss_type=loss_type)
        total, count = total + ours.sum, count + ours.count
    if loss_type == "bnpo":
        differs(total / count, theirs)
    else:
        close(total / count, theirs)
        close(gradient(total / count, logp), gradient(theirs, logp))


@pytest.mark.parametrize(("loss_type", "share"), [("grpo", 7 / 8), ("dr_grpo", 7 / 8), ("bnpo", 1.0), ("dapo", 1.0)])
def test_a_row_without_a_true_is_not_there_but_trl_divides_by_it(loss_type, share):
    """One of 8 rows has no token: TRL's mean over rows is 7/8 of ours. Ours lets ranks fill up with such rows."""
    logp, old, ref, advantages = draws()
    mask = MASK.clone()
    mask[2] = False
    theirs, _ = trl_grpo(logp, old, ref, advantages, mask, loss_type=loss_type)
    ours = our_grpo(logp, old, ref, advantages, mask, loss_type=loss_type)
    close(share * ours.sum / ours.count, theirs)
    close(share * gradient(ours.sum / ours.count, logp), gradient(theirs, logp))


def test_nan_under_the_mask_changes_nothing_but_ruins_trl():
    """TRL multiplies by the mask, and 0 * nan is nan; ours never reads what does not count."""
    logp, old, ref, advantages = draws()
    dirty = old.masked_fill(~MASK, math.nan)
    assert trl_grpo(logp, dirty, ref, advantages)[0].isnan()
    close(our_grpo(logp, dirty, ref, advantages).sum, our_grpo(logp, old, ref, advantages).sum)


def test_the_kl_has_no_importance_ratio_unlike_trl_by_default():
    """Ours is GRPO's published KL: TRL's `use_bias_correction_kl=False`, used in every test above. TRL 1.16 defaults to
    True, which multiplies k3 by the ratio: then its gradient is that of the KL (DeepSeek-V3.2), ours only k3's own."""
    logp, old, ref, advantages = draws()
    ours = our_grpo(logp, old, ref, advantages, beta=0.5)
    differs(ours.sum / ours.count, trl_grpo(logp, old, ref, advantages, beta=0.5, correct_kl=True)[0])
    # On the first update the ratio is 1, so the values agree; its gradient is not 0, so the gradients differ.
    ours = our_grpo(logp, None, ref, advantages, beta=0.5)
    corrected, _ = trl_grpo(logp, None, ref, advantages, beta=0.5, correct_kl=True)
    close(ours.sum / ours.count, corrected)
    differs(gradient(ours.sum / ours.count, logp), gradient(corrected, logp))


# ---- advantages -----------------------------------------------------------------------------------------------------


def trl_advantages(rewards, group_size, scale):
    """The advantages of TRL's rollout method, with generation and rewards canned."""
    rows = rewards.numel()
    trainer = SimpleNamespace(
        _generate=lambda prompts: ([[1]] * rows, [[1]] * rows, None, [""] * rows, None, {}, None, None),
        _calculate_rewards=lambda *_: rewards[:, None],
        _tokenizer=SimpleNamespace(pad_token_id=0),
        model=SimpleNamespace(training=True, is_gradient_checkpointing=False),
        accelerator=ACCELERATOR,
        args=SimpleNamespace(
            per_device_train_batch_size=rows,
            gradient_checkpointing_kwargs=None,
            steps_per_generation=1,
            gradient_accumulation_steps=1,
        ),
        num_generations=group_size,
        num_iterations=1,
        scale_rewards=scale,
        multi_objective_aggregation="sum_then_normalize",
        reward_weights=torch.ones(1, dtype=rewards.dtype),
        reward_func_names=["right"],
        beta=0.0,
        use_vllm=False,
        tools=None,
        environments=None,
        environment_factories=None,
        pad_to_multiple_of=None,
        mask_truncated_completions=False,
        _pending_extra_logs={},
        _pending_metrics={},
        _metrics={"train": defaultdict(list)},
        _logs={"prompt": [], "completion": [], "advantages": [], "rewards": defaultdict(list), "extra": {}},
    )
    return GRPOTrainer._generate_and_score_completions(trainer, [{"prompt": ""}] * rows)["advantages"]


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("group_size", [2, 4, 8])
@pytest.mark.parametrize("kind", ["right or wrong", "real"])
def test_advantages_equal_trl(kind, group_size, scale):
    generator = torch.Generator().manual_seed(3)
    rewards = torch.randn(16, dtype=torch.float64, generator=generator)
    rewards = (rewards > 0).double() if kind == "right or wrong" else rewards
    # TRL rounds the n / (n - 1) of its std to float32.
    close(group_advantages(rewards, group_size, scale=scale), trl_advantages(rewards, group_size, scale), 1e-6)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_equal_rewards_are_exact_zeros_but_rounding_noise_in_trl(scale):
    """Seven rewards of 0.1 in float32 do not have the mean 0.1. TRL keeps that rounding error, over 1e-4 with `group`;
    we call such a group decided and drop it, which only an exact zero allows."""
    rewards = torch.cat([torch.full((7,), 0.1), torch.tensor([1.0, 0, 0, 0, 0, 0, 0])])
    ours, theirs = group_advantages(rewards, 7, scale=scale), trl_advantages(rewards, 7, scale)
    assert (ours[:7] == 0).all() and (theirs[:7] != 0).all()
    close(ours, theirs, 1e-3)  # noise it is, no other formula


# ---- DPO ------------------------------------------------------------------------------------------------------------


class Canned(torch.nn.Module):
    """A model that has already answered: (2 * pairs, T) log-probs, the chosen replies first, as TRL batches them."""

    def __init__(self, logp):
        super().__init__()
        self.logp = logp

    def forward(self, **_):
        ones = torch.ones_like(self.logp)
        return SimpleNamespace(log_probs=self.logp, entropy=ones, mean_logits=ones, is_top1=ones.bool(), loss=None)


def trl_dpo(logp, ref, mask=MASK, *, loss_types=("sigmoid",), loss_weights=(1.0,), beta=0.1, label_smoothing=0.0):
    """TRL's loss and metrics; the reference log-probs are stored, as ours always are."""
    model = Canned(logp * mask)
    trainer = SimpleNamespace(
        model=model,
        accelerator=ACCELERATOR,
        args=SimpleNamespace(),
        loss_types=loss_types,
        loss_weights=loss_weights,
        beta=beta,
        label_smoothing=label_smoothing,
        f_divergence_type="reverse_kl",
        precompute_ref_logps=True,
        ld_alpha=None,
        use_weighting=False,
        aux_loss_enabled=False,
        _tp_size=1,
        _total_train_tokens=0,
        _metrics={"train": defaultdict(list)},
    )
    with_prompt = torch.nn.functional.pad(mask, (1, 0))  # one prompt token that does not count
    ref_chosen, ref_rejected = sequence_logp(ref, mask).chunk(2)
    inputs = {
        "input_ids": torch.zeros(with_prompt.shape, dtype=torch.int64),
        "attention_mask": torch.ones(with_prompt.shape, dtype=torch.int64),
        "completion_mask": with_prompt.long(),
        "ref_chosen_logps": ref_chosen,
        "ref_rejected_logps": ref_rejected,
    }
    loss = DPOTrainer._compute_loss(trainer, model, inputs, False)
    return loss, {name: values[0] for name, values in trainer._metrics["train"].items()}


def our_dpo(logp, ref, mask=MASK, **options):
    policy, reference = sequence_logp(logp, mask).chunk(2), sequence_logp(ref, mask).chunk(2)
    lengths = mask.sum(dim=1).chunk(2)
    return dpo_loss(*policy, *reference, chosen_length=lengths[0], rejected_length=lengths[1], **options)


@pytest.mark.parametrize("beta", [0.1, 0.5])
@pytest.mark.parametrize(
    ("loss_type", "label_smoothing"),
    [("sigmoid", 0.0), ("hinge", 0.0), ("ipo", 0.0), ("robust", 0.0), ("robust", 0.2)],
)
def test_dpo_equals_trl(loss_type, label_smoothing, beta):
    logp, _, ref, _ = draws()
    theirs, metrics = trl_dpo(logp, ref, loss_types=(loss_type,), beta=beta, label_smoothing=label_smoothing)
    ours = our_dpo(logp, ref, loss_type=loss_type, beta=beta, label_smoothing=label_smoothing)
    close(ours.sum / ours.count, theirs)
    close(gradient(ours.sum / ours.count, logp), gradient(theirs, logp))
    for name, value in ours.metrics.items():
        assert value == pytest.approx(metrics[name], abs=1e-6), name


@pytest.mark.parametrize("label_smoothing", [0.1, 0.3])
def test_conservative_dpo_equals_trl_aot_on_one_pair(label_smoothing):
    """TRL 1.16's sigmoid ignores label_smoothing. Its `aot` is conservative DPO on margins sorted within the batch,
    and one pair needs no sorting: pair by pair, then the mean."""
    logp, _, ref, _ = draws()
    pairs = [[row, row + ROWS // 2] for row in range(ROWS // 2)]
    options = {"beta": 0.5, "label_smoothing": label_smoothing}
    theirs = [trl_dpo(logp[pair], ref[pair], MASK[pair], loss_types=("aot",), **options)[0] for pair in pairs]
    theirs = torch.stack(theirs).mean()
    ours = our_dpo(logp, ref, **options)
    close(ours.sum / ours.count, theirs)
    close(gradient(ours.sum / ours.count, logp), gradient(theirs, logp))
    differs(ours.sum / ours.count, trl_dpo(logp, ref, **options)[0])


def test_the_nll_anchor_is_a_mean_over_pairs_where_trl_averages_tokens():
    """TRL's `sft` term is a mean over all chosen tokens of the micro-batch, so it depends on the split; ours does not.

    On a single pair both are -log pi(y+) / |y+|.
    """
    logp, _, ref, _ = draws()
    combined = {"loss_types": ("sigmoid", "sft"), "loss_weights": (1.0, 0.3)}
    pair = [1, 5]
    theirs, _ = trl_dpo(logp[pair], ref[pair], MASK[pair], **combined)
    ours = our_dpo(logp[pair], ref[pair], MASK[pair], nll_coef=0.3)
    close(ours.sum, theirs)
    close(gradient(ours.sum, logp), gradient(theirs, logp))
    ours = our_dpo(logp, ref, nll_coef=0.3)
    differs(ours.sum / ours.count, trl_dpo(logp, ref, **combined)[0])
