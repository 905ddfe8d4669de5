"""Score pairs with one prefill each: grade, ranking tier, four label probabilities. This is how a shop uses its judge.

    python infer/score.py --data pairs.jsonl --out scored.jsonl        # the newest finished run, else the bundled judge
    python infer/score.py --model runs/student --data pairs.csv.gz --out scored.jsonl.gz --beta 0.4
    cat pairs.csv | python infer/score.py --data - --out - | head
    python infer/score.py --data pairs.csv --format opensearch --out judgments.json
    python infer/score.py --model runs/mine --data esci/ --split test --out scored.jsonl --device cuda --dtype bfloat16
    torchrun --standalone --nproc_per_node=8 infer/score.py --data pairs.jsonl --out scored.jsonl --device cuda

Writes one row for each row of the input, in its order, with every input column unchanged (its `grade` stays) and
    pred_grade  the most probable label, 1-4
    tier        Good, Mid or Bad by CumPT with --beta
    probs       P(grade 1), P(grade 2), P(grade 3), P(grade 4)
    label_mass  probability that the reply begins with a label at all; near 0 the others mean nothing
    score       one number to sort by: the expected grade brought to 0..1, (sum of g * P(g) - 1) / 3
    outside     why the pair is outside of what the judge has learned, "" where it is not
    prompt_sha  version of the rubric: the hash of the prompt's wording (wording_sha256 in prompt.json), which the
                server sends as `rubric`
An input column that has one of these names is kept as input_NAME, unless an earlier scoring wrote it.
pred_grade and tier may differ: CumPT adds up P(4), P(3), ... until beta is reached, and serves that grade's tier, so
that probability on the other grades counts too.

--format, or the name of --out, decides what is written: jsonl or csv (these rows; each may end in .gz), or judgements
with pred_grade - 1 as rating, 0 to 3: trec (.qrels: `qid 0 docid rating`; .run: `qid Q0 docid rank score taosr1`),
quepid (`query,docid,rating`), elasticsearch (a _rank_eval body), opensearch (judgmentRatings). Those need an item_id.
--out - is the standard output, which then holds nothing else; --data - is the standard input, its format is found.
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

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a fresh checkout runs without being installed

from taosr1.data.flags import ReadFlags
from taosr1.data.predictions import without_prediction
from taosr1.data.sources import load_pairs
from taosr1.data.summary import say_data
from taosr1.engine import PLAIN_HELP
from taosr1.judge import ROWS_AT_A_TIME, Judge
from taosr1.judge_model import SERVING_DTYPE_HELP, SERVING_DTYPES
from taosr1.model.io.digest import model_digest
from taosr1.runtime.chunked_job import job_identity, run_in_chunks
from taosr1.runtime.cli import at_least, check, option, parse_config
from taosr1.runtime.distributed import local_device, this_rank
from taosr1.runtime.out_paths import out_problems, same_path
from taosr1.runtime.outputs import STANDARD, OutFlags, refuse_overwriting
from taosr1.runtime.signals import run_main
from taosr1.serving.deployed import (
    ANSWERS_FIRST,
    MODEL_HELP,
    TEMPERATURE_SCALING,
    chosen_temperature,
    open_judge,
)
from taosr1.serving.explain import WHY_THEY_DIFFER
from taosr1.serving.formats import FORMATS, ROW_FORMATS, check_ids, format_of, rated, write_judged, write_rows
from taosr1.serving.outside import LOW_MASS
from taosr1.serving.rows import columns_of, predicted_row
from taosr1.serving.scorer import Score
from taosr1.task.grades import GRADES, TIER_OF_GRADE, TIERS
from taosr1.task.judgement import Judgement
from taosr1.task.prompt_flags import PromptFlags, prompt_problems

Pair = tuple[dict, Judgement]  # a row as it is in the file, and as the judge reads it


@dataclass(frozen=True)
class Config(OutFlags, ReadFlags, PromptFlags):
    model: str = option("", MODEL_HELP)
    data: str = option("", "pairs to score: a .jsonl/.csv/.tsv[.gz] or .parquet file, synthetic:POOL, or - (stdin)")
    out: str = option("", "file to write: .jsonl, .csv, .run, .qrels (each also .gz), any with --format, or - (stdout)")
    format: str = option("", "what to write (none: by the name of --out)", ("", *FORMATS))
    index: str = option("products", "of --format elasticsearch: the index that holds the products")
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
            (not self.out, "--out is missing: the file to write, such as scored.jsonl, or - for the standard output"),
            (self.out not in ("", STANDARD) and same_path(self.out, self.data),
             f"--out {self.out} is --data: it would be overwritten"),
            (self.beta is not None and not 0 < self.beta <= 1,
             f"--beta is {self.beta}, expected more than 0 and at most 1"),
            *out_problems(self.out, required=False, standard=True),
            *prompt_problems(self),
            *at_least(self, limit=0, batch_tok=1),
        ])  # fmt: skip
        format_of(self.out, self.format)


def read_pairs(config: Config) -> list[Pair]:
    """Every row twice, because the input columns are written back unchanged.

    All rows are read and checked before the first is scored: a bad row in line 900,000 is reported now, not in an hour.
    """
    settings = {"seed": config.seed, "split": config.split, "limit": config.limit}
    return load_pairs(config.data, config, need_grade=False, **settings)


def count(totals: Counter, scores: Iterable[Score]) -> Iterator[Score]:
    """The scores; adds their grades, tiers and label mass to `totals`."""
    for score in scores:
        totals.update({score.grade: 1, score.tier: 1, "label_mass": score.label_mass, "rows": 1})
        totals["outside"] += bool(score.outside)
        totals["differ"] += TIER_OF_GRADE[score.grade] != score.tier
        yield score


def write(config: Config, pairs: list[Pair], scores: Iterable[Score], wording: str) -> None:
    """Write --out in its format."""
    form = format_of(config.out, config.format)
    if form not in ROW_FORMATS:
        write_judged(config.out, form, rated((row for _, row in pairs), scores, form), config.index)
        return
    kept, renamed = [], Counter()
    for row, judgement in pairs:
        row, names = without_prediction(row)
        renamed.update(names)
        kept.append((row, judgement))
    for name, rows in renamed.items():
        print(f"note: in {rows} rows the input's own {name!r} is kept as 'input_{name}'", file=sys.stderr)
    columns = columns_of(kept) if form == "csv" else ((), True)
    rows = (predicted_row(*pair, score, wording, flat=form == "csv") for pair, score in zip(kept, scores, strict=True))
    write_rows(config.out, form, rows, *columns)


def open_label_first_judge(config: Config) -> Judge:
    """Raises: ValueError for a judge whose first token is not its answer."""
    device = local_device(config.device, this_rank())
    settings = {"dtype": config.dtype, "device": device, "seed": config.seed, "plain": config.plain}
    name, model = open_judge(config.model, orders=ANSWERS_FIRST, asked=config, **settings)
    if model.prompt.order == "pre-cot":
        raise ValueError(
            f"--model {name} reasons before it answers (pre-cot), so one prefill does not give the grade. Read its "
            "replies with infer/explain.py or infer/sample.py, or use it as the teacher of a judge that answers first: "
            "train/label_pool.py, then train/sft.py --order post-cot"
        )
    served = {"beta": config.beta, "temperature": chosen_temperature(name, config.temperature_scaling)}
    return Judge.serving(name, model, **served, max_tokens_per_batch=config.batch_tok)


def main(argv: list[str] | None = None) -> dict[str, object]:
    """Returns the summary, or {} on a rank that leaves the output to another."""
    config = parse_config(Config, __doc__, argv)
    refuse_overwriting(config.out, config.overwrite)
    pairs = read_pairs(config)
    check_ids([judgement for _, judgement in pairs], format_of(config.out, config.format))
    judge = open_label_first_judge(config)
    say_data([judgement for _, judgement in pairs], judge.model)
    served = {"beta": judge.beta, "temperature": judge.temperature}

    def work(chunk: list[Pair], start: int) -> list[dict]:
        return [score.judged() for score in judge.score_judgements([judgement for _, judgement in chunk])]

    model, wording = judge.model, judge.model.prompt.wording_sha256
    facts = {"judge": model_digest(model.model, model.tokenizer, model.prompt), "prompt_wording": wording, **served}
    identity = job_identity("score", config, (row for row, _ in pairs), **facts)
    totals: Counter = Counter()
    stored = "" if config.out == STANDARD else config.out
    with run_in_chunks(
        stored, identity, pairs, ROWS_AT_A_TIME, work, "score", overwrite=config.overwrite
    ) as answers:
        if answers is None:
            return {}
        write(config, pairs, count(totals, (Score(**answer) for answer in answers)), wording)
    return report(config, judge, totals)


def report(config: Config, judge: Judge, totals: Counter) -> dict[str, object]:
    """Print the summary, beside --out - on stderr, and return it."""
    rows, tiers = totals["rows"], {tier: totals[tier] for tier in TIERS}
    mass, said_on = totals["label_mass"] / rows, sys.stderr if config.out == STANDARD else sys.stdout
    shown = ", ".join(f"{tier} {number}" for tier, number in tiers.items())
    print(f"{rows} pairs scored by {judge.name} -> {config.out}; {shown} (CumPT, beta {judge.beta:.4g})", file=said_on)
    if differ := totals["differ"]:
        print(f"in {differ} rows the most probable grade and CumPT's tier differ: {WHY_THEY_DIFFER}", file=said_on)
    if outside := totals["outside"]:
        print(
            f"warning: {outside} of {rows} pairs are outside of what this judge has learned (column 'outside' says "
            "why): their grades mean little. Train a judge on your own pairs (README, Your own pairs)",
            file=sys.stderr,
        )
    if mass < LOW_MASS:
        print(
            f"warning: mean label mass is {mass:.2g}: this model rarely answers with a label, so its probabilities "
            "mean little. Is it trained for this task (train/sft.py), with this prompt (prompt.json)?",
            file=sys.stderr,
        )
    grades = {grade: totals[grade] for grade in GRADES[::-1]}
    served = {"beta": judge.beta, "temperature": judge.temperature}
    return {"rows": rows, **served, "label_mass": mass, "tiers": tiers, "grades": grades}


if __name__ == "__main__":
    run_main(main, Config)
