"""The decoder with every trick switched on: the same modules and parameters, other forward passes.

`use_fast_modules` gives the modules of a plain `Decoder` their fast classes, in place. Beside the plain calls, the fast
decoder takes `attend` (a mask, or a backend that computes attention itself) and `keep` (the positions whose hidden
states are needed).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from taosr1.fast.attention import fused_attention
from taosr1.fast.fused_ops import add_and_norm, norm_and_rotate, rms_norm, swiglu
from taosr1.fast.grouped_experts import grouped_linear
from taosr1.fast.kv_cache import AttentionBackend, Cache, FastKVCache
from taosr1.fast.onednn_linear import OneDNNLinear, linear
from taosr1.model.attention import Attention, causal_mask
from taosr1.model.decoder import MLP, Block, Decoder
from taosr1.model.kv_cache import KVCache
from taosr1.model.lora import LoraLinear
from taosr1.model.moe import Experts
from taosr1.model.norm import RMSNorm
from taosr1.model.rotary import rotary_cos_sin

FEWEST_POSITIONS = 256  # of the rotary tables, so that growing rows do not rebuild them often


class ForwardContext(NamedTuple):
    """What the layers need to know of one call of the model besides the hidden states.

    cos_sin, query_cos_sin: cosines and sines of the positions of keys and of queries, as `rotate` takes them.
    backend: computes attention instead of `fused_attention`. mask: (B, 1, T', S) bool, or None for causal attention.
    keep: (B, T') int64, the columns whose outputs are needed of this layer; None: all of them.
    """

    cos_sin: tuple[Tensor, Tensor]
    query_cos_sin: tuple[Tensor, Tensor]
    backend: AttentionBackend | None
    mask: Tensor | None
    keep: Tensor | None = None

    def keeping(self, keep: Tensor, length: int | None) -> ForwardContext:
        """The same call for a layer of which only the columns `keep` are needed. length: columns of the call, or None
        for a backend that needs no mask."""
        cos_sin = tuple(x[keep] if x.dim() == 3 else take(x, keep) for x in self.cos_sin)
        mask = self.mask
        if mask is not None:
            mask = take(mask[:, 0].expand(len(keep), -1, -1), keep)[:, None]
        elif length is not None:  # causal
            mask = (torch.arange(length, device=keep.device) <= keep[:, :, None])[:, None]  # (B, 1, T', T)
        return self._replace(query_cos_sin=cos_sin, mask=mask, keep=keep)


def take(x: Tensor, columns: Tensor) -> Tensor:
    """Some columns of every row. Shapes: x (B, T, ...), columns (B, T') int64 -> (B, T', ...)."""
    return x[torch.arange(len(x), device=x.device)[:, None], columns]


def in_compute_type(x: Tensor) -> Tensor:
    """x in the type of autocast, where that is on: several products would each make, and keep, a copy of their own."""
    kind = x.device.type
    narrow = x.dtype == torch.float32 and torch.is_autocast_enabled(kind)
    return x.to(torch.get_autocast_dtype(kind)) if narrow else x


class FastRMSNorm(RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x.to(self.weight.dtype), self.weight, self.eps)


class FastAttention(Attention):
    def forward(self, x: Tensor, context: ForwardContext) -> Tensor:
        """Shapes: x (B, T, C) -> (B, T', C): every position gives a key, the kept ones give queries."""
        rows, length, _ = x.shape
        x = in_compute_type(x)
        queries = x if context.keep is None else take(x, context.keep)  # (B, T', C)
        query = self.q_proj(queries).view(rows, -1, self.heads, self.head_dim)  # (B, T', H, D)
        key = self.k_proj(x).view(rows, length, self.kv_heads, self.head_dim)  # (B, T, K, D)
        value = self.v_proj(x).view(rows, length, self.kv_heads, self.head_dim)
        query = _norm_and_rotate(query, self.q_norm, context.query_cos_sin)
        key = _norm_and_rotate(key, self.k_norm, context.cos_sin)
        if context.backend is not None:
            return self.o_proj(context.backend.attend(self.layer, query, key, value, context.mask))
        return self.o_proj(fused_attention(query, key.transpose(1, 2), value.transpose(1, 2), context.mask))


def _norm_and_rotate(x: Tensor, norm: RMSNorm | None, cos_sin: tuple[Tensor, Tensor]) -> Tensor:
    if norm is None:
        return norm_and_rotate(x, None, 0.0, *cos_sin)
    return norm_and_rotate(x.to(norm.weight.dtype), norm.weight, norm.eps, *cos_sin)


class FastMLP(MLP):
    def forward(self, x: Tensor) -> Tensor:
        x = in_compute_type(x)
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))


class FastExperts(Experts):
    """All experts in three grouped products."""

    def forward(self, tokens: Tensor, ends: Tensor) -> Tensor:
        gate, up = grouped_linear(tokens, self.gate_proj, ends), grouped_linear(tokens, self.up_proj, ends)
        return grouped_linear(swiglu(gate, up), self.down_proj, ends)


class FastBlock(Block):
    def forward(self, x: Tensor, context: ForwardContext) -> Tensor:
        attended = self.self_attn(self.input_layernorm(x), context)
        x = x if context.keep is None else take(x, context.keep)
        x, normed = add_and_norm(x, attended, self.post_attention_layernorm)
        return x + self.mlp(normed)


class FastLoraLinear(LoraLinear):
    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return linear(x, weight, bias)


class FastDecoder(Decoder):
    _tables: tuple[Tensor, Tensor] | None = None  # no buffer: a cast to bfloat16 and back would lose their precision

    def head(self, hidden: Tensor) -> Tensor:
        return linear(hidden, self.model.embed_tokens.weight) if self.lm_head is None else self.lm_head(hidden)

    def hidden(
        self,
        ids: Tensor,
        *,
        cache: Cache | KVCache | None = None,
        positions: Tensor | None = None,
        attend: Tensor | AttentionBackend | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """Hidden states after the final norm: (B, T, C), or (B, T', C) with `keep`. The other arguments as `Decoder`.

        attend: (B, 1, T, T) bool, True where a query (third axis) attends to a key; it replaces the causal mask of a
            call without a cache. Or a backend that computes attention itself.
        keep: (B, T') int64, the columns whose hidden states are needed. All columns give keys and values, but in the
            last layer the queries, the MLP and the norm run at these columns only: the same numbers for less work.
        """
        if type(cache) is KVCache:  # the plain `generate`'s: the same tensors, used as an attention backend
            cache.__class__ = FastKVCache
        self.check_inputs(ids, cache, positions)
        masked = attend is None or torch.is_tensor(attend)
        mask, backend = (attend, cache) if masked else (None, attend)
        window, length = self.config.sliding_window, ids.shape[1]
        if cache is not None:
            if attend is not None:
                raise ValueError("attend is for calls without a cache, which has a mask of its own")
            if positions is None:
                positions = cache.lengths[:, None] + torch.arange(length, device=ids.device)
            mask = cache.place(positions)
        elif attend is None and window is not None and length > window:
            mask = causal_mask(torch.arange(length, device=ids.device)[None], length, window)
        if length == 1:
            keep = None  # there is no other column
        cos_sin = self._cos_sin(ids, backend, positions)
        context = ForwardContext(cos_sin, cos_sin, backend, mask)
        x = self.model.embed_tokens(ids)  # (B, T, C)
        recompute = self.activation_checkpointing and torch.is_grad_enabled()
        for number, layer in enumerate(self.model.layers, start=1):
            if number == len(self.model.layers) and keep is not None:
                context = context.keeping(keep, length if masked else None)
            x = checkpoint(layer, x, context, use_reentrant=False) if recompute else layer(x, context)
        return self.model.norm(x)

    def _cos_sin(
        self, ids: Tensor, backend: AttentionBackend | None, positions: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The rows of the rotary tables for this call: (T, 1, D) or (B, T, 1, D)."""
        if backend is not None:
            needed = backend.used  # known on the host: to ask a GPU for the highest position would wait for it
        else:
            needed = ids.shape[1] if positions is None else int(positions.max()) + 1
        self.check_positions(needed)
        cos, sin = self._rotary_tables(needed)
        if positions is None:
            return cos[: ids.shape[1]], sin[: ids.shape[1]]
        return cos[positions], sin[positions]

    def prepare_positions(self, positions: int) -> None:
        """Build the rotary tables for so many positions now: a CUDA graph needs them to stay where they are."""
        self._rotary_tables(min(positions, self.config.max_position_embeddings))

    def _rotary_tables(self, needed: int) -> tuple[Tensor, Tensor]:
        """Tables for at least so many positions, built once and reused."""
        limit, like = self.config.max_position_embeddings, self.model.embed_tokens.weight
        cos, sin = self._tables or (like.new_empty(0), like.new_empty(0))
        if len(cos) < needed or cos.device != like.device or cos.dtype != like.dtype:
            length = min(limit, max(FEWEST_POSITIONS, 2 * needed))
            # Outside inference mode, or the tables could not be used in a later training step.
            with torch.inference_mode(False):
                positions = torch.arange(length, device=like.device)
                cos, sin = self._tables = rotary_cos_sin(self.config, positions, like.dtype)
        return cos, sin


FAST_CLASSES: dict[type, type] = {
    Attention: FastAttention,
    Block: FastBlock,
    Decoder: FastDecoder,
    Experts: FastExperts,
    LoraLinear: FastLoraLinear,
    MLP: FastMLP,
    RMSNorm: FastRMSNorm,
    nn.Linear: OneDNNLinear,
}


def use_fast_modules(model: Decoder) -> Decoder:
    """Give every module of a decoder its fast class, in place: parameters stay the same objects. Returns the model."""
    for module in model.modules():
        module.__class__ = FAST_CLASSES.get(type(module), type(module))
    return model
