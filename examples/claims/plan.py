"""From claims to runs: which trainings and readings a claim needs, each made once, in the order of the claims."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from examples.claims.claims import Claim, Curve
from examples.claims.measures import MEASURES
from examples.claims.runs import PAIRS, READS, SPECS
from examples.runner import SMALL, Run, make_command, placeholders

SIZES = SMALL | {"prompts": 60, "groups": 8}  # of --quick; fewer may leave no pair or group to train on
POOLS = {"reasoned": 100, "labelled": 100, "explained": 100, "unlabelled": 60, "dev": 40, "test": 60}  # of --quick


def pools(quick: bool) -> dict[str, str]:
    """The placeholders of the shop's pools and of fresh weights (examples/claims/runs.py)."""
    found = {name: f"synthetic:{name}*{size}" if quick else f"synthetic:{name}" for name, size in POOLS.items()}
    found |= {f"reasoned_{size}": f"synthetic:reasoned*{min(size, 100) if quick else size}" for size in PAIRS}
    fresh = {"tiny": "bundled-student", "tiny_thinker": "bundled", "lr": "1e-4", "flow": "none"}
    return found | (fresh if quick else {"tiny": "tiny", "tiny_thinker": "tiny", "lr": "3e-3", "flow": "flow"})


def parse_side(side: str) -> tuple[str, str]:
    """(measure, run) of "MEASURE of RUN", or of a run alone: macro-F1. Raises: ValueError for an unknown one."""
    measure, _, run = side.rpartition(" of ")
    if run not in SPECS or measure not in ("", *MEASURES):
        raise ValueError(f"side {side!r}: no run (examples/claims/runs.py) or no measure is called so")
    return measure or "macro_f1", run


def reads_of(side: str) -> list[str]:
    """What has to be read of the side's run: a thinker has no label probabilities, but replies."""
    measure, run = parse_side(side)
    thinks = measure == "macro_f1" and SPECS[run].thinks
    return ["replies"] if thinks else list(MEASURES[measure].reads)


def sides_of(item: Claim | Curve) -> list[str]:
    if isinstance(item, Curve):
        return [side for points in item.lines.values() for _, side in points]
    return [side for side in (item.better, item.worse, item.rival, *item.policies, *item.also) if side]


def run_name(spec: str, seed: int, read: str = "") -> str:
    return f"{spec}{read and '.' + read}-{seed}"


def folder_of(out: Path, spec: str, seed: int, read: str = "") -> Path:
    return out / f"seed-{seed}" / spec / read


def files_of(out: Path, side: str, seed: int) -> dict[str, Path]:
    """{read: file} of a side."""
    run = parse_side(side)[1]
    return {read: folder_of(out, run, seed, read) / READS[read][1] for read in reads_of(side)}


def plan_runs(
    items: Sequence[Claim | Curve], out: Path, seeds: int, dtype: str, quick: bool
) -> tuple[list[Run], dict[str, float]]:
    """(every run of the items, seed 0 first and then claim by claim, behind what it needs; {run: minutes}).

    Raises: ValueError for a side or a placeholder that does not exist.
    """
    made: dict[str, Run] = {}
    minutes: dict[str, float] = {}

    def add(spec: str, seed: int, read: str = "") -> str:
        name = run_name(spec, seed, read)
        if name in made:
            return name
        texts = ((SPECS[spec].test or READS[read][0]),) if read else SPECS[spec].commands
        values = pools(quick) | {"seed": seed, "dtype": dtype, "out": folder_of(out, spec, seed, read)}
        values |= {"run": folder_of(out, spec, seed)} if read else {}
        others = sorted(placeholders(*texts) & SPECS.keys())
        needs = [add(other, seed) for other in ([spec] if read else others)]
        values |= {other: folder_of(out, other, seed) for other in others}
        commands = tuple(make_command(text, values, SIZES if quick else None) for text in texts)
        made[name] = Run(name, folder_of(out, spec, seed, read), tuple(needs), commands)
        minutes[name] = READS[read][2] if read else SPECS[spec].minutes
        return name

    for seed in range(seeds):
        for item in items:
            for side in sides_of(item):
                for read in reads_of(side):
                    add(parse_side(side)[1], seed, read)
            for spec in item.logged if isinstance(item, Curve) else ():
                add(spec, seed)
    return list(made.values()), minutes


def needed(run: Run, runs: dict[str, Run]) -> Iterator[Run]:
    """The run and all that it builds on, each once."""
    found, todo = {}, [run.name]
    while todo:
        one = runs[todo.pop()]
        if one.name not in found:
            found[one.name] = one
            todo += one.needs
    yield from found.values()
