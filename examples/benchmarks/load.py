"""Loading a model: peak memory and time beside safetensors' own reading of the same file.

    python examples/benchmarks/load.py                                      # the 0.6B shape, stored as bfloat16

Each load runs in a process of its own, by turns, five times. "safetensors" maps the file and copies every tensor into
the wanted type: what a program without our checks would do. Random weights of exactly Qwen3-0.6B's shape are made on
the spot.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a fresh checkout runs without being installed

import torch

from examples.benchmarks.common import SHAPES, in_fresh_process, machine, make_model, peak_bytes
from taosr1.model.io.weights import DTYPES
from taosr1.runtime.cli import at_least, check, option, parse_config
from taosr1.runtime.signals import run_main

WHO = ("ours", "safetensors", "transformers")


@dataclass(frozen=True)
class Config:
    shape: str = option("qwen3-0.6b", "which model", tuple(SHAPES))
    device: str = option("cpu", "torch device")
    threads: int = option(1, "CPU threads")
    repeats: int = option(5, "loads of each kind")
    out: str = option("", "JSON file to write")
    one: str = option("", "internal: measure only this, as WHO/DTYPE")
    folder: str = option("", "internal: the model's folder")

    def __post_init__(self) -> None:
        check(at_least(self, threads=1, repeats=1))


def main(argv: list[str] | None = None) -> list[dict]:
    config = parse_config(Config, __doc__, argv)
    if config.one:
        print(json.dumps(load(*config.one.split("/"), config)))
        return []
    rows = []
    repeats = f"{config.threads} thread(s), median of {config.repeats} (least to most)"
    print(f"{config.shape}, {config.device}, {repeats}; {machine()}")
    with tempfile.TemporaryDirectory() as folder:
        make_model(config.shape, Path(folder), torch.bfloat16)
        for dtype in ("bfloat16", "float32"):
            found: dict[str, list[dict]] = {who: [] for who in WHO}
            for _ in range(config.repeats):
                for who in WHO:
                    arguments = ("--one", f"{who}/{dtype}", "--folder", folder)
                    arguments += ("--shape", config.shape, "--device", config.device)
                    found[who].append(in_fresh_process(__file__, *arguments, threads=config.threads))
            for who, loads in found.items():
                seconds = [load["seconds"] for load in loads]
                peak = max(load["peak"] / load["weights"] for load in loads)
                pairs = zip(loads, found["safetensors"])
                ratio = statistics.median(ours["seconds"] / theirs["seconds"] for ours, theirs in pairs)
                row = {"who": who, "dtype": dtype, "seconds": statistics.median(seconds), "peak_over_weights": peak}
                rows.append({**row, "times_safetensors": ratio})
                print(
                    f"{dtype:9} {who:13} {row['seconds']:6.2f} s ({min(seconds):.2f} to {max(seconds):.2f})  "
                    f"{ratio:5.2f} x safetensors  peak {peak:.2f} x the weights"
                )
    if config.out:
        report = {"machine": machine(), "shape": config.shape, "rows": rows}
        Path(config.out).write_text(json.dumps(report, indent=1) + "\n")
    return rows


def load(who: str, dtype_name: str, config: Config) -> dict:
    """Peak memory above what the imports take, seconds, and bytes of the weights in the wanted type."""
    dtype = DTYPES[dtype_name]
    if who == "ours":
        from taosr1.model.io.weights import load_decoder as read
    elif who == "safetensors":
        from safetensors.torch import load_file

        def read(folder, dtype, device):
            tensors = load_file(f"{folder}/model.safetensors")
            return {name: tensor.to(device, dtype, copy=True) for name, tensor in tensors.items()}
    else:
        from transformers import Qwen3ForCausalLM

        def read(folder, dtype, device):
            return Qwen3ForCausalLM.from_pretrained(folder, dtype=dtype).to(device)

    base = peak_bytes()
    started = time.perf_counter()
    loaded = read(config.folder, dtype=dtype, device=config.device)
    seconds = time.perf_counter() - started
    tensors = loaded.values() if isinstance(loaded, dict) else loaded.parameters()
    return {"seconds": seconds, "peak": peak_bytes() - base, "weights": sum(tensor.nbytes for tensor in tensors)}


if __name__ == "__main__":
    run_main(main)
