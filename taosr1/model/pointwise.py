"""Small functions of which each is one pass over memory, if somebody fuses its steps: on a GPU torch.compile does.

There a norm, a rotation and a gate take as long as the matrix products between them, because each elementwise step reads and writes all
of a tensor. The function as it is written is the plain twin: what runs on a CPU, in training, for small tensors, and under `--plain`.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from functools import wraps

import torch
import torch.nn.functional as F
from torch import Tensor

from taosr1.model.linear import is_plain
from taosr1.model.rotary import rotate

COMPILED_FROM = 2**19  # numbers in the first tensor: compiling takes seconds, once, and pays for a pool, not for a single pair


def fused(*varying: int) -> Callable:
    """The function, compiled into few kernels where its first argument is a large tensor on a GPU and no gradient is recorded.

    varying: the dimensions of its tensors whose size differs from batch to batch; all others are compiled as the numbers they are, each
    set of them once.
    """

    def decorate(function: Callable) -> Callable:
        compiled, known = None, set()

        @wraps(function)
        def call(*arguments):
            nonlocal compiled
            if not _worth_compiling(arguments[0]):
                return function(*arguments)
            compiled = compiled or torch.compile(function)
            tensors = [x for x in arguments if torch.is_tensor(x) and x.dim() > 1]
            for x in tensors:
                torch._dynamo.maybe_mark_dynamic(x, [dim for dim in varying if dim < x.dim()])
            shapes = tuple((x.dtype, *(size == 1 if dim in varying else size for dim, size in enumerate(x.shape))) for x in tensors)
            try:
                if shapes in known:
                    return compiled(*arguments)
                # Otherwise a second size of a dimension that shall be fixed would be taken for a reason to leave it open.
                with torch._dynamo.config.patch(automatic_dynamic_shapes=False, recompile_limit=64):
                    result = compiled(*arguments)
                known.add(shapes)
                return result
            except torch._dynamo.exc.TorchDynamoException as problem:  # no C compiler, say
                _give_up(problem)
                return function(*arguments)

        return call

    return decorate


_can_compile = importlib.util.find_spec("triton") is not None


def _worth_compiling(x: Tensor) -> bool:
    return (
        _can_compile
        and x.device.type == "cuda"
        and x.numel() >= COMPILED_FROM
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cuda")
        and not is_plain()
    )


def _give_up(problem: Exception) -> None:
    global _can_compile
    _can_compile = False
    warnings.warn(f"torch.compile does not work here, so elementwise steps stay separate kernels (slower, same results): {problem}", stacklevel=3)


@fused(0, 1)
def norm_and_rotate(x: Tensor, weight: Tensor | None, eps: float, cos: Tensor, sin: Tensor) -> Tensor:
    """Queries or keys: each head normalised (Qwen3), then turned. Shapes: x (B, T, H, D), weight (D,) or None, cos and sin as in `rotate`."""
    if weight is not None:
        x = F.rms_norm(x, weight.shape, weight, eps)
    return rotate(x, cos, sin)


@fused(0, 1)
def gated(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up. Shapes: both (B, T, I)."""
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


@fused(0)
def block_sums(blocks: Tensor, top: Tensor) -> Tensor:
    """Sums of e^(logit - top) over the last dimension. Shapes: blocks (R, N, B), top (R, 1) -> (R, N)."""
    return (blocks - top[..., None]).exp_().sum(-1)
