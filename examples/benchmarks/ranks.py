"""What grows with ranks: a cost model of one GRPO step (and of one SFT step) on N ranks, DDP and FSDP2.

    python examples/benchmarks/ranks.py                                   # weak scaling: so many groups a rank
    python examples/benchmarks/ranks.py --strong 1024                     # strong scaling: so many groups, however many ranks
    python examples/benchmarks/ranks.py --cache-gib 48 --out ranks.json   # what one change would be worth

It is a model. Measured, on this machine: planning (the project's own `Sampler.collect` on the groups of all N ranks, with drawn answers
in place of sampled ones), pickling, and gloo between two ranks, whose times are printed beside the modelled ones. Everything else, and
every number beyond two ranks, is simulated or computed from flags. No GPU was at hand when this was written.

Seconds; N ranks, P weights, L layers, T parameter tensors; F = tflops * 1e12 * mfu, FLOP/s of a device; M = memory_gbs * 1e9, bytes/s of its
memory; B, bytes/s of the slowest link of a ring: inside_gbs up to `node` ranks, above that the lesser of inside_gbs and between_gbs; l =
latency_us; h = log2 N hops (for gathers and scatters N - 1 with --hops ring); H, t: host_gbs and host_us, bytes/s and latency of a hop of gloo.

1. Sampling. A rank answers its share of the prompts (`share` by prompt length, as `Sampler._each`) in waves of as many rows as
   `rows_that_fit` allows with --cache-gib. A wave whose longest reply has n tokens lasts 2 P (prompt tokens) / F, the prefill, and
       max(n L layer_us, 2 P (reply tokens) / F, (2 n P + 2 c (sum over prompts of n length + sum over replies of length ^ 2 / 2)) / M),
   recorded steps, whatever is in them; multiplying; or reading weights and cache, where a prompt is read once for its samples: c numbers of keys
   and values a token, two bytes each, as both DDP and FSDP2 sample from a copy in bfloat16. All ranks wait for the slowest: mean of ranks, and wait.
2. Exchange: `gather` of pickled groups, by gloo on the hosts, which is two ring gathers, of sizes and of data padded to the largest rank's s bytes.
   With p and u seconds a byte to pickle and unpickle (measured, u while all is kept, up to --unpickle-mb; s from measured bytes a
   group and a reply token):  p s + 2 (N - 1) t + (N - 1) s / H + u N s.  Every rank then holds the groups of all.
3. Planning, the same on every rank: what `Sampler.collect` takes here, without what stands in for sampling.
4. Training: (6 + 2 m) P / F a packed token; m further forward passes: one for old log-probs in bfloat16, one for the reference (--kl).
   DDP: the largest sum of one rank's micro-batches. FSDP2, which goes pass by pass: the sum over k of the largest k-th micro-batch.
   "own wait" is DDP's wait, had every rank trained on the kept ones of the groups that it sampled itself (binomial numbers of them).
5. Gradients, float32. DDP, once a step: 2 (N - 1) / N 4 P / B + h l, h = log2 N always. FSDP2, for each micro-batch of the rank that has most, 3 + m times (weights
   forward, weights backward, gradients, weights of each further pass): (N - 1) / N 4 P / B + (L + 1) h l. Its copy to sample from
   ("whole"), once a step: (N - 1) / N 4 P / B + T h l.
6. Small exchanges: sums of loss and metrics, the stop flag, with FSDP2 also the number of micro-batches: 2 (N - 1) t + o N each, o measured.

SFT: 3 to 6 with `balanced_order`, `DistributedModel.budget`, `micro_batches` and `share` as its planning, and 6 P / F a padded token.

Assumptions. Rows and their grades are the embedded shop's, drawn as --balance root does. Lengths are log-normal with --spread, replies cut
at --longest; groups are kept at random, --kept-frac of them. Nothing overlaps: true of DDP here, whose all-reduce follows the last backward
pass, an upper bound for FSDP2, which gathers a layer during the one before (it can hide at most the lesser of training and gradients). One
ring: all ranks of a machine share between_gbs. All weights are trained. Rows that end do not make a wave faster. Ranks of a machine do not
slow each other down in planning and unpickling. Left out: attention's products of token pairs, clipping and the optimizer (28 bytes a
weight over M, by N in shards), `--max-resample`, evaluations, checkpoints. The head is counted on all tokens, which about makes up for its
second forward pass on reply tokens.
"""

from __future__ import annotations

