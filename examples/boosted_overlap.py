"""The strong simple baseline without a language model: gradient boosting over query-title overlap features ([dev] extra).

    python examples/boosted_overlap.py --data synthetic:reasoned,synthetic:labelled
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a fresh checkout runs without being installed

from taosr1.data.sources import load_rows
from taosr1.evaluation.baselines import boosted_overlap
from taosr1.evaluation.report import Prediction, evaluate_predictions, render_report
from taosr1.runtime.cli import option, parse_config
from taosr1.runtime.files import write_json
from taosr1.runtime.signals import run_main


@dataclass(frozen=True)
class Config:
    data: str = option("synthetic:reasoned", "graded rows to learn: files or synthetic:POOL, separated by commas")
    test: str = option("synthetic:test", "graded rows to measure on")
    out: str = option("", "JSON file for the whole report")
    split: str = option("", "keep only the rows whose 'split' column says this (ESCI: train)")
    test_split: str = option("", "the same for --test (ESCI: test)")
    seed: int = option(0, "seed of the embedded training pools, the features, the trees and the bootstrap")


def main(argv: list[str] | None = None) -> dict:
    config = parse_config(Config, __doc__, argv)
    rows = load_rows(config.data, seed=config.seed, split=config.split, need_grade=True)
    test = load_rows(config.test, split=config.test_split, need_grade=True)
    started = time.perf_counter()
    probs = boosted_overlap(rows, test, seed=config.seed)
    predictions = [Prediction(max(range(4), key=row.__getitem__) + 1, tuple(row)) for row in probs.tolist()]
    report = {"train_s": round(time.perf_counter() - started, 1)} | evaluate_predictions(test, predictions, seed=config.seed)
    print(render_report(report))
    if config.out:
        write_json(Path(config.out), report)
    return report


if __name__ == "__main__":
    run_main(main)
