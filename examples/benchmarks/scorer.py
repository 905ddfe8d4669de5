"""Scoring many products for one query beside transformers: the same weights and tokens, one process, by turns.

    python examples/benchmarks/scorer.py --threads 1                                # everything: about ten minutes
    python examples/benchmarks/scorer.py --parts peers --cases tiny-float32         # about a minute

peers:  1 query of 120 tokens x 200 products of 30 to 90 tokens; the probabilities of four labels at the last position.
        For every one of --cases.
growth: ours alone, first of --cases only. 10, 100, ... products for one query, and 20 products for each of 50 queries.

transformers' methods, products sorted by length and padded on the right, where causal attention needs no mask: "padded"
computes query and product of each row, its head at the last position only; "prefix" computes the query once, and every
batch reads its cache through a view, so that the only copy is the one `DynamicCache` makes when it appends. The second
is no setting but a dozen lines of a user's own. Each is tried with several batch sizes and either implementation of
attention, sdpa and eager, the three fastest again; the fastest of these is measured. In bfloat16 ours is measured with
int8 products too, if the CPU has them: other numbers (`taosr1/fast/quantize.py`), no peer.

Before anything is timed: the probabilities must equal those of both methods, to 1e-5 in float32 and 0.03 in bfloat16:
its own bfloat16 and float32 differ by up to 0.02. Useful work counts the query once and no output that is not used: see
`common.useful_flops`.
"""

from __future__ import annotations

import copy
import json
import statistics
import sys
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a fresh checkout runs without being installed

import torch

from examples.benchmarks import common
from taosr1.fast.label_probs import label_probabilities
from taosr1.fast.prepack import prepack
from taosr1.fast.quantize import missing_support, quantize
from taosr1.runtime.cli import option, parse_config
from taosr1.runtime.signals import run_main

PARTS = ("peers", "growth")
CASES = ("tiny-float32", "tiny-bfloat16", "small-bfloat16")
BATCHES = (1, 8, 16, 32, 64)  # products that transformers gets at once
TOLERANCE = {"float32": 1e-5, "bfloat16": 0.03}  # of a probability
LABELS = [10, 11, 12, 13]
QUERY_TOK, LEAST_TOK, MOST_TOK = 120, 30, 90


@dataclass(frozen=True)
class Config:
    parts: str = option(",".join(PARTS), "what to measure, comma-separated")
    cases: str = option(",".join(CASES), "shapes and dtypes, comma-separated")
    threads: int = option(1, "CPU threads")
    repeats: int = option(5, "measurements of each side")
    max_tokens_per_batch: int = option(16384, "our batches: rows x longest row")
    most_products: int = option(10000, "where the growth part ends")
    memory: bool = option(False, "also the peak memory of every side, each in a process of its own")
    out: str = option("", "JSON file to write")
    one: str = option("", "internal: measure the peak memory of only this, as SIDE/CASE")
    folder: str = option("", "internal: the model's folder")

    def __post_init__(self) -> None:
        common.check_names(self, PARTS, CASES, threads=1, repeats=1, max_tokens_per_batch=1, most_products=10)


@dataclass(frozen=True)
class Work:
    """Products to be scored for one query: token ids."""

    query: list[int]
    products: list[list[int]]

    def prompts(self) -> list[list[int]]:
        return [self.query + product for product in self.products]


def main(argv: list[str] | None = None) -> list[dict]:
    config = parse_config(Config, __doc__, argv)
    torch.set_num_threads(config.threads)
    if config.one:
        print(json.dumps(peak_of(*config.one.split("/"), config)))
        return []
    return common.run_cases(config, RUN, first_only=("growth",))