import gc
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from heapq import heapreplace
from itertools import zip_longest
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a fresh checkout runs without being installed

import torch

from examples.benchmarks.common import SHAPES, machine
from taosr1.data.judgements import Judgement
from taosr1.data.sources import load_rows
from taosr1.fast import generate as sampler
from taosr1.judge import Judge
from taosr1.learning import parallel, rollouts
from taosr1.learning.batches import Example, micro_batches, packed_tok, padded_tok
from taosr1.learning.distributed_model import DistributedModel
from taosr1.learning.losses import grpo_loss
from taosr1.learning.rollout_group import Group, RolloutSettings
from taosr1.learning.rollouts import Sampler
from taosr1.learning.selection import balanced_order
from taosr1.model.decoder import Decoder, DecoderConfig
from taosr1.runtime.cli import at_least, check, option, parse_config
from taosr1.runtime.distributed import Ranks, gather, init_process_group, share
from taosr1.runtime.signals import run_main
from taosr1.task.prompt import PromptConfig

SENT = 32 * 2**20  # bytes of the tensor by which gloo's speed is measured
MASTER = 4  # bytes of a trained weight and of its gradient: float32


@dataclass(frozen=True)
class Config:
    shape: str = option("qwen3-0.6b", "which model", tuple(SHAPES))
    params: float = option(0.0, "weights, in place of the shape's own number (0); layers and cache stay the shape's")
    ranks: str = option("1,2,8,64,256,1024", "numbers of ranks, separated by commas")
    strong: int = option(0, "groups sampled by all ranks together, however many (0: weak scaling, --groups a rank)")
    groups: int = option(32, "groups sampled by each rank in a step; --groups of train/grpo.py divided by the ranks")
    samples: int = option(8, "replies to a prompt, as in train/grpo.py")
    prompt_tok: int = option(332, "mean tokens of a prompt: ESCI in Qwen3's tokens (examples/finetune_qwen3.md)")
    reply_tok: int = option(90, "mean tokens of a reply with its reason: as far below --longest as the bundled thinker's replies below theirs")
    longest: int = option(160, "--max-new-tokens: what examples/finetune_qwen3.md gives a reply with its reason")
    spread: float = option(0.2, "standard deviation of lengths over their mean: the bundled thinker's replies have 0.18, its prompts 0.20")
    kept_frac: float = option(0.15, "share of groups trained on: what train/grpo.py keeps in its first six steps from the bundled thinker")
    kl: bool = option(True, "a reference model measures every micro-batch too, as with --kl-beta above 0")
    micro_batch_tok: int = option(4096, "packed tokens of a micro-batch, as in train/grpo.py")
    batch_size: int = option(64, "SFT: examples of each rank in a step, as in train/sft.py on one rank")
    tflops: float = option(989.0, "TFLOP/s of a device: an H100's in bfloat16, by its data sheet")
    mfu: float = option(0.3, "share of them that passes reach: published runs of large models have 0.4, small ones in plain PyTorch less")
    memory_gbs: float = option(3350.0, "GB/s of a device's memory: an H100's, by its data sheet")
    cache_gib: float = option(10.0, "GiB of keys and values decoded at once: an eighth of an H100's 80, as taosr1/fast/generate.py has it")
    layer_us: float = option(160.0, "microseconds of one layer of a recorded decoding step: an H200 took 0.29 s for 64 steps of 28 layers (speed.md)")
    node: int = option(8, "ranks on a machine")
    inside_gbs: float = option(400.0, "GB/s of a ring inside a machine: NVLink of an H100")
    between_gbs: float = option(50.0, "GB/s between machines, all network cards of one together: one of 400 Gbit/s")
    latency_us: float = option(20.0, "microseconds of one hop of a collective between devices")
    hops: str = option("log2", "hops of a gather or scatter: of a tree, or of a plain ring, N - 1", ("log2", "ring"))
    host_gbs: float = option(0.0, "GB/s of gloo between hosts (0: what two ranks have on this machine)")
    host_us: float = option(0.0, "microseconds of one hop of gloo (0: the same)")
    chars_tok: float = option(4.0, "characters of a reply's text a token: English has about four")
    unpickle_mb: float = option(128.0, "MB of messages that are really unpickled and kept, for the seconds a MB: more of them take longer, by the garbage collector")
    rank_steps: int = option(128, "steps times ranks that are simulated and averaged, two steps at least")
    seed: int = option(0, "seed of lengths and of which groups are kept")
    out: str = option("", "JSON file to write")
    two: bool = option(False, "internal: be one of the two ranks that are measured")

    def __post_init__(self) -> None:
        numbers = self.ranks.replace(" ", "").split(",")
        positive = ("unpickle_mb", "tflops", "mfu", "cache_gib", "memory_gbs", "inside_gbs", "between_gbs")
        check([
            *at_least(self, params=0, strong=0, groups=1, samples=2, prompt_tok=1, reply_tok=1, longest=1, spread=0, micro_batch_tok=1, batch_size=1,
                      layer_us=0, node=1, latency_us=0, host_gbs=0, host_us=0, chars_tok=0, rank_steps=1),
            *[(not getattr(self, name) > 0, f"--{name.replace('_', '-')} is {getattr(self, name)}, expected more than 0") for name in positive],
            (not 0 <= self.kept_frac <= 1, f"--kept-frac is {self.kept_frac}, expected 0 to 1"),
            (not all(number.isdecimal() and int(number) for number in numbers), f"--ranks is {self.ranks!r}, expected numbers separated by commas"),
        ])  # fmt: skip

    @property
    def worlds(self) -> list[int]:
        return sorted({int(number) for number in self.ranks.split(",")})


