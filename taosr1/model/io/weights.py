"""Weights in and out of Hugging Face folders: config.json, generation_config.json and safetensors, sharded or not.

Loading first checks the header of every file against the model, so that a folder that does not fit is refused before
any tensor is read. It then copies file by file into parameters of the requested dtype and device. A folder of adapters
(PEFT) is loaded as its base model with the adapters merged in.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from taosr1.model.decoder import Decoder
from taosr1.model.io.adapters import load_adapters, read_adapter_config, save_adapters
from taosr1.model.io.folders import (
    ADAPTER_CONFIG,
    INDEX,
    SINGLE,
    base_of,
    open_safetensors,
    resolve_folder,
    weight_files,
)
from taosr1.model.io.hf_config import from_hf_config, to_hf_config
from taosr1.model.lora import adapters, add_adapters, merge_adapters
from taosr1.model.tokenizer import Tokenizer
from taosr1.runtime.files import read_json, replacing, verify, write_json
from taosr1.runtime.shards import is_sharded, read_sharded, write_sharded

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MAPPED_BYTES = 64 * 2**20  # of a weights file, held in memory at most while it is copied
SHARD_BYTES = 5 * 10**9  # largest weights file, as in transformers 4
COMPUTED = "rotary_emb.inv_freq"  # computed from rope_theta here; files of old transformers versions store it
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


# ---- load ------------------------------------------------------------------------------------------------------------


def load_pretrained(
    folder_or_hub_id: str | Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> tuple[Decoder, Tokenizer]:
    """Load a model and its tokenizer from a local folder or, where there is none, from the Hugging Face hub (ORG/NAME).

    Raises:
        FileNotFoundError: no such folder or model, or one of its files is missing.
        ValueError: an unsupported config; weights or a tokenizer that do not fit; damaged files of a checkpoint.
    """
    folder = resolve_folder(folder_or_hub_id)
    verify(folder, without="optimizer")
    tokenizer = Tokenizer(*_base_folders(folder))  # first: it fails within milliseconds, the weights take seconds
    model = _load_decoder(folder, folder_or_hub_id, dtype, device)
    if tokenizer.vocab_size > model.config.vocab_size:
        beyond = tokenizer.tokens_from(model.config.vocab_size)
        raise ValueError(
            f"{folder}: the tokenizer has ids up to {tokenizer.vocab_size - 1}, but the model only has "
            f"vocab_size={model.config.vocab_size}: the two do not belong together, or {beyond} were added without "
            "new embedding rows (then remove them from the tokenizer's files, or resize the embeddings)"
        )
    return model, tokenizer


def load_decoder(
    folder: str | Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Decoder:
    """Load weights and config without a tokenizer. Arguments and errors as `load_pretrained`.

    On device "meta" only the headers are read: for a model that is to be sharded before its weights are loaded.
    """
    found = resolve_folder(folder)
    verify(found, without="optimizer")
    return _load_decoder(found, folder, dtype, device)


def load_weights(model: Decoder, folder: str | Path) -> None:
    """Load a folder's weights into an existing model; of a sharded model every rank reads its own slices.

    Raises: ValueError where they do not fit; the model is unchanged then.
    """
    found = resolve_folder(folder)
    files = _check_headers(model, found)
    if is_sharded(model.parameters()):
        read_sharded(hf_tensors(model), found)
    else:
        _copy_weights(model, files)


def _load_decoder(folder: Path, source: str | Path, dtype: torch.dtype, device: torch.device | str) -> Decoder:
    if dtype not in DTYPES.values():
        raise ValueError(f"dtype is {dtype}, expected one of {', '.join(DTYPES)}")
    *adapter_folders, base = _base_folders(folder)
    for below in (*adapter_folders, base)[1:]:  # the bases of adapters may be checkpoints too
        verify(below, without="optimizer")
    raw = read_json(base / "config.json")
    try:
        config = from_hf_config(raw)
    except ValueError as error:
        hint = ""
        if adapter_folders and raw.get("quantization_config"):
            file = adapter_folders[-1] / ADAPTER_CONFIG
            hint = f"\nedit base_model_name_or_path in {file} to the same model without quantisation"
        raise ValueError(f"{base / 'config.json'}: {error}{hint}") from error
    generation = read_json(base / "generation_config.json") if (base / "generation_config.json").is_file() else {}
    with torch.device("meta"):  # no memory and no random numbers before the stored weights arrive
        model = Decoder(config)
    files = _check_headers(model, base)
    # Not model.to_empty, which first imports half of torch.compile.
    empty = {name: torch.empty(tensor.shape, dtype=dtype, device=device) for name, tensor in model.state_dict().items()}
    model.load_state_dict(empty, assign=True)
    if str(device) != "meta":
        _copy_weights(model, files)
    elif adapter_folders:
        raise ValueError(f"{folder} holds adapters, which cannot be sharded: merge them with infer/merge.py first")
    model.hf_config, model.generation_config = raw, generation
    for adapter_folder in reversed(adapter_folders):
        try:
            add_adapters(model, read_adapter_config(adapter_folder)[0])
        except ValueError as error:
            raise ValueError(f"{adapter_folder / ADAPTER_CONFIG}: {error}") from error
        load_adapters(model, adapter_folder)
        merge_adapters(model)
    model.source = str(Path(source).resolve()) if Path(source).is_dir() else str(source)
    return model


def _base_folders(folder: Path) -> list[Path]:
    """The folder itself and, where it holds adapters, their base, its base and so on; the last one holds weights."""
    chain = [folder]
    while (chain[-1] / ADAPTER_CONFIG).is_file():
        if any((chain[-1] / name).is_file() for name in (SINGLE, INDEX)):
            raise ValueError(
                f"{chain[-1]} holds both adapters ({ADAPTER_CONFIG}) and a model's weights: remove one of them"
            )
        base = base_of(chain[-1], read_adapter_config(chain[-1])[1])
        try:
            found = resolve_folder(base)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{chain[-1] / ADAPTER_CONFIG} names the base {base}: {error}. Adapters need their base: edit "
                f"base_model_name_or_path in {chain[-1] / ADAPTER_CONFIG} to where it is now"
            ) from error
        if found.resolve() in [path.resolve() for path in chain]:
            raise ValueError(f"{chain[-1] / ADAPTER_CONFIG} names the base {base}, whose own base are these adapters")
        chain.append(found)
    return chain


def _check_headers(model: Decoder, folder: Path) -> dict[Path, list[str]]:
    """The names of the weights in each file, after all headers are checked against the model.

    Raises: ValueError listing weights that are missing, unexpected, stored twice, in another file than the index says,
        or of another shape or type.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in hf_tensors(model).items()}
    required = expected.keys()
    if model.lm_head is None:
        expected = {**expected, HEAD: expected[EMBEDDING]}  # some files store a tied head a second time
    files: dict[Path, list[str]] = {}
    file_of: dict[str, str] = {}
    problems = []
    for path, listed in weight_files(folder).items():
        with open_safetensors(path) as handle:
            views = {name: handle.get_slice(name) for name in handle.keys() if not name.endswith(COMPUTED)}
            found = {name: (tuple(view.get_shape()), view.get_dtype()) for name, view in views.items()}
        missing = sorted(name for name in listed - found.keys() if not name.endswith(COMPUTED))
        problems += [f"missing {name}, which {INDEX} says is in {path.name}" for name in missing]
        for name, (shape, dtype) in found.items():
            if name not in expected:
                problems.append(f"unexpected {name} in {path.name}")
            elif shape != expected[name]:
                problems.append(f"{name} in {path.name} has shape {shape}, expected {expected[name]}")
            elif dtype not in ("F32", "F16", "BF16"):
                problems.append(f"{name} in {path.name} is stored as {dtype}, expected F32, F16 or BF16")
            elif name in file_of:
                problems.append(f"{name} is stored twice, in {file_of[name]} and in {path.name}")
        files[path] = list(found)
        file_of |= dict.fromkeys([*found, *listed], path.name)  # a weight that its file lacks is not reported twice
    problems += [f"missing {name}" for name in required if name not in file_of]
    if problems:
        shown = problems[:20] + [f"... and {len(problems) - 20} more"] * (len(problems) > 20)
        raise ValueError("\n  ".join([f"the weights in {folder} do not fit its config.json:", *shown]))
    return files