# --- The parts --------------------------------------------------------------------------------------------------------
def peers(model, theirs, case: str, folder: Path, config: Config) -> list[dict]:
    work = make_work(200, model.config.vocab_size)
    equality = compare(model, theirs, work, case, config)
    print(f"peers, {case}: 1 query x {QUERY_TOK} tokens, 200 products x {LEAST_TOK} to {MOST_TOK}; {equality}")
    sides = {"ours": partial(ours, model, [work], config)}
    if common.dtype_of(case) == torch.bfloat16 and not missing_support("int8", torch.device("cpu")):
        int8 = prepack(quantize(common.load_fast(folder, torch.bfloat16), "int8"))
        sides["ours, int8"] = partial(ours, int8, [work], config)
        sides["ours, int8"]()  # warm-up
    for method in PEERS:
        tries = {name: one_try(method, *name, theirs, work) for name in product(common.ATTENTIONS, BATCHES)}
        found = {name: seconds[0] for name, seconds in common.by_turns(tries, 1).items()}
        leaders = {name: tries[name] for name in sorted(tries, key=found.get)[:3]}
        found |= {name: min(found[name], *seconds) for name, seconds in common.by_turns(leaders, 2).items()}
        for attention in common.ATTENTIONS:
            by_size = ", ".join(f"{size} {found[attention, size]:.3f}" for size in BATCHES)
            print(f"  tried: {method} {attention}, seconds by batch size: {by_size}", flush=True)
        best = min(found, key=found.get)
        sides[f"{method} {best[0]} x {best[1]}"] = tries[best]
    seconds = common.by_turns(sides, config.repeats)
    rows = common.timing_rows(seconds, work_flops(model, [work]), common.gemm_flops(common.dtype_of(case)))
    for row in rows if config.memory else ():
        if row["side"] == "ours, int8":
            continue
        arguments = ("--one", f"{row['side']}/{case}", "--folder", folder, "--threads", config.threads)
        arguments += ("--max-tokens-per-batch", config.max_tokens_per_batch)
        row |= common.in_fresh_process(__file__, *arguments, threads=config.threads)
        print(f"  {row['side']:22} peak {row['peak_mib']:.0f} MiB above the imports, weights included", flush=True)
    return rows


def one_try(method: str, attention: str, size: int, theirs, work: Work) -> partial:
    return partial(common.attending, attention, PEERS[method], theirs, work, size)


def growth(model, theirs, case: str, folder: Path, config: Config) -> list[dict]:
    rows = []
    ours(model, [make_work(100, model.config.vocab_size)], config)  # warm-up
    print(f"growth, {case}: ours alone")
    sizes = [(1, 10**power) for power in range(1, 10) if 10**power <= config.most_products] + [(50, 20)]
    for queries, products in sizes:
        works = [make_work(products, model.config.vocab_size, seed) for seed in range(queries)]
        pairs, repeats = queries * products, config.repeats if products <= 1000 else 1
        seconds = statistics.median(common.by_turns({"ours": partial(ours, model, works, config)}, repeats)["ours"])
        share = work_flops(model, works) / seconds / common.gemm_flops(common.dtype_of(case))
        row = {"queries": queries, "products": products, "median_s": seconds, "ms_per_product": 1e3 * seconds / pairs}
        rows.append({**row, "of_roofline": share})
        size, each = f"{queries:3} queries x {products:5} products", f"{row['ms_per_product']:7.3f} ms a product"
        print(f"  {size}  {seconds:8.3f} s  {each}  {share:.2f} of the roofline", flush=True)
    return rows


RUN = {"peers": peers, "growth": growth}


def peak_of(side: str, case: str, config: Config) -> dict:
    """Peak memory of one side in this fresh process, on the work of `peers`."""
    dtype = common.dtype_of(case)
    if side != "ours":
        from transformers import Qwen3ForCausalLM  # noqa: F401 (before the base is taken)
    base = common.forget_peak()
    if side == "ours":
        model = prepack(common.load_fast(config.folder, dtype))
        ours(model, [make_work(200, model.config.vocab_size)], config)
    else:
        model = common.load_transformers(config.folder, dtype)
        method, attention, _, size = side.split()
        one_try(method, attention, int(size), model, make_work(200, model.config.vocab_size))()
    return {"peak_mib": (common.peak_bytes() - base) / 2**20}


