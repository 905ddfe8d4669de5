"""The one training loop. It knows no stage: a stage is a pair (`step_batches`, `loss_fn`).

`step_batches(step, cursor)` returns the micro-batches of one optimizer step. It may depend on configuration, data, the
current weights and `cursor`, a small JSON-able dict of its own that is saved with every checkpoint: so a resumed run
needs no replay and equals the unbroken one. `loss_fn(model, batch)` returns a `LossSum`. Gradients of sums are added
over micro-batches and divided once by the step's total count: 1 x 8 rows and 4 x 2 rows are the same step, and so are two ranks with
4 rows each (`parallel.py`).

What may go wrong in a step does not end the run: a loss, gradient or reward that is not finite skips the step, a micro-batch that
does not fit into memory is halved. SIGTERM and Ctrl-C let the step end and save it.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from taosr1.learning.batches import halved
from taosr1.learning.checkpoint_weights import read_weights, write_weights
from taosr1.learning.distributed_model import DistributedModel
from taosr1.learning.losses import LossSum
from taosr1.model.decoder import Decoder
from taosr1.model.tokenizer import Tokenizer
from taosr1.runtime.checkpoint import BEST_FILE, load_checkpoint, prune, read_best, save_checkpoint
from taosr1.runtime.cli import progress
from taosr1.runtime.distributed import gather, on_rank_zero, this_rank
from taosr1.runtime.files import write_checksummed, write_json
from taosr1.runtime.run_folder import Run
from taosr1.runtime.signals import Stopped, StopRequests
from taosr1.task.prompt import PromptConfig


@dataclass(frozen=True)
class Schedule:
    """How a run is driven. Learning rates: linear warm-up, then cosine to `final_lr_frac` (1.0: constant) of their peak."""

    steps: int
    warmup_frac: float = 0.05
    final_lr_frac: float = 0.1
    clip_norm: float = 1.0
    eval_every: int = 0  # 0: only at the end
    save_every: int = 0  # 0: whenever it is evaluated, and at the end
    keep_last: int = 2
    max_skipped: int = 5  # steps in a row that may be skipped because a number was not finite
    boundary: int = 1  # checkpoints lie at multiples of this many steps

    def lr_factor(self, step: int) -> float:
        """Learning rate of optimizer step `step`, counted from 0, as a fraction of its peak."""
        warmup = max(1, round(self.warmup_frac * self.steps))
        if step < warmup:
            return (step + 1) / warmup
        progress = (step - warmup) / max(1, self.steps - warmup)
        return self.final_lr_frac + (1 - self.final_lr_frac) * 0.5 * (1 + math.cos(math.pi * progress))

    def evaluates(self, done: int) -> bool:
        return done == self.steps or bool(self.eval_every) and done % self.eval_every == 0

    def saves(self, done: int) -> bool:
        return self.evaluates(done) or bool(self.save_every) and done % self.save_every == 0


def make_optimizers(
    model: torch.nn.Module, lr: float, *, weight_decay: float = 0.01, muon_lr: float = 0.0
) -> list[torch.optim.Optimizer]:
    """AdamW (0.9, 0.99) for everything or, where `muon_lr` > 0, Muon for the matrices of the blocks and AdamW for the rest.

    Weight decay applies to the matrices of the blocks only, never to norms, biases, embeddings and the head.
    Choice: Muon (Jordan et al. 2024) where a tiny model learns from scratch: it fits the same few thousand pairs in fewer
    steps and judges unseen ones better. A pre-trained model is fine-tuned with AdamW.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    # Stacked experts (3 dimensions) are matrices too, but not to Muon.
    is_matrix = {name: ".layers." in name and (p.ndim == 2 or p.ndim == 3 and not muon_lr) for name, p in trained.items()}
    matrices = [p for name, p in trained.items() if is_matrix[name]]
    others = [p for name, p in trained.items() if not is_matrix[name]]
    groups = [{"params": others, "weight_decay": 0.0, "peak_lr": lr}]
    if not muon_lr:
        groups.append({"params": matrices, "weight_decay": weight_decay, "peak_lr": lr})
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW([group for group in groups if group["params"]], lr=lr, betas=(0.9, 0.99))]
    if muon_lr:
        group = {"params": matrices, "peak_lr": muon_lr}
        optimizers.append(torch.optim.Muon([group], lr=muon_lr, weight_decay=weight_decay))
    return optimizers


