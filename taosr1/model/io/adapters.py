"""LoRA adapters in and out of folders, in PEFT's format: adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from taosr1.model.decoder import Decoder
from taosr1.model.io.folders import ADAPTER, ADAPTER_CONFIG, open_safetensors
from taosr1.model.lora import LoraConfig, adapters
from taosr1.runtime.files import read_json, replace_file, write_json

PEFT_PREFIX = "base_model.model."
# Options of adapter_config.json beyond plain LoRA, none of which is computed here.
UNSUPPORTED = (
    "bias lora_bias fan_in_fan_out use_dora use_qalora use_bdlora rank_pattern alpha_pattern "
    "modules_to_save exclude_modules layers_to_transform layer_replication target_parameters "
    "trainable_token_indices alora_invocation_tokens arrow_config kasa_config monteclora_config"
).split()


def adapter_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The adapters' weights under PEFT's names."""
    return {PEFT_PREFIX + name: tensor for name, tensor in model.state_dict().items() if ".lora_" in name}


def save_adapters(model: Decoder, folder: str | Path, base: str) -> None:
    """Write adapter_config.json and adapter_model.safetensors; `base` is the folder or hub id of the frozen weights."""
    folder, config = Path(folder), adapters(model)[0].lora
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().contiguous() for name, tensor in adapter_tensors(model).items()}
    replace_file(folder / ADAPTER, lambda file: safetensors.torch.save_file(tensors, file, metadata={"format": "pt"}))
    fixed = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "inference_mode": True}
    lora = {"r": config.rank, "lora_alpha": config.alpha, "lora_dropout": config.dropout}
    off = {"bias": "none", "fan_in_fan_out": False, "use_dora": False, "use_rslora": False, "modules_to_save": None}
    targets = config.pattern or list(config.targets)
    write_json(folder / ADAPTER_CONFIG, {**fixed, **lora, "target_modules": targets, **off})


def read_adapter_config(folder: str | Path) -> tuple[LoraConfig, str]:
    """The LoRA settings and the base that a PEFT folder's adapter_config.json names.

    Raises: ValueError listing every option that is not supported.
    """
    path = Path(folder) / ADAPTER_CONFIG
    raw = read_json(path)
    problems = []
    if raw.get("peft_type") != "LORA":
        problems.append(f"peft_type is {raw.get('peft_type')!r}, expected 'LORA'")
    switched_on = [key for key in UNSUPPORTED if raw.get(key) not in (None, False, [], {}, "none")]
    problems += [f"{key}={raw[key]!r}, expected none" for key in switched_on]
    if raw.get("init_lora_weights", True) not in (True, False, "gaussian"):
        problems.append(f"init_lora_weights={raw['init_lora_weights']!r} changes the base: save it as an ordinary LoRA")
    base, targets = raw.get("base_model_name_or_path"), raw.get("target_modules")
    if not isinstance(base, str) or not base:
        problems.append(f"base_model_name_or_path is {base!r}, expected a folder or ORG/NAME")
    listed = isinstance(targets, list) and all(isinstance(name, str) for name in targets)
    if not listed and not (isinstance(targets, str) and targets):
        problems.append(f"target_modules is {targets!r}, expected a list of layer names or a regular expression")
    if problems:
        raise ValueError(f"{path}: this adapter is not supported: " + "; ".join(problems))
    rank, alpha = raw.get("r"), raw.get("lora_alpha")
    try:
        if raw.get("use_rslora") and type(rank) is int and type(alpha) in (int, float) and rank > 0:
            alpha *= math.sqrt(rank)  # rank-stabilised LoRA (2312.03732) scales by alpha / sqrt(rank)
        return LoraConfig(rank, alpha, raw.get("lora_dropout", 0.0), **_targets(targets)), base
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _targets(targets: list[str] | str) -> dict[str, Any]:
    """PEFT's target_modules as LoraConfig takes it: last names of layers, or a pattern of whole names."""
    if targets == "all-linear":
        return {"pattern": r".*_proj"}  # all but the output embedding
    if isinstance(targets, str):
        return {"pattern": targets}
    if any("." in name for name in targets):  # the ends of whole names, such as "self_attn.q_proj"
        return {"pattern": rf"(?:.*\.)?(?:{'|'.join(map(re.escape, targets))})"}
    return {"targets": tuple(targets)}


@torch.no_grad()
def load_adapters(model: Decoder, folder: str | Path) -> None:
    """Copy a folder's adapter_model.safetensors into the model's adapters; one ValueError lists all that do not fit."""
    path = Path(folder) / ADAPTER
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist, although the folder has {ADAPTER_CONFIG}")
    with open_safetensors(path) as handle:
        stored = {name: handle.get_tensor(name) for name in handle.keys()}
    expected = adapter_tensors(model)
    whole = sorted(name.removeprefix(PEFT_PREFIX) for name in stored if ".lora_" not in name)
    if whole:
        raise ValueError(
            f"{path} holds whole weights beside the adapters ({', '.join(whole[:3])}): tokens were added and their "
            "embeddings trained. That is not supported: merge it into its base with PEFT (merge_and_unload, "
            "save_pretrained) and give the merged folder"
        )
    problems = [f"missing {name}" for name in expected.keys() - stored.keys()]
    problems += [f"unexpected {name}" for name in stored.keys() - expected.keys()]
    for name in expected.keys() & stored.keys():
        if stored[name].shape != expected[name].shape:
            problems.append(f"{name} has shape {tuple(stored[name].shape)}, expected {tuple(expected[name].shape)}")
    if problems:
        raise ValueError(f"{path} does not fit the model:\n  " + "\n  ".join(sorted(problems)[:20]))
    for name, tensor in expected.items():
        tensor.copy_(stored[name])
