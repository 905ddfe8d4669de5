"""What a GRPO step costs on N ranks: a model, simulated to 1,024, around the parts that can be run here.

    python examples/benchmarks/ranks.py                                # 0.6B weights on machines of 8 GPUs
    python examples/benchmarks/ranks.py --shape small --groups 16

Every rank adds `--groups` prompts with `--samples` replies each (weak scaling). Run for real, on this machine: the pickled size of a
group and the time to pickle and unpickle it; the plan that every rank makes for the whole step (`sibling_batches`, `share`); a gather
between two processes. Simulated: reply lengths, which groups are kept, and all that needs more than one machine.

A step, in seconds (N ranks, W weights, B bytes/s, L seconds of latency):
    sample    the longest reply of all ranks x --decode-ms a token: everybody waits for the exchange
    exchange  (N - 1) x groups x bytes / B + N x groups x (unpickle) + L log2 N
    plan      measured: every rank sorts and deals all kept groups
    train     8 W x tokens / (FLOP/s), of the rank that has most (6 for forward and backward, 2 for the reference)
    reduce    DDP: 2 (N - 1) / N x 4 W / B + L log2 N. FSDP2: 3 x (N - 1) / N x 4 W / B for each pass (weights twice, gradients once),
              1 more for the reference, and W x 2 bytes once for the whole copy that samples
    small     two exchanges of about 1 kB from each rank: metrics, and whether somebody asked to stop
Inside one machine B is --fast-gbs, across machines --slow-gbs. Assumed: no overlap of communication with computing, no failures, and
ranks that are equally fast. All numbers beyond two ranks are of this model, not measured.
"""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a fresh checkout runs without being installed

import torch
import torch.distributed as dist
import torch.multiprocessing

from examples.benchmarks.common import SHAPES, machine
from taosr1.config import option, parse_config, run_main
from taosr1.learning.batches import Siblings, packed_tok, sibling_batches
from taosr1.learning.groups import Group, Rollout
from taosr1.model.decoder import Decoder, DecoderConfig
from taosr1.ranks import Ranks, share

RANKS = (1, 2, 8, 64, 256, 1024)


@dataclass(frozen=True)
class Config:
    shape: str = option("qwen3-0.6b", "which model", tuple(SHAPES))
    groups: int = option(16, "prompts a rank adds to a step")
    samples: int = option(8, "replies per prompt")
    prompt_tok: int = option(200, "tokens of a prompt")
    reply_tok: int = option(120, "tokens of a reply, on average; lengths are log-normal with --spread")
    spread: float = option(0.35, "standard deviation of the logarithm of a reply's length")
    max_reply_tok: int = option(256, "longest reply")
    kept_frac: float = option(0.3, "share of groups that difficulty keeps")
    micro_batch_tok: int = option(16384, "tokens of a micro-batch")
    decode_ms: float = option(15.0, "milliseconds to decode one token of a rank's whole batch")
    tflops: float = option(300.0, "useful TFLOP/s of a rank in training")
    per_machine: int = option(8, "ranks of a machine")
    fast_gbs: float = option(300.0, "GB/s a rank has to others on its machine")
    slow_gbs: float = option(25.0, "GB/s a rank has to other machines")
    gather_gbs: float = option(1.0, "GB/s of the exchange of groups, which goes over TCP (gloo)")
    latency_us: float = option(30.0, "microseconds of one hop")
    seed: int = option(0, "seed of lengths and of the kept groups")
    out: str = option("", "JSON file to write")


def main(argv: list[str] | None = None) -> list[dict]:
    config = parse_config(Config, __doc__, argv)
    with torch.device("meta"):
        weights = sum(parameter.numel() for parameter in Decoder(DecoderConfig(**SHAPES[config.shape])).parameters())
    group_bytes, pickle_s = cost_of_a_group(config)
    print(f"{config.shape}, {weights / 1e6:.0f} M weights; {machine()}")
    print(f"measured here: a group is {group_bytes / 1024:.1f} KiB pickled, {1e6 * pickle_s:.0f} us to pickle and unpickle")
    real, modelled = two_processes(config), config.groups * group_bytes / (config.gather_gbs * 1e9) + 2 * config.groups * pickle_s + config.latency_us / 1e6
    print(f"gather of {config.groups} groups between two processes: {1e3 * real:.1f} ms measured, {1e3 * modelled:.1f} ms modelled")
    print(f"\n{'ranks':>5} {'sample':>8} {'exchange':>9} {'plan':>7} {'train':>7} {'reduce':>7} {'small':>7} {'step':>7} {'efficiency':>11}"
          f" {'train where sampled':>20} {'FSDP2 step':>11}")  # fmt: skip
    rows: list[dict] = []
    for ranks in RANKS:
        row = step(config, ranks, weights, group_bytes, pickle_s)
        row["efficiency"] = rows[0]["step"] / row["step"] if rows else 1.0
        rows.append(row)
        print(f"{ranks:5d} {row['sample']:8.2f} {row['exchange']:9.3f} {row['plan']:7.3f} {row['train']:7.3f} {row['reduce']:7.3f} {row['small']:7.4f} {row['step']:7.2f}"
              f" {row['efficiency']:10.0%}  {row['train_where_sampled']:19.3f} {row['fsdp_step']:11.2f}")  # fmt: skip
    if config.out:
        Path(config.out).write_text(json.dumps({"machine": machine(), "weights": weights, "rows": rows}, indent=1) + "\n")
    return rows


