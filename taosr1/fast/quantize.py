"""8-bit products for inference, at about twice the rate of bfloat16: float8 on a GPU (NVIDIA Hopper and newer), int8 on
a CPU (AVX-512 VNNI and newer).

A weight matrix is quantized once, its input at every call, each row (an output, a token) with a scale of its own: the
row's largest number becomes the largest of the format, 448 or 127. So no token's numbers depend on the other rows. Sums
are exact (int8) or float32 (float8). Norms, attention, the residual stream and the head stay as they were. Useful for
prefills: a decode step has too few rows to gain.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from torch import Tensor, nn

from taosr1.fast.fused_ops import fused_kernels
from taosr1.model.attention import Attention
from taosr1.model.decoder import MLP, Decoder
from taosr1.model.lora import adapters

FLOAT8 = torch.float8_e4m3fn
MULTIPLE = 16  # of a matrix's sides, for the hardware
ZERO = 128  # oneDNN's 8-bit inputs are unsigned


def quantize_to_float8(x: Tensor) -> tuple[Tensor, Tensor]:
    """x as float8 numbers and a scale for each row, their product being x.

    Shapes: (..., N, C) -> the same, float8, and (..., N, 1) float32.
    """
    if kernels := fused_kernels(x):
        return kernels.quantize_to_float8(x, FLOAT8)
    scale = (x.abs().amax(-1, keepdim=True).float() / torch.finfo(FLOAT8).max).clamp(min=1e-12)
    return (x.float() / scale).to(FLOAT8), scale


def quantize_to_int8(x: Tensor) -> tuple[Tensor, Tensor]:
    """x as 8-bit integers and a scale for each row: x is (integer - 128) times its scale.

    Shapes: (..., N, C) -> the same, uint8, and (..., N, 1) float32.
    """
    scale = (x.abs().amax(-1, keepdim=True).float() / 127).clamp_(min=1e-12)
    # PyTorch converts fast to int8 and slowly to uint8; flipping the highest bit adds 128.
    return (x.float() / scale).round_().to(torch.int8).contiguous().view(torch.uint8).bitwise_xor_(ZERO), scale


class QuantizedInput:
    """Quantizes inputs and keeps the last result: q, k and v have the same input, and so have gate and up."""

    def __init__(self, quantize_rows: Callable) -> None:
        self.quantize_rows = quantize_rows
        self.last_input: Callable[[], Tensor | None] = lambda: None  # a weak reference, so as not to keep x in memory

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if x is not self.last_input():
            self.last_input, self.result = weakref.ref(x), self.quantize_rows(x)
        return self.result


class QuantizedLinear(nn.Module):
    """A linear layer for inference with both factors of its product in 8 bits.

    emulate: compute the product in float32 from the quantized numbers, on any device.
    """

    def __init__(self, linear: nn.Linear, quantized_input: QuantizedInput, emulate: bool) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        self.quantized_input, self.emulate = quantized_input, emulate
        self.quantize_weight(linear.weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        numbers, scale = self.quantized_input(x)
        numbers, scale = numbers.reshape(-1, self.in_features), scale.view(-1, 1)
        if self.emulate:
            weight = self.weight.float() * self.scale.view(-1, 1)
            out = ((numbers.float() - self.zero) * scale @ weight.t()).to(x.dtype)
        else:
            out = self.product(numbers, scale, x.dtype)
        if self.bias is not None:
            out = out + self.bias
        return out.view(*x.shape[:-1], self.out_features)


class Float8Linear(QuantizedLinear):
    zero = 0

    def quantize_weight(self, weight: Tensor) -> None:
        weight, scale = quantize_to_float8(weight)
        self.register_buffer("weight", weight)  # (out, in)
        self.register_buffer("scale", scale)  # (out, 1)

    def product(self, numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        """(scale x)(weight_scale weight)^T. Shapes: numbers (N, in), scale (N, 1) -> (N, out)."""
        scales = {"scale_a": scale, "scale_b": self.scale.t()}
        return torch._scaled_mm(numbers, self.weight.t(), **scales, out_dtype=dtype, use_fast_accum=True)


class Int8Linear(QuantizedLinear):
    zero = ZERO

    def quantize_weight(self, weight: Tensor) -> None:
        weight = weight.float()
        scale = (weight.abs().amax(1) / 127).clamp(min=1e-12)
        self.register_buffer("weight", (weight / scale[:, None]).round().to(torch.int8))  # (out, in)
        self.register_buffer("scale", scale)  # (out,)
        self.register_buffer("zeros", torch.zeros(self.out_features, dtype=torch.int64), persistent=False)
        # A second copy in the kernel's layout; digests read the first one.
        self.prepacked = None if self.emulate else torch.ops.onednn.qlinear_prepack(self.weight, None)

    def product(self, numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        """(scale (numbers - 128))(weight_scale weight)^T. Shapes: numbers (N, in) uint8, scale (N, 1) -> (N, out)."""
        # The kernel takes one scale for all of x, 1 here; the rows' own scales are multiplied in one more pass.
        weight = (self.prepacked, self.scale, self.zeros)
        out = torch.ops.onednn.qlinear_pointwise(numbers, 1.0, ZERO, *weight, None, 1.0, 0, dtype, "none", [], "")
        return out.mul_(scale.to(dtype))


def quantize(model: Decoder, kind: str, *, emulate: bool = False) -> Decoder:
    """Replace the layers' matrices by "float8" or "int8" ones, in place; returns the model.

    emulate: compute the same numbers on any device, slowly (`--plain`).
    Raises: ValueError if this device has no such units (unless emulated), or if the model has experts, adapters, or
        sides that are no multiple of 16.
    """
    problem = missing_support(kind, model.model.embed_tokens.weight.device)
    if problem and not emulate:
        raise ValueError(f"--dtype {kind}: {problem}: use bfloat16 or float32")
    if model.config.num_experts:
        raise ValueError(f"--dtype {kind} does not support mixtures of experts: use bfloat16")
    if adapters(model):
        raise ValueError(f"--dtype {kind} does not support adapters: merge them first (infer/merge.py)")
    kinds = {"float8": (Float8Linear, quantize_to_float8), "int8": (Int8Linear, quantize_to_int8)}
    quantized_linear, quantize_rows = kinds[kind]
    modules = [module for module in model.modules() if isinstance(module, (Attention, MLP))]
    linears = [(module, *named) for module in modules for named in module.named_children()]
    linears = [(module, name, linear) for module, name, linear in linears if isinstance(linear, nn.Linear)]
    for _, name, linear in linears:
        if linear.in_features % MULTIPLE or linear.out_features % MULTIPLE:
            shape = tuple(linear.weight.shape)
            raise ValueError(f"--dtype {kind}: {name} is {shape}, expected multiples of {MULTIPLE}: use bfloat16")
    quantized_input = QuantizedInput(quantize_rows)
    for module, name, linear in linears:
        setattr(module, name, quantized_linear(linear, quantized_input, emulate))
    return model


def missing_support(kind: str, device: torch.device) -> str:
    """What this device lacks for 8-bit products, "" if nothing."""
    if kind == "float8":
        supported = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        return "" if supported else f"needs a GPU that multiplies 8-bit floats (NVIDIA Hopper or newer), this is {name}"
    if device.type != "cpu":
        return f"runs on a CPU, this is {device.type}"
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # newer than the oldest torch that is supported
    # Without these instructions sums of two products saturate at 16 bits: slower and wrong.
    if not any(capabilities.get(name) for name in ("avx512_vnni", "avx_vnni", "amx_int8")):
        return "needs a CPU that multiplies 8-bit integers (AVX-512 VNNI, AVX-VNNI or AMX)"
    return "" if hasattr(torch.ops.onednn, "qlinear_pointwise") else "needs a torch with oneDNN's quantized products"
