"""What each trick is worth: sampling, scoring and training with all of them, without one of them, and by the plain
program (`--plain`).

    python examples/benchmarks/tricks.py --threads 1          # about five minutes
    python examples/benchmarks/tricks.py --profile            # where the time goes with all of them: half a minute

The same weights and tokens, by turns, median of five (least to most). Ratios above 1 say how much longer it takes
without.

sample thinker: 80 prompts of the embedded shop x 8 replies of the bundled thinker, which end by themselves. sample
tiny: 8 prompts of 192 random tokens x 8 samples x 64 tokens. score tiny: one query of 120 tokens, 200 products of 30 to
90. train tiny: log-probs of 4 prompts of 192 tokens x 8 replies of 64, forward and backward.

--profile: shares of one run by kind of kernel, and the rest between kernels: Python, views, and the calls themselves.
torch's profiler makes calls slower, so many small kernels weigh more there than without it.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a fresh checkout runs without being installed

import torch

from examples.benchmarks.common import SHAPES, by_turns, machine
from taosr1.engine import PLAIN, Engine
from taosr1.fast import FAST, decode_batch, label_probs, onednn_linear, prefix_tree
from taosr1.fast.decoder import FastDecoder, take
from taosr1.fast.prefix_groups import PrefixGroup
from taosr1.judge_model import BUNDLED, load_judge
from taosr1.learning.batches import Example, collate
from taosr1.model.config import DecoderConfig
from taosr1.model.decoder import Decoder
from taosr1.runtime.cli import at_least, check, option, parse_config
from taosr1.runtime.signals import run_main
from taosr1.synthetic.shop import read_pool


@dataclass(frozen=True)
class Config:
    threads: int = option(1, "CPU threads")
    repeats: int = option(5, "measurements of each kind")
    profile: bool = option(False, "where the time goes, instead of what each trick is worth")

    def __post_init__(self) -> None:
        check(at_least(self, threads=1, repeats=1))


def main(argv: list[str] | None = None) -> list[dict]:
    config = parse_config(Config, __doc__, argv)
    torch.set_num_threads(config.threads)
    fast = jobs(FAST)
    if config.profile:
        print(f"{config.threads} thread(s), shares of one run's time in percent; {machine()}")
        return [profile(work, run) for work, run in fast.items()]
    print(f"{config.threads} thread(s), median of {config.repeats} (least to most), seconds; {machine()}")
    rows, plain = [], jobs(PLAIN)
    for work, run in fast.items():
        sides = {name: without(places, run) for name, places in TRICKS.items()} | {"plain": plain[work]}
        seconds = by_turns(sides, config.repeats + 1)
        middle = {name: statistics.median(found[1:]) for name, found in seconds.items()}  # the first round warms up
        for name, found in seconds.items():
            ratio = middle[name] / middle["all tricks"]
            rows.append({"work": work, "tricks": name, "seconds": middle[name], "times_all": ratio})
            spread = f"{middle[name]:7.3f} ({min(found[1:]):.3f} to {max(found[1:]):.3f})"
            print(f"{work:15} {name:26} {spread}  {ratio:5.2f}", flush=True)
    return rows


def jobs(engine: Engine) -> dict[str, Callable[[], object]]:
    generator = torch.Generator().manual_seed(0)
    judge = load_judge(BUNDLED, plain=engine is PLAIN)
    tiny = engine.prepare(Decoder(DecoderConfig(**SHAPES["tiny"])).init_weights(generator))

    def draw(length: int) -> list[int]:
        return torch.randint(1, SHAPES["tiny"]["vocab_size"] - 1, (length,), generator=generator).tolist()

    def sample(model: Decoder, prompts: list[list[int]], stop_ids) -> Callable[[], object]:
        settings = {"samples": 8, "max_new_tokens": 64, "stop_ids": stop_ids}
        return lambda: engine.generate(model, prompts, generator=torch.Generator().manual_seed(0), **settings)

    def train() -> None:
        engine.completion_logp(tiny, batch.ids, batch.mask).sum().backward()
        tiny.zero_grad(set_to_none=True)

    query, lengths = draw(120), torch.randint(30, 91, (200,), generator=generator).tolist()
    products, tokenizer = [query + draw(length) for length in lengths], SimpleNamespace(label_ids=(5, 6, 7, 8))
    batch = collate([Example(prompt, draw(64)) for prompt in [draw(192) for _ in range(4)] for _ in range(8)])
    thinker_prompts = judge.prompts(read_pool("labelled")[:80])
    return {
        "sample thinker": sample(judge.model, thinker_prompts, judge.tokenizer.eos_ids),
        "sample tiny": sample(tiny, [draw(192) for _ in range(8)], [SHAPES["tiny"]["vocab_size"] - 1]),
        "score tiny": lambda: engine.label_probabilities(tiny, tokenizer, products),
        "train tiny": train,
    }


# Calls that compute nothing, or only call other kernels.
NO_KERNELS = (
    "view reshape slice select as_strided empty transpose permute expand unflatten narrow split unsqueeze squeeze "
    "matmul _to_copy to t"
).split()
KINDS = {  # by the beginning of a kernel's name; the first that fits
    "products with weights": ("mkldnn::_linear", "aten::mm", "aten::addmm", "aten::mkldnn"),
    "products of attention": ("aten::bmm", "aten::baddbmm", "aten::_scaled_dot_product"),
    "softmax, exponentials": ("aten::_softmax", "aten::_log_softmax", "aten::exp", "aten::log"),
    "moving numbers": (
        *("aten::copy", "aten::cat", "aten::index", "aten::_index_put", "aten::gather", "aten::scatter"),
        *("aten::clone", "aten::fill", "aten::zero", "aten::masked_fill"),
    ),
    "other passes over numbers": ("aten::",),
}


def profile(work: str, run: Callable[[], object]) -> dict:
    """Percent of one run's wall time by kind of kernel."""
    run()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        started = time.perf_counter()
        run()
        seconds = time.perf_counter() - started
    spent = Counter()
    for event in profiler.key_averages():
        kind = next((kind for kind, begins in KINDS.items() if event.key.startswith(begins)), None)
        if kind and event.key.removeprefix("aten::") not in NO_KERNELS:
            spent[kind] += event.self_cpu_time_total / 1e6 / seconds
    shares = {kind: round(100 * spent[kind], 1) for kind in KINDS}
    shares["between kernels"] = round(100 * (1 - sum(spent.values())), 1)
    print(f"{work:15} " + ", ".join(f"{kind} {share:.0f}" for kind, share in shares.items()), flush=True)
    return {"work": work, "seconds": seconds, **shares}


