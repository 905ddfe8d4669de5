"""Attention: the one place of the plain program where attention scores are computed, and the module around it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from taosr1.model.config import DecoderConfig
from taosr1.model.kv_cache import KVCache
from taosr1.model.norm import RMSNorm
from taosr1.model.rotary import rotate


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(D)) V for grouped queries: H query heads share K key heads, H / K each.

    Shapes: query (B, T, H, D), key and value (B, K, S, D), mask (B or 1, 1, T, S) bool, True where a query attends
        to a key (at least one key for every query) -> (B, T, H * D). Scores and softmax are float32 or wider.
    Source: 1706.03762, section 3.2.1; grouped queries: 2305.13245.
    """
    rows, length, heads, size = query.shape
    query = query.transpose(1, 2)  # (B, H, T, D)
    key, value = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (key, value))  # (B, H, S, D)
    wide = torch.promote_types(query.dtype, torch.float32)
    with torch.autocast(query.device.type, enabled=False):  # rounded scores would make gradients visibly worse
        scores = query.to(wide) @ key.to(wide).transpose(-1, -2) * size**-0.5  # (B, H, T, S)
    probs = scores.masked_fill(~mask, -torch.inf).softmax(-1).to(value.dtype)
    return (probs @ value).transpose(1, 2).reshape(rows, length, -1)


def causal_mask(positions: Tensor, keys: int, window: int | None) -> Tensor:
    """Which keys each query attends to: its own position and those before it, the last `window` of them if given.

    Shapes: positions (B, T) int64 of the queries; the keys have positions 0 to keys - 1 -> (B, 1, T, keys) bool.
    """
    key_positions, query_positions = torch.arange(keys, device=positions.device), positions[:, :, None]
    seen = key_positions <= query_positions  # (B, T, keys)
    if window is not None:
        seen = seen & (key_positions > query_positions - window)
    return seen[:, None]


class Attention(nn.Module):
    """Causal self-attention with grouped key/value heads, rotary positions and, for Qwen3, query and key norms."""

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

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, cache: KVCache | None = None) -> Tensor:
        """Shapes: x (B, T, C), cos and sin as `rotate`, mask as `attention` -> (B, T, C)."""
        rows, length, _ = x.shape
        query = self.q_proj(x).view(rows, length, self.heads, self.head_dim)  # (B, T, H, D)
        key = self.k_proj(x).view(rows, length, self.kv_heads, self.head_dim)  # (B, T, K, D)
        value = self.v_proj(x).view(rows, length, self.kv_heads, self.head_dim)
        if self.q_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        key, value = key.transpose(1, 2), value.transpose(1, 2)  # (B, K, T, D)
        if cache is not None:
            key, value = cache.update(self.layer, key, value)  # (B, K, S, D): the earlier tokens' too
        return self.o_proj(attention(query, key, value, mask))
