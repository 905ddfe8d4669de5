"""Grade a pool without labels: the thinker answers greedily, and the student is trained on its answers.

    python train/label_pool.py                                       # runs/thinker-grpo grades the unlabelled pool
    python train/label_pool.py --model runs/thinker --data pairs.jsonl --out runs/pool.jsonl --keep-frac 0.8
    python train/label_pool.py --data synthetic:labelled --only-right --samples 4 --out runs/own-reasons.jsonl

Writes judgements (JSONL) with `grade`, `cot` (where the judge writes one), `confidence`, the log-probability of the
whole reply, and `labelled_by`, the judge: such rows may be trained on, and every script refuses to measure by them. A
grade in the input is kept as `gold_grade` and not used, except with `--only-right`: then the judge explains graded
rows, and only replies with the gold grade are kept (its own reasons become training data, STaR 2203.14465). Rows whose
reply cannot be parsed are left out and counted.

After an interruption the same command continues: graded rows are kept in OUT.parts. Under torchrun ranks share the
pool, and the last to finish writes the output, each row exactly once (see taosr1/runtime/chunked_job.py).

Not in the paper: its online model is trained like the thinker. Ours, which answers first, is trained on the thinker's
answers.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a fresh checkout runs without being installed

import torch

from taosr1.data.flags import ReadFlags
from taosr1.data.gold import GOLD_GRADE, LABELLED_BY
from taosr1.data.judgements import judgement_to_dict
from taosr1.data.sources import load_rows
from taosr1.data.summary import say_data
from taosr1.engine import PLAIN_HELP
from taosr1.judge_model import BUNDLED, DTYPES, JudgeModel, load_judge
from taosr1.learning.draw_order import keyed_generator, uniform_of_rows
from taosr1.learning.trainee import default_or_bundled
from taosr1.model.io.digest import model_digest
from taosr1.runtime.chunked_job import NothingToWriteError, job_identity, run_in_chunks
from taosr1.runtime.cli import at_least, check, option, parse_config
from taosr1.runtime.distributed import local_device, this_rank
from taosr1.runtime.jsonl import write_jsonl
from taosr1.runtime.out_paths import out_problems
from taosr1.runtime.outputs import OutFlags, refuse_overwriting
from taosr1.runtime.signals import run_main
from taosr1.sampling.replies import sampled_replies
from taosr1.task.grades import GRADES
from taosr1.task.judgement import Judgement
from taosr1.task.prompt import parse_reply
from taosr1.task.prompt_flags import PromptFlags, prompt_problems

ROWS_AT_A_TIME = 4096


@dataclass(frozen=True)
class Config(OutFlags, ReadFlags, PromptFlags):
    model: str = option(
        "runs/thinker-grpo", "folder of the judge that grades; where the default is missing, the bundled thinker"
    )
    data: str = option("synthetic:unlabelled", "rows to grade: a file, synthetic:POOL or catalogue:FILE:POOL")
    out: str = option("runs/pool.jsonl", "graded rows")
    keep_frac: float = option(1.0, "keep this share of the rows, the most confident ones")
    only_right: bool = option(False, "the rows have a grade: keep only replies that give it")
    samples: int = option(1, "with --only-right, replies sampled for a row whose greedy reply is wrong (1: none)")
    max_new_tokens: int = option(64, "longest reply")
    limit: int = option(0, "grade only the first rows (0: all)")
    split: str = option("", "keep only the rows whose 'split' column says this")
    device: str = option("cpu", "torch device")
    dtype: str = option("float32", "type of the weights", tuple(DTYPES))
    plain: bool = option(False, PLAIN_HELP)
    seed: int = option(0, "seed of the embedded shop")

    def __post_init__(self) -> None:
        check([
            (not 0 < self.keep_frac <= 1, f"--keep-frac is {self.keep_frac}, expected more than 0 and at most 1"),
            (not re.search(r"\.(jsonl|ndjson|json)(\.gz)?$", self.out.lower()),
             f"--out is {self.out!r}: graded rows are written as JSON Lines, expected a name ending in .jsonl or "
             ".jsonl.gz"),
            *out_problems(self.out, required=False),
            *prompt_problems(self),
            *at_least(self, max_new_tokens=1, limit=0),
        ])  # fmt: skip


def grade_rows(judge: JudgeModel, rows: list[Judgement], start: int, config: Config) -> list[Judgement]:
    """The rows with the judge's grade, reasons and confidence, without those it could not answer (or got wrong).

    start: number of the first row. Sampled replies to a row depend on the seed and its number only.
    """
    if judge.prompt.order == "label":  # nothing to decode: the label is one token
        scored = judge.engine.label_probabilities(judge.model, judge.tokenizer, judge.prompts(rows))
        best, column = scored.probs.max(dim=1)
        answers = zip(rows, column.tolist(), (best * scored.label_mass).log().tolist())
        graded = [_graded(row, GRADES[index], "", confidence, config) for row, index, confidence in answers]
        return [row for row in graded if not config.only_right or row.grade == row.extra["gold_grade"]]
    graded = _decoded(judge, rows, 1, 0.0, config)
    missing = [place for place, row in enumerate(graded) if row is None]
    if missing and config.only_right and config.samples > 1:
        generators = [keyed_generator(config.seed, "pool", start + place) for place in missing]
        uniform = uniform_of_rows(generators, config.samples, config.max_new_tokens)
        found = _decoded(judge, [rows[place] for place in missing], config.samples, 1.0, config, uniform)
        for place, row in zip(missing, found):
            graded[place] = row
    return [row for row in graded if row is not None]


def _decoded(
    judge: JudgeModel,
    rows: list[Judgement],
    samples: int,
    temperature: float,
    config: Config,
    uniform: torch.Tensor | None = None,
) -> list[Judgement | None]:
    """Each row with its most probable usable reply: well formed and, with --only-right, of the gold grade; or None."""
    rollouts = judge.engine.generate(
        judge.model, judge.prompts(rows), samples=samples, max_new_tokens=config.max_new_tokens,
        temperature=temperature, stop_ids=judge.tokenizer.eos_ids, uniform=uniform,
    )  # fmt: skip
    replies = sampled_replies(rollouts, judge.reply_text)
    graded: list[Judgement | None] = []
    for index, row in enumerate(rows):
        found = []
        for sampled in replies[index * samples : (index + 1) * samples]:
            reply = parse_reply(sampled.text, judge.prompt.order)
            if reply.well_formed and (not config.only_right or reply.grade == row.grade == reply.decision):
                found.append((sampled.logp, reply.grade, sampled.text))
        if found:
            value, grade, text = max(found)
            cot = text.partition("\n")[2] if judge.prompt.order == "post-cot" else text
            graded.append(_graded(row, grade, cot, value, config))
        else:
            graded.append(None)
    return graded


def _graded(row: Judgement, grade: int, cot: str, confidence: float, config: Config) -> Judgement:
    """The row with a pseudo-label; a grade of people that it came with becomes `gold_grade`."""
    gold = {} if row.grade is None or row.extra.get(LABELLED_BY) else {GOLD_GRADE: row.grade}
    about = {"confidence": round(confidence, 5), LABELLED_BY: config.model}
    return replace(row, grade=grade, cot=cot, extra={**row.extra, **gold, **about})


def least_confidence(graded: Iterable[dict], keep_frac: float) -> float:
    """The lowest confidence among the most confident share of the rows."""
    if keep_frac == 1:
        return -torch.inf
    values = [row["confidence"] for row in graded]
    return float(torch.tensor(values, dtype=torch.float64).quantile(1 - keep_frac))


def kept_rows(graded: Iterable[dict], limit: float, grades: Counter) -> Iterator[dict]:
    """The graded rows with at least this confidence; counts their grades in `grades`."""
    for row in graded:
        if row["confidence"] >= limit:
            grades[row["grade"]] += 1
            yield row


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Returns the number of rows and of graded rows, or {} on a rank that leaves the output to another."""
    config = parse_config(Config, __doc__, argv)
    config = replace(config, model=default_or_bundled(config.model, Config.model, BUNDLED))
    refuse_overwriting(config.out, config.overwrite)
    device = local_device(config.device, this_rank())
    settings = {"dtype": config.dtype, "device": device, "plain": config.plain}
    judge = load_judge(config.model, max_new_tokens=config.max_new_tokens, asked=config, **settings)
    judge.engine.prepack(judge.model, decodes=True)
    limits = {"split": config.split, "limit": config.limit}
    needs = {"need_grade": config.only_right, "need_gold": config.only_right}
    rows = load_rows(config.data, config, seed=config.seed, **needs, **limits)
    say_data(rows, judge)
    digest = model_digest(judge.model, judge.tokenizer, judge.prompt)
    identity = job_identity("label_pool", config, rows, judge=digest, prompt_wording=judge.prompt.wording_sha256)

    def work(rows: list[Judgement], start: int) -> list[dict]:
        return [judgement_to_dict(row) for row in grade_rows(judge, rows, start, config)]

    grades: Counter = Counter()
    more = {"overwrite": config.overwrite}
    with run_in_chunks(config.out, identity, rows, ROWS_AT_A_TIME, work, "grade the pool", **more) as graded:
        if graded is None:
            return {}
        if not any(graded):
            unread = f"not one of {len(rows)} replies {'was right' if config.only_right else 'could be parsed'}"
            way_out = f"check --model, or raise --max-new-tokens {config.max_new_tokens} if they are longer"
            raise NothingToWriteError(f"--model {config.model}: {unread}; {way_out}")
        count = write_jsonl(config.out, kept_rows(graded, least_confidence(graded, config.keep_frac), grades))
    shares = ", ".join(f"{grade}: {100 * grades[grade] / count:.1f} %" for grade in GRADES[::-1])
    print(f"{count} of {len(rows)} rows graded -> {config.out}; shares {shares}")
    return {"rows": len(rows), "graded": count}


if __name__ == "__main__":
    run_main(main, Config)
