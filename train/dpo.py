"""Stage 2b, DPO: prefer the right reply over the wrong one, measured against the model the stage starts from.

    python train/dpo.py                                              # the post-CoT SFT model on its own mined pairs
    python train/dpo.py --model runs/mine --data runs/mine-pairs.jsonl --beta 0.1 --lr 5e-7 --out runs/mine-dpo

The pairs come from train/mine_pairs.py, or are TRL's text rows (`prompt`, `chosen`, `rejected`: see
`taosr1/learning/preference_rows.py`). Log-probs of the reference (the starting weights) are computed once and stored
with the pairs; no reference model is kept.

Deviations from the paper:
1. `--nll-coef` adds a little cross-entropy on the chosen reply: DPO alone lowers the probability of both.
2. `--label-weight` counts the label token of a label-first reply that many times: in the reply's log-prob, and so in
   all that is logged of it, and in its length, which --nll-coef and --loss-type ipo divide by.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a fresh checkout runs without being installed

import torch
from torch import Tensor

from taosr1.data.flags import AS_FOUND, ReadFlags
from taosr1.data.splits import AUTO, load_dev, resolved_of_pairs
from taosr1.data.summary import say_data
from taosr1.engine import PLAIN_HELP
from taosr1.evaluation.doctor import say_findings
from taosr1.evaluation.predict import dev_scores
from taosr1.judge_model import BUNDLED_STUDENT, DTYPES, JudgeModel
from taosr1.learning.batches import (
    Batch,
    Example,
    Item,
    collate,
    label_token_weights,
    micro_batches,
    padded_tok,
)
from taosr1.learning.closing import say_finished
from taosr1.learning.distributed_model import DistributedModel, init_distributed
from taosr1.learning.draw_order import shuffled_order
from taosr1.learning.loop import Stage, StepItems, train
from taosr1.learning.loss_checks import LOSS_TYPES
from taosr1.learning.losses import LossSum, dpo_loss
from taosr1.learning.optimizers import Schedule, make_optimizers
from taosr1.learning.preference_rows import read_preferences
from taosr1.learning.reference import reference_logp
from taosr1.learning.trainee import MemoryFlags, default_or_bundled, identity, load_trainee, memory_problems
from taosr1.model.decoder import Decoder
from taosr1.model.logprobs import sequence_logp
from taosr1.runtime.cli import at_least, check, option, parse_config
from taosr1.runtime.distributed import gather
from taosr1.runtime.progress import Bar
from taosr1.runtime.run_folder import Run, RunFlags, run_problems
from taosr1.runtime.signals import run_main
from taosr1.task.judgement import Judgement
from taosr1.task.prompt_flags import PromptFlags, prompt_problems


@dataclass(frozen=True)
class Config(ReadFlags, PromptFlags, MemoryFlags, RunFlags):
    model: str = option(
        "runs/post-sft", "folder to start from, also the reference; the default missing: the bundled student"
    )
    data: str = option("runs/post-pairs.jsonl", "pairs of train/mine_pairs.py, or TRL's: prompt, chosen, rejected")
    dev: str = option(
        AUTO, "graded rows that pick the best checkpoint; auto: synthetic:dev for pairs of the embedded shop, else none"
    )
    out: str = option("runs/post-dpo", "run folder")
    beta: float = option(0.1, "how fast the preference probability saturates")
    loss_type: str = option("sigmoid", "preference loss", LOSS_TYPES)
    label_smoothing: float = option(0.0, "share of pairs believed to be swapped (sigmoid: conservative DPO)")
    nll_coef: float = option(0.2, "weight of the cross-entropy of the chosen reply (0: off)")
    label_weight: float = option(1.0, "weight of the label token where it comes first")
    steps: int = option(48, "optimizer steps")
    batch_size: int = option(32, "pairs per optimizer step")
    micro_batch_tok: int = option(
        4096, "tokens per forward pass, what prompts share counted once (memory; changes no result)"
    )
    lr: float = option(2e-4, "peak learning rate; use about 5e-7 for a pre-trained model")
    eval_every: int = option(12, "steps between dev evaluations, each with a checkpoint")
    dev_rows: int = option(1000, "dev rows used (the first ones; 0: all)")
    max_new_tokens: int = option(96, "longest reply when a pre-CoT dev row is judged")
    dev_split: str = option("", "keep only the dev rows whose 'split' column says this (ESCI: test)")
    device: str = option("cpu", "torch device")
    dtype: str = option("float32", "compute type; what is trained and its optimizer stay float32", tuple(DTYPES))
    plain: bool = option(False, PLAIN_HELP)
    seed: int = option(0, "seed of the order of pairs and the embedded shop")

    def __post_init__(self) -> None:
        check([
            *at_least(self, steps=1, batch_size=1, micro_batch_tok=1, nll_coef=0, label_weight=0, eval_every=0,
                      dev_rows=0, max_new_tokens=1),
            *run_problems(self),
            *memory_problems(self),
            *prompt_problems(self),
            (not self.lr > 0, f"--lr is {self.lr}, expected more than 0"),
            (not self.beta > 0, f"--beta is {self.beta}, expected more than 0"),
            (not 0 <= self.label_smoothing < 0.5,
             f"--label-smoothing is {self.label_smoothing}, expected 0 or more and below 0.5"),
            (bool(self.label_smoothing) and self.loss_type in ("hinge", "ipo"),
             f"--loss-type {self.loss_type} takes no --label-smoothing"),
        ])  # fmt: skip


# ---- Pairs and what the reference policy gives them ------------------------------------------------------------------


@dataclass(frozen=True)
class PreferencePair(Item):
    """Two replies to one prompt, and the reference's log-probs: of the replies, and of their first tokens."""

    chosen: Example
    rejected: Example
    ref_chosen: float = 0.0
    ref_rejected: float = 0.0
    ref_chosen_label: float = 0.0
    ref_rejected_label: float = 0.0

    @property
    def length_tok(self) -> int:
        return len(self.chosen.prompt) + len(self.chosen.reply) + len(self.rejected.reply)

    @property
    def beginning(self) -> list[int]:
        return self.chosen.prompt

    @staticmethod
    def collate(items: Sequence[PreferencePair], device: torch.device | str = "cpu") -> PairBatch:
        batch = collate([example for pair in items for example in (pair.chosen, pair.rejected)], device)
        replies = torch.tensor([logp for pair in items for logp in (pair.ref_chosen, pair.ref_rejected)])
        labels = torch.tensor([logp for pair in items for logp in (pair.ref_chosen_label, pair.ref_rejected_label)])
        return PairBatch(batch.ids, batch.mask, replies.to(device), labels.to(device))


