"""The shape of a decoder, in Hugging Face's words; a model family is a choice of flags."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "max_position_embeddings"),
)
EXPERT_SIZES = ("num_experts", "num_experts_per_tok", "moe_intermediate_size")
MOST_LAYERS = MOST_EXPERTS = 4096  # beyond any model; a damaged config.json must not fill the memory


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1's longer context: low frequencies are divided by `factor`, high ones kept, a ramp between them."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def __post_init__(self) -> None:
        problems = []
        for name in ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 < value < math.inf:
                problems.append(f"rope_scaling {name} is {value!r}, expected a number > 0")
        if not problems and self.low_freq_factor >= self.high_freq_factor:
            low, high = self.low_freq_factor, self.high_freq_factor
            problems.append(f"rope_scaling low_freq_factor {low} is not below high_freq_factor {high}")
        if problems:
            raise ValueError("; ".join(problems))

    def __call__(self, frequencies: Tensor) -> Tensor:
        """Shapes: (D/2,) radians per position -> (D/2,)."""
        wavelengths = 2 * math.pi / frequencies
        turns = self.original_max_position_embeddings / wavelengths  # within the original context
        keep = ((turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)).clamp(0, 1)
        return keep * frequencies + (1 - keep) * frequencies / self.factor


@dataclass(frozen=True)
class DecoderConfig:
    """The shape of a decoder, in Hugging Face's words. A family is a choice of flags:

    Llama: none, 3.x with `rope_scaling`. Mistral: `sliding_window`. Qwen2: `qkv_bias`. Qwen3: `qk_norm`.
    Qwen3-MoE: `qk_norm` and the expert sizes; its `dense_layers` have an ordinary MLP.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = True
    qk_norm: bool = True
    qkv_bias: bool = False
    max_position_embeddings: int = 4096
    rope_scaling: Llama3Scaling | None = None
    sliding_window: int | None = None  # a query attends to so many positions, its own included; None: all before
    num_experts: int = 0  # 0: a dense model
    num_experts_per_tok: int = 0
    moe_intermediate_size: int = 0
    norm_topk_prob: bool = True  # the chosen experts' weights are made to sum to 1
    dense_layers: tuple[int, ...] = ()  # layers of a mixture-of-experts model without experts

    def __post_init__(self) -> None:
        problems = []
        sizes = SIZES + ("sliding_window",) * (self.sliding_window is not None) + EXPERT_SIZES * (self.num_experts != 0)
        for name in sizes:
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value < 2**31:
                problems.append(f"{name} is {value!r}, expected an integer >= 1")
        for name in ("rope_theta", "rms_norm_eps"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 < value < math.inf:
                problems.append(f"{name} is {value!r}, expected a number > 0")
        for name in ("tie_word_embeddings", "qk_norm", "qkv_bias", "norm_topk_prob"):
            if type(getattr(self, name)) is not bool:
                problems.append(f"{name} is {getattr(self, name)!r}, expected true or false")
        for name, most in (("num_hidden_layers", MOST_LAYERS), ("num_experts", MOST_EXPERTS)):
            if not problems and getattr(self, name) > most:
                problems.append(f"{name} is {getattr(self, name)}, expected at most {most}")
        if not problems and self.num_experts_per_tok > self.num_experts:
            chosen, there = self.num_experts_per_tok, self.num_experts
            problems.append(f"num_experts_per_tok is {chosen}, but there are only {there} experts")
        if not problems and self.num_attention_heads % self.num_key_value_heads:
            problems.append(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if not problems and self.head_dim % 2:
            problems.append(f"head_dim is {self.head_dim}, expected an even number (rotary pairs)")
        if self.qk_norm and self.qkv_bias:
            problems.append("qk_norm (Qwen3) and qkv_bias (Qwen2) are both on: no supported family has both")
        if problems:
            raise ValueError("bad decoder config:\n  " + "\n  ".join(problems))
