"""Stage 2a, pass@N mining: sample N replies per graded pair and make preference pairs of right and wrong ones.

    python train/mine_pairs.py                                       # the post-CoT SFT model on the embedded world
    python train/mine_pairs.py --model runs/mine --data rows.jsonl --samples 8 --out runs/mine-pairs.jsonl

Some replies right, some wrong: its own right reply is chosen over its own wrong one (self-correction). None right: the
teacher's reply is chosen, where the row has a chain of thought (oracle guidance). The output, JSONL with `prompt`, `chosen`,
`rejected` and `source` (self | oracle), holds the sampled token ids beside the text, and train/dpo.py trains on those.
FILE.counts.json beside it says how often each outcome came up, how many replies were cut or could not be read, how many pairs came up
again (each is kept once), and pass@1..N.

Deviations from the paper:
1. `--balance flow` (the default) keeps as many pairs that prefer grade a over b as pairs that prefer b over a: without
   it DPO moves the label prior instead of the judgement.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a fresh checkout runs without being installed

from taosr1.config import at_least, check, option, parse_config, progress, run_main
from taosr1.judge import Judge, load_judge
from taosr1.learning.selection import (
    TEACHER,
    balance_label_flow,
    balanced_order,
    keyed_generator,
    mine_pairs,
    mining_outcome,
)
from taosr1.model.files import write_json
from taosr1.sampling.passn import grade_prior, pass_curve, prior_pass_at_n
from taosr1.sampling.sampler import generate
from taosr1.task.judgements import Judgement
from taosr1.task.prompt import encode_reply, label_of_cot, parse_reply, reply_text
from taosr1.task.rows import write_jsonl
from taosr1.task.sources import load_rows

PROMPTS_AT_A_TIME = 128


@dataclass(frozen=True)
class Config:
    model: str = option("runs/post-sft", "run folder or Hugging Face folder of the model that is to improve")
    data: str = option("world:reasoned,world:labelled", "graded rows to sample on: files or world:POOL, separated by commas")
    out: str = option("runs/post-pairs.jsonl", "preference pairs")
    prompts: int = option(2400, "rows sampled, drawn by --grade-power (0: every row once)")
    grade_power: float = option(0.5, "grades are drawn by frequency to this power: 1 as in the data, 0 equal")
    samples: int = option(5, "replies per row (N)")
    temperature: float = option(1.0, "sampling temperature")
    max_new_tokens: int = option(64, "longest reply")
    pairs_per_prompt: int = option(1, "preference pairs made of one row's replies, at most")
    balance: str = option("flow", "flow: as many a-over-b as b-over-a pairs of every two grades; none: as they come", ("flow", "none"))
    split: str = option("", "keep only the rows whose 'split' column says this (ESCI: train)")
    max_bad_rows: int = option(0, "unreadable rows to skip (each is named) before giving up")
    device: str = option("cpu", "torch device")
    dtype: str = option("float32", "type of the weights", ("float32", "bfloat16", "float16"))
    seed: int = option(0, "seed of sampling, choice of rows and the embedded world")

    def __post_init__(self) -> None:
        check([
            *at_least(self, samples=2, prompts=0, max_new_tokens=1, pairs_per_prompt=1),
            (not self.temperature > 0, f"--temperature is {self.temperature}, expected more than 0: greedy replies are all alike"),
            (not 0 <= self.grade_power <= 1, f"--grade-power is {self.grade_power}, expected 0 to 1"),
        ])  # fmt: skip


def mine(judge: Judge, rows: list[Judgement], config: Config) -> tuple[list[dict], dict]:
    """All pairs before balancing, and counters of every outcome."""
    pairs: dict[tuple, dict] = {}  # by what they say: a row that is drawn twice may give a pair twice
    outcomes: Counter[str] = Counter()
    replies_seen: Counter[str] = Counter()
    found_pairs = 0
    right_counts: list[int] = []
    order = judge.prompt.order
    for start in progress(iterable=range(0, len(rows), PROMPTS_AT_A_TIME), desc="mine pairs", unit="batch"):
        part = rows[start : start + PROMPTS_AT_A_TIME]
        generator = keyed_generator(config.seed, "mine", start)
        prompts = judge.prompts(part)
        rollouts = generate(
            judge.model, prompts, samples=config.samples, max_new_tokens=config.max_new_tokens, temperature=config.temperature,
            stop_ids=judge.tokenizer.eos_ids, generator=generator,
        )  # fmt: skip
        replies, finished = rollouts.replies(), rollouts.finished.tolist()
        for index, row in enumerate(part):
            first = index * config.samples
            own, ended = replies[first : first + config.samples], finished[first : first + config.samples]
            texts = [judge.reply_text(ids) for ids in own]
            grades = [parse_reply(text, order).grade for text in texts]
            teacher_grade = row.grade if order == "label" else label_of_cot(row.cot)
            replies_seen.update(sampled=len(own), cut=ended.count(False), unreadable=grades.count(None))
            right_counts.append(sum(grade == row.grade for grade in grades))
            # A right reply that was cut before its end is never chosen: it would teach not to stop.
            usable = [place for place in range(config.samples) if ended[place] or grades[place] != row.grade] or list(range(config.samples))
            usable_grades = [grades[place] for place in usable]
            has_teacher = teacher_grade == row.grade
            outcome = mining_outcome(usable_grades, row.grade, has_teacher=has_teacher)
            if outcome == "no teacher" and row.cot:
                outcome = "teacher cannot be read" if teacher_grade is None else "teacher contradicts the gold grade"
            outcomes[outcome] += 1
            found = mine_pairs(
                usable_grades, row.grade, [texts[place] for place in usable], has_teacher=has_teacher,
                pairs_per_prompt=config.pairs_per_prompt, generator=generator,
            )  # fmt: skip
            for pair in found:
                rejected = usable[pair.rejected]
                if pair.chosen == TEACHER:
                    text = reply_text(order, row.grade, row.cot)
                    chosen = encode_reply(judge.tokenizer, text)
                else:
                    text, chosen = texts[usable[pair.chosen]], own[usable[pair.chosen]]
                found_pairs += 1
                pairs.setdefault((tuple(prompts[index]), text, texts[rejected]), {
                    "prompt": judge.tokenizer.decode(prompts[index]), "chosen": text, "rejected": texts[rejected],
                    "source": pair.source, "gold": row.grade, "rejected_grade": grades[rejected], "query_id": row.query_id,
                    "item_id": row.item_id, "prompt_ids": prompts[index], "chosen_ids": chosen, "rejected_ids": own[rejected],
                })  # fmt: skip
    gold = [row.grade for row in rows]
    prior = grade_prior(gold)
    curve = pass_curve(right_counts, config.samples)
    guess = [prior_pass_at_n(prior, gold, n + 1) for n in range(config.samples)]
    return list(pairs.values()), {
        "rows": len(rows), "outcomes": dict(outcomes), "replies": dict(replies_seen), "duplicate_pairs": found_pairs - len(pairs),
        "pass_at_n": curve, "prior_pass_at_n": guess,
    }  # fmt: skip


def main(argv: list[str] | None = None) -> dict:
    config = parse_config(Config, __doc__, argv)
    judge = load_judge(config.model, dtype=config.dtype, device=config.device)
    rows = load_rows(config.data, seed=config.seed, split=config.split, max_bad_rows=config.max_bad_rows, need_grade=True)
    if config.prompts:
        drawn = balanced_order([row.grade for row in rows], config.seed, 0, min(config.prompts, len(rows)), power=config.grade_power)
        rows = [rows[index] for index in drawn]
    pairs, counts = mine(judge, rows, config)
    mined = len(pairs)
    if config.balance == "flow":
        flows = [(pair["gold"], pair["rejected_grade"]) for pair in pairs]
        pairs = [pairs[index] for index in balance_label_flow(flows, keyed_generator(config.seed, "flow"))]
    if not pairs:
        raise ValueError(f"no preference pairs: {mined} mined, 0 left after --balance {config.balance}; outcomes {counts['outcomes']}")
    counts |= {
        "mined": mined,
        "kept": len(pairs),
        "sources": dict(Counter(pair["source"] for pair in pairs)),
        "flow": dict(Counter(f"{pair['gold']} over {pair['rejected_grade']}" for pair in pairs)),
        "config": asdict(config),
    }
    write_jsonl(config.out, pairs)
    write_json(Path(config.out + ".counts.json"), counts)
    print(f"{len(pairs)} pairs ({counts['sources']}) of {mined} mined from {len(rows)} rows -> {config.out}")
    for n, (value, guess) in enumerate(zip(counts["pass_at_n"], counts["prior_pass_at_n"]), start=1):
        print(f"pass@{n} {100 * value:5.1f}   guessing from the grade shares {100 * guess:5.1f}")
    return counts


if __name__ == "__main__":
    run_main(main)
