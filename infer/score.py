"""Score pairs with one prefill each: grade, ranking tier, four label probabilities. This is how a shop uses its judge.

    python infer/score.py --data pairs.jsonl --out scored.jsonl        # the newest finished run, else the bundled judge
    python infer/score.py --model runs/student --data pairs.csv.gz --out scored.jsonl.gz --beta 0.4
    python infer/score.py --model runs/mine --data esci/ --split test --out scored.jsonl --device cuda --dtype bfloat16
    torchrun --standalone --nproc_per_node=8 infer/score.py --data pairs.jsonl --out scored.jsonl --device cuda

Writes one JSON object a line, in input order: every input column unchanged, and
    grade       the most probable label, 1-4 (a grade that the row already had is kept as gold_grade)
    tier        Good, Mid or Bad by CumPT with --beta
    probs       P(grade 1), P(grade 2), P(grade 3), P(grade 4)
    label_mass  probability that the reply begins with a label at all; near 0 the other three mean nothing
    prompt_sha  identifies the wording of the prompt (wording_sha256 of taosr1/task/prompt.py)
The file is written completely or not at all. `infer/evaluate.py --scores scored.jsonl` measures it.

After an interruption the same command continues: finished rows are kept in scored.jsonl.parts. Several ranks share the
rows, and the last to finish writes the output, each row exactly once (see taosr1/runtime/chunked_job.py).

Deviations from the paper:
1. Its beta is not published. Here it is --beta, else what `infer/evaluate.py --dev DEV --save-beta` stored beside the
   weights (tiering.json), else 0.5.
2. The paper does not calibrate. Here a temperature that `infer/evaluate.py --dev DEV --fit-temperature` stored beside
   the weights (calibration.json) scales the probabilities: grades stay, tiers may change. --temperature-scaling off
   ignores it.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a fresh checkout runs without being installed

from taosr1.data.flags import ReadFlags
from taosr1.data.judgements import judgement_to_dict, read_parsed
from taosr1.data.sources import OLD_SPELLING, SYNTHETIC, load_rows
from taosr1.engine import PLAIN_HELP
from taosr1.judge_model import SERVING_DTYPE_HELP, SERVING_DTYPES, JudgeModel
from taosr1.model.io.digest import model_digest
from taosr1.runtime.chunked_job import job_identity, run_in_chunks
from taosr1.runtime.cli import at_least, check, option, parse_config
from taosr1.runtime.distributed import local_device, this_rank
from taosr1.runtime.jsonl import write_jsonl
from taosr1.runtime.signals import run_main
from taosr1.serving.deployed import (
    ANSWERS_FIRST,
    DEFAULT_BETA,
    MODEL_HELP,
    TEMPERATURE_SCALING,
    chosen_temperature,
    open_judge,
    stored_beta,
)
from taosr1.serving.scorer import Score, score_prompts
from taosr1.task.grades import GRADES, TIERS
from taosr1.task.judgement import Judgement

ROWS_AT_A_TIME = 1024  # encoded, sorted by length and scored together, then stored: what a crash costs at most
LOW_MASS = 0.5
DIGITS = 6  # of probabilities in the file

Pair = tuple[dict, Judgement]  # a row as it is in the file, and as the judge reads it


@dataclass(frozen=True)
class Config(ReadFlags):
    model: str = option("", MODEL_HELP)
    data: str = option("", "pairs to score: a .jsonl/.csv/.tsv[.gz] or .parquet file, or synthetic:POOL")
    out: str = option("", "file to write, .jsonl or .jsonl.gz")
    beta: float | None = option(None, "CumPT: smaller is more generous; none: the checkpoint's tiering.json, else 0.5")
    temperature_scaling: str = option(
        "stored",
        "stored: scale probs by the checkpoint's calibration.json, where it has one; off: leave them unscaled",
        TEMPERATURE_SCALING,
    )
    split: str = option("", "keep only the rows whose 'split' column says this (ESCI: train, test)")
    limit: int = option(0, "score only the first rows (0: all)")
    batch_tok: int = option(
        16384, "tokens per forward pass, on a CPU with padding; changes memory and speed only (on a GPU: 65536)"
    )
    device: str = option("cpu", "torch device")
    dtype: str = option("float32", SERVING_DTYPE_HELP, SERVING_DTYPES)
    plain: bool = option(False, PLAIN_HELP)
    seed: int = option(0, "seed of the embedded shop (scoring itself is not random)")

    def __post_init__(self) -> None:
        check([
            (not self.data, "--data is missing: the file with the pairs to score"),
            (not re.search(r"\.jsonl(\.gz)?$", self.out),
             f"--out is {self.out!r}, expected a file name ending in .jsonl or .jsonl.gz"),
            (bool(self.out) and Path(self.out).resolve() == Path(self.data).resolve(),
             f"--out {self.out} is --data: it would be overwritten"),
            (self.beta is not None and not 0 < self.beta <= 1,
             f"--beta is {self.beta}, expected more than 0 and at most 1"),
            *at_least(self, limit=0, batch_tok=1),
        ])  # fmt: skip


def read_pairs(config: Config) -> list[Pair]:
    """Every row twice, because the input columns are written back unchanged.

    All rows are read and checked before the first is scored: a bad row in line 900,000 is reported now, not in an hour.
    """
    if config.data.startswith((SYNTHETIC, OLD_SPELLING)):
        rows = load_rows(config.data, config, seed=config.seed, split=config.split, limit=config.limit)
        return [(judgement_to_dict(row), row) for row in rows]
    settings = {"split": config.split, "limit": config.limit}
    pairs = read_parsed(config.data, lambda row, judgement: row, config, need_grade=False, **settings)
    return [(row, judgement) for judgement, row in pairs]


def output_row(row: dict, gold: int | None, score: Score, wording: str) -> dict:
    """A row of the output file: the input row with its score.

    This function alone decides which fields are written. To add one, such as the expected grade, add it to the returned
    dict: sum(grade * p for grade, p in zip(GRADES, score.probs)).
    A `gold_grade` in the input stays: its `grade` is the prediction of an earlier scoring.
    """
    kept = {"gold_grade": gold} if gold is not None and "gold_grade" not in row else {}
    return {
        **row,
        **kept,
        "grade": score.grade,
        "tier": score.tier,
        "probs": [round(value, DIGITS) for value in score.probs],
        "label_mass": round(score.label_mass, DIGITS),
        "prompt_sha": wording,
    }


def output_rows(pairs: list[Pair], scores: Iterable[Score], wording: str, totals: Counter) -> Iterator[dict]:
    """The rows of the output file; adds their grades, tiers and label mass to `totals`."""
    for (row, judgement), score in zip(pairs, scores, strict=True):
        totals.update({score.grade: 1, score.tier: 1, "label_mass": score.label_mass})
        yield output_row(row, judgement.grade, score, wording)


def open_label_first_judge(config: Config) -> tuple[str, JudgeModel]:
    """Raises: ValueError for a judge whose first token is not its answer."""
    device = local_device(config.device, this_rank())
    settings = {"dtype": config.dtype, "device": device, "seed": config.seed, "plain": config.plain}
    name, judge = open_judge(config.model, orders=ANSWERS_FIRST, **settings)
    if judge.prompt.order == "pre-cot":
        raise ValueError(
            f"--model {name} reasons before it answers (pre-cot), so one prefill does not give the grade. Read its "
            "replies with infer/explain.py or infer/sample.py, or use it as the teacher of a judge that answers first: "
            "train/label_pool.py, then train/sft.py --order post-cot"
        )
    return name, judge


def main(argv: list[str] | None = None) -> dict[str, object]:
    """Returns the summary, or {} on a rank that leaves the output to another."""
    config = parse_config(Config, __doc__, argv)
    pairs = read_pairs(config)
    name, judge = open_label_first_judge(config)
    temperature = chosen_temperature(name, config.temperature_scaling)
    beta = config.beta or stored_beta(name, temperature) or DEFAULT_BETA
    served = {"beta": beta, "temperature": temperature}

    def work(chunk: list[Pair], start: int) -> list[dict]:
        prompts = judge.prompts([judgement for _, judgement in chunk])
        scores = score_prompts(judge, prompts, **served, max_tokens_per_batch=config.batch_tok)
        return [vars(score) for score in scores]

    wording, digest = judge.prompt.wording_sha256, model_digest(judge.model, judge.tokenizer, judge.prompt)
    facts = {"judge": digest, "prompt_wording": wording, **served}
    identity = job_identity("score", config, (row for row, _ in pairs), **facts)
    totals: Counter = Counter()
    with run_in_chunks(config.out, identity, pairs, ROWS_AT_A_TIME, work, "score") as answers:
        if answers is None:
            return {}
        scores = (Score(**answer) for answer in answers)
        rows = write_jsonl(config.out, output_rows(pairs, scores, wording, totals))

    mass = totals["label_mass"] / rows
    tiers = {tier: totals[tier] for tier in TIERS}
    shown = ", ".join(f"{tier} {count}" for tier, count in tiers.items())
    print(f"{rows} pairs scored by {name} -> {config.out}; {shown} (CumPT, beta {beta:.4g})")
    if mass < LOW_MASS:
        print(
            f"warning: mean label mass is {mass:.2g}: this model rarely answers with a label, so its probabilities "
            "mean little. Is it trained for this task (train/sft.py), with this prompt (prompt.json)?",
            file=sys.stderr,
        )
    grades = {grade: totals[grade] for grade in GRADES[::-1]}
    return {"rows": rows, **served, "label_mass": mass, "tiers": tiers, "grades": grades}


if __name__ == "__main__":
    run_main(main)
