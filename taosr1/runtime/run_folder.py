"""A run folder: config.json, identity.json, env.json, metrics.jsonl, samples.jsonl and checkpoints/; and what may be continued in it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch

from taosr1 import __version__
from taosr1.judge import Judge
from taosr1.model.io.folders import checkpoints, read_best, weights_fingerprint
from taosr1.runtime.checkpoint import newest_valid, remove_leftovers, rewind
from taosr1.runtime.cli import at_least, option
from taosr1.runtime.distributed import on_rank_zero, this_rank
from taosr1.runtime.files import fsync, locked, read_json, replace_file, verify, write_json
from taosr1.task.grades import LABELS

# Settings that may differ between a run and its continuation: they say how it is executed, not what is computed.
_FREE_SETTINGS = ("micro_batch_tok", "resume", "accept_changed", "out", "device", "steps", "keep_last", "save_every", "max_skipped", "activation_checkpointing", "fsdp")
IDENTITY_FILE, LOCK_FILE = "identity.json", ".lock"
LANGUAGE = ("tokenizer", "label_map")
ORIGIN = "origin"  # of a run that branched off another's checkpoint: its path


@dataclass(frozen=True)
class RunFlags:
    """Flags of every training script about how a run is kept; their configs inherit them."""

    resume: str = option("auto", "auto (continue this run folder from its newest whole checkpoint), none (insist on an empty one) or a checkpoint's path")
    accept_changed: str = option("", "continue although these settings, data or ranks differ from the run's own: names, separated by commas, as the refusal lists them")
    keep_last: int = option(2, "newest checkpoints kept beside the best one")
    save_every: int = option(0, "steps between checkpoints (0: one with every evaluation)")
    max_skipped: int = option(5, "steps in a row without a finite loss, gradient or reward before the run stops and writes down their batch")
    deterministic: bool = option(False, "use deterministic kernels on a GPU too (slower): the same run twice is the same bit for bit, as it always is on a CPU")


def run_problems(flags: RunFlags) -> list[tuple[bool, str]]:
    """Problems for `taosr1.runtime.cli.check`."""
    return at_least(flags, keep_last=1, save_every=0, max_skipped=1)


def identity(judge: Judge, **rows: Sequence) -> dict[str, str]:
    """What a run is about beyond its settings, as short texts to compare: starting weights, tokenizer, labels, ranks, and its data by name."""
    labels = ", ".join(f"{label}: {token}" for label, token in zip(LABELS, judge.tokenizer.label_ids))
    return {
        "start": weights_fingerprint(judge.model.source),
        "tokenizer": f"sha256 {judge.tokenizer.fingerprint()}",
        "label_map": labels,
        "world_size": str(this_rank().world),
        **{name: f"{len(found)} rows, sha256 {_digest(found)}" for name, found in rows.items()},
    }


def _digest(rows: Sequence) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(repr(row).encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()[:16]


class Run:
    """An output folder opened for one run of one script.

    `start` is None for a new run, else the (step, folder) of the checkpoint to continue from. With several ranks the first opens and
    writes; all know `start`, and all raise what it raises.
    """

    def __init__(self, folder: str | Path, config: object, resume: str = "auto", identity: Callable[[], dict[str, str]] = dict) -> None:
        """Open or create the folder and save the configuration before step 0.

        resume: "auto" continues from the newest checkpoint of this folder whose files are whole, or starts afresh; "none" insists on
        an empty folder, anything else is the path of the checkpoint to continue from, and nothing else will do; what this folder
        holds of later steps is forgotten. A checkpoint of another run is where this one branches off: the same command goes on from
        this folder's own newest checkpoint once it has one.
        identity: what else has to be the same, see `identity`.
        Raises: FileExistsError for a folder that holds something else; ValueError where settings or identity of the run to be
        continued differ, naming each and the flag that overrides; DamagedError and FileNotFoundError for a --resume path that is
        damaged or no checkpoint; BlockingIOError where another process has the folder.
        """
        self.folder = Path(folder)
        self.checkpoints = self.folder / "checkpoints"
        self._lock: IO[bytes] | None = None
        try:
            self.start: tuple[int, Path] | None = on_rank_zero(lambda: self._open(config, resume, identity()))
        except BaseException:
            self.close()
            raise

    def _open(self, config: object, resume: str, identity: dict[str, str]) -> tuple[int, Path] | None:
        folder, settings = self.folder, dict(dataclasses.asdict(config))
        occupied = folder.is_dir() and not all(map(_is_beginning, folder.iterdir()))
        if folder.exists() and not folder.is_dir():
            raise FileExistsError(f"--out {folder}: is a file, expected a folder")
        if occupied and resume == "none":
            raise FileExistsError(f"--out {folder}: the folder is not empty; choose another one or continue it with --resume auto")
        # A Hugging Face folder has a config.json too, but no checkpoints/.
        if occupied and not ((folder / "config.json").exists() and self.checkpoints.is_dir()):
            raise FileExistsError(f"--out {folder}: the folder is not empty and holds no taosr1 run; choose another one")
        origin = read_json(folder / IDENTITY_FILE).get(ORIGIN, "") if (folder / IDENTITY_FILE).exists() else ""
        branched = resume not in ("auto", "none") and origin == str(Path(resume).resolve())  # by this very command, earlier
        named = None if resume in ("auto", "none") or branched else _named(resume)
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = lock(folder / LOCK_FILE, f"--out {folder}")
        accepted = {name.strip() for name in getattr(config, "accept_changed", "").split(",") if name.strip()}
        if occupied:
            self._same(folder, {"config.json": settings, IDENTITY_FILE: identity}, accepted)
        elif named:  # a run that branches off may have other settings and data, but not another language
            self._same(named[1].parent.parent, {IDENTITY_FILE: {name: identity[name] for name in LANGUAGE if name in identity}}, accepted)
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        remove_leftovers(self.checkpoints)
        start = named or newest_valid(self.checkpoints) or (_named(origin) if origin else None)
        if named and named[1].resolve().parent != self.checkpoints.resolve():
            origin = str(named[1].resolve())
        rewind(self.checkpoints, start[0] if start else 0, _rows(folder / "metrics.jsonl"))
        write_json(folder / IDENTITY_FILE, identity | ({ORIGIN: origin} if origin else {}))
        write_json(folder / "config.json", settings)  # the last of the two: it is what makes the folder a run's
        write_json(folder / "env.json", _environment())
        for name in ("metrics.jsonl", "samples.jsonl"):
            self._drop_after(name, start[0] if start else 0)
        return start

    def _same(self, run: Path, facts: dict[str, dict], accepted: set[str]) -> None:
        """Refuse to continue `run` where anything that decides its numbers is another now; say what, and how to go on regardless."""
        changed = []
        for file, now in facts.items():
            stored, now = read_json(run / file) if (run / file).exists() else {}, json.loads(json.dumps(now))
            if file == IDENTITY_FILE:  # a script may have no identity; and a branch compares less
                stored = {name: stored[name] for name in stored if name in now}
            names = sorted((stored.keys() | now.keys()) - set(_FREE_SETTINGS))
            changed += [(name, f"{name} was {stored.get(name)!r} and is now {now.get(name)!r}") for name in names if stored.get(name) != now.get(name)]
        refused = [(name, text) for name, text in changed if name not in accepted]
        if refused:
            names = ",".join(dict.fromkeys(name for name, _ in changed))
            raise ValueError(
                f"--out {self.folder}: holds a run with other settings or data ({'; '.join(text for _, text in refused)}); "
                f"choose another --out, or continue it all the same with --accept-changed {names}"
            )
        for _, text in changed:
            print(f"accepted: {text}", file=sys.stderr)

    def _drop_after(self, name: str, step: int) -> None:
        """Forget what an interrupted run logged after the checkpoint that it continues from (and a torn last line)."""
        path = self.folder / name
        if not path.exists():
            return
        evaluated = read_best(self.checkpoints).get("evaluated_through", 0)
        # Logged, but not in best.json yet: that evaluation is made again.
        kept = [row for row in _rows(path) if row["step"] <= step and not (evaluated < row["step"] == step and _is_evaluation(row))]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
        replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))

    def log(self, step: int, **values: object) -> None:
        """Append one line to metrics.jsonl."""
        self._append("metrics.jsonl", [{"step": step, **values}])

    def log_samples(self, step: int, rows: list[dict]) -> None:
        """Append rollouts to samples.jsonl: what was sampled, how it was rewarded, and why it was kept or dropped."""
        self._append("samples.jsonl", [{"step": step, **row} for row in rows])

    def _append(self, name: str, rows: list[dict]) -> None:
        if not this_rank().first:
            return
        with open(self.folder / name, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

    def sync(self) -> None:
        """Force what was logged to disk: no checkpoint shall know more steps than the log."""
        for name in ("metrics.jsonl", "samples.jsonl"):
            if this_rank().first and (self.folder / name).exists():
                fsync(self.folder / name)

    def close(self) -> None:
        """Give the folder free for another process. The system does it too when this one ends, however it ends."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def lock(path: Path, what: str) -> IO[bytes]:
    """An open file that no second process can lock; its owner's process id stands in it. Closing it, or dying, frees it.

    Raises: BlockingIOError naming `what` and the process that has it.
    """
    file = open(path, "ab+")
    if not locked(file, wait=False):
        file.seek(0)
        owner = file.read(20).decode("ascii", "replace").strip() or "unknown"
        file.close()
        raise BlockingIOError(f"{what}: another process (id {owner}) is at work there; wait for it, stop it, or choose another --out")
    file.truncate(0)
    file.write(f"{os.getpid()}\n".encode())
    file.flush()
    return file


