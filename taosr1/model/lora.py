"""LoRA (Hu et al. 2021, 2106.09685) by hand: y = W x + (alpha / rank) B A x, W frozen, A and B trained.

An adapter is a low-rank change on top of frozen weights. Switched off (`adapters_off`) the model is the one that
training began with: DPO's and GRPO's reference policy without a second copy. Files: `io/adapters.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taosr1.model.decoder import Decoder

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class LoraConfig:
    """rank: rows of A, columns of B. alpha: their product is scaled by alpha / rank. targets: last names of layers.

    pattern: instead of targets, a regular expression of whole names ("model.layers.0.self_attn.q_proj"), as in PEFT.
    """

    rank: int
    alpha: float
    dropout: float = 0.0
    targets: tuple[str, ...] = TARGETS
    pattern: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", tuple(sorted(set(self.targets))))  # sorted, so that configs compare equal
        problems = []
        if type(self.rank) is not int or self.rank < 1:
            problems.append(f"rank is {self.rank!r}, expected an integer >= 1")
        if type(self.alpha) not in (int, float) or not 0 < self.alpha < math.inf:
            problems.append(f"alpha is {self.alpha!r}, expected a number > 0")
        if type(self.dropout) not in (int, float) or not 0 <= self.dropout < 1:
            problems.append(f"dropout is {self.dropout!r}, expected 0 or more and below 1")
        if not self.targets or set(self.targets) - set(TARGETS):
            problems.append(f"targets are {', '.join(self.targets) or 'none'}, expected some of {', '.join(TARGETS)}")
        try:
            re.compile(self.pattern)
        except re.error as error:
            problems.append(f"pattern {self.pattern!r} is no regular expression ({error})")
        if problems:
            raise ValueError("bad LoRA config: " + "; ".join(problems))


class LoraLinear(nn.Linear):
    """A linear layer with an adapter. It keeps the layer's `weight` and `bias`, so their names in files stay."""

    def __init__(self, base: nn.Linear, config: LoraConfig, generator: torch.Generator | None = None) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        device = base.weight.device
        # float32, whatever the type of the frozen weights
        self.lora_A = nn.Linear(self.in_features, config.rank, bias=False, device=device)
        self.lora_B = nn.Linear(config.rank, self.out_features, bias=False, device=device)
        bound = 1 / math.sqrt(self.in_features)  # as PEFT: A uniform, B zero, so an adapter starts as no change
        with torch.no_grad():
            self.lora_A.weight.copy_((torch.rand(config.rank, self.in_features, generator=generator) * 2 - 1) * bound)
            self.lora_B.weight.zero_()
        self.lora, self.scale, self.active = config, config.alpha / config.rank, True

    def forward(self, x: Tensor) -> Tensor:
        out = self.product(x, self.weight, self.bias)
        if not self.active:
            return out
        # Sampling and evaluation run without gradients, and without dropout.
        x = F.dropout(x, self.lora.dropout, training=self.training and torch.is_grad_enabled())
        down, up = self.lora_A.weight.to(x.dtype), self.lora_B.weight.to(x.dtype)
        return out + self.scale * self.product(self.product(x, down), up)

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """x W^T + b."""
        return F.linear(x, weight, bias)

    def merged(self) -> nn.Linear:
        """A linear layer of W + scale * B A, computed in float32 and rounded once; it reuses W, so drop this layer."""
        plain = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        plain.weight, plain.bias = self.weight, self.bias
        with torch.no_grad():
            change = self.scale * (self.lora_B.weight.float() @ self.lora_A.weight.float())
            plain.weight.copy_(self.weight.float() + change)
        return plain


def add_adapters(model: Decoder, config: LoraConfig, generator: torch.Generator | None = None) -> Decoder:
    """Freeze the model and put an adapter on every linear layer whose last name is a target; returns the model.

    Raises: ValueError if the model has adapters already, or a target names no linear layer (stacked experts do not).
    """
    if adapters(model):
        raise ValueError("the model has adapters already: merge them first (`merge_adapters`)")
    model.requires_grad_(False)
    places = {name: module for name, module in model.named_modules() if name and _takes_adapter(module)}
    last = {name: name.rpartition(".")[2] for name in places}
    if config.pattern:
        chosen = [name for name in places if re.fullmatch(config.pattern, name)]
        unknown = {} if chosen else {repr(config.pattern)}
    else:
        chosen = [name for name in places if last[name] in config.targets]
        unknown = set(config.targets) - set(last.values())
    if unknown:
        names = ", ".join(sorted(unknown))
        raise ValueError(f"LoRA targets {names} name no linear layer of this model (stacked experts take no adapter)")
    for name in chosen:
        parent = model.get_submodule(name.rpartition(".")[0])
        setattr(parent, last[name], LoraLinear(places[name], config, generator))
    return model


def _takes_adapter(module: nn.Module) -> bool:
    """Whether this is a linear layer of whole weights, plain or fast, and no part of an adapter."""
    return isinstance(module, nn.Linear) and not isinstance(module, LoraLinear)


def adapters(model: nn.Module) -> list[LoraLinear]:
    return [module for module in model.modules() if isinstance(module, LoraLinear)]


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """A context in which the adapters are off: the model is the frozen one below them, the reference policy."""
    found = adapters(model)
    for layer in found:
        layer.active = False
    try:
        yield
    finally:
        for layer in found:
            layer.active = True


def merge_adapters(model: Decoder) -> Decoder:
    """Add every adapter into its layer for good; returns the model, plain and trainable again."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, LoraLinear):
                setattr(module, name, child.merged())
    return model.requires_grad_(True)
