"""Stage 2b, DPO: prefer the right reply over the wrong one, measured against the model the stage starts from.

    python train/dpo.py                                              # the post-CoT SFT model on its own mined pairs
    python train/dpo.py --model runs/mine --data runs/mine-pairs.jsonl --beta 0.1 --lr 5e-7 --out runs/mine-dpo

The pairs come from train/mine_pairs.py. Log-probs of the reference (the starting weights) are computed once, stored with
the pairs, and the reference is forgotten.

Deviations from the paper:
1. `--nll-coef` adds a little cross-entropy on the chosen reply: DPO alone lowers the probability of both.
2. `--label-weight` counts the label token of a label-first reply that many times: in the reply's log-prob, and so in all that is logged
   of it, and in its length, which --nll-coef and --loss-type ipo divide by.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a fresh checkout runs without being installed

import torch

from taosr1.data.sources import load_rows
from taosr1.engine import PLAIN_HELP
from taosr1.evaluation.predict import dev_scores
from taosr1.judge import DTYPES
from taosr1.learning.batches import Example, collate, label_token_weights, micro_batches, padded_tok
from taosr1.learning.distributed_model import DistributedModel, init_distributed
from taosr1.learning.identity import identity
from taosr1.learning.loop import Schedule, compute_in, make_optimizers, train
from taosr1.learning.losses import LOSS_TYPES, LossSum, dpo_loss
from taosr1.learning.selection import shuffled_order
from taosr1.learning.trainee import MemoryFlags, load_trainee, memory_problems
from taosr1.model.logprobs import sequence_logp
from taosr1.runtime.cli import at_least, check, option, parse_config
from taosr1.runtime.distributed import gather
from taosr1.runtime.jsonl import read_jsonl
from taosr1.runtime.run_folder import Run, RunFlags, run_problems
from taosr1.runtime.signals import run_main


@dataclass(frozen=True)
class Config(MemoryFlags, RunFlags):
    model: str = option("runs/post-sft", "run folder or Hugging Face folder to start from; also the reference")
    data: str = option("runs/post-pairs.jsonl", "preference pairs of train/mine_pairs.py")
    dev: str = option("synthetic:dev", "graded rows that pick the best checkpoint")
    out: str = option("runs/post-dpo", "run folder")
    beta: float = option(0.1, "how fast the preference probability saturates")
    loss_type: str = option("sigmoid", "preference loss", LOSS_TYPES)
    label_smoothing: float = option(0.0, "share of pairs believed to be swapped (sigmoid: conservative DPO)")
    nll_coef: float = option(0.2, "weight of the cross-entropy of the chosen reply (0: off)")
    label_weight: float = option(1.0, "weight of the label token where it comes first")
    steps: int = option(48, "optimizer steps")
    batch_size: int = option(32, "pairs per optimizer step")
    micro_batch_tok: int = option(4096, "tokens per forward pass, a prompt counted once for its replies (memory; changes no result)")
    lr: float = option(2e-4, "peak learning rate; use about 5e-7 for a pre-trained model")
    eval_every: int = option(12, "steps between dev evaluations, each with a checkpoint")
    dev_rows: int = option(1000, "dev rows used (the first ones)")
    max_new_tokens: int = option(96, "longest reply when a pre-CoT dev row is judged")
    dev_split: str = option("", "keep only the dev rows whose 'split' column says this (ESCI: test)")
    max_bad_rows: int = option(0, "unreadable dev rows to skip (all are counted, the first 20 named) before giving up")
    device: str = option("cpu", "torch device")
    dtype: str = option("float32", "compute type; what is trained and its optimizer stay float32", tuple(DTYPES))
    plain: bool = option(False, PLAIN_HELP)
    seed: int = option(0, "seed of the order of pairs and the embedded shop")

    def __post_init__(self) -> None:
        check([
            *at_least(self, steps=1, batch_size=1, micro_batch_tok=1, nll_coef=0, label_weight=0, eval_every=0, dev_rows=0, max_new_tokens=1),
            *run_problems(self),
            *memory_problems(self),
            (not self.lr > 0, f"--lr is {self.lr}, expected more than 0"),
            (not self.beta > 0, f"--beta is {self.beta}, expected more than 0"),
            (not 0 <= self.label_smoothing < 0.5, f"--label-smoothing is {self.label_smoothing}, expected 0 or more and below 0.5"),
            (bool(self.label_smoothing) and self.loss_type in ("hinge", "ipo"), f"--loss-type {self.loss_type} takes no --label-smoothing"),
        ])  # fmt: skip


@dataclass(frozen=True)
class PreferencePair:
    chosen: Example
    rejected: Example
    ref_chosen: float = 0.0
    ref_rejected: float = 0.0
    ref_chosen_label: float = 0.0
    ref_rejected_label: float = 0.0

    @property
    def length_tok(self) -> int:
        """Tokens this pair takes: its prompt, which both replies share, and the replies."""
        return len(self.chosen.prompt) + len(self.chosen.reply) + len(self.rejected.reply)


@dataclass(frozen=True)
class PairBatch:
    """B pairs as 2B rows, chosen and rejected by turns (neighbours share their prompt): ids, mask (2B, T); ref_logp (2B,) over the reply,
    ref_label (2B,) of its first token."""

    ids: torch.Tensor
    mask: torch.Tensor
    ref_logp: torch.Tensor
    ref_label: torch.Tensor
    rows_together: ClassVar[int] = 2  # what halves a batch leaves pairs whole


def read_pairs(path: str, vocab_size: int) -> list[PreferencePair]:
    """The sampled token ids of a pairs file.

    Raises: ValueError naming file and line where ids are missing or belong to another tokenizer.
    """
    pairs = []
    for line, row in read_jsonl(path):
        ids = {name: row.get(f"{name}_ids") for name in ("prompt", "chosen", "rejected")}
        for name, value in ids.items():
            if not (isinstance(value, list) and value and all(type(i) is int and 0 <= i < vocab_size for i in value)):
                raise ValueError(
                    f"{path}:{line}: field '{name}_ids' must be token ids below {vocab_size} (pairs of train/mine_pairs.py, "
                    "mined with this model's tokenizer)"
                )
        pairs.append(PreferencePair(Example(ids["prompt"], ids["chosen"]), Example(ids["prompt"], ids["rejected"])))
    if not pairs:
        raise ValueError(f"{path}: no pairs in this file: check --data")
    return pairs


def collate_pairs(pairs: list[PreferencePair], device: str) -> PairBatch:
    batch = collate([example for pair in pairs for example in (pair.chosen, pair.rejected)], device)
    ref_logp = torch.tensor([logp for pair in pairs for logp in (pair.ref_chosen, pair.ref_rejected)], device=device)
    ref_label = torch.tensor([logp for pair in pairs for logp in (pair.ref_chosen_label, pair.ref_rejected_label)], device=device)
    return PairBatch(batch.ids, batch.mask, ref_logp, ref_label)


def main(argv: list[str] | None = None) -> dict[str, float]:
    config = parse_config(Config, __doc__, argv)
    device = init_distributed(config.device, deterministic=config.deterministic, fsdp=config.fsdp)
    judge = load_trainee(config.model, config, dtype=config.dtype, device=device, seed=config.seed, plain=config.plain)
    pairs = read_pairs(config.data, judge.model.config.vocab_size)
    dev = load_rows(
        config.dev, seed=config.seed, split=config.dev_split, limit=config.dev_rows, max_bad_rows=config.max_bad_rows, need_grade=True
    )
    run = Run(config.out, config, config.resume, lambda: identity(judge, data=pairs, dev=dev))
    team = DistributedModel(judge.model, judge.engine, fsdp=config.fsdp, device=device)
    label_position = "none" if judge.prompt.order == "pre-cot" else "first"

    def reply_logp(model, batch: PairBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(2B,) each: log-probs of the whole replies and of their first tokens, and how many tokens they are; all weighted."""
        logp = judge.engine.completion_logp(model, batch.ids, batch.mask)
        weights = label_token_weights(batch.mask, config.label_weight, label_position)
        first = logp.gather(1, batch.mask.int().argmax(dim=1, keepdim=True))[:, 0]
        return sequence_logp(logp, batch.mask, weights=weights), first, weights.sum(dim=1)

    pairs = with_reference(team, pairs, lambda model, batch: reply_logp(model, batch)[:2], config, device)

    def step_batches(step: int, cursor: dict) -> list[PairBatch]:
        drawn = shuffled_order(len(pairs), config.seed, step * config.batch_size, config.batch_size)
        batch = [pairs[i] for i in drawn]
        parts = micro_batches(batch, team.budget(batch, config.micro_batch_tok))
        return [part and collate_pairs(part, device) for part in team.share(parts, padded_tok)]

    def loss_fn(model, batch: PairBatch) -> LossSum:
        logp, label, lengths = reply_logp(model, batch)
        loss = dpo_loss(
            logp[::2], logp[1::2], batch.ref_logp[::2], batch.ref_logp[1::2], beta=config.beta, loss_type=config.loss_type,
            label_smoothing=config.label_smoothing, chosen_length=lengths[::2], rejected_length=lengths[1::2], nll_coef=config.nll_coef,
        )  # fmt: skip
        if label_position == "none":
            return loss
        # Label-first pairs differ at their first token, which is all that serving reads: the margin that it has alone.
        gained = config.beta * (label.detach() - batch.ref_label)
        return loss._replace(metrics=loss.metrics | {"rewards/label_margins": float((gained[::2] - gained[1::2]).mean())})

    def evaluate(step: int) -> dict[str, float]:
        with team.whole(DTYPES[config.dtype]) as model:
            return dev_scores(replace(judge, model=model), dev, config.max_new_tokens)

    return train(
        judge.model, judge.tokenizer, judge.prompt, run,
        schedule=Schedule(config.steps, eval_every=config.eval_every, save_every=config.save_every, keep_last=config.keep_last, max_skipped=config.max_skipped),
        optimizers=make_optimizers(judge.model, config.lr, weight_decay=0.0),
        step_batches=step_batches,
        loss_fn=loss_fn,
        evaluate=evaluate,
        compute_dtype=DTYPES[config.dtype],
        description="dpo",
        team=team,
    )  # fmt: skip


@torch.no_grad()
def with_reference(team: DistributedModel, pairs: list[PreferencePair], reply_logp, config: Config, device: str) -> list[PreferencePair]:
    """The pairs with the starting model's log-probs of both replies and their first tokens, called before a checkpoint is loaded over it.

    Each rank measures its share of the batches, and then all have all of them.
    """
    parts = micro_batches(pairs, 4 * config.micro_batch_tok)
    measured = {}
    for number in team.share(range(len(parts)), lambda number: padded_tok(parts[number])):
        if number is None:
            team.idle()
            continue
        with compute_in(team.model, DTYPES[config.dtype]):
            found = team.run(reply_logp, collate_pairs(parts[number], device))
        measured[number] = [values.view(-1, 2).tolist() for values in found]
    measured = {number: values for of_rank in gather(measured) for number, values in of_rank.items()}
    return [
        PreferencePair(pair.chosen, pair.rejected, *reply, *label)
        for number, part in enumerate(parts)
        for pair, reply, label in zip(part, *measured[number])
    ]


if __name__ == "__main__":
    run_main(main)
