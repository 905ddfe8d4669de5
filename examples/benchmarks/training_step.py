"""One SFT, DPO or GRPO step of ours beside transformers', on a real model with prompts of real lengths, in bfloat16.

    python examples/benchmarks/training_step.py --model FOLDER           # a Hugging Face folder, e.g. SmolLM2-135M
    python examples/benchmarks/training_step.py --model FOLDER --trains lora --stages dpo --out training_step.json
    python examples/benchmarks/training_step.py --model FOLDER --stages grpo --replies cot --layers 6
    python examples/benchmarks/training_step.py --model FOLDER --data esci_us.jsonl

32 rows a step: 32 prompts of SFT, 16 pairs of DPO, 4 groups of 8 replies of GRPO. Prompts are as `taosr1.task.prompt`
words them with title and brand ("short") or with all fields ("full"); without --data their texts are random words, in
numbers of tokens drawn from what 400 train rows of ESCI have (`QUANTILES` in training_items.py). Replies are the
grade's digit and the end token or, with --replies cot, random words between them, as many as our teacher's explanations
have. Both sides compute under autocast to bfloat16, with float32 weights or (LoRA) frozen bfloat16 ones and float32
adapters; a step is forward and backward of its micro-batches, clip and AdamW.

- "ours": `DistributedModel.deal` and `accumulate`, as the training loop calls them: --micro-batch-tok counts what all
  prompts share once.
- "ours, their batches" (--their-batches): the same rows in every micro-batch as transformers has.
- "transformers": padded rows by length, of at most --micro-batch-tok tokens; SDPA; only hidden states that predict a
  reply token reach the head (its own `labels=` would compute logits of 49,152 tokens at every position); PEFT's LoRA.
  Both replies of a pair, all of a group are whole rows, as in TRL.

DPO's reference log-probs are given, and so are GRPO's rollouts and advantages; its old log-probs are the policy's, and
neither side computes an entropy for its log. "rollouts" are the samples of GRPO's groups by themselves, 64 tokens each,
none of them shorter: ours by `sampling_model` and `generate`, theirs by `generate` and by the hand-built loop of
sampler.py, on weights in bfloat16.

Losses and gradients of four rows are compared before any time is taken, in float32 where all weights are trained, for
GRPO with old log-probs of which the clip stops some. In bfloat16 both sides are as far from those: 1 % of their length
for SFT, 12 and 14 % for DPO, whose replies' gradients cancel. Rollouts are compared as sampler.py does: greedy replies
and log-probs in float32, then each side's log-probs in bfloat16 with those.
Useful work counts what all prompts share once a step, and an update of frozen weights not at all. Peak memory is that
of each side alone in a fresh process, from before its model was loaded, on its largest micro-batch.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a fresh checkout runs without being installed

import torch
from torch import Tensor

from examples.benchmarks import common, sampler
from examples.benchmarks.sampler_peers import PEERS, Work
from examples.benchmarks.training_items import (
    FIELDS,
    REPLIES,
    ROWS_OF,
    describe,
    few_of,
    first_layers,
    make_items,
    their_parts,
    training_flops,
)
from taosr1.fast import FAST
from taosr1.learning.batches import Batch, Item
from taosr1.learning.distributed_model import DistributedModel
from taosr1.learning.gradient import accumulate
from taosr1.learning.losses import LossSum, dpo_loss, grpo_loss, sft_loss
from taosr1.learning.optimizers import make_optimizers
from taosr1.learning.rollout_group import RolloutBatch
from taosr1.model.decoder import Decoder
from taosr1.model.io.weights import DTYPES
from taosr1.model.logprobs import sequence_logp
from taosr1.model.lora import LoraConfig, add_adapters
from taosr1.runtime.cli import at_least, check, flag_of, option, parse_config
from taosr1.runtime.signals import run_main
from train.dpo import PairBatch

TRAINS, SIDES = ("all", "lora"), ("ours", "ours, their batches", "transformers")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
BETA, RANK, ALPHA, LEARNING_RATE, CLIP_NORM = 0.1, 16, 32.0, 1e-5, 1.0
TOLERANCES = {"all": 1e-4, "lora": 0.25}  # gradients' difference over their length: in float32, in bfloat16
LOSS_TOLERANCES = {"all": 1e-4, "lora": 0.05}


@dataclass(frozen=True)
class Config:
    model: str = option("", "a Hugging Face folder of a real model, float32")
    data: str = option("", "judgements to take the texts from, shuffled; without it words of ESCI's lengths")
    stages: str = option("sft", f"comma-separated, of {', '.join(ROWS_OF)}")
    prompts: str = option("short,full", f"comma-separated, of {', '.join(FIELDS)}")
    trains: str = option("all", f"comma-separated, of {', '.join(TRAINS)}")
    replies: str = option("label", "a digit, or as many tokens as an explanation has", tuple(REPLIES))
    rows: int = option(32, "rows of a batch: examples, replies of pairs, replies of groups of eight")
    layers: int = option(0, "use only so many of the model's first layers (0: all)")
    micro_batch_tok: int = option(2048, "tokens of a micro-batch")
    threads: int = option(1, "CPU threads")
    repeats: int = option(5, "steps of each side that are counted, after one to warm up")
    clock: str = option("wall", "cpu: seconds that one thread computed, where others use the cores too", tuple(CLOCKS))
    their_batches: bool = option(True, "also ours with the rows in every micro-batch that transformers has")
    memory: bool = option(True, "also the peak memory of each side, in a process of its own")
    out: str = option("", "JSON file to write")
    one: str = option("", "internal: measure only the peak memory of this side", ("", *SIDES))

    def __post_init__(self) -> None:
        named = {"stages": ROWS_OF, "prompts": FIELDS, "trains": TRAINS}
        unknown = {flag: set(getattr(self, flag).split(",")) - set(allowed) for flag, allowed in named.items()}
        check([
            (not (Path(self.model) / "config.json").is_file(), f"--model is {self.model!r}, expected a model's folder"),
            *((bool(found), f"--{flag}: unknown {', '.join(sorted(found))}; possible are {', '.join(named[flag])}")
              for flag, found in unknown.items()),
            (self.rows % 8 > 0, f"--rows is {self.rows}, expected a multiple of 8: GRPO's groups have eight"),
            *at_least(self, rows=8, layers=0, micro_batch_tok=1, threads=1, repeats=1),
        ])  # fmt: skip


def main(argv: list[str] | None = None) -> list[dict]:
    config = parse_config(Config, __doc__, argv)
    torch.set_num_threads(config.threads)
    with tempfile.TemporaryDirectory() as folder:
        given = config
        if config.layers:
            config = replace(config, model=first_layers(config.model, config.layers, Path(folder)), layers=0)
        if config.one:
            print(json.dumps({"peak_mib": peak_alone(config)}))
            return []
        print(f"{config.threads} thread(s), median of {config.repeats} (least to most); {common.machine()}")
        rows = []
        for words in product(config.stages.split(","), config.prompts.split(","), config.trains.split(",")):
            case = dict(zip(("stages", "prompts", "trains"), words))
            run = measure_rollouts if case["stages"] == "rollouts" else measure
            rows += [{**case, **row} for row in run(replace(config, **case))]
    if config.out:
        report = {"machine": common.machine(), "config": asdict(given), "rows": rows}
        Path(config.out).write_text(json.dumps(report, indent=1) + "\n")
    return rows


def items_of(config: Config) -> list[Item]:
    return make_items(config.model, config.data, config.stages, config.prompts, config.replies, config.rows)


def measure(config: Config) -> list[dict]:
    """The rows of a single case, one a side, printed."""
    wanted = [side for side in SIDES if config.their_batches or side != "ours, their batches"]
    # First, while this process holds no models.
    peaks = {side: in_fresh_process(side, config) for side in wanted} if config.memory else {}
    items = items_of(config)
    ours, theirs = Ours(items, config), Transformers(items, config)
    counts = f"micro-batches: {len(ours.batches)} of ours, {len(theirs.batches)} of transformers"
    print(f"{config.stages} {config.prompts} {config.trains}: {describe(items)}; {counts}", flush=True)
    if peaks:
        found = ", ".join(f"{side} {peak['peak_mib']:.0f}" for side, peak in peaks.items())
        print(f"  peak memory, MiB: {found}", flush=True)
    apart = compare(ours, theirs, type(items[0]).collate(few_of(items)), config.trains)
    steps = dict(zip(SIDES, (ours.step, partial(ours.step, their_batches=True), theirs.step)))
    work = training_flops(ours.model.config, items, trains_all=config.trains == "all")
    rows = timed({side: steps[side] for side in wanted}, work, config)
    for row in rows:
        row |= apart | peaks.get(row["side"], {})
    return rows


def timed(sides: dict, work: float, config: Config) -> list[dict]:
    rate = partial(common.gemm_flops, torch.bfloat16, clock=CLOCKS[config.clock])
    common.by_turns(sides, 1)
    rate()
    return common.timing_rows(common.by_turns(sides, config.repeats, CLOCKS[config.clock]), work, rate())


def measure_rollouts(config: Config) -> list[dict]:
    """Samples of GRPO's groups: ours as train/grpo.py samples, the copy of the weights that it makes included."""
    model = common.load_fast(config.model)
    work = Work([item.beginning for item in items_of(config)], samples=ROWS_OF["rollouts"])
    counts = f"{len(work.prompts)} prompts x {work.samples} samples x {work.new_tokens} tokens"
    print(f"rollouts {config.prompts}: {counts}", flush=True)
    few = replace(work, prompts=work.prompts[:1])
    for dtype in ("float32", "bfloat16"):  # in the last one both are timed
        ours = DistributedModel(model, FAST, dtype=DTYPES[dtype])
        theirs = common.load_transformers(config.model, DTYPES[dtype])
        print(f"  {dtype}: {sampler.compare(ours.sampling_model(), theirs, few, f'this-{dtype}')}", flush=True)
    sides = {"ours": lambda: sampler.ours(ours.sampling_model(), work)}
    sides |= {f"transformers, {mode}": partial(PEERS[mode], theirs, work) for mode in ("generate", "expanded")}
    flops = sampler.work_flops(ours.model, work, [work.new_tokens] * work.samples * len(work.prompts))
    return timed(sides, flops, config)


