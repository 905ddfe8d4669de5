"""Paths of a model's files and of a run's checkpoints, and the folder that a `--model` argument stands for."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from taosr1.model.tokenizer import TOKENIZER_FILES
from taosr1.runtime.files import MANIFEST_FILE, DamagedError, read_checksummed, read_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
BEST_FILE = "best.json"
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_STEP_FOLDER = re.compile(r"step-(\d{6,})")


# ---- runs ------------------------------------------------------------------------------------------------------------


def checkpoints(folder: str | Path) -> list[tuple[int, Path]]:
    """(step, path) of the checkpoints in a folder, oldest first.

    An unfinished checkpoint never has such a name; damage is found by `verify`.
    """
    found = ((_STEP_FOLDER.fullmatch(path.name), path) for path in Path(folder).glob("step-*"))
    return sorted((int(match[1]), path) for match, path in found if match and path.is_dir())


def read_best(folder: str | Path) -> dict:
    """best.json of a folder of checkpoints: step and score of the best one; {} where nothing was evaluated yet.

    Raises: DamagedError naming the file, where its checksum does not fit.
    """
    path = Path(folder) / BEST_FILE
    try:
        return read_checksummed(path) if path.exists() else {}
    except DamagedError as error:
        hint = "without it the newest checkpoint counts as the best, and the next evaluation writes it again"
        raise DamagedError(f"{error}; {hint}") from error


def model_folder(path: str | Path) -> str:
    """What to load for `--model`: of a run folder its best checkpoint (the newest, where nothing was evaluated).

    Anything else, a Hugging Face folder or a hub id, is returned unchanged.
    Raises: FileNotFoundError for a run without a complete checkpoint, or whose best checkpoint is missing;
        DamagedError for a checkpoint without its manifest.
    """
    folder = Path(path) / "checkpoints"
    if not folder.is_dir():
        return str(path)
    steps = dict(checkpoints(folder))
    if not steps:
        raise FileNotFoundError(
            f"--model {path}: the run has no complete checkpoint yet; run its script again to continue it"
        )
    best = read_best(folder).get("step", max(steps))
    if best not in steps:
        raise FileNotFoundError(
            f"--model {path}: {folder / BEST_FILE} names step {best}, which is not there; "
            f"give one of {', '.join(map(str, steps.values()))}"
        )
    if not (steps[best] / MANIFEST_FILE).is_file():
        raise DamagedError(f"--model {path}: {steps[best] / MANIFEST_FILE} is missing, so nothing can be verified")
    return str(steps[best])


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
        base = str(read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path"))
        digest.update(weights_fingerprint(base).encode())
    return f"{folder.name}, sha256 {digest.hexdigest()[:16]}"


# ---- models ----------------------------------------------------------------------------------------------------------


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
        raise FileNotFoundError(f"no model folder {folder_or_hub_id} (give a folder, or ORG/NAME on huggingface.co)")
    return _download(folder_or_hub_id)


def weight_files(folder: Path) -> dict[Path, set[str]]:
    """The safetensors files of a model folder, each with its tensors as the index lists them (none without an index).

    Raises: FileNotFoundError or ValueError naming what is missing or wrong.
    """
    if (folder / SINGLE).is_file():
        return {folder / SINGLE: set()}
    if not (folder / INDEX).is_file():
        other = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.gguf") for path in folder.glob(pattern))
        hint = f"; {', '.join(other)} cannot be read: convert to safetensors first" if other else ""
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
    raise FileNotFoundError(f"{folder} is not a model folder: {why} (expected a Hugging Face folder or a checkpoint)")


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
