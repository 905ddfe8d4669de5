"""The curves that the default run of a stage gives, and how far another run is from them.

`default_runs/STAGE.csv`, which examples/expected_curves.py makes, holds for some metrics and steps the median, lowest
and highest value over seeds. Metrics of training steps are means over a window of steps, dev scores are as logged.
"""

from __future__ import annotations

import csv
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from taosr1.evaluation.curves import ASIDE, Curve
from taosr1.evaluation.record import Finding, Record
from taosr1.runtime.cli import flag_of

FOLDER = Path(__file__).with_name("default_runs")
WINDOWS = 20  # of a run's steps: each is one row of a metric
METRICS = {
    "sft": ("loss", "mean_token_prob", "dev_macro_f1"),
    "dpo": ("loss", "rewards/margins", "rewards/accuracies", "dev_macro_f1"),
    "grpo": ("reward_balanced", "kept_frac", "kl", "entropy", "dev_macro_f1"),
}
# Settings by which a run may differ from the default one and still be compared with it: what a learning rate is judged
# by, and what changes no number. A run of other data, another start or another loss has other curves.
COMPARABLE = ASIDE | {"lr", "muon_lr", "steps", "test", "eval_every", "dtype", "plain", "deterministic", "fsdp"}
PATHS = {"dpo": {"data"}}  # of the stage before, which anybody may name as they like; its --dev says what it is of
# How far outside the band a metric has to be, as a factor or in its own units: the bands are of three seeds, and a run
# of fewer steps lowers its learning rate sooner. A tenth of the default learning rate moves the KL term by far more.
FACTORS = {"loss": 2.0, "kl": 10.0, "rewards/margins": 3.0}
SMALL = {"loss": 0.02, "kl": 2e-3, "rewards/margins": 0.05}  # below these a factor says nothing
DISTANCES = {"dev_macro_f1": 0.05}
LOW_WHERE_SLOW = ("kl", "rewards/margins")  # what rises with every step in the policy's own direction


@dataclass(frozen=True)
class Band:
    """What the default runs have at a step."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Expected:
    """bands[metric][step]; window: the steps that a training metric is averaged over; config: of the default run;
    about: the command, commit and date of the runs."""

    bands: Mapping[str, Mapping[int, Band]]
    window: int
    config: Mapping[str, str]
    about: Mapping[str, str]


def windowed(curve: Curve, window: int) -> Curve:
    """The mean of every `window` steps, at the last of them; windows of which no step has a value are left out."""
    values: dict[int, list[float]] = {}
    for step, value in curve.items():
        values.setdefault(-(-step // window) * window, []).append(value)
    complete = max(curve, default=0)
    return {end: statistics.fmean(found) for end, found in values.items() if end <= complete}


def as_compared(curves: Mapping[str, Curve], name: str, window: int) -> Curve:
    curve = curves.get(name, {})
    return curve if name.startswith("dev_") else windowed(curve, window)


def bands_of(runs: Sequence[Mapping[str, Curve]], stage: str, window: int) -> dict[str, dict[int, Band]]:
    """Median, lowest and highest over runs, of the metrics of a stage, at the steps that all runs have."""
    bands: dict[str, dict[int, Band]] = {}
    for name in METRICS[stage]:
        curves = [as_compared(run, name, window) for run in runs]
        for step in sorted(set.intersection(*map(set, curves))):
            values = [curve[step] for curve in curves]
            bands.setdefault(name, {})[step] = Band(statistics.median(values), min(values), max(values))
    return bands


def read_expected(stage: str) -> Expected | None:
    """The committed curves of a stage; None where there are none."""
    path = FOLDER / f"{stage}.csv"
    if not path.is_file():
        return None
    lines = path.read_text(encoding="utf-8").splitlines()
    about = dict(line[2:].split(": ", 1) for line in lines if line.startswith("# ") and ": " in line)
    config = dict(pair.split("=", 1) for pair in about.pop("settings").split("; "))
    bands: dict[str, dict[int, Band]] = {}
    for row in csv.DictReader(line for line in lines if not line.startswith("#")):
        band = Band(*(float(row[name]) for name in ("median", "low", "high")))
        bands.setdefault(row["metric"], {})[int(row["step"])] = band
    return Expected(bands, int(about["window"]), config, about)


def settings_text(config: Mapping[str, object], stage: str) -> str:
    """What `differences_from` compares, on one line."""
    names = sorted(config.keys() - COMPARABLE - PATHS.get(stage, set()) | {"lr"})
    return "; ".join(f"{name}={config[name]}" for name in names)


def differences_from(expected: Expected, run: Record) -> list[str]:
    """The flags by which a run differs from the default one, and which its curves depend on."""
    ignored = COMPARABLE | PATHS.get(run.stage, set())
    pairs = [(name, expected.config.get(name), str(value)) for name, value in run.config.items()]
    return [flag_of(name) for name, usual, value in pairs if name not in ignored and usual not in (None, value)]


def compare(run: Record) -> tuple[list[Finding], str]:
    """Findings against the default run's curves; and a sentence that says what was compared, or why nothing was."""
    expected = read_expected(run.stage)
    if expected is None:
        return [], f"not compared: there are no expected curves of {run.stage}"
    others = differences_from(expected, run)
    if others:
        return [], f"not compared with the default run's curves: it has other {', '.join(others)}"
    findings = [found for name in METRICS[run.stage] if (found := _outside(run, expected, name))]
    steps = [step for name in expected.bands for step in as_compared(run.curves, name, expected.window)]
    if not steps:
        return [], f"not compared with the default run's curves: it has no {expected.window} steps yet"
    about = f"{expected.about['seeds']} seeds, commit {expected.about['commit']}"
    said = "outside the band" if findings else "inside the band or near it"
    return findings, f"compared with the default run's curves up to step {max(steps)} ({about}): {said}"


def _outside(run: Record, expected: Expected, name: str) -> Finding | None:
    """Whether the last value of a metric that both have is outside the band by more than its margin."""
    mine, bands = as_compared(run.curves, name, expected.window), expected.bands.get(name, {})
    step = max(mine.keys() & bands.keys(), default=None)
    factor, distance = FACTORS.get(name), DISTANCES.get(name)
    if step is None or not (factor or distance):
        return None
    band, value = bands[step], mine[step]
    if factor:
        below = name != "loss" and band.low > SMALL[name] and value < band.low / factor  # a lower loss is no fault
        above = value > factor * max(band.high, SMALL[name])
    else:
        below, above = value < band.low - distance, False
    if not (below or above):
        return None
    rate, usual = run.setting("lr"), float(expected.config["lr"])
    slow = below if name in LOW_WHERE_SLOW else rate < usual
    what = f"{name} is {value:.3g} at step {step}, where the default run has {band.low:.3g} to {band.high:.3g}"
    if rate != usual:
        change = f"{'raise' if rate < usual else 'lower'} {{lr}}: the default run has {usual:g}"
    else:
        rates = "{lr} and {muon_lr}" if "muon_lr" in run.config else "{lr}"
        change = f"{'raise' if slow else 'lower'} {rates}, or look at what else differs: data, weights, version"
    return run.finding("outside the expected curves", what, change, step)
