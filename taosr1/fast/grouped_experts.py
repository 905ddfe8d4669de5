"""One grouped product for many experts; the plain twin is the loop in `taosr1.model.moe.Experts`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# What F.grouped_mm multiplies: on a GPU its fast kernel takes bfloat16 alone.
GROUPED_DTYPES = {"cpu": (torch.float32, torch.bfloat16, torch.float16), "cuda": (torch.bfloat16,)}


def grouped_linear(tokens: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Each expert's tokens times its matrix: expert e has the tokens ends[e - 1] to ends[e] - 1.

    One kernel reads every matrix once and needs no number on the host, where a loop launches E products and waits for
    their sizes.

    Shapes: tokens (N, in), weight (E, out, in), ends (E,) int32 ascending, the last one N -> (N, out).
    """
    if torch.is_autocast_enabled(tokens.device.type):  # grouped_mm is not on autocast's list
        dtype = torch.get_autocast_dtype(tokens.device.type)
        tokens, weight = tokens.to(dtype), weight.to(dtype)
    aligned = all(size * tokens.element_size() % 16 == 0 for size in weight.shape[1:])  # bytes, for the kernel
    if aligned and hasattr(F, "grouped_mm") and tokens.dtype in GROUPED_DTYPES.get(tokens.device.type, ()):
        return F.grouped_mm(tokens, weight.transpose(-2, -1), offs=ends)
    return looped_linear(tokens, weight, ends)


def looped_linear(tokens: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """`grouped_linear` as a loop over experts, for float64, odd sizes and torch before 2.10."""
    sizes = ends.diff(prepend=ends.new_zeros(1)).tolist()
    return torch.cat([F.linear(part, matrix) for part, matrix in zip(tokens.split(sizes), weight)])
