"""One SFT or DPO step of ours beside transformers', on a real model with prompts of real lengths, in bfloat16.

    python examples/benchmarks/training_step.py --model FOLDER           # a Hugging Face folder, e.g. SmolLM2-135M
    python examples/benchmarks/training_step.py --model FOLDER --trains lora --stages dpo --out training_step.json
    python examples/benchmarks/training_step.py --model FOLDER --data esci_us.jsonl

32 prompts a step, 16 pairs for DPO, as `taosr1.task.prompt` words them with title and brand ("short") or with all
fields ("full"); replies are the grade's digit and the end token. Without --data the texts are random words, in numbers
of tokens drawn from what 400 train rows of ESCI have (`QUANTILES`). Both sides compute under autocast to bfloat16, with
float32 weights or (LoRA) frozen bfloat16 ones and float32 adapters; a step is forward and backward of its
micro-batches, clip and AdamW.

- "ours": `DistributedModel.deal` and `accumulate`, as the training loop calls them: --micro-batch-tok counts what all
  prompts share once.
- "ours, their batches": the same rows in every micro-batch as transformers has.
- "transformers": padded rows by length, of at most --micro-batch-tok tokens; SDPA; only hidden states that predict a
  reply token reach the head (its own `labels=` would compute logits of 49,152 tokens at every position); PEFT's LoRA.
  DPO has both replies as rows, and reference log-probs are given, as in ours.

Gradients of four items are compared before any time is taken, in float32 where all weights are trained. In bfloat16
both sides are as far from those: 1 % of their length for SFT, 12 and 14 % for DPO, whose replies' gradients cancel.
Useful work counts what all prompts share once a step, and an update of frozen weights not at all. Peak memory is that
of each side alone in a fresh process, from before its model was loaded.
"""

from __future__ import annotations

import json
import re
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a fresh checkout runs without being installed

import torch
from torch import Tensor

from examples.benchmarks import common
from examples.benchmarks.steps import random_words
from taosr1.data.sources import load_rows
from taosr1.fast import FAST
from taosr1.learning.batches import Batch, Example, common_tok
from taosr1.learning.distributed_model import DistributedModel
from taosr1.learning.gradient import accumulate
from taosr1.learning.losses import LossSum, dpo_loss, sft_loss
from taosr1.learning.optimizers import make_optimizers
from taosr1.model.config import DecoderConfig
from taosr1.model.decoder import Decoder
from taosr1.model.logprobs import sequence_logp
from taosr1.model.lora import LoraConfig, add_adapters
from taosr1.model.tokenizer import Tokenizer
from taosr1.runtime.cli import at_least, check, option, parse_config
from taosr1.runtime.signals import run_main
from taosr1.task.judgement import Judgement
from taosr1.task.prompt import PromptConfig, encode_prompt, encode_reply
from train.dpo import PairBatch, PreferencePair

FIELDS = {"short": ("title", "brand"), "full": ("title", "brand", "category", "attributes", "description")}
# Tokens (SmolLM2's) of 400 train rows of ESCI, fields cut to 600 characters: percentiles 5, 25, 50, 75 and 95.
QUANTILES = {
    "query": (2, 4, 5, 6, 10), "title": (15, 22, 30, 45, 59), "brand": (1, 2, 3, 4, 6),
    "category": (7, 15, 20, 24, 33), "attributes": (28, 86, 134, 151, 174), "description": (0, 0, 0, 129, 182),
}  # fmt: skip
STAGES, TRAINS, SIDES = ("sft", "dpo"), ("all", "lora"), ("ours", "ours, their batches", "transformers")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
BETA, RANK, ALPHA, LEARNING_RATE, CLIP_NORM = 0.1, 16, 32.0, 1e-5, 1.0
TOLERANCES = {"all": 1e-4, "lora": 0.25}  # gradients' difference over their length: in float32, in bfloat16


@dataclass(frozen=True)
class Config:
    model: str = option("", "a Hugging Face folder of a real model, float32")
    data: str = option("", "judgements to take the texts from, shuffled; without it words of ESCI's lengths")
    stages: str = option("sft", f"comma-separated, of {', '.join(STAGES)}")
    prompts: str = option("short,full", f"comma-separated, of {', '.join(FIELDS)}")
    trains: str = option("all", f"comma-separated, of {', '.join(TRAINS)}")
    rows: int = option(32, "rows of a batch: examples of SFT, chosen and rejected replies of DPO")
    micro_batch_tok: int = option(2048, "tokens of a micro-batch")
    threads: int = option(1, "CPU threads")
    repeats: int = option(5, "steps of each side that are counted, after one to warm up")
    clock: str = option("wall", "cpu: seconds that one thread computed, where others use the cores too", tuple(CLOCKS))
    memory: bool = option(True, "also the peak memory of each side, in a process of its own")
    out: str = option("", "JSON file to write")
    one: str = option("", "internal: measure only the peak memory of this side", ("", *SIDES))

    def __post_init__(self) -> None:
        named = {"stages": STAGES, "prompts": tuple(FIELDS), "trains": TRAINS}
        unknown = {flag: set(getattr(self, flag).split(",")) - set(allowed) for flag, allowed in named.items()}
        check([
            (not (Path(self.model) / "config.json").is_file(), f"--model is {self.model!r}, expected a model's folder"),
            *((bool(found), f"--{flag}: unknown {', '.join(sorted(found))}; possible are {', '.join(named[flag])}")
              for flag, found in unknown.items()),
            (self.rows % 2 == 1, f"--rows is {self.rows}, expected an even number: DPO takes them in pairs"),
            *at_least(self, rows=2, micro_batch_tok=1, threads=1, repeats=1),
        ])  # fmt: skip


