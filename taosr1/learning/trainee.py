"""The judge that a stage trains (all of its weights, or adapters over frozen ones), and the identity of its run."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from taosr1.judge_model import TINY, JudgeModel, load_judge
from taosr1.model.io.folders import weights_fingerprint
from taosr1.model.lora import TARGETS, LoraConfig, add_adapters
from taosr1.runtime.cli import flag_of, option
from taosr1.runtime.distributed import this_rank
from taosr1.runtime.run_folder import is_unfinished
from taosr1.task.grades import LABELS
from taosr1.task.prompt_flags import AskFlags


@dataclass(frozen=True)
class MemoryFlags:
    """Flags that the training scripts' configs inherit; examples/guide/memory.md says what each is worth."""

    lora_rank: int = option(
        0, "train LoRA adapters of this rank over frozen weights, which are then held in --dtype (0: train all weights)"
    )
    lora_alpha: float = option(32.0, "adapters are scaled by this over their rank")
    lora_targets: str = option(",".join(TARGETS), "layers that get an adapter, by the last part of their names")
    activation_checkpointing: bool = option(
        False,
        "keep only the input of every layer and compute the rest again in the backward pass: less memory for one more "
        "forward pass",
    )
    fsdp: bool = option(
        False,
        "under torchrun: cut weights, gradients and optimizer into shards, one a rank (FSDP2), for a model that does "
        "not fit on one",
    )


def memory_problems(flags: MemoryFlags, dropout: float = 0.0) -> list[tuple[bool, str]]:
    """Problems for `taosr1.runtime.cli.check`."""
    if flags.fsdp and flags.lora_rank:
        return [(True, "--fsdp shards what is trained, and adapters are small: with --lora-rank leave it out")]
    if not flags.lora_rank:
        own = ("lora_alpha", "lora_targets")
        changed = [name for name in own if getattr(flags, name) != getattr(MemoryFlags, name)]
        names = ", ".join(map(flag_of, changed + ["lora_dropout"] * bool(dropout)))
        return [(bool(names), f"{names} changes adapters, which need --lora-rank: without it all weights are trained")]
    try:
        lora_config(flags, dropout)
    except ValueError as error:
        return [(True, f"--lora-rank {flags.lora_rank}, or another setting of its adapters: {error}")]
    return []


def lora_config(flags: MemoryFlags, dropout: float = 0.0) -> LoraConfig:
    targets = tuple(name.strip() for name in flags.lora_targets.split(",") if name.strip())
    return LoraConfig(flags.lora_rank, flags.lora_alpha, dropout, targets)


def default_or_bundled(model: str, default: str, bundled: str) -> str:
    """`--model`, or a bundled judge where it is the script's default run, which is missing or unfinished; prints which.

    A training run stores what this returns: continued later, it has to start from the same weights.
    """
    if model != default or Path(default).exists() and not is_unfinished(default):
        return model
    print(f"{default} does not exist or is not finished yet: --model {bundled} stands in for it")
    return bundled


def load_trainee(
    model: str, flags: MemoryFlags, *, dtype: str, order: str | None = None, device: str = "cpu", seed: int = 0,
    dropout: float = 0.0, plain: bool = False,
) -> JudgeModel:  # fmt: skip
    """The judge to be trained. All of it in float32, or only its adapters and the frozen rest in `dtype`.

    flags: the config of a training script, with its `max_new_tokens` and its `PromptFlags` (`load_judge`).

    Raises: ValueError as `load_judge`, and for adapters over fresh weights, which no file holds.
    """
    # Every rank reads its shards by itself, later: no rank has room for all weights. Fresh weights are in no file.
    device = "meta" if flags.fsdp and model != TINY else device
    dtype = dtype if flags.lora_rank else "float32"
    longest = {"max_new_tokens": getattr(flags, "max_new_tokens", 0)}
    asked = flags if isinstance(flags, AskFlags) else None
    judge = load_judge(model, order=order, dtype=dtype, device=device, seed=seed, plain=plain, asked=asked, **longest)
    judge.model.activation_checkpointing = flags.activation_checkpointing
    if not flags.lora_rank:
        return judge
    if not judge.model.source:
        raise ValueError(
            f"--lora-rank: --model {model} is fresh weights, which no adapter can be saved for; give a trained model"
        )
    try:
        add_adapters(judge.model, lora_config(flags, dropout), torch.Generator().manual_seed(seed))
    except ValueError as error:
        raise ValueError(f"--lora-targets: {error}") from error
    judge.engine.prepare(judge.model)  # the adapters too
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in judge.model.parameters()]
    trained, total = sum(size for size, is_trained in sizes if is_trained), sum(size for size, _ in sizes)
    share = f"{trained:,} of {total:,} weights are trained ({trained / total:.2%})"
    print(f"LoRA: {share}; the rest is frozen in {dtype}")
    return judge


def identity(judge: JudgeModel, **rows: Sequence) -> dict[str, str]:
    """What decides a run's numbers beside its settings, as short texts that a resume compares.

    These are starting weights, tokenizer, label tokens, wording of the prompt, number of ranks, and the data by name.
    """
    return {
        "start": weights_fingerprint(judge.model.source),
        "tokenizer": f"sha256 {judge.tokenizer.fingerprint()}",
        "label_map": ", ".join(f"{label}: {token}" for label, token in zip(LABELS, judge.tokenizer.label_ids)),
        "prompt_wording": f"sha256 {judge.prompt.wording_sha256}",
        "world_size": str(this_rank().world),
        **{name: f"{len(found)} rows, sha256 {_digest(found)}" for name, found in rows.items()},
    }


def _digest(rows: Sequence) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(repr(row).encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()[:16]
