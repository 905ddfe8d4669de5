"""Weights in and out of Hugging Face folders: config.json, generation_config.json and safetensors, whole or in shards.

Loading reads every header first, so that a folder that does not fit is refused before any tensor is touched, and then
copies file by file straight into parameters of the wanted dtype on the wanted device. A folder of adapters (PEFT) loads
as what it stands for: its base with the adapters merged in.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from taosr1.model.decoder import Decoder
from taosr1.model.io.adapters import load_adapters, read_adapter_config, save_adapters
from taosr1.model.io.folders import ADAPTER_CONFIG, INDEX, SINGLE, resolve_folder, weight_files
from taosr1.model.io.hf_config import from_hf_config, to_hf_config
from taosr1.model.io.shards import read_sharded, write_sharded
from taosr1.model.lora import adapters, add_adapters, merge_adapters
from taosr1.model.tokenizer import Tokenizer
from taosr1.runtime.files import read_json, replace_file, verify, write_json

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MAPPED_BYTES = 64 * 2**20  # of a file, held in memory at most while it is copied
SHARD_BYTES = 5 * 10**9  # what a weights file holds at most, as in transformers 4


def load_pretrained(
    folder_or_hub_id: str | Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> tuple[Decoder, Tokenizer]:
    """Load a model and its tokenizer from a local folder, or else from the Hugging Face hub (ORG/NAME).

    Raises:
        FileNotFoundError: no such folder or model, or a file is missing from it.
        ValueError: an unsupported config, weights that do not fit it, a tokenizer that does not fit the task or model, a checkpoint
            whose files are not what was written.
    """
    folder = resolve_folder(folder_or_hub_id)
    verify(folder, without="optimizer")
    tokenizer = Tokenizer(_tokenizer_folder(folder))  # first: it fails fast, the weights are slow
    model = _load_decoder(folder, folder_or_hub_id, dtype, device)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"{folder}: the tokenizer has ids up to {tokenizer.vocab_size - 1}, but the model only has "
            f"vocab_size={model.config.vocab_size}: the two do not belong together"
        )
    return model, tokenizer


def load_decoder(
    folder: str | Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Decoder:
    """Load the weights and config alone. Arguments and errors as `load_pretrained`.

    On device "meta" only headers are read and no weight is: the shape of a model that is to be sharded first.
    """
    found = resolve_folder(folder)
    verify(found, without="optimizer")
    return _load_decoder(found, folder, dtype, device)


def _load_decoder(folder: Path, spec: str | Path, dtype: torch.dtype, device: torch.device | str) -> Decoder:
    if dtype not in DTYPES.values():
        raise ValueError(f"dtype is {dtype}, expected one of {', '.join(DTYPES)}")
    *above, folder = _base_folders(folder)
    for below in (*above[1:], folder) if above else ():  # what adapters stand on may be checkpoints too
        verify(below, without="optimizer")
    raw = read_json(folder / "config.json")
    try:
        config = from_hf_config(raw)
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'}: {error}") from error
    generation = read_json(folder / "generation_config.json") if (folder / "generation_config.json").is_file() else {}
    with torch.device("meta"):  # no memory and no random numbers until the real weights arrive
        model = Decoder(config)
    files = _check_headers(model, folder)
    # Not model.to_empty, which imports half of torch.compile first.
    empty = {name: torch.empty(tensor.shape, dtype=dtype, device=device) for name, tensor in model.state_dict().items()}
    model.load_state_dict(empty, assign=True)
    if str(device) != "meta":
        _copy_weights(model, files)
    elif above:
        raise ValueError(f"{above[0]} holds adapters, which cannot be sharded: make them whole with infer/merge.py first")
    model.hf_config, model.generation_config = raw, generation
    for adapter in reversed(above):
        add_adapters(model, read_adapter_config(adapter)[0])
        load_adapters(model, adapter)
        merge_adapters(model)
    model.source = str(Path(spec).resolve()) if Path(spec).is_dir() else str(spec)
    return model


def _base_folders(folder: Path) -> list[Path]:
    """The folder itself and, where it holds adapters, what they stand on, and so on down to a folder of weights."""
    chain = [folder]
    while (chain[-1] / ADAPTER_CONFIG).is_file():
        if any((chain[-1] / name).is_file() for name in (SINGLE, INDEX)):
            raise ValueError(f"{chain[-1]} holds both adapters ({ADAPTER_CONFIG}) and whole weights: remove one of them")
        base = read_adapter_config(chain[-1])[1]
        try:
            found = resolve_folder(base)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{chain[-1] / ADAPTER_CONFIG} names the base {base}: {error}. Adapters need what they stand on: infer/merge.py makes them whole before it goes") from error
        if found.resolve() in [path.resolve() for path in chain]:
            raise ValueError(f"{chain[-1] / ADAPTER_CONFIG} names the base {base}, which stands on these adapters itself")
        chain.append(found)
    return chain


def _tokenizer_folder(folder: Path) -> Path:
    """Where the tokenizer is. Adapters of other programs share their base's: a copy beside them does not know its end tokens."""
    found = [path for path in _base_folders(folder) if (path / "tokenizer.json").is_file()]
    whole = (path for path in found if any((path / name).is_file() for name in ("generation_config.json", "config.json")))
    return next(whole, found[0] if found else folder)


