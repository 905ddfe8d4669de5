"""Qwen3-0.6B on ESCI, from nothing to tiers on one GPU: the commands of finetune_qwen3.md, one after another.

    python examples/finetune_qwen3.py --data shopping_queries_dataset_examples.parquet
    python examples/finetune_qwen3.py --data pairs.jsonl.gz --check --device cpu    # random weights, a few steps
    python examples/finetune_qwen3.py --data pairs.jsonl.gz --model smollm2 --lora-rank 0 --order pre-cot

Label first throughout, because ESCI has grades and no reasons: SFT, mining, DPO, GRPO, then temperature and CumPT's
beta fitted on dev, every test row scored, and one merged folder. A tenth of the training queries is held out as dev.
With --order pre-cot a thinker goes the same way on the bundled teacher's reasons, grades the training rows, and a
student that answers at once learns from its grades. Each command is printed with its time and peak memory, which
steps.json keeps; a step that is done is not repeated.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a fresh checkout runs without being installed

import torch

from examples.benchmarks.common import make_model
from taosr1.data.judgements import write_judgements
from taosr1.data.sources import load_rows
from taosr1.judge_model import DTYPES
from taosr1.runtime.cli import check, option, parse_config
from taosr1.runtime.signals import run_main

ROOT = Path(__file__).resolve().parents[1]
DEV_SHARE = 10  # one training query in so many is held out
REPLY_TOK = 160  # longest reply with reasons


@dataclass(frozen=True)
class Config:
    data: str = option("", "ESCI rows with their split: .jsonl[.gz], .csv or the .parquet files")
    model: str = option("Qwen/Qwen3-0.6B", "hub id or folder")
    out: str = option("runs/qwen3", "folder for everything")
    lora_rank: int = option(16, "adapters' rank; 0 trains all weights, which takes about four times the memory")
    device: str = option("cuda", "torch device")
    dtype: str = option("bfloat16", "compute type", tuple(DTYPES))
    order: str = option("label", "label: grades alone; pre-cot: a thinker, then its student", ("label", "pre-cot"))
    scale: float = option(1.0, "so many times the optimizer steps of every stage")
    check: bool = option(False, "a few rows and steps, random weights of the default's shape: does every command run?")
    seed: int = option(0, "seed")

    def __post_init__(self) -> None:
        random = self.check and self.model == Config.model
        check([
            (not self.data, "--data is missing: ESCI's examples, see examples/finetune_qwen3.md"),
            (self.scale <= 0, f"--scale is {self.scale}, expected more than 0"),
            (random and self.order != "label",
             "--check --order pre-cot: random weights write no reply that can be read; give --model bundled, say"),
        ])  # fmt: skip


def main(argv: list[str] | None = None) -> list[dict]:
    config = parse_config(Config, __doc__, argv)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    model, random = config.model, config.check and config.model == Config.model
    if random:
        model = str(make_model("qwen3-0.6b", out / "random", torch.bfloat16))
    hold_out(config, out)
    done = []
    for name, result, command in plan(config, out, model):
        if (out / result).exists():
            print(f"{name}: done already ({out / result})")
            continue
        print(f"\n{name}: python {shlex.join(command)}", flush=True)
        started = time.perf_counter()
        process = subprocess.Popen([sys.executable, *command], cwd=ROOT)
        _, status, usage = os.wait4(process.pid, 0)
        if os.waitstatus_to_exitcode(status):
            raise ValueError(f"{name} failed, see above; the same command continues from there")
        seconds, peak_mib = round(time.perf_counter() - started, 1), round(usage.ru_maxrss / 1024)
        row = {"step": name, "seconds": seconds, "peak_mib": peak_mib, **gpu_memory(out / name)}
        done.append(row)
        print(f"{name}: {row}", flush=True)
        (out / "steps.json").write_text(json.dumps(done, indent=1) + "\n", encoding="utf-8")
    return done


def hold_out(config: Config, out: Path) -> None:
    """train.jsonl and dev.jsonl by query from the training split, test.jsonl from the other."""
    limit = 40 if config.check else 0
    rows = load_rows(config.data, split="train", need_grade=True)
    queries = {row.query_id or row.query: None for row in rows}
    dev = set(list(queries)[::DEV_SHARE])
    parts = {
        "train": [row for row in rows if (row.query_id or row.query) not in dev],
        "dev": [row for row in rows if (row.query_id or row.query) in dev],
        "test": load_rows(config.data, split="test", need_grade=True),
    }
    for name, part in parts.items():
        write_judgements(out / f"{name}.jsonl", part[: limit or len(part)])


def plan(config: Config, out: Path, model: str) -> list[tuple[str, str, list[str]]]:
    """(name, file that exists when it is done, command) of every step."""
    train, dev, test = (str((out / f"{name}.jsonl").resolve()) for name in ("train", "dev", "test"))
    small, folder, thinks = config.check, out.resolve(), config.order == "pre-cot"
    steps = {"sft": 8, "dpo": 2, "grpo": 2} if small else {"sft": 600, "dpo": 100, "grpo": 200}
    steps = {name: max(2, round(count * config.scale)) for name, count in steps.items()}
    steps["student"] = steps["sft"]
    device = ["--device", config.device, "--dtype", config.dtype]
    machine = [*device, "--seed", str(config.seed)]
    lora = ["--lora-rank", str(config.lora_rank), "--lora-alpha", str(2 * config.lora_rank)] if config.lora_rank else []
    rate = 10 if config.lora_rank else 1  # adapters want about ten times the learning rate of whole weights
    # Random weights have to learn in eight steps that a label comes first.
    first_rate = 1e-3 if small and config.model == Config.model else 2e-5 * rate

    def stage(name: str, script: str, start: str, *more: object) -> tuple[str, str, list[str]]:
        every, dev_rows = (steps[name], 4) if small else (max(1, steps[name] // 4), 200 if thinks else 2000)
        command = [f"train/{script}.py", "--model", start, "--dev", dev, "--out", folder / name, "--steps", steps[name],
                   "--eval-every", every, "--dev-rows", dev_rows, *more, *lora, *machine]  # fmt: skip
        return name, f"{name}/checkpoints/step-{steps[name]:06d}", [str(word) for word in command]

    tokens, rows = ["--micro-batch-tok", 8192], ["--batch-size", 4 if small else 64]
    pairs, reasoned, pool = (str(folder / f"{name}.jsonl") for name in ("pairs", "reasoned", "pool"))
    sft, dpo, grpo, student = (str(folder / name) for name in ("sft", "dpo", "grpo", "student"))
    explained, reply = (reasoned, REPLY_TOK) if thinks else (train, 2)
    mine = ["--prompts", 8 if small else 2000 if thinks else 8000, "--samples", 5, "--max-new-tokens", reply,
            "--balance", "none"]  # fmt: skip
    groups = ["--groups", 6 if small else 128, "--samples", 4 if small else 8, "--difficulty",
              "samples" if thinks else "prefill", "--max-new-tokens", reply, "--test", ""]  # fmt: skip
    learn = [*tokens, *rows, *(["--max-new-tokens", reply] if thinks else [])]
    judge = student if thinks else grpo
    judged = ["--model", judge, *device, "--data", test, *(["--limit", "8"] if small else [])]
    report, scored, merged = (str(folder / name) for name in ("report.json", "scored.jsonl", "merged"))
    made = [
        stage("sft", "sft", model, "--order", config.order, "--data", explained, "--lr", f"{first_rate:g}", *learn),
        ("mine", "pairs.jsonl",
         ["train/mine_pairs.py", "--model", sft, "--data", explained, "--out", pairs, *map(str, mine), *machine]),
        stage("dpo", "dpo", sft, "--data", pairs, "--lr", f"{2e-6 * rate:g}", *tokens, *rows),
        stage("grpo", "grpo", dpo, "--data", train, "--lr", f"{2e-6 * rate:g}", *tokens, *groups),
        ("evaluate", "report.json",
         ["infer/evaluate.py", *judged, "--dev", dev, "--fit-temperature", "--save-beta", "--out", report]),
        ("score", "scored.jsonl", ["infer/score.py", *judged, "--out", scored]),
        ("merge", "merged/config.json", ["infer/merge.py", "--model", judge, "--dtype", "bfloat16", "--out", merged]),
    ]  # fmt: skip
    if thinks:
        made[4:4] = [
            ("pool", "pool.jsonl", ["train/label_pool.py", "--model", grpo, "--data", train, "--out", pool,
                                    "--max-new-tokens", str(reply), *machine]),
            stage("student", "sft", grpo, "--order", "label", "--data", pool, "--lr", f"{2e-5 * rate:g}", *learn),
        ]  # fmt: skip
        reasons = ["train/teacher.py", "evidence", "--data", train, "--out", reasoned]
        made.insert(0, ("reasons", "reasoned.jsonl", reasons))
    return made


def gpu_memory(run: Path) -> dict[str, int]:
    """The most that torch allocated on the GPU, as a training run logs it."""
    path = run / "metrics.jsonl"
    if not (torch.cuda.is_available() and path.is_file()):
        return {}
    return {"gpu_peak_mib": max(json.loads(line).get("peak_mib", 0) for line in path.open(encoding="utf-8"))}


if __name__ == "__main__":
    run_main(main)
