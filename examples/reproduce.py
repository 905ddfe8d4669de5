"""Each claim of the paper on the embedded shop: confirmed, null or reversed, beside the strongest simple rival.

    python examples/reproduce.py                           # three seeds, one night on two cores
    python examples/reproduce.py --only dpo,grpo --seeds 1 # these claims and the runs that they need
    python examples/reproduce.py --plan                    # what would run, and how long it takes
    python examples/reproduce.py --quick                   # minutes: runs of every kind start, no number means anything

The claims are in examples/claims/claims.py, with the curves of how it scales; the trainings that they share in
examples/claims/runs.py; the rule of the verdict in examples/claims/measures.py. Seed 0 of all claims comes first, claim
by claim, and table.md, table.json and the pictures are written anew after every run.

The same command continues: what is done is not repeated. A run that fails or takes longer than --run-minutes is named
in the table, and the others go on; the next start tries it again. A claim whose runs are of several commits has no
verdict: give another --out after changes of the code.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a fresh checkout runs without being installed

from examples.claims.claims import CLAIMS, CURVES, QUICK_ITEMS, Claim, Curve
from examples.claims.pictures import draw
from examples.claims.plan import plan_runs
from examples.claims.results import Made, table_of
from examples.claims.table import render
from examples.runner import Run, run_all, stop_on_sigterm
from taosr1.judge_model import fast_dtype
from taosr1.runtime.cli import at_least, check, option, parse_config
from taosr1.runtime.files import write_json
from taosr1.runtime.signals import run_main

ITEMS: dict[str, Claim | Curve] = {item.name: item for item in (*CLAIMS, *CURVES)}


@dataclass(frozen=True)
class Config:
    out: str = option("runs/reproduce", "folder for all runs, the table and the pictures")
    only: str = option("", "names of claims and curves, separated by commas (none: all)")
    seeds: int = option(
        3, "how many times, with seeds 0, 1, ... (weights, order, sampling and training pools; the test pool stays)"
    )
    jobs: int = option(2, "runs side by side, one thread each")
    run_minutes: float = option(120.0, "longest time of one run; what takes longer is stopped and left out by name")
    bootstrap: int = option(1000, "bootstrap resamples of queries")
    plan: bool = option(False, "print the runs and how long they take, and run nothing")
    quick: bool = option(False, "a few steps of a run of every kind: shows that it works, not how well")

    def __post_init__(self) -> None:
        unknown = [name for name in self.only.split(",") if name and name not in ITEMS]
        check([
            (bool(unknown), f"--only: no claim is called {', '.join(unknown)}; there are {', '.join(ITEMS)}"),
            (self.run_minutes <= 0, f"--run-minutes is {self.run_minutes}, expected more than 0"),
            *at_least(self, seeds=1, jobs=1, bootstrap=0),
        ])  # fmt: skip


def estimate(runs: list[Run], minutes: dict[str, float], jobs: int) -> str:
    """How long the runs that are not done will take, by the speed of those that are."""
    done = [run for run in runs if run.commands and run.is_finished]
    left = [run for run in runs if not run.is_finished]
    speed = sum(run.seconds / 60 for run in done) / max(1e-9, sum(minutes[run.name] for run in done)) if done else 1.0
    hours = speed * sum(minutes[run.name] for run in left) / 60 / jobs
    measured = f"; finished ones took {speed:.2f} of what is listed" if done else ""
    return f"{len(left)} of {len(runs)} runs to make, about {hours:.1f} h with --jobs {jobs}{measured}"


def main(argv: list[str] | None = None) -> dict:
    config = parse_config(Config, __doc__, argv)
    stop_on_sigterm()
    out = Path(config.out).resolve()
    items = [item for name, item in ITEMS.items() if not config.only or name in config.only.split(",")]
    items = QUICK_ITEMS if config.quick and not config.only else items
    runs, minutes = plan_runs(items, out, config.seeds, fast_dtype(), config.quick)
    if not config.quick:
        print(estimate(runs, minutes, config.jobs), flush=True)
    made = Made(items, {run.name: run for run in runs}, {}, out, config.seeds, config.bootstrap)
    if config.plan:
        for run in runs:
            print(f"{minutes[run.name]:6.1f} min  {run.name}{'  done' if run.is_finished else ''}")
        return {}

    def finished(state: dict[str, str]) -> dict:
        made.state = dict(state)
        table = table_of(made)
        write_json(out / "table.json", table)
        (out / "table.md").write_text(render(table), encoding="utf-8")
        if len(state) < len(runs) and not config.quick:
            print(estimate(runs, minutes, config.jobs), flush=True)
        return table

    out.mkdir(parents=True, exist_ok=True)
    table = finished(run_all(runs, config.jobs, config.run_minutes, finished))
    print("\n" + render(table))
    try:
        draw(table, out)
    except ModuleNotFoundError as error:
        print(f"note: no pictures: {error}", file=sys.stderr)
    return table


if __name__ == "__main__":
    run_main(main)
