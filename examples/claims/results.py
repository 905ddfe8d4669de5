"""table.json of examples/reproduce.py, from what the runs wrote: nothing is trained or run here."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from examples.claims.claims import STAGES, Claim, Curve
from examples.claims.measures import (
    MEASURES,
    RULES,
    Measure,
    Measured,
    compare,
    correlation,
    power_law,
    read_probs,
    tiers,
    verdict,
)
from examples.claims.plan import files_of, folder_of, needed, parse_side, reads_of, run_name, sides_of
from examples.claims.runs import SPECS
from examples.real.measures import estimate, resampled_queries
from examples.runner import Run
from taosr1.runtime.jsonl import read_jsonl


@lru_cache(maxsize=8)
def _draws(queries: int, samples: int) -> np.ndarray:
    return resampled_queries(queries, samples)


@dataclass
class Made:
    """What is finished by now, and what was measured of it.

    state: {name of run: "" or why it failed}; memory keeps numbers, since the table is written after every run.
    """

    items: Sequence[Claim | Curve]
    runs: dict[str, Run]
    state: dict[str, str]
    out: Path
    seeds: int
    samples: int
    memory: dict = field(default_factory=dict)

    def seeds_of(self, *sides: str) -> tuple[int, ...]:
        """The seeds for which all of these sides can be measured."""

        def is_ready(side: str, seed: int) -> bool:
            return all(self.state.get(run_name(parse_side(side)[1], seed, read)) == "" for read in reads_of(side))

        return tuple(seed for seed in range(self.seeds) if all(is_ready(side, seed) for side in sides if side))

    def statistics(self, side: str, seeds: Sequence[int], measure: Measure | None = None) -> list[Measured]:
        name, run = parse_side(side)
        of = (measure or MEASURES[name]).of
        return [of(files_of(self.out, side, seed), SPECS[run].thinks) for seed in seeds]

    def value(self, side: str, seeds: Sequence[int], measure: Measure | None = None) -> dict:
        """`estimate` over seeds. measure: another one of the same files."""
        key = (side, tuple(seeds), measure and measure.title)
        if key not in self.memory:
            queries, statistics = zip(*self.statistics(side, seeds, measure))
            self.memory[key] = estimate(statistics, _draws(queries[0], self.samples))
        return self.memory[key]

    def difference(self, better: str, worse: str, seeds: Sequence[int]) -> dict:
        key = (better, worse, tuple(seeds))
        if key not in self.memory:
            (queries, first), (others, second) = (zip(*self.statistics(side, seeds)) for side in (better, worse))
            if set(queries) != set(others):
                raise ValueError(f"{better} and {worse} are of {queries} and {others} queries: they cannot be paired")
            lower = MEASURES[parse_side(better)[0]].lower
            self.memory[key] = compare(first, second, lower, _draws(queries[0], self.samples))
        return self.memory[key]

    def policy(self, run: str, seed: int) -> tuple[float, float]:
        """(CV of the grade shares that were trained on, mean over steps; macro-F1)."""
        logged = _logged(folder_of(self.out, run, seed) / "model", "kept_cv")
        return float(np.mean([value for _, value in logged])), self.value(run, [seed])["value"]

    def commits(self, sides: Sequence[str], seeds: Sequence[int]) -> list[str]:
        """The commits of everything that these sides are made of."""
        reads = [(parse_side(side)[1], read) for side in sides for read in reads_of(side)]
        names = [run_name(run, seed, read) for run, read in reads for seed in seeds]
        chain = [one for name in names for one in needed(self.runs[name], self.runs)]
        return sorted({about["commit"] for one in chain for about in one.done.values()})

    def minutes(self, run: str, seeds: Sequence[int]) -> float:
        """Minutes on one core of the training and of what it starts from, mean over seeds."""
        chains = [needed(self.runs[run_name(run, seed)], self.runs) for seed in seeds]
        return sum(one.seconds for chain in chains for one in chain) / 60 / len(seeds)


def _logged(model: Path, metric: str) -> list[tuple[int, float]]:
    """(step, value) of every line of a run's metrics.jsonl that has the metric."""
    return [(row["step"], row[metric]) for _, row in read_jsonl(model / "metrics.jsonl") if metric in row]


# ---- The table -------------------------------------------------------------------------------------------------------


def table_of(made: Made) -> dict:
    """Everything that is known by now, JSON-ready."""
    claims = [item for item in made.items if isinstance(item, Claim)]
    failed = {name: problem for name, problem in made.state.items() if problem}
    finished = [run for run in made.runs.values() if made.state.get(run.name) == ""]
    return {
        "bootstrap": made.samples,
        "seeds": made.seeds,
        "machine": f"{os.cpu_count()} CPU cores, {platform.machine()}, torch {torch.__version__}, one thread a run",
        "commits": sorted({about["commit"] for run in finished for about in run.done.values()}),
        "claims": [found for claim in claims if (found := claim_row(made, claim))],
        "pass_at_n": _pass_at_n(made),
        "calibration": _calibration(made),
        "tiers_by_kind": _tiers_by_kind(made),
        "policies": _policies(made),
        "curves": [curve_of(made, item) for item in made.items if isinstance(item, Curve)],
        "minutes": {run.name: round(run.seconds / 60, 2) for run in finished if run.commands},
        "left_out": failed,
        "to_come": [name for name in made.runs if name not in made.state],
    }


