"""What is known of a training run when somebody asks what is wrong with it: its stage, settings and curves."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from taosr1.evaluation.curves import STAGE_OF_SETTINGS, Curve, curves_of, is_number, read_metrics, settings_of, stage_of
from taosr1.runtime.bad_rows import shorten
from taosr1.runtime.cli import flag_of
from taosr1.runtime.run_folder import CONFIG_FILE, IDENTITY_FILE, METRICS_FILE

DEV_ROWS = 1000  # of a run whose identity.json does not say: the scripts' default


@dataclass(frozen=True)
class Finding:
    """name: of its row in examples/guide/doctor.md. what: in words, with the number. step: where it shows first, or
    where the part of the run begins that it was measured on. change: which flag, and how."""

    name: str
    what: str
    step: int
    change: str

    def __str__(self) -> str:
        return f"{self.name}, from step {self.step} on: {self.what}. {self.change[0].upper()}{self.change[1:]}"


@dataclass(frozen=True)
class Record:
    """A run as the rules see it.

    stage: sft, dpo, grpo or pretrain. curves: finite values by step. skipped: the steps whose loss was not finite.
    dev_rows: how many rows the dev scores are of.

    A metric that was not logged is NaN in all that follows, so that no comparison with it holds.
    """

    stage: str
    config: Mapping[str, object]
    curves: Mapping[str, Curve]
    skipped: tuple[int, ...] = ()
    dev_rows: int = DEV_ROWS
    notes: tuple[str, ...] = field(default=(), compare=False)

    @property
    def steps(self) -> int:
        """The last step that is logged."""
        return max((max(curve) for curve in self.curves.values()), default=0)

    @property
    def late_step(self) -> int:
        """Where the last quarter of the steps begins."""
        return self.steps - max(1, self.steps // 4) + 1

    def values(self, name: str) -> list[float]:
        return list(self.curves.get(name, {}).values())

    def first(self, name: str) -> float:
        return next(iter(self.values(name)), math.nan)

    def last(self, name: str) -> float:
        return next(reversed(self.values(name)), math.nan)

    def early(self, name: str) -> float:
        """Mean over the first quarter of the steps."""
        last = max(1, self.steps // 4)
        return _mean([x for step, x in self.curves.get(name, {}).items() if step <= last])

    def late(self, name: str) -> float:
        """Mean over the last quarter of the steps."""
        first = self.late_step
        return _mean([x for step, x in self.curves.get(name, {}).items() if step >= first])

    def rise(self, name: str) -> float:
        """`late` minus `early` in standard errors, from the scatter of each quarter; NaN below 4 values in each."""
        values = self.values(name)
        count = len(values) // 4
        if count < 4:
            return math.nan
        early, late = values[:count], values[-count:]
        error = math.sqrt((statistics.variance(early) + statistics.variance(late)) / count)
        difference = statistics.fmean(late) - statistics.fmean(early)
        return difference / error if error else math.copysign(math.inf, difference) if difference else 0.0

    def setting(self, name: str) -> float:
        """A number of the config; NaN where it has none of this name."""
        value = self.config.get(name)
        return float(value) if is_number(value) else math.nan

    def finding(self, name: str, what: str, change: str, step: int | None = None) -> Finding:
        """step: where the last quarter begins if not given. In `change` {lr} becomes "--lr (now 0.003)"."""
        return Finding(name, what, self.late_step if step is None else step, change.format_map(_Flags(self.config)))


class _Flags(dict):
    def __getitem__(self, name: str) -> str:
        value = self.get(name)
        shown = shorten(json.dumps(value)) if isinstance(value, str) else value
        return f"{flag_of(name)} (now {shown})" if name in self else flag_of(name)

    def __missing__(self, name: str) -> str:
        return flag_of(name)


def _mean(values: list[float]) -> float:
    return statistics.fmean(values) if values else math.nan


def read_record(folder: str | Path) -> Record:
    """The record of a run folder; `notes` say what could not be read.

    Raises: FileNotFoundError where it holds no metrics.jsonl; ValueError for a config.json of no training script.
    """
    folder = Path(folder)
    if not (folder / METRICS_FILE).is_file():
        hint = "give the --out of a training script that has finished a step"
        raise FileNotFoundError(f"{folder}: no run with a {METRICS_FILE} is there; {hint}")
    rows, notes = read_metrics(folder / METRICS_FILE)
    config = settings_of(folder / CONFIG_FILE)
    identity = settings_of(folder / IDENTITY_FILE)
    return record_of(rows, config, identity, notes, where=str(folder / CONFIG_FILE))


def record_of(
    rows: Sequence[dict],
    config: Mapping[str, object],
    identity: Mapping[str, object] | None = None,
    notes: Sequence[str] = (),
    where: str = CONFIG_FILE,
) -> Record:
    """The record of rows of metrics.jsonl. Raises: ValueError for a config of no training script."""
    stage = stage_of(config)
    if not stage:
        known = ", ".join(f"train/{name}.py" for name in STAGE_OF_SETTINGS)
        raise ValueError(f"{where}: missing, broken, or not written by one of {known}: give the folder of such a run")
    curves, _ = curves_of(rows)
    bad = {row["step"] for row in rows if isinstance(row.get("loss"), float) and not math.isfinite(row["loss"])}
    bad |= {row["step"] for row in rows if row.get("skipped", 0) not in (0, None)}
    dev_rows = str((identity or {}).get("dev", "")).partition(" ")[0]
    found = int(dev_rows) if dev_rows.isdecimal() else DEV_ROWS
    return Record(stage, config, curves, tuple(sorted(bad)), max(1, found), tuple(notes))