def load_weights(model: Decoder, folder: str | Path) -> None:
    """Copy the weights of a folder into an existing model of the same shape; nothing is copied where they do not fit."""
    _copy_weights(model, _check_headers(model, Path(folder)))


def save_pretrained(model: Decoder, tokenizer: Tokenizer, folder: str | Path, *, shard_bytes: int = SHARD_BYTES) -> None:
    """Write a complete Hugging Face folder; each file is written aside, forced to disk and renamed into place.

    config.json keeps what the source's had beyond the decoder's own keys. A tied head is stored once. More than
    `shard_bytes` of weights go into numbered shards with an index. Of a model with adapters only those are written, in
    PEFT's format: its weights are where they came from.

    Raises:
        ValueError: the folder holds weights in other files than those to be written, which would be left beside them.
    """
    folder = Path(folder)
    if adapters(model):
        save_adapters(model, folder, model.source)
        # There is no config.json here to find the end tokens in.
        write_json(folder / "generation_config.json", _generation_json(model, tokenizer) | {"eos_token_id": list(tokenizer.eos_ids)})
        tokenizer.save(folder)
        return
    tensors = {name: tensor.detach().contiguous() for name, tensor in hf_tensors(model).items()}  # contiguous for safetensors
    shards = _shards(tensors, shard_bytes)
    names = {SINGLE} if len(shards) == 1 else {_shard_name(number, len(shards)) for number in range(len(shards))} | {INDEX}
    left_over = {path.name for pattern in ("model*.safetensors", INDEX) for path in folder.glob(pattern)} - names
    if left_over:
        raise ValueError(f"{folder} holds other weights ({', '.join(sorted(left_over))}): save to another folder")
    folder.mkdir(parents=True, exist_ok=True)
    for number, shard in enumerate(shards):
        part = {name: tensors[name] for name in shard}
        replace_file(
            folder / (SINGLE if len(shards) == 1 else _shard_name(number, len(shards))),
            lambda temporary, part=part: safetensors.torch.save_file(part, temporary, metadata={"format": "pt"}),
        )
    if len(shards) > 1:
        total = sum(tensor.nbytes for tensor in tensors.values())
        weight_map = {name: _shard_name(number, len(shards)) for number, shard in enumerate(shards) for name in shard}
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    save_descriptions(model, tokenizer, folder)


def save_descriptions(model: Decoder, tokenizer: Tokenizer, folder: Path) -> None:
    """What stands beside the weights: config.json, generation_config.json and the tokenizer's files."""
    write_json(folder / "config.json", _config_json(model, tokenizer))
    write_json(folder / "generation_config.json", _generation_json(model, tokenizer))
    tokenizer.save(folder)


def weights_into(model: Decoder, folder: str | Path) -> None:
    """Read a folder's weights into a sharded model: every rank takes its own slices."""
    files = _check_headers(model, resolve_folder(folder))
    tensors = hf_tensors(model)
    read_sharded(tensors, next(iter(files)).parent)


def save_weights_sharded(model: Decoder, folder: Path, *, shard_bytes: int = SHARD_BYTES) -> None:
    """Write a sharded model's weights as `save_pretrained` would, together with all other ranks."""
    tensors = {name: tensor.detach() for name, tensor in hf_tensors(model).items()}
    files = _shards(tensors, shard_bytes)
    write_sharded(tensors, folder, join={name: number for number, names in enumerate(files, start=1) for name in names})


def hf_tensors(model: Decoder) -> dict[str, Tensor]:
    """Every weight under its Hugging Face name. Stacked experts are one tensor each there, so theirs are views."""
    found = {}
    for name, tensor in model.state_dict().items():
        block, stack, matrix = name.partition(".mlp.experts.")
        if stack:
            found |= {f"{block}{stack}{number}.{matrix}.weight": part for number, part in enumerate(tensor)}
        else:
            found[name] = tensor
    return found


def _shards(tensors: dict[str, Tensor], shard_bytes: int) -> list[list[str]]:
    """Names in their order, cut so that every shard holds at most `shard_bytes`, or a single larger tensor."""
    shards, size = [[]], 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > shard_bytes:
            shards, size = [*shards, []], 0
        shards[-1].append(name)
        size += tensor.nbytes
    return shards


def _shard_name(number: int, count: int) -> str:
    return f"model-{number + 1:05}-of-{count:05}.safetensors"


def _generation_json(model: Decoder, tokenizer: Tokenizer) -> dict[str, Any]:
    generation = model.generation_config or {"pad_token_id": tokenizer.pad_id}
    return {"eos_token_id": list(tokenizer.eos_ids), **generation}