def train(
    model: Decoder,
    tokenizer: Tokenizer,
    prompt: PromptConfig,
    run: Run,
    *,
    schedule: Schedule,
    optimizers: Sequence[torch.optim.Optimizer],
    step_batches: Callable[[int, dict], Sequence[object]],
    loss_fn: Callable[[Decoder, object], LossSum],
    evaluate: Callable[[int], dict[str, float]] | None = None,
    score: str = "dev_macro_f1",
    step_metrics: Callable[[], dict[str, float]] | None = None,
    compute_dtype: torch.dtype = torch.float32,
    description: str = "train",
    team: DistributedModel | None = None,
) -> dict[str, float]:
    """Train until `schedule.steps`; checkpoints before evaluating, so no evaluation can lose a finished step.

    step_batches: of several ranks each returns its own share; it may raise FloatingPointError (a reward that is not finite), on all.
    evaluate: called with the number of finished steps; its `score` entry decides which checkpoint `best.json` names.
    step_metrics: what a stage wants logged beside the loss (rewards, kept fraction, ...), read once per step.
    team: the ranks around `model`; None where it trains alone.
    Returns: the last evaluation ({} without `evaluate`).
    Raises: FloatingPointError after `schedule.max_skipped` steps in a row whose loss, gradient or reward was not finite; Stopped where
        SIGTERM or Ctrl-C came, after the step was saved.
    """
    team = team or DistributedModel(model)
    step, cursor, skipped, last = 0, {}, 0, {}
    save = partial(_save, run, optimizers, partial(write_weights, model, tokenizer, prompt))
    with closing(run), StopRequests() as asked:
        if run.start:
            step, cursor, skipped = load_checkpoint(run.start[1], optimizers, read_weights=partial(read_weights, model))
            print(f"{description}: continuing from step {step} ({run.start[1]})")
            own = run.start[1].resolve().parent == run.checkpoints.resolve()  # another run's checkpoint is not this one's best
            if own and schedule.evaluates(step) and evaluate and read_best(run.checkpoints).get("evaluated_through", 0) < step:
                last = _evaluate(run, step, evaluate, score)
            on_rank_zero(lambda: prune(run.checkpoints, schedule.keep_last))
        bar = progress(total=schedule.steps, initial=step, desc=description, unit="step", disable=not team.ranks.is_rank_zero)
        while step < schedule.steps:
            started = time.perf_counter()
            # What draws from the global generators (dropout) repeats itself in a resumed run, on any device.
            torch.manual_seed(step * team.ranks.world + team.ranks.rank)
            model.train()
            factor = schedule.lr_factor(step)
            for group in (group for optimizer in optimizers for group in optimizer.param_groups):
                group["lr"] = factor * group["peak_lr"]
            tried = _attempt(model, partial(step_batches, step, cursor), loss_fn, compute_dtype, team, schedule.clip_norm)
            if tried.trouble:
                skipped += 1
                if skipped >= schedule.max_skipped:
                    where = dump_batch(run.folder, step, tried, tokenizer)
                    raise FloatingPointError(f"step {step}: {tried.trouble}, {skipped} in a row; its batch is in {where}; lower --lr, or look at that batch")
            else:
                for optimizer in optimizers:
                    optimizer.step()
                skipped = 0
            model.zero_grad(set_to_none=True)
            step += 1
            metrics = tried.metrics | (step_metrics() if step_metrics else {})
            if torch.cuda.is_available():
                metrics["peak_mib"] = round(torch.cuda.max_memory_allocated() / 2**20)
            run.log(step, **metrics, grad_norm=tried.grad_norm, lr_factor=factor, skipped=skipped, time_s=round(time.perf_counter() - started, 4))
            bar.update()
            bar.set_postfix({name: f"{value:.3f}" for name, value in {**metrics, **last}.items() if name in BAR_METRICS}, refresh=False)
            stop = step % schedule.boundary == 0 and max(gather(asked.signum))  # for all ranks, at the same step
            if schedule.saves(step) or stop:
                save(step, cursor, skipped)
                if schedule.evaluates(step) and evaluate and not stop:
                    last = _evaluate(run, step, evaluate, score)
                    stop = max(gather(asked.signum))
                on_rank_zero(lambda: prune(run.checkpoints, schedule.keep_last))
            if stop:
                raise Stopped(stop, f"{description}: stopped after step {step} of {schedule.steps}, which is saved; the same command continues")
        bar.close()
        stop = max(gather(asked.signum))  # one that came too late for a step
    if stop:
        raise Stopped(stop, f"{description}: stopped after its last step, {step}, which is saved")
    return last


class _Attempt(NamedTuple):
    """What came of a step before the optimizer: `trouble` says why it must not move, "" where it may."""

    metrics: dict[str, float]
    grad_norm: float
    trouble: str
    batches: Sequence[object]
    records: Sequence[dict] = ()  # the groups whose rewards are no numbers, where that is the trouble


def _attempt(model: Decoder, make_batches: Callable[[], Sequence[object]], loss_fn, compute_dtype: torch.dtype, team: DistributedModel, clip_norm: float) -> _Attempt:
    """One step's micro-batches and their gradient, clipped."""
    try:
        batches = make_batches()
    except FloatingPointError as error:
        return _Attempt({"loss": math.nan}, math.nan, str(error), [], getattr(error, "records", ()))
    metrics = accumulate(model, batches, loss_fn, compute_dtype, team)
    grad_norm = team.clip_gradients(clip_norm)
    finite = math.isfinite(metrics["loss"]) and math.isfinite(grad_norm)
    return _Attempt(metrics, grad_norm, "" if finite else f"loss {metrics['loss']}, gradient norm {grad_norm}", batches)


