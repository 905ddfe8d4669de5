"""Runs of a study: each is commands one after another, several side by side, and nothing that is done is repeated.

A run keeps in its folder the log of each command and done.json: the words, seconds and commit of each that is done. A
run that fails is named with the reason, the others go on, and the next start tries it again.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import string
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path

from taosr1.runtime.files import read_json, write_json
from taosr1.runtime.jsonl import read_jsonl

ROOT = Path(__file__).resolve().parents[1]
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
    """Commands in their order. folder: of its logs and done.json. needs: names of runs that are made before."""

    name: str
    folder: Path
    needs: tuple[str, ...]
    commands: tuple[Command, ...]

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

    @property
    def is_finished(self) -> bool:
        return not self.problem() and all(map(self.is_done, range(len(self.commands))))

    @property
    def seconds(self) -> float:
        return sum(about["seconds"] for about in self.done.values())

    def remember(self, at: int, seconds: float, commit: str) -> None:
        about = {"words": self.commands[at].words, "seconds": round(seconds, 1), "commit": commit}
        write_json(self.folder / "done.json", {**self.done, str(at): about})

    def problem(self) -> str:
        """Why this run cannot continue: what is done was made by other commands than the plan's of today."""
        for at, about in self.done.items():
            if int(at) >= len(self.commands) or about["words"] != self.commands[int(at)].words:
                return f"{self.folder} was made by another command ({shlex.join(about['words'])}): delete it"
        return ""


# ---- From text to commands -------------------------------------------------------------------------------------------


def placeholders(*texts: str) -> set[str]:
    """The names in braces."""
    return {name for text in texts for _, name, _, _ in string.Formatter().parse(text) if name}


def make_command(text: str, values: dict[str, object], sizes: dict[str, int] | None = None) -> Command:
    """A command from its text with placeholders; sizes: of its quick form (`small`).

    Raises: ValueError for a placeholder without a value, and for a command without --out.
    """
    try:
        words = shlex.split(text.format_map({name: shlex.quote(str(value)) for name, value in values.items()}))
    except KeyError as error:
        raise ValueError(f"no placeholder is called {error}") from error
    words = small(words, sizes) if sizes else words
    return Command(words, results_of(words))


def small(words: Sequence[str], sizes: dict[str, int]) -> list[str]:
    """The command with other numbers of steps and rows, such as `SMALL`, which take seconds."""
    text = shlex.join(words)
    for flag, value in sizes.items():
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


# ---- Running ---------------------------------------------------------------------------------------------------------


@dataclass
class Active:
    """A run whose command number `at` is running."""

    run: Run
    deadline: float
    at: int = -1
    process: subprocess.Popen | None = None
    since: float = field(default_factory=time.perf_counter)


def stop_on_sigterm() -> None:
    """SIGTERM ends this process as Ctrl-C does, so that the running commands are stopped too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def revision() -> str:
    """The commit of this checkout, with "-dirty" where files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=7", "--exclude=*"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


def advance(active: Active) -> bool:
    """Start the next command of a run that has no result yet; False where none is left."""
    run = active.run
    left = [at for at in range(active.at + 1, len(run.commands)) if not run.is_done(at)]
    if not left:
        return False
    active.at, words = left[0], run.commands[left[0]].words
    if "--steps" not in words:  # a training continues; another command refuses to overwrite what it wrote and was lost
        for path in run.commands[active.at].results:
            if path.is_file():
                path.unlink()
    print(f"{run.name}: python {shlex.join(words)}", flush=True)
    # More threads than cores would be many times slower.
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with open(run.log(active.at), "w", encoding="utf-8") as log:
        command, environment = [sys.executable, *words], os.environ | threads
        active.process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=environment)
    active.since = time.perf_counter()
    return True


def ended(active: Active, commit: str, minutes: float) -> str | None:
    """What to say of the running command: None while it runs, "" when it is done, else why the run failed."""
    run, command = active.run, active.run.commands[active.at]
    code = active.process.poll()
    if code is None and time.perf_counter() < active.deadline:
        return None
    if code is None:
        active.process.terminate()
        active.process.wait()
        return f"stopped after {minutes:g} minutes in: {command.short}"
    if code or not command.is_done:
        lines = run.log(active.at).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"{command.short}: {lines[-1] if lines else f'exit code {code}'}"
    run.remember(active.at, max(time.perf_counter() - active.since, command.trained_s), commit)
    return ""


def run_all(
    runs: Sequence[Run], jobs: int, minutes: float = inf, finished: Callable[[dict], object] | None = None
) -> dict[str, str]:
    """Make every run, at most `jobs` at once, in their order where none waits for another.

    minutes: the longest time of one run. finished: called with what is returned, as far as it is known, after each.
    Returns: {name of run: "" or why it failed}.
    """
    commit, state = revision(), {}
    finished = finished or (lambda state: None)
    waiting, active = list(runs), []
    try:
        while waiting or active:
            for run in list(waiting):
                failed = [need for need in run.needs if state.get(need)]
                problem = f"needs {failed[0]}, which failed" if failed else run.problem()
                if not problem and (len(active) == jobs or not all(need in state for need in run.needs)):
                    continue
                waiting.remove(run)
                one = Active(run, time.perf_counter() + 60 * minutes)
                if not problem and advance(one):
                    active.append(one)
                else:
                    state[run.name] = problem
                    finished(state)
            time.sleep(0.1)
            for one in list(active):
                found = ended(one, commit, minutes)
                if found is None or (found == "" and advance(one)):
                    continue
                active.remove(one)
                state[one.run.name] = found
                print(f"{one.run.name}: {found or 'done'}", flush=True)
                finished(state)
    finally:
        for one in active:
            one.process.terminate()
            one.process.wait()
    return state


def make_all(runs: Sequence[Run], jobs: int) -> dict[str, float]:
    """`run_all` for runs that are all needed: the seconds of each. Raises: ValueError naming those that failed."""
    state = run_all(runs, jobs)
    failed = [f"{run.name}: {state[run.name]} (see {run.folder})" for run in runs if state[run.name]]
    if failed:
        raise ValueError("\n".join(["not every run could be made:", *failed]))
    return {run.name: run.seconds for run in runs}
