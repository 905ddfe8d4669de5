"""Whether our own GPU kernels (`kernels.py`) can be used. They want Triton, which comes with PyTorch for GPUs on Linux, so nobody imports them before asking here."""

from __future__ import annotations

import importlib.util
import warnings
from functools import cache

import torch
from torch import Tensor

from taosr1.fast.onednn_linear import is_plain


def can_use_triton(x: Tensor, head_dim: int = 16) -> bool:
    """Whether they run where `x` lies, with heads of this size: tiles are powers of two, and larger ones would not fit into every GPU."""
    fits = 16 <= head_dim <= 128 and head_dim & (head_dim - 1) == 0 and x.dtype in (torch.float32, torch.bfloat16, torch.float16)
    return fits and x.device.type == "cuda" and not is_plain() and triton_builds(x.device)


@cache
def triton_builds(device: torch.device) -> bool:
    """Whether Triton is there and builds for this device."""
    if torch.cuda.get_device_capability(device) < (8, 0) or importlib.util.find_spec("triton") is None:
        return False
    try:
        from taosr1.fast import triton_kernels as kernels

        kernels.probe(device)
        return True
    except Exception as problem:  # whatever it is that Triton, a C compiler or a driver raises
        warnings.warn(f"Triton builds no GPU kernels here, so PyTorch's own are used (slower, same results): {problem}", stacklevel=2)
        return False