def main(argv: list[str] | None = None) -> dict:
    config = parse_config(Config, __doc__, argv)
    torch.set_num_threads(1)
    if config.two:
        print(json.dumps(be_one_of_two(config)))
        return {}
    found = measure_hosts(config)
    model, rows = Model.of(config), load_rows("synthetic:labelled*3000", need_grade=True)
    print(f"a model: {config.shape}, {model.params / 1e9:.3g} G weights; measured here: planning, pickling, two ranks of gloo; {machine()}")
    grpo, sft = [], []
    for world in config.worlds:
        grpo.append(grpo_step(config, model, found, rows, world))
        sft.append(sft_step(config, model, found, rows, world))
    for steps in (grpo, sft):
        add_totals(steps, strong=bool(config.strong))
    show(config, grpo, sft, found)
    result = {"machine": machine(), "config": vars(config), "hosts": {name: value for name, value in vars(found).items() if name != "unpickle_s"}, "grpo": grpo, "sft": sft}
    if config.out:
        Path(config.out).write_text(json.dumps(result, indent=1) + "\n")
    return result


# ---- what is measured here ---------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Hosts:
    """Bytes of pickled groups, and how fast hosts pickle and talk. `compared`: two ranks, measured beside modelled seconds."""

    group_bytes: float  # of a group, without what follows
    token_bytes: float  # of each reply token: id, log-prob, text
    pickle_s_mb: float
    unpickle_s: Callable[[float], float]  # of so many bytes that are all kept, as a step keeps them
    bytes_s: float
    hop_s: float
    read_s: float  # to read one rank's answer in a small exchange
    compared: list[dict] = field(default_factory=list)

    def exchange_s(self, world: int, size: float) -> float:
        """Seconds of gathering `size` pickled bytes of each rank."""
        if world == 1:
            return 0.0
        travel = 2 * (world - 1) * self.hop_s + (world - 1) * size / self.bytes_s
        return travel + self.pickle_s_mb * size / 1e6 + self.unpickle_s(world * size)

    def small_s(self, world: int, exchanges: int) -> float:
        return exchanges * (2 * (world - 1) * self.hop_s + world * self.read_s) if world > 1 else 0.0


def measure_hosts(config: Config) -> Hosts:
    """Pickling in this process, then two ranks that torchrun starts."""
    groups = whole_groups(config, config.groups)
    sent = {place: vars(group) for place, group in enumerate(groups)}
    bare = {place: {**fields, "replies": [], "logp": [], "texts": []} for place, fields in sent.items()}
    message, tokens = ForkingPickler.dumps(sent), sum(len(reply) for group in groups for reply in group.replies)
    size, token_bytes = len(message), (len(message) - len(ForkingPickler.dumps(bare))) / tokens

    @lru_cache
    def unpickled_s(messages: int) -> float:
        gc.collect()  # the younger the heap, the less often it is searched: every measurement begins with the same
        return seconds(lambda: [ForkingPickler.loads(message) for _ in range(messages)], 2 if messages * size > 10e6 else 5)

    def unpickle_s(total: float) -> float:
        messages = max(1, round(min(total, config.unpickle_mb * 1e6) / size))
        return total / (messages * size) * unpickled_s(messages)

    two = start_two(config)
    hosts = Hosts(
        group_bytes=(size - token_bytes * tokens) / len(groups), token_bytes=token_bytes, pickle_s_mb=seconds(lambda: ForkingPickler.dumps(sent), 7) / size * 1e6,
        unpickle_s=unpickle_s, bytes_s=config.host_gbs * 1e9 or two["bytes_s"], hop_s=config.host_us / 1e6 or two["hop_s"], read_s=two["read_s"],
    )  # fmt: skip
    here = Hosts(**{**vars(hosts), "bytes_s": two["bytes_s"], "hop_s": two["hop_s"]})
    for row in two["gathers"]:
        row["modelled_s"] = here.exchange_s(2, row["bytes"])
    hosts.compared.extend(two["gathers"])
    return hosts