def _save(run: Run, optimizers, write: Callable[[Path], None], step: int, cursor: dict, skipped: int) -> None:
    run.sync()
    save_checkpoint(run.checkpoints, step, optimizers, cursor, skipped, write_weights=write)


BAR_METRICS = ("loss", "reward_balanced", "kept_frac", "kl", "rewards/accuracies", "dev_macro_f1")


def compute_in(model: torch.nn.Module, dtype: torch.dtype):
    """Autocast to `dtype` on the model's device; float32 is left alone. References are measured in what training computes in."""
    device = next(model.parameters()).device.type
    return torch.autocast(device, dtype) if dtype != torch.float32 else nullcontext()


def accumulate(
    model: Decoder,
    batches: Sequence[object],
    loss_fn: Callable[[Decoder, object], LossSum],
    compute_dtype: torch.dtype = torch.float32,
    team: DistributedModel | None = None,
) -> dict[str, float]:
    """Forward and backward over a step's micro-batches, those of all ranks; leaves the gradient of sum / count in `.grad`.

    Returns: the whole step's loss and metrics, each a mean over what the losses count. No batches, or nothing that
    counts, is a step without gradient: loss 0.
    """
    team, too_large = team or DistributedModel(model), None
    try:
        parts = _add_up(model, batches, loss_fn, compute_dtype, team)
    except _TooLargeError as error:
        too_large = error.number
    if too_large is not None:  # out here, where the failed pass and its activations are gone
        print("out of memory in a micro-batch: the step is repeated once, with it halved; a smaller --micro-batch-tok avoids this", file=sys.stderr)
        model.zero_grad(set_to_none=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        parts = _add_up(model, [*batches[:too_large], *halved(batches[too_large]), *batches[too_large + 1 :]], loss_fn, compute_dtype, team)
    team.sum_gradients()
    sums = dict.fromkeys(("loss", "count", "passes"), 0.0)
    for of_rank in gather(parts):
        for name, value in of_rank.items():
            sums[name] = sums.get(name, 0.0) + value
    count = max(sums.pop("count"), 1e-9)
    if not sums.pop("passes"):
        model.zero_grad(set_to_none=True)  # no gradient, not one of zeros, which would still move what has momentum
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad /= count
    return {name: value / count for name, value in sums.items()}


class _TooLargeError(MemoryError):
    """Micro-batch `number` of a step does not fit into memory."""

    def __init__(self, number: int) -> None:
        super().__init__(f"out of memory in micro-batch {number}; try a smaller --micro-batch-tok, --activation-checkpointing or --lora-rank")
        self.number = number


def _add_up(model: Decoder, batches: Sequence[object], loss_fn, compute_dtype: torch.dtype, team: DistributedModel) -> dict[str, float]:
    """This rank's micro-batches, one after another: gradients add up in `.grad`. Returns sums of loss, count and metrics."""
    sums = {"loss": 0.0, "count": 0.0, "passes": 0.0}
    for number, batch in enumerate(batches):
        try:
            if batch is None:  # another rank has more to do
                team.idle().backward()
                continue
            with compute_in(model, compute_dtype):
                loss = team.run(loss_fn, batch)
            loss.sum.backward()
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error) and not team.sharded:  # in shards every pass is everybody's: one rank cannot repeat its own
                raise _TooLargeError(number) from None
            raise
        for name, value in (("loss", float(loss.sum.detach())), ("count", loss.count), ("passes", 1.0)):
            sums[name] += value
        for name, value in loss.metrics.items():
            sums[name] = sums.get(name, 0.0) + value * loss.count
    return sums


def is_out_of_memory(error: BaseException) -> bool:
    """A GPU's, or a CPU's, whose allocator has no exception of its own."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def dump_batch(folder: Path, step: int, tried: _Attempt, tokenizer: Tokenizer) -> Path:
    """Write what a step was about to learn as one JSON file a rank, for a person to look at: every tensor, and the rows as text."""
    shown = []
    for batch in (batch for batch in tried.batches if batch is not None):
        values = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
        tensors = {name: value.tolist() if torch.is_tensor(value) else value for name, value in values.items()}
        shown.append({"texts": [tokenizer.decode(row) for row in tensors.get("ids", [])], **tensors})
    path = folder / f"bad-step-{step:06d}-rank-{this_rank().rank}.json"
    write_json(path, {"step": step, "trouble": tried.trouble, "micro_batches": shown, "records": list(tried.records)})
    return path


def _evaluate(run: Run, step: int, evaluate: Callable[[int], dict[str, float]], score: str) -> dict[str, float]:
    """Evaluate, log, and point best.json at this step where it is the best so far."""
    results = evaluate(step)

    def remember() -> None:
        run.log(step, **results)
        run.sync()
        best = read_best(run.checkpoints)
        if not best or results[score] > best[score]:
            best = {"step": step, score: results[score]}
        write_checksummed(run.checkpoints / BEST_FILE, best | {"evaluated_through": step})

    on_rank_zero(remember)
    return results
