"""From rows to runs: the commands of every row, data set and seed, and what each makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from examples.real.rows import Row
from examples.runner import SMALL, Command, Run, make_command, placeholders

DATA_SETS = ("esci", "chorus")
RESERVED = ("fit", "dev", "out", "seed", "data", "scores")  # placeholders


@dataclass(frozen=True)
class RowRun(Run):
    """One row, trained on one data set ("" for none), with one seed.

    scores: {"esci_dev": file, ...}; none for a row whose `score` is "", which others build on and which has no line of
    its own (a thinker, say).
    """

    row: Row
    trained: str
    seed: int
    scores: dict[str, Path]


def run_name(row: str, trained: str, seed: int) -> str:
    return f"{row}-{trained or 'none'}-{seed}"


def plan_runs(
    rows: Sequence[Row], wanted: Sequence[Row], files: dict[str, Path], out: Path, seeds: int, values: dict[str, str],
    quick: bool,
) -> tuple[list[RowRun], dict[str, str]]:  # fmt: skip
    """(the runs of the wanted rows and of those that they need, by seed and then as listed; {what is left out: why}).

    Raises: ValueError for a placeholder that does not exist.
    """
    by_name = {row.name: row for row in rows}
    if clash := by_name.keys() & {*RESERVED, *values, *files}:
        raise ValueError(f"rows are called {sorted(clash)}, which are placeholders (examples/real/rows.py)")
    needed = {name: _needs(row, by_name) for name, row in by_name.items()}
    names = {row.name for row in wanted}
    while more := {need for name in names for need in needed[name]} - names:
        names |= more
    runs, left_out = [], {}
    for seed in range(seeds):
        for row in (row for row in rows if row.name in names):
            if seed and not row.seeded:
                continue
            for trained in [name for name in DATA_SETS if name in row.on] if row.trained else ("",):
                name, missing = run_name(row.name, trained, seed), _missing_data(row, trained, files, values)
                if missing:
                    left_out[name] = missing
                    continue
                run = _run(row, trained, seed, needed[row.name], by_name, files, out, values, quick)
                absent = [need for need in run.needs if need not in {earlier.name for earlier in runs}]
                if absent:
                    left_out[name] = f"needs {absent[0]}, which is left out or listed behind it"
                else:
                    runs.append(run)
    return runs, left_out


def _fields(row: Row) -> set[str]:
    return placeholders(*row.commands, row.score, row.cost)


def _needs(row: Row, by_name: dict[str, Row]) -> tuple[str, ...]:
    return tuple(name for name in sorted(_fields(row)) if name in by_name)


def _missing_data(row: Row, trained: str, files: dict[str, Path], values: dict[str, str]) -> str:
    if trained and f"{trained}_fit" not in files:
        return f"--{trained} is not given"
    if "catalogue" in _fields(row) and not values.get("catalogue"):
        return "--catalogue is not given"
    known = {f"{name}_{part}" for name in DATA_SETS for part in ("fit", "dev", "test")}
    missing = sorted((_fields(row) & known) - files.keys())
    return f"--{missing[0].partition('_')[0]} is not given" if missing else ""


def _run(
    row: Row, trained: str, seed: int, needs: tuple[str, ...], by_name: dict[str, Row], files: dict[str, Path],
    out: Path, values: dict[str, str], quick: bool,
) -> RowRun:  # fmt: skip
    folder = out / row.name / f"{trained or 'none'}-{seed}"
    needed = [run_name(n, trained if by_name[n].trained else "", seed if by_name[n].seeded else 0) for n in needs]
    folders = {n: out / n / run.removeprefix(f"{n}-") for n, run in zip(needs, needed)}
    source = trained or next(name for name in DATA_SETS if f"{name}_fit" in files)
    own = {"fit": files[f"{source}_fit"], "dev": files[f"{source}_dev"], "out": folder, "seed": seed}
    known = {**values, **files, **own, **folders}
    # Dev of the data set that it was trained on; a judge that was not trained has dev rows of each.
    parts = [name for name in files if name.endswith("_test") or (name.endswith("_dev") and trained in (name[:-4], ""))]
    scores = {name: folder / f"scores-{name}.jsonl" for name in (parts if row.score else [])}

    def command(text: str, **more: object) -> Command:
        try:
            return make_command(text, {**known, **more}, SMALL if quick else None)
        except ValueError as error:
            raise ValueError(f"row {row.name}: {error} (examples/real/rows.py)") from error

    made = [command(text) for text in row.commands]
    if row.together and scores:
        both = {"data": [files[name] for name in scores], "scores": scores.values()}
        made.append(command(row.score, **{name: ",".join(map(str, paths)) for name, paths in both.items()}))
    else:
        made += [command(row.score, data=files[name], scores=path) for name, path in scores.items()]
    made += [command(row.cost)] if row.cost else []
    name = run_name(row.name, trained, seed)
    return RowRun(name, folder, tuple(needed), tuple(made), row, trained, seed, scores)
