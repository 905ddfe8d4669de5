"""Both paths to a deployable judge on the embedded shop, then one table with the strong simple rivals beside them.

    python examples/quickstart.py                    # 12 to 15 minutes on two cores
    python examples/quickstart.py --seeds 3          # the same three times, and the mean
    python examples/quickstart.py --quick            # minutes: every step runs, no number means anything

Every step is one command of train/ or infer/, printed as it starts, so each can be repeated by hand. Steps that do not
need each other run side by side, one thread each. A step whose output exists is not run again.

The paper's path:  post-CoT SFT -> pass@N mining -> DPO -> GRPO.
Ours:              pre-CoT SFT (the thinker) -> GRPO on grades it has not seen -> it grades and explains the unlabelled
                   pool -> the student learns to answer first from that: one prefill at serving.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a fresh checkout runs without being installed

from taosr1.judge import fast_dtype
from taosr1.runtime.cli import check, option, parse_config
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
    seeds: int = option(1, "how many times, with seeds 0, 1, ... (weights, order, sampling and training pools; the test pool stays)")
    jobs: int = option(2, "steps that run side by side, one thread each")
    dtype: str = option("auto", "compute type of SFT and of grading the pool; auto: bfloat16 where the CPU is fast at it", ("auto", "float32", "bfloat16"))
    quick: bool = option(False, "a few steps of everything: shows that it works, not how well")

    def __post_init__(self) -> None:
        check([(self.seeds < 1, f"--seeds is {self.seeds}, expected at least 1"), (self.jobs < 1, f"--jobs is {self.jobs}, expected at least 1")])


@dataclass(frozen=True)
class Step:
    """One command. `needs` names the steps it reads from, `output` is the file that shows it is done."""

    name: str
    command: list[str]
    needs: tuple[str, ...]
    output: Path


def plan(folder: Path, seed: int, quick: bool, dtype: str) -> list[Step]:
    """Every step of one seed, in the order in which they are started where nothing holds them up: the short ones last."""
    steps: list[Step] = []

    def path(name: str) -> str:
        return str(folder / name)

    def add(name: str, script: str, needs: tuple[str, ...] = (), output: str = "", **flags: object) -> None:
        flags = {key: value for key, value in flags.items() if value is not None}
        command = [script]
        for key, value in flags.items():
            command += [f"--{key.replace('_', '-')}"] + ([] if value is True else [str(value)])
        steps.append(Step(name, command, needs, folder / (output or name)))

    def train(name: str, script: str, needs: tuple[str, ...] = (), steps: int = 0, **flags: object) -> None:
        steps = 4 if quick else steps
        limits = {"dev_rows": 40} if quick else {"dev_rows": flags.pop("dev_rows", 1000)}
        flags = {"out": path(name), "steps": steps, "seed": seed, **limits, **flags}
        flags.setdefault("eval_every", max(1, steps // 3))
        add(name, f"train/{script}.py", needs, output=f"{name}/checkpoints/step-{steps:06d}/state.json", **flags)
        evaluate(name)

    def evaluate(name: str) -> None:
        test, dev = ("synthetic:test*200", "synthetic:dev*100") if quick else ("synthetic:test", "synthetic:dev")
        label_first = not name.startswith("thinker")  # a thinker has no label probabilities to fit CumPT and a temperature to
        flags = {"model": path(name), "data": test, "out": path(f"{name}.json")} | ({"dev": dev, "fit_temperature": True} if label_first else {})
        add(f"test {name}", "infer/evaluate.py", (name,), output=f"{name}.json", **flags)

    def sample(name: str) -> None:
        add(f"pass@n {name}", "infer/sample.py", (name,), output=f"{name}.replies.jsonl", model=path(name), data="synthetic:dev",
            limit=20 if quick else 400, samples=SAMPLES, out=path(f"{name}.replies.jsonl"), seed=seed)  # fmt: skip

    def sft(name: str, needs: tuple[str, ...] = (), **flags: object) -> None:
        train(name, "sft", needs, dtype=dtype, **flags)

    def grade_pool(name: str, teacher: str) -> None:
        add(name, "train/label_pool.py", (teacher,), model=path(teacher), data=pool, out=path(name), seed=seed, dtype=dtype)

    pool = "synthetic:unlabelled*400" if quick else "synthetic:unlabelled"
    # Ours. The thinker comes first: everything long waits for it.
    warm = {"model": "bundled", "lr": 1e-4} if quick else {}  # a few steps from fresh weights would write no reply that parses
    sft("thinker-sft", steps=500, order="pre-cot", data=REASONED, **warm)
    train("thinker-grpo", "grpo", ("thinker-sft",), steps=200, updates=2, eval_every=4 if quick else 40, model=path("thinker-sft"), test="",
          data="synthetic:labelled*200" if quick else "synthetic:labelled")  # fmt: skip
    sft("label-12k", ("thinker-sft",), steps=1600, model=path("thinker-sft"), order="label", data=GRADED, **MUON)
    grade_pool("pool.jsonl", "thinker-grpo")
    # The student starts from that label model, a rival too, which trains beside GRPO; the thinker's 40,000 grades correct it.
    student = f"{path('pool.jsonl')},{GRADED}"
    sft("student-label", ("pool.jsonl", "label-12k"), steps=1000, model=path("label-12k"), order="label", data=student, **MUON)
    explained = f"{path('pool.jsonl')},{REASONED}"
    sft("student", ("student-label",), steps=200, model=path("student-label"), order="post-cot", data=explained, label_weight=8, **MUON)
    # The paper's.
    sft("post-sft", steps=450, order="post-cot", data=REASONED, label_weight=3)
    add("post-pairs.jsonl", "train/mine_pairs.py", ("post-sft",), model=path("post-sft"), out=path("post-pairs.jsonl"), seed=seed,
        prompts=100 if quick else 2400)  # fmt: skip
    train("post-dpo", "dpo", ("post-pairs.jsonl",), steps=48, model=path("post-sft"), data=path("post-pairs.jsonl"))
    train("post-grpo", "grpo", ("post-dpo",), steps=60, model=path("post-dpo"), data=GRADED, difficulty="prefill",
          lr=4e-4, final_lr_frac=0.5, test="", label_weight=4)  # fmt: skip
    # Rivals on the same labels. The first trains exactly as the student does, on the label model's own grades for the same pairs.
    grade_pool("own-pool.jsonl", "label-12k")
    own = f"{path('own-pool.jsonl')},{GRADED}"
    sft("self-trained", ("own-pool.jsonl",), steps=1000, model=path("label-12k"), order="label", data=own, **MUON)
    sft("post-sft-longer", ("post-sft",), steps=300, model=path("post-sft"), order="post-cot", data=REASONED, label_weight=3, lr=1e-3)
    sft("label-3k", ("post-sft",), steps=300, model=path("post-sft"), order="label", data=REASONED, lr=1e-3)
    for name in SAMPLED:
        sample(name)
    if find_spec("sklearn") is None:
        print('without scikit-learn (pip install -c constraints.txt -e ".[dev]") the table lacks its gradient boosting rows')
        return steps
    for name, data in (("boosted-3k", REASONED), ("boosted-12k", GRADED)):
        add(name, "examples/boosted_overlap.py", output=f"{name}.json", data=data, out=path(f"{name}.json"), seed=seed,
            test="synthetic:test*200" if quick else None)  # fmt: skip
    return steps


def run_all(steps: list[Step], jobs: int, folder: Path) -> dict[str, float]:
    """Run every step that is not done yet, at most `jobs` at once; returns the seconds each took (0 where it was done).

    Raises: ValueError naming the step that failed and its log.
    """
    folder.mkdir(parents=True, exist_ok=True)
    seconds_file = folder / "seconds.json"
    seconds = json.loads(seconds_file.read_text()) if seconds_file.exists() else {}
    waiting = [step for step in steps if not step.output.exists()]
    done = {step.name for step in steps} - {step.name for step in waiting}
    running: dict[str, tuple[Step, subprocess.Popen, float]] = {}
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # more threads than cores is many times slower
    started = time.perf_counter()
    try:
        while waiting or running:
            ready = [step for step in waiting if set(step.needs) <= done]
            for step in ready[: jobs - len(running)]:
                waiting.remove(step)
                print(f"[{time.perf_counter() - started:5.0f} s] {step.name}: python {' '.join(step.command)}", flush=True)
                log = open(folder / f"{step.name}.log", "w", encoding="utf-8")
                process = subprocess.Popen([sys.executable, *step.command], cwd=ROOT, stdout=log, stderr=log, env=environment)
                running[step.name] = (step, process, time.perf_counter())
            time.sleep(0.2)
            for name, (step, process, since) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[name]
                if process.returncode or not step.output.exists():
                    log_file = folder / f"{name}.log"
                    raise ValueError(f"step {name} failed; its last words in {log_file}:\n{log_file.read_text()[-1500:]}")
                seconds[name] = round(time.perf_counter() - since, 1)
                write_json(seconds_file, seconds)
                done.add(name)
    finally:
        for _, process, _ in running.values():
            process.terminate()
    return seconds


STUDENT_STEPS = ("thinker-sft", "thinker-grpo", "pool.jsonl", "label-12k", "student-label")
# name of the run, what the table calls it, and the steps whose time it took
ROWS = (
    ("boosted-3k", "gradient boosting on overlap features, 3,000 grades", ("boosted-3k",)),
    ("boosted-12k", "gradient boosting on overlap features, 12,000 grades", ("boosted-12k",)),
    ("label-3k", "label cross-entropy, 3,000 grades", ("post-sft", "label-3k")),
    ("label-12k", "label cross-entropy, 12,000 grades", ("thinker-sft", "label-12k")),
    ("self-trained", "student of that model's pseudo-labels", ("thinker-sft", "label-12k", "own-pool.jsonl", "self-trained")),
    ("post-sft", "paper: post-CoT SFT", ("post-sft",)),
    ("post-sft-longer", "       post-CoT SFT that trains on", ("post-sft", "post-sft-longer")),
    ("post-dpo", "paper: + DPO", ("post-sft", "post-pairs.jsonl", "post-dpo")),
    ("post-grpo", "paper: + GRPO", ("post-sft", "post-pairs.jsonl", "post-dpo", "post-grpo")),
    ("thinker-sft", "ours: thinker, pre-CoT SFT", ("thinker-sft",)),
    ("thinker-grpo", "ours: thinker + GRPO on 9,000 unseen grades", ("thinker-sft", "thinker-grpo")),
    ("student-label", "ours: student, label only", STUDENT_STEPS),
    ("student", "ours: student, post-CoT (explains itself)", (*STUDENT_STEPS, "student")),
)


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
    lines = [f"{'macro-F1 x 100 on the test pool':54s} {'mean':>6s} {'by seed':>18s} {'95 % (seed 0)':>14s} {'prefills':>9s} {'decoded':>8s} {'train s':>8s}"]
    for name, title, _ in ROWS:
        if name not in seeds[0]:
            continue
        values = [100 * seed[name]["macro_f1"]["value"] for seed in seeds]
        first, cost = seeds[0][name]["macro_f1"], seeds[0][name]["cost"]
        spent = f"{cost['prefills_per_row']:9.0f} {cost['decoded_tok_per_row']:8.1f}" if cost else f"{'-':>9s} {'-':>8s}"
        by_seed = " ".join(f"{value:.1f}" for value in values)
        interval = f"{100 * first['low']:.1f} - {100 * first['high']:.1f}"
        lines.append(f"{title:54s} {mean(values):6.1f} {by_seed:>18s} {interval:>14s} {spent} {mean([s[name]['train_s'] for s in seeds]):8.0f}")
    return "\n".join(lines + ["", *_verdicts(seeds), "", *_tiers(seeds), "", *_pass_at_n(folder)])


def _verdicts(seeds: list[dict[str, dict]]) -> list[str]:
    """The table in words, computed from its numbers: who wins, and which stage does what."""

    def score(name: str) -> float:
        return statistics.fmean(100 * seed[name]["macro_f1"]["value"] for seed in seeds)

    def compare(text: str, better: str, worse: str) -> str:
        gap = score(better) - score(worse)
        per_seed = [100 * (seed[better]["macro_f1"]["value"] - seed[worse]["macro_f1"]["value"]) for seed in seeds]
        return f"{text}: {gap:+.1f} ({', '.join(f'{value:+.1f}' for value in per_seed)} by seed)"

    rivals_3k, rivals_12k = ("boosted-3k", "label-3k", "post-sft", "post-sft-longer"), ("boosted-12k", "label-12k", "self-trained")
    best_3k, best_12k = (max((name for name in rivals if name in seeds[0]), key=score) for rivals in (rivals_3k, rivals_12k))
    return [
        compare("GRPO on unseen grades lifts the thinker by", "thinker-grpo", "thinker-sft"),
        compare("DPO changes post-CoT SFT by", "post-dpo", "post-sft"),
        compare("GRPO changes the DPO model by", "post-grpo", "post-dpo"),
        compare("DPO and GRPO together change post-CoT SFT by", "post-grpo", "post-sft"),
        compare("DPO and GRPO together, against post-CoT SFT that trains on,", "post-grpo", "post-sft-longer"),
        compare("The student against the thinker that taught it", "student", "thinker-grpo"),
        compare(f"The student against the best one-prefill rival from the 3,000 reasoned pairs ({best_3k})", "student", best_3k),
        compare(f"The student against the best one-prefill rival with all 12,000 grades ({best_12k})", "student", best_12k),
    ]


def _tiers(seeds: list[dict[str, dict]]) -> list[str]:
    lines = [
        "Good/Mid/Bad, macro-F1 x 100: argmax and CumPT; calibration (ECE and Brier score x 100) before and after temperature scaling; beta and temperature from dev"
    ]
    for name, title, _ in ROWS:
        tiering = [seed.get(name, {}).get("tiering") for seed in seeds]
        if not all(tiering):
            continue
        argmax = statistics.fmean(100 * t["argmax"]["tier_macro_f1"]["value"] for t in tiering)
        cumpt = statistics.fmean(100 * t["cumpt"]["tier_macro_f1"]["value"] for t in tiering)
        found = [seed[name]["temperature"] for seed in seeds]
        ece, brier = (" -> ".join(f"{statistics.fmean(100 * t[when][what] for t in found):4.1f}" for when in ("before", "after")) for what in ("ece", "brier"))
        scale = statistics.fmean(t["value"] for t in found)
        lines.append(f"{title:54s} argmax {argmax:5.1f}  CumPT {cumpt:5.1f}  ECE {ece}  Brier {brier}  temperature {scale:.2f}")
    return lines


def _pass_at_n(folder: Path) -> list[str]:
    """pass@1..N on dev pairs after each stage of seed 0, beside guessing from the pairs' grade shares."""
    lines = [f"pass@n x 100 on dev pairs, seed 0{'':22s}" + "".join(f"{f'pass@{n}':>8s}" for n in range(1, SAMPLES + 1))]
    for name in SAMPLED:
        replies = [json.loads(line) for line in (folder / "seed-0" / f"{name}.replies.jsonl").read_text(encoding="utf-8").splitlines()]
        right = [sum(r["grade"] == r["gold_grade"] for r in replies[at : at + SAMPLES]) for at in range(0, len(replies), SAMPLES)]
        lines.append(f"{name:54s}" + "".join(f"{100 * value:8.1f}" for value in pass_curve(right, SAMPLES)))
    golds = [reply["gold_grade"] for reply in replies[::SAMPLES]]
    guesses = (prior_pass_at_n(grade_prior(golds), golds, n) for n in range(1, SAMPLES + 1))
    return lines + [f"{'guessing from the grade shares':54s}" + "".join(f"{100 * value:8.1f}" for value in guesses)]


def main(argv: list[str] | None = None) -> list[dict[str, dict]]:
    config = parse_config(Config, __doc__, argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the running steps are stopped too
    folder = Path(config.out).resolve()
    dtype = fast_dtype() if config.dtype == "auto" else config.dtype
    results = []
    for seed in range(config.seeds):
        started = time.perf_counter()
        seconds = run_all(plan(folder / f"seed-{seed}", seed, config.quick, dtype), config.jobs, folder / f"seed-{seed}")
        results.append(collect(folder / f"seed-{seed}", seconds))
        print(f"seed {seed}: {time.perf_counter() - started:.0f} s", flush=True)
    table = render(results, folder)
    write_json(folder / "results.json", results)
    (folder / "table.txt").write_text(table + "\n", encoding="utf-8")
    print("\n" + table)
    return results


if __name__ == "__main__":
    run_main(main)