@dataclass(frozen=True)
class PairBatch(Batch):
    """B pairs as 2B rows, chosen and rejected alternating, so that neighbours share their prompt: ids, mask (2B, T);
    ref_logp (2B,) of the reply, ref_label (2B,) of its first token."""

    ref_logp: Tensor
    ref_label: Tensor
    rows_together: ClassVar[int] = 2  # a batch is halved between pairs


class ReplyLogp(NamedTuple):
    """Of the rows of a PairBatch, (2B,) each: log-prob of the reply, of its first token, and its length."""

    reply: Tensor
    label: Tensor
    length: Tensor


def read_pairs(spec: str, judge: JudgeModel, read: ReadFlags = AS_FOUND) -> list[PreferencePair]:
    """The pairs of `--data`, mined or as text. Raises: as `read_preferences`."""
    return [PreferencePair(chosen, rejected) for chosen, rejected in read_preferences(spec, judge, read)]


def with_reference(
    reference: DistributedModel,
    pairs: Sequence[PreferencePair],
    max_tokens: int,
    of_replies: Callable[[Tensor, PairBatch], ReplyLogp],
) -> list[PreferencePair]:
    """The pairs with the reference's log-probs: each rank measures micro-batches of them, then every rank gets all."""
    shared_tok = reference.shared_tok(pairs)
    parts = micro_batches(pairs, max_tokens, shared_tok=shared_tok)
    measured = {}
    mine = reference.share(range(len(parts)), lambda number: padded_tok(parts[number], shared_tok))
    silent = not reference.ranks.is_rank_zero
    for number in Bar(mine, desc="dpo reference log-probs", unit="micro-batch", disable=silent):
        batch = None if number is None else PreferencePair.collate(parts[number], reference.device)
        logp = reference_logp(reference, batch)
        if batch is not None:
            found = of_replies(logp, batch)
            measured[number] = torch.cat((found.reply.view(-1, 2), found.label.view(-1, 2)), dim=1).tolist()
    measured = {number: values for of_rank in gather(measured) for number, values in of_rank.items()}
    return [
        PreferencePair(pair.chosen, pair.rejected, *values)
        for number, part in enumerate(parts)
        for pair, values in zip(part, measured[number])
    ]


