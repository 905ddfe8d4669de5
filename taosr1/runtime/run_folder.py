"""A run folder: config.json, identity.json, env.json, metrics.jsonl, samples.jsonl, checkpoints/, and its resuming.

config.json holds the settings of the run, and is written when steps are to run with them: a command that finds the run
finished changes nothing. A run that was continued with other settings (more --steps, --accept-changed) has history.json
beside it, {"segments": [{"from_step": 0, "settings": {...}}, ...]}, the last of which is config.json.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch

from taosr1 import __version__
from taosr1.runtime.checkpoint import checkpoints, named_checkpoint, newest_valid, prune, read_best, rewind
from taosr1.runtime.cli import at_least, option
from taosr1.runtime.distributed import on_rank_zero, this_rank
from taosr1.runtime.files import differences, fsync, read_json, remove_leftovers, replace_file, take_lock, write_json
from taosr1.runtime.out_paths import out_problems

# Settings that may differ between a run and its continuation: they say how it is executed, not what is computed.
_FREE_SETTINGS = {
    "micro_batch_tok", "resume", "accept_changed", "out", "device", "steps", "keep_last", "save_every", "save_minutes",
    "max_skipped", "activation_checkpointing", "fsdp",
}  # fmt: skip
CONFIG_FILE, HISTORY_FILE, IDENTITY_FILE, LOCK_FILE = "config.json", "history.json", "identity.json", ".lock"
_SAID_ONCE = {"resume", "accept_changed", "out"}  # settings of one start of a run, not of what it computes
METRICS_FILE, SAMPLES_FILE = "metrics.jsonl", "samples.jsonl"
BRANCH_IDENTITY = ("tokenizer", "label_map")  # what a run must share with the one whose checkpoint it branches off
ORIGIN = "origin"  # in identity.json of a run that branched off: the path of that checkpoint


@dataclass(frozen=True)
class RunFlags:
    """Flags of every training script about how a run is kept; their configs inherit them."""

    resume: str = option(
        "auto", "auto (continue from this folder's newest valid checkpoint), none (insist on an empty one), or its path"
    )
    accept_changed: str = option(
        "", "continue although these settings, data or ranks differ: names, separated by commas, as the refusal lists"
    )
    keep_last: int = option(2, "newest checkpoints kept beside the best one")
    save_every: int = option(0, "steps between checkpoints (0: one with every evaluation)")
    save_minutes: float = option(
        5.0, "minutes of steps after which a checkpoint is written too, if that takes at most a tenth of them (0: off)"
    )
    max_skipped: int = option(
        5, "steps in a row whose loss, gradient or reward is not finite before the run stops and saves their batch"
    )
    deterministic: bool = option(
        False, "deterministic kernels on a GPU (slower): two runs are equal bit for bit, as they always are on a CPU"
    )


def run_problems(flags: RunFlags) -> list[tuple[bool, str]]:
    """Problems for `taosr1.runtime.cli.check`, those of the script's `out` too."""
    lowest = {"keep_last": 1, "save_every": 0, "save_minutes": 0, "max_skipped": 1}
    return [*at_least(flags, **lowest), *out_problems(flags.out, folder=True)]


