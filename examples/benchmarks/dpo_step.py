"""One DPO step of ours beside TRL's: log-probs, loss, AdamW. The same maths, weights and tokens.

    python examples/benchmarks/dpo_step.py --threads 1                      # tiny shape, float32
    python examples/benchmarks/dpo_step.py --cases tiny,small --out dpo_step.json

8 pairs: prompts of 192 tokens, two replies of 64 each, end token included. Sigmoid loss, beta 0.1, no other term; all
pairs in one pass. The reference's log-probs are computed before the first step on both sides and are no part of it,
as in train/dpo.py.

Ours: `PreferencePair.collate` and `accumulate` over `dpo_loss(sequence_logp(completion_logp(...)))`. TRL: all of
`DPOTrainer.train()` with `precompute_ref_log_probs=True`, that is `_compute_loss` (its fused head), backward, clip,
AdamW. For its log TRL also computes the tokens' entropy, accuracy and mean logit, which ours does not log. On a CPU
its head scores all 255 positions of a row, prompt included; only on a GPU does it leave out what nobody reads.

For the check both get reference log-probs with noise: at the first step the policy is the reference, and the loss is
log 2 whatever the log-probs are. The precomputed ones are compared as well. Every step sees the same 8 pairs, so when
all are done the weights must have moved alike: that holds only where AdamW's settings are the same. What steps.py
says about clocks, memory and useful work holds here too.
"""

from __future__ import annotations

import sys
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
from taosr1.learning.batches import Example
from taosr1.learning.distributed_model import DistributedModel
from taosr1.learning.gradient import accumulate
from taosr1.learning.losses import LossSum, dpo_loss
from taosr1.model.decoder import Decoder
from taosr1.model.logprobs import sequence_logp
from taosr1.runtime.cli import parse_config
from taosr1.runtime.signals import run_main
from train.dpo import PairBatch, PreferencePair

PAIRS, BETA = 8, 0.1


def main(argv: list[str] | None = None) -> list[dict]:
    return run_stage(STAGE, parse_config(StepConfig, __doc__, argv))


def make_pairs(
    tokenizer, steps: int, config: StepConfig
) -> list[tuple[list[int], list[int], list[int], tuple[str, str, str]]]:
    """Prompt, chosen and rejected of each pair as ids, and as the three texts; every step takes all of them."""
    count = PAIRS * config.size
    prompts = random_words(tokenizer, count, PROMPT_TOK, seed=0)
    chosen, rejected = (random_words(tokenizer, count, REPLY_TOK - 1, seed=seed) for seed in (1, 2))
    end = [tokenizer.eos_ids[0]]  # TRL adds it to its texts by itself
    return [
        (p, c + end, r + end, (tokenizer.decode(p), tokenizer.decode(c), tokenizer.decode(r)))
        for p, c, r in zip(prompts, chosen, rejected)
    ]


# --- Ours -------------------------------------------------------------------------------------------------------------
def our_step(model: Decoder, data: list[tuple], config: StepConfig):
    pairs, update = with_reference(model, data, config), make_update(model, loss_fn, config)

    def step(number: int) -> float:
        update(PreferencePair.collate(pairs, config.device))
        return 0.0

    return step


@torch.no_grad()
def with_reference(model: Decoder, data: list[tuple], config: StepConfig) -> list[PreferencePair]:
    pairs = [PreferencePair(Example(prompt, chosen), Example(prompt, rejected)) for prompt, chosen, rejected, _ in data]
    logp = reply_logp(model, PreferencePair.collate(pairs, config.device)).view(-1, 2).tolist()
    return [replace(pair, ref_chosen=chosen, ref_rejected=rejected) for pair, (chosen, rejected) in zip(pairs, logp)]


def reply_logp(model: Decoder, batch: PairBatch) -> torch.Tensor:
    return sequence_logp(FAST.completion_logp(model, batch.ids, batch.mask), batch.mask)


def loss_fn(model: Decoder, batch: PairBatch) -> LossSum:
    logp = reply_logp(model, batch)
    return dpo_loss(logp[::2], logp[1::2], batch.ref_logp[::2], batch.ref_logp[1::2], beta=BETA)


# --- TRL's ------------------------------------------------------------------------------------------------------------
def trl_trainer(folder: str, data: list[tuple], steps: int, config: StepConfig):
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    model, tokenizer = trl_model(folder)
    arguments = DPOConfig(
        **trl_settings(steps, config),
        per_device_train_batch_size=len(data),
        max_length=PROMPT_TOK + REPLY_TOK,
        loss_type=["sigmoid"],
        beta=BETA,
        precompute_ref_log_probs=True,
    )
    texts = {name: [row[3][place] for row in data] for place, name in enumerate(("prompt", "chosen", "rejected"))}
    trainer = DPOTrainer(
        model=model, args=arguments, processing_class=tokenizer, train_dataset=Dataset.from_dict(texts)
    )
    read = [(row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) for row in trainer.train_dataset]
    assert read == [row[:3] for row in data], "TRL reads other tokens than ours"
    return trainer


def compare(model: Decoder, trainer, data: list[tuple], config: StepConfig) -> tuple[float, float]:
    """Loss of both on the pairs, with reference log-probs unlike the policy's; gradients are left in `.grad`."""
    batch = PreferencePair.collate(with_reference(model, data, config), config.device)
    inputs = trainer._prepare_inputs(trainer.data_collator(list(trainer.train_dataset)))
    stored = torch.stack([inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]], dim=1).flatten()
    torch.testing.assert_close(batch.ref_logp, stored, rtol=1e-5, atol=0)
    noise = 10 * torch.randn(
        batch.ref_logp.shape, generator=torch.Generator().manual_seed(0)
    )  # of sums over 64 tokens, which beta divides by 10
    batch = replace(batch, ref_logp=batch.ref_logp + noise.to(config.device))
    inputs |= {"ref_chosen_logps": batch.ref_logp[::2], "ref_rejected_logps": batch.ref_logp[1::2]}
    ours = accumulate(DistributedModel(model, FAST), [batch], loss_fn)["loss"]
    theirs = trainer.compute_loss(trainer.model, inputs)
    theirs.backward()
    return ours, theirs.item()


STAGE = Stage(
    script=__file__,
    title=f"DPO step: {PAIRS} pairs, prompts of {PROMPT_TOK} tokens, replies of {REPLY_TOK}; reference precomputed",
    make_data=make_pairs,
    make_step=our_step,
    make_trainer=trl_trainer,
    compare=compare,
    flops=lambda model, config: {"training": 3 * PAIRS * config.size * group_flops(model, 2)},
)


if __name__ == "__main__":
    run_main(main)
