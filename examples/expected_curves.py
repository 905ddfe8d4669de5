"""The curves that the default run of every stage gives, over seeds: what the doctor compares other runs with.

    python examples/expected_curves.py                # three seeds: 95 minutes on two cores that were busy otherwise
    python examples/expected_curves.py --stages dpo --seeds 1 --write runs/curves

Each run is one command with default settings but for --seed (and --test '' in GRPO, whose comparison at the end is no
curve), printed as it starts; what is finished is not run again. Written are taosr1/evaluation/default_runs/STAGE.csv:
median, lowest and highest value of some metrics (`METRICS` in taosr1/evaluation/expected.py), with command, commit and
date; and, with --recordings, every run's metrics as tests read them. At the end every run is shown to the doctor, which
must find nothing.
"""

from __future__ import annotations

import csv
import datetime
import gzip
import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a fresh checkout runs without being installed

from examples.runner import Command, Run, make_all, stop_on_sigterm
from taosr1.evaluation.curves import read_run
from taosr1.evaluation.diagnoses import diagnose
from taosr1.evaluation.expected import FOLDER, WINDOWS, bands_of, settings_text
from taosr1.evaluation.record import read_record
from taosr1.runtime.cli import at_least, check, option, parse_config
from taosr1.runtime.files import read_json
from taosr1.runtime.signals import run_main

STEPS = {"sft": 500, "dpo": 48, "grpo": 100}  # of the default runs


@dataclass(frozen=True)
class Config:
    out: str = option("runs/expected", "folder for all runs")
    seeds: int = option(3, "how many runs of each stage, with seeds 0, 1, ...")
    stages: str = option("sft,dpo,grpo", "the stages to run, separated by commas")
    jobs: int = option(2, "runs side by side, one thread each")
    write: str = option(str(FOLDER), "folder for the CSV files")
    recordings: str = option("", "folder for every run's metrics, compressed, which tests read (none: not written)")

    def __post_init__(self) -> None:
        unknown = [stage for stage in self.stages.split(",") if stage not in STEPS]
        check([(bool(unknown), f"--stages names {', '.join(unknown)}, expected some of {', '.join(STEPS)}"),
               *at_least(self, seeds=1, jobs=1)])  # fmt: skip


def command_of(stage: str, seed: object, folder: object) -> str:
    """The training command of a stage, for a shell."""
    more = {"sft": "", "dpo": f" --data {folder}/pairs-{seed}.jsonl", "grpo": " --test ''"}[stage]
    return f"train/{stage}.py --seed {seed}{more} --out {folder}/{stage}-{seed}"


def plan(folder: Path, stages: list[str], seeds: int) -> list[Run]:
    """Every run, and the pairs that DPO needs. They start from the bundled judges."""
    made = []

    def add(name: str, words: list[str], needs: tuple[str, ...], result: Path) -> None:
        made.append(Run(name, folder / "steps" / name, needs, (Command(words, (result,)),)))

    for seed in range(seeds):
        pairs = folder / f"pairs-{seed}.jsonl"
        if "dpo" in stages:
            mine = ["train/mine_pairs.py", "--model", "bundled-student", "--seed", str(seed), "--out", str(pairs)]
            add(f"pairs-{seed}", mine, (), pairs)
        for stage in stages:
            model = {"sft": [], "dpo": ["--model", "bundled-student"], "grpo": ["--model", "bundled"]}[stage]
            words = command_of(stage, seed, folder).replace("--test ''", "--test=").split()
            done = folder / f"{stage}-{seed}/checkpoints/step-{STEPS[stage]:06d}/state.json"
            needs = (f"pairs-{seed}",) if stage == "dpo" else ()
            add(f"{stage}-{seed}", [*words, *model], needs, done)
    return made


def write_curves(stage: str, runs: list[Path], target: Path) -> None:
    """The CSV file of a stage; its head are lines that begin with #."""
    config, window = read_json(runs[0] / "config.json"), max(1, STEPS[stage] // WINDOWS)
    commits = sorted({str(read_json(run / "env.json").get("commit")) for run in runs})
    ended = max((run / "metrics.jsonl").stat().st_mtime for run in runs)
    about = {
        "command": f"python {command_of(stage, 'SEED', 'runs/expected')}",
        "seeds": len(runs),
        "commit": ", ".join(commits),
        "date": datetime.datetime.fromtimestamp(ended, datetime.timezone.utc).date().isoformat(),
        "window": window,
        "settings": settings_text(config, stage),
    }
    text = io.StringIO()
    text.write("".join(f"# {name}: {value}\n" for name, value in about.items()))
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("metric", "step", "median", "low", "high"))
    for name, bands in bands_of([read_run(run).curves for run in runs], stage, window).items():
        for step, band in bands.items():
            rows.writerow((name, step, *(f"{value:.5g}" for value in (band.median, band.low, band.high))))
    target.mkdir(parents=True, exist_ok=True)
    (target / f"{stage}.csv").write_text(text.getvalue(), encoding="utf-8")


def write_recording(run: Path, target: Path) -> None:
    """A run's settings and metrics, numbers to five digits: config.json and metrics.jsonl as the first and all other
    lines of one file."""
    lines = [read_json(run / "config.json") | {"out": f"runs/expected/{run.name}"}]
    lines[0] |= {name: "runs/expected/pairs.jsonl" for name in ("data",) if "loss_type" in lines[0]}
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        lines.append({name: float(f"{x:.5g}") if isinstance(x, float) else x for name, x in row.items()})
    target.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (target / f"{run.name}.jsonl.gz").write_bytes(gzip.compress(text.encode(), mtime=0))


def main(argv: list[str] | None = None) -> dict[str, int]:
    """Returns: the number of findings by run; all are 0 where the rules are right."""
    config = parse_config(Config, __doc__, argv)
    stop_on_sigterm()
    folder, stages = Path(config.out).resolve(), config.stages.split(",")
    make_all(plan(folder, stages, config.seeds), config.jobs)
    found = {}
    for stage in stages:
        runs = [folder / f"{stage}-{seed}" for seed in range(config.seeds)]
        write_curves(stage, runs, Path(config.write))
        for run in runs:
            findings = diagnose(read_record(run))
            found[run.name] = len(findings)
            print(f"{run.name}: {len(findings)} found", *findings, sep="\n  ")
            if config.recordings:
                write_recording(run, Path(config.recordings))
    print(f"{', '.join(f'{stage}.csv' for stage in stages)} -> {config.write}")
    return found


if __name__ == "__main__":
    run_main(main)
