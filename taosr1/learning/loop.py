"""The one training loop. It knows no stage: a stage is a pair (`step_batches`, `loss_fn`).

`step_batches(step, cursor)` returns the micro-batches of one optimizer step. It may depend on configuration, data, the
current weights and `cursor`, a small JSON-able dict of its own that is saved with every checkpoint: so a resumed run
needs no replay and equals the unbroken one. `loss_fn(model, batch)` returns a `LossSum`. Gradients of sums are added
over micro-batches and divided once by the step's total count: 1 x 8 rows and 4 x 2 rows are the same step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from taosr1.config import progress
from taosr1.learning.checkpoint import load_checkpoint, prune, save_checkpoint
from taosr1.learning.losses import LossSum
from taosr1.learning.run import Run
from taosr1.model.decoder import Decoder
from taosr1.model.files import write_json
from taosr1.model.folders import BEST_FILE, read_best
from taosr1.model.tokenizer import Tokenizer
from taosr1.task.prompt import PromptConfig

MAX_SKIPPED_IN_A_ROW = 5


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
) -> dict[str, float]:
    """Train until `schedule.steps`; checkpoints before evaluating, so no evaluation can lose a finished step.

    evaluate: called with the number of finished steps; its `score` entry decides which checkpoint `best.json` names.
    step_metrics: what a stage wants logged beside the loss (rewards, kept fraction, ...), read once per step.
    Returns: the last evaluation ({} without `evaluate`).
    Raises: FloatingPointError after MAX_SKIPPED_IN_A_ROW steps whose loss or gradient was not finite.
    """
    step, cursor, skipped, last = 0, {}, 0, {}
    if run.start:
        step, cursor = load_checkpoint(run.start[1], model, optimizers)
        print(f"{description}: continuing from step {step} ({run.start[1]})")
        if schedule.evaluates(step) and evaluate and read_best(run.checkpoints).get("evaluated_through", 0) < step:
            last = _evaluate(run, step, evaluate, score)
            prune(run.checkpoints, schedule.keep_last)
    bar = progress(total=schedule.steps, initial=step, desc=description, unit="step")
    while step < schedule.steps:
        started = time.perf_counter()
        torch.manual_seed(step)  # what draws from the global generators (dropout) repeats itself in a resumed run, on any device
        model.train()
        factor = schedule.lr_factor(step)
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = factor * group["peak_lr"]
        batches = step_batches(step, cursor)
        metrics = accumulate(model, batches, loss_fn, compute_dtype)
        grad_norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), schedule.clip_norm))
        if math.isfinite(metrics["loss"]) and math.isfinite(grad_norm):
            for optimizer in optimizers:
                optimizer.step()
            skipped = 0
        else:
            skipped += 1
            if skipped >= MAX_SKIPPED_IN_A_ROW:
                raise FloatingPointError(f"step {step}: loss {metrics['loss']}, gradient norm {grad_norm}, {skipped} in a row; lower --lr")
        model.zero_grad(set_to_none=True)
        step += 1
        metrics |= step_metrics() if step_metrics else {}
        if torch.cuda.is_available():
            metrics["peak_mib"] = round(torch.cuda.max_memory_allocated() / 2**20)
        run.log(step, **metrics, grad_norm=grad_norm, lr_factor=factor, skipped=skipped, time_s=round(time.perf_counter() - started, 4))
        bar.update()
        bar.set_postfix({name: f"{value:.3f}" for name, value in {**metrics, **last}.items() if name in BAR_METRICS}, refresh=False)
        if schedule.saves(step):
            save_checkpoint(run.checkpoints, step, model, tokenizer, prompt, optimizers, cursor)
            if schedule.evaluates(step) and evaluate:
                last = _evaluate(run, step, evaluate, score)
            prune(run.checkpoints, schedule.keep_last)
    bar.close()
    return last


BAR_METRICS = ("loss", "reward_balanced", "kept_frac", "kl", "rewards/accuracies", "dev_macro_f1")


def compute_in(model: torch.nn.Module, dtype: torch.dtype):
    """Autocast to `dtype` on the model's device; float32 is left alone. References are measured in what training computes in."""
    device = next(model.parameters()).device.type
    return torch.autocast(device, dtype) if dtype != torch.float32 else nullcontext()


def accumulate(
    model: Decoder, batches: Sequence[object], loss_fn: Callable[[Decoder, object], LossSum], compute_dtype: torch.dtype = torch.float32
) -> dict[str, float]:
    """Forward and backward over a step's micro-batches; leaves the gradient of sum / count in `.grad`.

    Returns: the whole step's loss and metrics, each a mean over what the losses count. No batches, or nothing that
    counts, is a step without gradient: loss 0.
    """
    total, count, sums = 0.0, 0.0, {}
    for batch in batches:
        with compute_in(model, compute_dtype):
            loss = loss_fn(model, batch)
        loss.sum.backward()
        total, count = total + float(loss.sum.detach()), count + loss.count
        for name, value in loss.metrics.items():
            sums[name] = sums.get(name, 0.0) + value * loss.count
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad /= max(count, 1e-9)
    return {"loss": total / max(count, 1e-9)} | {name: value / max(count, 1e-9) for name, value in sums.items()}


def _evaluate(run: Run, step: int, evaluate: Callable[[int], dict[str, float]], score: str) -> dict[str, float]:
    """Evaluate, log, and point best.json at this step where it is the best so far."""
    results = evaluate(step)
    run.log(step, **results)
    best = read_best(run.checkpoints)
    if not best or results[score] > best[score]:
        best = {"step": step, score: results[score]}
    write_json(run.checkpoints / BEST_FILE, best | {"evaluated_through": step})
    return results
