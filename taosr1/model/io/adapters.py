"""LoRA adapters in and out of folders, in PEFT's format: adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from taosr1.model.decoder import Decoder
from taosr1.model.io.folders import ADAPTER, ADAPTER_CONFIG
from taosr1.model.lora import LoraConfig, adapters
from taosr1.runtime.files import read_json, replace_file, write_json

PEFT_PREFIX = "base_model.model."
# What an adapter_config.json may ask for beyond plain LoRA.
NOT_COMPUTED = (
    *("bias", "lora_bias", "fan_in_fan_out", "use_dora", "use_rslora", "use_qalora", "rank_pattern", "alpha_pattern", "modules_to_save"),
    *("layers_to_transform", "layer_replication", "target_parameters", "trainable_token_indices", "alora_invocation_tokens", "arrow_config"),
    *("exclude_modules", "use_bdlora", "kasa_config", "monteclora_config"),
)


def adapter_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The adapters' weights under PEFT's names."""
    return {PEFT_PREFIX + name: tensor for name, tensor in model.state_dict().items() if ".lora_" in name}


def save_adapters(model: Decoder, folder: str | Path, base: str) -> None:
    """Write adapter_config.json and adapter_model.safetensors. base: folder or hub id of the weights below, for whoever loads it."""
    folder, config = Path(folder), adapters(model)[0].lora
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().contiguous() for name, tensor in adapter_tensors(model).items()}
    replace_file(folder / ADAPTER, lambda temporary: safetensors.torch.save_file(tensors, temporary, metadata={"format": "pt"}))
    described = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "inference_mode": True}
    described |= {"r": config.rank, "lora_alpha": config.alpha, "lora_dropout": config.dropout, "target_modules": sorted(config.targets)}
    described |= {"bias": "none", "fan_in_fan_out": False, "use_dora": False, "use_rslora": False, "modules_to_save": None}
    write_json(folder / ADAPTER_CONFIG, described)


def read_adapter_config(folder: str | Path) -> tuple[LoraConfig, str]:
    """What a PEFT folder's adapter_config.json says, and which base it names.

    Raises: ValueError listing every option that is not computed here.
    """
    path = Path(folder) / ADAPTER_CONFIG
    raw = read_json(path)
    problems = [f"peft_type is {raw.get('peft_type')!r}, expected 'LORA'"] if raw.get("peft_type") != "LORA" else []
    problems += [f"{key}={raw[key]!r}, expected none" for key in NOT_COMPUTED if raw.get(key) not in (None, False, [], {}, "none")]
    if raw.get("init_lora_weights", True) not in (True, False, "gaussian"):
        problems.append(f"init_lora_weights={raw['init_lora_weights']!r} changes the base: save it as an ordinary LoRA")
    base, targets = raw.get("base_model_name_or_path"), raw.get("target_modules")
    if not isinstance(base, str) or not base:
        problems.append(f"base_model_name_or_path is {base!r}, expected a folder or ORG/NAME")
    if not isinstance(targets, list) or not all(isinstance(name, str) for name in targets):
        problems.append(f"target_modules is {targets!r}, expected a list of layer names")
    if problems:
        raise ValueError(f"{path}: this adapter is not supported: " + "; ".join(problems))
    try:
        return LoraConfig(raw.get("r"), raw.get("lora_alpha"), raw.get("lora_dropout", 0.0), tuple(sorted(targets))), base
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


@torch.no_grad()
def load_adapters(model: Decoder, folder: str | Path) -> None:
    """Copy a folder's adapter_model.safetensors into the model's adapters; all misfits are in one message."""
    path = Path(folder) / ADAPTER
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist, though {ADAPTER_CONFIG} stands beside where it should be")
    try:
        stored = safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is damaged or not safetensors ({error}): copy or download it again") from error
    expected = adapter_tensors(model)
    problems = [f"missing {name}" for name in expected if name not in stored] + [f"unexpected {name}" for name in stored if name not in expected]
    for name in expected.keys() & stored.keys():
        if stored[name].shape != expected[name].shape:
            problems.append(f"{name} has shape {tuple(stored[name].shape)}, expected {tuple(expected[name].shape)}")
    if problems:
        raise ValueError(f"{path} does not fit the model:\n  " + "\n  ".join(sorted(problems)[:20]))
    for name, tensor in expected.items():
        tensor.copy_(stored[name])
