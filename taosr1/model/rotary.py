"""Rotary positions (RoPE, 2104.09864): how attention knows where a token stands."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from taosr1.model.decoder import DecoderConfig


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1's stretch of the context: slow rotations are slowed by `factor`, fast ones kept, a ramp between them."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def __post_init__(self) -> None:
        problems = []
        for name in ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 < value < math.inf:
                problems.append(f"rope_scaling {name} is {value!r}, expected a number > 0")
        if not problems and self.low_freq_factor >= self.high_freq_factor:
            problems.append(f"rope_scaling low_freq_factor {self.low_freq_factor} is not below high_freq_factor {self.high_freq_factor}")
        if problems:
            raise ValueError("; ".join(problems))

    def __call__(self, frequencies: Tensor) -> Tensor:
        """Shapes: (D/2,) radians per position -> (D/2,)."""
        wavelengths = 2 * math.pi / frequencies
        turns = self.original_max_position_embeddings / wavelengths  # within the original context
        keep = ((turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)).clamp(0, 1)
        return keep * frequencies + (1 - keep) * frequencies / self.factor


def rotary_tables(config: DecoderConfig, length: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines for positions 0..length-1, computed in float32.

    Returns:
        cos, sin: (length, 1, D); the first half of sin is negated, which turns "rotate half" into a roll.
    """
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=device) / config.head_dim  # (D/2,)
    frequencies = 1.0 / config.rope_theta**exponents
    if config.rope_scaling is not None:
        frequencies = config.rope_scaling(frequencies)
    positions = torch.arange(length, dtype=torch.float32, device=device)
    angles = positions[:, None] * frequencies  # (length, D/2)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), -1)[:, None].to(dtype), torch.cat((-sin, sin), -1)[:, None].to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn every pair of channels by its position's angle. Shapes: x (B, T, heads, D); cos, sin broadcast over heads."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)
