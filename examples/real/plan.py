"""From rows to runs: the commands of every row, data set and seed, what each makes, and which of them are done."""

from __future__ import annotations

import re
import shlex
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from examples.real.rows import Row
from taosr1.runtime.files import read_json, write_json
from taosr1.runtime.jsonl import read_jsonl

DATA_SETS = ("esci", "chorus")
RESERVED = ("fit", "dev", "out", "seed", "data", "scores")  # placeholders
SMALL = {"steps": 3, "eval-every": 3, "dev-rows": 8, "batch-size": 8, "prompts": 8, "limit": 8, "groups": 4,
         "epochs": 1, "settings": 1}  # fmt: skip


@dataclass(frozen=True)
class Command:
    """words: after `python`. results: the files that it makes."""

    words: list[str]
    results: tuple[Path, ...]

    @property
    def is_done(self) -> bool:
        return all(path.exists() for path in self.results)

    @property
    def trained_s(self) -> float:
        """Seconds of the steps of a training, those before an interruption too; 0 for other commands."""
        log = Path(dict(zip(self.words, self.words[1:])).get("--out", "")) / "metrics.jsonl"
        return sum(row.get("time_s", 0) for _, row in read_jsonl(log)) if log.is_file() else 0.0

    @property
    def short(self) -> str:
        return Path(self.words[0]).name


@dataclass(frozen=True)
class Run:
    """One row, trained on one data set ("" for none), with one seed.

    needs: names of runs that are made before. scores: {"esci_dev": file, ...}; none for a row whose `score` is "",
    which others build on and which has no line of its own (a thinker, say).
    """

    row: Row
    trained: str
    seed: int
    folder: Path
    needs: tuple[str, ...]
    commands: tuple[Command, ...]
    scores: dict[str, Path]

    @property
    def name(self) -> str:
        return run_name(self.row.name, self.trained, self.seed)

    def log(self, at: int) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / f"command-{at}.log"

    @property
    def done(self) -> dict:
        """{number of command: its words, seconds and commit}."""
        path = self.folder / "done.json"
        return read_json(path) if path.is_file() else {}

    def is_done(self, at: int) -> bool:
        return str(at) in self.done and self.commands[at].is_done

    def remember(self, at: int, seconds: float, commit: str) -> None:
        about = {"words": self.commands[at].words, "seconds": round(seconds, 1), "commit": commit}
        write_json(self.folder / "done.json", {**self.done, str(at): about})

    def problem(self) -> str:
        """Why this run cannot continue: what is done was made by other commands than the plan's of today."""
        for at, about in self.done.items():
            if int(at) >= len(self.commands) or about["words"] != self.commands[int(at)].words:
                return f"{self.folder} was made by another command ({shlex.join(about['words'])}): delete it"
        return ""


def run_name(row: str, trained: str, seed: int) -> str:
    return f"{row}-{trained or 'none'}-{seed}"


def plan_runs(
    rows: Sequence[Row], wanted: Sequence[Row], files: dict[str, Path], out: Path, seeds: int, values: dict[str, str],
    quick: bool,
) -> tuple[list[Run], dict[str, str]]:  # fmt: skip
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
    texts = (*row.commands, row.score, row.cost)
    return {name for text in texts for _, name, _, _ in string.Formatter().parse(text) if name}


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
) -> Run:  # fmt: skip
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
            words = shlex.split(text.format_map({k: shlex.quote(str(v)) for k, v in {**known, **more}.items()}))
        except KeyError as error:
            raise ValueError(f"row {row.name}: no placeholder is called {error} (examples/real/rows.py)") from error
        words = small(words) if quick else words
        return Command(words, results_of(words))

    made = [command(text) for text in row.commands]
    if row.together and scores:
        both = {"data": [files[name] for name in scores], "scores": scores.values()}
        made.append(command(row.score, **{name: ",".join(map(str, paths)) for name, paths in both.items()}))
    else:
        made += [command(row.score, data=files[name], scores=path) for name, path in scores.items()]
    made += [command(row.cost)] if row.cost else []
    return Run(row, trained, seed, folder, tuple(needed), tuple(made), scores)


def small(words: Sequence[str]) -> list[str]:
    """The command with numbers of steps and rows that take seconds."""
    text = shlex.join(words)
    for flag, value in SMALL.items():
        text = re.sub(rf"--{flag} \d+", f"--{flag} {value}", text)
    return shlex.split(text)


def results_of(words: Sequence[str]) -> tuple[Path, ...]:
    """What --out names, or its last checkpoint where a command trains for --steps. Raises: ValueError without --out."""
    flags = dict(zip(words, words[1:]))
    if "--out" not in flags:
        raise ValueError(f"a command needs --out, its result: {shlex.join(words)}")
    if "--steps" in flags:
        return (Path(flags["--out"]) / f"checkpoints/step-{int(flags['--steps']):06d}/state.json",)
    return tuple(map(Path, flags["--out"].split(",")))
