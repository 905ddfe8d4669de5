"""Both paths to a deployable judge on the embedded shop, then one table with the strong simple rivals beside them.

    python examples/quickstart.py                    # 12 to 15 minutes on two cores
    python examples/quickstart.py --seeds 3          # the same three times, and the mean
    python examples/quickstart.py --quick            # minutes: every step runs, no number means anything

Every step is one command of train/ or infer/, printed as it starts, so each can be repeated by hand. Steps that do not
need each other run side by side, one thread each. A step that is done is not run again (examples/runner.py).

The paper's path:  post-CoT SFT -> pass@N mining -> DPO -> GRPO.
Ours:              pre-CoT SFT (the thinker) -> GRPO on grades it has not seen -> it grades and explains the unlabelled
                   pool -> the student learns to answer first from that: one prefill at serving.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a fresh checkout runs without being installed

from examples.runner import Command, Run, make_all, stop_on_sigterm
from taosr1.judge_model import fast_dtype
from taosr1.runtime.cli import at_least, check, option, parse_config
from taosr1.runtime.files import write_json
from taosr1.runtime.signals import run_main
from taosr1.sampling.passn import grade_prior, pass_curve, prior_pass_at_n

MUON = {"optimizer": "muon", "muon_lr": 0.005, "lr": 1e-3}  # for trained weights: a quarter of what fresh ones take
REASONED, GRADED = "synthetic:reasoned", "synthetic:reasoned,synthetic:labelled"
SAMPLES = 5
SAMPLED = ("post-sft", "post-dpo", "post-grpo", "thinker-sft", "thinker-grpo")  # stages whose pass@n is shown


@dataclass(frozen=True)
class Config:
    out: str = option("runs/quickstart", "folder for all runs, reports and the table")
    seeds: int = option(
        1, "how many times, with seeds 0, 1, ... (weights, order, sampling and training pools; the test pool stays)"
    )
    jobs: int = option(2, "steps that run side by side, one thread each")
    dtype: str = option(
        "auto",
        "compute type of SFT and of grading the pool; auto: bfloat16 where the CPU is fast at it",
        ("auto", "float32", "bfloat16"),
    )
    quick: bool = option(False, "a few steps of everything: shows that it works, not how well")

    def __post_init__(self) -> None:
        check(at_least(self, seeds=1, jobs=1))


class Plan:
    """The commands of one seed as `steps`, runs in the order in which they start where nothing holds them up."""

    def __init__(self, folder: Path, seed: int, quick: bool, dtype: str) -> None:
        self.folder, self.seed, self.quick, self.dtype = folder, seed, quick, dtype
        self.steps: list[Run] = []

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def add(self, name: str, script: str, needs: tuple[str, ...] = (), output: str = "", **flags: object) -> None:
        command = [script]
        for key, value in flags.items():
            command += [f"--{key.replace('_', '-')}"] + ([] if value is True else [str(value)])
        made = Command(command, (self.folder / (output or name),))
        self.steps.append(Run(name, self.folder / "steps" / name, needs, (made,)))

    def train(self, name: str, script: str, needs: tuple[str, ...] = (), steps: int = 0, **flags: object) -> None:
        """A stage, and its report on the test pool."""
        steps = 4 if self.quick else steps
        flags = {"out": self.path(name), "steps": steps, "seed": self.seed, **flags}
        flags |= {"dev": "synthetic:dev", "dev_rows": 40 if self.quick else 1000}
        flags.setdefault("eval_every", max(1, steps // 3))
        self.add(name, f"train/{script}.py", needs, output=f"{name}/checkpoints/step-{steps:06d}/state.json", **flags)
        test, dev = ("synthetic:test*200", "synthetic:dev*100") if self.quick else ("synthetic:test", "synthetic:dev")
        # A thinker has no label probabilities, which CumPT and a temperature could be fitted to.
        fitted = {} if name.startswith("thinker") else {"dev": dev, "fit_temperature": True}
        report = {"model": self.path(name), "data": test, "out": self.path(f"{name}.json"), **fitted}
        self.add(f"test {name}", "infer/evaluate.py", (name,), output=f"{name}.json", **report)

    def sft(self, name: str, *needs: str, start: str = "", **flags: object) -> None:
        model = {"model": self.path(start)} if start else {}
        self.train(name, "sft", needs, dtype=self.dtype, **model, **flags)

    def sample(self, name: str) -> None:
        output, limit = f"{name}.replies.jsonl", 20 if self.quick else 400
        flags = {"model": self.path(name), "data": "synthetic:dev", "out": self.path(output), "seed": self.seed}
        self.add(f"pass@n {name}", "infer/sample.py", (name,), output=output, limit=limit, samples=SAMPLES, **flags)

    def grade_pool(self, name: str, teacher: str) -> None:
        pool = "synthetic:unlabelled*400" if self.quick else "synthetic:unlabelled"
        flags = {"model": self.path(teacher), "data": pool, "out": self.path(name), "seed": self.seed}
        self.add(name, "train/label_pool.py", (teacher,), dtype=self.dtype, **flags)

    def ours(self) -> None:
        """The thinker comes first: everything long waits for it."""
        # A few steps from fresh weights would write no reply that parses.
        quick = {"model": "bundled", "lr": 1e-4} if self.quick else {}
        self.sft("thinker-sft", steps=500, order="pre-cot", data=REASONED, **quick)
        grpo = {"updates": 2, "eval_every": 4 if self.quick else 40, "model": self.path("thinker-sft"), "test": ""}
        data = "synthetic:labelled*200" if self.quick else "synthetic:labelled"
        self.train("thinker-grpo", "grpo", ("thinker-sft",), steps=200, data=data, **grpo)
        self.sft("label-12k", "thinker-sft", start="thinker-sft", steps=1600, order="label", data=GRADED, **MUON)
        self.grade_pool("pool.jsonl", "thinker-grpo")
        # The student starts from that label model, a rival too, which trains beside GRPO; the thinker's 40,000 grades
        # correct it.
        label = {"start": "label-12k", "steps": 1000, "order": "label", "data": f"{self.path('pool.jsonl')},{GRADED}"}
        self.sft("student-label", "pool.jsonl", "label-12k", **label, **MUON)
        post = {"start": "student-label", "steps": 200, "order": "post-cot", "label_weight": 8}
        self.sft("student", "student-label", data=f"{self.path('pool.jsonl')},{REASONED}", **post, **MUON)

    def papers(self) -> None:
        self.sft("post-sft", steps=450, order="post-cot", data=REASONED, label_weight=3)
        sft, pairs, dpo = self.path("post-sft"), self.path("post-pairs.jsonl"), self.path("post-dpo")
        mine = {"model": sft, "out": pairs, "seed": self.seed, "prompts": 100 if self.quick else 2400}
        self.add("post-pairs.jsonl", "train/mine_pairs.py", ("post-sft",), **mine)
        self.train("post-dpo", "dpo", ("post-pairs.jsonl",), steps=48, model=sft, data=pairs)
        grpo = {"difficulty": "prefill", "lr": 4e-4, "final_lr_frac": 0.5, "test": "", "label_weight": 4}
        self.train("post-grpo", "grpo", ("post-dpo",), steps=60, model=dpo, data=GRADED, **grpo)

    def rivals(self) -> None:
        """On the same labels; the first trains as the student does, on the label model's own grades of that pool."""
        self.grade_pool("own-pool.jsonl", "label-12k")
        own = {"steps": 1000, "order": "label", "data": f"{self.path('own-pool.jsonl')},{GRADED}"}
        self.sft("self-trained", "own-pool.jsonl", start="label-12k", **own, **MUON)
        more = {"start": "post-sft", "steps": 300, "data": REASONED, "lr": 1e-3}
        self.sft("post-sft-longer", "post-sft", order="post-cot", label_weight=3, **more)
        self.sft("label-3k", "post-sft", order="label", **more)
        for name in SAMPLED:
            self.sample(name)
        if find_spec("sklearn") is None:
            install = 'pip install -c constraints.txt -e ".[dev]"'
            print(f"without scikit-learn ({install}) the table lacks its gradient boosting rows")
            return
        test = {"test": "synthetic:test*200"} if self.quick else {}
        for name, data in (("boosted-3k", REASONED), ("boosted-12k", GRADED)):
            flags = {"data": data, "out": self.path(f"{name}.json"), "seed": self.seed, **test}
            self.add(name, "examples/boosted_overlap.py", output=f"{name}.json", **flags)


