"""Stage 2a, pass@N mining: sample N replies per graded pair and make preference pairs of right and wrong ones.

    python train/mine_pairs.py                                       # the post-CoT SFT model on the embedded shop
    python train/mine_pairs.py --model runs/mine --data rows.jsonl --samples 8 --out runs/mine-pairs.jsonl

Some replies right, some wrong: the model's right reply is chosen over its wrong one (self-correction). None right: the
teacher's reply is chosen, where the row has a chain of thought (oracle guidance). The output, JSONL with `prompt`,
`chosen`, `rejected` and `source` (self | oracle), holds the sampled token ids beside the text, and train/dpo.py trains
on the ids. FILE.counts.json beside it counts the outcomes, the replies that were cut or could not be parsed, and the
repeated pairs (each is kept once), and holds pass@1..N.

After an interruption the same command continues: mined rows are kept in FILE.parts. Under torchrun ranks share the
rows, and the last to finish writes the output (see taosr1/runtime/chunked_job.py); pairs are balanced and counted over
all rows.

Deviations from the paper:
1. `--balance flow` (the default) keeps as many pairs that prefer grade a over b as pairs that prefer b over a: without
   it DPO changes the shares of the labels instead of the judgement.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a fresh checkout runs without being installed

import torch

from taosr1.data.flags import ReadFlags
from taosr1.data.sources import load_rows
from taosr1.data.summary import say_data
from taosr1.engine import PLAIN_HELP
from taosr1.judge_model import BUNDLED_STUDENT, DTYPES, JudgeModel, load_judge
from taosr1.learning.draw_order import balanced_order, keyed_generator, uniform_of_rows
from taosr1.learning.pairs import TEACHER, balance_label_flow, mine_pairs, mining_outcome
from taosr1.learning.trainee import default_or_bundled
from taosr1.model.io.digest import model_digest
from taosr1.runtime.chunked_job import NothingToWriteError, job_identity, run_in_chunks
from taosr1.runtime.cli import at_least, check, option, parse_config
from taosr1.runtime.distributed import local_device, this_rank
from taosr1.runtime.files import write_json
from taosr1.runtime.jsonl import write_jsonl
from taosr1.runtime.out_paths import out_problems
from taosr1.runtime.outputs import OutFlags, refuse_overwriting
from taosr1.runtime.signals import run_main
from taosr1.sampling.passn import grade_prior, pass_curve, prior_pass_at_n
from taosr1.sampling.replies import SampledReply, sampled_replies
from taosr1.task.judgement import Judgement
from taosr1.task.prompt import encode_reply, label_of_cot, parse_reply, reply_text
from taosr1.task.prompt_flags import PromptFlags, prompt_problems

PROMPTS_AT_A_TIME = 128


@dataclass(frozen=True)
class Config(OutFlags, ReadFlags, PromptFlags):
    model: str = option(
        "runs/post-sft", "folder of the model that is to improve; where the default is missing, the bundled student"
    )
    data: str = option(
        "synthetic:reasoned,synthetic:labelled", "rows to sample on: files, synthetic:POOL or catalogue:FILE:POOL"
    )
    out: str = option("runs/post-pairs.jsonl", "preference pairs")
    prompts: int = option(2400, "rows sampled, drawn by --grade-power (0: every row once)")
    grade_power: float = option(0.5, "grades are drawn by frequency to this power: 1 as in the data, 0 equal")
    samples: int = option(5, "replies per row (N)")
    temperature: float = option(1.0, "sampling temperature")
    max_new_tokens: int = option(64, "longest reply")
    pairs_per_prompt: int = option(1, "preference pairs made of one row's replies, at most")
    source: str = option(
        "both", "pairs to keep: self (self-correction), oracle (oracle guidance), or both", ("both", "self", "oracle")
    )
    balance: str = option(
        "flow", "flow: as many a-over-b as b-over-a pairs of every two grades; none: keep all pairs", ("flow", "none")
    )
    split: str = option("", "keep only the rows whose 'split' column says this (ESCI: train)")
    device: str = option("cpu", "torch device")
    dtype: str = option("float32", "type of the weights", tuple(DTYPES))
    plain: bool = option(False, PLAIN_HELP)
    seed: int = option(0, "seed of sampling, choice of rows and the embedded shop")

    def __post_init__(self) -> None:
        check([
            *out_problems(self.out),
            *prompt_problems(self),
            *at_least(self, samples=2, prompts=0, max_new_tokens=1, pairs_per_prompt=1),
            (not self.temperature > 0,
             f"--temperature is {self.temperature}, expected more than 0: greedy replies are all equal"),
            (not 0 <= self.grade_power <= 1, f"--grade-power is {self.grade_power}, expected 0 to 1"),
        ])  # fmt: skip


def mine_rows(judge: JudgeModel, rows: list[Judgement], start: int, config: Config) -> list[dict]:
    """`mine_row` for a chunk of rows; the replies to a row depend on the seed and its number, from `start`, only."""
    prompts = judge.prompts(rows)
    generators = [keyed_generator(config.seed, "mine", start + place) for place in range(len(rows))]
    uniform = uniform_of_rows(generators, config.samples, config.max_new_tokens)
    rollouts = judge.engine.generate(
        judge.model, prompts, samples=config.samples, max_new_tokens=config.max_new_tokens,
        temperature=config.temperature, stop_ids=judge.tokenizer.eos_ids, uniform=uniform,
    )  # fmt: skip
    replies = sampled_replies(rollouts, judge.reply_text)
    groups = [replies[first : first + config.samples] for first in range(0, len(replies), config.samples)]
    of_rows = zip(rows, prompts, groups, generators)
    return [mine_row(judge, row, prompt, group, config, generator) for row, prompt, group, generator in of_rows]


def mine_row(
    judge: JudgeModel,
    row: Judgement,
    prompt: list[int],
    replies: list[SampledReply],
    config: Config,
    generator: torch.Generator,
) -> dict:
    """One row's outcome, its preference pairs, and its numbers of right, cut and unreadable replies."""
    order = judge.prompt.order
    graded = [(reply, parse_reply(reply.text, order).grade) for reply in replies]
    # A right reply that was cut before its end is never chosen: it would teach not to stop.
    usable = [(reply, grade) for reply, grade in graded if reply.finished or grade != row.grade] or graded
    usable_grades = [grade for _, grade in usable]
    teacher_grade = row.grade if order == "label" else label_of_cot(row.cot)
    has_teacher = teacher_grade == row.grade
    found = mine_pairs(
        usable_grades, row.grade, [reply.text for reply, _ in usable], has_teacher=has_teacher,
        pairs_per_prompt=config.pairs_per_prompt, generator=generator,
    )  # fmt: skip
    pairs = []
    for pair in found:
        chosen = teacher_reply(judge, row) if pair.chosen == TEACHER else usable[pair.chosen][0]
        rejected, rejected_grade = usable[pair.rejected]
        pairs.append({
            "prompt": judge.tokenizer.decode(prompt), "chosen": chosen.text, "rejected": rejected.text,
            "source": pair.source, "gold": row.grade, "rejected_grade": rejected_grade, "query_id": row.query_id,
            "item_id": row.item_id, "prompt_ids": prompt, "chosen_ids": chosen.ids, "rejected_ids": rejected.ids,
        })  # fmt: skip
    outcome = mining_outcome(usable_grades, row.grade, has_teacher=has_teacher)
    if outcome == "no teacher" and row.cot:
        outcome = "teacher cannot be read" if teacher_grade is None else "teacher contradicts the gold grade"
    grades = [grade for _, grade in graded]
    cut = sum(not reply.finished for reply in replies)
    counts = {"sampled": len(replies), "cut": cut, "unreadable": grades.count(None)}
    return {"outcome": outcome, "replies": counts, "right": grades.count(row.grade), "pairs": pairs}


