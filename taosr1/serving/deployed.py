"""What is served: the judge behind `--model`, and the temperature and beta fitted for it, stored beside its weights."""

from __future__ import annotations

import math
import sys
from pathlib import Path

from taosr1.judge import Judge, check_device, load_judge
from taosr1.model.io.folders import model_folder
from taosr1.runtime.checkpoint import checkpoints
from taosr1.runtime.files import read_json, write_json

DEFAULT_BETA = 0.5  # "Good where Good is likelier than not", until a dev set has been seen
TIERING_FILE = "tiering.json"
CALIBRATION_FILE = "calibration.json"
TEMPERATURE_SCALING = ("stored", "off")  # what `--temperature-scaling` may be
RUNS = "runs/"
# The scripts' default output folders, furthest along first.
JUDGE_RUNS = ("runs/student", "runs/post-grpo", "runs/post-dpo", "runs/post-sft")
THINKER_RUNS = ("runs/thinker-grpo", "runs/thinker-sft")
HOW_TO_TRAIN = {
    "a judge that answers first": "python train/sft.py --order post-cot --out runs/post-sft",
    "a thinker": "python train/sft.py",
}


def open_judge(
    spec: str,
    *,
    thinkers: bool = True,
    dtype: str = "float32",
    device: str = "cpu",
    seed: int = 0,
    decodes: bool = False,
    plain: bool = False,
) -> tuple[str, Judge]:
    """(name, judge) behind `--model`, for inference; without one, the last stage's run among the scripts' own.

    thinkers: False leaves out runs that reason first when it looks for one; a thinker named by `--model` is loaded all
        the same, and the caller says what it cannot do. decodes: it will generate many tokens, see `Engine.prepack`.
    Raises: FileNotFoundError and ValueError, each beginning with `--model` or `--device`.
    """
    check_device(device)
    name = spec or newest_run(thinkers=thinkers)
    if name.startswith(RUNS) and not Path(name).is_dir():  # looks like a hub id, but is meant as a run
        raise FileNotFoundError(
            f"--model {name}: no such run here; give the folder of a run, a Hugging Face folder or a hub id"
        )
    try:
        judge = load_judge(name, dtype=dtype, device=device, seed=seed, plain=plain)
    except (FileNotFoundError, ValueError) as error:
        message = str(error)
        raise type(error)(message if message.startswith("--model") else f"--model {name}: {message}") from error
    judge.engine.prepack(judge.model, decodes=decodes)
    return name, judge


def newest_run(*, thinkers: bool = True) -> str:
    """The first of the scripts' default run folders that holds a checkpoint.

    Raises: FileNotFoundError with the command that makes one.
    """
    runs = JUDGE_RUNS + (THINKER_RUNS if thinkers else ())
    for run in runs:
        if checkpoints(Path(run) / "checkpoints"):
            return run
    makes = [f"`{command}` makes {what}" for what, command in HOW_TO_TRAIN.items() if thinkers or "thinker" not in what]
    raise FileNotFoundError(
        f"no --model given and none trained yet ({', '.join(runs)}): {', '.join(makes)}; or give --model FOLDER"
    )


def stored_temperature(model: str) -> float | None:
    """The temperature stored beside the weights behind `--model`, or None.

    Raises: ValueError naming the file, where it holds something else.
    """
    path = Path(model_folder(model)) / CALIBRATION_FILE
    if not path.is_file():
        return None
    temperature = read_json(path).get("temperature")
    if not _is_number(temperature) or not 0 < temperature < math.inf:
        raise ValueError(
            f"{path}: temperature is {temperature!r}, expected a finite number above 0: fit it again "
            "(infer/evaluate.py --dev DEV --fit-temperature), delete the file, or give --temperature-scaling off"
        )
    return float(temperature)


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


def store_temperature(model: str, temperature: float, **facts: object) -> Path:
    """Write a temperature beside the weights behind `--model`, with what it was fitted on; returns the file.

    Raises: ValueError where those weights are in no local folder.
    """
    path = _local_folder(model, "--fit-temperature", "leave it out") / CALIBRATION_FILE
    write_json(path, {"temperature": temperature, **facts})
    return path


def stored_beta(model: str, temperature: float = 1.0) -> float | None:
    """The CumPT beta stored beside the weights behind `--model`, or None.

    A beta is a threshold on probabilities, so it holds only at the temperature it was fitted at.
    Raises: ValueError naming the file, where it holds something else or a beta fitted at another temperature.
    """
    path = Path(model_folder(model)) / TIERING_FILE
    if not path.is_file():
        return None
    stored = read_json(path)
    beta, fitted_at = stored.get("beta"), stored.get("temperature", 1.0)
    if not _is_number(beta) or not 0 < beta <= 1:
        raise ValueError(f"{path}: beta is {beta!r}, expected a number in (0, 1]: fit it again or give --beta")
    if fitted_at != temperature:
        raise ValueError(
            f"{path}: beta was fitted on probabilities at temperature {fitted_at}, these are at {temperature}: "
            "fit it again (infer/evaluate.py --dev DEV --save-beta) or give --beta"
        )
    return float(beta)


def store_beta(model: str, beta: float, temperature: float = 1.0, **facts: object) -> Path:
    """Write a beta beside the weights behind `--model`, with what it was fitted on; returns the file.

    Raises: ValueError where those weights are in no local folder.
    """
    path = _local_folder(model, "--save-beta", f"pass --beta {beta:.4g} when scoring") / TIERING_FILE
    write_json(path, {"beta": beta, "temperature": temperature, **facts})
    return path


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _local_folder(model: str, flag: str, otherwise: str) -> Path:
    folder = Path(model_folder(model))
    if not folder.is_dir():
        raise ValueError(f"{flag}: {model} is not a local folder; give --model FOLDER, or {otherwise}")
    return folder