def in_fresh_process(side: str, config: Config) -> dict:
    names = ("model", "data", "stages", "prompts", "trains", "replies", "rows", "micro_batch_tok", "threads")
    flags = [text for name in names for text in (flag_of(name), getattr(config, name))]
    return common.in_fresh_process(__file__, *flags, "--one", side, threads=config.threads)


def loss_of(logp: Tensor, batch: Batch) -> LossSum:
    if isinstance(batch, RolloutBatch):
        return grpo_loss(logp, batch.old_logp, batch.advantages, batch.mask)
    if not isinstance(batch, PairBatch):
        return sft_loss(logp, batch.mask)
    summed = sequence_logp(logp, batch.mask)
    return dpo_loss(summed[::2], summed[1::2], batch.ref_logp[::2], batch.ref_logp[1::2], beta=BETA)


# --- Both sides -------------------------------------------------------------------------------------------------------
class Ours:
    def __init__(self, items: Sequence[Item], config: Config) -> None:
        lora = config.trains == "lora"
        self.model = common.load_fast(config.model, torch.bfloat16 if lora else torch.float32)
        if lora:
            add_adapters(self.model, LoraConfig(RANK, ALPHA), torch.Generator().manual_seed(0))
            FAST.prepare(self.model)
        self.distributed = DistributedModel(self.model, FAST, dtype=torch.bfloat16)
        self.batches = self.distributed.deal(items, config.micro_batch_tok)
        self.their_batches = [type(part[0]).collate(part) for part in their_parts(items, config.micro_batch_tok)]
        self.optimizers = make_optimizers(self.model, LEARNING_RATE, weight_decay=0.0)

    def gradient(self, batches: Sequence[Batch], dtype: torch.dtype = torch.bfloat16) -> float:
        """Leaves the gradient in `.grad`; returns the loss."""
        self.distributed.dtype = dtype
        return accumulate(self.distributed, batches, self.loss)["loss"]

    @staticmethod
    def loss(model: Decoder, batch: Batch) -> LossSum:
        return loss_of(FAST.completion_logp(model, batch.ids, batch.mask), batch)

    def step(self, their_batches: bool = False) -> None:
        self.gradient(self.their_batches if their_batches else self.batches)
        self.distributed.clip_gradients(CLIP_NORM)
        for optimizer in self.optimizers:
            optimizer.step()
        self.model.zero_grad(set_to_none=True)


