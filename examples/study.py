"""What single settings are worth, on the embedded shop over seeds: one change at a time against the same start.

    python examples/study.py                         # every comparison, three seeds: about 90 minutes on two slow cores
    python examples/study.py --only thinker --seeds 1
    python examples/study.py --quick                 # minutes: every run starts, no number means anything

Each run is one command of train/grpo.py, printed as it starts. Scores are those of the checkpoint that was best on dev,
on the 4,000 test pairs. examples/guide/results.md has this table.
"""

from __future__ import annotations

import json
import signal
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a fresh checkout runs without being installed

from examples.quickstart import Step, run_all
from taosr1.judge_model import fast_dtype
from taosr1.runtime.cli import at_least, check, option, parse_config
from taosr1.runtime.files import write_json
from taosr1.runtime.signals import run_main


@dataclass(frozen=True)
class Start:
    """How a start is trained, what GRPO from it always gets, and the changes that are compared (name -> flags)."""

    title: str
    sft: str
    sft_steps: int
    grpo: str
    grpo_steps: int
    changes: dict[str, str]


STARTS = {
    "thinker": Start(
        "The thinker (pre-CoT SFT), then GRPO on grades that it has not seen",
        "--eval-every 250",
        500,
        "--eval-every 25",
        100,
        {
            "as it is": "",
            "SFT term (--sft-coef 0.1)": "--sft-coef 0.1",
            "steps rewarded too (rule-aware)": "--data synthetic:explained --rewards label=1,steps=0.5",
        },
    ),
    "post": Start(
        "Post-CoT SFT, then GRPO on all 12,000 grades",
        "--order post-cot --eval-every 150 --label-weight 3",
        450,
        "--eval-every 20 --difficulty prefill --lr 4e-4 --final-lr-frac 0.5 --label-weight 4 "
        "--data synthetic:reasoned,synthetic:labelled",
        60,
        {
            "as it is": "",
            "SFT term (--sft-coef 0.1)": "--sft-coef 0.1",
            "advantages without std (--adv-std none)": "--adv-std none",
        },
    ),
}


@dataclass(frozen=True)
class Config:
    out: str = option("runs/study", "folder for all runs and the table")
    seeds: int = option(
        3, "how many times, with seeds 0, 1, ... (weights, order, sampling and training pools; the test pool stays)"
    )
    only: str = option("", "one of the starts alone", ("", *STARTS))
    jobs: int = option(2, "runs side by side, one thread each")
    quick: bool = option(False, "a few steps of everything: shows that it works, not how well")

    def __post_init__(self) -> None:
        check(at_least(self, seeds=1, jobs=1))


def plan(folder: Path, start: str, seed: int, quick: bool) -> list[Step]:
    """The start of one seed, every change trained from it, and a report of each on the test pool."""
    spec, made = STARTS[start], []

    def train(name: str, script: str, needs: tuple[str, ...], flags: str, steps: int) -> None:
        steps = 3 if quick else steps
        small = " --eval-every 3 --dev-rows 20" if quick else ""
        command = [script, *f"--out {folder / name} --seed {seed} {flags}{small} --steps {steps}".split()]
        made.append(Step(name, command, needs, folder / name / f"checkpoints/step-{steps:06d}/state.json"))
        test, dev = ("synthetic:test*100", "synthetic:dev*60") if quick else ("synthetic:test", "synthetic:dev")
        rows = f"--data {test}"
        if start != "thinker":  # it has no label probabilities to fit anything to
            rows += f" --dev {dev} --fit-temperature"
        report = ["infer/evaluate.py", *f"--model {folder / name} --out {folder / name}.json {rows}".split()]
        made.append(Step(f"test {name}", report, (name,), folder / f"{name}.json"))

    train("sft", "train/sft.py", (), f"--dtype {fast_dtype()} {spec.sft}", spec.sft_steps)
    for number, flags in enumerate(spec.changes.values()):
        flags = f"--model {folder / 'sft'} --test= {spec.grpo} {flags}"
        train(f"grpo-{number}", "train/grpo.py", ("sft",), flags, spec.grpo_steps)
    return made


def render(start: str, folder: Path, seeds: int) -> str:
    """Means over seeds, each seed's value, and the difference to the run that changed nothing."""
    names = {"sft": "before GRPO"}
    names |= {f"grpo-{number}": change for number, change in enumerate(STARTS[start].changes)}
    folders = [folder / f"{start}-{seed}" for seed in range(seeds)]
    reports = {name: [json.loads((own / f"{name}.json").read_text()) for own in folders] for name in names}
    columns = f"{'mean':>6s} {'by seed':>18s} {'difference':>11s} {'by seed':>18s}"
    lines = [STARTS[start].title, f"{'macro-F1 x 100 on the test pool':44s} {columns}"]
    scores = {name: [100 * report["metrics"]["macro_f1"]["value"] for report in reports[name]] for name in names}
    mean = statistics.fmean
    for name, title in names.items():
        gaps = [value - base for value, base in zip(scores[name], scores["grpo-0"])]
        by_seed = " ".join(f"{value:.1f}" for value in scores[name])
        gap_by_seed = " ".join(f"{gap:+.1f}" for gap in gaps)
        line = f"{title:44s} {mean(scores[name]):6.1f} {by_seed:>18s} {mean(gaps):+11.1f} {gap_by_seed:>18s}"
        if start == "post":
            found = [report["temperature"] for report in reports[name]]
            before, after = (mean(100 * scale[when]["ece"] for scale in found) for when in ("before", "after"))
            line += f"   ECE {before:.1f} -> {after:.1f} scaled"
        lines.append(line)
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> dict[str, str]:
    config = parse_config(Config, __doc__, argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the running steps are stopped too
    folder = Path(config.out).resolve()
    tables = {}
    for start in [config.only] if config.only else STARTS:
        for seed in range(config.seeds):
            own = folder / f"{start}-{seed}"
            run_all(plan(own, start, seed, config.quick), config.jobs, own)
        tables[start] = render(start, folder, config.seeds)
        print("\n" + tables[start] + "\n", flush=True)
    write_json(folder / "tables.json", tables)
    return tables


if __name__ == "__main__":
    run_main(main)
