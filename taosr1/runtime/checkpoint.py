"""Checkpoints that are complete or absent: written aside, with a manifest, fsynced, then renamed (`taosr1/runtime/files.py`).

A checkpoint is a Hugging Face folder, or a PEFT folder where adapters are trained (so the next stage loads it by path), plus what a resume needs:
`optimizer.safetensors` (moments and RNG state; of a sharded model a folder `optimizer/`, a file a rank) and `state.json` (step, cursor,
optimizer settings). Any number of ranks reads what any number wrote. No pickle anywhere.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from taosr1.learning.distributed_model import DistributedModel
from taosr1.model.decoder import Decoder
from taosr1.model.io.adapters import load_adapters, read_adapter_config
from taosr1.model.io.folders import ADAPTER_CONFIG, BEST_FILE, checkpoints, read_best, weights_fingerprint
from taosr1.model.io.hf_config import from_hf_config
from taosr1.model.io.shards import cause_of, read_sharded, stored_shapes, write_sharded
from taosr1.model.io.weights import (
    load_weights,
    load_weights_sharded,
    save_config_and_tokenizer,
    save_pretrained,
    save_weights_sharded,
)
from taosr1.model.lora import adapters
from taosr1.model.tokenizer import Tokenizer
from taosr1.runtime.distributed import on_rank_zero, this_rank
from taosr1.runtime.files import (
    DAMAGED,
    LEAVING,
    STATE_FILE,
    TEMPORARY,
    DamagedError,
    commit,
    open_aside,
    read_json,
    remove_folder,
    verify,
    write_checksummed,
    write_json,
)
from taosr1.task.prompt import PromptConfig

OPTIMIZER_FILE, OPTIMIZER_FOLDER = "optimizer.safetensors", "optimizer"


def save_checkpoint(
    folder: Path,
    step: int,
    model: Decoder,
    tokenizer: Tokenizer,
    prompt: PromptConfig,
    optimizers: Sequence[torch.optim.Optimizer],
    cursor: dict,
    team: DistributedModel | None = None,
    skipped: int = 0,
) -> Path:
    """Save everything a resume and the next stage need into `folder/step-NNNNNN`; returns that path. All ranks call it.

    Raises: OSError naming the folder where it cannot be written (a full disk, say); what was there before is untouched.
    """
    path = folder / f"step-{step:06d}"
    groups = [optimizer.state_dict()["param_groups"] for optimizer in optimizers]
    state = {"step": step, "cursor": cursor, "skipped": skipped, "optimizers": groups}
    tensors = {"rng": torch.get_rng_state()}
    for index, optimizer in enumerate(optimizers):
        tensors |= _flatten(f"{index}.", optimizer)
    sharded = bool(team and team.sharded)
    aside = on_rank_zero(lambda: open_aside(path))
    try:
        if sharded:
            save_weights_sharded(model, aside)
            write_sharded(tensors, aside / OPTIMIZER_FOLDER)

        def finish() -> None:
            if sharded:
                save_config_and_tokenizer(model, tokenizer, aside)
            else:
                save_pretrained(model, tokenizer, aside)
                save_file({name: tensor.cpu() for name, tensor in tensors.items()}, str(aside / OPTIMIZER_FILE))
            prompt.save(aside)
            write_json(aside / STATE_FILE, state)
            commit(aside, path)

        on_rank_zero(finish)
    except BaseException as error:
        if this_rank().first:
            shutil.rmtree(aside, ignore_errors=True)
        if isinstance(error, (OSError, SafetensorError)) or type(error).__name__ == "CheckpointException":
            kept = [str(older) for _, older in checkpoints(folder)]
            raise OSError(f"{path} could not be written ({cause_of(error)}); {f'the newest checkpoint is {kept[-1]}' if kept else 'there is no checkpoint yet'}") from error
        raise
    return path


def load_checkpoint(path: Path, model: Decoder, optimizers: Sequence[torch.optim.Optimizer], team: DistributedModel | None = None) -> tuple[int, dict, int]:
    """Put a checkpoint's weights, optimizers and RNG back in place, sharded or not, whoever wrote it. Its files are taken as verified.

    Returns: its step, its cursor, and how many steps in a row had been skipped before it.
    Raises: ValueError naming the file where it does not belong to this model and these optimizers.
    """
    state = read_json(path / STATE_FILE)
    if adapters(model):
        _check_adapters(path, model)
        load_adapters(model, path)
    else:
        if not (path / "config.json").is_file():
            raise ValueError(f"{path}: holds no whole weights, but this run trains them all (no --lora-rank)")
        stored = from_hf_config(read_json(path / "config.json"))
        if stored != model.config:
            raise ValueError(f"{path}: holds a model of another shape ({stored}) than --model ({model.config})")
        load_weights_sharded(model, path) if team and team.sharded else load_weights(model, path)
    sizes = [[len(group["params"]) for group in groups] for groups in state["optimizers"]]
    expected = [[len(group["params"]) for group in optimizer.param_groups] for optimizer in optimizers]
    if sizes != expected:
        raise ValueError(f"{path / STATE_FILE}: holds optimizers over {sizes} parameters, this run has {expected}")
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


def _read_optimizers(path: Path, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, torch.Tensor]:
    """Every stored tensor, those with a weight's shape sharded as that weight is."""
    sharded = any(hasattr(p, "full_tensor") for optimizer in optimizers for group in optimizer.param_groups for p in group["params"])
    if not sharded and (path / OPTIMIZER_FILE).is_file():
        with safe_open(str(path / OPTIMIZER_FILE), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}
    folder = path / OPTIMIZER_FOLDER if (path / OPTIMIZER_FOLDER).is_dir() else path
    weights = {
        f"{number}.{index}": parameter
        for number, optimizer in enumerate(optimizers)
        for index, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"])
    }
    tensors = {"rng": torch.get_rng_state()}
    for name, shape in stored_shapes(folder).items():
        weight = weights.get(".".join(name.split(".")[:2]))
        if weight is None:
            continue  # a model's own tensors lie in the same folder
        tensors[name] = torch.zeros_like(weight.detach()) if shape == tuple(weight.shape) else torch.zeros(shape)
    read_sharded(tensors, folder)
    return tensors


