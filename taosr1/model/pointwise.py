"""Small functions of which each is one pass over memory, if somebody fuses its steps: on a GPU kernels of our own do (`kernels.py`).

There a norm, a rotation and a gate take as long as the matrix products between them, because each elementwise step reads and writes all
of a tensor. The function as it is written is the plain twin: what runs in training, on a CPU, under `--plain`, and wherever
else the kernels do not serve (`on_gpu.py`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from taosr1.model.on_gpu import kernels_serve
from taosr1.model.rotary import rotate

NUMBERS_AT_ONCE = 2**20  # tensors of 32 MiB and more are mapped anew each time, which takes longer than to compute them


def in_one_pass(x: Tensor, head_dim: int = 16) -> bool:
    """Whether a kernel takes all steps at once: on a GPU, where no gradient is recorded."""
    return not torch.is_grad_enabled() and kernels_serve(x, head_dim) and not torch.is_autocast_enabled("cuda")


def norm_and_rotate(x: Tensor, weight: Tensor | None, eps: float, cos: Tensor, sin: Tensor) -> Tensor:
    """Queries or keys: each head normalised (Qwen3), then turned. Shapes: x (B, T, H, D), weight (D,) or None, cos and sin as in `rotate`."""
    if in_one_pass(x, x.shape[-1]):
        from taosr1.model import kernels

        return kernels.norm_and_rotate(x, weight, eps, cos, sin)
    if weight is not None:
        x = F.rms_norm(x, weight.shape, weight, eps)
    return rotate(x, cos, sin)


def add_and_norm(x: Tensor, added: Tensor, norm: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """x + added, and that behind its norm, an `RMSNorm`. Shapes: (B, T, C) both -> (B, T, C), (B, T, C)."""
    if in_one_pass(x):
        from taosr1.model import kernels

        return kernels.add_and_norm(x, added, norm.weight, norm.eps)
    x = x + added
    return x, norm(x)


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up. Shapes: both (B, T, I)."""
    if in_one_pass(gate):
        from taosr1.model import kernels

        return kernels.gated(gate, up)
    return F.silu(gate) * up


class GatedSiLU(torch.autograd.Function):
    """`gated` in training. Autograd by itself would keep silu(gate) too, the widest tensor of a layer; here it is computed again."""

    @staticmethod
    def forward(ctx, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate) * up

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grad * up, gate), grad * F.silu(gate)


def block_sums(blocks: Tensor, top: Tensor) -> Tensor:
    """Sums of e^(logit - top) over the last dimension. Shapes: blocks (R, N, B), top (R, 1) -> (R, N)."""
    if in_one_pass(blocks):
        from taosr1.model import kernels

        return kernels.block_sums(blocks, top)
    parts = zip(*(x.split(max(1, NUMBERS_AT_ONCE // (blocks.shape[1] * blocks.shape[2]))) for x in (blocks, top[..., None])))
    return torch.cat([(some - most).exp_().sum(-1) for some, most in parts])