def teacher_reply(judge: JudgeModel, row: Judgement) -> SampledReply:
    """The reply made of the row's own grade and chain of thought."""
    text = reply_text(judge.prompt.order, row.grade, row.cot)
    return SampledReply("teacher", text, encode_reply(judge.tokenizer, text))


def merge_rows(rows: list[Judgement], mined: Iterable[dict], samples: int) -> tuple[list[dict], dict]:
    """All pairs before balancing, each once, and counts over all rows. mined: for each row what `mine_row` returned."""
    pairs: dict[tuple, dict] = {}  # keyed by their text: a row that is drawn twice may give a pair twice
    outcomes: Counter[str] = Counter()
    replies: Counter[str] = Counter()
    found_pairs = 0
    right_counts: list[int] = []
    for _, found in zip(rows, mined, strict=True):
        outcomes[found["outcome"]] += 1
        replies.update(found["replies"])
        right_counts.append(found["right"])
        found_pairs += len(found["pairs"])
        for pair in found["pairs"]:
            pairs.setdefault((tuple(pair["prompt_ids"]), pair["chosen"], pair["rejected"]), pair)
    gold = [row.grade for row in rows]
    prior = grade_prior(gold)
    curve = pass_curve(right_counts, samples)
    guess = [prior_pass_at_n(prior, gold, n + 1) for n in range(samples)]
    return list(pairs.values()), {
        "rows": len(rows), "outcomes": dict(outcomes), "replies": dict(replies),
        "duplicate_pairs": found_pairs - len(pairs), "pass_at_n": curve, "prior_pass_at_n": guess,
    }  # fmt: skip