def _check_adapters(path: Path, model: Decoder) -> None:
    """Adapters mean nothing on another base or at another scale."""
    if not (path / ADAPTER_CONFIG).is_file():
        raise ValueError(f"{path}: holds whole weights, but this run trains adapters (--lora-rank)")
    config, base = read_adapter_config(path)
    if config != adapters(model)[0].lora:
        raise ValueError(f"{path}: holds adapters with {config}, this run has {adapters(model)[0].lora}")
    if base == model.source:
        return
    if not Path(base).is_dir():  # moved, with the project perhaps: what it held, identity.json has compared
        print(f"note: {path} stands on {base}, which is not there any more; taking {model.source} for it", file=sys.stderr)
    elif weights_fingerprint(base) != weights_fingerprint(model.source):
        raise ValueError(f"{path}: holds adapters that stand on {base}, but --model is now {model.source}")


def _flatten(prefix: str, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's tensors as {"<prefix><parameter index>.<name>": tensor}."""
    return {
        f"{prefix}{index}.{name}": value.detach().contiguous() if torch.is_tensor(value) else torch.tensor(value)
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }


# --- Which checkpoints there are --------------------------------------------------------------------------------------
def newest_valid(folder: Path) -> tuple[int, Path] | None:
    """(step, path) of the newest checkpoint whose files are what was written; None where there is none.

    A damaged one is said aloud and moved out of the way (damaged-step-NNNNNN), so that its step can be made again.
    """
    for step, path in reversed(checkpoints(folder)):
        try:
            verify(path, required=True)
            return step, path
        except DamagedError as error:
            aside = path.with_name(DAMAGED + path.name)
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            print(f"warning: {error}. It is now {aside}; going back to the checkpoint before it", file=sys.stderr)
    return None


def remove_leftovers(folder: Path) -> None:
    """Remove what an interrupted save or deletion left behind."""
    for path in (*folder.glob(f"{TEMPORARY}*"), *folder.glob(f"{LEAVING}*"), *folder.glob(".*.tmp")):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()


def rewind(folder: Path, step: int, metrics: Iterable[dict] = ()) -> None:
    """Forget the checkpoints after `step`. Where best.json knows of later evaluations it is made anew from the earlier ones.

    metrics: the rows of metrics.jsonl.
    """
    for later, path in checkpoints(folder):
        if later > step:
            remove_folder(path)
    best = read_best(folder)
    if best.get("evaluated_through", 0) <= step:
        return
    score = next(iter(best.keys() - {"step", "evaluated_through"}), "")
    there = dict(checkpoints(folder))
    known = [row for row in metrics if row["step"] <= step and score in row]
    candidates = [row for row in known if row["step"] in there]
    if candidates:
        first_best = max(candidates, key=lambda row: row[score])  # of equals the earliest, as when they were evaluated
        best = {"step": first_best["step"], score: first_best[score], "evaluated_through": max(row["step"] for row in known)}
        write_checksummed(folder / BEST_FILE, best)
    else:
        (folder / BEST_FILE).unlink()


def prune(folder: Path, keep_last: int) -> None:
    """Keep the newest `keep_last` checkpoints and the one that `best.json` names."""
    best = read_best(folder).get("step")
    for step, path in checkpoints(folder)[:-keep_last]:
        if step != best:
            remove_folder(path)
