"""The curves of a run folder: every metric of its metrics.jsonl over the optimizer steps, as far as it can be read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path

from taosr1.runtime.files import read_json
from taosr1.runtime.jsonl import clean_value
from taosr1.runtime.run_folder import CONFIG_FILE, METRICS_FILE

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
# Settings that do not change what a run computes, but for its seed.
ASIDE = {
    "seed", "out", "resume", "accept_changed", "keep_last", "save_every", "save_minutes", "max_skipped", "device",
    "micro_batch_tok", "activation_checkpointing",
}  # fmt: skip
# The settings by which a config.json is known, and the script that has them.
STAGE_OF_SETTINGS = {
    "sft": ("order", "grade_power"), "dpo": ("beta", "loss_type"), "grpo": ("kl_beta", "samples"),
    "pretrain": ("max_tok", "queries"),
}  # fmt: skip
TITLES = {"sft": "SFT", "dpo": "DPO", "grpo": "GRPO", "pretrain": "pre-training"}
LARGEST = 1e300  # sums and squares of a few of them would be infinite above
Curve = dict[int, float]  # one metric of one run: its finite value at each step that has one, steps ascend


@dataclass(frozen=True)
class RunCurves:
    """The readable curves of a run folder; `origin`: seed, commit and machine; `notes`: what was left out, and why.

    config: its settings, {} where they cannot be read.
    """

    folder: Path
    curves: dict[str, Curve]
    origin: str = ""
    notes: tuple[str, ...] = ()
    config: dict = field(default_factory=dict)

    @property
    def stage(self) -> str:
        """What was trained: "GRPO", "DPO", "SFT, post-cot", ...; curves of two stages have nothing in common."""
        stage = stage_of(self.config)
        order = f", {self.config['order']}" if stage == "sft" else ""
        return TITLES[stage] + order if stage else f"unknown stage of {self.folder}"

    @property
    def recipe(self) -> dict:
        """The settings that decide what it computes, without the seed. A path into the folder that the run lies in is
        written from there: runs/seed-1/grpo begins with runs/seed-1/sft as runs/seed-2/grpo does with runs/seed-2/sft.
        """
        around = f"{Path(str(self.config.get('out', ''))).parent.as_posix()}/"
        inside = {name: value.replace(around, "") if around != "./" else value
                  for name, value in self.config.items() if isinstance(value, str)}  # fmt: skip
        return {name: value for name, value in (self.config | inside).items() if name not in ASIDE}


def read_run(folder: str | Path) -> RunCurves:
    """The curves of a run folder. Missing or broken files are no errors: `notes` names them."""
    folder = Path(folder)
    rows, notes = read_metrics(folder / METRICS_FILE)
    curves, left_out = curves_of(rows)
    if left_out:
        values = ", ".join(f"{name} ({count})" for name, count in left_out.items())
        notes.append(f"{folder / METRICS_FILE}: values that are not finite, or beyond 1e300, are left out: {values}")
    config, environment = (settings_of(folder / name) for name in (CONFIG_FILE, "env.json"))
    seed = f"seed {config['seed']}" if "seed" in config else ""
    facts = (seed, environment.get("commit"), environment.get("cuda") or environment.get("machine"))
    return RunCurves(folder, curves, ", ".join(str(fact) for fact in facts if fact), tuple(notes), config)


def stage_of(config: Mapping[str, object]) -> str:
    """sft, dpo, grpo or pretrain, by the names of a run's settings; "" where they are of no training script."""
    return next((name for name, keys in STAGE_OF_SETTINGS.items() if all(key in config for key in keys)), "")


def by_recipe(runs: Sequence[RunCurves]) -> list[list[RunCurves]]:
    """Runs that differ in their seed only, together; in the order of the first of each. Unknown settings stay alone."""
    groups: list[list[RunCurves]] = []
    for run in runs:
        same = (group for group in groups if run.config and group[0].config and group[0].recipe == run.recipe)
        group = next(same, None)
        if group is None:
            groups.append([run])
        else:
            group.append(run)
    return groups


def read_metrics(path: Path) -> tuple[list[dict], list[str]]:
    """The lines of metrics.jsonl or samples.jsonl that are objects with a step, and a note for everything else."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        return [], [f"{path}: {error.strerror or error}"]
    rows, notes = [], []
    for number, line in enumerate(lines, start=1):
        try:
            row = clean_value(json.loads(line))
        except (ValueError, RecursionError):
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
    """One curve per metric of the rows of metrics.jsonl, and the number of values of each that are no `is_number`.

    Of several values of a metric for one step the last counts. (The scores of a step are on a line of their own.)
    """
    curves: dict[str, Curve] = {}
    left_out: Counter[str] = Counter()
    for row in sorted(rows, key=itemgetter("step")):
        for name, value in row.items():
            if name == "step" or isinstance(value, bool) or not isinstance(value, (int, float)):
                continue
            if is_number(value):
                curves.setdefault(name, {})[row["step"]] = float(value)
            else:
                left_out[name] += 1
    return curves, dict(left_out)


def is_number(value: object) -> bool:
    """Whether it is a finite number with which one can calculate: JSON also holds integers that no float can be."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < LARGEST


def settings_of(path: Path) -> dict:
    """A JSON file of a run folder, {} where it is missing or broken."""
    try:
        return read_json(path)
    except (OSError, ValueError):
        return {}  # what reads it then lacks it
