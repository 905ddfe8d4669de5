"""Several scripts, one after another, in one job of ranks, which starts slowly.

    torchrun --nproc_per_node=2 tests/faults/several_mains.py JOBS.json         # [["train.sft", ["--steps", ...]], ...]
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from taosr1.runtime.signals import run_main


def main(argv: list[str]) -> None:
    torch.set_num_threads(1)
    for script, flags in json.loads(Path(argv[0]).read_text(encoding="utf-8")):
        importlib.import_module(script).main(flags)


if __name__ == "__main__":
    run_main(lambda: main(sys.argv[1:]))