def start_two(config: Config) -> dict:
    flags = [f"--{name.replace('_', '-')}={getattr(config, name)}" for name in ("samples", "prompt_tok", "reply_tok", "longest", "spread", "chars_tok", "seed", "shape")]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", __file__, "--two", *flags]
    answer = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    if answer.returncode:
        raise OSError(f"two ranks could not be measured:\n{answer.stderr[-3000:]}")
    return json.loads(answer.stdout.strip().splitlines()[-1])


def be_one_of_two(config: Config) -> dict:
    """Seconds of gloo's gathers between two ranks of one machine."""
    init_process_group("cpu")
    hop_s, sent_s = (gloo_gather_s(size) for size in (8, SENT))
    gathers = []
    for count in (8, 32, 128, 512):
        sent = {place: vars(group) for place, group in enumerate(whole_groups(config, count))}
        gathers.append({"what": f"gather of {count} groups a rank", "bytes": len(ForkingPickler.dumps(sent)), "measured_s": seconds(lambda sent=sent: gather(sent), 7)})
    sums = a_step_of_sums()
    small = seconds(lambda: gather(sums), 51)
    return {"hop_s": hop_s, "bytes_s": SENT / (sent_s - hop_s), "read_s": max(0.0, small - 2 * hop_s) / 2, "gathers": gathers}


def gloo_gather_s(size: int) -> float:
    import torch.distributed as dist

    mine, both = torch.zeros(size, dtype=torch.uint8), torch.zeros(2 * size, dtype=torch.uint8)
    return seconds(lambda: dist.all_gather(list(both.split(size)), mine), 51 if size < 1000 else 7)


def a_step_of_sums() -> dict[str, float]:
    """What `accumulate` gathers: sums of loss, count, passes and the metrics of GRPO's loss."""
    numbers, mask = torch.zeros(1, 2), torch.tensor([[False, True]])
    loss = grpo_loss(numbers, numbers, torch.ones(1), mask, ref_logp=numbers, kl_beta=0.02, entropy=numbers)
    return {"loss": 0.0, "count": 0.0, "passes": 0.0} | {name: float(value) for name, value in loss.metrics.items()}


def seconds(do: Callable[[], object], repeats: int) -> float:
    """The least seconds of some calls: what else the machine does only ever adds."""
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        do()
        found.append(time.perf_counter() - started)
    return min(found)


# ---- drawn groups ------------------------------------------------------------------------------------------------------
def lengths(mean: float, spread: float, shape: tuple[int, ...], longest: int, generator: torch.Generator) -> torch.Tensor:
    """Log-normal lengths in tokens with this mean and std / mean, 1 to `longest`."""
    sigma = math.sqrt(math.log1p(spread**2))
    drawn = torch.exp(math.log(mean) - sigma**2 / 2 + sigma * torch.randn(shape, generator=generator))
    return drawn.round().long().clamp(1, longest)


def whole_groups(config: Config, count: int) -> list[Group]:
    """Groups as a rank sends them, every number an object of its own: what is pickled."""
    generator = torch.Generator().manual_seed(config.seed)
    vocabulary, groups = SHAPES[config.shape]["vocab_size"], []
    for row in range(count):
        sizes = lengths(config.reply_tok, config.spread, (config.samples,), config.longest, generator).tolist()
        ids = torch.randint(vocabulary, (config.prompt_tok + sum(sizes),), generator=generator).tolist()
        group = Group(row, ids[: config.prompt_tok], 4, "", probs=[0.25] * 4)
        start = config.prompt_tok
        for size in sizes:
            reply = ids[start : start + size]
            start += size
            text = (f"{reply[0]} and so on, " * config.longest)[: round(config.chars_tok * size)]
            answer(group, reply, torch.rand(size, generator=generator).tolist(), text, size % 2 == 0)
        groups.append(group)
    return groups


