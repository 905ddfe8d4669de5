"""8-bit products for serving, at about twice the rate of bfloat16: float8 on a GPU (Hopper and newer), int8 on a CPU (AVX-512 VNNI and newer).

A weight matrix is rounded once, what it multiplies at every layer, each row (an output, a token) with a scale of its own: the largest number
becomes the largest of the format, 448 or 127. So no token's numbers depend on what stands beside it. Sums are exact (int8) or float32
(float8). Norms, attention, the residual stream and the head stay as they were. For prefills: a decode step has too few rows to gain.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from torch import Tensor, nn

from taosr1.fast.fused_ops import use_fused
from taosr1.model.attention import Attention
from taosr1.model.decoder import MLP, Decoder
from taosr1.model.lora import adapters

FLOAT8 = torch.float8_e4m3fn
MULTIPLE = 16  # of a matrix's sides, for the hardware
ZERO = 128  # oneDNN's numbers are unsigned


def quantize_to_float8(x: Tensor) -> tuple[Tensor, Tensor]:
    """x as float8 numbers times a scale for each row. Shapes: (..., N, C) -> the same, and (..., N, 1) float32."""
    if use_fused(x):
        from taosr1.fast import triton_kernels

        return triton_kernels.quantize_to_float8(x, FLOAT8)
    scale = (x.abs().amax(-1, keepdim=True).float() / torch.finfo(FLOAT8).max).clamp(min=1e-12)
    return (x.float() / scale).to(FLOAT8), scale


def quantize_to_int8(x: Tensor) -> tuple[Tensor, Tensor]:
    """x as (numbers - 128) times a scale for each row. Shapes: (..., N, C) -> the same, uint8, and (..., N, 1) float32."""
    scale = (x.abs().amax(-1, keepdim=True).float() / 127).clamp_(min=1e-12)
    # To int8 torch converts fast and to uint8 slowly; flipping the highest bit adds 128.
    return (x.float() / scale).round_().to(torch.int8).contiguous().view(torch.uint8).bitwise_xor_(ZERO), scale


class Rounding:
    """One input after another rounded; queries, keys and values have the same one, and so do gate and up."""

    def __init__(self, rounded: Callable) -> None:
        self.rounded = rounded
        self.of: Callable[[], Tensor | None] = lambda: None  # a weak reference: x shall not live longer for this

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if x is not self.of():
            self.of, self.found = weakref.ref(x), self.rounded(x)
        return self.found


class QuantizedLinear(nn.Module):
    """A Linear with both sides of its product in 8 bits; for inference."""

    def __init__(self, linear: nn.Linear, rounding: Rounding, emulate: bool) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        self.rounding, self.emulate = rounding, emulate

    def forward(self, x: Tensor) -> Tensor:
        numbers, scale = self.rounding(x)
        out = self.product(numbers.reshape(-1, self.in_features), scale.view(-1, 1), x.dtype)
        if self.bias is not None:
            out = out + self.bias
        return out.view(*x.shape[:-1], self.out_features)


class Float8Linear(QuantizedLinear):
    def __init__(self, linear: nn.Linear, rounding: Rounding, emulate: bool) -> None:
        super().__init__(linear, rounding, emulate)
        weight, scale = quantize_to_float8(linear.weight.detach())
        self.register_buffer("weight", weight)  # (out, in)
        self.register_buffer("scale", scale)  # (out, 1)

    def product(self, numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        """(scale x)(weight_scale weight)^T. Shapes: numbers (N, in), scale (N, 1) -> (N, out)."""
        if not numbers.is_cuda or self.emulate:
            return product_plain(numbers.float() * scale, self.weight.float() * self.scale, dtype)
        return torch._scaled_mm(numbers, self.weight.t(), scale_a=scale, scale_b=self.scale.t(), out_dtype=dtype, use_fast_accum=True)


class Int8Linear(QuantizedLinear):
    def __init__(self, linear: nn.Linear, rounding: Rounding, emulate: bool) -> None:
        super().__init__(linear, rounding, emulate)
        weight = linear.weight.detach().float()
        scale = (weight.abs().amax(1) / 127).clamp(min=1e-12)
        self.register_buffer("weight", (weight / scale[:, None]).round().to(torch.int8))  # (out, in)
        self.register_buffer("scale", scale)  # (out,)
        self.register_buffer("zeros", torch.zeros(self.out_features, dtype=torch.int64), persistent=False)
        # A second copy, as the kernel wants it; the first is what digests and `--plain` read.
        self.packed = None if emulate else torch.ops.onednn.qlinear_prepack(self.weight, None)

    def product(self, numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        """(scale (numbers - 128))(weight_scale weight)^T. Shapes: numbers (N, in) uint8, scale (N, 1) -> (N, out)."""
        if self.packed is None:
            return product_plain((numbers.float() - ZERO) * scale, self.weight.float() * self.scale[:, None], dtype)
        # The kernel knows one scale for all of x, 1 here; the rows' own come after it, in one more pass.
        out = torch.ops.onednn.qlinear_pointwise(numbers, 1.0, ZERO, self.packed, self.scale, self.zeros, None, 1.0, 0, dtype, "none", [], "")
        return out.mul_(scale.to(dtype))


def product_plain(x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The products of both kinds in float32, on any device: what rounding costs can be seen without the hardware."""
    return (x @ weight.t()).to(dtype)


