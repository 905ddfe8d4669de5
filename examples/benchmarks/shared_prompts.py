"""What it is worth to compute a prompt once for all its replies: log-probs, forward and backward, with it and without.

    python examples/benchmarks/shared_prompts.py --threads 1

The same weights and tokens, by turns, median of seven; values are compared first. "apart" computes every row by itself,
with everything else that is fast; "shared" is the layout of `prefix_tree.py`. The last column counts their tokens.
"""

from __future__ import annotations

import statistics
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a fresh checkout runs without being installed

import torch

from examples.benchmarks.common import SHAPES, machine
from taosr1.fast import prefix_tree
from taosr1.fast.decoder import use_fast_modules
from taosr1.fast.logprobs import completion_logp
from taosr1.judge_model import BUNDLED, load_judge
from taosr1.learning.batches import Batch, Example, collate
from taosr1.model.config import DecoderConfig
from taosr1.model.decoder import Decoder
from taosr1.runtime.cli import at_least, check, option, parse_config
from taosr1.runtime.signals import run_main

# Prompt tokens, reply tokens, replies to a prompt, prompts.
CASES = {
    "thinker": [(22, 36, 8, 8), (22, 3, 8, 8), (40, 20, 8, 8), (22, 36, 2, 16)],
    "tiny": [(192, 64, 8, 4), (192, 64, 2, 8), (64, 64, 8, 4), (64, 128, 8, 4), (32, 64, 8, 4)],
}


@dataclass(frozen=True)
class Config:
    threads: int = option(1, "CPU threads")
    repeats: int = option(7, "measurements of each kind")
    device: str = option("cpu", "torch device")

    def __post_init__(self) -> None:
        check(at_least(self, threads=1, repeats=1))


def main(argv: list[str] | None = None) -> list[dict]:
    config = parse_config(Config, __doc__, argv)
    torch.set_num_threads(config.threads)
    tiny = Decoder(DecoderConfig(**SHAPES["tiny"])).init_weights(torch.Generator().manual_seed(0))
    models = {"thinker": load_judge(BUNDLED).model, "tiny": use_fast_modules(tiny)}
    print(f"{config.threads} thread(s), median of {config.repeats}; {machine()}")
    print("model    prompt reply replies prompts  apart s  shared s  ratio  tokens")
    rows = []
    for name, cases in CASES.items():
        model = models[name].to(config.device)
        for case in cases:
            row = {"model": name, "case": case, **compare(model, *case, config)}
            prompt, reply, replies, prompts = case
            seconds = f"{row['apart']:7.3f}  {row['shared']:8.3f}  {row['shared'] / row['apart']:5.2f}"
            print(f"{name:8} {prompt:6} {reply:5} {replies:7} {prompts:7}  {seconds}  {row['tokens']:6.2f}", flush=True)
            rows.append(row)
    return rows


def compare(model: Decoder, prompt: int, reply: int, replies: int, prompts: int, config: Config) -> dict:
    generator = torch.Generator().manual_seed(0)
    examples = [example for _ in range(prompts) for example in group(model, prompt, reply, replies, generator)]
    batch = collate(examples, config.device)
    tokens = (prompts * (prompt + replies * (reply - 1))) / (prompts * replies * (prompt + reply - 1))
    seconds, values = {"apart": [], "shared": []}, []
    for side in seconds:
        with sharing(side == "shared"), torch.no_grad():
            values.append(completion_logp(model, batch.ids, batch.mask))
    torch.testing.assert_close(*values, rtol=0, atol=1e-4)
    for _ in range(config.repeats):
        for side, found in seconds.items():
            with sharing(side == "shared"):
                found.append(one_pass(model, batch))
    return {side: statistics.median(found) for side, found in seconds.items()} | {"tokens": tokens}


def sharing(on: bool) -> AbstractContextManager:
    """Inside, rows share what they begin with, or nothing."""
    apart = mock.patch.object(prefix_tree, "shared_tok", lambda rows: rows.new_zeros(len(rows)))
    return nullcontext() if on else apart


def group(model: Decoder, prompt: int, reply: int, replies: int, generator: torch.Generator) -> list[Example]:
    lengths = (prompt, *[reply] * replies)
    ids = [torch.randint(model.config.vocab_size, (length,), generator=generator).tolist() for length in lengths]
    return [Example(ids[0], tokens) for tokens in ids[1:]]


def one_pass(model: Decoder, batch: Batch) -> float:
    started = time.perf_counter()
    completion_logp(model, batch.ids, batch.mask).sum().backward()
    model.zero_grad(set_to_none=True)
    if batch.ids.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started


if __name__ == "__main__":
    run_main(main)
