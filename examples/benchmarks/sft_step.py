"""One SFT step of ours beside TRL's: log-probs, loss, AdamW. The same maths, weights and tokens.

    python examples/benchmarks/sft_step.py --threads 1                      # tiny shape, float32
    python examples/benchmarks/sft_step.py --model FOLDER --device cuda --dtype bfloat16 --size 8

16 examples: prompts of 192 tokens, replies of 64, end token included, the loss over the replies alone; all in one pass.
The prompts share nothing: what sharing brings is measured by training_step.py, on prompts with instructions.

Ours: `collate` and `accumulate` over `sft_loss(completion_logp(...))`. TRL: all of `SFTTrainer.train()` with prompt and
completion, that is `compute_loss`, backward, clip, AdamW; for its log it also computes entropy and accuracy. Every step
sees the same examples, so when all are done the weights must have moved alike. What steps.py says about clocks, memory
and useful work holds here too.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a fresh checkout runs without being installed

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
from taosr1.learning.batches import Batch, Example, collate
from taosr1.learning.distributed_model import DistributedModel
from taosr1.learning.gradient import accumulate
from taosr1.learning.losses import LossSum, sft_loss
from taosr1.model.decoder import Decoder
from taosr1.runtime.cli import parse_config
from taosr1.runtime.signals import run_main

EXAMPLES = 16


def main(argv: list[str] | None = None) -> list[dict]:
    return run_stage(STAGE, parse_config(StepConfig, __doc__, argv))


def make_examples(tokenizer, steps: int, config: StepConfig) -> list[Example]:
    """Every step takes all of them."""
    prompts = random_words(tokenizer, EXAMPLES * config.size, PROMPT_TOK, seed=0)
    replies = random_words(tokenizer, EXAMPLES * config.size, REPLY_TOK - 1, seed=1)
    return [Example(prompt, reply + [tokenizer.eos_ids[0]]) for prompt, reply in zip(prompts, replies)]


def our_step(model: Decoder, data: list[Example], config: StepConfig):
    update = make_update(model, loss_fn, config)

    def step(number: int) -> float:
        update(collate(data, config.device))
        return 0.0

    return step


def loss_fn(model: Decoder, batch: Batch) -> LossSum:
    return sft_loss(FAST.completion_logp(model, batch.ids, batch.mask), batch.mask)


def trl_trainer(folder: str, data: list[Example], steps: int, config: StepConfig):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = trl_model(folder)
    arguments = SFTConfig(
        **trl_settings(steps, config),
        per_device_train_batch_size=len(data),
        max_length=PROMPT_TOK + REPLY_TOK,
        completion_only_loss=True,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    rows = [
        {
            "input_ids": example.prompt + example.reply,
            "labels": [-100] * len(example.prompt) + example.reply,
        }
        for example in data
    ]
    return SFTTrainer(model=model, args=arguments, processing_class=tokenizer, train_dataset=Dataset.from_list(rows))


def compare(model: Decoder, trainer, data: list[Example], config: StepConfig) -> tuple[float, float]:
    """Loss of both on the examples; gradients are left in `.grad`."""
    inputs = trainer._prepare_inputs(trainer.data_collator(list(trainer.train_dataset)))
    ours = accumulate(DistributedModel(model, FAST), [collate(data, config.device)], loss_fn)["loss"]
    theirs = trainer.compute_loss(trainer.model, inputs)
    theirs.backward()
    return ours, theirs.item()


STAGE = Stage(
    script=__file__,
    title=f"SFT step: {EXAMPLES} examples, prompts of {PROMPT_TOK} tokens, replies of {REPLY_TOK}",
    make_data=make_examples,
    make_step=our_step,
    make_trainer=trl_trainer,
    compare=compare,
    flops=lambda model, config: {"training": 3 * EXAMPLES * config.size * group_flops(model, 1)},
)


if __name__ == "__main__":
    run_main(main)