class Transformers:
    def __init__(self, items: Sequence[Item], config: Config) -> None:
        import transformers

        transformers.utils.logging.disable_progress_bar()
        lora = config.trains == "lora"
        dtype = torch.bfloat16 if lora else torch.float32
        self.causal = transformers.AutoModelForCausalLM.from_pretrained(config.model, dtype=dtype)
        self.causal.get_input_embeddings().padding_idx = None  # it would give that token no gradient
        self.model = (with_peft(self.causal) if lora else self.causal).train()
        self.batches = [type(part[0]).collate(part) for part in their_parts(items, config.micro_batch_tok)]
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.0)

    def gradient(self, batches: Sequence[Batch], dtype: torch.dtype = torch.bfloat16) -> float:
        total, count = 0.0, 0.0
        for batch in batches:
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                found = loss_of(self.logp(batch), batch)
            found.sum.backward()
            total, count = total + float(found.sum.detach()), count + found.count
        for parameter in self.trained:
            parameter.grad /= count
        return total / count

    def logp(self, batch: Batch) -> Tensor:
        columns = torch.arange(batch.ids.shape[1])
        real = columns <= (batch.mask * columns).amax(dim=1, keepdim=True)  # (B, T)
        hidden = self.causal.model(batch.ids[:, :-1], attention_mask=real[:, :-1].long(), use_cache=False)[0]
        logits = self.causal.lm_head(hidden[batch.mask[:, 1:]]).float()  # (N, V)
        logp = logits.log_softmax(-1).gather(-1, batch.ids[batch.mask][:, None])[:, 0]
        return torch.zeros(batch.ids.shape).masked_scatter(batch.mask, logp)

    def step(self) -> None:
        self.gradient(self.batches)
        torch.nn.utils.clip_grad_norm_(self.trained, CLIP_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def with_peft(causal: torch.nn.Module) -> torch.nn.Module:
    """The model with PEFT's adapters, drawn as ours are: matrices A by the seed, B zero."""
    import peft

    warnings.simplefilter("ignore", FutureWarning)
    settings = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(LoraConfig(RANK, ALPHA).targets))
    model, generator = peft.get_peft_model(causal, settings), torch.Generator().manual_seed(0)
    for module in model.modules():
        if hasattr(module, "lora_A") and "default" in module.lora_A:
            weight = module.lora_A["default"].weight
            drawn = torch.rand(weight.shape, generator=generator) * 2 - 1
            weight.data = drawn / weight.shape[1] ** 0.5  # float32
            module.lora_B["default"].weight.data = module.lora_B["default"].weight.data.float()
    return model