def plan(folder: Path, seed: int, quick: bool, dtype: str) -> list[Run]:
    """Every step of one seed."""
    made = Plan(folder, seed, quick, dtype)
    made.ours()
    made.papers()
    made.rivals()
    return made.steps


STUDENT_STEPS = ("thinker-sft", "thinker-grpo", "pool.jsonl", "label-12k", "student-label")
# name of the run, what the table calls it, and the steps whose time it took
ROWS = (
    ("boosted-3k", "gradient boosting on overlap features, 3,000 grades", ("boosted-3k",)),
    ("boosted-12k", "gradient boosting on overlap features, 12,000 grades", ("boosted-12k",)),
    ("label-3k", "label cross-entropy, 3,000 grades", ("post-sft", "label-3k")),
    ("label-12k", "label cross-entropy, 12,000 grades", ("thinker-sft", "label-12k")),
    ("self-trained", "student of that model's pseudo-labels",
     ("thinker-sft", "label-12k", "own-pool.jsonl", "self-trained")),
    ("post-sft", "paper: post-CoT SFT", ("post-sft",)),
    ("post-sft-longer", "       post-CoT SFT that trains on", ("post-sft", "post-sft-longer")),
    ("post-dpo", "paper: + DPO", ("post-sft", "post-pairs.jsonl", "post-dpo")),
    ("post-grpo", "paper: + GRPO", ("post-sft", "post-pairs.jsonl", "post-dpo", "post-grpo")),
    ("thinker-sft", "ours: thinker, pre-CoT SFT", ("thinker-sft",)),
    ("thinker-grpo", "ours: thinker + GRPO on 9,000 unseen grades", ("thinker-sft", "thinker-grpo")),
    ("student-label", "ours: student, label only", STUDENT_STEPS),
    ("student", "ours: student, post-CoT (explains itself)", (*STUDENT_STEPS, "student")),
)  # fmt: skip