def main(argv: list[str] | None = None) -> list[dict]:
    config = parse_config(Config, __doc__, argv)
    torch.set_num_threads(config.threads)
    if config.one:
        print(json.dumps({"peak_mib": peak_alone(config)}))
        return []
    print(f"{config.threads} thread(s), median of {config.repeats} (least to most); {common.machine()}")
    rows = []
    for words in product(config.stages.split(","), config.prompts.split(","), config.trains.split(",")):
        case = dict(zip(("stages", "prompts", "trains"), words))
        rows += [{**case, **row} for row in measure(case, config)]
    if config.out:
        report = {"machine": common.machine(), "config": asdict(config), "rows": rows}
        Path(config.out).write_text(json.dumps(report, indent=1) + "\n")
    return rows


def measure(case: dict[str, str], config: Config) -> list[dict]:
    """A case's rows, one a side, printed."""
    flags = [flag for name, value in case.items() for flag in (f"--{name}", value)]
    flags += ["--model", config.model, "--data", config.data, "--rows", config.rows]
    flags += ["--micro-batch-tok", config.micro_batch_tok, "--threads", config.threads]
    peaks = {}
    if config.memory:  # first, while this process holds no models
        alone = partial(common.in_fresh_process, __file__, *flags, threads=config.threads)
        peaks = {side: alone("--one", side) for side in SIDES}
    items = make_items(case, config)
    sides = {"ours": Ours(case, items, config), "transformers": Transformers(case, items, config)}
    print(f"{' '.join(case.values())}: {describe(items)}")
    apart = compare(*sides.values(), type(items[0]).collate(items[:4]), case["trains"])
    ours, theirs = sides["ours"].step, sides["transformers"].step
    steps = dict(zip(SIDES, (ours, partial(ours, their_batches=True), theirs)))
    common.by_turns(steps, 1)
    rate, clock = partial(common.gemm_flops, torch.bfloat16, clock=CLOCKS[config.clock]), CLOCKS[config.clock]
    rate()
    seconds = common.by_turns(steps, config.repeats, clock)
    work = training_flops(sides["ours"].model.config, items, trains_all=case["trains"] == "all")
    rows = common.timing_rows(seconds, work, rate())
    for row in rows:
        row |= apart | peaks.get(row["side"], {})
    if peaks:
        print("  peak memory, MiB: " + ", ".join(f"{side} {peak['peak_mib']:.0f}" for side, peak in peaks.items()))
    return rows


# --- Prompts and replies ----------------------------------------------------------------------------------------------
def make_items(case: dict[str, str], config: Config) -> list[Example] | list[PreferencePair]:
    """The examples or pairs of the step that is repeated."""
    tokenizer = Tokenizer(config.model)
    pairs = case["stages"] == "dpo"
    count = config.rows // 2 if pairs else config.rows
    cut = {} if config.data else {"max_chars": 10_000}  # the lengths that are drawn are those of fields that were cut
    prompt = PromptConfig("label", "full", FIELDS[case["prompts"]], **cut)
    prompts = [encode_prompt(tokenizer, row, prompt) for row in judgements(tokenizer, count, config)]
    replies = [encode_reply(tokenizer, str(grade)) for grade in (1, 2, 3, 4)]
    examples = [Example(ids, replies[number % 4]) for number, ids in enumerate(prompts)]
    if not pairs:
        return examples
    others = [Example(ids, replies[(number + 1) % 4]) for number, ids in enumerate(prompts)]
    return [PreferencePair(*pair, -1.0, -2.0) for pair in zip(examples, others)]


def judgements(tokenizer: Tokenizer, count: int, config: Config) -> list[Judgement]:
    generator = torch.Generator().manual_seed(0)
    if config.data:
        rows = load_rows(config.data)
        return [rows[place] for place in torch.randperm(len(rows), generator=generator)[:count].tolist()]
    words = random_words(tokenizer, 1, 100_000, seed=0)[0]
    drawn = torch.rand(count, len(QUANTILES), generator=generator).tolist()
    rows = []
    for shares in drawn:
        texts = {}
        for (name, quantiles), share in zip(QUANTILES.items(), shares):
            start = int(torch.randint(len(words) - 1000, (), generator=generator))
            texts[name] = tokenizer.decode(words[start : start + at_share(quantiles, share)]).strip()
        rows.append(Judgement(**texts))
    return rows