def compare(ours: Ours, theirs: Transformers, batch: Batch, trains: str) -> dict[str, float]:
    """How far the losses and gradients are apart; both are cleared. Raises: AssertionError for too far."""
    dtype = torch.float32 if trains == "all" else torch.bfloat16
    if isinstance(batch, RolloutBatch):  # at a ratio of 1 the loss is 0, whatever the log-probs are
        with torch.no_grad():
            noise = 0.3 * torch.randn(batch.ids.shape, generator=torch.Generator().manual_seed(0))
            old_logp = FAST.completion_logp(ours.model, batch.ids, batch.mask) + noise
        batch = replace(batch, old_logp=old_logp * batch.mask)
    losses, models = [side.gradient([batch], dtype) for side in (ours, theirs)], (ours.model, theirs.model)
    gradients = [torch.cat([p.grad.flatten() for _, p in named(model) if p.requires_grad]) for model in models]
    apart = float((gradients[0] - gradients[1]).norm() / gradients[1].norm())
    print(
        f"  {dtype}: loss {losses[0]:.5f} and {losses[1]:.5f}, gradients equal but for {apart:.1e} of their length",
        flush=True,
    )
    assert abs(losses[0] - losses[1]) <= LOSS_TOLERANCES[trains] * max(1.0, abs(losses[1])), "the losses differ"
    assert apart <= TOLERANCES[trains], "the gradients differ"
    for model in models:
        model.zero_grad(set_to_none=True)
    return {"our_loss": losses[0], "their_loss": losses[1], "gradient_difference": apart}


def named(model: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    """Parameters by the names that ours have, sorted."""
    parts = re.compile(r"^base_model\.model\.|\.default|\.base_layer")  # PEFT's
    return sorted(((parts.sub("", name), p) for name, p in model.named_parameters()), key=lambda pair: pair[0])


def peak_alone(config: Config) -> float:
    """Peak MiB of two steps of one side: the first makes AdamW's moments, the second has them from its start.

    Two micro-batches a step where a side has several: the second one meets the first one's gradients.
    """
    # What optimizers and models import when the first is made is no side's.
    import peft  # noqa: F401
    import torch._dynamo  # noqa: F401
    from transformers import LlamaForCausalLM  # noqa: F401

    items = items_of(config)
    base = common.forget_peak()
    side = (Transformers if config.one == "transformers" else Ours)(items, config)
    if config.one == "ours, their batches":
        side.batches = side.their_batches
    largest = max(side.batches, key=lambda batch: batch.ids.numel())
    side.batches = [largest] * min(2, len(side.batches))
    for _ in range(2):
        side.step()
    return (common.peak_bytes() - base) / 2**20


if __name__ == "__main__":
    run_main(main, Config)