def say_shared_prompts(judge: JudgeModel, pairs: Sequence[PreferencePair], dev: Sequence[Judgement]) -> None:
    """Print how many pairs there are, and warn where rows of --dev are asked with the same prompt as pairs."""
    prompts = {tuple(pair.chosen.prompt) for pair in pairs}
    print(f"--data: {len(pairs):,} preference pairs of {len(prompts):,} prompts", file=sys.stderr)
    shared = sum(tuple(prompt) in prompts for prompt in judge.prompts(list(dev)))
    if shared:
        consequence = "the best checkpoint is picked by what it was trained on"
        print(f"warning: {shared} of {len(dev)} rows of --dev are in --data too: {consequence}", file=sys.stderr)


# ---- The stage -------------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> dict[str, float]:
    config = resolved_of_pairs(parse_config(Config, __doc__, argv))
    config = replace(config, model=default_or_bundled(config.model, Config.model, BUNDLED_STUDENT))
    device = init_distributed(config.device, deterministic=config.deterministic, fsdp=config.fsdp)
    judge = load_trainee(
        config.model, config, dtype=config.dtype, device=device, seed=config.seed, plain=config.plain
    )
    pairs = read_pairs(config.data, judge, config)
    dev = load_dev(config.dev, config)
    if dev:
        say_data(dev, judge, "--dev")
    say_shared_prompts(judge, pairs, dev)
    run = Run(config.out, config, config.resume, lambda: identity(judge, data=pairs, dev=dev))
    if run.finished:
        return say_finished(run, judge, config, "dpo")
    distributed = DistributedModel(
        judge.model, judge.engine, fsdp=config.fsdp, device=device, dtype=DTYPES[config.dtype]
    )

    def of_replies(logp: Tensor, batch: PairBatch) -> ReplyLogp:
        weights = label_token_weights(batch.mask, config.label_weight, judge.prompt.order)  # (2B, T)
        label = logp.gather(1, batch.mask.int().argmax(dim=1, keepdim=True))[:, 0]
        return ReplyLogp(sequence_logp(logp, batch.mask, weights=weights), label, weights.sum(dim=1))

    # The weights that the stage begins with are the reference: measured here, before the loop may load a checkpoint.
    pairs = with_reference(distributed, pairs, 4 * config.micro_batch_tok, of_replies)

    def draw(step: int, cursor: dict) -> StepItems:
        order = shuffled_order(len(pairs), config.seed, step * config.batch_size, config.batch_size)
        return StepItems([pairs[i] for i in order])

    def loss(model: Decoder, batch: PairBatch) -> LossSum:
        logp, label, length = of_replies(judge.engine.completion_logp(model, batch.ids, batch.mask), batch)
        found = dpo_loss(
            logp[::2], logp[1::2], batch.ref_logp[::2], batch.ref_logp[1::2], beta=config.beta,
            loss_type=config.loss_type, label_smoothing=config.label_smoothing, nll_coef=config.nll_coef,
            chosen_length=length[::2], rejected_length=length[1::2],
        )  # fmt: skip
        if judge.prompt.order != "pre-cot":  # pairs differ at their label, which is all that serving reads: its margin
            gained = config.beta * (label.detach() - batch.ref_label)
            found.metrics["rewards/label_margins"] = float((gained[::2] - gained[1::2]).mean())
        return found

    def score_dev(judge: JudgeModel) -> dict[str, float]:
        return dev_scores(judge, dev, config.max_new_tokens)

    last = train(
        judge, run, Stage("dpo", draw, loss),
        schedule=Schedule.of(config), optimizers=make_optimizers(judge.model, config.lr, weight_decay=0.0),
        distributed=distributed, evaluate=score_dev if dev else None,
    )  # fmt: skip
    say_findings(run.folder)
    return last | say_finished(run, judge, config, "dpo")


if __name__ == "__main__":
    run_main(main, Config)