@torch.no_grad()
def _copy_weights(model: Decoder, files: dict[Path, list[str]]) -> None:
    """Copy the checked files into the model; a head stored beside a tied embedding has to equal it.

    A copy, because a parameter that is a memory map of its file changes when the file does.
    """
    targets = hf_tensors(model)
    for path, name, target, stored in _pieces(files, targets):
        target.copy_(stored)
        if target.dtype == torch.float16 != stored.dtype and not target.isfinite().all():
            raise ValueError(f"{path}: {name} holds values beyond float16, or NaN: load it as bfloat16 or float32")
        del stored
    if model.lm_head is None:
        for path, name, embedding, stored in _pieces(files, {HEAD: targets[EMBEDDING]}):
            if not torch.equal(stored.to(embedding.device, embedding.dtype), embedding):
                raise ValueError(f"{path}: {name} differs from {EMBEDDING}, but config.json says they are tied")
            del stored


def _pieces(
    files: dict[Path, list[str]], targets: dict[str, Tensor]
) -> Iterator[tuple[Path, str, Tensor, Tensor]]:
    """(file, name, rows of a target, the same rows as stored) of all targets, for callers that delete the last.

    A file is opened again after every MAPPED_BYTES: only closing a memory map gives its pages back, and it stays open
    as long as a tensor of it is alive.
    """
    for path, names in files.items():
        handle, mapped = open_safetensors(path), 0
        for name in [name for name in names if name in targets]:
            target = targets[name]
            rows = max(1, MAPPED_BYTES * len(target) // max(1, target.nbytes))
            for start in range(0, len(target), rows):
                stored = handle.get_tensor(name)[start : start + rows]  # a view of the map: get_slice would copy
                mapped += stored.nbytes
                yield path, name, target[start : start + rows], stored
                del stored
                if mapped >= MAPPED_BYTES:
                    handle, mapped = open_safetensors(path), 0


# ---- save ------------------------------------------------------------------------------------------------------------


def save_pretrained(
    model: Decoder, tokenizer: Tokenizer, folder: str | Path, *, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write a complete Hugging Face folder; every file is written under another name, forced to disk and renamed.

    config.json keeps those keys of its source that the decoder does not know. A tied head is stored once. More than
    `shard_bytes` of weights are written as numbered shards with an index. Of a model with adapters only the adapters
    are written, in PEFT's format, with `model.source` as their base.

    Raises:
        ValueError: the folder holds weights in other files than those to be written, which would stay beside them.
    """
    folder = Path(folder)
    if adapters(model):
        save_adapters(model, folder, model.source)
        # All end tokens: there is no config.json here that would name them.
        generation = _generation_json(model, tokenizer) | {"eos_token_id": list(tokenizer.eos_ids)}
        write_json(folder / "generation_config.json", generation)
        tokenizer.save(folder)
        return
    tensors = {name: tensor.detach().contiguous() for name, tensor in hf_tensors(model).items()}  # as safetensors asks
    files = _shards(tensors, shard_bytes)
    written = {*files, INDEX} if len(files) > 1 else {*files}
    others = {path.name for pattern in ("model*.safetensors", INDEX) for path in folder.glob(pattern)} - written
    if others:
        raise ValueError(f"{folder} holds other weights ({', '.join(sorted(others))}): save to another folder")
    folder.mkdir(parents=True, exist_ok=True)
    for file, names in files.items():
        shard = {name: tensors[name] for name in names}
        with replacing(folder / file) as temporary:
            safetensors.torch.save_file(shard, temporary, metadata={"format": "pt"})
    if len(files) > 1:
        total = sum(tensor.nbytes for tensor in tensors.values())
        weight_map = {name: file for file, names in files.items() for name in names}
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    save_config_and_tokenizer(model, tokenizer, folder)


def save_weights_sharded(model: Decoder, folder: Path) -> None:
    """Write a sharded model's weights as `save_pretrained` would; all ranks call it."""
    tensors = {name: tensor.detach() for name, tensor in hf_tensors(model).items()}
    files = _shards(tensors, SHARD_BYTES).values()
    write_sharded(tensors, folder, join={name: number for number, names in enumerate(files, 1) for name in names})


def save_config_and_tokenizer(model: Decoder, tokenizer: Tokenizer, folder: Path) -> None:
    """Write config.json, generation_config.json and the tokenizer's files."""
    write_json(folder / "config.json", _config_json(model, tokenizer))
    write_json(folder / "generation_config.json", _generation_json(model, tokenizer))
    tokenizer.save(folder)


def hf_tensors(model: Decoder) -> dict[str, Tensor]:
    """Every weight under its Hugging Face name; stacked experts are views of the stack, one tensor each."""
    found = {}
    for name, tensor in model.state_dict().items():
        block, stack, matrix = name.partition(".mlp.experts.")
        if stack:
            found |= {f"{block}{stack}{number}.{matrix}.weight": expert for number, expert in enumerate(tensor)}
        else:
            found[name] = tensor
    return found


def _shards(tensors: dict[str, Tensor], shard_bytes: int) -> dict[str, list[str]]:
    """File names, each with its tensors in order: at most `shard_bytes` a file, or a single larger tensor."""
    shards, size = [[]], 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > shard_bytes:
            shards, size = [*shards, []], 0
        shards[-1].append(name)
        size += tensor.nbytes
    if len(shards) == 1:
        return {SINGLE: shards[0]}
    return {f"model-{number:05}-of-{len(shards):05}.safetensors": names for number, names in enumerate(shards, 1)}


def _generation_json(model: Decoder, tokenizer: Tokenizer) -> dict[str, Any]:
    generation = model.generation_config or {"pad_token_id": tokenizer.pad_id}
    return {"eos_token_id": list(tokenizer.eos_ids), **generation}


def _config_json(model: Decoder, tokenizer: Tokenizer) -> dict[str, Any]:
    """The config.json the model was loaded with, if any, with the decoder's own keys set to their values now."""
    source = dict(model.hf_config)
    dtype = str(model.model.norm.weight.dtype).removeprefix("torch.")
    written = {**source, **to_hf_config(model.config), "dtype": dtype}
    # A Mistral without a window would be written as Llama.
    written |= {key: source[key] for key in ("architectures", "model_type") if source.get(key)}
    if "torch_dtype" in source:  # the name of `dtype` in transformers 4
        written["torch_dtype"] = dtype
    if source.get("rope_parameters"):
        written["rope_parameters"] = {**source["rope_parameters"], **written["rope_parameters"]}
    written.setdefault("eos_token_id", tokenizer.eos_ids[0])  # the one that training writes at the end of a reply
    written.setdefault("pad_token_id", tokenizer.pad_id)
    return written
