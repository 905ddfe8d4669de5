"""Hugging Face folders in and out: config.json, generation_config.json, safetensors and the tokenizer's files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from taosr1.model.decoder import Decoder
from taosr1.model.files import read_json, replace_file, write_json
from taosr1.model.hf_config import from_hf_config, to_hf_config
from taosr1.model.tokenizer import TOKENIZER_FILES, Tokenizer

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
# Derived from rope_theta; files written by old transformers hold them.
DERIVED = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")


def load_pretrained(
    folder_or_hub_id: str | Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> tuple[Decoder, Tokenizer]:
    """Load a model and its tokenizer from a local folder, or else from the Hugging Face hub (ORG/NAME).

    Raises:
        FileNotFoundError: no such folder or model, or a file is missing from it.
        ValueError: an unsupported config, weights that do not fit it, a tokenizer that does not fit the task or model.
    """
    folder = resolve_folder(folder_or_hub_id)
    tokenizer = Tokenizer(folder)  # first: it fails fast, the weights are slow
    model = load_decoder(folder, dtype=dtype, device=device)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"{folder}: the tokenizer has ids up to {tokenizer.vocab_size - 1}, but the model only has "
            f"vocab_size={model.config.vocab_size}: the two do not belong together"
        )
    return model, tokenizer


def load_decoder(
    folder: str | Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Decoder:
    """Load the weights and config alone. Arguments and errors as `load_pretrained`."""
    folder = resolve_folder(folder)
    if dtype not in DTYPES.values():
        raise ValueError(f"dtype is {dtype}, expected one of {', '.join(DTYPES)}")
    raw = read_json(folder / "config.json")
    try:
        config = from_hf_config(raw)
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'}: {error}") from error
    with torch.device("meta"):  # no memory and no random numbers until the real weights arrive
        model = Decoder(config)
    _fill(model, folder, dtype, torch.device(device))
    model.hf_config = raw
    if (folder / "generation_config.json").is_file():
        model.generation_config = read_json(folder / "generation_config.json")
    return model


def save_pretrained(model: Decoder, tokenizer: Tokenizer, folder: str | Path) -> None:
    """Write a complete Hugging Face folder; each file is written aside, forced to disk and renamed into place.

    config.json keeps what the source's had beyond the decoder's own keys. A tied head is stored once.

    Raises:
        ValueError: the folder holds sharded weights, which would be left beside the new file.
    """
    folder = Path(folder)
    if (folder / INDEX).exists():
        raise ValueError(f"{folder} holds sharded weights ({INDEX}): save to another folder")
    folder.mkdir(parents=True, exist_ok=True)
    # contiguous: what safetensors requires. A tied head is no parameter here, so it is not stored twice.
    tensors = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    replace_file(
        folder / SINGLE, lambda temporary: safetensors.torch.save_file(tensors, temporary, metadata={"format": "pt"})
    )
    write_json(folder / "config.json", _config_json(model, tokenizer))
    generation = model.generation_config or {"eos_token_id": list(tokenizer.eos_ids), "pad_token_id": tokenizer.pad_id}
    write_json(folder / "generation_config.json", generation)
    tokenizer.save(folder)


def resolve_folder(folder_or_hub_id: str | Path) -> Path:
    """A local model folder: the argument itself where it is one, else a download from the Hugging Face hub.

    Raises:
        FileNotFoundError: neither; or the folder holds no model (a run's own folder, say).
    """
    folder = Path(folder_or_hub_id)
    if folder.is_dir():
        _check_model_folder(folder)
        return folder
    if folder.exists():
        raise FileNotFoundError(f"{folder} is a file, expected a model folder (with config.json and {SINGLE})")
    if isinstance(folder_or_hub_id, Path) or not HUB_ID.fullmatch(folder_or_hub_id):
        raise FileNotFoundError(f"no model folder {folder_or_hub_id} (give a folder, or ORG/NAME on huggingface.co)")
    return _download(folder_or_hub_id)


def _check_model_folder(folder: Path) -> None:
    config = folder / "config.json"
    if config.is_file() and {"architectures", "model_type"} & read_json(config).keys():
        return
    checkpoints = sorted(path.parent for path in folder.glob("checkpoints/*/config.json"))
    if checkpoints or (folder / "checkpoints").is_dir():
        found = ", ".join(map(str, checkpoints)) or "none is complete yet"
        raise FileNotFoundError(f"{folder} is a run folder, not a model: give one of its checkpoints ({found})")
    why = "its config.json has no model_type" if config.is_file() else "it has no config.json"
    raise FileNotFoundError(f"{folder} is not a model folder: {why} (expected a Hugging Face folder or a checkpoint)")


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    patterns = ["config.json", "generation_config.json", "model*.safetensors", INDEX, *TOKENIZER_FILES]
    try:
        return Path(snapshot_download(hub_id, allow_patterns=patterns))
    except Exception as error:  # network errors have no common base class across versions of the library
        first_line = next(iter(str(error).strip().splitlines()), "")
        raise FileNotFoundError(
            f"{hub_id} is neither a local folder nor available from huggingface.co. Check the name and the network, or "
            f"download the model elsewhere and give its folder ({type(error).__name__}: {first_line})"
        ) from error


def _config_json(model: Decoder, tokenizer: Tokenizer) -> dict[str, Any]:
    """The source's config.json where there was one, with every key the decoder owns set to what it is now."""
    source = dict(model.hf_config)
    dtype = str(model.model.norm.weight.dtype).removeprefix("torch.")
    written = {**source, **to_hf_config(model.config), "dtype": dtype}
    if "torch_dtype" in source:  # transformers 4's name for it
        written["torch_dtype"] = dtype
    if source.get("rope_parameters"):
        written["rope_parameters"] = {**source["rope_parameters"], **written["rope_parameters"]}
    # eos_ids[0] is what training writes at the end of a reply.
    written.setdefault("eos_token_id", tokenizer.eos_ids[0])
    written.setdefault("pad_token_id", tokenizer.pad_id)
    return written


def _fill(model: Decoder, folder: Path, dtype: torch.dtype, device: torch.device) -> None:
    """Replace every (meta) parameter by the stored tensor; nothing missing, left over or mis-shaped."""
    expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    loaded: dict[str, Tensor] = {}
    problems, tied_copy = [], None
    for name, path, handle in _stored(folder):
        if DERIVED.fullmatch(name):
            continue
        tied = name == "lm_head.weight" and model.config.tie_word_embeddings
        if name not in expected and not tied:
            problems.append(f"unexpected {name} in {path.name}")
            continue
        view = handle.get_slice(name)
        shape = expected["model.embed_tokens.weight"] if tied else expected[name]
        if tuple(view.get_shape()) != shape:
            problems.append(f"{name} in {path.name} has shape {tuple(view.get_shape())}, expected {shape}")
        elif view.get_dtype() not in ("F32", "F16", "BF16"):
            problems.append(f"{name} in {path.name} is stored as {view.get_dtype()}, expected F32, F16 or BF16")
        elif name in loaded:
            problems.append(f"{name} is stored twice, the second time in {path.name}")
        else:
            # copy=True: the tensor read may be a map of the file, and the file may be replaced while we live.
            tensor = handle.get_tensor(name).to(device=device, dtype=dtype, copy=True)
            if tied:
                tied_copy = tensor
            else:
                loaded[name] = tensor
            continue
        expected.pop(name, None)  # reported already: not missing as well
    problems += [f"missing {name}" for name in expected if name not in loaded]
    embedding = loaded.get("model.embed_tokens.weight")
    if tied_copy is not None and embedding is not None and not torch.equal(tied_copy, embedding):
        problems.append("lm_head.weight differs from model.embed_tokens.weight, but config.json says they are tied")
    if problems:
        raise ValueError(_listing(folder, problems))
    model.load_state_dict(loaded, strict=True, assign=True)


def _stored(folder: Path) -> Iterator[tuple[str, Path, Any]]:
    """Every stored tensor of a folder: (name, file, open safetensors handle)."""
    for path in _weight_files(folder):
        try:
            handle = safetensors.safe_open(path, framework="pt")
        except safetensors.SafetensorError as error:
            raise ValueError(f"{path} is damaged or not safetensors ({error}): copy or download it again") from error
        with handle:
            for name in handle.keys():
                yield name, path, handle


def _weight_files(folder: Path) -> list[Path]:
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        other = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.gguf") for path in folder.glob(pattern))
        hint = f"; {', '.join(other)} cannot be read: convert to safetensors first" if other else ""
        raise FileNotFoundError(f"{folder} holds neither {SINGLE} nor {INDEX}{hint}")
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ValueError(f"{folder / INDEX}: weight_map is missing or not a map from tensor name to file name")
    names = sorted(set(weight_map.values()))
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise ValueError(f"{folder / INDEX} names files outside its folder: {', '.join(outside)}")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}, named in {INDEX}")
    return [folder / name for name in names]


def _listing(folder: Path, problems: list[str], most: int = 20) -> str:
    more = f"\n  ... and {len(problems) - most} more" if len(problems) > most else ""
    return f"the weights in {folder} do not fit its config.json:\n  " + "\n  ".join(problems[:most]) + more
