"""One product for many experts: each run of rows meets its own matrix."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# What F.grouped_mm multiplies: on a GPU its fast kernel takes bfloat16 alone.
GROUPED_DTYPES = {"cpu": (torch.float32, torch.bfloat16, torch.float16), "cuda": (torch.bfloat16,)}


def grouped_linear(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Rows ends[e-1]..ends[e] times the matrix of expert e: `grouped_linear_plain` without its loop.

    One kernel reads every matrix once and needs no number on the host, where the loop launches E products and waits for
    their sizes.

    Shapes: rows (R, in), weight (E, out, in), ends (E,) int32 ascending, the last one R -> (R, out).
    """
    if torch.is_autocast_enabled(rows.device.type):  # grouped_mm is not on autocast's list
        dtype = torch.get_autocast_dtype(rows.device.type)
        rows, weight = rows.to(dtype), weight.to(dtype)
    aligned = all(size * rows.element_size() % 16 == 0 for size in weight.shape[1:])  # bytes, which the kernel asks for
    if not (aligned and hasattr(F, "grouped_mm") and rows.dtype in GROUPED_DTYPES.get(rows.device.type, ())):
        return grouped_linear_plain(rows, weight, ends)
    return F.grouped_mm(rows, weight.transpose(-2, -1), offs=ends)


def grouped_linear_plain(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """The same as a loop over experts, for float64, odd sizes and torch before 2.10."""
    sizes = ends.diff(prepend=ends.new_zeros(1)).tolist()
    return torch.cat([F.linear(part, matrix) for part, matrix in zip(rows.split(sizes), weight)])