def collect(folder: Path, seconds: dict[str, float]) -> dict[str, dict]:
    """The numbers of one seed, read from the reports."""
    results = {}
    for name, _, parts in ROWS:
        if not (folder / f"{name}.json").exists():
            continue  # gradient boosting without scikit-learn
        report = json.loads((folder / f"{name}.json").read_text())
        tiering = report.get("tiering") or {}
        results[name] = {
            "macro_f1": report["metrics"]["macro_f1"],
            "accuracy": report["metrics"]["accuracy"],
            "cost": report.get("cost"),
            "tiering": tiering,
            "temperature": report.get("temperature"),
            "train_s": sum(seconds.get(part, 0.0) for part in parts),
        }
    return results


def render(seeds: list[dict[str, dict]], folder: Path) -> str:
    """The table a person reads: means over seeds, and the interval over queries of the first seed."""
    mean = statistics.fmean
    columns = f"{'mean':>6s} {'by seed':>18s} {'95 % (seed 0)':>14s} {'prefills':>9s} {'decoded':>8s} {'train s':>8s}"
    lines = [f"{'macro-F1 x 100 on the test pool':54s} {columns}"]
    for name, title, _ in ROWS:
        if name not in seeds[0]:
            continue
        values = [100 * seed[name]["macro_f1"]["value"] for seed in seeds]
        first, cost = seeds[0][name]["macro_f1"], seeds[0][name]["cost"]
        spent = f"{'-':>9s} {'-':>8s}"
        if cost:
            spent = f"{cost['prefills_per_row']:9.0f} {cost['decoded_tok_per_row']:8.1f}"
        by_seed = " ".join(f"{value:.1f}" for value in values)
        interval = f"{100 * first['low']:.1f} - {100 * first['high']:.1f}"
        seconds = mean([seed[name]["train_s"] for seed in seeds])
        lines.append(f"{title:54s} {mean(values):6.1f} {by_seed:>18s} {interval:>14s} {spent} {seconds:8.0f}")
    return "\n".join(lines + ["", *_verdicts(seeds), "", *_tiers(seeds), "", *_pass_at_n(folder)])


