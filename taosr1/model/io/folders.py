"""Paths of a model's files in its folder, and of a model on the Hugging Face hub."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import safetensors

from taosr1.model.tokenizer_files import TOKENIZER_FILES
from taosr1.runtime.files import MANIFEST_FILE, read_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def weights_fingerprint(source: str) -> str:
    """A short text that differs for other weights: a checkpoint's manifest hashed, else samples of the weight files.

    For the start of a run, and for models that no single process holds; `model_digest` reads every loaded weight.
    source: a local folder or hub id as in `Decoder.source`; "" for fresh weights.
    """
    if not source:
        return "fresh weights"
    folder, digest = resolve_folder(source), hashlib.sha256()
    if (folder / MANIFEST_FILE).is_file():
        digest.update((folder / MANIFEST_FILE).read_bytes())
    else:
        for name in ("config.json", "generation_config.json", "prompt.json", ADAPTER_CONFIG):
            digest.update((folder / name).read_bytes() if (folder / name).is_file() else b"-")
        for path in sorted(folder.glob("*.safetensors")):
            size = path.stat().st_size
            digest.update(f"{path.name} {size}".encode())
            with open(path, "rb") as file:
                for offset in range(0, size, max(2**20, size // 16)):  # at most 17 samples of 1 MB
                    file.seek(offset)
                    digest.update(file.read(2**20))
    if (folder / ADAPTER_CONFIG).is_file():
        base = base_of(folder, str(read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")))
        digest.update(weights_fingerprint(base).encode())
    return f"{folder.name}, sha256 {digest.hexdigest()[:16]}"


def base_of(adapter_folder: Path, named: str) -> str:
    """The base that an adapter's config names: a path from here, as in PEFT; else from the adapter's own folder."""
    beside = adapter_folder / named
    return str(beside) if not Path(named).is_dir() and beside.is_dir() else named


def resolve_folder(folder_or_hub_id: str | Path) -> Path:
    """The local folder of a model: the argument itself, or a download from the Hugging Face hub.

    Raises: FileNotFoundError where it is neither, or a folder without a model (a run folder, for example).
    """
    folder = Path(folder_or_hub_id)
    if folder.is_dir():
        _check_model_folder(folder)
        return folder
    if folder.exists():
        raise FileNotFoundError(f"{folder} is a file, expected a model folder (with config.json and {SINGLE})")
    if isinstance(folder_or_hub_id, Path) or not HUB_ID.fullmatch(folder_or_hub_id):
        raise FileNotFoundError(
            f"no model folder {folder_or_hub_id} (give a folder, a GGUF file, ORG/NAME on huggingface.co, or smollm2)"
        )
    return _download(folder_or_hub_id)


def weight_files(folder: Path) -> dict[Path, set[str]]:
    """The safetensors files of a model folder, each with its tensors as the index lists them (none without an index).

    Raises: FileNotFoundError or ValueError naming what is missing or wrong.
    """
    if (folder / SINGLE).is_file():
        return {folder / SINGLE: set()}
    if not (folder / INDEX).is_file():
        other = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
        hint = f"; {', '.join(other)} cannot be read: convert to safetensors first" if other else ""
        if packed := next(folder.glob("*.gguf"), None):
            hint += f"; for the GGUF file give --model {packed}"
        raise FileNotFoundError(f"{folder} holds neither {SINGLE} nor {INDEX}{hint}")
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(f, str) for f in weight_map.values()):
        raise ValueError(f"{folder / INDEX}: weight_map is missing, empty or not a map from tensor name to file name")
    files = sorted(set(weight_map.values()))
    outside = [file for file in files if Path(file).name != file or "\\" in file or not file.endswith(".safetensors")]
    if outside:
        raise ValueError(f"{folder / INDEX} names what is no .safetensors file of its own folder: {', '.join(outside)}")
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}, named in {INDEX}")
    return {folder / file: {name for name, holder in weight_map.items() if holder == file} for file in files}


def open_safetensors(path: Path) -> Any:
    """An open safetensors file (memory-mapped). Raises: ValueError naming a file that cannot be read."""
    try:
        return safetensors.safe_open(path, framework="pt")
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged or not safetensors ({error}): copy or download it again") from error


def _check_model_folder(folder: Path) -> None:
    config = folder / "config.json"
    if (folder / ADAPTER_CONFIG).is_file():
        return
    if config.is_file() and {"architectures", "model_type"} & read_json(config).keys():
        return
    if (folder / "checkpoints").is_dir():
        configs = (path for name in (config.name, ADAPTER_CONFIG) for path in folder.glob(f"checkpoints/*/{name}"))
        shown = ", ".join(sorted(str(path.parent) for path in configs)) or "none is complete yet"
        raise FileNotFoundError(f"{folder} is a run folder, not a model: give one of its checkpoints ({shown})")
    why = "its config.json has no model_type" if config.is_file() else "it has no config.json"
    packed = next(folder.glob("*.gguf"), None)
    hint = f"for the GGUF file give --model {packed}" if packed else "expected a Hugging Face folder or a checkpoint"
    raise FileNotFoundError(f"{folder} is not a model folder: {why} ({hint})")


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    files = ["config.json", "generation_config.json", "model*.safetensors", INDEX, ADAPTER, ADAPTER_CONFIG]
    try:
        return Path(snapshot_download(hub_id, allow_patterns=[*files, *TOKENIZER_FILES]))
    except Exception as error:  # network errors have no common base class across versions of the library
        first_line = next(iter(str(error).strip().splitlines()), "")
        raise FileNotFoundError(
            f"{hub_id} is neither a local folder nor available from huggingface.co. Check the name and the network, or "
            f"download the model elsewhere and give its folder ({type(error).__name__}: {first_line})"
        ) from error