def _config_json(model: Decoder, tokenizer: Tokenizer) -> dict[str, Any]:
    """The source's config.json where there was one, with every key the decoder owns set to what it is now."""
    source = dict(model.hf_config)
    dtype = str(model.model.norm.weight.dtype).removeprefix("torch.")
    written = {**source, **to_hf_config(model.config), "dtype": dtype}
    written |= {key: source[key] for key in ("architectures", "model_type") if source.get(key)}  # Mistral without a window
    if "torch_dtype" in source:  # transformers 4's name for it
        written["torch_dtype"] = dtype
    if source.get("rope_parameters"):
        written["rope_parameters"] = {**source["rope_parameters"], **written["rope_parameters"]}
    # eos_ids[0] is what training writes at the end of a reply.
    written.setdefault("eos_token_id", tokenizer.eos_ids[0])
    written.setdefault("pad_token_id", tokenizer.pad_id)
    return written


def _check_headers(model: Decoder, folder: Path) -> dict[Path, list[str]]:
    """Which weights each file holds, after a look at all headers: nothing missing, left over, mis-shaped or mis-placed."""
    expected = {name: tuple(tensor.shape) for name, tensor in hf_tensors(model).items()}
    if model.lm_head is None:
        expected["lm_head.weight"] = expected["model.embed_tokens.weight"]  # a second copy that old files may hold
    files: dict[Path, list[str]] = {}
    problems, seen = [], {}
    for path, promised in weight_files(folder).items():
        with _open(path) as handle:
            names = {name: handle.get_slice(name) for name in handle.keys() if not _derived(name)}
            problems += [f"missing {name}, which {INDEX} says is in {path.name}" for name in sorted(promised - names.keys()) if not _derived(name)]
            for name, view in names.items():
                shape = tuple(view.get_shape())
                if name not in expected:
                    problems.append(f"unexpected {name} in {path.name}")
                elif shape != expected[name]:
                    problems.append(f"{name} in {path.name} has shape {shape}, expected {expected[name]}")
                elif view.get_dtype() not in ("F32", "F16", "BF16"):
                    problems.append(f"{name} in {path.name} is stored as {view.get_dtype()}, expected F32, F16 or BF16")
                elif name in seen:
                    problems.append(f"{name} is stored twice, in {seen[name]} and in {path.name}")
                files.setdefault(path, []).append(name)
                seen[name] = path.name
            seen |= {name: path.name for name in promised}  # reported already: not missing as well
    optional = "lm_head.weight" if model.lm_head is None else None
    problems += [f"missing {name}" for name in expected if name not in seen and name != optional]
    if problems:
        raise ValueError(_listing(folder, problems))
    return files


@torch.no_grad()
def _copy_weights(model: Decoder, files: dict[Path, list[str]]) -> None:
    """Copy the checked files into the model, a piece at a time: what has been copied of a map leaves the memory at once.

    A copy, because a parameter that is a map of its file changes when the file does.
    """
    targets, tied_copy = hf_tensors(model), None
    for path, names in files.items():
        handle, mapped = _open(path), 0
        for name in names:
            if name not in targets:
                tied_copy = path
                continue
            for start, stop in _pieces(targets[name]):
                target, stored = targets[name][start:stop], handle.get_tensor(name)[start:stop]  # a view of the map: get_slice would copy
                target.copy_(stored)
                if target.dtype == torch.float16 != stored.dtype and not target.isfinite().all():
                    raise ValueError(f"{path}: {name} holds values beyond float16, or NaN: load it as bfloat16 or float32")
                mapped += stored.nbytes
                del stored
                if mapped >= MAPPED_BYTES:
                    handle, mapped = _open(path), 0
    if tied_copy is not None:
        embedding = targets["model.embed_tokens.weight"]
        for start, stop in _pieces(embedding):
            stored = _open(tied_copy).get_tensor("lm_head.weight")[start:stop]
            if not torch.equal(stored.to(embedding.device, embedding.dtype), embedding[start:stop]):
                raise ValueError(f"{tied_copy}: lm_head.weight differs from model.embed_tokens.weight, but config.json says they are tied")


def _pieces(tensor: Tensor) -> Iterator[tuple[int, int]]:
    """First and last row of pieces of about MAPPED_BYTES."""
    rows = max(1, MAPPED_BYTES * len(tensor) // max(1, tensor.nbytes))
    return ((start, min(start + rows, len(tensor))) for start in range(0, len(tensor), rows))


def _open(path: Path) -> Any:
    try:
        return safetensors.safe_open(path, framework="pt")
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged or not safetensors ({error}): copy or download it again") from error


def _derived(name: str) -> bool:
    """Computed from rope_theta; files written by old transformers hold it."""
    return name.endswith("rotary_emb.inv_freq")


def _listing(folder: Path, problems: list[str], most: int = 20) -> str:
    more = f"\n  ... and {len(problems) - most} more" if len(problems) > most else ""
    return f"the weights in {folder} do not fit its config.json:\n  " + "\n  ".join(problems[:most]) + more
