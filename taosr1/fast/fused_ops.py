"""Small functions that fuse several elementwise steps: on a GPU by our own kernels (`triton_kernels.py`).

There a norm, a rotation and a gate take as long as the matrix products between them, because each elementwise step
reads and writes all of a tensor. Each function as it is written here is the kernel's twin: it runs in training, on a
CPU, and wherever the kernels cannot be used (`triton_support.py`). On a CPU norms and gates have gradients written out
(`RMSNormFunction`, `GatedSiLU`).
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from taosr1.fast.triton_support import can_use_triton, load_kernels
from taosr1.model.rotary import rotate

NUMBERS_AT_ONCE = 2**20  # larger temporary tensors do not fit into a processor's cache


def fused_kernels(x: Tensor, head_dim: int = 16) -> ModuleType | None:
    """`triton_kernels` where it is used, on a GPU if no gradient is recorded; else None."""
    use = not torch.is_grad_enabled() and can_use_triton(x, head_dim) and not torch.is_autocast_enabled("cuda")
    return load_kernels() if use else None


def norm_and_rotate(x: Tensor, weight: Tensor | None, eps: float, cos: Tensor, sin: Tensor) -> Tensor:
    """Queries or keys with each head normalised (Qwen3), then rotated.

    Shapes: x (B, T, H, D), weight (D,) or None (no norm), cos and sin as in `rotate` -> (B, T, H, D).
    """
    if kernels := fused_kernels(x, x.shape[-1]):
        return kernels.norm_and_rotate(x, weight, eps, cos, sin)
    if weight is not None:
        x = rms_norm(x, weight, eps)
    return rotate(x, cos, sin)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x over its root mean square, times weight, along the last dimension (1910.07467)."""
    if x.device.type != "cpu" or not x.dtype == weight.dtype in (torch.float32, torch.float64):
        return F.rms_norm(x, weight.shape, weight, eps)
    if torch.is_grad_enabled():
        return RMSNormFunction.apply(x, weight, eps)
    # By the same steps: other rounding would make old and new log-probs differ before the first update.
    return (x * _inverse_rms(x, eps)).mul_(weight)


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    """1 / sqrt(mean(x^2) + eps) over the last dimension. Shapes: (..., W) -> (..., 1)."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()


class RMSNormFunction(torch.autograd.Function):
    """`rms_norm` in training on a CPU: three passes forward and seven back, keeping x and one number for each row.

    PyTorch composes it and its gradient of a dozen passes, and keeps what comes in between.
    With n = x / rms: y = n w, dw = sum of dy n over all rows, dx = (dy w - n mean(dy w n)) / rms.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        inverse = _inverse_rms(x, eps)
        ctx.save_for_backward(x, weight, inverse)
        return (x * inverse).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight, inverse = ctx.saved_tensors
        needs_x, needs_weight, _ = ctx.needs_input_grad
        normed = x * inverse
        product = grad * normed
        weight_grad = product.flatten(0, -2).sum(0) if needs_weight else None
        if not needs_x:
            return None, weight_grad, None
        with torch.autocast(x.device.type, enabled=False):  # a backward pass may run inside of autocast
            mean = (product @ weight).div_(x.shape[-1])[..., None]
        return (grad * weight).addcmul_(normed, mean, value=-1).mul_(inverse), weight_grad, None


def add_and_norm(x: Tensor, added: Tensor, norm: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """x + added, and the same after `norm`, an `RMSNorm`. Shapes: both (B, T, C) -> (B, T, C), (B, T, C)."""
    if kernels := fused_kernels(x):
        return kernels.add_and_norm(x, added, norm.weight, norm.eps)
    x = x + added
    return x, norm(x)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up. Shapes: both (..., I)."""
    if torch.is_grad_enabled():
        return GatedSiLU.apply(gate, up)
    if kernels := fused_kernels(gate):
        return kernels.swiglu(gate, up)
    return F.silu(gate) * up


class GatedSiLU(torch.autograd.Function):
    """`swiglu` in training. Autograd would keep silu(gate), the widest tensor of a layer; this computes it again."""

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
    if kernels := fused_kernels(blocks):
        return kernels.block_sums(blocks, top)
    rows = max(1, NUMBERS_AT_ONCE // (blocks.shape[1] * blocks.shape[2]))
    chunks = zip(blocks.split(rows), top[..., None].split(rows))
    return torch.cat([(logits - highest).exp_().sum(-1) for logits, highest in chunks])