def quantize(model: Decoder, kind: str, *, emulate: bool = False) -> Decoder:
    """Replace the layers' matrices by "float8" or "int8" ones, in place; returns the model.

    Raises: ValueError where this device has no such units (not under `--plain`, which computes the same slowly), or the model has experts,
    adapters, or sides that are no multiple of 16.
    """
    device = model.model.embed_tokens.weight.device
    problem = lacks(kind, device)
    if problem and not emulate:
        raise ValueError(f"--dtype {kind}: {problem}: use bfloat16 or float32")
    if model.config.num_experts:
        raise ValueError(f"--dtype {kind} does not know mixtures of experts: use bfloat16")
    if adapters(model):
        raise ValueError(f"--dtype {kind} does not know adapters: merge them first (infer/merge.py)")
    make, rounded = {"float8": (Float8Linear, quantize_to_float8), "int8": (Int8Linear, quantize_to_int8)}[kind]
    linears = [(module, name, linear) for module in model.modules() if isinstance(module, (Attention, MLP))
               for name, linear in module.named_children() if isinstance(linear, nn.Linear)]  # fmt: skip
    for _, name, linear in linears:
        if linear.in_features % MULTIPLE or linear.out_features % MULTIPLE:
            raise ValueError(f"--dtype {kind}: {name} is {tuple(linear.weight.shape)}, expected multiples of {MULTIPLE}: use bfloat16")
    rounding = Rounding(rounded)
    for module, name, linear in linears:
        setattr(module, name, make(linear, rounding, emulate))
    return model


def lacks(kind: str, device: torch.device) -> str:
    """What this device lacks for 8-bit products, "" if nothing."""
    if kind == "float8":
        able = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        return "" if able else f"needs a GPU that multiplies 8-bit floats (NVIDIA Hopper or newer), this is {name}"
    if device.type != "cpu":
        return f"runs on a CPU, this is {device.type}"
    able = getattr(torch.cpu, "get_capabilities", dict)()  # newer than the oldest torch that we run on
    # Without these instructions sums of two products saturate at 16 bits: slower and wrong.
    if not any(able.get(name) for name in ("avx512_vnni", "avx_vnni", "amx_int8")):
        return "needs a CPU that multiplies 8-bit integers (AVX-512 VNNI, AVX-VNNI or AMX)"
    return "" if hasattr(torch.ops.onednn, "qlinear_pointwise") else "needs a torch with oneDNN's quantised products"
