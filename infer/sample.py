"""Sample several replies per pair and see how often one is right: pass@1 to pass@N, beside what guessing would reach.

    python infer/sample.py --data synthetic:dev --limit 200                # the newest finished run, 5 replies a pair
    python infer/sample.py --model runs/post-sft --data rows.jsonl --samples 8 --temperature 0.8 --out replies.jsonl

--out holds one reply a line: `row`, `query`, `title`, `query_id`, `item_id`, `grade` (the data's own), `sample`,
`reply`, `pred_grade` (null: it cannot be parsed), `decision`, `well_formed`, `logp` (of the whole reply, at the
sampling temperature, before top-k and top-p), `tokens`, `finished`, `prompt_sha`. Pairs without a grade are sampled
too; pass@n is over those that have one. --out - is the standard output, --data - the standard input.

pass@n is the unbiased estimate from all N replies. With four labels guessing reaches a lot, so compare it with the two
columns beside it: n labels drawn from the shares of the gold grades, and from the shares of this judge's own labels.

After an interruption the same command continues: finished replies are kept in OUT.parts. Under torchrun ranks share the
pairs, and the last to finish writes the output, each reply exactly once (see taosr1/runtime/chunked_job.py). Neither
changes a reply.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a fresh checkout runs without being installed

from taosr1.data.flags import ReadFlags
from taosr1.data.sources import load_rows
from taosr1.data.summary import say_data
from taosr1.engine import PLAIN_HELP
from taosr1.judge_model import SERVING_DTYPE_HELP, SERVING_DTYPES
from taosr1.learning.draw_order import keyed_generator, uniform_of_rows
from taosr1.model.io.digest import model_digest
from taosr1.runtime.chunked_job import job_identity, run_in_chunks
from taosr1.runtime.cli import at_least, check, option, parse_config
from taosr1.runtime.distributed import local_device, this_rank
from taosr1.runtime.jsonl import write_jsonl
from taosr1.runtime.out_paths import out_problems, same_path
from taosr1.runtime.outputs import STANDARD, OutFlags, refuse_overwriting
from taosr1.runtime.signals import run_main
from taosr1.sampling.passn import grade_prior, pass_curve, prior_pass_at_n
from taosr1.sampling.replies import SampledReply
from taosr1.serving.deployed import MODEL_HELP, open_judge
from taosr1.serving.samples import Sample, parsed, sample_replies
from taosr1.task.grades import GRADES
from taosr1.task.judgement import Judgement
from taosr1.task.prompt import PromptConfig
from taosr1.task.prompt_flags import PromptFlags, prompt_problems

PROMPTS_AT_A_TIME = 128


@dataclass(frozen=True)
class Config(OutFlags, ReadFlags, PromptFlags):
    model: str = option("", MODEL_HELP)
    data: str = option("synthetic:dev", "pairs to reply to: a .jsonl/.csv[.gz] or .parquet file, or synthetic:POOL")
    out: str = option("runs/replies.jsonl", "file for the replies, .jsonl or .jsonl.gz, or - (stdout)")
    samples: int = option(5, "replies per pair (N)")
    temperature: float = option(1.0, "below 1 probable tokens are drawn more often; 0 takes the most probable one")
    top_k: int = option(0, "draw among the k most probable tokens (0: all)")
    top_p: float = option(1.0, "draw among the most probable tokens that together reach this probability (1: all)")
    max_new_tokens: int = option(128, "longest reply")
    limit: int = option(0, "sample only for the first rows (0: all)")
    split: str = option("", "keep only the rows whose 'split' column says this (ESCI: train, test)")
    device: str = option("cpu", "torch device")
    dtype: str = option("float32", SERVING_DTYPE_HELP, SERVING_DTYPES)
    plain: bool = option(False, PLAIN_HELP)
    seed: int = option(0, "seed of sampling and of the embedded shop")

    def __post_init__(self) -> None:
        check([
            (self.out != STANDARD and not self.out.endswith((".jsonl", ".jsonl.gz")),
             f"--out is {self.out!r}, expected a name ending in .jsonl or .jsonl.gz, or - for the standard output"),
            (self.out != STANDARD and same_path(self.out, self.data),
             f"--out {self.out} is --data: it would be overwritten"),
            *out_problems(self.out, required=False, standard=True),
            *prompt_problems(self),
            *at_least(self, samples=1, temperature=0, top_k=0, max_new_tokens=1, limit=0),
            (self.temperature == 0 and self.samples > 1,
             "--temperature 0 gives --samples equal replies: raise it, or --samples 1"),
            (not 0 < self.top_p <= 1, f"--top-p is {self.top_p}, expected more than 0 and at most 1"),
        ])  # fmt: skip


@dataclass
class Tally:
    """Counts over all replies, made while they are written."""

    golds: list[int] = field(default_factory=list)  # of the graded pairs
    right: list[int] = field(default_factory=list)  # number of right replies of each graded pair
    grades: list[int | None] = field(default_factory=list)  # of every reply; None where it cannot be parsed
    malformed: int = 0
    cut: int = 0
    tokens: int = 0

    def add(self, gold: int | None, sample: int, reply: Sample) -> None:
        """Count reply number `sample` of a pair."""
        self.grades.append(reply.grade)
        self.malformed += not reply.well_formed
        self.cut += not reply.finished
        self.tokens += reply.tokens
        if gold is not None:
            if sample == 0:
                self.golds.append(gold)
                self.right.append(0)
            self.right[-1] += reply.grade == gold


def output_rows(
    rows: list[Judgement], replies: Iterable[SampledReply], samples: int, prompt: PromptConfig, tally: Tally
) -> Iterator[dict]:
    """The rows of the output file, reply after reply, pair after pair; counts them in `tally`."""
    places = ((number, sample) for number in range(len(rows)) for sample in range(samples))
    for (number, sample), sampled in zip(places, replies, strict=True):
        row, reply = rows[number], parsed(sampled, prompt.order)
        tally.add(row.grade, sample, reply)
        yield {
            "row": number, "query": row.query, "title": row.title, "query_id": row.query_id, "item_id": row.item_id,
            "grade": row.grade, "sample": sample, "reply": reply.text, "pred_grade": reply.grade,
            "decision": reply.decision_grade, "well_formed": reply.well_formed, "logp": round(reply.logp, 5),
            "tokens": reply.tokens, "finished": reply.finished, "prompt_sha": prompt.wording_sha256,
        }  # fmt: skip


def summary_of(tally: Tally, samples: int) -> dict:
    """pass@n beside two ways of guessing (None without a graded pair), and how many replies could be parsed."""
    replies = len(tally.grades)
    own = [tally.grades.count(grade) / replies for grade in GRADES]
    curve = None
    if tally.golds:
        gold = grade_prior(tally.golds)
        guess = {
            name: [prior_pass_at_n(prior, tally.golds, n) for n in range(1, samples + 1)]
            for name, prior in (("guess_gold_shares", gold), ("guess_own_shares", own))
        }
        curve = {"pass_at_n": pass_curve(tally.right, samples), **guess}
    return {
        "replies": replies,
        "graded_pairs": len(tally.golds),
        "own_shares": own,
        "unparsed": tally.grades.count(None),
        "malformed": tally.malformed,
        "cut": tally.cut,
        "tokens_per_reply": tally.tokens / replies,
        "curve": curve,
    }


def render(summary: dict) -> str:
    """The summary as text."""

    def share(count: int) -> str:
        return f"{count} ({100 * count / summary['replies']:.1f} %)"

    lines = [
        f"unparsable {share(summary['unparsed'])}, not in the asked form {share(summary['malformed'])}, "
        f"cut {share(summary['cut'])}, {summary['tokens_per_reply']:.1f} tokens a reply"
    ]
    if summary["curve"] is None:
        return "\n".join(lines + ["no pair has a grade: no pass@n"])
    lines.append(f"\nover {summary['graded_pairs']} graded pairs, x 100      guessing from the")
    lines.append("          this judge     grades' shares     judge's own shares")
    columns = (summary["curve"][name] for name in ("pass_at_n", "guess_gold_shares", "guess_own_shares"))
    for n, (value, gold, own) in enumerate(zip(*columns), start=1):
        lines.append(f"pass@{n:<4} {100 * value:10.1f} {100 * gold:18.1f} {100 * own:22.1f}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> dict:
    """Returns the summary, or {} on a rank that leaves the output to another."""
    config = parse_config(Config, __doc__, argv)
    refuse_overwriting(config.out, config.overwrite)
    limits = {"limit": config.limit}
    rows = load_rows(config.data, config, seed=config.seed, split=config.split, need_grade=False, **limits)
    settings = {"dtype": config.dtype, "device": local_device(config.device, this_rank()), "plain": config.plain}
    settings |= {"seed": config.seed, "decodes": True, "max_new_tokens": config.max_new_tokens}
    name, judge = open_judge(config.model, asked=config, **settings)
    say_data(rows, judge)
    drawn = {name: getattr(config, name) for name in ("samples", "max_new_tokens", "temperature", "top_k", "top_p")}

    def work(rows: list[Judgement], start: int) -> list[dict]:
        generators = [keyed_generator(config.seed, "sample", start + place) for place in range(len(rows))]
        uniform = uniform_of_rows(generators, config.samples, config.max_new_tokens)
        return [vars(reply) for reply in sample_replies(judge, rows, uniform=uniform, **drawn)]

    tally = Tally()
    digest = model_digest(judge.model, judge.tokenizer, judge.prompt)
    identity = job_identity("sample", config, rows, judge=digest, prompt_wording=judge.prompt.wording_sha256)
    stored = "" if config.out == STANDARD else config.out
    with run_in_chunks(
        stored, identity, rows, PROMPTS_AT_A_TIME, work, "sample", overwrite=config.overwrite
    ) as answers:
        if answers is None:
            return {}
        replies = (SampledReply(**answer) for answer in answers)
        count = write_jsonl(config.out, output_rows(rows, replies, config.samples, judge.prompt, tally))
    summary = {"model": name, "rows": len(rows), **summary_of(tally, config.samples)}
    said_on = sys.stderr if config.out == STANDARD else sys.stdout
    print(f"{count} replies of {name} to {len(rows)} pairs -> {config.out}: " + render(summary), file=said_on)
    return summary


if __name__ == "__main__":
    run_main(main, Config)
