"""8-bit floating point for serving on a GPU: matrix products of numbers with 3 bits behind the point, at twice the rate of bfloat16.

Each row of a weight matrix and each token has a scale of its own, such that its largest number becomes 448, the largest of float8_e4m3fn.
A product is then exact in its scales: (s_x x)(s_w w)^T, summed in float32. Weights are rounded once; what they read is rounded at every
layer. The norms, attention, the residual stream and the head stay in bfloat16.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from taosr1.model.decoder import MLP, Attention, Decoder
from taosr1.model.linear import Linear, is_plain
from taosr1.model.lora import adapters
from taosr1.model.pointwise import fused

FLOAT8 = torch.float8_e4m3fn
MULTIPLE = 16  # of a matrix's sides, for the hardware


@fused(0, 1)
def quantised(x: Tensor) -> tuple[Tensor, Tensor]:
    """x as float8 numbers times a scale for each row. Shapes: (..., N, C) -> the same, and (..., N, 1) float32."""
    scale = (x.abs().amax(-1, keepdim=True).float() / torch.finfo(FLOAT8).max).clamp(min=1e-12)
    return (x.float() / scale).to(FLOAT8), scale


class Rounding:
    """`quantised` of one input after another; queries, keys and values round the same one, and so do gate and up."""

    def __init__(self) -> None:
        self.of: Tensor | None = None

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if x is not self.of:
            self.of, self.found = x, quantised(x)
        return self.found


class Float8Linear(nn.Module):
    """A Linear with both sides of its product in 8 bits; for inference."""

    def __init__(self, linear: Linear, rounding: Rounding) -> None:
        super().__init__()
        self.rounding = rounding
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight, scale = quantised(linear.weight.detach())
        self.register_buffer("weight", weight)  # (out, in)
        self.register_buffer("scale", scale)  # (out, 1)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        numbers, scale = self.rounding(x)
        out = scaled_product(numbers.view(-1, self.in_features), self.weight, scale.view(-1, 1), self.scale, x.dtype)
        if self.bias is not None:
            out = out + self.bias
        return out.view(*x.shape[:-1], self.out_features)


def scaled_product(x: Tensor, weight: Tensor, x_scale: Tensor, weight_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """(x_scale x)(weight_scale weight)^T. Shapes: x (N, in), weight (out, in) float8; scales (N, 1), (out, 1) float32 -> (N, out)."""
    if x.device.type != "cuda" or is_plain():
        return scaled_product_plain(x, weight, x_scale, weight_scale, dtype)
    return torch._scaled_mm(x, weight.t(), scale_a=x_scale, scale_b=weight_scale.t(), out_dtype=dtype, use_fast_accum=True)


def scaled_product_plain(x: Tensor, weight: Tensor, x_scale: Tensor, weight_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """`scaled_product` in float32, on any device: what the rounding costs can be seen without the hardware."""
    return ((x.float() * x_scale) @ (weight.float() * weight_scale).t()).to(dtype)


def to_float8(model: Decoder, *, emulate: bool = False) -> Decoder:
    """Replace the layers' matrices by 8-bit ones, in place; returns the model.

    emulate: on a device without 8-bit units too, slowly, by `scaled_product_plain`.
    Raises: ValueError where the device multiplies no 8-bit floats, or the model has experts, adapters, or sides that are no multiple of 16.
    """
    device = model.model.embed_tokens.weight.device
    able = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)
    if not able and not emulate:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        raise ValueError(f"--dtype float8 needs a GPU that multiplies 8-bit floats (NVIDIA Hopper or newer), this is {name}: use bfloat16")
    if model.config.num_experts:
        raise ValueError("--dtype float8 does not know mixtures of experts: use bfloat16")
    if adapters(model):
        raise ValueError("--dtype float8 does not know adapters: merge them first (infer/merge.py)")
    rounding = Rounding()
    for module in list(model.modules()):
        if not isinstance(module, (Attention, MLP)):
            continue
        for name, linear in list(module.named_children()):
            if isinstance(linear, Linear):
                if linear.in_features % MULTIPLE or linear.out_features % MULTIPLE:
                    raise ValueError(f"--dtype float8: {name} is {tuple(linear.weight.shape)}, expected multiples of {MULTIPLE}: use bfloat16")
                setattr(module, name, Float8Linear(linear, rounding))
    return model
