"""The optimizers of a run and its schedule: learning rates, evaluations and checkpoints by step."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch


@dataclass(frozen=True)
class Schedule:
    """How a run proceeds. Learning rates rise linearly, then fall as a cosine to `final_lr_frac` of their peak."""

    steps: int
    warmup_frac: float = 0.05
    final_lr_frac: float = 0.1
    clip_norm: float = 1.0
    eval_every: int = 0  # 0: only at the end
    save_every: int = 0  # 0: whenever it is evaluated, and at the end
    save_minutes: float = 0.0  # of work between two checkpoints, at most; 0: no limit by time
    keep_last: int = 2
    max_skipped: int = 5  # steps in a row that may be skipped because a number was not finite
    micro_batch_tok: int = 2**20  # tokens of a forward pass; changes no result
    updates: int = 1  # steps on the same items; checkpoints are at multiples of it

    @staticmethod
    def of(config: object) -> Schedule:
        """The schedule of a script's config: its settings of the same names."""
        return Schedule(**{f.name: getattr(config, f.name) for f in fields(Schedule) if hasattr(config, f.name)})

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
    """AdamW (0.9, 0.99) or, where `muon_lr` > 0, Muon for the matrices of the blocks and AdamW for the rest.

    Weight decay applies to the matrices of the blocks only, never to norms, biases, embeddings and the head.
    Choice: Muon (Jordan et al. 2024) where a tiny model learns from scratch: it fits the same few thousand pairs in
        fewer steps and judges unseen ones better. A pre-trained model is fine-tuned with AdamW.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    # Stacked experts (3 dimensions) are matrices too, but Muon does not take them.
    dims = (2,) if muon_lr else (2, 3)
    is_matrix = {name: ".layers." in name and p.ndim in dims for name, p in trained.items()}
    matrices = [p for name, p in trained.items() if is_matrix[name]]
    others = [p for name, p in trained.items() if not is_matrix[name]]
    groups = [{"params": others, "weight_decay": 0.0, "peak_lr": lr}]
    if not muon_lr:
        groups.append({"params": matrices, "weight_decay": weight_decay, "peak_lr": lr})
    adamw = torch.optim.AdamW([group for group in groups if group["params"]], lr=lr, betas=(0.9, 0.99))
    if not muon_lr:
        return [adamw]
    group = {"params": matrices, "peak_lr": muon_lr}
    return [adamw, torch.optim.Muon([group], lr=muon_lr, weight_decay=weight_decay)]


def set_learning_rates(optimizers: list[torch.optim.Optimizer], factor: float) -> None:
    """Every group's learning rate becomes `factor` times its peak."""
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["lr"] = factor * group["peak_lr"]
