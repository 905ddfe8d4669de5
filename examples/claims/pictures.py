"""The pictures of examples/reproduce.py, from table.json: one file a curve, and one of the sampling policies."""

from __future__ import annotations

from pathlib import Path

from infer.plot import save_figure
from taosr1.runtime.messages import install

LOGARITHMIC = 20  # an axis that spans more than so many times its beginning
MARKERS = "os^Dvx"  # beside colours, for readers who see few of them


def draw(table: dict, out: Path) -> list[Path]:
    """Write curve-NAME.svg for every curve with points and policies.svg; returns their paths.

    Raises: ModuleNotFoundError without matplotlib.
    """
    try:
        from matplotlib.figure import Figure  # not pyplot: it opens windows and keeps global state
        from matplotlib.ticker import NullFormatter, ScalarFormatter
    except ImportError as error:
        raise ModuleNotFoundError(f"pictures need matplotlib: {install('plot')}") from error
    written = []

    def new(title: str, x: str, y: str):
        figure = Figure(figsize=(7.2, 4.0), layout="constrained")
        axes = figure.subplots()
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.grid(alpha=0.25, linewidth=0.5)
        return figure, axes

    def save(figure, name: str) -> None:
        written.append(out / name)
        save_figure(figure, written[-1])

    for curve in table["curves"]:
        lines = {what: [p for p in points if p["x"] > 0] for what, points in curve["lines"].items()}
        if not any(lines.values()):
            continue
        seeds = max(len(point["seeds"]) for points in lines.values() for point in points)
        figure, axes = new(f"{curve['title']}\n{_about(table, seeds)}", curve["x"], "macro-F1 x 100")
        places = sorted({point["x"] for points in lines.values() for point in points})
        if places[-1] > LOGARITHMIC * places[0]:
            axes.set_xscale("log")
            axes.set_xticks(places)
            axes.xaxis.set_major_formatter(ScalarFormatter())
            axes.xaxis.set_minor_formatter(NullFormatter())
        for number, (what, points) in enumerate(lines.items()):
            xs, values = [p["x"] for p in points], [100 * p["value"] for p in points]
            style = {"color": f"C{number}", "marker": MARKERS[number % len(MARKERS)]}
            axes.plot(xs, values, label=what, linewidth=1.2, markersize=4, **style)
            spread = [(p["x"], 100 * value) for p in points for value in p["seeds"] if len(p["seeds"]) > 1]
            axes.scatter(*zip(*spread), s=8, alpha=0.5, color=f"C{number}") if spread else None
        figure.legend(loc="outside right upper", frameon=False, fontsize=8)
        save(figure, f"curve-{curve['name']}.svg")
    if table["policies"]:
        seeds = max(map(len, table["policies"].values()))
        figure, axes = new(f"Sampling policies of GRPO\n{_about(table, seeds)}", "CV of the grade shares trained on",
                           "macro-F1 x 100")  # fmt: skip
        for number, (run, points) in enumerate(table["policies"].items()):
            style = {"color": f"C{number % 10}", "marker": MARKERS[number % len(MARKERS)]}
            axes.scatter(*zip(*[(cv, 100 * value) for cv, value in points]), label=run, s=20, **style)
        figure.legend(loc="outside right upper", frameon=False, fontsize=7)
        save(figure, "policies.svg")
    return written


def _about(table: dict, seeds: int) -> str:
    return f"{seeds} {'seed' if seeds == 1 else 'seeds'}, commit {', '.join(table['commits'])}"
