"""Small functions of which each is one pass over memory, if somebody fuses its steps: on a GPU kernels of our own do (`kernels.py`).

There a norm, a rotation and a gate take as long as the matrix products between them, because each elementwise step reads and writes all
of a tensor. The function as it is written is the plain twin: what runs in training, on a CPU, under `--plain`, and wherever
else the kernels do not serve (`on_gpu.py`). On a CPU norms and gates have gradients of their own (`RMSNormalised`, `GatedSiLU`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from taosr1.fast.triton_support import can_use_triton
from taosr1.model.rotary import rotate

NUMBERS_AT_ONCE = 2**20  # tensors of 32 MiB and more are mapped anew each time, which takes longer than to compute them


def use_fused(x: Tensor, head_dim: int = 16) -> bool:
    """Whether a kernel takes all steps at once: on a GPU, where no gradient is recorded."""
    return not torch.is_grad_enabled() and can_use_triton(x, head_dim) and not torch.is_autocast_enabled("cuda")


def norm_and_rotate(x: Tensor, weight: Tensor | None, eps: float, cos: Tensor, sin: Tensor) -> Tensor:
    """Queries or keys: each head normalised (Qwen3), then turned. Shapes: x (B, T, H, D), weight (D,) or None, cos and sin as in `rotate`."""
    if use_fused(x, x.shape[-1]):
        from taosr1.fast import triton_kernels

        return triton_kernels.norm_and_rotate(x, weight, eps, cos, sin)
    if weight is not None:
        x = rms_norm(x, weight, eps)
    return rotate(x, cos, sin)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x over its root mean square, times weight, along the last dimension (1910.07467)."""
    if x.device.type != "cpu" or not x.dtype == weight.dtype in (torch.float32, torch.float64):
        return F.rms_norm(x, weight.shape, weight, eps)
    if torch.is_grad_enabled():
        return RMSNormalised.apply(x, weight, eps)
    # By the same steps: a rounding that differs would make old and new log-probs differ before the first update.
    return (x * _inverse_rms(x, eps)).mul_(weight)


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    """1 / sqrt(mean(x^2) + eps) over the last dimension. Shapes: (..., W) -> (..., 1)."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()


class RMSNormalised(torch.autograd.Function):
    """`rms_norm` in training on a CPU. torch builds it there, and its gradient, of a dozen passes, and keeps what comes in between; this takes
    three passes forward and seven back, and keeps x and a number for each of its rows.

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
        wants_x, wants_weight, _ = ctx.needs_input_grad
        normed = x * inverse
        product = grad * normed
        of_weight = product.flatten(0, -2).sum(0) if wants_weight else None
        if not wants_x:
            return None, of_weight, None
        with torch.autocast(x.device.type, enabled=False):  # where a backward pass runs inside of one
            mean = (product @ weight).div_(x.shape[-1])[..., None]
        return (grad * weight).addcmul_(normed, mean, value=-1).mul_(inverse), of_weight, None


def add_and_norm(x: Tensor, added: Tensor, norm: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """x + added, and that behind its norm, an `RMSNorm`. Shapes: (B, T, C) both -> (B, T, C), (B, T, C)."""
    if use_fused(x):
        from taosr1.fast import triton_kernels

        return triton_kernels.add_and_norm(x, added, norm.weight, norm.eps)
    x = x + added
    return x, norm(x)


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up. Shapes: both (B, T, I)."""
    if use_fused(gate):
        from taosr1.fast import triton_kernels

        return triton_kernels.gated(gate, up)
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
    if use_fused(blocks):
        from taosr1.fast import triton_kernels

        return triton_kernels.block_sums(blocks, top)
    parts = zip(*(x.split(max(1, NUMBERS_AT_ONCE // (blocks.shape[1] * blocks.shape[2]))) for x in (blocks, top[..., None])))
    return torch.cat([(some - most).exp_().sum(-1) for some, most in parts])
