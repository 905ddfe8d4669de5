"""Grade a pool without labels: the thinker answers greedily, and its answers are what the student learns from.

    python train/label_pool.py                                       # runs/thinker-grpo grades the unlabelled pool
    python train/label_pool.py --model runs/thinker --data pairs.jsonl --out runs/pool.jsonl --keep-frac 0.8

Writes judgements (JSONL) with `grade`, `cot` (where the judge writes one) and `confidence`, the log-probability of the
whole reply. A grade that the input already had is kept as `gold_grade` and not looked at. Rows whose reply cannot be
parsed are left out and counted.

Not in the paper: its online model is trained like the thinker. Ours learns from it: think first to learn, answer first
to serve.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a fresh checkout runs without being installed

import torch

from taosr1.config import at_least, check, option, parse_config, progress, run_main
from taosr1.judge import DTYPES, Judge, load_judge
from taosr1.sampling.labels import label_probabilities
from taosr1.sampling.sampler import generate
from taosr1.task.judgements import Judgement, write_judgements
from taosr1.task.prompt import parse_reply
from taosr1.task.sources import load_rows

ROWS_AT_A_TIME = 4096


@dataclass(frozen=True)
class Config:
    model: str = option("runs/thinker-grpo", "run folder or Hugging Face folder of the judge that grades")
    data: str = option("world:unlabelled", "rows to grade: a .jsonl/.csv[.gz] file or world:POOL")
    out: str = option("runs/pool.jsonl", "graded rows")
    keep_frac: float = option(1.0, "keep this share of the rows, the most confident ones")
    max_new_tokens: int = option(64, "longest reply")
    limit: int = option(0, "grade only the first rows (0: all)")
    split: str = option("", "keep only the rows whose 'split' column says this")
    max_bad_rows: int = option(0, "unreadable rows to skip (each is named) before giving up")
    device: str = option("cpu", "torch device")
    dtype: str = option("float32", "type of the weights", tuple(DTYPES))
    seed: int = option(0, "seed of the embedded world")

    def __post_init__(self) -> None:
        check([
            (not 0 < self.keep_frac <= 1, f"--keep-frac is {self.keep_frac}, expected more than 0 and at most 1"),
            *at_least(self, max_new_tokens=1, limit=0),
        ])  # fmt: skip


def grade_rows(judge: Judge, rows: list[Judgement], max_new_tokens: int) -> list[Judgement]:
    """The rows with the judge's grade, reasons and confidence; those it could not answer are missing."""
    prompts = judge.prompts(rows)
    graded = []
    if judge.prompt.order == "label":  # nothing to decode: the label is one token
        scored = label_probabilities(judge.model, judge.tokenizer, prompts)
        best, grade = scored.probs.max(dim=1)
        confidence = (best * scored.label_mass).log()
        for row, value, index in zip(rows, confidence.tolist(), grade.tolist()):
            graded.append(_graded(row, index + 1, "", value))
        return graded
    rollouts = generate(judge.model, prompts, max_new_tokens=max_new_tokens, temperature=0, stop_ids=judge.tokenizer.eos_ids)
    confidence = rollouts.logp.sum(dim=1).tolist()
    for row, ids, value in zip(rows, rollouts.replies(), confidence):
        text = judge.reply_text(ids)
        reply = parse_reply(text, judge.prompt.order)
        if reply.grade is not None and reply.well_formed:
            graded.append(_graded(row, reply.grade, text.partition("\n")[2] if judge.prompt.order == "post-cot" else text, value))
    return graded


def _graded(row: Judgement, grade: int, cot: str, confidence: float) -> Judgement:
    extra = row.extra | ({"gold_grade": row.grade} if row.grade is not None else {}) | {"confidence": round(confidence, 5)}
    return replace(row, grade=grade, cot=cot, extra=extra)


def main(argv: list[str] | None = None) -> dict[str, float]:
    config = parse_config(Config, __doc__, argv)
    judge = load_judge(config.model, dtype=config.dtype, device=config.device)
    rows = load_rows(config.data, seed=config.seed, split=config.split, limit=config.limit, max_bad_rows=config.max_bad_rows)
    graded: list[Judgement] = []
    bar = progress(total=len(rows), desc="grade the pool", unit="pair")
    for start in range(0, len(rows), ROWS_AT_A_TIME):
        part = rows[start : start + ROWS_AT_A_TIME]
        graded += grade_rows(judge, part, config.max_new_tokens)
        bar.update(len(part))
    bar.close()
    if config.keep_frac < 1 and graded:
        values = torch.tensor([row.extra["confidence"] for row in graded], dtype=torch.float64)
        limit = float(values.quantile(1 - config.keep_frac))
        graded = [row for row in graded if row.extra["confidence"] >= limit]
    if not graded:
        raise ValueError(f"--model {config.model}: not one of {len(rows)} replies could be parsed; train it further or check --model")
    write_judgements(config.out, graded)
    shares = {grade: sum(row.grade == grade for row in graded) / len(graded) for grade in (4, 3, 2, 1)}
    print(f"{len(graded)} of {len(rows)} rows graded -> {config.out}; shares " + ", ".join(f"{g}: {100 * s:.1f} %" for g, s in shares.items()))
    return {"rows": len(rows), "graded": len(graded)}


if __name__ == "__main__":
    run_main(main)
