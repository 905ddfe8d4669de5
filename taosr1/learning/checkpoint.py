"""Checkpoints that are complete or absent: written aside, fsynced, then renamed.

A checkpoint is a Hugging Face folder (so the next stage loads it by path) plus what a resume needs:
`optimizer.safetensors` (moments and RNG state) and `state.json` (step, cursor, optimizer settings). No pickle anywhere.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from taosr1.model.decoder import Decoder
from taosr1.model.folders import STATE_FILE, checkpoints, read_best
from taosr1.model.tokenizer import Tokenizer
from taosr1.model.weights import load_decoder, save_pretrained
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
                _fsync(file)
        _fsync(aside)
        os.replace(aside, path)
        _fsync(path.parent)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def write_json(path: Path, value: object) -> None:
    """A small JSON file, replaced in one rename so that no reader meets half of it."""
    aside = path.with_name(f"{_TEMPORARY}{path.name}")
    aside.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    _fsync(aside)
    os.replace(aside, path)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def save_checkpoint(
    folder: Path,
    step: int,
    model: Decoder,
    tokenizer: Tokenizer,
    prompt: PromptConfig,
    optimizer: torch.optim.Optimizer,
    cursor: dict,
) -> Path:
    """Save everything a resume and the next stage need into `folder/step-NNNNNN`; returns that path."""
    path = folder / f"step-{step:06d}"
    with new_folder(path) as aside:
        save_pretrained(model, tokenizer, aside)
        prompt.save(aside)
        tensors, groups = _flatten(optimizer)
        save_file({**tensors, "rng": torch.get_rng_state()}, str(aside / OPTIMIZER_FILE))
        state = {"step": step, "cursor": cursor, "optimizer": groups}
        (aside / STATE_FILE).write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
    return path


def load_checkpoint(path: Path, model: Decoder, optimizer: torch.optim.Optimizer) -> tuple[int, dict]:
    """Put a checkpoint's weights, optimizer and RNG back in place; returns its step and cursor.

    Raises: ValueError naming the file where it does not belong to this model and optimizer.
    """
    state = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
    stored = load_decoder(path, dtype=torch.float32, device=str(next(model.parameters()).device))
    model.load_state_dict(stored.state_dict())
    with safe_open(str(path / OPTIMIZER_FILE), framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    torch.set_rng_state(tensors.pop("rng"))
    groups = state["optimizer"]
    sizes = [len(group["params"]) for group in groups]
    if sizes != [len(group["params"]) for group in optimizer.param_groups]:
        raise ValueError(f"{path / STATE_FILE}: optimizer holds {sizes} parameters per group, this model has another number")
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        moments.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": moments, "param_groups": groups})
    return state["step"], state["cursor"]


def _flatten(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], list[dict]]:
    """The optimizer's tensors as {"<parameter index>.<name>": tensor}, and its parameter groups as plain JSON."""
    state = optimizer.state_dict()
    tensors = {
        f"{index}.{name}": value.detach().cpu().contiguous() if torch.is_tensor(value) else torch.tensor(value)
        for index, values in state["state"].items()
        for name, value in values.items()
    }
    return tensors, state["param_groups"]


def sweep(folder: Path) -> None:
    """Remove what an interrupted save left behind."""
    for path in folder.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()


def prune(folder: Path, keep_last: int) -> None:
    """Keep the newest `keep_last` checkpoints and the one that `best.json` names."""
    best = read_best(folder).get("step")
    for step, path in checkpoints(folder)[:-keep_last]:
        if step != best:
            shutil.rmtree(path)
