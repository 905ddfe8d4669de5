"""Continued pre-training, an optional step before the three stages: the decoder reads a catalogue's product texts.

    python train/pretrain.py --model smollm2 --data products.jsonl --steps 300 --out runs/pretrained
    python train/sft.py --model runs/pretrained --order label --data rows.csv --lr 1e-5 --out runs/mine

Every token of a product's text is learned from those before it; nothing is judged. The text is its fields, one a line
("Title: ...", "Brand: ..."), and with --queries also what shoppers typed ("Query: ..."). A text stands between two
end-of-sequence tokens and is a row of its own, so that no product is predicted from another one.

Not in the paper. Dev is a part of the products, held out: the best checkpoint is the one that finds them likeliest.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a fresh checkout runs without being installed

import torch

from taosr1.data.catalogue import read_catalogue
from taosr1.data.flags import ReadFlags
from taosr1.data.sources import is_made, load_rows
from taosr1.engine import PLAIN_HELP
from taosr1.evaluation.doctor import say_findings
from taosr1.judge_model import DTYPES, JudgeModel
from taosr1.learning.batches import Batch, Example, micro_batches
from taosr1.learning.distributed_model import DistributedModel, init_distributed
from taosr1.learning.draw_order import shuffled_order
from taosr1.learning.loop import DEV_LOGP, Stage, StepItems, train
from taosr1.learning.losses import LossSum, sft_loss
from taosr1.learning.optimizers import Schedule, make_optimizers
from taosr1.learning.trainee import MemoryFlags, identity, load_trainee, memory_problems
from taosr1.model.decoder import Decoder
from taosr1.runtime.checkpoint import read_best
from taosr1.runtime.cli import at_least, check, option, parse_config
from taosr1.runtime.run_folder import Run, RunFlags, run_problems
from taosr1.runtime.signals import run_main
from taosr1.task.judgement import Judgement
from taosr1.task.prompt import ITEM_FIELDS


@dataclass(frozen=True)
class Config(ReadFlags, MemoryFlags, RunFlags):
    model: str = option("smollm2", "a run, a Hugging Face folder, a GGUF file, a hub id, smollm2 or tiny")
    data: str = option("", "a file of products, in any format of a catalogue (examples/guide/data.md)")
    queries: str = option("", "judgements whose queries are learned, too; grades are not read (none: products alone)")
    out: str = option("runs/pretrained", "run folder")
    steps: int = option(300, "optimizer steps")
    batch_size: int = option(32, "texts per optimizer step")
    max_tok: int = option(256, "tokens of a text that are learned, the first ones")
    micro_batch_tok: int = option(2048, "padded tokens per forward pass (memory; changes no result)")
    lr: float = option(5e-5, "peak learning rate; a pre-trained model forgets what it knows at a high one")
    weight_decay: float = option(0.1, "weight decay of the matrices")
    dev_texts: int = option(200, "texts held out for dev, at most a fifth of all")
    eval_every: int = option(50, "steps between dev evaluations, each with a checkpoint")
    device: str = option("cpu", "torch device")
    dtype: str = option("float32", "compute type; what is trained and its optimizer stay float32", tuple(DTYPES))
    plain: bool = option(False, PLAIN_HELP)
    seed: int = option(0, "seed of what is held out and of the order of texts")

    def __post_init__(self) -> None:
        check([
            *at_least(self, steps=1, batch_size=1, max_tok=2, micro_batch_tok=1, weight_decay=0, dev_texts=1,
                      eval_every=0),
            *run_problems(self),
            (not self.lr > 0, f"--lr is {self.lr}, expected more than 0"),
            (not self.data or is_made(self.data),
             f"--data is {self.data!r}, expected a file of products, such as products.jsonl"),
            *memory_problems(self),
        ])  # fmt: skip


def texts_of(config: Config) -> list[str]:
    """The different texts of --data and --queries, in a shuffled order of --seed: the first ones are for dev."""
    rows = load_rows(config.queries, config, flag="--queries") if config.queries else []
    texts = [product_text(product) for product in read_catalogue(config.data, config)]
    texts = sorted({*texts, *(f"Query: {row.query.strip()}" for row in rows)})
    if len(texts) < 5:
        raise ValueError(f"--data {config.data}: {len(texts)} different texts, expected at least 5: one in five is dev")
    random.Random(config.seed).shuffle(texts)
    return texts


def product_text(product: Judgement) -> str:
    """The filled fields of a product, one a line, named as in a prompt."""
    values = ((name, getattr(product, name).strip()) for name in ITEM_FIELDS)
    return "\n".join(f"{name.capitalize()}: {value}" for name, value in values if value)


def as_example(text: str, judge: JudgeModel, max_tok: int) -> Example:
    """End of sequence, then what is learned: the text and the next end of sequence; a text that is cut has no end."""
    end = judge.tokenizer.eos_ids[0]
    longest = min(max_tok, judge.model.config.max_position_embeddings - 1)
    return Example([end], [*judge.tokenizer.encode_text(text[: 20 * longest]), end][:longest])


@torch.no_grad()
def dev_scores(model: Decoder, dev: Sequence[Example], distributed: DistributedModel, max_tok: int) -> dict[str, float]:
    """dev_loss: nats per token of the held-out texts; its negative, the mean log-prob, is what is best when highest."""
    total = count = 0.0
    for part in micro_batches(dev, max_tok):
        batch = Example.collate(part, distributed.device)
        with distributed.compute_dtype():
            found = sft_loss(distributed.engine.completion_logp(model, batch.ids, batch.mask), batch.mask)
        total, count = total + float(found.sum), count + found.count
    return {"dev_loss": total / count, DEV_LOGP: -total / count}


def main(argv: list[str] | None = None) -> dict[str, float]:
    config = parse_config(Config, __doc__, argv)
    device = init_distributed(config.device, deterministic=config.deterministic, fsdp=config.fsdp)
    judge = load_trainee(config.model, config, dtype=config.dtype, device=device, seed=config.seed, plain=config.plain)
    texts = texts_of(config)
    examples = [as_example(text, judge, config.max_tok) for text in texts]
    held = min(config.dev_texts, len(examples) // 5)
    dev, examples = examples[:held], examples[held:]
    print(f"{len(examples)} texts to learn, {held} held out; {sum(len(x.reply) for x in examples):,} tokens")
    run = Run(config.out, config, config.resume, lambda: identity(judge, data=texts))
    distributed = DistributedModel(
        judge.model, judge.engine, fsdp=config.fsdp, device=device, dtype=DTYPES[config.dtype]
    )

    def draw(step: int, cursor: dict) -> StepItems:
        start = step * config.batch_size
        return StepItems([examples[n] for n in shuffled_order(len(examples), config.seed, start, config.batch_size)])

    def loss(model: Decoder, batch: Batch) -> LossSum:
        return sft_loss(judge.engine.completion_logp(model, batch.ids, batch.mask), batch.mask)

    last = {} if run.finished else train(
        judge, run, Stage("pretrain", draw, loss), schedule=Schedule.of(config),
        optimizers=make_optimizers(judge.model, config.lr, weight_decay=config.weight_decay), distributed=distributed,
        evaluate=lambda judge: dev_scores(judge.model, dev, distributed, config.micro_batch_tok),
    )  # fmt: skip
    run.close()
    say_findings(run.folder)
    best = read_best(run.checkpoints)
    print(f"pretrain: dev loss {-best[DEV_LOGP]:.3f} nats per token at step {best['step']}; run folder {config.out}")
    print(f"next: python train/sft.py --model {config.out} --order label --data GRADED_ROWS   (a file of yours)")
    return last


if __name__ == "__main__":
    run_main(main, Config)
