"""Where a run keeps its checkpoints, and which of them `--model RUN` means."""

from __future__ import annotations

import json
import re
from pathlib import Path

STATE_FILE = "state.json"
BEST_FILE = "best.json"
_STEP_FOLDER = re.compile(r"step-(\d{6,})")


def checkpoints(folder: str | Path) -> list[tuple[int, Path]]:
    """(step, path) of the complete checkpoints in a folder, oldest first. A half-written one never has such a name."""
    found = ((_STEP_FOLDER.fullmatch(path.name), path) for path in Path(folder).glob("step-*"))
    return sorted((int(match[1]), path) for match, path in found if match and (path / STATE_FILE).exists())


def read_best(folder: str | Path) -> dict:
    """best.json of a folder of checkpoints: step and score of the best one; {} where nothing was evaluated yet."""
    path = Path(folder) / BEST_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def model_folder(path: str | Path) -> str:
    """What to load for `--model`: a run folder stands for its best checkpoint (its newest without an evaluation).

    Anything that is no run folder is returned as it is: a Hugging Face folder or a hub id.
    Raises: FileNotFoundError for a run without a complete checkpoint.
    """
    folder = Path(path) / "checkpoints"
    if not folder.is_dir():
        return str(path)
    steps = dict(checkpoints(folder))
    if not steps:
        raise FileNotFoundError(f"--model {path}: the run has no complete checkpoint yet; run its script again to continue it")
    return str(steps.get(read_best(folder).get("step"), steps[max(steps)]))