def answer(group: Group, reply: list[int], logp: list[float], text: str, right: bool) -> None:
    """One reply, as `Sampler._reply` notes it down."""
    group.replies.append(reply)
    group.finished.append(True)
    group.texts.append(text)
    group.labels.append(group.gold if right else None)
    group.logp.append(logp)
    group.parts.append({"label": float(right)})
    group.rewards.append(float(right))


@dataclass(frozen=True)
class DrawnPrompts(Judge):
    """A judge whose prompts have drawn lengths, each of other tokens than all others."""

    ids: list[list[int]] = field(default_factory=list)

    def prompts(self, judgements: list[Judgement]) -> list[list[int]]:
        return self.ids


def tiny_on_meta() -> Decoder:
    """A model that nobody runs."""
    with torch.device("meta"):
        return Decoder(DecoderConfig(**SHAPES["tiny"]))


class WatchedTeam(DistributedModel):
    """The first of N ranks; keeps the micro-batches that it deals out."""

    def __init__(self, model: Decoder, world: int) -> None:
        super().__init__(model)
        self.ranks, self.parts = Ranks(0, world), []

    def share(self, parts, cost=lambda part: 1.0):
        self.parts = parts
        return super().share(parts, cost)


class Planner(Sampler):
    """The project's sampler with answers drawn from a generator; all that it decides, it decides as ever."""

    def __init__(self, config: Config, rows: list[Judgement], groups: int, world: int, generator: torch.Generator) -> None:
        settings = RolloutSettings(
            groups=groups, samples=config.samples, gamma=None, difficulty="samples", balance="root", min_groups=0, max_resample=1, temperature=1.0,
            max_new_tokens=config.longest, adv_std="group", adv_clamp=None, compute_dtype=torch.float32, label_weight=1.0, micro_batch_tok=config.micro_batch_tok, seed=config.seed,
        )  # fmt: skip
        sizes = lengths(config.prompt_tok, config.spread, (len(rows),), 10 * config.prompt_tok, generator).tolist()
        model = tiny_on_meta()
        judge = DrawnPrompts(model, None, PromptConfig(order="pre-cot"), [[row] + [0] * (size - 1) for row, size in enumerate(sizes)])
        super().__init__(judge, rows, settings, {"label": 1.0}, None, WatchedTeam(model, world))
        self.config, self.generator, self.groups = config, generator, []
        self.ids = [[0] * size for size in range(config.longest + 1)]  # replies of one length are one list: only lengths matter here
        self.logps = [[0.0] * size for size in range(config.longest + 1)]
        self.answering_s = 0.0

    def _each(self, groups: list[Group], work: object) -> None:
        rollouts.share(range(len(groups)), self.team.ranks, lambda place: len(groups[place].prompt))
        started = time.perf_counter()
        config, count = self.config, len(groups)
        sizes = lengths(config.reply_tok, config.spread, (count, config.samples), config.longest, self.generator).tolist()
        kept = (torch.rand(count, generator=self.generator) < config.kept_frac).tolist()
        right = torch.randint(1, config.samples, (count,), generator=self.generator).tolist()
        for group, of_group, keep, number in zip(groups, sizes, kept, right):
            for place, size in enumerate(of_group):
                answer(group, self.ids[size], self.logps[size], "", place < number if keep else True)
        self.groups = groups
        self.answering_s += time.perf_counter() - started

    def _batch(self, rollouts_of_batch: object) -> object:
        return rollouts_of_batch


@contextmanager
def stopwatch(*places: tuple[object, str]) -> Iterator[dict[str, float]]:
    """Seconds spent in functions, each a name in a module or a class, which is replaced for as long as the context lasts."""
    spent: dict[str, float] = {}

    def timed(name: str, function: Callable) -> Callable:
        def call(*arguments, **named):
            started = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                spent[name] = spent.get(name, 0.0) + time.perf_counter() - started

        return call

    before = [(owner, name, getattr(owner, name)) for owner, name in places]
    try:
        for owner, name, function in before:
            setattr(owner, name, timed(name, function))
        yield spent
    finally:
        for owner, name, function in before:
            setattr(owner, name, function)


