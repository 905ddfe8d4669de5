"""Stage 1, supervised fine-tuning: teach a decoder to answer in one of three orders.

    python train/sft.py                                           # the thinker: pre-CoT, on the embedded shop
    python train/sft.py --order post-cot --out runs/post-sft      # the paper's order: label first, then the reason
    python train/sft.py --order label --data rows.jsonl --dev dev.jsonl --model Qwen/Qwen3-0.6B --out runs/mine

Rows need a grade, and a chain of thought (column "cot") unless --order label. The best checkpoint on --dev is what
`--model RUN` loads afterwards.

Deviations from the paper:
1. Its rationales come from DeepSeek-R1; the embedded shop's from a rule teacher that errs in a fifth of its pairs.
2. `--cots agreeing` (the default) drops rows whose chain of thought decides against the gold grade.
3. `--label-weight`, `--soft-labels` and `--grade-power` are ours: the label is one token of twenty, raters differ by a
   grade, and grade 3 is one pair of twenty.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a fresh checkout runs without being installed

from taosr1.data.flags import ReadFlags
from taosr1.data.splits import AUTO, AUTO_HELP, load_splits, resolved
from taosr1.data.summary import say_data
from taosr1.engine import PLAIN_HELP
from taosr1.evaluation.doctor import say_findings
from taosr1.evaluation.predict import dev_scores
from taosr1.judge_model import DTYPES, TINY
from taosr1.learning.batches import Batch, label_token_weights
from taosr1.learning.closing import say_finished
from taosr1.learning.distributed_model import DistributedModel, init_distributed
from taosr1.learning.draw_order import balanced_order
from taosr1.learning.examples import agreeing, examples_of
from taosr1.learning.loop import Stage, StepItems, train
from taosr1.learning.losses import LossSum, sft_loss
from taosr1.learning.optimizers import Schedule, make_optimizers
from taosr1.learning.soft_labels import SoftBatch, soften
from taosr1.learning.trainee import MemoryFlags, identity, load_trainee, memory_problems
from taosr1.model.decoder import Decoder
from taosr1.runtime.cli import at_least, check, option, parse_config
from taosr1.runtime.run_folder import Run, RunFlags, run_problems
from taosr1.runtime.signals import run_main
from taosr1.task.prompt import ORDERS
from taosr1.task.prompt_flags import PromptFlags, prompt_problems


@dataclass(frozen=True)
class Config(ReadFlags, PromptFlags, MemoryFlags, RunFlags):
    model: str = option("tiny", "tiny (fresh weights), a run, a Hugging Face folder, a GGUF file or a hub id")
    data: str = option("synthetic:reasoned", "graded rows to learn: a file, synthetic:POOL or catalogue:FILE:POOL")
    dev: str = option(AUTO, f"graded rows that pick the best checkpoint; {AUTO_HELP}")
    out: str = option("runs/thinker-sft", "run folder")
    order: str = option(
        "pre-cot", "order of the reply: label | pre-cot (reason, then label) | post-cot (label, then reason)", ORDERS
    )
    cots: str = option(
        "agreeing", "chains of thought to learn: all, or those that agree with the gold grade", ("agreeing", "all")
    )
    steps: int = option(500, "optimizer steps")
    batch_size: int = option(64, "examples per optimizer step")
    micro_batch_tok: int = option(
        2048, "padded tokens per forward pass, what all prompts share counted once (memory; changes no result)"
    )
    lr: float = option(3e-3, "peak learning rate; use about 1e-5 for a pre-trained model")
    optimizer: str = option(
        "auto", "muon, adamw, or auto: Muon for fresh weights, AdamW for trained ones", ("auto", "muon", "adamw")
    )
    muon_lr: float = option(0.02, "peak learning rate of Muon, for the matrices; --lr is for the rest")
    weight_decay: float = option(0.1, "weight decay of the matrices")
    label_weight: float = option(1.0, "weight of the label token where it comes first")
    soft_labels: float = option(
        0.0,
        "tau, in grades: the label token learns softmax(-distance to the gold grade / tau), so 0.5 leaves the gold "
        "grade 78 to 87 % of it; where the label comes first (0: the gold label alone)",
    )
    grade_power: float = option(0.5, "grades are drawn by frequency to this power: 1 as in the data, 0 equally often")
    lora_dropout: float = option(0.0, "share of an adapter's input that is set to 0, drawn anew in every step")
    eval_every: int = option(125, "steps between dev evaluations, each with a checkpoint")
    dev_rows: int = option(1000, "dev rows used (the first ones; 0: all)")
    max_new_tokens: int = option(96, "longest reply when a pre-CoT dev row is judged")
    split: str = option("", "keep only the rows whose 'split' column says this (ESCI: train)")
    dev_split: str = option("", "the same for --dev (ESCI: test)")
    device: str = option("cpu", "torch device")
    dtype: str = option("float32", "compute type; what is trained and its optimizer stay float32", tuple(DTYPES))
    plain: bool = option(False, PLAIN_HELP)
    seed: int = option(0, "seed of weights, order of rows and the embedded shop")

    def __post_init__(self) -> None:
        check([
            *at_least(self, steps=1, batch_size=1, micro_batch_tok=1, weight_decay=0, label_weight=0, soft_labels=0,
                      eval_every=0, dev_rows=0, max_new_tokens=1),
            *run_problems(self),
            (not self.lr > 0, f"--lr is {self.lr}, expected more than 0"),
            (not self.muon_lr > 0, f"--muon-lr is {self.muon_lr}, expected more than 0; --optimizer adamw needs none"),
            (self.optimizer == "muon" and self.lora_rank > 0,
             "--optimizer muon moves whole matrices; with --lora-rank use adamw"),
            (self.optimizer == "muon" and self.fsdp,
             "--optimizer muon moves whole matrices, which no rank has with --fsdp; use adamw"),
            *memory_problems(self, self.lora_dropout),
            *prompt_problems(self),
            (self.soft_labels > 0 and self.order == "pre-cot",
             "--soft-labels needs the label first: --order label or post-cot; in pre-cot it follows from the reasons"),
            (not 0 <= self.grade_power <= 1, f"--grade-power is {self.grade_power}, expected 0 to 1"),
        ])  # fmt: skip


def main(argv: list[str] | None = None) -> dict[str, float]:
    config = resolved(parse_config(Config, __doc__, argv))
    device = init_distributed(config.device, deterministic=config.deterministic, fsdp=config.fsdp)
    judge = load_trainee(
        config.model, config, dtype=config.dtype, order=config.order, device=device, seed=config.seed,
        dropout=config.lora_dropout, plain=config.plain,
    )  # fmt: skip
    rows, dev, _ = load_splits(config, need_cot=config.order != "label")
    say_data(rows, judge, "--data")
    say_data(dev, judge, "--dev")
    if config.order != "label" and config.cots == "agreeing":
        rows = agreeing(rows)
    examples, grades = examples_of(judge, rows), [row.grade for row in rows]
    if config.soft_labels:
        examples = soften(examples, grades, judge.tokenizer.label_ids, config.soft_labels)
    run = Run(config.out, config, config.resume, lambda: identity(judge, data=rows, dev=dev))
    if run.finished:
        return say_finished(run, judge, config, "sft")
    distributed = DistributedModel(
        judge.model, judge.engine, fsdp=config.fsdp, device=device, dtype=DTYPES[config.dtype]
    )

    def draw(step: int, cursor: dict) -> StepItems:
        start = step * config.batch_size
        order = balanced_order(grades, config.seed, start, config.batch_size, power=config.grade_power)
        return StepItems([examples[row] for row in order])

    def loss(model: Decoder, batch: Batch) -> LossSum:
        weights = label_token_weights(batch.mask, config.label_weight, config.order)
        if isinstance(batch, SoftBatch):
            weights = weights * batch.weights
        return sft_loss(judge.engine.completion_logp(model, batch.ids, batch.mask), batch.mask, weights=weights)

    fresh = config.model == TINY and not config.fsdp
    with_muon = config.optimizer == "muon" or config.optimizer == "auto" and fresh
    muon_lr = config.muon_lr if with_muon else 0.0
    last = train(
        judge,
        run,
        Stage(f"sft {config.order}", draw, loss),
        schedule=Schedule.of(config),
        optimizers=make_optimizers(judge.model, config.lr, weight_decay=config.weight_decay, muon_lr=muon_lr),
        distributed=distributed,
        evaluate=lambda judge: dev_scores(judge, dev, config.max_new_tokens),
    )
    say_findings(run.folder)
    return last | say_finished(run, judge, config, "sft")


if __name__ == "__main__":
    run_main(main, Config)