def without(places: list[tuple[object, str, object]], run: Callable[[], object]) -> Callable[[], object]:
    """A run in which each (module, name) is replaced by something else."""

    def replaced() -> None:
        with ExitStack() as stack:
            for place in places:
                stack.enter_context(mock.patch.object(*place))
            run()

    return replaced


def groups_of_one(prompts) -> list[PrefixGroup]:
    return [PrefixGroup(0, [row]) for row in range(len(prompts))]


def hidden_everywhere(model, ids, keep=None, *, hidden=FastDecoder.hidden, **given):
    out = hidden(model, ids, **given)
    return out if keep is None else take(out, keep)


TRICKS: dict[str, list[tuple[object, str, object]]] = {
    "all tricks": [],
    "without oneDNN's products": [(onednn_linear, "has_onednn", lambda: False)],
    "without shared prefixes": [
        (decode_batch, "copies_prompts", lambda *_: True),
        (label_probs, "group_by_prefix", groups_of_one),
        (prefix_tree, "shared_tok", lambda rows: rows.new_zeros(len(rows))),
    ],
    "without rows for several": [(decode_batch, "rows_can_fork", lambda _: False)],
    "without keeping columns": [(FastDecoder, "hidden", hidden_everywhere)],
}

if __name__ == "__main__":
    run_main(main)
