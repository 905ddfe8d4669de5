"""Rotary position embedding (RoPE, 2104.09864): queries and keys are rotated by angles that grow with position."""

from __future__ import annotations

import torch
from torch import Tensor

from taosr1.model.config import DecoderConfig


def rotary_cos_sin(config: DecoderConfig, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every position's angles, computed in float32.

    Channel c of the first half of a head is paired with channel c + D/2 of the second; both have the same angle.

    Shapes: positions (...,) int64 -> cos, sin (..., 1, D) in `dtype`; the dimension of size 1 broadcasts over heads.
        The first half of sin is negated, so that `rotate` needs no negation of its own.
    """
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=positions.device) / config.head_dim
    frequencies = 1.0 / config.rope_theta**exponents  # (D/2,) radians per position
    if config.rope_scaling is not None:
        frequencies = config.rope_scaling(frequencies)
    angles = positions[..., None, None].float() * frequencies  # (..., 1, D/2)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), -1).to(dtype), torch.cat((-sin, sin), -1).to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate every pair of channels by its position's angle. Shapes: x (B, T, heads, D); cos, sin (B or 1, T, 1, D)."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)
