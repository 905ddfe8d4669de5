"""A run's checkpoints: RUN/checkpoints/step-NNNNNN, each of them complete or absent, and best.json beside them.

A checkpoint is written under another name, with a manifest of all its files, forced to disk, and then renamed
(`taosr1/runtime/files.py`). It holds the weights, as a folder that any later stage loads by its path, and what a resume
needs: `optimizer.safetensors` (moments and RNG state; of a sharded model the folder `optimizer/`, one file a rank) and
`state.json` (step, cursor, optimizer settings). Any number of ranks reads what any other number wrote. No pickle.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from taosr1.runtime import files
from taosr1.runtime.distributed import on_rank_zero, this_rank
from taosr1.runtime.files import DamagedError
from taosr1.runtime.shards import cause_of, is_sharded, read_sharded, stored_shapes, write_sharded

BEST_FILE = "best.json"
OPTIMIZER_FILE, OPTIMIZER_FOLDER = "optimizer.safetensors", "optimizer"
_STEP_FOLDER = re.compile(r"step-(\d{6,})")

Optimizers = Sequence[torch.optim.Optimizer]


# ---- Saving and loading ----------------------------------------------------------------------------------------------
def save_checkpoint(
    folder: Path, step: int, optimizers: Optimizers, cursor: dict, skipped: int, write_weights: Callable[[Path], None]
) -> Path:
    """Save everything that a resume and the next stage need to `folder`/step-NNNNNN; returns that path.

    Every rank calls it. write_weights(path) writes the model; every rank calls it too.
    Raises: OSError naming the folder where it cannot be written (a full disk, say); earlier checkpoints are untouched.
    """
    path = folder / f"step-{step:06d}"
    groups = [optimizer.state_dict()["param_groups"] for optimizer in optimizers]
    state = {"step": step, "cursor": cursor, "skipped": skipped, "optimizers": groups}
    tensors = _optimizer_tensors(optimizers)
    unfinished = on_rank_zero(lambda: files.begin_folder(path))
    try:
        write_weights(unfinished)
        sharded = is_sharded(_parameters(optimizers).values())
        if sharded:
            write_sharded(tensors, unfinished / OPTIMIZER_FOLDER)

        def finish() -> None:
            if not sharded:
                save_file({name: tensor.cpu() for name, tensor in tensors.items()}, unfinished / OPTIMIZER_FILE)
            files.write_json(unfinished / files.STATE_FILE, state)
            files.finish_folder(unfinished, path)

        on_rank_zero(finish)
    except BaseException as error:
        if this_rank().is_rank_zero:
            shutil.rmtree(unfinished, ignore_errors=True)
        if isinstance(error, (OSError, SafetensorError)) or type(error).__name__ == "CheckpointException":
            earlier = [str(path) for _, path in checkpoints(folder)]
            hint = f"the newest checkpoint is {earlier[-1]}" if earlier else "there is no checkpoint yet"
            raise OSError(f"{path} could not be written ({cause_of(error)}); {hint}") from error
        raise
    return path


def load_checkpoint(path: Path, optimizers: Optimizers, read_weights: Callable[[Path], None]) -> tuple[int, dict, int]:
    """Restore a checkpoint's weights, optimizers and RNG, sharded or not. Its files must have been verified.

    read_weights(path) restores the model.
    Returns: its step, its cursor, and how many steps in a row were skipped before it.
    Raises: ValueError naming the file where the checkpoint belongs to another model or other optimizers.
    """
    state = files.read_json(state_file := path / files.STATE_FILE)
    read_weights(path)
    sizes = [[len(group["params"]) for group in groups] for groups in state["optimizers"]]
    expected = [[len(group["params"]) for group in optimizer.param_groups] for optimizer in optimizers]
    if sizes != expected:
        raise ValueError(f"{state_file}: holds optimizers over {sizes} parameters, this run has {expected}")
    tensors = _read_optimizers(path, optimizers)
    torch.set_rng_state(tensors.pop("rng"))
    moments: list[dict[int, dict[str, torch.Tensor]]] = [{} for _ in optimizers]
    for name, tensor in tensors.items():
        optimizer, parameter, key = name.split(".", 2)
        moments[int(optimizer)].setdefault(int(parameter), {})[key] = tensor
    for optimizer, values in zip(optimizers, moments):
        # Moments come from the checkpoint, settings (learning rates, weight decay) from the run that continues.
        optimizer.load_state_dict({"state": values, "param_groups": optimizer.state_dict()["param_groups"]})
    return state["step"], state["cursor"], state["skipped"]


def _optimizer_tensors(optimizers: Optimizers) -> dict[str, torch.Tensor]:
    """RNG state and moments: {"rng": tensor, "<optimizer>.<parameter index>.<name>": tensor}."""
    return {"rng": torch.get_rng_state()} | {
        f"{number}.{index}.{name}": torch.as_tensor(value).detach().contiguous()
        for number, optimizer in enumerate(optimizers)
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }


def _parameters(optimizers: Optimizers) -> dict[str, torch.Tensor]:
    """The trained parameters, named as `_optimizer_tensors` begins: {"<optimizer>.<parameter index>": tensor}."""
    return {
        f"{number}.{index}": parameter
        for number, optimizer in enumerate(optimizers)
        for index, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"])
    }


def _read_optimizers(path: Path, optimizers: Optimizers) -> dict[str, torch.Tensor]:
    """Every stored tensor; those of a sharded weight's shape are sharded like it."""
    parameters = _parameters(optimizers)
    if not is_sharded(parameters.values()) and (path / OPTIMIZER_FILE).is_file():
        with safe_open(str(path / OPTIMIZER_FILE), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}
    folder = path / OPTIMIZER_FOLDER if (path / OPTIMIZER_FOLDER).is_dir() else path
    tensors = {"rng": torch.get_rng_state()}
    for name, shape in stored_shapes(folder).items():
        parameter = parameters.get(".".join(name.split(".")[:2]))
        if parameter is None:
            continue  # a tensor of the model, whose files are in the same folder
        like = shape == tuple(parameter.shape)
        tensors[name] = torch.zeros_like(parameter.detach()) if like else torch.zeros(shape)
    read_sharded(tensors, folder)
    return tensors


