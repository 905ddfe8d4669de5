"""The decoder: Qwen2, Qwen3 and Llama in one plain PyTorch module with Hugging Face parameter names.

Batches are padded on the right. Attention is causal, so padding reaches no real token and no padding mask is needed.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from taosr1.model.cache import KVCache

INIT_STD = 0.02


@dataclass(frozen=True)
class DecoderConfig:
    """The shape of a decoder, in Hugging Face's words. `qk_norm` is Qwen3, `qkv_bias` is Qwen2, neither is Llama."""

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

    def __post_init__(self) -> None:
        problems = []
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "max_position_embeddings",
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                problems.append(f"{name} is {value!r}, expected an integer >= 1")
        for name in ("rope_theta", "rms_norm_eps"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not value > 0:
                problems.append(f"{name} is {value!r}, expected a number > 0")
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


class RMSNorm(nn.Module):
    """Root-mean-square normalisation; torch computes it in float32 whatever the model's dtype."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        # Under autocast a bfloat16 x meets float32 weights: the fused kernel wants one dtype.
        return F.rms_norm(x.to(self.weight.dtype), self.weight.shape, self.weight, self.eps)


def rotary_tables(
    config: DecoderConfig, length: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines for positions 0..length-1, computed in float32.

    Returns:
        cos, sin: (length, 1, D); the first half of sin is negated, which turns "rotate half" into a roll.
    """
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=device) / config.head_dim  # (D/2,)
    positions = torch.arange(length, dtype=torch.float32, device=device)
    angles = positions[:, None] * (1.0 / config.rope_theta**exponents)  # (length, D/2)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), -1)[:, None].to(dtype), torch.cat((-sin, sin), -1)[:, None].to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding. Shapes: x (B, T, heads, D); cos, sin broadcast over heads."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