def is_unfinished(folder: str | Path) -> bool:
    """Whether this is the folder of a run that was stopped before its last step."""
    path = Path(folder) / "config.json"
    if not (path.is_file() and (Path(folder) / "checkpoints").is_dir()):
        return False
    newest = max(checkpoints(Path(folder) / "checkpoints"), default=(0, None))
    return newest[0] < read_json(path).get("steps", 0)


def _rows(path: Path) -> Iterator[dict]:
    """The lines of a log, without one that a crash tore; none where there is no log."""
    if not path.exists():
        return
    with open(path, encoding="utf-8", errors="replace", newline="\n") as file:  # a reply may hold U+2028: only \n ends a line
        for line in file:
            try:
                yield json.loads(line)
            except ValueError:
                continue


def _is_evaluation(row: dict) -> bool:
    """Whether a row of metrics.jsonl is an evaluation's: steps have a loss. Rows of samples.jsonl are neither."""
    return "loss" not in row and "dev_macro_f1" in row


def _is_beginning(path: Path) -> bool:
    """Whether this is all that a run leaves which was killed before its config.json was there."""
    temporary = path.name.startswith(".") and path.name.endswith(".tmp")
    return temporary or path.name in (LOCK_FILE, IDENTITY_FILE) or path.name == "checkpoints" and path.is_dir() and not any(path.iterdir())


def _named(path: str) -> tuple[int, Path]:
    found = [(step, folder) for step, folder in checkpoints(Path(path).parent) if folder.name == Path(path).name]
    if not found:
        raise FileNotFoundError(f"--resume {path}: no complete checkpoint there; expected auto, none or RUN/checkpoints/step-NNNNNN")
    verify(found[0][1], required=True)
    return found[0]


def _environment() -> dict[str, object]:
    """What a reader of the numbers needs to know: versions, threads, ranks, device, commit."""
    try:
        here = Path(__file__).parent
        answer = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True, timeout=10)
        commit = answer.stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        commit = None
    return {
        "taosr1": __version__,
        "commit": commit,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "ranks": this_rank().world,
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
