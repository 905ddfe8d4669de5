"""x W^T + b, the product that nine tenths of all work goes into, by the fastest kernel at hand.

In float32 on a CPU `F.linear` calls MKL, whose kernels for AMD processors use vectors of half the width that the core has; oneDNN, which
comes with torch too and computes all bfloat16 products anyway, uses them in full. The sums are the same but for the order in which they are added.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

ONEDNN_FROM = 32  # rows; fewer are not worth the call
ONEDNN_FROM_PRODUCTS = 2**21  # multiplications: the same

PLAIN_HELP = "no tricks: every prompt computed in full and every kernel PyTorch's own; slower, more memory, the same numbers to rounding"

_plain = False


def set_plain(wanted: bool) -> None:
    """Switch off, or on again, every trick that only makes things faster: what `--plain` asks for.

    It holds for the whole process, all threads included. The tricks: this module's kernels and `packed.py`, prompts and prefixes computed once
    (`shared_cache.py`, `flat_rows.py`, `shared_prompts.py`), equal beginnings of replies and equal rows too (`wave.py`, `logprobs.py`), copies of prompts (`shared_cache.py`), norms by hand (`pointwise.py`), passes over some
    logits at a time (`logprobs.py`), the last layer at the positions that are read, and on a GPU kernels of
    our own (`kernels.py`) and recorded steps (`decode_cache.py`).
    """
    global _plain
    _plain = wanted


def is_plain() -> bool:
    return _plain


@contextmanager
def plain_paths(wanted: bool = True) -> Iterator[None]:
    """`set_plain` for a block: how tests and benchmarks compare."""
    before = is_plain()
    set_plain(wanted)
    try:
        yield
    finally:
        set_plain(before)


class Linear(nn.Linear):
    """`nn.Linear` by way of `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`, on a CPU in float32 by oneDNN. Shapes: x (..., in), weight (out, in), bias (out,) -> (..., out)."""
    rows = x.numel() // max(1, x.shape[-1])
    if (
        is_plain()
        or x.device.type != "cpu"
        or x.dtype != torch.float32
        or weight.dtype != torch.float32
        or x.shape[-1] != weight.shape[-1]  # F.linear's error names the shapes
        or rows < ONEDNN_FROM
        or rows * weight.numel() < ONEDNN_FROM_PRODUCTS
        or torch.is_autocast_enabled("cpu")
        or not torch.backends.mkldnn.enabled
        or not has_onednn
    ):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return _OneDNNLinear.apply(x, weight, bias)
    return _onednn(x, weight, bias)


def _find_onednn() -> bool:
    """Whether this torch has the operator that its own compiler uses for linear layers on a CPU."""
    try:
        onednn_product(torch.ones(2, 2), torch.ones(2, 2), None)
        return True
    except (AttributeError, RuntimeError):
        return False


def onednn_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    try:
        return onednn_product(x, weight, bias)
    except RuntimeError:  # "could not create a primitive" where memory is short: F.linear needs less, or says what is wrong
        return F.linear(x, weight, bias)


class _OneDNNLinear(torch.autograd.Function):
    """The operator has no gradient of its own: with y = x W^T, dx = dy W and dW = dy^T x are two more products."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        wants_x, wants_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if wants_weight else None, weight if wants_x else None)
        ctx.shape = x.shape
        return _onednn(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        of_rows = grad.reshape(-1, grad.shape[-1])  # (N, out)
        return (
            _onednn(of_rows, weight.t()).view(ctx.shape) if wants_x else None,
            _of_weight(of_rows, x.reshape(-1, x.shape[-1])) if wants_weight else None,
            of_rows.sum(0) if wants_bias else None,
        )


def _of_weight(grad: Tensor, x: Tensor) -> Tensor:
    """dW = dy^T x. Shapes: grad (N, out), x (N, in) -> (out, in).

    The operator copies what comes first, to have its rows end to end. That shall be the narrower one, not the gradient of all logits; but then
    the result lies the other way round, and has to be copied into the weight's `.grad`.
    """
    rows, outputs, inputs = *grad.shape, x.shape[1]
    if rows * outputs <= rows * inputs + outputs * inputs:
        return _onednn(grad.t(), x.t())
    return _onednn(x.t(), grad.t()).t()


has_onednn = _find_onednn()
