"""Training curves of one or more runs: the metrics in their metrics.jsonl over optimizer steps, one panel each.

    python infer/plot.py runs/thinker-grpo                        # -> runs/thinker-grpo/curves.png
    python infer/plot.py runs/a runs/b --smooth 10 --out ab.png   # several runs in the same panels
    python infer/plot.py runs/thinker-grpo --metric dev_macro_f1 --out grpo.svg   # one small picture

A panel is drawn for every metric of `PANELS` that some run logged, or only for those that --metric names. The legend
gives each run's seed, commit and machine. An unfinished run is drawn as far as it got. The same metrics give the same
SVG, byte by byte; its text stays text, so that the file is small.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a fresh checkout runs without being installed

from taosr1.evaluation.curves import Curve, RunCurves, read_run
from taosr1.runtime.cli import Parser
from taosr1.runtime.messages import install
from taosr1.runtime.out_paths import check_out

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The name in metrics.jsonl and the title, in the order of the panels.
PANELS = {
    "loss": "the step's loss",
    "dev_macro_f1": "macro-F1 on dev",
    "dev_ece": "calibration error on dev (ECE)",
    "reward_balanced": "share of right replies, mean over grades",
    "kept_frac": "share of groups trained on",
    "kept_cv": "imbalance of their grades (CV)",
    "entropy": "entropy of the next token (nats)",
    "kl": "distance to the starting model",
    "approx_kl": "distance to the sampling weights",
    "clip_ratio/region_mean": "share of clipped tokens",
    "rewards/margins": "margin of chosen over rejected, times beta",
    "rewards/accuracies": "share of pairs with chosen above",
    "grad_norm": "gradient norm before clipping",
    "lr_factor": "learning rate relative to its peak",
    "completions/mean_length": "tokens per sampled reply",
}
NEVER_SMOOTHED = ("dev_macro_f1", "dev_ece", "lr_factor")  # few points, or no noise
FORMATS = (".png", ".svg", ".pdf")
COLUMNS = 4
MARKED_POINTS = 30  # curves with fewer points show each of them


# ---- arrange ---------------------------------------------------------------------------------------------------------


def panels_of(runs: Sequence[RunCurves], metrics: Sequence[str] = ()) -> list[str]:
    """The metrics of `PANELS` that at least one run has, in that order; if `metrics` is not empty, only those in it."""
    return [name for name in PANELS if name in (metrics or PANELS) and any(name in run.curves for run in runs)]


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """The mean of each value and up to window - 1 values before it.

    Raises: ValueError for a window below 1.
    """
    if window < 1:
        raise ValueError(f"--smooth is {window}, expected at least 1 (1: as logged)")
    windows = [values[max(0, end - window) : end] for end in range(1, len(values) + 1)]
    return [math.fsum(values) / len(values) for values in windows]


# ---- draw ------------------------------------------------------------------------------------------------------------


def figure_of(runs: Sequence[RunCurves], smooth: int = 1, metrics: Sequence[str] = ()) -> Figure:
    """A matplotlib figure with the panels of these runs (`panels_of`), one colour a run, all over the same steps.

    Where a curve is smoothed, the logged values are drawn behind it.
    Raises: ValueError where no run has a metric to draw; ModuleNotFoundError without matplotlib.
    """
    panels = panels_of(runs, metrics)
    if not panels:
        raise ValueError(f"nothing to draw: no run has one of {', '.join(metrics or PANELS)}")
    try:
        from matplotlib.figure import Figure  # not pyplot: it opens windows and keeps global state
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise ModuleNotFoundError(f"plots need matplotlib: {install('plot')}") from error
    columns = min(COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    width, height, font = (6.4, 2.8, 9) if len(panels) == 1 else (3.4, 2.4, 7)
    figure = Figure(figsize=(width * columns, height * rows + 0.5 + 0.22 * len(runs)), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    last = max(max(run.curves[name]) for name in panels for run in runs if name in run.curves)
    for axes, name in zip(grid, panels):
        for number, run in enumerate(runs):
            if name in run.curves:
                _draw(axes, run.curves[name], number, 1 if name in NEVER_SMOOTHED else smooth)
        axes.set_title(f"{name}\n{PANELS[name]}", fontsize=font + 1)
        axes.set_xlabel("step", fontsize=font)
        axes.set_xlim(0, 1.03 * max(last, 1))
        axes.tick_params(labelsize=font)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        axes.grid(alpha=0.25, linewidth=0.5)
    for axes in grid[len(panels) :]:
        axes.remove()
    lines = [_draw(grid[0], {}, number) for number in range(len(runs))]  # not every run is in the first panel
    labels = [f"{run.folder} ({run.origin})" if run.origin else str(run.folder) for run in runs]
    note = f"smoothed: mean of {smooth} logged values (not {', '.join(NEVER_SMOOTHED)})" if smooth > 1 else None
    look = {"loc": "outside lower left", "frameon": False, "fontsize": font + 1, "title_fontsize": font + 1}
    figure.legend(lines, labels, title=note, alignment="left", **look)
    return figure


def _draw(axes, curve: Curve, number: int, smooth: int = 1):
    """Draw a curve in the style of run `number`."""
    style = {"color": f"C{number % 10}", "linestyle": ("-", "--", ":", "-.")[number // 10 % 4], "linewidth": 1.2}
    marker = {"marker": "o", "markersize": 2.5} if 0 < len(curve) < MARKED_POINTS else {}
    steps, values = list(curve), list(curve.values())
    if smooth > 1:
        axes.plot(steps, values, **style | {"alpha": 0.25, "linewidth": 0.8})
    return axes.plot(steps, smoothed(values, smooth), **style, **marker)[0]


def save_figure(figure: Figure, path: Path) -> None:
    """Write a .png, .svg or .pdf file, into a new folder where needed."""
    from matplotlib import rc_context

    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"Date": None} if path.suffix.lower() == ".svg" else None  # no date: equal curves give equal files
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "taosr1"}):  # no embedded fonts, no random ids
        figure.savefig(path, dpi=140, metadata=metadata)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns: 0, or 2 after a message for wrong input."""
    look = {"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = Parser("python infer/plot.py", description=__doc__, **look)
    add = parser.add_argument
    add("runs", metavar="RUN", nargs="+", help="run folder (it holds metrics.jsonl)")
    add("--out", metavar="FILE", help="picture: .png, .svg or .pdf (default: curves.png in the first run drawn)")
    add("--smooth", metavar="N", type=int, default=1, help="draw the mean of N logged values at a time (default: 1)")
    help_metric = f"draw only this metric; may be repeated. One of {', '.join(PANELS)}"
    add("--metric", metavar="NAME", action="append", default=[], choices=list(PANELS), help=help_metric)
    args = parser.parse_args(argv)
    try:
        if args.out is not None and Path(args.out).suffix.lower() not in FORMATS:
            raise ValueError(f"--out is {args.out}, expected a file that ends with {', '.join(FORMATS)}")
        if args.out is not None:
            check_out(args.out)
        runs = [read_run(folder) for folder in args.runs]
        for note in (note for run in runs for note in run.notes):
            print(f"note: {note}", file=sys.stderr)
        drawn = [run for run in runs if panels_of([run], args.metric)]
        figure = figure_of(drawn, args.smooth, args.metric)
        out = Path(args.out) if args.out else drawn[0].folder / "curves.png"
        save_figure(figure, out)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{len(panels_of(drawn, args.metric))} panels of {len(drawn)} of {len(runs)} runs -> {out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
