"""Training curves of one or more runs: what their metrics.jsonl holds, over optimizer steps, as small multiples.

    python -m taosr1.evaluation.plot runs/thinker-grpo                        # -> runs/thinker-grpo/curves.png
    python -m taosr1.evaluation.plot runs/a runs/b --smooth 10 --out ab.png   # several runs overlaid

A panel is drawn for every metric of `PANELS` that some run logged. The legend names each run with its seed, commit and
machine. A run that is still going, or was killed in the middle of a line, is drawn as far as it got, with a note.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METRICS_FILE = "metrics.jsonl"
# In the order of the panels: the name in metrics.jsonl, and what it says.
PANELS = {
    "loss": "the step's loss",
    "dev_macro_f1": "macro-F1 on dev",
    "dev_ece": "calibration error on dev (ECE)",
    "reward_balanced": "share of right replies, grades alike",
    "kept_frac": "share of groups trained on",
    "kept_cv": "imbalance of their grades (CV)",
    "entropy": "entropy of the next token (nats)",
    "kl": "distance to the starting model",
    "approx_kl": "distance to the sampling weights",
    "clip_ratio/region_mean": "share of tokens the clip stopped",
    "rewards/margins": "chosen above rejected, times beta",
    "rewards/accuracies": "share of pairs with chosen above",
    "grad_norm": "gradient norm before clipping",
    "lr_factor": "learning rate, of its peak",
    "completions/mean_length": "tokens per sampled reply",
}
NEVER_SMOOTHED = ("dev_macro_f1", "dev_ece", "lr_factor")  # scores of few checkpoints, and what is known exactly
FORMATS = (".png", ".svg", ".pdf")
COLUMNS = 4
MARKED_POINTS = 30  # curves with fewer points show each of them


@dataclass(frozen=True)
class Curve:
    """One metric of one run: `steps` ascend, each with one finite value."""

    steps: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class RunCurves:
    """A run folder as far as it can be read. `origin` is its seed, commit and machine; `notes` say what was left out."""

    folder: Path
    curves: dict[str, Curve]
    origin: str
    notes: tuple[str, ...]


# ---- reading ---------------------------------------------------------------------------------------------------------


def read_run(folder: str | Path) -> RunCurves:
    """The curves of a run folder. Nothing that is missing or broken is an error here: `notes` tells it."""
    folder = Path(folder)
    rows, notes = read_metrics(folder / METRICS_FILE)
    curves, left_out = curves_of(rows)
    if left_out:
        values = ", ".join(f"{name} ({count})" for name, count in left_out.items())
        notes.append(f"{folder / METRICS_FILE}: values that are not finite are left out: {values}")
    return RunCurves(folder, curves, _origin(folder), tuple(notes))


def read_metrics(path: Path) -> tuple[list[dict], list[str]]:
    """The lines of metrics.jsonl that are objects with a step, and a note for whatever else there was."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        return [], [f"{path}: {error.strerror or error}"]
    rows, notes = [], []
    lines = text.split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict) and type(row.get("step")) is int:
            rows.append(row)
        else:
            torn = number == len(lines)  # every whole line ends with a line break
            why = "the run was stopped while it wrote this line, or still writes it" if torn else "not a JSON object with a step"
            notes.append(f"{path}:{number}: left out, {why}")
    if not rows and not notes:
        notes.append(f"{path}: nothing is logged yet")
    return rows, notes


def curves_of(rows: Sequence[dict]) -> tuple[dict[str, Curve], dict[str, int]]:
    """Rows of metrics.jsonl as one curve per metric, and how many values of which metric were not finite.

    A step has a line of its training metrics and, where it was evaluated, another of its scores. Where a metric stands
    twice for one step, the later line counts.
    """
    points: dict[str, dict[int, float]] = {}
    left_out: dict[str, int] = {}
    for row in rows:
        for name, value in row.items():
            if name == "step" or isinstance(value, bool) or not isinstance(value, (int, float)):
                continue
            if math.isfinite(value):
                points.setdefault(name, {})[row["step"]] = float(value)
            else:
                left_out[name] = left_out.get(name, 0) + 1
    return {name: Curve(*map(tuple, zip(*sorted(by_step.items())))) for name, by_step in points.items()}, left_out


def _origin(folder: Path) -> str:
    """ "seed 0, 97e0ece, x86_64": of config.json and env.json, as far as they are there."""
    config, environment = (_read_object(folder / name) for name in ("config.json", "env.json"))
    seed = f"seed {config['seed']}" if "seed" in config else ""
    machine = environment.get("cuda") or environment.get("machine")
    return ", ".join(str(part) for part in (seed, environment.get("commit"), machine) if part)


def _read_object(path: Path) -> dict:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # a legend without its origin is still a legend
    return value if isinstance(value, dict) else {}


# ---- grouping --------------------------------------------------------------------------------------------------------


