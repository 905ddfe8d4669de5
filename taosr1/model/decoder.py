"""The decoder: Llama, Mistral, Qwen2, Qwen3 and Qwen3-MoE in one plain PyTorch module with Hugging Face parameter names.

Batches are padded on the right. Attention is causal, so padding reaches no real token and no padding mask is needed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from taosr1.fast.fused_ops import GatedSiLU, add_and_norm, gated, norm_and_rotate, rms_norm
from taosr1.fast.onednn_linear import Linear, is_plain, linear
from taosr1.model.attention import AttentionBackend, attention
from taosr1.model.kv_cache import Cache
from taosr1.model.moe import grouped_linear
from taosr1.model.rotary import Llama3Scaling, rotary_tables

INIT_STD = 0.02
SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "max_position_embeddings"),
)
EXPERT_SIZES = ("num_experts", "num_experts_per_tok", "moe_intermediate_size")
MOST_LAYERS = MOST_EXPERTS = 4096  # beyond any model; a damaged config.json shall not fill the memory with modules


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
    sliding_window: int | None = None  # a query sees this many positions, its own included; None: all before it
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
            problems.append(f"num_experts_per_tok is {self.num_experts_per_tok}, but there are only {self.num_experts} experts")
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
    """Root-mean-square normalisation, computed in float32 where the model's dtype is a half one."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def cast(self, x: Tensor) -> Tensor:
        """Under autocast a bfloat16 x meets float32 weights: the fused kernel wants one dtype."""
        return x.to(self.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(self.cast(x), self.weight, self.eps)


class Call(NamedTuple):
    """What the layers have to know of one call of the model beside the stream itself.

    turns, query_turns: cosines and sines of the positions of keys and of queries. mask: (B, 1, T', S) bool, or None for causal attention.
    read: (B, T') int64, the columns whose outputs are wanted of this layer; None: all of them. pattern: what attends instead of `attention`.
    """

    turns: tuple[Tensor, Tensor]
    query_turns: tuple[Tensor, Tensor]
    pattern: AttentionBackend | None
    mask: Tensor | None
    read: Tensor | None = None

    def reading(self, read: Tensor, length: int | None) -> Call:
        """The same call for a layer of which only the columns `read` are wanted. length: columns of the call, None where a pattern needs no mask."""
        turns = tuple(turn[read] if turn.dim() == 3 else take(turn, read) for turn in self.turns)
        mask = self.mask
        if mask is not None:
            mask = take(mask[:, 0].expand(len(read), -1, -1), read)[:, None]
        elif length is not None:  # causal
            mask = (torch.arange(length, device=read.device) <= read[:, :, None])[:, None]  # (B, 1, T', T)
        return self._replace(query_turns=turns, mask=mask, read=read)


def take(x: Tensor, columns: Tensor) -> Tensor:
    """Of every row some columns. Shapes: x (B, T, ...), columns (B, T') int64 -> (B, T', ...)."""
    return x[torch.arange(len(x), device=x.device)[:, None], columns]


class Attention(nn.Module):
    """Causal self-attention with grouped key/value heads, rotary positions and, for Qwen3, q/k norms."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        self.q_proj = Linear(config.hidden_size, query, bias=config.qkv_bias)
        self.k_proj = Linear(config.hidden_size, key, bias=config.qkv_bias)
        self.v_proj = Linear(config.hidden_size, key, bias=config.qkv_bias)
        self.o_proj = Linear(query, config.hidden_size, bias=False)
        self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps) if config.qk_norm else None

    def forward(self, x: Tensor, call: Call) -> Tensor:
        rows, length, _ = x.shape
        asking = x if call.read is None else take(x, call.read)  # (B, T', C): every position gives a key, but only these ask
        query = self.q_proj(asking).view(rows, -1, self.heads, self.head_dim)  # (B, T', H, D)
        key = self.k_proj(x).view(rows, length, self.kv_heads, self.head_dim)  # (B, T, K, D)
        value = self.v_proj(x).view(rows, length, self.kv_heads, self.head_dim)
        query, key = turn(query, self.q_norm, call.query_turns), turn(key, self.k_norm, call.turns)
        if call.pattern is not None:
            return self.o_proj(call.pattern.attend(self.layer, query, key, value, call.mask))
        return self.o_proj(attention(query, key.transpose(1, 2), value.transpose(1, 2), call.mask))


def turn(x: Tensor, norm: RMSNorm | None, turns: tuple[Tensor, Tensor]) -> Tensor:
    """Queries or keys (B, T, H, D) behind their norm, if they have one, and turned to their positions."""
    return norm_and_rotate(x, None, 0.0, *turns) if norm is None else norm_and_rotate(norm.cast(x), norm.weight, norm.eps, *turns)


def swiglu(x: Tensor, gate, up, down) -> Tensor:
    """down(silu(gate(x)) * up(x)): one formula for the dense MLP and for the experts."""
    return down(GatedSiLU.apply(gate(x), up(x)) if torch.is_grad_enabled() else gated(gate(x), up(x)))


class MLP(nn.Module):
    """The dense feed-forward layer."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return swiglu(x, self.gate_proj, self.up_proj, self.down_proj)


class Experts(nn.Module):
    """E MLPs whose matrices are stacked, (E, out, in), so that all of them are computed by three grouped products."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        experts, inner, width = config.num_experts, config.moe_intermediate_size, config.hidden_size
        self.gate_proj = nn.Parameter(torch.empty(experts, inner, width))
        self.up_proj = nn.Parameter(torch.empty(experts, inner, width))
        self.down_proj = nn.Parameter(torch.empty(experts, width, inner))

    def forward(self, rows: Tensor, ends: Tensor) -> Tensor:
        """Shapes: rows (R, C) sorted by expert; ends (E,) int32, where each expert's rows end -> (R, C)."""
        return swiglu(rows, *(partial(grouped_linear, weight=w, ends=ends) for w in (self.gate_proj, self.up_proj, self.down_proj)))


class MixtureOfExperts(nn.Module):
    """Every token goes to the k experts its router likes best and adds their outputs, weighted by the router's probabilities."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.chosen, self.normalise = config.num_experts_per_tok, config.norm_topk_prob
        self.gate = Linear(config.hidden_size, config.num_experts, bias=False)  # the router
        self.experts = Experts(config)

    def route(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (N, k) and expert numbers (N, k) of tokens (N, C). Softmax over all experts comes before the choice."""
        logits = self.gate(tokens)
        weights, experts = logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32)).topk(self.chosen, dim=-1)
        if self.normalise:
            weights = weights / weights.sum(-1, keepdim=True)
        return weights.to(logits.dtype), experts

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, x.shape[-1])  # (N, C)
        weights, experts = self.route(tokens)
        by_expert, order = experts.flatten().sort(stable=True)  # (N * k,): the assignments, expert by expert
        numbers = torch.arange(self.gate.out_features, device=x.device)
        ends = torch.searchsorted(by_expert, numbers, right=True, out_int32=True)  # (E,): an empty expert ends where it begins
        # Not tokens[...]: a token goes to several experts, and the gradient of indexing adds in no fixed order.
        out = self.experts(tokens.index_select(0, order // self.chosen), ends)[order.argsort()]  # (N * k, C), token by token again
        return (out.view(*experts.shape, -1) * weights[..., None]).sum(1).view_as(x)


class Block(nn.Module):
    """One layer: attention, then the MLP, each behind a norm and added to the stream."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = MixtureOfExperts(config) if config.num_experts and layer not in config.dense_layers else MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, call: Call) -> Tensor:
        attended = self.self_attn(self.input_layernorm(x), call)
        x, normed = add_and_norm(x if call.read is None else take(x, call.read), attended, self.post_attention_layernorm)
        return x + self.mlp(normed)


class Backbone(nn.Module):
    """Everything below the head; exists so that parameters are called `model.layers.0...` as in Hugging Face files."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        # Zeros, not nn.Embedding's own random numbers: on the meta device those would import half of torch.compile.
        self.embed_tokens = nn.Embedding.from_pretrained(torch.zeros(config.vocab_size, config.hidden_size), freeze=False)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Decoder(nn.Module):
    """A causal language model. `Decoder(config)(ids)` gives logits (B, T, V).

    `hf_config` and `generation_config` are the source folder's JSON objects where the model was loaded from one; they
    are written back by `save_pretrained`, so that nothing another program put there is lost. `source` says which folder or hub id
    that was, "" for fresh weights: an adapter's file has to name its base.

    With `activation_checkpointing` on, training keeps only the input of every layer and computes the rest again in the
    backward pass: the same gradients for one more forward pass.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Backbone(config)
        tied = config.tie_word_embeddings
        self.lm_head = None if tied else Linear(config.hidden_size, config.vocab_size, bias=False)
        self.hf_config: dict[str, Any] = {}
        self.generation_config: dict[str, Any] = {}
        self.source = ""
        self.activation_checkpointing = False
        # Not a buffer: a model cast to bfloat16 and back would keep tables of bfloat16 precision.
        self._tables: tuple[Tensor, Tensor] | None = None

    def forward(self, ids: Tensor, *, cache: Cache | None = None, positions: Tensor | None = None) -> Tensor:
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
        return linear(hidden, self.model.embed_tokens.weight) if self.lm_head is None else self.lm_head(hidden)

    def hidden(
        self,
        ids: Tensor,
        *,
        cache: Cache | None = None,
        positions: Tensor | None = None,
        attends: Tensor | AttentionBackend | None = None,
        read: Tensor | None = None,
    ) -> Tensor:
        """Hidden states after the final norm. Arguments and errors are those of `forward`. Returns (B, T, C), or (B, T', C) with `read`.

        attends: (B, 1, T, T) bool, True where a query (third axis) may look; it replaces the causal mask of a call without a cache. Or
            a pattern that computes attention itself.
        read: (B, T') int64, the columns whose hidden states are wanted. All columns give keys and values, but in the last layer nobody
            needs more of them: there the queries, the MLP and the norm run at these columns only, the same numbers for less work.
        """
        if ids.dim() != 2 or ids.shape[1] == 0:
            raise ValueError(f"ids must be (B, T) with T >= 1, got shape {tuple(ids.shape)}")
        if positions is not None and positions.shape != ids.shape:
            raise ValueError(f"positions have shape {tuple(positions.shape)}, ids {tuple(ids.shape)}: they must match")
        masked = attends is None or torch.is_tensor(attends)
        mask, pattern = (attends, cache) if masked else (None, attends)
        if cache is not None:
            if attends is not None:
                raise ValueError("attends is for calls without a cache, which has a mask of its own")
            if torch.is_grad_enabled():
                raise ValueError("a cache cannot be used where gradients are recorded: call under torch.no_grad()")
            if cache.rows != ids.shape[0]:
                raise ValueError(f"the batch has {ids.shape[0]} rows but the cache has {cache.rows}")
            if positions is None:
                positions = cache.lengths[:, None] + torch.arange(ids.shape[1], device=ids.device)
            mask = cache.place(positions)
        elif attends is None and self.config.sliding_window is not None and ids.shape[1] > self.config.sliding_window:
            steps = torch.arange(ids.shape[1], device=ids.device)
            behind = steps[:, None] - steps  # (T, T): how far back a key lies
            mask = ((behind >= 0) & (behind < self.config.sliding_window))[None, None]
        if ids.shape[1] == 1:
            read = None  # there is no other column
        turns = self._rotary(ids, pattern, positions)
        call = Call(turns, turns, pattern, mask)
        x = self.model.embed_tokens(ids)  # (B, T, C)
        recompute = self.activation_checkpointing and torch.is_grad_enabled()
        for number, layer in enumerate(self.model.layers, start=1):
            if number == len(self.model.layers) and read is not None and not is_plain():
                call = call.reading(read, ids.shape[1] if masked else None)
            x = checkpoint(layer, x, call, use_reentrant=False) if recompute else layer(x, call)
        if read is not None and is_plain():
            x = take(x, read)
        return self.model.norm(x)

    def _rotary(self, ids: Tensor, pattern: AttentionBackend | None, positions: Tensor | None) -> tuple[Tensor, Tensor]:
        """The rows of the rotary tables for this call: (T, 1, D) or (B, T, 1, D), built once and reused."""
        if pattern is not None:
            needed = pattern.used  # a number that is known: to ask a GPU for the highest position would mean to wait for it
        else:
            needed = ids.shape[1] if positions is None else int(positions.max()) + 1
        self.check_positions(needed)
        cos, sin = self._turns(needed)
        if positions is None:
            return cos[: ids.shape[1]], sin[: ids.shape[1]]
        return cos[positions], sin[positions]

    def check_positions(self, needed: int) -> None:
        """Raises: ValueError for more positions than the model has."""
        limit = self.config.max_position_embeddings
        if needed > limit:
            raise ValueError(f"{needed} positions asked for, but the model has max_position_embeddings={limit}")

    def prepare(self, positions: int) -> None:
        """Build the rotary tables for so many positions now: calls recorded as a CUDA graph must find them where they will stay."""
        self._turns(min(positions, self.config.max_position_embeddings))

    def _turns(self, needed: int) -> tuple[Tensor, Tensor]:
        """The rotary tables for at least so many positions, built once and reused."""
        limit, like = self.config.max_position_embeddings, self.model.embed_tokens.weight
        cos, sin = self._tables or (like.new_empty(0), like.new_empty(0))
        if len(cos) < needed or cos.device != like.device or cos.dtype != like.dtype:
            length = min(limit, max(256, 2 * needed))
            # Outside inference mode, or the tables could not be used in a later training step.
            with torch.inference_mode(False):
                cos, sin = self._tables = rotary_tables(self.config, length, like.device, like.dtype)
        return cos, sin

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
