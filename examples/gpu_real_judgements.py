"""What a real model on real judgements shows on a GPU, in a few minutes: speed beside TRL's, and every stage run whole.

    python examples/gpu_real_judgements.py --data esci.jsonl.gz --minutes 9
    python examples/gpu_real_judgements.py --data esci.jsonl.gz --device cpu --check      # a small form of every part

Parts, in this order; --parts chooses:

- sft-step, dpo-step, grpo-step: one optimizer step of ours beside TRL's on --model, under autocast, time and memory
  (examples/benchmarks/sft_step.py, dpo_step.py, grpo_step.py).
- scoring: the share of the GPU's peak that scoring reaches, and sampling beside transformers' (benchmarks/gpu.py).
- label: SFT on grades, mining, DPO, GRPO, report, scores, merged folder (examples/finetune_qwen3.py on --model).
- thinker: the same with reasons first and the bundled teacher, then a student of the thinker.
- qwen3: examples/finetune_qwen3.py --check, all of its commands on Qwen3-0.6B's shape with random weights.

No part takes longer than its share of what is left of --minutes (`SHARES`): what is still running is ended, and the
next one begins. OUT/results.json is written after every part, with what it found; the output of each is in
OUT/PART.log. A part that is done is not repeated, so the same command continues. It has not run on a GPU yet.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a fresh checkout runs without being installed

from examples.benchmarks.common import machine
from taosr1.judge_model import DTYPES, check_device, judge_folder
from taosr1.runtime.cli import check, option, parse_config
from taosr1.runtime.files import read_json, write_json
from taosr1.runtime.signals import run_main

STEPS = ("sft-step", "dpo-step", "grpo-step")
# Of the time; a part that needs less leaves it to those after it.
SHARES = {**dict.fromkeys(STEPS, 0.07), "scoring": 0.09, "label": 0.25, "thinker": 0.35, "qwen3": 0.1}
GRACE_S = 20  # after SIGTERM, for a checkpoint


@dataclass(frozen=True)
class Config:
    data: str = option("", "ESCI rows with their split: .jsonl[.gz], .csv or the .parquet files")
    model: str = option("smollm2", "smollm2 (packaged), a folder, a GGUF file or a hub id")
    out: str = option("runs/gpu-real-judgements", "folder for everything")
    minutes: float = option(9.0, "time for all parts together")
    scale: float = option(0.25, "so many times the optimizer steps of finetune_qwen3.py")
    size: int = option(8, "so many times the prompts of the steps that are timed")
    parts: str = option(",".join(SHARES), "which ones, separated by commas")
    device: str = option("cuda", "torch device")
    dtype: str = option("bfloat16", "compute type", tuple(DTYPES))
    check: bool = option(False, "tiny models, a few rows and steps: does every part run?")

    def __post_init__(self) -> None:
        unknown = [name for name in self.parts.split(",") if name not in SHARES]
        check([
            (not self.data, "--data is missing: ESCI's rows, see examples/finetune_qwen3.md"),
            (bool(unknown), f"--parts: unknown {', '.join(unknown)}; there are {', '.join(SHARES)}"),
            (self.minutes <= 0, f"--minutes is {self.minutes}, expected more than 0"),
            (self.scale <= 0, f"--scale is {self.scale}, expected more than 0"),
            (self.size < 1, f"--size is {self.size}, expected at least 1"),
        ])  # fmt: skip


def main(argv: list[str] | None = None) -> list[dict]:
    config = parse_config(Config, __doc__, argv)
    try:
        check_device(config.device)
    except ValueError as error:
        raise ValueError(f"{error}; without a GPU, --device cpu --check runs a small form of every part") from error
    out = Path(config.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    report, ends = out / "results.json", time.monotonic() + 60 * config.minutes
    before = {row["part"]: row for row in read_json(report)["parts"]} if report.is_file() else {}
    names, rows = config.parts.split(","), []
    for name in names:
        row = before.get(name, {})
        if row.get("status") != "done":
            later = sum(SHARES[other] for other in names[names.index(name) :])
            row = run_part(name, command_of(name, config, out), out, SHARES[name] / later * (ends - time.monotonic()))
        rows.append(row)
        print(f"{name}: {row['status']}, {row['seconds']:.0f} s", flush=True)
        write_json(report, {"machine": machine(), "parts": rows})
    print(f"results: {report}")
    return rows


def command_of(name: str, config: Config, out: Path) -> list[str]:
    """Script and flags of a part."""
    on, found = ["--device", config.device, "--dtype", config.dtype], ["--out", str(out / f"{name}.json")]
    if name in STEPS:
        of = ["--cases", "tiny", "--repeats", "1", "--no-memory"] if config.check else [
            "--model", judge_folder(config.model), "--size", str(config.size)
        ]  # fmt: skip
        return [f"examples/benchmarks/{name.replace('-', '_')}.py", *of, *on, *found]
    if name == "scoring":
        few = ["--shape", "tiny", "--products", "40", "--prompts", "4", "--repeats", "1"] if config.check else []
        return ["examples/benchmarks/gpu.py", *few, *on, *found]
    flags = ["--data", str(Path(config.data).resolve()), "--out", str(out / name), *on]
    if name == "qwen3":
        return ["examples/finetune_qwen3.py", "--check", *flags]
    model = ["--check", "--model", "bundled"] if config.check else [
        "--model", config.model, "--scale", f"{config.scale:g}"
    ]  # fmt: skip
    order = "pre-cot" if name == "thinker" else "label"
    return ["examples/finetune_qwen3.py", *model, "--lora-rank", "0", "--order", order, *flags]


def run_part(name: str, command: Sequence[str], out: Path, limit_s: float) -> dict:
    """Run a part for at most so many seconds; what it wrote until then counts. Its processes are ended with it."""
    print(f"\n{name} (at most {limit_s:.0f} s): python {shlex.join(command)}", flush=True)
    started = time.monotonic()
    with open(out / f"{name}.log", "w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, stdout=log, stderr=log, start_new_session=True
        )  # a group of its own: the stages that it starts end with it
        status = waited(process, limit_s)
    if status.startswith("failed"):
        lines = (out / f"{name}.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        print("  " + "\n  ".join(lines[-5:]), flush=True)
    row = {"part": name, "status": status, "seconds": round(time.monotonic() - started, 1), "command": list(command)}
    return row | found_by(name, out)


def waited(process: subprocess.Popen, limit_s: float) -> str:
    """ "done", "failed, exit status 2" or "cut off after 60 s"."""
    try:
        code = process.wait(max(0.0, limit_s))
        return "done" if code == 0 else f"failed, exit status {code}"
    except subprocess.TimeoutExpired:
        status = f"cut off after {limit_s:.0f} s"
    finally:  # also where this program is interrupted
        for kind in (signal.SIGTERM, signal.SIGKILL):
            if process.poll() is None:
                os.killpg(process.pid, kind)
                try:
                    process.wait(GRACE_S)
                except subprocess.TimeoutExpired:
                    continue
    return status


def found_by(name: str, out: Path) -> dict:
    """What a part has written: a benchmark's rows, or a run's finished steps and its report."""
    files = {"found": out / f"{name}.json", "steps": out / name / "steps.json", "report": out / name / "report.json"}
    return {key: json.loads(path.read_text(encoding="utf-8")) for key, path in files.items() if path.is_file()}


if __name__ == "__main__":
    run_main(main)