def _verdicts(seeds: list[dict[str, dict]]) -> list[str]:
    """The table in words, computed from its numbers: who wins, and which stage does what."""

    def score(name: str) -> float:
        return statistics.fmean(100 * seed[name]["macro_f1"]["value"] for seed in seeds)

    def compare(text: str, better: str, worse: str) -> str:
        gap = score(better) - score(worse)
        per_seed = [100 * (seed[better]["macro_f1"]["value"] - seed[worse]["macro_f1"]["value"]) for seed in seeds]
        return f"{text}: {gap:+.1f} ({', '.join(f'{value:+.1f}' for value in per_seed)} by seed)"

    def best(*rivals: str) -> str:
        return max((name for name in rivals if name in seeds[0]), key=score)

    best_3k = best("boosted-3k", "label-3k", "post-sft", "post-sft-longer")
    best_12k = best("boosted-12k", "label-12k", "self-trained")
    rival = "The student against the best one-prefill rival"
    return [
        compare("GRPO on unseen grades lifts the thinker by", "thinker-grpo", "thinker-sft"),
        compare("DPO changes post-CoT SFT by", "post-dpo", "post-sft"),
        compare("GRPO changes the DPO model by", "post-grpo", "post-dpo"),
        compare("DPO and GRPO together change post-CoT SFT by", "post-grpo", "post-sft"),
        compare("DPO and GRPO together, against post-CoT SFT that trains on,", "post-grpo", "post-sft-longer"),
        compare("The student against the thinker that taught it", "student", "thinker-grpo"),
        compare(f"{rival} from the 3,000 reasoned pairs ({best_3k})", "student", best_3k),
        compare(f"{rival} with all 12,000 grades ({best_12k})", "student", best_12k),
    ]


def _tiers(seeds: list[dict[str, dict]]) -> list[str]:
    lines = [
        "Good/Mid/Bad, macro-F1 x 100: argmax and CumPT; calibration (ECE and Brier score x 100) before and after "
        "temperature scaling; beta and temperature from dev"
    ]
    mean = statistics.fmean
    for name, title, _ in ROWS:
        tiering = [seed.get(name, {}).get("tiering") for seed in seeds]
        if not all(tiering):
            continue
        scores = ([100 * t[rule]["tier_macro_f1"]["value"] for t in tiering] for rule in ("argmax", "cumpt"))
        argmax, cumpt = map(mean, scores)
        found = [seed[name]["temperature"] for seed in seeds]
        ece, brier = (
            " -> ".join(f"{mean(100 * t[when][what] for t in found):4.1f}" for when in ("before", "after"))
            for what in ("ece", "brier")
        )
        scale = f"temperature {mean(t['value'] for t in found):.2f}"
        lines.append(f"{title:54s} argmax {argmax:5.1f}  CumPT {cumpt:5.1f}  ECE {ece}  Brier {brier}  {scale}")
    return lines


def _pass_at_n(folder: Path) -> list[str]:
    """pass@1..N on dev pairs after each stage of seed 0, beside guessing from the pairs' grade shares."""
    names = "".join(f"{f'pass@{n}':>8s}" for n in range(1, SAMPLES + 1))
    lines = [f"pass@n x 100 on dev pairs, seed 0{'':22s}{names}"]
    for name in SAMPLED:
        written = (folder / "seed-0" / f"{name}.replies.jsonl").read_text(encoding="utf-8")
        replies = [json.loads(line) for line in written.splitlines()]
        groups = [replies[at : at + SAMPLES] for at in range(0, len(replies), SAMPLES)]
        right = [sum(reply["pred_grade"] == reply["grade"] for reply in group) for group in groups]
        lines.append(f"{name:54s}" + "".join(f"{100 * value:8.1f}" for value in pass_curve(right, SAMPLES)))
    golds = [group[0]["grade"] for group in groups]
    guesses = (prior_pass_at_n(grade_prior(golds), golds, n) for n in range(1, SAMPLES + 1))
    return lines + [f"{'guessing from the grade shares':54s}" + "".join(f"{100 * value:8.1f}" for value in guesses)]


def main(argv: list[str] | None = None) -> list[dict[str, dict]]:
    config = parse_config(Config, __doc__, argv)
    stop_on_sigterm()
    folder = Path(config.out).resolve()
    dtype = fast_dtype() if config.dtype == "auto" else config.dtype
    results = []
    for seed in range(config.seeds):
        started = time.perf_counter()
        own = folder / f"seed-{seed}"
        seconds = make_all(plan(own, seed, config.quick, dtype), config.jobs)
        results.append(collect(own, seconds))
        print(f"seed {seed}: {time.perf_counter() - started:.0f} s", flush=True)
    table = render(results, folder)
    write_json(folder / "results.json", results)
    (folder / "table.txt").write_text(table + "\n", encoding="utf-8")
    print("\n" + table)
    return results


if __name__ == "__main__":
    run_main(main)