def panels_of(runs: Sequence[RunCurves]) -> list[str]:
    """The metrics of `PANELS` that at least one run has, in that order."""
    return [name for name in PANELS if any(name in run.curves for run in runs)]


def names_of(folders: Sequence[Path]) -> list[str]:
    """Each folder's shortest ending that no other folder shares: a and b, or x/run and y/run."""
    parts = [folder.absolute().parts for folder in folders]
    longest = max(map(len, parts), default=1)
    for depth in range(1, longest + 1):
        names = ["/".join(path[-depth:]) for path in parts]
        if len(set(names)) == len(set(parts)):
            break
    return names if parts else []


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """The mean of each value and up to window - 1 before it: no point knows what came later, as in the run itself.

    Raises: ValueError for a window below 1.
    """
    if window < 1:
        raise ValueError(f"--smooth is {window}, expected at least 1 (1: as logged)")
    parts = [values[max(0, end - window) : end] for end in range(1, len(values) + 1)]
    return [math.fsum(part) / len(part) for part in parts]


# ---- drawing ---------------------------------------------------------------------------------------------------------


def figure_of(runs: Sequence[RunCurves], smooth: int = 1) -> Figure:
    """The panels of these runs as a matplotlib figure, one colour a run; smoothed curves have the logged ones behind them.

    All panels span the same steps.

    Raises: ValueError where no run has a metric to draw; ModuleNotFoundError without matplotlib.
    """
    panels = panels_of(runs)
    if not panels:
        raise ValueError(f"nothing to draw: no run has one of {', '.join(PANELS)}")
    try:
        from matplotlib.figure import Figure  # without pyplot: no window, no state that stays behind
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise ModuleNotFoundError('plots need matplotlib: pip install -c constraints.txt -e ".[plot]"') from error
    columns = min(COLUMNS, len(panels))
    lines = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(3.4 * columns, 2.4 * lines + 0.5 + 0.22 * len(runs)), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False).flatten()
    last = max(run.curves[name].steps[-1] for name in panels for run in runs if name in run.curves)
    for axes, name in zip(grid, panels):
        for number, run in enumerate(runs):
            if name in run.curves:
                _draw(axes, run.curves[name], number, 1 if name in NEVER_SMOOTHED else smooth)
        axes.set_title(f"{name}\n{PANELS[name]}", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        axes.grid(alpha=0.25, linewidth=0.5)
        axes.set_xlim(0, 1.03 * max(last, 1))
        axes.set_xlabel("step", fontsize=7)
    for axes in grid[len(panels) :]:
        axes.remove()
    handles = [_draw(grid[0], None, number) for number in range(len(runs))]
    labels = [f"{name} ({run.origin})" if run.origin else name for name, run in zip(names_of([run.folder for run in runs]), runs)]
    note = f"smoothed: mean of {smooth} logged values (not {' and '.join(NEVER_SMOOTHED)})" if smooth > 1 else None
    figure.legend(handles, labels, loc="outside lower left", frameon=False, fontsize=8, title=note, title_fontsize=8, alignment="left")
    return figure


def _draw(axes, curve: Curve | None, number: int, smooth: int = 1):
    """Draw a curve in the style of run `number`; without a curve, only a line for the legend."""
    style = {"color": f"C{number % 10}", "linestyle": ("-", "--", ":", "-.")[number // 10 % 4], "linewidth": 1.2}
    if curve is None:
        return axes.plot([], [], **style)[0]
    marker = {"marker": "o", "markersize": 2.5} if len(curve.steps) < MARKED_POINTS else {}
    if smooth > 1:
        axes.plot(curve.steps, curve.values, **style | {"alpha": 0.25, "linewidth": 0.8})
    return axes.plot(curve.steps, smoothed(curve.values, smooth), **style, **marker)[0]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m taosr1.evaluation.plot", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="run folder (it holds metrics.jsonl)")
    parser.add_argument("--out", metavar="FILE", help="picture to write: .png, .svg or .pdf (default: curves.png in the first run that can be drawn)")
    parser.add_argument("--smooth", metavar="N", type=int, default=1, help="draw the mean of N logged values at a time (default: 1, as logged)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns: 0, or 2 after a message for wrong input."""
    args = _parser().parse_args(argv)
    try:
        if args.out and Path(args.out).suffix.lower() not in FORMATS:
            raise ValueError(f"--out is {args.out}, expected a file that ends with {', '.join(FORMATS)}")
        runs = [read_run(folder) for folder in args.runs]
        for note in (note for run in runs for note in run.notes):
            print(f"note: {note}", file=sys.stderr)
        drawn = [run for run in runs if panels_of([run])]
        figure = figure_of(drawn, args.smooth)
        out = Path(args.out) if args.out else drawn[0].folder / "curves.png"
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, dpi=140)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{len(panels_of(drawn))} panels of {len(drawn)} of {len(runs)} runs -> {out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