PLANNING = ((rollouts, "balanced_order"), (rollouts, "draw_uniform"), (rollouts, "share"), (parallel, "share"), (rollouts, "group_batches"), (Sampler, "_measure"), (Group, "record"))


# ---- a step ------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Model:
    """What a step's cost depends on: numbers of weights, layers, parameter tensors, cache numbers a token, and rows decoded at once."""

    params: float
    layers: int
    tensors: int
    cache: int
    fits: Callable[[int], int]  # tokens of a row, and of its share of the prompt -> rows

    @classmethod
    def of(cls, config: Config) -> Model:
        with torch.device("meta"):
            decoder = Decoder(DecoderConfig(**SHAPES[config.shape])).to(torch.bfloat16)
        shape, sizes = decoder.config, [parameter.numel() for parameter in decoder.parameters()]
        cache = 2 * shape.num_hidden_layers * shape.num_key_value_heads * shape.head_dim

        def fits(length: int) -> int:
            ours, sampler.CACHE_BYTES = sampler.CACHE_BYTES, int(config.cache_gib * 2**30)
            try:
                return sampler.rows_that_fit(decoder, length)
            finally:
                sampler.CACHE_BYTES = ours

        return cls(config.params or sum(sizes), shape.num_hidden_layers, len(sizes), cache, fits)


