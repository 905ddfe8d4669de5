"""Fresh weights of another size than `--model tiny`, with its tokenizer and prompt, as a folder to train from.

python examples/claims/fresh_model.py --width 256 --out runs/fresh-256
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a fresh checkout runs without being installed

import torch

from taosr1.judge_model import TINY, TINY_SHAPE, load_judge
from taosr1.model.config import DecoderConfig
from taosr1.model.decoder import Decoder
from taosr1.model.io.weights import save_pretrained
from taosr1.runtime.cli import at_least, check, option, parse_config
from taosr1.runtime.files import new_folder
from taosr1.runtime.signals import run_main

HEAD = TINY_SHAPE["head_dim"]


@dataclass(frozen=True)
class Config:
    width: int = option(256, f"hidden size, a multiple of {2 * HEAD}; the rest of the shape grows with it")
    layers: int = option(TINY_SHAPE["num_hidden_layers"], "layers")
    out: str = option("", "folder to write")
    seed: int = option(0, "seed of the weights")

    def __post_init__(self) -> None:
        uneven = self.width % (2 * HEAD) != 0
        check([
            (not self.out, "--out is missing: the folder to write"),
            (uneven, f"--width is {self.width}, expected a multiple of {2 * HEAD}"),
            *at_least(self, width=1, layers=1),
        ])  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Returns the number of weights."""
    config = parse_config(Config, __doc__, argv)
    judge = load_judge(TINY, plain=True)
    heads = {"num_attention_heads": config.width // HEAD, "num_key_value_heads": config.width // HEAD // 2}
    sizes = {"hidden_size": config.width, "intermediate_size": 2 * config.width, "num_hidden_layers": config.layers}
    shape = DecoderConfig(vocab_size=judge.tokenizer.vocab_size, **{**TINY_SHAPE, **sizes, **heads})
    model = Decoder(shape).init_weights(torch.Generator().manual_seed(config.seed))
    with new_folder(Path(config.out)) as folder:
        save_pretrained(model, judge.tokenizer, folder)
        judge.prompt.save(folder)
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{count:,} weights -> {config.out}")
    return count


if __name__ == "__main__":
    run_main(main)
