"""The decoder: Llama, Mistral, Qwen2, Qwen3 and Qwen3-MoE in plain PyTorch, with Hugging Face parameter names.

Batches are padded on the right. Attention is causal, so no real token attends to padding and no padding mask is needed.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from taosr1.model.attention import Attention, causal_mask
from taosr1.model.config import DecoderConfig
from taosr1.model.kv_cache import KVCache
from taosr1.model.moe import MixtureOfExperts
from taosr1.model.norm import RMSNorm
from taosr1.model.rotary import rotary_cos_sin

INIT_STD = 0.02


class MLP(nn.Module):
    """The dense feed-forward layer: down(silu(gate(x)) * up(x)) (SwiGLU, 2002.05202)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """One layer: attention, then the MLP, each applied to a normed input and added to the residual stream."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        has_experts = config.num_experts and layer not in config.dense_layers
        self.self_attn = Attention(config, layer)
        self.mlp = MixtureOfExperts(config) if has_experts else MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, cache: KVCache | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Backbone(nn.Module):
    """Everything below the head; exists so that parameters are called `model.layers.0...` as in Hugging Face files."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        # Zeros, not nn.Embedding's random numbers: on the meta device those would import half of torch.compile.
        table = torch.zeros(config.vocab_size, config.hidden_size)
        self.embed_tokens = nn.Embedding.from_pretrained(table, freeze=False)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Decoder(nn.Module):
    """A causal language model. `Decoder(config)(ids)` gives logits (B, T, V).

    `hf_config` and `generation_config` are the source folder's JSON objects if the model was loaded from one; they are
    written back by `save_pretrained`, so that nothing another program put there is lost. `source` is that folder or
    hub id, "" for fresh weights: an adapter's file has to name its base.

    With `activation_checkpointing` on, training keeps only the input of every layer and computes the rest again in the
    backward pass: the same gradients for one more forward pass.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Backbone(config)
        tied = config.tie_word_embeddings
        self.lm_head = None if tied else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.hf_config: dict[str, Any] = {}
        self.generation_config: dict[str, Any] = {}
        self.source = ""
        self.activation_checkpointing = False

    def forward(self, ids: Tensor, *, cache: KVCache | None = None, positions: Tensor | None = None) -> Tensor:
        """Next-token logits for every position.

        Shapes:
            ids: (B, T) int64, padded on the right. positions: (B, T) int64, absolute in each row; default 0..T-1, or
            with a cache `cache.lengths` onwards. Returns (B, T, V).
        Raises:
            ValueError: too many positions for the model or the cache, or a cache used while gradients are recorded.
        """
        return self.head(self.hidden(ids, cache=cache, positions=positions))

    def head(self, hidden: Tensor) -> Tensor:
        """Hidden states to logits. Shapes: (..., C) -> (..., V)."""
        if self.lm_head is None:
            return F.linear(hidden, self.model.embed_tokens.weight)
        return self.lm_head(hidden)

    def hidden(self, ids: Tensor, *, cache: KVCache | None = None, positions: Tensor | None = None) -> Tensor:
        """Hidden states after the final norm, (B, T, C). Arguments and errors are those of `forward`."""
        self.check_inputs(ids, cache, positions)
        columns = torch.arange(ids.shape[1], device=ids.device)[None]  # (1, T)
        if positions is None:
            positions = columns if cache is None else cache.lengths[:, None] + columns  # (1 or B, T)
        self.check_positions(int(positions.max()) + 1)
        # Without a cache the keys are the columns of this call, with one they are the positions 0 to `used` - 1.
        queries, keys = (columns, ids.shape[1]) if cache is None else (positions, cache.reserve(positions))
        mask = causal_mask(queries, keys, self.config.sliding_window)  # (B or 1, 1, T, keys)
        cos, sin = rotary_cos_sin(self.config, positions, self.model.embed_tokens.weight.dtype)
        x = self.model.embed_tokens(ids)  # (B, T, C)
        for layer in self.model.layers:
            if self.activation_checkpointing and torch.is_grad_enabled():
                x = checkpoint(layer, x, cos, sin, mask, cache, use_reentrant=False)
            else:
                x = layer(x, cos, sin, mask, cache)
        return self.model.norm(x)

    def check_inputs(self, ids: Tensor, cache: KVCache | None, positions: Tensor | None) -> None:
        """Raises: ValueError for shapes that do not fit, or a cache used while gradients are recorded."""
        if ids.dim() != 2 or ids.shape[1] == 0:
            raise ValueError(f"ids must be (B, T) with T >= 1, got shape {tuple(ids.shape)}")
        if positions is not None and positions.shape != ids.shape:
            raise ValueError(f"positions have shape {tuple(positions.shape)}, ids {tuple(ids.shape)}: they must match")
        if cache is not None and torch.is_grad_enabled():
            raise ValueError("a cache cannot be used while gradients are recorded: call under torch.no_grad()")
        if cache is not None and cache.rows != ids.shape[0]:
            raise ValueError(f"the batch has {ids.shape[0]} rows but the cache has {cache.rows}")

    def check_positions(self, needed: int) -> None:
        """Raises: ValueError for more positions than the model has."""
        limit = self.config.max_position_embeddings
        if needed > limit:
            raise ValueError(f"{needed} positions asked for, but the model has max_position_embeddings={limit}")

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
                std = residual if ".o_proj" in name or ".down_proj" in name else INIT_STD
                parameter.normal_(0.0, std, generator=generator)
        return self
