"""Score pairs with one prefill each: grade, ranking tier, four label probabilities. The way a shop runs its judge.

    python infer/score.py --data pairs.jsonl --out scored.jsonl                  # the furthest trained run under runs/
    python infer/score.py --model runs/student --data pairs.csv.gz --out scored.jsonl.gz --beta 0.4
    python infer/score.py --model Qwen/Qwen3-0.6B --data esci/ --split test --out scored.jsonl --device cuda --dtype bfloat16
    torchrun --standalone --nproc_per_node=8 infer/score.py --data pairs.jsonl --out scored.jsonl --device cuda

Writes one JSON object a line, in input order: every input column as it came, and
    grade       the most probable label, 1-4 (a grade that the row already had is kept as gold_grade)
    tier        Good, Mid or Bad by CumPT with --beta
    probs       P(grade 1), P(grade 2), P(grade 3), P(grade 4)
    label_mass  probability that the judge answers with a label at all; near 0 the other three mean nothing
    prompt_sha  which wording of the prompt the judge was asked with (wording_sha256 of taosr1/task/prompt.py)
The file appears complete or not at all. `infer/evaluate.py --scores scored.jsonl` measures it.

Killed at any moment, the same command continues: finished rows wait in scored.jsonl.parts. Several ranks share the rows, and the last
to finish merges them, each exactly once (taosr1/runtime/chunked_job.py says how).

Deviations from the paper:
1. Its beta is not published. Here it is --beta, else what `infer/evaluate.py --dev DEV --save-beta` stored beside the
   weights (tiering.json), else 0.5.
2. The paper does not calibrate. Here a temperature that `infer/evaluate.py --dev DEV --fit-temperature` stored beside the
   weights (calibration.json) scales the probabilities: grades stay, tiers may move. --temperature-scaling off says no.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a fresh checkout runs without being installed

from taosr1.data.duplicates import Duplicates
from taosr1.data.esci import keep_split
from taosr1.data.judgements import Judgement, judgement_to_dict, parse_judgement, read_rows
from taosr1.data.sources import SYNTHETIC, load_rows
from taosr1.engine import PLAIN_HELP
from taosr1.judge import SERVING_DTYPE_HELP, SERVING_DTYPES, Judge
from taosr1.model.io.digest import model_digest
from taosr1.runtime.bad_rows import BadRows
from taosr1.runtime.chunked_job import job_identity, run_in_chunks
from taosr1.runtime.cli import check, option, parse_config
from taosr1.runtime.distributed import local_device, this_rank
from taosr1.runtime.jsonl import write_jsonl
from taosr1.runtime.signals import run_main
from taosr1.serving.deployed import DEFAULT_BETA, TEMPERATURE_SCALING, chosen_temperature, open_judge, stored_beta
from taosr1.serving.scorer import Score, score_prompts

ROWS_AT_A_TIME = 1024  # encoded, sorted by length and scored together, then stored: what a crash costs at most
LOW_MASS = 0.5
DIGITS = 6  # of probabilities in the file

Pair = tuple[dict, Judgement]  # a row as it came, and as the judge reads it


@dataclass(frozen=True)
class Config:
    model: str = option("", "a run folder, a Hugging Face folder or hub id; none: the furthest trained run under runs/")
    data: str = option("", "pairs to score: a .jsonl/.csv/.tsv[.gz] or .parquet file, or synthetic:POOL")
    out: str = option("", "file to write, .jsonl or .jsonl.gz")
    beta: float | None = option(None, "CumPT: a smaller one is more generous; none: the checkpoint's tiering.json, else 0.5")
    temperature_scaling: str = option(
        "stored", "stored: scale probs by the checkpoint's calibration.json, where it has one; off: take them as they are", TEMPERATURE_SCALING
    )
    split: str = option("", "keep only the rows whose 'split' column says this (ESCI: train, test)")
    limit: int = option(0, "score only the first rows (0: all)")
    max_bad_rows: int = option(0, "unreadable rows to skip (all are counted, the first 20 named) before giving up")
    batch_tok: int = option(16384, "tokens per forward pass, on a CPU padding included (memory; changes no result; a GPU wants 65536)")
    device: str = option("cpu", "torch device")
    dtype: str = option("float32", SERVING_DTYPE_HELP, SERVING_DTYPES)
    plain: bool = option(False, PLAIN_HELP)
    seed: int = option(0, "seed of the embedded shop (scoring itself draws nothing)")

    def __post_init__(self) -> None:
        check([
            (not self.data, "--data is missing: the file with the pairs to score"),
            (not re.search(r"\.jsonl(\.gz)?$", self.out), f"--out is {self.out!r}, expected a file name ending in .jsonl or .jsonl.gz"),
            (bool(self.out) and Path(self.out).resolve() == Path(self.data).resolve(), f"--out {self.out} is --data: it would be overwritten"),
            (self.beta is not None and not 0 < self.beta <= 1, f"--beta is {self.beta}, expected more than 0 and at most 1"),
            (self.limit < 0, f"--limit is {self.limit}, expected 0 or more"),
            (self.batch_tok < 1, f"--batch-tok is {self.batch_tok}, expected at least 1"),
        ])  # fmt: skip


def read_pairs(config: Config) -> list[Pair]:
    """Every row twice, so that what is written back is what came in, and not our reading of it.

    All rows are read and checked before the first is scored: a bad row in line 900,000 is reported now, not in an hour.
    """
    if config.data.startswith(SYNTHETIC):
        rows = load_rows(config.data, seed=config.seed, split=config.split, limit=config.limit)
        return [(judgement_to_dict(row), row) for row in rows]
    pairs: list[Pair] = []
    bad_rows = BadRows(config.data, config.max_bad_rows)
    repeats = Duplicates(bad_rows)
    for line, row in read_rows(config.data, bad_rows):
        try:
            judgement = parse_judgement(row)
            repeats.add(line, judgement)
            pairs.append((row, judgement))
        except ValueError as problem:
            bad_rows.add(line, problem)
        if len(pairs) == (config.limit or None) and not config.split:  # a look at the first rows of a large file stays quick
            break
    if not pairs:
        raise ValueError(f"{config.data}: no rows in this file ({bad_rows.skipped} bad rows skipped): check --data")
    if config.split:
        kept = {id(row) for row in keep_split([row for _, row in pairs], config.split)}
        pairs = [pair for pair in pairs if id(pair[1]) in kept]
    return pairs[: config.limit or None]


def refuse_thinker(name: str, judge: Judge) -> None:
    """Raises: ValueError for a judge whose first token is not its answer."""
    if judge.prompt.order == "pre-cot":
        raise ValueError(
            f"--model {name} reasons before it answers (pre-cot), so one prefill says nothing about the grade. Read its replies with "
            "infer/explain.py or infer/sample.py, or let it teach a student that answers first: train/label_pool.py, then "
            "train/sft.py --order post-cot"
        )


def scored_rows(pairs: list[Pair], answers: Iterable[dict], wording: str, seen: Counter) -> Iterator[dict]:
    """The output rows; `seen` counts grades, tiers and label mass on the way. answers: the fields of each row's Score."""
    for (row, judgement), answer in zip(pairs, answers, strict=True):
        score = Score(**answer)
        seen.update({f"grade {score.grade}": 1, score.tier: 1, "label_mass": score.label_mass})
        yield output_row(row, judgement.grade, score) | {"prompt_sha": wording}


