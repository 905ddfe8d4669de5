"""What every stage offers for a model that barely fits: adapters over frozen weights, and recomputed activations."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from taosr1.judge import TINY, Judge, load_judge
from taosr1.model.lora import TARGETS, LoraConfig, add_adapters
from taosr1.runtime.cli import option


@dataclass(frozen=True)
class MemoryFlags:
    """Flags that the training scripts' configs inherit; examples/guide/memory.md says what each is worth."""

    lora_rank: int = option(0, "train LoRA adapters of this rank over frozen weights, which are then held in --dtype (0: train all weights)")
    lora_alpha: float = option(32.0, "adapters are scaled by this over their rank")
    lora_targets: str = option(",".join(TARGETS), "layers that get an adapter, by the last part of their names")
    activation_checkpointing: bool = option(False, "keep only the input of every layer and compute the rest again in the backward pass: less memory for one more forward pass")
    fsdp: bool = option(False, "under torchrun: cut weights, gradients and optimizer into shards, one a rank (FSDP2), for a model that does not fit on one")


def memory_problems(flags: MemoryFlags, dropout: float = 0.0) -> list[tuple[bool, str]]:
    """Problems for `taosr1.runtime.cli.check`."""
    if flags.fsdp and flags.lora_rank:
        return [(True, "--fsdp shards what is trained, and adapters are small: with --lora-rank leave it out")]
    if not flags.lora_rank:
        idle = dropout or any(getattr(flags, name) != getattr(MemoryFlags, name) for name in ("lora_alpha", "lora_targets"))
        return [(bool(idle), "--lora-alpha, --lora-targets and --lora-dropout need --lora-rank: without it all weights are trained")]
    try:
        lora_config(flags, dropout)
    except ValueError as error:
        return [(True, f"--lora-rank, --lora-alpha, --lora-dropout, --lora-targets: {error}")]
    return []


def lora_config(flags: MemoryFlags, dropout: float = 0.0) -> LoraConfig:
    targets = tuple(name.strip() for name in flags.lora_targets.split(",") if name.strip())
    return LoraConfig(flags.lora_rank, flags.lora_alpha, dropout, targets)


def load_trainee(
    model: str, flags: MemoryFlags, *, dtype: str, order: str | None = None, device: str = "cpu", seed: int = 0, dropout: float = 0.0,
    plain: bool = False,
) -> Judge:
    """The judge to be trained. All of it in float32, or only its adapters and the frozen rest in `dtype`.

    Raises: ValueError as `load_judge`, and where adapters would stand on fresh weights, which no file holds.
    """
    # What is sharded is read by each rank for itself, later: no rank has room for all of it. Fresh weights are in no file.
    device = "meta" if flags.fsdp and model != TINY else device
    judge = load_judge(model, order=order, dtype=dtype if flags.lora_rank else "float32", device=device, seed=seed, plain=plain)
    judge.model.activation_checkpointing = flags.activation_checkpointing
    if flags.lora_rank:
        if not judge.model.source:
            raise ValueError(f"--lora-rank: --model {model} is fresh weights, which no adapter can stand on; give a trained model")
        try:
            add_adapters(judge.model, lora_config(flags, dropout), torch.Generator().manual_seed(seed))
        except ValueError as error:
            raise ValueError(f"--lora-targets: {error}") from error
        trained = sum(parameter.numel() for parameter in judge.model.parameters() if parameter.requires_grad)
        total = sum(parameter.numel() for parameter in judge.model.parameters())
        print(f"LoRA: {trained:,} of {total:,} weights are trained ({trained / total:.2%}); the rest is frozen in {dtype}")
    judge.engine.prepare(judge.model)  # the adapters too
    return judge


