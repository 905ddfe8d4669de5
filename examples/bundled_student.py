"""Make the bundled student, taosr1/bundled/student, and measure how well it knows what it does not know.

    python examples/bundled_student.py                                  # about 15 minutes on two cores
    python examples/bundled_student.py --esci esci_us.jsonl --out student --runs runs/bundled

The recipe is our path in examples/quickstart.py (thinker, GRPO, 40,000 pairs graded by it, student), with eight times
the steps in which the student learns to explain. Temperature and beta are fitted on the shop's dev pairs; everything
that serving needs is then written as one folder, with the list of words that occurred in training
(taosr1/serving/outside.py).

Measured: macro-F1 on the shop's test pairs, and the share of pairs called outside of the judge's world, on test pairs
(each is an error) and on ESCI's rows (each that is missed is one). Label mass and entropy are measured beside them.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a fresh checkout runs without being installed

import numpy as np

from examples.quickstart import MUON, REASONED, Plan
from examples.runner import make_all
from infer import merge
from taosr1.data.sources import load_rows
from taosr1.judge_model import JudgeModel, fast_dtype, load_judge
from taosr1.runtime.cli import option, parse_config
from taosr1.runtime.signals import run_main
from taosr1.serving.outside import World, known_words
from taosr1.serving.scorer import score_prompts
from taosr1.task.judgement import Judgement

POOLS = ("reasoned", "labelled", "unlabelled")  # what the student and its teacher were trained on
NOT_NEEDED = ("test label-12k", "test student-label", "student", "test student")  # of the recipe in the quickstart
STUDENT = "student-long"


@dataclass(frozen=True)
class Config:
    out: str = option("taosr1/bundled/student", "folder to write; it must not exist")
    runs: str = option("runs/bundled", "folder of the runs that lead to the student; finished steps are not repeated")
    esci: str = option("", "ESCI rows, which no judge of the shop can know, to measure misses on")
    jobs: int = option(2, "steps that run side by side, one thread each")
    quick: bool = option(False, "a few steps of everything: shows that it works, not how well")
    seed: int = option(0, "seed of the recipe")


def make(config: Config) -> JudgeModel:
    """Train where that is not done yet, and write the folder."""
    folder = Path(config.runs).resolve()
    plan = Plan(folder, config.seed, config.quick, fast_dtype())
    plan.ours()
    explained = {"order": "post-cot", "label_weight": 8, "data": f"{plan.path('pool.jsonl')},{REASONED}"}
    plan.sft(STUDENT, "student-label", start="student-label", steps=1600, **explained, **MUON)
    make_all([step for step in plan.steps if step.name not in NOT_NEEDED], config.jobs)
    merge.main(["--model", str(folder / STUDENT), "--out", config.out])
    judge = load_judge(config.out)
    rows = [row for pool in POOLS for row in load_rows(f"synthetic:{pool}", seed=config.seed)]
    known_words(rows, judge.prompt.fields).save(config.out)
    return judge


def signals(judge: JudgeModel, world: World, rows: list[Judgement]) -> dict[str, np.ndarray]:
    """(N,) each: whether the words say that a pair is outside; its label mass; the entropy of its probabilities."""
    scores = score_prompts(judge, judge.prompts(rows))
    probs = np.array([score.probs for score in scores])
    return {
        "outside": np.array([bool(world.unknown_words(row, judge.prompt.fields)) for row in rows]),
        "label_mass": np.array([score.label_mass for score in scores]),
        "entropy": -(probs * np.log(np.maximum(probs, 1e-12))).sum(1),
    }


def separation(inside: np.ndarray, outside: np.ndarray) -> float:
    """Probability that a value of `outside` is larger than one of `inside` (AUC; ties count half)."""
    order = np.sort(inside)
    below, equal_or_below = np.searchsorted(order, outside), np.searchsorted(order, outside, side="right")
    return float((below + equal_or_below).mean() / 2 / len(inside))


def main(argv: list[str] | None = None) -> dict[str, float]:
    config = parse_config(Config, __doc__, argv)
    judge = make(config)
    world = World.load(config.out)
    report = json.loads((Path(config.runs) / f"{STUDENT}.json").read_text(encoding="utf-8"))["metrics"]["macro_f1"]
    print("macro-F1 x 100 on test {value:.1f} [{low:.1f}, {high:.1f}]".format(**{k: 100 * report[k] for k in report}))
    inside = signals(judge, world, load_rows("synthetic:test*200" if config.quick else "synthetic:test"))
    found = {"macro_f1": report["value"], "called_outside_on_test": float(inside["outside"].mean())}
    print(f"called outside: {inside['outside'].sum()} of {len(inside['outside'])} test pairs")
    if config.esci:
        outside = signals(judge, world, load_rows(config.esci))
        found["missed_on_esci"] = float(1 - outside["outside"].mean())
        print(f"missed: {(~outside['outside']).sum()} of {len(outside['outside'])} ESCI rows")
        for name, sign in (("label_mass", -1), ("entropy", 1)):
            found[f"auc_{name}"] = separation(sign * inside[name], sign * outside[name])
            print(f"AUC of {name} for the same: {found[f'auc_{name}']:.3f}")
    return found


if __name__ == "__main__":
    run_main(main)
