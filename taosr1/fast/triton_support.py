"""Whether our Triton kernels can be used. Triton comes with PyTorch for GPUs on Linux, so nothing imports it before."""

from __future__ import annotations

import importlib.util
import warnings
from functools import cache
from types import ModuleType

import torch
from torch import Tensor


def can_use_triton(x: Tensor, head_dim: int = 16) -> bool:
    """Whether the kernels run on x's device, with heads of this size.

    Tiles are powers of two, and larger ones would not fit into every GPU.
    """
    size_fits = 16 <= head_dim <= 128 and head_dim & (head_dim - 1) == 0
    dtype_fits = x.dtype in (torch.float32, torch.bfloat16, torch.float16)
    return x.device.type == "cuda" and size_fits and dtype_fits and triton_builds(x.device)


def load_kernels() -> ModuleType:
    """The module `triton_kernels`, imported where Triton is needed."""
    from taosr1.fast import triton_kernels

    return triton_kernels


@cache
def triton_builds(device: torch.device) -> bool:
    """Whether Triton is installed and compiles for this device."""
    if torch.cuda.get_device_capability(device) < (8, 0) or importlib.util.find_spec("triton") is None:
        return False
    try:
        load_kernels().probe(device)
        return True
    except Exception as problem:  # whatever Triton, a C compiler or a driver raises
        message = f"Triton builds no GPU kernels here, so PyTorch's own are used (slower, same results): {problem}"
        warnings.warn(message, stacklevel=2)
        return False
