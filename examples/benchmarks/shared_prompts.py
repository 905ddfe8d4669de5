"""What it is worth to compute a prompt once for all its replies: log-probs, forward and backward, shared against row by row.

    python examples/benchmarks/shared_prompts.py --threads 1

The same weights and tokens, by turns, median of seven; values are compared first. On a CPU "shared" is the flat layout
(`flat_prompts`), elsewhere or where its scores would not fit, the packed one; the last column is what `pays` decides for that one
from the number of multiplications alone.
"""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a fresh checkout runs without being installed

import torch

from examples.benchmarks.common import SHAPES, machine
from taosr1.fast import shared_prompts
from taosr1.judge import BUNDLED, load_judge
from taosr1.learning.batches import Batch, Example, collate
from taosr1.model.decoder import Decoder, DecoderConfig
from taosr1.model.logprobs import completion_logp
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
    models = {"thinker": load_judge(BUNDLED).model, "tiny": Decoder(DecoderConfig(**SHAPES["tiny"])).init_weights(torch.Generator().manual_seed(0))}
    print(f"{config.threads} thread(s), median of {config.repeats}; {machine()}\nmodel    prompt reply replies prompts  plain s  shared s  ratio  pays")
    rows = []
    for name, cases in CASES.items():
        model = models[name].to(config.device)
        for case in cases:
            rows.append({"model": name, "case": case, **compare(model, *case, config)})
            print(f"{name:8} {case[0]:6} {case[1]:5} {case[2]:7} {case[3]:7}  {rows[-1]['plain']:7.3f}  {rows[-1]['packed']:8.3f}  "
                  f"{rows[-1]['packed'] / rows[-1]['plain']:5.2f}  {rows[-1]['pays']}", flush=True)  # fmt: skip
    return rows


def compare(model: Decoder, prompt: int, reply: int, replies: int, prompts: int, config: Config) -> dict:
    generator, decide = torch.Generator().manual_seed(0), shared_prompts.pays
    batch = collate([example for _ in range(prompts) for example in siblings(model, prompt, reply, replies, generator)], config.device)
    pays = decide(model.config, (len(batch.ids), batch.ids.shape[1] - 1), (prompts, prompt + replies * (reply - 1)))
    shared_prompts.pays = lambda *_: True  # both ways are measured, whatever would be chosen
    try:
        with torch.no_grad():
            both = [completion_logp(model, batch.ids, batch.mask, plain=plain) for plain in (True, False)]
        torch.testing.assert_close(both[1], both[0], rtol=0, atol=1e-4)
        seconds = {"plain": [], "packed": []}
        for _ in range(config.repeats):
            for name, found in seconds.items():
                found.append(one_pass(model, batch, plain=name == "plain"))
    finally:
        shared_prompts.pays = decide
    return {name: statistics.median(found) for name, found in seconds.items()} | {"pays": pays}


def siblings(model: Decoder, prompt: int, reply: int, replies: int, generator: torch.Generator) -> list[Example]:
    ids = [torch.randint(model.config.vocab_size, (length,), generator=generator).tolist() for length in (prompt, *[reply] * replies)]
    return [Example(ids[0], tokens) for tokens in ids[1:]]


def one_pass(model: Decoder, batch: Batch, *, plain: bool) -> float:
    started = time.perf_counter()
    completion_logp(model, batch.ids, batch.mask, plain=plain).sum().backward()
    model.zero_grad(set_to_none=True)
    if batch.ids.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started


if __name__ == "__main__":
    run_main(main)