class Attention(nn.Module):
    """Causal self-attention with grouped key/value heads, rotary positions and, for Qwen3, q/k norms."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, key, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, key, bias=config.qkv_bias)
        self.o_proj = nn.Linear(query, config.hidden_size, bias=False)
        self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps) if config.qk_norm else None

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: KVCache | None, mask: Tensor | None) -> Tensor:
        rows, length, _ = x.shape
        query = self.q_proj(x).view(rows, length, self.heads, self.head_dim)  # (B, T, H, D)
        key = self.k_proj(x).view(rows, length, self.kv_heads, self.head_dim)  # (B, T, K, D)
        value = self.v_proj(x).view(rows, length, self.kv_heads, self.head_dim)
        if self.q_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        if cache is not None:
            key, value = cache.update(self.layer, key, value)  # (B, K, S, D)
        else:
            key, value = key.transpose(1, 2), value.transpose(1, 2)
        return self.o_proj(self._attend(query, key, value, mask))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Shapes: query (B, T, H, D), key and value (B, K, S, D), mask (B, 1, T, S) or None (causal) -> (B, T, H*D)."""
        rows, length = query.shape[:2]
        if length == 1:
            # One query per head: the query heads that share a key head become its T axis, so no key is copied.
            grouped = query.view(rows, self.kv_heads, self.heads // self.kv_heads, self.head_dim)
            return F.scaled_dot_product_attention(grouped, key, value, attn_mask=mask).reshape(rows, 1, -1)
        query, causal, shared = query.transpose(1, 2), mask is None, self.heads != self.kv_heads
        # On a CPU the fused bfloat16 kernel's backward is four times slower than the plain one's. Training runs under autocast, and so do
        # its reference and old policy, which need no gradient but have to be measured by the same kernel.
        plain = value.device.type == "cpu" and value.dtype != torch.float32 and torch.is_autocast_enabled("cpu")
        with sdpa_kernel(SDPBackend.MATH) if plain else nullcontext():
            out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal, enable_gqa=shared)
        return out.transpose(1, 2).reshape(rows, length, -1)


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """One layer: attention, then the MLP, each behind a norm and added to the stream."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: KVCache | None, mask: Tensor | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, cache, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class Backbone(nn.Module):
    """Everything below the head; exists so that parameters are called `model.layers.0...` as in Hugging Face files."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Decoder(nn.Module):
    """A causal language model. `Decoder(config)(ids)` gives logits (B, T, V).

    `hf_config` and `generation_config` are the source folder's JSON objects where the model was loaded from one; they
    are written back by `save_pretrained`, so that nothing another program put there is lost.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Backbone(config)
        tied = config.tie_word_embeddings
        self.lm_head = None if tied else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.hf_config: dict[str, Any] = {}
        self.generation_config: dict[str, Any] = {}
        # Not a buffer: a model cast to bfloat16 and back would keep tables of bfloat16 precision.
        self._tables: tuple[Tensor, Tensor] | None = None

    def forward(self, ids: Tensor, *, cache: KVCache | None = None, positions: Tensor | None = None) -> Tensor:
        """Next-token logits for every position.

        Shapes:
            ids: (B, T) int64, padded on the right. positions: (B, T) int64, absolute in each row; default 0..T-1, or
            with a cache `cache.lengths` onwards. Returns (B, T, V).
        Raises:
            ValueError: too many positions for the model or the cache, or a cache used where gradients are recorded.
        """
        return self.head(self.hidden(ids, cache=cache, positions=positions))

    def head(self, hidden: Tensor) -> Tensor:
        """Hidden states to logits. Shapes: (..., C) -> (..., V)."""
        weight = self.model.embed_tokens.weight if self.lm_head is None else self.lm_head.weight
        return F.linear(hidden, weight)

    def hidden(self, ids: Tensor, *, cache: KVCache | None = None, positions: Tensor | None = None) -> Tensor:
        """Hidden states after the final norm. Arguments and errors are those of `forward`. Returns (B, T, C)."""
        if ids.dim() != 2 or ids.shape[1] == 0:
            raise ValueError(f"ids must be (B, T) with T >= 1, got shape {tuple(ids.shape)}")
        if positions is not None and positions.shape != ids.shape:
            raise ValueError(f"positions have shape {tuple(positions.shape)}, ids {tuple(ids.shape)}: they must match")
        mask = None
        if cache is not None:
            if torch.is_grad_enabled():
                raise ValueError("a cache cannot be used where gradients are recorded: call under torch.no_grad()")
            if cache.rows != ids.shape[0]:
                raise ValueError(f"the batch has {ids.shape[0]} rows but the cache has {cache.rows}")
            if positions is None:
                positions = cache.lengths[:, None] + torch.arange(ids.shape[1], device=ids.device)
            mask = cache.place(positions)
        cos, sin = self._rotary(ids, cache, positions)
        x = self.model.embed_tokens(ids)  # (B, T, C)
        for layer in self.model.layers:
            x = layer(x, cos, sin, cache, mask)
        return self.model.norm(x)

    def _rotary(self, ids: Tensor, cache: KVCache | None, positions: Tensor | None) -> tuple[Tensor, Tensor]:
        """The rows of the rotary tables for this call: (T, 1, D) or (B, T, 1, D), built once and reused."""
        limit = self.config.max_position_embeddings
        if cache is not None:
            needed = cache.used
        else:
            needed = ids.shape[1] if positions is None else int(positions.max()) + 1
        if needed > limit:
            raise ValueError(f"{needed} positions asked for, but the model has max_position_embeddings={limit}")
        like = self.model.embed_tokens.weight
        cos, sin = self._tables or (like.new_empty(0), like.new_empty(0))
        if len(cos) < needed or cos.device != like.device or cos.dtype != like.dtype:
            length = min(limit, max(256, 2 * needed))
            # Outside inference mode, or the tables could not be used in a later training step.
            with torch.inference_mode(False):
                cos, sin = self._tables = rotary_tables(self.config, length, like.device, like.dtype)
        if positions is None:
            return cos[: ids.shape[1]], sin[: ids.shape[1]]
        return cos[positions], sin[positions]

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> Decoder:
        """Draw fresh weights for training from scratch; returns the model.

        Choice: normal with std 0.02 (GPT-2, Qwen), and the two matrices that write into the residual stream divided by
        sqrt(2 L), so that the stream's variance does not grow with depth; biases 0, norms 1.
        """
        residual = INIT_STD / (2 * self.config.num_hidden_layers) ** 0.5
        for name, parameter in self.named_parameters():
            if name.endswith("norm.weight"):
                parameter.fill_(1.0)
            elif name.endswith(".bias"):
                parameter.zero_()
            else:
                std = residual if name.endswith(("o_proj.weight", "down_proj.weight")) else INIT_STD
                parameter.normal_(0.0, std, generator=generator)
        return self
