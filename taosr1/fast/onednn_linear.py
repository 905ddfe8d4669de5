"""x W^T + b, the product that nine tenths of all work goes into, by oneDNN where that is faster than `F.linear`.

In float32 on a CPU `F.linear` calls MKL, whose kernels for AMD processors use vectors of half the core's width; oneDNN,
which comes with torch too, uses them in full. The sums are the same except for the order in which they are added.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

ONEDNN_FROM = 32  # rows; fewer are not worth the call
ONEDNN_FROM_PRODUCTS = 2**21  # multiplications: the same


class OneDNNLinear(nn.Linear):
    """`nn.Linear` computed by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`, on a CPU in float32 by oneDNN. Shapes: x (..., in), weight (out, in), bias (out,) -> (..., out)."""
    rows = x.numel() // max(1, x.shape[-1])
    if (
        x.device.type != "cpu"
        or x.dtype != torch.float32
        or weight.dtype != torch.float32
        or x.shape[-1] != weight.shape[-1]  # F.linear's error names the shapes
        or rows < ONEDNN_FROM
        or rows * weight.numel() < ONEDNN_FROM_PRODUCTS
        or torch.is_autocast_enabled("cpu")
        or not torch.backends.mkldnn.enabled
        or not has_onednn()
    ):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return _OneDNNProduct.apply(x, weight, bias)
    return _onednn(x, weight, bias)


@cache
def has_onednn(dtype: torch.dtype = torch.float32) -> bool:
    """Whether this torch has the operators that its own compiler uses for linear layers on a CPU, and this processor
    can run them: bfloat16 needs AVX-512 or the like."""
    try:
        ones = torch.ones(2, 2, dtype=dtype)
        onednn_product(ones, torch.ops.mkldnn._reorder_linear_weight(ones), None)
        return True
    except (AttributeError, RuntimeError):
        return False


def onednn_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    try:
        return onednn_product(x, weight, bias)
    except RuntimeError:  # "could not create a primitive" if memory is short: F.linear needs less, or names the error
        return F.linear(x, weight, bias)


class _OneDNNProduct(torch.autograd.Function):
    """The operator has no gradient of its own: with y = x W^T, dx = dy W and dW = dy^T x are two more products."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        needs_x, needs_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if needs_weight else None, weight if needs_x else None)
        ctx.shape = x.shape
        return _onednn(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        rows = grad.reshape(-1, grad.shape[-1])  # (N, out)
        return (
            _onednn(rows, weight.t()).view(ctx.shape) if needs_x else None,
            _onednn(rows.t(), x.reshape(-1, x.shape[-1]).t()) if needs_weight else None,
            rows.sum(0) if needs_bias else None,
        )
