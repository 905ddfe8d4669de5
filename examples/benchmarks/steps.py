"""What sft_step.py, dpo_step.py and grpo_step.py share: a step of ours beside one of TRL's, by turns in one process.

How the comparison is kept fair:

1. TRL runs its own `trainer.train()`, untouched. A callback runs our step right before each of TRL's: ours, TRL,
   ours, TRL, ... TRL's clock runs from `on_step_begin` to `on_step_end`: reading rows from its dataset is outside of
   it, and so are logging, saving, progress bars and gradient checkpointing, which are switched off.
2. Both start from the same weights and see the same prompts, as token ids: the texts that TRL gets are made of words
   that are one token each.
3. Loss and gradient of both are compared on the same tokens before any time is taken; a difference ends the program.
   transformers gives the padding token's embedding no gradient; here it is a token like any other, so that is
   switched off.
4. AdamW has the same learning rate, betas, clip and no weight decay. TRL keeps its own default of AdamW's
   implementation (fused).

Useful work and the roofline are those of `common.useful_flops` and `common.gemm_flops`: a prompt counts once for all
its replies, the head only where a token is predicted; backward is twice forward.

Peak memory is measured for each side alone in a fresh process: the resident set above what it was when imports,
weights and (TRL's) trainer were there and no step had run. So it holds gradients, AdamW's moments, activations and
caches. On a GPU it is what torch allocated there.

A real model on a GPU: `--model FOLDER --device cuda --dtype bfloat16 --size 8`. Weights, gradients and AdamW are
float32, and both sides compute under autocast; the comparison before is in float32 all the same, and that of the
updates is left out, as bfloat16 rounds the two sides differently. `--size` multiplies the prompts of a step.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch

from examples.benchmarks import common
from taosr1.fast import FAST
from taosr1.learning.distributed_model import DistributedModel
from taosr1.learning.gradient import accumulate
from taosr1.learning.losses import LossSum
from taosr1.learning.optimizers import make_optimizers
from taosr1.model.decoder import Decoder, DecoderConfig
from taosr1.model.tokenizer import Tokenizer
from taosr1.runtime.cli import at_least, check, option

PROMPT_TOK, REPLY_TOK = 192, 64
LEARNING_RATE, CLIP_NORM, BETAS = 1e-5, 1.0, (0.9, 0.99)  # the betas are those of make_optimizers
LOSS_TOLERANCE, GRADIENT_TOLERANCE, MOVE_TOLERANCE = 1e-5, 1e-4, 1e-2


@dataclass(frozen=True)
class StepConfig:
    cases: str = option("tiny", f"shapes, comma-separated, of {', '.join(common.SHAPES)}; random weights")
    model: str = option("", "a Hugging Face folder, float32, in place of --cases")
    device: str = option("cpu", "torch device")
    dtype: str = option("float32", "type that training computes in; weights are float32", ("float32", "bfloat16"))
    size: int = option(1, "so many times the prompts in a step")
    threads: int = option(1, "CPU threads")
    warmup: int = option(1, "steps of each side that are not counted")
    repeats: int = option(5, "steps of each side that are counted")
    memory: bool = option(True, "also the peak memory of each side, in a process of its own")
    out: str = option("", "JSON file to write")
    one: str = option("", "internal: measure only the peak memory of this side", ("", "ours", "TRL"))
    folder: str = option("", "internal: the model's folder")

    def __post_init__(self) -> None:
        unknown = [case for case in self.cases.split(",") if case not in common.SHAPES]
        message = f"unknown {', '.join(unknown)}: --cases are {', '.join(common.SHAPES)}"
        no_model = (
            bool(self.model) and not Path(self.model, "config.json").is_file(),
            f"--model is {self.model!r}, expected a model's folder",
        )
        check([(bool(unknown), message), no_model, *at_least(self, size=1, threads=1, warmup=0, repeats=1)])

    @property
    def compute_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)


@dataclass(frozen=True)
class Stage:
    """One kind of step.

    script: the file that runs it. title: what is printed above the numbers.
    make_data: (tokenizer, steps, config) -> whatever the other functions take as data.
    make_step: (model, data, config) -> our step, which takes its number and returns its seconds of sampling.
    make_trainer: (folder, data, steps, config) -> TRL's trainer.
    compare: (model, trainer, data, config) -> our loss and TRL's on the same tokens; leaves both gradients in `.grad`.
    flops: (model's config, config) -> useful work of each part: "sampling" (if there is any) and "training".
    sampling_method: the trainer's method that samples; "" where both sides see the same tokens in every step.
    """

    script: str
    title: str
    make_data: Callable
    make_step: Callable
    make_trainer: Callable
    compare: Callable
    flops: Callable[[DecoderConfig, StepConfig], dict[str, float]]
    sampling_method: str = ""


def run_stage(stage: Stage, config: StepConfig) -> list[dict]:
    """Measure all cases, print them, write --out."""
    torch.set_num_threads(config.threads)
    if config.one:
        print(json.dumps({"peak_mib": peak_alone(stage, config)}))
        return []
    print(
        f"{stage.title}, {config.size} times as many\n{config.device}, {config.threads} thread(s), median of "
        f"{config.repeats} after {config.warmup} to warm up; {common.machine()}"
    )
    rows = []
    for case in [Path(config.model).name] if config.model else config.cases.split(","):
        with tempfile.TemporaryDirectory() as made:
            folder = config.model or str(common.stir(common.make_model(case, Path(made))))
            peaks = memory(stage, folder, config) if config.memory else {}  # first, while this process holds no models
            found = times(stage, case, folder, config)
        if peaks:
            ours, trl = peaks.values()
            print(f"  peak memory: ours {ours:.0f} MiB, TRL {trl:.0f} MiB, ours / TRL {ours / trl:.2f}", flush=True)
            for row in found[:2]:  # the rows of the whole step
                row["peak_mib"] = peaks[row["side"]]
        rows += [{"case": case, "dtype": config.dtype, **row} for row in found]
    if config.out:
        Path(config.out).write_text(
            json.dumps({"machine": common.machine(), "config": asdict(config), "rows": rows}, indent=1) + "\n"
        )
    return rows


# --- Time -------------------------------------------------------------------------------------------------------------
def times(stage: Stage, case: str, folder: str, config: StepConfig) -> list[dict]:
    """Rows of the whole step and of its parts, a row a side, ours first."""
    steps, device = config.warmup + config.repeats, config.device
    model, data = common.load_fast(folder, device=device), stage.make_data(Tokenizer(folder), steps, config)
    exact = replace(config, dtype="float32")
    trainer = stage.make_trainer(folder, data, steps, exact)
    assert torch.get_num_threads() == config.threads, "something changed the number of threads"
    equality = agreement(model, trainer.model, *stage.compare(model, trainer, data, exact))
    if config != exact:  # TRL decides about autocast when the trainer is made
        trainer = stage.make_trainer(folder, data, steps, config)
    print(
        f"{case}, {config.dtype}; compared in float32: "
        "loss {our_loss:.7f} and {trl_loss:.7f}, gradients equal but for {gradient_difference:.1e}".format(**equality)
    )
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    roofline = common.gemm_flops(config.compute_dtype, device=device)
    taken = train_by_turns(trainer, stage.make_step(model, data, config), stage.sampling_method, device)
    # Once more: a machine that others use too may have been slow the first time.
    roofline = max(roofline, common.gemm_flops(config.compute_dtype, device=device))
    if not stage.sampling_method and config.dtype == "float32":
        equality["move_difference"] = relative_difference(moves(model, start), moves(trainer.model, start))
        print(f"  after {steps} steps the weights have moved alike but for {equality['move_difference']:.1e}")
        assert equality["move_difference"] <= MOVE_TOLERANCE, "the updates are not the same"
    flops, rows = stage.flops(model.config, config), []
    for part in ("step", *(flops if len(flops) > 1 else ())):
        print(f" {part}")
        counted = {side: seconds[part][config.warmup :] for side, seconds in taken.items()}
        rows += [
            {"part": part, **row} for row in common.timing_rows(counted, flops.get(part, sum(flops.values())), roofline)
        ]
    return [{**row, "roofline_gflops": roofline / 1e9, **equality} for row in rows]


def train_by_turns(
    trainer, our_step: Callable[[int], float] | None, sampling_method: str, device: str
) -> dict[str, dict[str, list[float]]]:
    """Run `trainer.train()` with one of our steps before each of TRL's. Returns each side's seconds by part.

    A clock is read when the device has done what it was given.
    """
    from transformers import PrinterCallback, TrainerCallback

    taken = {side: {"step": [], "sampling": [], "training": []} for side in ("ours", "TRL")}

    def note(side: str, started: float, sampling: float) -> None:
        step = time.perf_counter() - started
        for part, seconds in (("step", step), ("sampling", sampling), ("training", step - sampling)):
            taken[side][part].append(seconds)

    class Turns(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            if our_step:
                started = time.perf_counter()
                note("ours", started, common.finished(device, our_step, state.global_step))
            sampled.clear()
            self.started = time.perf_counter()

        def on_step_end(self, args, state, control, **_):
            note("TRL", self.started, common.finished(device, sum, sampled))

    sampled = clock(trainer, sampling_method, device) if sampling_method else []
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Turns())
    trainer.train()
    return taken


def clock(owner: object, method: str, device: str) -> list[float]:
    """Put a clock around a method of an object; the seconds of each call land in the list that is returned."""
    inner, seconds = getattr(owner, method), []

    def outer(*arguments, **named):
        started = time.perf_counter()
        result = common.finished(device, partial(inner, **named), *arguments)
        seconds.append(time.perf_counter() - started)
        return result

    setattr(owner, method, outer)
    return seconds


def group_flops(config: DecoderConfig, replies: int) -> float:
    """Useful work of one prompt and its replies, forward. The last token of a reply predicts nothing."""
    one_reply = common.useful_flops(config, PROMPT_TOK, REPLY_TOK - 1, REPLY_TOK - 1)
    return common.useful_flops(config, 0, PROMPT_TOK, 1) + replies * one_reply


# --- Both sides -------------------------------------------------------------------------------------------------------
def random_words(tokenizer: Tokenizer, count: int, length: int, seed: int) -> list[list[int]]:
    """Rows of ids, each a word with the space before it: decoded and encoded again they are the same ids."""
    spelled = {number: tokenizer.decode([number]) for number in range(tokenizer.vocab_size)}
    words = [
        number
        for number, text in spelled.items()
        if text[:1] == " " and text[1:].isalpha() and tokenizer.encode_text(text) == [number]
    ]
    drawn = torch.randint(len(words), (count, length), generator=torch.Generator().manual_seed(seed))
    return [[words[place] for place in row] for row in drawn.tolist()]


def make_update(
    model: Decoder, loss_fn: Callable[[Decoder, object], LossSum], config: StepConfig
) -> Callable[[object], None]:
    """What the training loop does with a micro-batch that is a whole step: gradient, clip, AdamW."""
    (optimizer,) = make_optimizers(model, LEARNING_RATE, weight_decay=0.0)
    distributed = DistributedModel(model, FAST, dtype=config.compute_dtype)

    def update(batch: object) -> None:
        accumulate(distributed, [batch], loss_fn)
        distributed.clip_gradients(CLIP_NORM)
        optimizer.step()
        model.zero_grad(set_to_none=True)

    return update


def trl_model(folder: str):
    """The same weights as transformers' model, and its tokenizer; both quiet."""
    os.environ["TQDM_DISABLE"] = "1"
    import datasets
    from transformers import AutoTokenizer

    warnings.simplefilter("ignore", FutureWarning)
    datasets.disable_progress_bars()
    model = common.load_transformers(folder, torch.float32)
    model.get_input_embeddings().padding_idx = None
    return model, AutoTokenizer.from_pretrained(folder)


def trl_settings(steps: int, config: StepConfig) -> dict:
    """What all TRL trainers here are told. They write nothing."""
    return dict(
        output_dir=f"{tempfile.gettempdir()}/trl",
        max_steps=steps,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        max_grad_norm=CLIP_NORM,
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        weight_decay=0.0,
        gradient_checkpointing=False,
        bf16=config.dtype == "bfloat16",
        fp16=False,
        use_cpu=config.device == "cpu",
        dataloader_pin_memory=False,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )


# --- Are they the same? -----------------------------------------------------------------------------------------------
def agreement(ours: torch.nn.Module, trl: torch.nn.Module, our_loss: float, trl_loss: float) -> dict[str, float]:
    """How far losses and gradients are apart, the gradient as one long vector; both models' gradients are cleared.

    Raises: AssertionError where the two do not compute the same.
    """
    apart = relative_difference(
        *({name: parameter.grad for name, parameter in model.named_parameters()} for model in (ours, trl))
    )
    assert abs(our_loss - trl_loss) <= LOSS_TOLERANCE, f"our loss is {our_loss}, TRL's {trl_loss}"
    assert apart <= GRADIENT_TOLERANCE, f"the gradients differ by {apart:.1e} of their length"
    for model in (ours, trl):
        model.zero_grad(set_to_none=True)
    return {"our_loss": our_loss, "trl_loss": trl_loss, "gradient_difference": apart}


def moves(model: torch.nn.Module, start: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() - start[name] for name, parameter in model.named_parameters()}


def relative_difference(ours: dict[str, torch.Tensor], trl: dict[str, torch.Tensor]) -> float:
    """Length of the difference of two sets of tensors, each taken as one vector, over the length of the second."""
    assert ours.keys() == trl.keys(), sorted(ours.keys() ^ trl.keys())
    apart = sum(float((ours[name] - wanted).double().square().sum()) for name, wanted in trl.items())
    return (apart / sum(float(wanted.double().square().sum()) for wanted in trl.values())) ** 0.5


# --- Memory -----------------------------------------------------------------------------------------------------------
def memory(stage: Stage, folder: str, config: StepConfig) -> dict[str, float]:
    """Peak of each side in MiB, in a fresh process."""
    arguments = ["--folder", folder, "--threads", config.threads, "--device", config.device]
    arguments += ["--dtype", config.dtype, "--size", config.size]
    return {
        side: common.in_fresh_process(stage.script, "--one", side, *arguments, threads=config.threads)["peak_mib"]
        for side in ("ours", "TRL")
    }


def peak_alone(stage: Stage, config: StepConfig) -> float:
    """Peak MiB of two steps of one side: the first makes AdamW's moments, the second has them from its start."""
    data, device = stage.make_data(Tokenizer(config.folder), 2, config), config.device
    if config.one == "ours":
        step = stage.make_step(common.load_fast(config.folder, device=device), data, config)
        base = common.forget_peak(device)
        for number in range(2):
            step(number)
    else:
        trainer = stage.make_trainer(config.folder, data, 2, config)
        base = common.forget_peak(device)
        train_by_turns(trainer, None, "", device)
    return (common.peak_bytes(device) - base) / 2**20