def output_row(row: dict, gold: int | None, score: Score) -> dict:
    """An input row with its score. A `gold_grade` from an earlier pass stays: its `grade` was a prediction already."""
    kept = {"gold_grade": gold} if gold is not None and "gold_grade" not in row else {}
    probs = [round(value, DIGITS) for value in score.probs]
    mass = round(score.label_mass, DIGITS)
    return {**row, **kept, "grade": score.grade, "tier": score.tier, "probs": probs, "label_mass": mass}


def main(argv: list[str] | None = None) -> dict[str, object]:
    """Returns the summary, or {} on a rank that leaves the merging to another."""
    config, ranks = parse_config(Config, __doc__, argv), this_rank()
    pairs = read_pairs(config)
    device = local_device(config.device, ranks)
    name, judge = open_judge(config.model, thinkers=False, dtype=config.dtype, device=device, seed=config.seed, plain=config.plain)
    refuse_thinker(name, judge)
    temperature = chosen_temperature(name, config.temperature_scaling)
    beta = config.beta or stored_beta(name, temperature) or DEFAULT_BETA
    served = {"beta": beta, "temperature": temperature}

    def work(pairs: list[Pair], start: int) -> list[dict]:
        prompts = judge.prompts([row for _, row in pairs])
        scores = score_prompts(judge, prompts, **served, max_tokens_per_batch=config.batch_tok
        )
        return [vars(score) for score in scores]

    seen: Counter = Counter()
    wording, digest = judge.prompt.wording_sha256, model_digest(judge.model, judge.tokenizer, judge.prompt)
    facts = {"judge": digest, "prompt_wording": wording, **served}
    identity = job_identity("score", config, (row for row, _ in pairs), **facts)
    with run_in_chunks(config.out, identity, pairs, ROWS_AT_A_TIME, work, "score") as answers:
        if answers is None:
            return {}
        rows = write_jsonl(config.out, scored_rows(pairs, answers, wording, seen))
    mass = seen["label_mass"] / rows
    tiers = {tier: seen[tier] for tier in ("Good", "Mid", "Bad")}
    shown = ", ".join(f"{tier} {count}" for tier, count in tiers.items())
    print(f"{rows} pairs scored by {name} -> {config.out}; {shown} (CumPT, beta {beta:.4g})")
    if mass < LOW_MASS:
        print(
            f"warning: mean label mass is {mass:.2g}: this model rarely answers with a label, so its probabilities mean little. "
            "Is it trained for this task (train/sft.py), and asked as it was trained (prompt.json)?",
            file=sys.stderr,
        )
    return {"rows": rows, **served, "label_mass": mass, "tiers": tiers, "grades": {g: seen[f"grade {g}"] for g in (4, 3, 2, 1)}}


if __name__ == "__main__":
    run_main(main)