def grpo_step(config: Config, model: Model, hosts: Hosts, rows: list[Judgement], world: int) -> dict:
    """Seconds of each part of a step on `world` ranks, mean of some steps."""
    generator = torch.Generator().manual_seed(config.seed)
    planner = Planner(config, rows, config.strong or config.groups * world, world, generator)
    cursor, found = {}, []
    for step in range(max(2, config.rank_steps // world)):
        answering_s, started = planner.answering_s, time.perf_counter()
        with stopwatch(*PLANNING) as spent:
            planner.collect(step, cursor)
        whole = time.perf_counter() - started - (planner.answering_s - answering_s)
        spent["rest"] = whole - sum(spent.values())
        planning = {"planning": whole} | {f"planning: {name}": value for name, value in spent.items()}
        found.append(planning | step_of(config, model, hosts, planner.groups, planner.team.parts, world))
    return {"ranks": world, "groups": len(planner.groups)} | over_steps(found)


def step_of(config: Config, model: Model, hosts: Hosts, groups: list[Group], parts: list, world: int) -> dict[str, float]:
    """What a step takes whose groups and micro-batches are these."""
    places = dealt([len(group.prompt) for group in groups], world)
    shares = [[groups[place] for place in of_rank] for of_rank in places]
    sizes = [sum(hosts.group_bytes + hosts.token_bytes * sum(map(len, group.replies)) for group in theirs) for theirs in shares]
    costs = [packed_tok(part) for part in parts]
    plan = [[costs[number] for number in of_rank] for of_rank in dealt(costs, world)]
    own = [sum(len(group.prompt) + sum(map(len, group.replies)) for group in theirs if not group.dropped) for theirs in shares]
    further = 1 + config.kl
    token_s = (6 + 2 * further) * model.params / (config.tflops * 1e12 * config.mfu)
    found = {"exchange MB": sum(sizes) / 1e6, "exchange": hosts.exchange_s(world, max(sizes)), **training(plan, token_s), "own wait": (max(own) - sum(own) / world) * token_s}
    sampled = [sampling_s(config, model, theirs) for theirs in shares]
    found |= {"sampling": sum(sampled) / world, "sampling wait": max(sampled) - sum(sampled) / world}
    longest = max(map(len, plan))
    return found | exchanges(config, model, hosts, world, longest * (3 + further)) | {"FSDP2 whole": gather_s(config, model, world, model.tensors)}


def sft_step(config: Config, model: Model, hosts: Hosts, rows: list[Judgement], world: int) -> dict:
    generator = torch.Generator().manual_seed(config.seed)
    both = [lengths(mean, config.spread, (len(rows),), 10 * mean, generator).tolist() for mean in (config.prompt_tok, config.reply_tok)]
    team = WatchedTeam(tiny_on_meta(), world)
    examples, grades = [Example([0] * prompt, [0] * min(reply, config.longest)) for prompt, reply in zip(*both)], [row.grade for row in rows]
    count = config.batch_size * config.strong // config.groups if config.strong else config.batch_size * world
    found, token_s = [], 6 * model.params / (config.tflops * 1e12 * config.mfu)
    for step in range(max(2, config.rank_steps // world)):
        started = time.perf_counter()
        drawn = balanced_order(grades, config.seed, step * count, count, power=0.5)
        items = [examples[row] for row in drawn]
        team.share(micro_batches(items, team.budget(items, config.micro_batch_tok)), padded_tok)
        planning, costs = time.perf_counter() - started, [padded_tok(part) for part in team.parts]
        plan = [[costs[number] for number in of_rank] for of_rank in dealt(costs, world)]
        found.append({"planning": planning, **training(plan, token_s), **exchanges(config, model, hosts, world, max(map(len, plan)) * 3)})
    return {"ranks": world, "examples": count} | over_steps(found)


def dealt(costs: Sequence[float], world: int) -> list[list[int]]:
    """`share` of all ranks at once: the items that each has, in order."""
    load, parts = [(0.0, rank) for rank in range(world)], [[] for _ in range(world)]
    for index in sorted(range(len(costs)), key=lambda index: -costs[index]):
        busy, rank = load[0]
        heapreplace(load, (busy + costs[index], rank))
        parts[rank].append(index)
    parts = [sorted(part) for part in parts]
    assert parts[-1] == share(range(len(costs)), Ranks(world - 1, world), lambda index: costs[index])
    return parts


def sampling_s(config: Config, model: Model, groups: list[Group]) -> float:
    """One rank's seconds for its prompts, wave after wave."""
    groups, total, flops = sorted(groups, key=lambda group: len(group.prompt)), 0.0, config.tflops * 1e12 * config.mfu
    share = -(-max((len(group.prompt) for group in groups), default=0) // config.samples)  # of its prompt's keys and values, a row's
    prompts_at_once = max(1, model.fits(share + config.longest) // config.samples)
    for start in range(0, len(groups), prompts_at_once):
        wave = groups[start : start + prompts_at_once]
        steps = max(len(reply) for group in wave for reply in group.replies)
        prompt_tok, replies = sum(len(group.prompt) for group in wave), [len(reply) for group in wave for reply in group.replies]
        read = 2 * (steps * model.params + model.cache * (steps * prompt_tok + sum(length**2 for length in replies) / 2))
        decoding = (steps * model.layers * config.layer_us / 1e6, 2 * model.params * sum(replies) / flops, read / (config.memory_gbs * 1e9))
        total += 2 * model.params * prompt_tok / flops + max(decoding)
    return total


def training(plan: list[list[float]], token_s: float) -> dict[str, float]:
    """Seconds of passes by a plan of token counts: mean of ranks, and the wait for the slowest, by itself (DDP) or pass by pass (FSDP2)."""
    mean = sum(map(sum, plan)) / len(plan)
    in_step = sum(map(max, zip_longest(*plan, fillvalue=0)))
    return {"training": mean * token_s, "training wait": (max(map(sum, plan)) - mean) * token_s, "FSDP2 training wait": (in_step - mean) * token_s}


def exchanges(config: Config, model: Model, hosts: Hosts, world: int, passes: int) -> dict[str, float]:
    """Gradients and small exchanges; `passes` are FSDP2's gathers and scatters of all layers."""
    whole = ring_sum_s(world, MASTER * model.params, ring_bytes_s(config, world), config.latency_us / 1e6)
    sharded = passes * gather_s(config, model, world, model.layers + 1)
    return {"gradients": whole, "FSDP2 gradients": sharded, "small": hosts.small_s(world, 2), "FSDP2 small": hosts.small_s(world, 3)}


def ring_sum_s(world: int, size: float, bytes_s: float, hop_s: float) -> float:
    """All-reduce of `size` bytes."""
    return 2 * (world - 1) / world * size / bytes_s + hop_s * math.log2(world)


def gather_s(config: Config, model: Model, world: int, calls: int) -> float:
    """All weights in float32, gathered by so many calls."""
    hops = math.log2(world) if config.hops == "log2" else world - 1
    return (world - 1) / world * MASTER * model.params / ring_bytes_s(config, world) + calls * hops * config.latency_us / 1e6


def ring_bytes_s(config: Config, world: int) -> float:
    return 1e9 * (config.inside_gbs if world <= config.node else min(config.inside_gbs, config.between_gbs))


def over_steps(found: list[dict[str, float]]) -> dict[str, float]:
    """The mean of what is modelled; of what is measured the least, as in `seconds`."""
    return {name: (min if name.startswith("planning") else statistics.fmean)([row[name] for row in found]) for name in found[0]}


# ---- what is shown -----------------------------------------------------------------------------------------------------
SAMPLING, SHARED = ("sampling", "sampling wait"), ("exchange", "planning", "training")
DDP = (*SAMPLING, *SHARED, "training wait", "gradients", "small")
FSDP2 = (*SAMPLING, "FSDP2 whole", *SHARED, "FSDP2 training wait", "FSDP2 gradients", "FSDP2 small")


def add_totals(steps: list[dict], *, strong: bool) -> None:
    """Seconds of a whole step, and efficiency: work a rank and second, 1 on the first number of ranks."""
    for name, parts in (("", DDP), ("FSDP2 ", FSDP2)):
        for row in steps:
            row[f"{name}step"] = sum(row.get(part, 0.0) for part in parts)
            work = steps[0]["ranks"] / row["ranks"] if strong else 1.0
            row[f"{name}efficiency"] = work * steps[0][f"{name}step"] / row[f"{name}step"]


def show(config: Config, grpo: list[dict], sft: list[dict], hosts: Hosts) -> None:
    table("GRPO, DDP: seconds of a step", grpo, ("groups", *DDP, "step", "efficiency"))
    table("GRPO, FSDP2", grpo, (*FSDP2, "FSDP2 step", "FSDP2 efficiency"))
    table("GRPO: why groups are exchanged", grpo, ("training", "training wait", "own wait", "exchange", "exchange MB"))
    table("GRPO: planning, its larger parts", grpo, tuple(name for name in grpo[-1] if name.startswith("planning")))
    table("SFT, DDP", sft, ("examples", *DDP[3:], "step", "efficiency"))
    table("SFT, FSDP2", sft, (*FSDP2[4:], "FSDP2 step", "FSDP2 efficiency"))
    print(f"\nA group is {hosts.group_bytes / 1e3:.1f} KB pickled and {hosts.token_bytes:.0f} bytes a reply token; a MB takes {1e3 * hosts.pickle_s_mb:.1f} ms to pickle, "
          f"{1e3 * hosts.unpickle_s(1e6):.1f} to "
          f"unpickle, of {config.unpickle_mb:.0f} kept ones {1e3 * hosts.unpickle_s(config.unpickle_mb * 1e6) / config.unpickle_mb:.1f}; gloo: {hosts.bytes_s / 1e9:.2f} GB/s, {1e6 * hosts.hop_s:.0f} us a hop, {1e6 * hosts.read_s:.0f} us to read a rank's sums")  # fmt: skip
    print("two ranks, this machine              MB  measured s  modelled s")
    for row in hosts.compared:
        print(f"{row['what']:30} {row['bytes'] / 1e6:8.2f}  {row['measured_s']:10.4f}  {row['modelled_s']:10.4f}")
    grown = [row for row in grpo if row["ranks"] > config.node]
    if len(grown) > 1:
        first, last = grown[0], grown[-1]
        print(f"\nFrom {first['ranks']} to {last['ranks']} ranks")
        for name in dict.fromkeys((*DDP, "own wait", *FSDP2)):
            print(f"{name:22} {growth(first, last, name)}")


def growth(first: dict, last: dict, name: str) -> str:
    """How a part grows between two numbers of ranks: the power e of N ** e that leads from one to the other, and a word for it."""
    if not first[name] > 0:
        return "nothing"
    power = math.log(last[name] / first[name]) / math.log(last["ranks"] / first["ranks"])
    words = ((0.1, "constant"), (0.4, "like log N"), (0.8, "slower than N"), (1.2, "like N"), (math.inf, "faster than N"))
    falls = power < -0.1
    return ("falls" if falls else next(word for most, word in words if power <= most)) + f" (N^{power:.2f})"


def table(title: str, rows: list[dict], names: Sequence[str]) -> None:
    heads = [name.removeprefix("FSDP2 ").removeprefix("planning: ") for name in names]
    widths = [max(7, len(head)) for head in heads]
    print(f"\n{title}\nranks  " + "  ".join(f"{head:>{width}}" for head, width in zip(heads, widths)))
    for row in rows:
        values = [f"{row[name]:{width}.0f}" if name in ("groups", "examples") else f"{row[name]:{width}.3f}" for name, width in zip(names, widths)]
        print(f"{row['ranks']:5}  " + "  ".join(values), flush=True)


if __name__ == "__main__":
    run_main(main)
