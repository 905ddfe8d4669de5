"""One GRPO step of ours beside TRL's: sample, reward, advantages, log-probs, loss, AdamW. The same maths, weights and
prompts.

    python examples/benchmarks/grpo_step.py --threads 1                     # tiny shape, float32
    python examples/benchmarks/grpo_step.py --cases tiny,small --out grpo_step.json

4 prompts of 192 tokens x 8 samples of 64. No token ends a reply, so both sides do equal work; the model that samples
is the one in training. The reward is a pure function of the sampled ids. Loss: clip 0.2, every reply weighs the same,
no KL term; one update for each batch of rollouts; all 32 replies in one pass.

Ours: `DistributedModel.sampling_model`, `generate`, `group_advantages` and `accumulate` over
`grpo_loss(completion_logp(...))`, as train/grpo.py has them; the sampler's own log-probs are the old policy's. TRL:
all of `GRPOTrainer.train()`, that is `_generate_and_score_completions` (`transformers.generate` over 32 rows,
decoding to text, rewards, advantages), `_compute_loss` (its fused head; the old policy's log-probs are the policy's),
backward, clip, AdamW. Both compute the entropy for their logs. On a CPU TRL's head scores all 255 positions of a row,
prompt included; only on a GPU does it leave out what nobody reads. "sampling" is our `generate` and TRL's
`_generate_single_turn`; "training" is all the rest.

For the check TRL's `compute_loss` is given our rollouts, since the two draw other random numbers. At the first update
of a rollout the ratio is 1 and the loss 0 whatever the log-probs are, so both get old log-probs with noise of 0.2,
and the clip acts. What steps.py says about clocks, memory and useful work holds here too.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a fresh checkout runs without being installed

import torch

from examples.benchmarks.steps import (
    PROMPT_TOK,
    REPLY_TOK,
    Stage,
    StepConfig,
    group_flops,
    make_update,
    random_words,
    run_stage,
    trl_model,
    trl_settings,
)
from taosr1.fast import FAST
from taosr1.learning.batches import Example, collate
from taosr1.learning.distributed_model import DistributedModel
from taosr1.learning.gradient import accumulate
from taosr1.learning.losses import LossSum, group_advantages, grpo_loss
from taosr1.learning.rollout_group import RolloutBatch
from taosr1.model.decoder import Decoder
from taosr1.runtime.cli import parse_config
from taosr1.runtime.signals import run_main
from taosr1.sampling.rollouts import Rollouts

PROMPTS, SAMPLES, CLIP = 4, 8, 0.2


def main(argv: list[str] | None = None) -> list[dict]:
    return run_stage(STAGE, parse_config(StepConfig, __doc__, argv))


def make_prompts(tokenizer, steps: int, config: StepConfig) -> list[tuple[list[int], str]]:
    """The prompts of all steps, PROMPTS times --size for each, as ids and as text."""
    count = PROMPTS * config.size * steps
    return [(ids, tokenizer.decode(ids)) for ids in random_words(tokenizer, count, PROMPT_TOK, seed=0)]


def reward(ids: list[int]) -> float:
    return sum(ids) % 97 / 97


def no_token(config) -> int:
    """An end-of-reply id that no token has: every reply runs to its full length."""
    return config.vocab_size


# --- Ours -------------------------------------------------------------------------------------------------------------
def our_step(model: Decoder, data: list[tuple[list[int], str]], config: StepConfig):
    update, count = make_update(model, loss_fn, config), PROMPTS * config.size

    def step(number: int) -> float:
        prompts = [ids for ids, _ in data[number * count : (number + 1) * count]]
        started = time.perf_counter()
        rollouts = sample(model, prompts, number, config)
        sampling = time.perf_counter() - started
        update(rollout_batch(prompts, rollouts, config.device))
        return sampling

    return step


def sample(model: Decoder, prompts: list[list[int]], seed: int, config: StepConfig) -> Rollouts:
    generator, stop_ids = torch.Generator().manual_seed(seed), [no_token(model.config)]
    sampler = DistributedModel(model, FAST, dtype=config.compute_dtype).sampling_model()
    settings = {"samples": SAMPLES, "max_new_tokens": REPLY_TOK, "stop_ids": stop_ids}
    return FAST.generate(sampler, prompts, generator=generator, **settings)


def rollout_batch(prompts: list[list[int]], rollouts: Rollouts, device: str) -> RolloutBatch:
    replies = rollouts.replies()
    batch = collate([Example(prompts[row // SAMPLES], reply) for row, reply in enumerate(replies)], device)
    old_logp = torch.zeros(batch.ids.shape, device=device)
    old_logp[:, PROMPT_TOK:] = rollouts.logp.to(device)
    rewards = torch.tensor([reward(reply) for reply in replies], dtype=torch.float64)
    advantages = group_advantages(rewards, SAMPLES).float().to(device)
    return RolloutBatch(batch.ids, batch.mask, advantages, old_logp)


def loss_fn(model: Decoder, batch: RolloutBatch) -> LossSum:
    logp, entropy = FAST.completion_logp(model, batch.ids, batch.mask, with_entropy=True)
    return grpo_loss(logp, batch.old_logp, batch.advantages, batch.mask, clip_low=CLIP, entropy=entropy)


# --- TRL's ------------------------------------------------------------------------------------------------------------
def trl_trainer(folder: str, data: list[tuple[list[int], str]], steps: int, config: StepConfig):
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    model, tokenizer = trl_model(folder)
    never = no_token(model.config)
    arguments = GRPOConfig(
        **trl_settings(steps, config),
        per_device_train_batch_size=PROMPTS * config.size * SAMPLES,
        num_generations=SAMPLES,
        max_completion_length=REPLY_TOK,
        loss_type="grpo",
        beta=0.0,
        epsilon=CLIP,
        scale_rewards="group",
        num_iterations=1,
        shuffle_dataset=False,
        generation_kwargs={"eos_token_id": never},
    )
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=trl_reward,
        args=arguments,
        processing_class=tokenizer,
        train_dataset=Dataset.from_dict({"prompt": [text for _, text in data]}),
    )
    trainer.eos_token_ids = [never]
    assert trainer._tokenize_prompts([text for _, text in data])[0] == [ids for ids, _ in data], (
        "TRL reads other tokens than ours"
    )
    return trainer


def trl_reward(completion_ids: list[list[int]], **_) -> list[float]:
    return [reward(ids) for ids in completion_ids]


def compare(model: Decoder, trainer, data: list[tuple[list[int], str]], config: StepConfig) -> tuple[float, float]:
    """Loss of both on our rollouts, with old log-probs that make the clip act; the gradients are left in `.grad`."""
    prompts = [ids for ids, _ in data[:PROMPTS]]
    batch = rollout_batch(prompts, sample(model, prompts, 0, config), config.device)
    noise = 0.2 * torch.randn(batch.ids.shape, generator=torch.Generator().manual_seed(0)).to(config.device)
    batch = replace(batch, old_logp=(batch.old_logp + noise) * batch.mask)
    ours = accumulate(DistributedModel(model, FAST), [batch], loss_fn)
    assert ours["clip_ratio/region_mean"] > 0, "the clip did not act"
    ids = {"prompt": batch.ids[:, :PROMPT_TOK], "completion": batch.ids[:, PROMPT_TOK:]}
    inputs = {f"{name}_ids": values for name, values in ids.items()} | {
        f"{name}_mask": torch.ones_like(values) for name, values in ids.items()
    }
    trainer.model.eval()  # no dropout either way; in training the loss wants attributes that only `train()` sets
    theirs = trainer.compute_loss(
        trainer.model, inputs | {"advantages": batch.advantages, "old_per_token_logps": batch.old_logp[:, PROMPT_TOK:]}
    )
    theirs.backward()
    return ours["loss"], theirs.item()


STAGE = Stage(
    script=__file__,
    title=f"GRPO step: {PROMPTS} prompts of {PROMPT_TOK} tokens x {SAMPLES} samples of {REPLY_TOK}",
    make_data=make_prompts,
    make_step=our_step,
    make_trainer=trl_trainer,
    compare=compare,
    flops=lambda model, config: {
        "sampling": PROMPTS * config.size * group_flops(model, SAMPLES),
        "training": 3 * PROMPTS * config.size * group_flops(model, SAMPLES),
    },
    sampling_method="_generate_single_turn",
)


if __name__ == "__main__":
    run_main(main)
