"""Root-mean-square normalisation (1910.07467)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension, computed in float32 for half types."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        # Under autocast a bfloat16 x comes with a float32 weight: the result takes the weight's type.
        return F.rms_norm(x.to(self.weight.dtype), self.weight.shape, self.weight, self.eps)