def claim_row(made: Made, claim: Claim) -> dict | None:
    """One claim with its verdict; None until a seed of it is finished."""
    sides = claim.policies or (claim.better, claim.worse)
    seeds = made.seeds_of(*sides)
    if not seeds:
        return None
    if claim.policies:
        found = correlation([[made.policy(run, seed) for run in claim.policies] for seed in seeds])
        low, high = (None if found[end] is None else -found[end] for end in ("high", "low"))
        decided, why = verdict(low, high, [-value for value in found["seeds"]])
    else:
        found = made.difference(claim.better, claim.worse, seeds)
        decided, why = verdict(found["low"], found["high"], found["seeds"])
    commits = made.commits([*sides, *filter(None, [claim.rival])], seeds)
    if len(commits) > 1:
        decided, why = "none", f"its runs are of several commits: {', '.join(commits)}"
    missing = len(seeds) < made.seeds
    why = "; ".join(filter(None, (why, f"only seeds {list(seeds)} are finished" if missing else "", claim.note)))
    row = {"name": claim.name, "text": claim.text, "paper": claim.paper, "seeds": list(seeds), "commits": commits,
           "difference": found, "verdict": decided, "why": why}  # fmt: skip
    for name in ("better", "worse"):
        side = getattr(claim, name)
        row[name] = {"side": side, **made.value(side, seeds)} if side else None
    shared = made.seeds_of(claim.better, claim.rival) if claim.rival else ()
    row["rival"] = None
    if shared:
        against = made.difference(claim.better, claim.rival, shared)
        row["rival"] = {"side": claim.rival, **made.value(claim.rival, shared), "difference": against}
    return row


def _pass_at_n(made: Made) -> dict:
    """{run: pass@1..5}, and guesses on the same pairs."""
    sides = {run: f"pass_5 of {run}" for run in STAGES if f"pass_5 of {run}" in _planned(made)}
    found = {}
    for run, side in sides.items():
        if seeds := made.seeds_of(side):
            found[run] = [made.value(f"pass_{n} of {run}", seeds) for n in range(1, 6)]
            found["guesses from the grade shares"] = [made.value(f"guess_{n} of {run}", seeds[:1]) for n in range(1, 6)]
    return found


def _planned(made: Made) -> set[str]:
    return {side for item in made.items for side in sides_of(item)}


def _calibration(made: Made) -> dict:
    measured = [parse_side(side) for side in sorted(_planned(made))]
    found = {}
    for run in dict.fromkeys(run for measure, run in measured if "ece" in measure):
        if seeds := made.seeds_of(f"ece_scaled of {run}"):
            found[run] = {name: made.value(f"{name} of {run}", seeds) for name in ("ece", "ece_scaled")}
    return found


def _tiers_by_kind(made: Made) -> dict:
    """{kind of query: {rule: macro-F1 over tiers}} of the model after all stages."""
    sides = [f"tiers_{rule} of grpo" for rule in RULES]
    seeds = made.seeds_of(sides[0]) if set(sides) & _planned(made) else ()
    if not seeds:
        return {}
    kinds = sorted(set(read_probs(files_of(made.out, sides[0], seeds[0])["test"]).kinds))
    found = {"all": {rule: made.value(side, seeds) for rule, side in zip(RULES, sides)}}
    for kind in kinds:
        found[kind] = {rule: made.value(side, seeds, tiers(rule, kind)) for rule, side in zip(RULES, sides)}
    return found


def _policies(made: Made) -> dict:
    """{policy: (CV, macro-F1) of each seed}."""
    claims = [item for item in made.items if isinstance(item, Claim) and item.policies]
    return {
        run: [made.policy(run, seed) for seed in made.seeds_of(run)]
        for claim in claims for run in claim.policies if made.seeds_of(run)
    }  # fmt: skip


def curve_of(made: Made, curve: Curve) -> dict:
    """{line: points with x, value, interval, seeds and minutes; the fit}."""
    lines = {}
    for what, points in curve.lines.items():
        lines[what] = [
            {"x": x, **made.value(side, seeds), "minutes": made.minutes(side, seeds)}
            for x, side in points
            if (seeds := made.seeds_of(side))
        ]
    for run in curve.logged:
        seeds = [seed for seed in range(made.seeds) if made.state.get(run_name(run, seed)) == ""]
        logs = [dict(_logged(folder_of(made.out, run, seed) / "model", "dev_macro_f1")) for seed in seeds]
        steps = sorted(set.intersection(*map(set, logs))) if logs else []
        minutes = made.minutes(run, seeds) if seeds else 0.0
        lines[run] = [
            {"x": step, "value": float(np.mean([log[step] for log in logs])), "low": None, "high": None,
             "seeds": [log[step] for log in logs], "minutes": minutes * step / steps[-1]}
            for step in steps
        ]  # fmt: skip
    fits = {what: fit_of([(point["x"], 1 - point["value"]) for point in points]) for what, points in lines.items()}
    return {"name": curve.name, "title": curve.title, "x": curve.x, "lines": lines, "fits": fits}


def fit_of(points: Sequence[tuple[float, float]]) -> dict | None:
    """A power law of the error: what all points but the largest predict of it, and what all predict at twice its x.

    None with fewer than three points above x = 0, or with an error of 0, which has no logarithm.
    """
    points = [(x, error) for x, error in points if x > 0]
    if len(points) < 3 or min(error for _, error in points) <= 0:
        return None
    (a, b), (a_before, b_before) = power_law(points), power_law(points[:-1])
    x, error = points[-1]
    held_out = {"x": x, "predicted": 1 - a_before * x**-b_before, "measured": 1 - error}
    return {"a": a, "b": b, "held_out": held_out, "next": {"x": 2 * x, "predicted": 1 - a * (2 * x) ** -b}}
