"""The curves of a run folder: the metrics in its metrics.jsonl over optimizer steps, and the settings beside them."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

from taosr1.runtime.files import read_json
from taosr1.runtime.run_folder import METRICS_FILE

Curve = dict[int, float]  # one metric of one run: its finite value at each step that has one, steps ascend


@dataclass(frozen=True)
class RunCurves:
    """The readable curves of a run folder; `origin`: seed, commit and machine; `notes`: what was left out, and why."""

    folder: Path
    curves: dict[str, Curve]
    origin: str = ""
    notes: tuple[str, ...] = ()


def read_run(folder: str | Path) -> RunCurves:
    """The curves of a run folder. Missing or broken files are no errors: `notes` names them."""
    folder = Path(folder)
    rows, notes = read_metrics(folder / METRICS_FILE)
    curves, left_out = curves_of(rows)
    if left_out:
        values = ", ".join(f"{name} ({count})" for name, count in left_out.items())
        notes.append(f"{folder / METRICS_FILE}: values that are not finite are left out: {values}")
    config, environment = (settings_of(folder / name) for name in ("config.json", "env.json"))
    seed = f"seed {config['seed']}" if "seed" in config else ""
    facts = (seed, environment.get("commit"), environment.get("cuda") or environment.get("machine"))
    return RunCurves(folder, curves, ", ".join(str(fact) for fact in facts if fact), tuple(notes))


def read_metrics(path: Path) -> tuple[list[dict], list[str]]:
    """The lines of metrics.jsonl that are objects with a step, and a note for everything else."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        return [], [f"{path}: {error.strerror or error}"]
    rows, notes = [], []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict) and type(row.get("step")) is int:
            rows.append(row)
        elif line.strip() and number == len(lines):  # every complete line ends with a line break
            notes.append(f"{path}:{number}: left out, the run was stopped while it wrote this line, or still writes it")
        elif line.strip():
            notes.append(f"{path}:{number}: left out, not a JSON object with a step")
    if not rows and not notes:
        notes.append(f"{path}: nothing is logged yet")
    return rows, notes


def curves_of(rows: Sequence[dict]) -> tuple[dict[str, Curve], dict[str, int]]:
    """One curve per metric of the rows of metrics.jsonl, and the number of values of each metric that are not finite.

    Of several values of a metric for one step the last counts. (The scores of a step are on a line of their own.)
    """
    curves: dict[str, Curve] = {}
    left_out: Counter[str] = Counter()
    for row in sorted(rows, key=itemgetter("step")):
        for name, value in row.items():
            if name == "step" or isinstance(value, bool) or not isinstance(value, (int, float)):
                continue
            if math.isfinite(value):
                curves.setdefault(name, {})[row["step"]] = float(value)
            else:
                left_out[name] += 1
    return curves, dict(left_out)


def settings_of(path: Path) -> dict:
    """A JSON file of a run folder, {} where it is missing or broken."""
    try:
        return read_json(path)
    except (OSError, ValueError):
        return {}  # what reads it then says that it is missing
