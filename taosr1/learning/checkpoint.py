"""Checkpoints that are complete or absent: written aside, fsynced, then renamed.

A checkpoint is a Hugging Face folder, or a PEFT folder where adapters are trained (so the next stage loads it by path), plus what a resume needs:
`optimizer.safetensors` (moments and RNG state) and `state.json` (step, cursor, optimizer settings). No pickle anywhere.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from taosr1.model.adapter_files import load_adapters, read_adapter_config
from taosr1.model.decoder import Decoder
from taosr1.model.files import fsync, read_json
from taosr1.model.folders import ADAPTER_CONFIG, BEST_FILE, STATE_FILE, checkpoints, read_best
from taosr1.model.hf_config import from_hf_config
from taosr1.model.lora import adapters
from taosr1.model.tokenizer import Tokenizer
from taosr1.model.weights import load_weights, save_pretrained
from taosr1.task.prompt import PromptConfig

OPTIMIZER_FILE = "optimizer.safetensors"
_TEMPORARY = ".writing-"


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Write a folder that appears complete or not at all. An existing folder of that name is an error."""
    if path.exists():
        raise FileExistsError(f"{path} already exists")
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.parent / f"{_TEMPORARY}{path.name}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        yield aside
        for file in aside.rglob("*"):
            if file.is_file():
                fsync(file)
        fsync(aside)
        os.replace(aside, path)
        fsync(path.parent)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def save_checkpoint(
    folder: Path,
    step: int,
    model: Decoder,
    tokenizer: Tokenizer,
    prompt: PromptConfig,
    optimizers: Sequence[torch.optim.Optimizer],
    cursor: dict,
) -> Path:
    """Save everything a resume and the next stage need into `folder/step-NNNNNN`; returns that path."""
    path = folder / f"step-{step:06d}"
    with new_folder(path) as aside:
        save_pretrained(model, tokenizer, aside)
        prompt.save(aside)
        tensors = {"rng": torch.get_rng_state()}
        for index, optimizer in enumerate(optimizers):
            tensors |= _flatten(f"{index}.", optimizer)
        save_file(tensors, str(aside / OPTIMIZER_FILE))
        groups = [optimizer.state_dict()["param_groups"] for optimizer in optimizers]
        state = {"step": step, "cursor": cursor, "optimizers": groups}
        (aside / STATE_FILE).write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
    return path


def load_checkpoint(path: Path, model: Decoder, optimizers: Sequence[torch.optim.Optimizer]) -> tuple[int, dict]:
    """Put a checkpoint's weights, optimizers and RNG back in place; returns its step and cursor.

    Raises: ValueError naming the file where it does not belong to this model and these optimizers.
    """
    state = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
    if adapters(model):
        _check_adapters(path, model)
        load_adapters(model, path)
    else:
        if not (path / "config.json").is_file():
            raise ValueError(f"{path}: holds no whole weights, but this run trains them all (no --lora-rank)")
        stored = from_hf_config(read_json(path / "config.json"))
        if stored != model.config:
            raise ValueError(f"{path}: holds a model of another shape ({stored}) than --model ({model.config})")
        load_weights(model, path)
    with safe_open(str(path / OPTIMIZER_FILE), framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    torch.set_rng_state(tensors.pop("rng"))
    sizes = [[len(group["params"]) for group in groups] for groups in state["optimizers"]]
    expected = [[len(group["params"]) for group in optimizer.param_groups] for optimizer in optimizers]
    if sizes != expected:
        raise ValueError(f"{path / STATE_FILE}: holds optimizers over {sizes} parameters, this run has {expected}")
    moments: list[dict[int, dict[str, torch.Tensor]]] = [{} for _ in optimizers]
    for name, tensor in tensors.items():
        optimizer, parameter, key = name.split(".", 2)
        moments[int(optimizer)].setdefault(int(parameter), {})[key] = tensor
    for optimizer, values in zip(optimizers, moments):
        # Moments come from the checkpoint, settings (learning rates, weight decay) from the run that continues.
        optimizer.load_state_dict({"state": values, "param_groups": optimizer.state_dict()["param_groups"]})
    return state["step"], state["cursor"]


def _check_adapters(path: Path, model: Decoder) -> None:
    """Adapters mean nothing on another base or at another scale."""
    if not (path / ADAPTER_CONFIG).is_file():
        raise ValueError(f"{path}: holds whole weights, but this run trains adapters (--lora-rank)")
    config, base = read_adapter_config(path)
    if config != adapters(model)[0].lora:
        raise ValueError(f"{path}: holds adapters with {config}, this run has {adapters(model)[0].lora}")
    if base != model.source:
        raise ValueError(f"{path}: holds adapters that stand on {base}, but --model is now {model.source}")


def _flatten(prefix: str, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's tensors as {"<prefix><parameter index>.<name>": tensor}."""
    return {
        f"{prefix}{index}.{name}": value.detach().cpu().contiguous() if torch.is_tensor(value) else torch.tensor(value)
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }


def sweep(folder: Path) -> None:
    """Remove what an interrupted save left behind."""
    for path in (*folder.glob(f"{_TEMPORARY}*"), *folder.glob(".*.tmp")):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()


def rewind(folder: Path, step: int) -> None:
    """Forget the checkpoints after `step`; and best.json, if it knows of a later evaluation."""
    for later, path in checkpoints(folder):
        if later > step:
            shutil.rmtree(path)
    if read_best(folder).get("evaluated_through", 0) > step:
        (folder / BEST_FILE).unlink()


def prune(folder: Path, keep_last: int) -> None:
    """Keep the newest `keep_last` checkpoints and the one that `best.json` names."""
    best = read_best(folder).get("step")
    for step, path in checkpoints(folder)[:-keep_last]:
        if step != best:
            shutil.rmtree(path)