class Run:
    """An output folder opened for one run of one script. Rank 0 opens it and writes; all ranks raise what it raises.

    start: None for a new run, else (step, folder) of the checkpoint to continue from.
    finished: whether all its steps are done and evaluated, so that there is nothing to do.
    """

    def __init__(
        self, folder: str | Path, config: object, resume: str = "auto", identity: Callable[[], dict[str, str]] = dict
    ) -> None:
        """Open or create the folder, and save the configuration before step 0.

        resume: "auto" continues from the newest valid checkpoint of this folder, or begins; "none" insists on an empty
            folder; else the path of the checkpoint to continue from, after which everything here is removed. Another
            run's checkpoint begins a branch, which the same command continues from its own first checkpoint on.
        identity: computes what must stay equal beside the settings, as short texts by name.
        Raises: FileExistsError for a folder that holds something else; ValueError where settings or identity differ
            from the run's, naming each and the flag that accepts it; DamagedError or FileNotFoundError for a --resume
            path that is damaged or no checkpoint; BlockingIOError where another process uses the folder.
        """
        self.folder = Path(folder)
        self.checkpoints = self.folder / "checkpoints"
        self._lock: IO[bytes] | None = None
        try:
            opened = on_rank_zero(lambda: self._open(config, resume, identity()))
            self.start: tuple[int, Path] | None = opened[0]
            self.finished: bool = opened[1]
        except BaseException:
            self.close()
            raise

    def _open(self, config: object, resume: str, identity: dict[str, str]) -> tuple[tuple[int, Path] | None, bool]:
        """`start` and `finished`."""
        folder, settings = self.folder, json.loads(json.dumps(dataclasses.asdict(config)))  # as it is read back
        occupied = self._check_folder(resume)
        origin = read_json(folder / IDENTITY_FILE).get(ORIGIN, "") if (folder / IDENTITY_FILE).exists() else ""
        by_path = resume not in ("auto", "none")
        branched = by_path and origin == str(Path(resume).resolve())  # an earlier start of this command did
        named = named_checkpoint(resume) if by_path and not branched else None
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = take_lock(folder / LOCK_FILE, f"{os.getpid()}\n")
        if self._lock is None:
            owner = (folder / LOCK_FILE).read_text("ascii", "replace").strip() or "unknown"
            problem = f"another process (id {owner}) is at work there"
            raise BlockingIOError(f"--out {folder}: {problem}; wait for it, stop it, or choose another --out")
        accepted, changed = {name.strip() for name in settings.get("accept_changed", "").split(",")}, []
        if occupied:
            changed = self._refuse_changes(folder, {CONFIG_FILE: settings, IDENTITY_FILE: identity}, accepted)
        elif named:  # a run that branches off may have other settings and data, but not another tokenizer
            shared = {name: identity[name] for name in BRANCH_IDENTITY if name in identity}
            changed = self._refuse_changes(named[1].parent.parent, {IDENTITY_FILE: shared}, accepted)
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        remove_leftovers(self.checkpoints)
        start = named or newest_valid(self.checkpoints) or (named_checkpoint(origin) if origin else None)
        if named and named[1].resolve().parent != self.checkpoints.resolve():
            origin = str(named[1].resolve())
        step = start[0] if start else 0
        rewind(self.checkpoints, step, _rows(folder / METRICS_FILE))
        for name in (METRICS_FILE, SAMPLES_FILE):
            self._drop_after(name, step)
        if occupied and step >= settings.get("steps", math.inf):  # no step is left that could run with these settings
            prune(self.checkpoints, settings.get("keep_last", 1))
            evaluated = settings.get("dev") == "" or read_best(self.checkpoints).get("evaluated_through", 0) >= step
            return start, evaluated  # without dev rows a run is never evaluated
        for text in changed:
            print(f"accepted: {text}", file=sys.stderr)
        write_json(folder / IDENTITY_FILE, identity | ({ORIGIN: origin} if origin else {}))
        self._write_settings(settings, step)  # after identity.json: with it the folder counts as a run's
        write_json(folder / "env.json", _environment())
        return start, False

    def _write_settings(self, settings: dict, step: int) -> None:
        """config.json; and history.json where steps before `step` ran with other settings. Complete after any crash."""
        config, history, segments = self.folder / CONFIG_FILE, self.folder / HISTORY_FILE, []
        if history.exists():
            segments = read_json(history)["segments"]
        elif config.exists():
            segments = [{"from_step": 0, "settings": read_json(config)}]
        segments = [segment for segment in segments if segment["from_step"] < step]  # the others have no step left
        if not segments or _lasting(segments[-1]["settings"]) != _lasting(settings):
            segments.append({"from_step": step, "settings": settings})
        if len(segments) > 1:
            write_json(history, {"segments": segments})
        else:
            history.unlink(missing_ok=True)
        write_json(config, settings)

    def _check_folder(self, resume: str) -> bool:
        """Whether the folder holds a run already. Raises: FileExistsError where it holds something else."""
        folder = self.folder
        if folder.exists() and not folder.is_dir():
            raise FileExistsError(f"--out {folder}: is a file, expected a folder")
        if not folder.is_dir() or all(map(_is_left_by_a_start, folder.iterdir())):
            return False
        problem = f"--out {folder}: the folder is not empty"
        if resume == "none":
            raise FileExistsError(f"{problem}; choose another one or continue it with --resume auto")
        # A Hugging Face folder has a config.json too, but no checkpoints/.
        if not ((folder / CONFIG_FILE).exists() and self.checkpoints.is_dir()):
            raise FileExistsError(f"{problem} and holds no taosr1 run; choose another one")
        return True

    def _refuse_changes(self, run: Path, facts: dict[str, dict], accepted: set[str]) -> list[str]:
        """The accepted differences between `facts`, by file, and what `run` stores. Raises: ValueError for others."""
        changed = []
        for file, now in facts.items():
            stored, now = read_json(run / file) if (run / file).exists() else {}, json.loads(json.dumps(now))
            if file == IDENTITY_FILE:  # a script may have no identity; and a branch compares less
                stored = {name: stored[name] for name in stored if name in now}
            changed += [change for change in differences(stored, now) if change[0] not in _FREE_SETTINGS]
        refused = [text for name, text in changed if name not in accepted]
        if refused:
            names = ",".join(dict.fromkeys(name for name, _ in changed))
            raise ValueError(
                f"--out {self.folder}: holds a run with other settings or data ({'; '.join(refused)}); choose another "
                f"--out, or continue it all the same with --accept-changed {names}"
            )
        return [text for _, text in changed]

    def _drop_after(self, name: str, step: int) -> None:
        """Remove what an interrupted run logged after the checkpoint it continues from, and an incomplete last line."""
        path = self.folder / name
        if not path.exists():
            return
        evaluated = read_best(self.checkpoints).get("evaluated_through", 0)

        def is_kept(row: dict) -> bool:
            # Rows of steps have a loss, evaluations have none. One that is not in best.json yet is made again.
            repeated = name == METRICS_FILE and "loss" not in row and evaluated < row["step"] == step
            return row["step"] <= step and not repeated

        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in _rows(path) if is_kept(row))
        replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))

    def log(self, step: int, **values: object) -> None:
        """Append one line to metrics.jsonl."""
        self._append(METRICS_FILE, [{"step": step, **values}])

    def log_samples(self, step: int, rows: list[dict]) -> None:
        """Append rollouts to samples.jsonl: what was sampled, how it was rewarded, and why it was kept or dropped."""
        self._append(SAMPLES_FILE, [{"step": step, **row} for row in rows])

    def _append(self, name: str, rows: list[dict]) -> None:
        if not this_rank().is_rank_zero:
            return
        with open(self.folder / name, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

    def sync(self) -> None:
        """Force what was logged to disk: no checkpoint may be of a later step than the log."""
        for name in (METRICS_FILE, SAMPLES_FILE):
            if this_rank().is_rank_zero and (self.folder / name).exists():
                fsync(self.folder / name)

    def close(self) -> None:
        """Release the folder for other processes. The system does it too when this process ends, in whatever way."""
        if self._lock is not None:
            self._lock.close()


def is_unfinished(folder: str | Path) -> bool:
    """Whether this is the folder of a run that was stopped before its last step."""
    config, steps = Path(folder) / CONFIG_FILE, Path(folder) / "checkpoints"
    if not (config.is_file() and steps.is_dir()):
        return False
    return max(dict(checkpoints(steps)), default=0) < read_json(config).get("steps", 0)


def _lasting(settings: dict) -> dict:
    return {name: value for name, value in settings.items() if name not in _SAID_ONCE}


def _rows(path: Path) -> Iterator[dict]:
    """The complete lines of a log; none where there is no log."""
    if not path.exists():
        return
    with open(path, encoding="utf-8", errors="replace", newline="\n") as file:  # U+2028 in a reply ends no line
        for line in file:
            with suppress(ValueError):
                yield json.loads(line)


def _is_left_by_a_start(path: Path) -> bool:
    """Whether a run that was killed before it had written config.json may have left this."""
    temporary = path.name.startswith(".") and path.name.endswith(".tmp")
    empty = path.name == "checkpoints" and path.is_dir() and not any(path.iterdir())
    return temporary or empty or path.name in (LOCK_FILE, IDENTITY_FILE)


def _environment() -> dict[str, object]:
    """What a reader of the numbers needs to know: versions, threads, ranks, device, commit."""
    git, here = ["git", "describe", "--always", "--dirty"], Path(__file__).parent
    commit = ""
    with suppress(OSError, subprocess.SubprocessError):
        commit = subprocess.run(git, cwd=here, capture_output=True, text=True, timeout=10).stdout.strip()
    return {
        "taosr1": __version__,
        "commit": commit or None,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "ranks": this_rank().world,
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