def balanced(pairs: list[dict], config: Config) -> list[dict]:
    """The pairs that --source and --balance keep."""
    pairs = [pair for pair in pairs if config.source in ("both", pair["source"])]
    if config.balance == "none":
        return pairs
    flows = [(pair["gold"], pair["rejected_grade"]) for pair in pairs]
    return [pairs[index] for index in balance_label_flow(flows, keyed_generator(config.seed, "flow"))]


def way_out_of(counts: dict, config: Config) -> str:
    """What to do where no pair is left."""
    replies = counts["replies"]
    if replies["cut"] > replies["sampled"] / 2:
        return f"most replies were cut: raise --max-new-tokens {config.max_new_tokens}"
    if replies["unreadable"] > replies["sampled"] / 2:
        return "most replies have no grade that can be read: train/sft.py teaches their form first"
    keep = "keep all pairs with --source both --balance none"
    return f"give other rows with --data, raise --samples or --temperature, or {keep}"


def main(argv: list[str] | None = None) -> dict:
    """Returns the counts, or {} on a rank that leaves the output to another."""
    config = parse_config(Config, __doc__, argv)
    config = replace(config, model=default_or_bundled(config.model, Config.model, BUNDLED_STUDENT))
    refuse_overwriting(config.out, config.overwrite)
    device = local_device(config.device, this_rank())
    settings = {"dtype": config.dtype, "device": device, "plain": config.plain}
    judge = load_judge(config.model, max_new_tokens=config.max_new_tokens, asked=config, **settings)
    judge.engine.prepack(judge.model, decodes=True)
    settings = {"seed": config.seed, "split": config.split}
    rows = load_rows(config.data, config, need_grade=True, **settings)
    say_data(rows, judge)
    if config.prompts:
        grades, count = [row.grade for row in rows], min(config.prompts, len(rows))
        drawn = balanced_order(grades, config.seed, 0, count, power=config.grade_power)
        rows = [rows[index] for index in drawn]
    digest = model_digest(judge.model, judge.tokenizer, judge.prompt)
    identity = job_identity("mine_pairs", config, rows, judge=digest, prompt_wording=judge.prompt.wording_sha256)

    def work(rows: list[Judgement], start: int) -> list[dict]:
        return mine_rows(judge, rows, start, config)

    more = {"overwrite": config.overwrite}
    with run_in_chunks(config.out, identity, rows, PROMPTS_AT_A_TIME, work, "mine pairs", **more) as found:
        if found is None:
            return {}
        mined, counts = merge_rows(rows, found, config.samples)
        pairs = balanced(mined, config)
        if not pairs:
            raise NothingToWriteError(
                f"no preference pairs: {len(mined)} mined, 0 left after --source {config.source} --balance "
                f"{config.balance}; outcomes {counts['outcomes']}, replies {counts['replies']}; "
                f"{way_out_of(counts, config)}"
            )
        counts |= {
            "mined": len(mined),
            "kept": len(pairs),
            "sources": dict(Counter(pair["source"] for pair in pairs)),
            "flow": dict(Counter(f"{pair['gold']} over {pair['rejected_grade']}" for pair in pairs)),
            "config": asdict(config),
        }
        write_jsonl(config.out, pairs)
        write_json(Path(config.out + ".counts.json"), counts)
    print(f"{len(pairs)} pairs ({counts['sources']}) of {len(mined)} mined from {len(rows)} rows -> {config.out}")
    for n, (value, guess) in enumerate(zip(counts["pass_at_n"], counts["prior_pass_at_n"]), start=1):
        print(f"pass@{n} {100 * value:5.1f}   guessing from the grade shares {100 * guess:5.1f}")
    return counts


if __name__ == "__main__":
    run_main(main, Config)