def at_share(quantiles: Sequence[int], share: float) -> int:
    """The value that this share of rows is below, between the known percentiles in a straight line."""
    known, share = (0.05, 0.25, 0.5, 0.75, 0.95), min(max(share, 0.05), 0.95)
    place = next(index for index in range(4) if share <= known[index + 1])
    low, high = quantiles[place : place + 2]
    return round(low + (high - low) * (share - known[place]) / (known[place + 1] - known[place]))


def examples_in(items: Sequence) -> list[Example]:
    return [row for item in items for row in ((item.chosen, item.rejected) if hasattr(item, "chosen") else (item,))]


def describe(items: Sequence) -> str:
    lengths = [len(item.beginning) for item in items]
    tokens = f"{min(lengths)} to {max(lengths)} tokens, mean {sum(lengths) / len(lengths):.0f}"
    return f"{len(items)} prompts of {tokens}; all share {common_tok(items)}"


def training_flops(config: DecoderConfig, items: Sequence, *, trains_all: bool) -> float:
    """Useful work of a step. A prompt counts once for both of its replies, what all prompts share once for all."""
    shared, replies = common_tok(items), 2 if hasattr(items[0], "chosen") else 1
    forward = common.useful_flops(config, 0, shared, 0)
    for item in items:
        # A reply is a digit and the end token; the last token predicts nothing.
        forward += common.useful_flops(config, shared, len(item.beginning) - shared, 1)
        forward += replies * common.useful_flops(config, len(item.beginning), 1, 1)
    return (3 if trains_all else 2) * forward


def loss_of(logp: Tensor, batch: Batch) -> LossSum:
    if not isinstance(batch, PairBatch):
        return sft_loss(logp, batch.mask)
    summed = sequence_logp(logp, batch.mask)
    return dpo_loss(summed[::2], summed[1::2], batch.ref_logp[::2], batch.ref_logp[1::2], beta=BETA)


def their_parts(items: Sequence, max_tokens: int) -> list[list]:
    """Micro-batches of at most so many padded tokens, where a pair is two whole rows."""
    replies = 2 if hasattr(items[0], "chosen") else 1
    longest = {id(item): max(example.length_tok for example in examples_in([item])) for item in items}
    parts: list[list] = []
    for item in sorted(items, key=lambda item: longest[id(item)]):
        if parts and (len(parts[-1]) + 1) * replies * longest[id(item)] <= max_tokens:
            parts[-1].append(item)
        else:
            parts.append([item])
    return parts


# --- Both sides -------------------------------------------------------------------------------------------------------
class Ours:
    def __init__(self, case: dict[str, str], items: Sequence, config: Config) -> None:
        lora = case["trains"] == "lora"
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
    def __init__(self, case: dict[str, str], items: Sequence, config: Config) -> None:
        import transformers

        transformers.utils.logging.disable_progress_bar()
        lora = case["trains"] == "lora"
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
    """How far the gradients are apart; both are cleared. Raises: AssertionError for too far."""
    dtype = torch.float32 if trains == "all" else torch.bfloat16
    losses, models = [side.gradient([batch], dtype) for side in (ours, theirs)], (ours.model, theirs.model)
    gradients = [torch.cat([p.grad.flatten() for _, p in named(model) if p.requires_grad]) for model in models]
    apart = float((gradients[0] - gradients[1]).norm() / gradients[1].norm())
    print(f"  {dtype}: loss {losses[0]:.4f} and {losses[1]:.4f}, gradients equal but for {apart:.1e} of their length")
    assert apart <= TOLERANCES[trains], "the gradients differ"
    for model in models:
        model.zero_grad(set_to_none=True)
    return {"our_loss": losses[0], "their_loss": losses[1], "gradient_difference": apart}


def named(model: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    """Parameters by the names that ours have, sorted."""
    parts = re.compile(r"^base_model\.model\.|\.default|\.base_layer")  # PEFT's
    return sorted(((parts.sub("", name), p) for name, p in model.named_parameters()), key=lambda pair: pair[0])


def peak_alone(config: Config) -> float:
    """Peak MiB of two steps of one side: the first makes AdamW's moments, the second has them from its start."""
    case = {"stages": config.stages, "prompts": config.prompts, "trains": config.trains}
    items = make_items(case, config)
    base = common.forget_peak()
    side = (Transformers if config.one == "transformers" else Ours)(case, items, config)
    for _ in range(2):
        side.step(*((True,) if config.one == "ours, their batches" else ()))
    return (common.peak_bytes() - base) / 2**20


if __name__ == "__main__":
    run_main(main, Config)