# ---- Which checkpoints there are -------------------------------------------------------------------------------------
def checkpoints(folder: str | Path) -> list[tuple[int, Path]]:
    """(step, path) of the checkpoints in a folder, oldest first.

    An unfinished checkpoint never has such a name; damage is found by `verify`.
    """
    found = ((_STEP_FOLDER.fullmatch(path.name), path) for path in Path(folder).glob("step-*"))
    return sorted((int(match[1]), path) for match, path in found if match and path.is_dir())


def read_best(folder: str | Path) -> dict:
    """best.json of a folder of checkpoints: step and score of the best one; {} where nothing was evaluated yet.

    Raises: DamagedError naming the file, where its checksum does not match.
    """
    path = Path(folder) / BEST_FILE
    try:
        return files.read_checksummed(path) if path.exists() else {}
    except DamagedError as error:
        hint = "without it the newest checkpoint counts as the best, and the next evaluation writes it again"
        raise DamagedError(f"{error}; {hint}") from error


def best_checkpoint(run: str | Path) -> Path | None:
    """The best checkpoint of a run folder (the newest where nothing was evaluated); None for any other path.

    Raises: FileNotFoundError for a run without a complete checkpoint, or whose best checkpoint is missing;
        DamagedError for a checkpoint without its manifest.
    """
    folder = Path(run) / "checkpoints"
    if not folder.is_dir():
        return None
    steps = dict(checkpoints(folder))
    if not steps:
        hint = "run its script again to continue it"
        raise FileNotFoundError(f"--model {run}: the run has no complete checkpoint yet; {hint}")
    best = read_best(folder).get("step", max(steps))
    if best not in steps:
        problem = f"{folder / BEST_FILE} names step {best}, which is not there"
        raise FileNotFoundError(f"--model {run}: {problem}; give one of {', '.join(map(str, steps.values()))}")
    if not (steps[best] / files.MANIFEST_FILE).is_file():
        raise DamagedError(f"--model {run}: {steps[best] / files.MANIFEST_FILE} is missing, so nothing can be verified")
    return steps[best]


def named_checkpoint(path: str) -> tuple[int, Path]:
    """(step, path) of the checkpoint at a --resume path. Raises: FileNotFoundError, or DamagedError as `verify`."""
    for step, folder in checkpoints(Path(path).parent):
        if folder.name == Path(path).name:
            files.verify(folder, required=True)
            return step, folder
    expected = "expected auto, none or RUN/checkpoints/step-NNNNNN"
    raise FileNotFoundError(f"--resume {path}: no complete checkpoint there; {expected}")


def newest_valid(folder: Path) -> tuple[int, Path] | None:
    """(step, path) of the newest checkpoint whose files match its manifest; None where there is none.

    A damaged one is reported and renamed (damaged-step-NNNNNN), so that its step can be saved again.
    """
    for step, path in reversed(checkpoints(folder)):
        try:
            files.verify(path, required=True)
            return step, path
        except DamagedError as error:
            renamed = path.with_name(f"damaged-{path.name}")
            shutil.rmtree(renamed, ignore_errors=True)
            path.rename(renamed)
            print(f"warning: {error}. It is now {renamed}; going back to the checkpoint before it", file=sys.stderr)
    return None


def rewind(folder: Path, step: int, metrics: Iterable[dict] = ()) -> None:
    """Remove the checkpoints after `step`; where best.json knows of later evaluations, make it again without them.

    metrics: the rows of metrics.jsonl.
    """
    for later, path in checkpoints(folder):
        if later > step:
            files.remove_folder(path)
    best = read_best(folder)
    if best.get("evaluated_through", 0) <= step:
        return
    score = next(iter(best.keys() - {"step", "evaluated_through"}), "")
    scores = {row["step"]: row[score] for row in metrics if row["step"] <= step and score in row}
    candidates = [kept for kept, _ in checkpoints(folder) if kept in scores]
    if candidates:
        first = max(candidates, key=scores.get)  # of equal scores the earliest, as when they were evaluated
        best = {"step": first, score: scores[first], "evaluated_through": max(scores)}
        files.write_checksummed(folder / BEST_FILE, best)
    else:
        (folder / BEST_FILE).unlink()


def prune(folder: Path, keep_last: int) -> None:
    """Keep the newest `keep_last` checkpoints and the one that best.json names; remove the others."""
    best = read_best(folder).get("step")
    for step, path in checkpoints(folder)[:-keep_last]:
        if step != best:
            files.remove_folder(path)
