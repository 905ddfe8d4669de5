"""LoRA (Hu et al. 2021, arXiv 2106.09685): y = W x + (alpha / rank) B A x, with W frozen and A and B trained.

With its adapters switched off (`adapters_off`) the model is the one that training began with: the reference policy of
DPO and GRPO without a second copy of the weights. `model.io.adapters` reads and writes adapters.
"""

from __future__ import annotations

import math
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
    """Settings of all adapters of a model.

    rank: rows of A and columns of B. alpha: their product is scaled by alpha / rank. dropout: on the input of A.
    targets: last part of the names of the adapted layers; sorted, so that equal settings compare equal.
    Raises: ValueError listing every setting out of range.
    """

    rank: int
    alpha: float
    dropout: float = 0.0
    targets: tuple[str, ...] = TARGETS

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", tuple(sorted(set(self.targets))))
        problems = []
        if type(self.rank) is not int or self.rank < 1:
            problems.append(f"rank is {self.rank!r}, expected an integer >= 1")
        if type(self.alpha) not in (int, float) or not 0 < self.alpha < math.inf:
            problems.append(f"alpha is {self.alpha!r}, expected a number > 0")
        if type(self.dropout) not in (int, float) or not 0 <= self.dropout < 1:
            problems.append(f"dropout is {self.dropout!r}, expected 0 or more and below 1")
        if not self.targets or set(self.targets) - set(TARGETS):
            problems.append(f"targets are {', '.join(self.targets) or 'none'}, expected some of {', '.join(TARGETS)}")
        if problems:
            raise ValueError("bad LoRA config: " + "; ".join(problems))


class LoraLinear(nn.Linear):
    """A linear layer with an adapter; `weight` and `bias` are those of the layer it replaces and keep their names."""

    def __init__(self, base: nn.Linear, config: LoraConfig, generator: torch.Generator | None = None) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        # float32, whatever the dtype of the frozen weights.
        self.lora_A = nn.Linear(self.in_features, config.rank, bias=False, device=base.weight.device)
        self.lora_B = nn.Linear(config.rank, self.out_features, bias=False, device=base.weight.device)
        bound = 1 / math.sqrt(self.in_features)  # as in PEFT: A uniform, B zero, so that nothing changes at first
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
        """The plain layer with W + scale * B A, computed in float32 and rounded once.

        It takes over W and changes it, so this layer cannot be used afterwards.
        """
        plain = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        plain.weight, plain.bias = self.weight, self.bias
        with torch.no_grad():
            change = self.scale * (self.lora_B.weight.float() @ self.lora_A.weight.float())
            plain.weight.copy_(self.weight.float() + change)
        return plain


def add_adapters(model: Decoder, config: LoraConfig, generator: torch.Generator | None = None) -> Decoder:
    """Freeze the model and put an adapter on every linear layer that `config.targets` names; returns the model.

    Raises: ValueError where the model has adapters already, or a target is no linear layer (stacked experts are none).
    """
    if adapters(model):
        raise ValueError("the model has adapters already: merge them first (`merge_adapters`)")
    model.requires_grad_(False)
    children = [(parent, name, child) for parent in model.modules() for name, child in parent.named_children()]
    linear = [(parent, name, child) for parent, name, child in children if isinstance(child, nn.Linear)]
    unknown = set(config.targets) - {name for _, name, _ in linear}
    if unknown:
        names = ", ".join(sorted(unknown))
        raise ValueError(f"LoRA targets {names} name no linear layer of this model (stacked experts take no adapter)")
    for parent, name, child in linear:
        if name in config.targets:
            setattr(parent, name, LoraLinear(child, config, generator))
    return model


def adapters(model: nn.Module) -> list[LoraLinear]:
    """The layers with an adapter, in the order of the model's modules; [] where there are none."""
    return [module for module in model.modules() if isinstance(module, LoraLinear)]


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Inside, the model computes as without its adapters: the reference policy."""
    found = adapters(model)
    for layer in found:
        layer.active = False
    try:
        yield
    finally:
        for layer in found:
            layer.active = True


def merge_adapters(model: Decoder) -> Decoder:
    """Replace every adapted layer by a plain one with the adapter added to its weight; returns the model, trainable."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, LoraLinear):
                setattr(module, name, child.merged())
    return model.requires_grad_(True)
