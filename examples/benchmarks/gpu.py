"""What only a GPU can show: how much of its peak scoring reaches (MFU), and sampling beside transformers' `generate`.

    python examples/benchmarks/gpu.py                                                     # Qwen3-0.6B's shape, on cuda
    python examples/benchmarks/gpu.py --device cpu --shape tiny --products 40 --prompts 4 # to see that it runs

Scoring: one query of --query-tok tokens, as many products as --products, each half to one and a half times
--product-tok tokens long. MFU is useful operations (`common.useful_flops`: the query once, the last layer where its
output is used) over time and --peak-tflops, the data sheet's dense bfloat16 rate. The paper reports 46.2 % (section 5),
for another model on another GPU. Probabilities are compared with those of the plain program first. With --float8 all is
scored once more with 8-bit products.

Sampling: --prompts of 192 tokens x 8 samples x 64 new tokens, nothing stops early. Random weights.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a fresh checkout runs without being installed

import torch

from examples.benchmarks import common
from taosr1.fast.generate import generate
from taosr1.fast.label_probs import label_probabilities
from taosr1.fast.quantize import quantize
from taosr1.judge_model import check_device
from taosr1.model.io.weights import DTYPES, load_decoder
from taosr1.runtime.cli import at_least, check, option, parse_config
from taosr1.runtime.signals import run_main
from taosr1.sampling.label_probs import label_probabilities as plain_label_probabilities

LABELS = SimpleNamespace(label_ids=(10, 11, 12, 13))
PROMPT_TOK, SAMPLES, NEW_TOK = 192, 8, 64


@dataclass(frozen=True)
class Config:
    shape: str = option("qwen3-0.6b", "which model", tuple(common.SHAPES))
    device: str = option("cuda", "torch device")
    dtype: str = option("bfloat16", "type of the weights", tuple(DTYPES))
    products: int = option(4000, "products to score")
    query_tok: int = option(400, "tokens that they share: template, rules, query")
    product_tok: int = option(120, "tokens of a product, on average")
    prompts: int = option(64, "prompts to sample for")
    max_tokens_per_batch: int = option(65536, "tokens of a scoring batch")
    peak_tflops: float = option(989.0, "the device's dense peak in this type (H100 and H200 SXM, bfloat16: 989)")
    float8: bool = option(False, "score once more with 8-bit products")
    repeats: int = option(5, "measurements of each side")
    out: str = option("", "JSON file to write")

    def __post_init__(self) -> None:
        lowest = {
            "products": 1,
            "query_tok": 1,
            "product_tok": 2,
            "prompts": 1,
            "max_tokens_per_batch": 1,
            "repeats": 1,
        }
        problem = (not self.peak_tflops > 0, "--peak-tflops: expected more than 0")
        check([*at_least(self, **lowest), problem])


def main(argv: list[str] | None = None) -> dict[str, float]:
    config = parse_config(Config, __doc__, argv)
    check_device(config.device)
    repeats = f"median of {config.repeats} (least to most)"
    print(f"{config.shape}, {config.device}, {config.dtype}, {repeats}; {common.machine()}")
    with TemporaryDirectory() as folder:
        common.make_model(config.shape, Path(folder), DTYPES[config.dtype])
        given = {"dtype": DTYPES[config.dtype], "device": config.device}
        model, plain = common.load_fast(folder, **given), load_decoder(folder, **given)
        theirs = common.load_transformers(folder, DTYPES[config.dtype]).to(config.device)
        found = score(model, plain, config) | sample(model, theirs, config)
        if config.float8:
            faster = score(quantize(model, "float8"), plain, config)
            found |= {f"float8_{name}": value for name, value in faster.items()}
    if config.out:
        report = {"machine": common.machine(), "config": asdict(config), "found": found}
        Path(config.out).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return found


def score(model, plain, config: Config) -> dict[str, float]:
    generator, least, most = torch.Generator().manual_seed(0), config.product_tok // 2, config.product_tok * 3 // 2
    lengths = torch.randint(least, most + 1, (config.products,), generator=generator).tolist()
    query, *products = common.random_ids([config.query_tok, *lengths], model.config.vocab_size)
    prompts = [query + product for product in products]

    def run() -> torch.Tensor:
        return label_probabilities(model, LABELS, prompts, max_tokens_per_batch=config.max_tokens_per_batch).probs

    some = prompts[:32]
    apart = label_probabilities(model, LABELS, some).probs - plain_label_probabilities(plain, LABELS, some).probs
    seconds = timed(run, config)
    flops = common.useful_flops(model.config, 0, config.query_tok, 0)
    flops += sum(common.useful_flops(model.config, config.query_tok, length, 1) for length in lengths)
    rate, mfu = config.products / seconds, flops / seconds / (config.peak_tflops * 1e12)
    print(
        f"scoring: {rate:.0f} products/s, {flops / seconds / 1e12:.2f} TFLOP/s, MFU {mfu:.1%}; "
        f"probabilities within {apart.abs().max():.1e} of the plain program's"
    )
    return {"score_s": seconds, "products_per_s": rate, "mfu": mfu}


def sample(model, theirs, config: Config) -> dict[str, float]:
    prompts = common.random_ids([PROMPT_TOK] * config.prompts, model.config.vocab_size)
    ids = torch.tensor(prompts, device=config.device)

    def ours() -> int:
        settings = {"samples": SAMPLES, "max_new_tokens": NEW_TOK, "generator": torch.Generator().manual_seed(0)}
        return int(generate(model, prompts, **settings).lengths.sum())

    def hf() -> int:
        settings = {"do_sample": True, "top_k": 0, "top_p": 1.0, "num_return_sequences": SAMPLES}
        found = theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOK, **settings)
        return found[:, PROMPT_TOK:].numel()

    tokens = ours()
    assert tokens == hf(), "the two sides wrote different numbers of tokens"
    seconds = {"sample_s": timed(ours, config), "hf_s": timed(hf, config)}
    ours_rate, their_rate = tokens / seconds["sample_s"], tokens / seconds["hf_s"]
    print(f"sampling: ours {ours_rate:.0f} tokens/s, transformers {their_rate:.0f}: {ours_rate / their_rate:.2f} x")
    return seconds


def timed(run: Callable, config: Config) -> float:
    """Median seconds of a run, after one that warms up; the clock stops when the device has finished."""
    found = []
    for _ in range(config.repeats + 1):
        started = time.perf_counter()
        run()
        if config.device.startswith("cuda"):
            torch.cuda.synchronize()
        found.append(time.perf_counter() - started)
    print(f"  {run.__name__}: {statistics.median(found[1:]):.3f} s ({min(found[1:]):.3f} to {max(found[1:]):.3f})")
    return statistics.median(found[1:])


if __name__ == "__main__":
    run_main(main)
