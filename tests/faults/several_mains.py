"""Several scripts, one after another, in one job of ranks: torchrun starts slowly, and tests have little time.

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


def main() -> None:
    torch.set_num_threads(1)
    for script, argv in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        importlib.import_module(script).main(argv)


if __name__ == "__main__":
    run_main(main)