# --- The work ---------------------------------------------------------------------------------------------------------
def make_work(products: int, vocab_size: int, seed: int = 0) -> Work:
    lengths = torch.randint(
        LEAST_TOK, MOST_TOK + 1, (products,), generator=torch.Generator().manual_seed(seed)
    ).tolist()
    query, *rest = common.random_ids([QUERY_TOK, *lengths], vocab_size, seed)
    return Work(query, rest)


def work_flops(model, works: list[Work]) -> int:
    """Each query once, none of its positions read by the head; each product's last position read for four labels."""
    queries = sum(common.useful_flops(model.config, 0, len(work.query), 0) for work in works)
    lengths = [(len(work.query), len(tokens)) for work in works for tokens in work.products]
    products = sum(common.useful_flops(model.config, query, tokens, 1, len(LABELS)) for query, tokens in lengths)
    return queries + products


# --- The sides: label probabilities (P, 4) in the order of the products -----------------------------------------------
def ours(model, works: list[Work], config: Config) -> torch.Tensor:
    prompts, tokenizer = [prompt for work in works for prompt in work.prompts()], SimpleNamespace(label_ids=LABELS)
    return label_probabilities(model, tokenizer, prompts, max_tokens_per_batch=config.max_tokens_per_batch).probs


def hf_padded(model, work: Work, size: int) -> torch.Tensor:
    return in_batches(work.prompts(), size, lambda ids: model.model(ids, use_cache=False), model)


@torch.no_grad()
def hf_prefix(model, work: Work, size: int) -> torch.Tensor:
    from transformers import DynamicCache

    prefix = DynamicCache(config=model.config)
    model.model(torch.tensor([work.query]), past_key_values=prefix)

    def run(ids: torch.Tensor):
        return model.model(ids, past_key_values=repeated(prefix, len(ids)))

    return in_batches(work.products, size, run, model)


PEERS = {"padded": hf_padded, "prefix": hf_prefix}


def repeated(prefix, rows: int):
    """The query's cache as so many rows that share its memory; the cache copies it when it appends to them."""
    from transformers import DynamicCache

    cache = DynamicCache()
    for layer in prefix.layers:
        shared = copy.copy(layer)
        shared.keys, shared.values = (kept.expand(rows, -1, -1, -1) for kept in (layer.keys, layer.values))
        cache.layers.append(shared)
    return cache


@torch.no_grad()
def in_batches(sequences: list[list[int]], size: int, run, model) -> torch.Tensor:
    """`run` on `size` sequences at a time, longest first; head and softmax over the labels at their last tokens."""
    order = sorted(range(len(sequences)), key=lambda number: -len(sequences[number]))
    probs = torch.empty(len(sequences), len(LABELS))
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        lengths = torch.tensor([len(sequences[number]) for number in chosen])
        longest = int(lengths[0])
        ids = torch.tensor([sequences[number] + [0] * (longest - len(sequences[number])) for number in chosen])
        hidden = run(ids).last_hidden_state[torch.arange(len(chosen)), lengths - 1]  # (B, C)
        probs[chosen] = model.lm_head(hidden)[:, LABELS].float().softmax(-1)
    return probs


# --- Are they the same? -----------------------------------------------------------------------------------------------
def compare(model, theirs, work: Work, case: str, config: Config) -> str:
    """All probabilities against all of transformers' methods; ends the program where they differ. Also a warm-up."""
    allowed, found = TOLERANCE[case.split("-")[1]], ours(model, [work], config)
    names = product(PEERS, common.ATTENTIONS)
    worst = {" ".join(name): float((one_try(*name, 64, theirs, work)() - found).abs().max()) for name in names}
    if not max(worst.values()) <= allowed:
        raise SystemExit(f"{case}: a probability differs by {worst}, allowed are {allowed}")
    return f"equal to {max(worst.values()):.0e}"


if __name__ == "__main__":
    run_main(main)