def step(config: Config, ranks: int, weights: int, group_bytes: float, pickle_s: float) -> dict[str, float]:
    """Seconds of each part of one step; `train_where_sampled` is what training would take if no group were exchanged."""
    generator = torch.Generator().manual_seed(config.seed)
    count = ranks * config.groups
    lengths = reply_lengths(config, count, generator)  # (groups, samples)
    kept = torch.rand(count, generator=generator) < config.kept_frac
    hops = math.log2(ranks)
    bandwidth = 1e9 * (config.fast_gbs if ranks <= config.per_machine else config.slow_gbs)
    latency = config.latency_us / 1e6 * hops
    plan_s, dealt = planned(config, ranks, lengths, kept)
    tok_s = 8 * weights / (config.tflops * 1e12)
    own = [int(lengths[start : start + config.groups][kept[start : start + config.groups]].sum()) for start in range(0, count, config.groups)]
    own = [tok + config.prompt_tok * int(kept[start : start + config.groups].sum()) for tok, start in zip(own, range(0, count, config.groups))]
    ring = (ranks - 1) / ranks * 4 * weights / bandwidth
    passes = max(len(parts) for parts in dealt)
    row = {
        "ranks": ranks,
        "sample": int(lengths.max()) * config.decode_ms / 1e3,
        "exchange": (ranks - 1) * config.groups * group_bytes / (config.gather_gbs * 1e9) + (ranks * config.groups * pickle_s + latency if ranks > 1 else 0.0),
        "plan": plan_s,
        "train": max(map(sum, dealt)) * tok_s,
        "train_where_sampled": max(own) * tok_s,
        "reduce": 2 * ring + latency,
        "small": 2 * (latency + (ranks - 1) * 1e3 / (config.gather_gbs * 1e9) + ranks * 5e-6 * (ranks > 1)),
    }
    row["step"] = sum(row[part] for part in ("sample", "exchange", "plan", "train", "reduce", "small"))
    row["fsdp_step"] = row["step"] - row["reduce"] + 4 * passes * (ring + latency) + ring / 2
    return row


def reply_lengths(config: Config, groups: int, generator: torch.Generator) -> torch.Tensor:
    """(groups, samples) int64."""
    normal = torch.randn(groups, config.samples, generator=generator)
    lengths = config.reply_tok * (config.spread * normal - config.spread**2 / 2).exp()
    return lengths.round().long().clamp(1, config.max_reply_tok)


def planned(config: Config, ranks: int, lengths: torch.Tensor, kept: torch.Tensor) -> tuple[float, list[list[int]]]:
    """Seconds that one rank takes to plan the step, really; and the tokens of every rank's micro-batches."""
    groups = []
    for number in kept.nonzero().flatten().tolist():
        prompt = [number] * config.prompt_tok
        groups.append([Rollout(prompt, [0] * length, [], 1.0) for length in lengths[number].tolist()])
    started = time.perf_counter()
    total = sum(Siblings(group).length_tok for group in groups)
    parts = sibling_batches(groups, max(1, min(config.micro_batch_tok, -(-total // ranks))))  # as Team.budget has it
    costs = [packed_tok(part) for part in parts]
    places = share(range(len(parts)), Ranks(0, ranks), costs.__getitem__)
    seconds = time.perf_counter() - started
    others = [share(range(len(parts)), Ranks(rank, ranks), costs.__getitem__) for rank in range(1, min(ranks, 64))]
    return seconds, [[costs[place] for place in dealt] for dealt in (places, *others)]


def some_group(config: Config) -> dict:
    generator = torch.Generator().manual_seed(config.seed)
    lengths = reply_lengths(config, 1, generator)[0].tolist()
    replies = [torch.randint(150_000, (length,), generator=generator).tolist() for length in lengths]
    logp = [torch.randn(length, generator=generator).tolist() for length in lengths]
    prompt = torch.randint(150_000, (config.prompt_tok,), generator=generator).tolist()
    texts = ["word " * (length * 3 // 4) for length in lengths]
    ends = [True] * config.samples
    return vars(Group(7, prompt, 3, "", [0.25] * 4, [], replies, ends, texts, [3] * config.samples, logp, [{"label": 1.0}] * config.samples, [1.0] * config.samples))


def cost_of_a_group(config: Config) -> tuple[float, float]:
    """Bytes of one pickled group, and seconds to pickle and unpickle it."""
    group, repeats = some_group(config), 200
    started = time.perf_counter()
    for _ in range(repeats):
        data = ForkingPickler.dumps(group)  # as torch.distributed sends objects; nothing of it is ever read from a file
        ForkingPickler.loads(data)
    return float(len(data)), (time.perf_counter() - started) / repeats


def two_processes(config: Config) -> float:
    """Median seconds of a gather of everybody's groups between two processes of this machine."""
    context = torch.multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    store = Path(f"/tmp/taosr1-ranks-{time.time_ns()}")
    workers = [context.Process(target=_gather, args=(rank, str(store), config, queue)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    store.unlink(missing_ok=True)
    return queue.get()


def _gather(rank: int, store: str, config: Config, queue) -> None:
    from taosr1.ranks import gather

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    groups, seconds = [some_group(config) for _ in range(config.groups)], []
    for _ in range(11):
        started = time.perf_counter()
        gather(groups)
        seconds.append(time.perf_counter() - started)
    if rank == 0:
        queue.put(sorted(seconds)[5])
    dist.destroy_process_group()


if __name__ == "__main__":
    run_main(main)
