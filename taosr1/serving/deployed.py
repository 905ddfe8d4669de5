"""What is served: the judge behind `--model`, and the temperature and beta fitted for it, stored beside its weights."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from taosr1.judge_model import BUNDLED, BUNDLED_STUDENT, JudgeModel, judge_folder, load_judge
from taosr1.runtime.checkpoint import checkpoints
from taosr1.runtime.files import read_json, write_json
from taosr1.runtime.run_folder import is_unfinished
from taosr1.task.prompt import ORDERS, PROMPT_FILE
from taosr1.task.prompt_flags import AskFlags

DEFAULT_BETA = 0.5  # "Good where Good is likelier than not", until a dev set has been seen
TIERING_FILE = "tiering.json"
CALIBRATION_FILE = "calibration.json"
TEMPERATURE_SCALING = ("stored", "off")  # what `--temperature-scaling` may be
RUNS = Path("runs")  # where the scripts write unless --out says otherwise
MODEL_HELP = "run, Hugging Face folder, GGUF file, hub id or bundled; none: the newest finished run, else the bundled"
ANSWERS_FIRST = ("label", "post-cot")  # orders of a reply whose first token is the label


def open_judge(
    spec: str,
    *,
    orders: Sequence[str] = ORDERS,
    dtype: str = "float32",
    device: str = "cpu",
    seed: int = 0,
    decodes: bool = False,
    plain: bool = False,
    max_new_tokens: int = 0,
    asked: AskFlags | None = None,
) -> tuple[str, JudgeModel]:
    """(name, judge) behind `--model`, for inference. "bundled" is the bundled student here.

    Without a name, the newest finished run under runs/ that replies in one of these `orders` is taken, else the
    bundled student; a note on stderr says which. A judge that is named is loaded whatever its order, and the caller
    says what it cannot do. decodes: it will generate many tokens, see `Engine.prepack`. max_new_tokens, asked: as in
    `load_judge`.
    Raises: FileNotFoundError and ValueError, each beginning with `--model` or `--device`.
    """
    name = BUNDLED_STUDENT if spec == BUNDLED else spec or _default_judge(orders)
    try:
        settings = {"dtype": dtype, "device": device, "seed": seed, "plain": plain, "max_new_tokens": max_new_tokens}
        judge = load_judge(name, asked=asked, **settings)
    except (FileNotFoundError, ValueError) as error:
        message = str(error)
        raise type(error)(message if message.startswith("--") else f"--model {name}: {message}") from error
    judge.engine.prepack(judge.model, decodes=decodes)
    return name, judge


def _default_judge(orders: Sequence[str]) -> str:
    """The newest finished run under runs/ whose judge replies in one of these orders, else the bundled student."""
    found = []
    for run in sorted(RUNS.glob("*/")):
        newest = max(checkpoints(run / "checkpoints"), default=(0, run))[1]
        try:
            if (newest / PROMPT_FILE).is_file() and not is_unfinished(run):
                if read_json(newest / PROMPT_FILE).get("order") in orders:
                    found.append((newest.stat().st_mtime, str(run)))
        except (ValueError, TypeError, OSError) as problem:
            print(f"note: {run} is not considered: {problem}", file=sys.stderr)
    name = max(found)[1] if found else BUNDLED_STUDENT
    which = "the newest finished run of this kind" if found else "no finished run of this kind is under runs/"
    print(f"note: --model {name} ({which})", file=sys.stderr)
    return name


# ---- stored beside the weights ---------------------------------------------------------------------------------------


def stored_temperature(model: str) -> float | None:
    """The temperature stored beside the weights behind `--model`, or None.

    Raises: ValueError naming the file, where it holds something else.
    """
    way_out = "(infer/evaluate.py --dev DEV --fit-temperature), delete the file, or give --temperature-scaling off"
    found = _stored(model, CALIBRATION_FILE, "temperature", sys.float_info.max, "a finite number above 0", way_out)
    return float(found["temperature"]) if found else None


def chosen_temperature(model: str, scaling: str) -> float:
    """What `--temperature-scaling` amounts to, said on stderr where it changes the probabilities.

    "stored" is the temperature beside the weights, 1 where there is none; "off" is 1 and reads no file.
    """
    temperature = (stored_temperature(model) if scaling == "stored" else None) or 1.0
    if temperature != 1:
        print(
            f"note: label probabilities are scaled by temperature {temperature:.4g} ({CALIBRATION_FILE}); "
            "--temperature-scaling off leaves them",
            file=sys.stderr,
        )
    return temperature


def stored_beta(model: str, temperature: float = 1.0) -> float | None:
    """The CumPT beta stored beside the weights behind `--model`, or None.

    A beta is a threshold on probabilities, so it holds only at the temperature it was fitted at.
    Raises: ValueError naming the file, where it holds something else or a beta fitted at another temperature.
    """
    way_out = "(infer/evaluate.py --dev DEV --save-beta) or give --beta"
    found = _stored(model, TIERING_FILE, "beta", 1.0, "a number in (0, 1]", way_out)
    if found and (fitted_at := found.get("temperature", 1.0)) != temperature:
        raise ValueError(
            f"{Path(judge_folder(model)) / TIERING_FILE}: beta was fitted on probabilities at temperature {fitted_at}, "
            f"these are at {temperature}: fit it again {way_out}"
        )
    return float(found["beta"]) if found else None


def _stored(model: str, file: str, key: str, most: float, expected: str, way_out: str) -> dict | None:
    """The object in a file beside the weights, its `key` checked to be in (0, most]; None where there is no file."""
    path = Path(judge_folder(model)) / file
    if not path.is_file():
        return None
    found = read_json(path)
    value = found.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= most:
        raise ValueError(f"{path}: {key} is {value!r}, expected {expected}: fit it again {way_out}")
    return found


def store_temperature(model: str, temperature: float, **facts: object) -> Path:
    """Write a temperature beside the weights behind `--model`, with what it was fitted on; returns the file.

    Raises: ValueError where those weights are in no local folder.
    """
    return _store(model, CALIBRATION_FILE, {"temperature": temperature, **facts}, "--fit-temperature", "leave it out")


def store_beta(model: str, beta: float, temperature: float = 1.0, **facts: object) -> Path:
    """The same for a beta, with the temperature it was fitted at."""
    values = {"beta": beta, "temperature": temperature, **facts}
    return _store(model, TIERING_FILE, values, "--save-beta", f"pass --beta {beta:.4g} when scoring")


def _store(model: str, file: str, values: dict, flag: str, otherwise: str) -> Path:
    path = Path(judge_folder(model)) / file
    if not path.parent.is_dir():
        raise ValueError(f"{flag}: {model} is not a local folder; give --model FOLDER, or {otherwise}")
    write_json(path, values)
    return path
