"""Write a run's judge as one plain Hugging Face folder, its adapters merged in, for other programs or for serving.

    python infer/merge.py --model runs/mine-grpo --out mine-merged
    python infer/merge.py --model runs/mine-grpo --out mine-merged --dtype bfloat16

A run that trained LoRA adapters (`--lora-rank`) stores only the adapters, in PEFT's format, and every script here loads
them over their base model. transformers, vLLM and others want one complete model: this script writes it, with the
tokenizer, the prompt's settings, and what was fitted for serving (CumPT's beta, the temperature).
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a fresh checkout runs without being installed

from taosr1.judge_model import DTYPES, judge_folder, load_judge
from taosr1.model.io.weights import save_pretrained
from taosr1.runtime.cli import check, option, parse_config
from taosr1.runtime.files import new_folder
from taosr1.runtime.out_paths import out_problems
from taosr1.runtime.signals import run_main
from taosr1.serving.deployed import CALIBRATION_FILE, TIERING_FILE
from taosr1.task.prompt import PROMPT_FILE


@dataclass(frozen=True)
class Config:
    model: str = option("", "run folder, folder of adapters, Hugging Face folder, GGUF file or hub id")
    out: str = option("", "folder to write; it must not exist")
    dtype: str = option("float32", "type of the weights written", tuple(DTYPES))

    def __post_init__(self) -> None:
        check([(not self.model, "--model is missing"), *out_problems(self.out, folder=True)])


def main(argv: list[str] | None = None) -> Path:
    config = parse_config(Config, __doc__, argv)
    out = Path(config.out)
    if out.exists():
        raise FileExistsError(f"--out {out}: exists already; choose another folder")
    judge = load_judge(config.model, dtype=config.dtype, plain=True)
    with new_folder(out, manifest=False) as aside:
        save_pretrained(judge.model, judge.tokenizer, aside)
        judge.prompt.save(aside)
        # prompt.json is copied over the one just saved because it also holds the wording used in training.
        for name in (PROMPT_FILE, TIERING_FILE, CALIBRATION_FILE):
            file = Path(judge_folder(config.model)) / name
            if file.is_file():
                shutil.copy(file, aside / name)
    print(f"the complete model of {config.model} is in {out}")
    return out


if __name__ == "__main__":
    run_main(main, Config)
