"""A run folder: config.json, env.json, metrics.jsonl, samples.jsonl and checkpoints/."""

from __future__ import annotations

import dataclasses
import json
import platform
import subprocess
import sys
from pathlib import Path

import torch

from taosr1 import __version__
from taosr1.learning.checkpoint import rewind, sweep
from taosr1.model.files import write_json
from taosr1.model.folders import checkpoints

# Settings that may differ between a run and its continuation: they say how it is executed, not what is computed.
_FREE_SETTINGS = ("resume", "out", "device", "steps", "keep_last", "activation_checkpointing")


class Run:
    """An output folder opened for one run of one script.

    `start` is None for a new run, else the (step, folder) of the checkpoint to continue from.
    """

    def __init__(self, folder: str | Path, config: object, resume: str = "auto") -> None:
        """Open or create the folder and save the configuration before step 0.

        resume: "auto" continues from the newest complete checkpoint of this folder or starts afresh, "none" insists on
        an empty folder, anything else is the path of the checkpoint to continue from; what this folder holds of later
        steps is forgotten.
        Raises: FileExistsError for a folder that holds something else; ValueError where the settings of the run to be
        continued differ, naming each; FileNotFoundError for a --resume path that is no checkpoint.
        """
        self.folder = Path(folder)
        self.checkpoints = self.folder / "checkpoints"
        settings = {name: value for name, value in dataclasses.asdict(config).items()}
        occupied = self.folder.is_dir() and any(self.folder.iterdir())
        if self.folder.exists() and not self.folder.is_dir():
            raise FileExistsError(f"--out {folder}: is a file, expected a folder")
        if occupied and resume == "none":
            raise FileExistsError(f"--out {folder}: the folder is not empty; choose another one or continue it with --resume auto")
        # A Hugging Face folder has a config.json too, but no checkpoints/.
        if occupied and not ((self.folder / "config.json").exists() and self.checkpoints.is_dir()):
            raise FileExistsError(f"--out {folder}: the folder is not empty and holds no taosr1 run; choose another one")
        if occupied:
            self._same_settings(settings)
        newest = max(checkpoints(self.checkpoints), default=None)
        self.start: tuple[int, Path] | None = newest if resume in ("auto", "none") else self._named(resume)
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        sweep(self.checkpoints)
        rewind(self.checkpoints, self.start[0] if self.start else 0)
        write_json(self.folder / "config.json", settings)
        write_json(self.folder / "env.json", _environment())
        for name in ("metrics.jsonl", "samples.jsonl"):
            self._drop_after(name, self.start[0] if self.start else 0)

    def _named(self, path: str) -> tuple[int, Path]:
        found = [(step, folder) for step, folder in checkpoints(Path(path).parent) if folder.name == Path(path).name]
        if not found:
            raise FileNotFoundError(f"--resume {path}: no complete checkpoint there; expected auto, none or RUN/checkpoints/step-NNNNNN")
        return found[0]

    def _same_settings(self, settings: dict) -> None:
        stored = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        now = json.loads(json.dumps(settings))
        names = sorted((stored.keys() | now.keys()) - set(_FREE_SETTINGS))
        changed = [f"{name} was {stored.get(name)!r} and is now {now.get(name)!r}" for name in names if stored.get(name) != now.get(name)]
        if changed:
            raise ValueError(f"--out {self.folder}: holds a run with other settings ({'; '.join(changed)}); choose another --out")

    def _drop_after(self, name: str, step: int) -> None:
        """Forget what an interrupted run logged after the checkpoint that it continues from (and a torn last line)."""
        path = self.folder / name
        if not path.exists():
            return
        kept = []
        for line in path.read_text(encoding="utf-8").split("\n"):  # not splitlines: a reply may hold U+2028
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if row["step"] <= step:
                kept.append(line + "\n")
        path.write_text("".join(kept), encoding="utf-8")

    def log(self, step: int, **values: object) -> None:
        """Append one line to metrics.jsonl."""
        self._append("metrics.jsonl", [{"step": step, **values}])

    def log_samples(self, step: int, rows: list[dict]) -> None:
        """Append rollouts to samples.jsonl: what was sampled, how it was rewarded, and why it was kept or dropped."""
        self._append("samples.jsonl", [{"step": step, **row} for row in rows])

    def _append(self, name: str, rows: list[dict]) -> None:
        with open(self.folder / name, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def is_unfinished(folder: str | Path) -> bool:
    """Whether this is the folder of a run that was stopped before its last step."""
    path = Path(folder) / "config.json"
    if not (path.is_file() and (Path(folder) / "checkpoints").is_dir()):
        return False
    newest = max(checkpoints(Path(folder) / "checkpoints"), default=(0, None))
    return newest[0] < json.loads(path.read_text(encoding="utf-8")).get("steps", 0)


def _environment() -> dict[str, object]:
    """What a reader of the numbers needs to know: versions, threads, device, commit."""
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
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
