"""Rows of any length in one call on a GPU: all their tokens lie end to end in one sequence, with no padding between them.

A fused kernel ("flash", 2205.14135) never writes attention scores to memory, and it also says the log-sum-exp of each query's scores. So
attention over a shared prefix, one call for all rows that share it, and attention over a row's own tokens are computed apart and merged
(`pointwise.merged`). `KVCache` and `Branches` are the twins whose results these are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from taosr1.model.linear import is_plain
from taosr1.model.pointwise import merged

if TYPE_CHECKING:
    from taosr1.model.decoder import DecoderConfig


def flash_serves(x: Tensor, config: DecoderConfig) -> bool:
    """Whether keys like `x` can be attended to by the fused kernel: bfloat16 or float16 on a GPU that is new enough."""
    return (
        x.device.type == "cuda"
        and x.dtype in (torch.bfloat16, torch.float16)
        and config.head_dim % 8 == 0
        and config.head_dim <= 256
        and torch.cuda.get_device_capability(x.device) >= (8, 0)
        and not is_plain()
    )


def varlen_attention(
    query: Tensor, key: Tensor, value: Tensor, queries_from: Tensor, keys_from: Tensor, longest: tuple[int, int], causal: bool
) -> tuple[Tensor, Tensor]:
    """Attention within S sequences that lie end to end, and the log-sum-exp of each query's scores.

    Sequence i has the queries queries_from[i] to queries_from[i + 1] and the keys keys_from[i] to keys_from[i + 1]. If causal, there are
    as many queries as keys.
    Shapes: query (N, H, D); key, value (M, K, D); queries_from, keys_from (S + 1,) int32; longest: the most queries and the most keys of a
    sequence -> (N, H, D), (N, H) float32.
    """
    if query.device.type != "cuda":
        return varlen_attention_plain(query, key, value, queries_from, keys_from, causal)
    out, lse, *_ = torch.ops.aten._flash_attention_forward(query, key, value, queries_from, keys_from, *longest, 0.0, causal, False)
    return out, lse.t().contiguous()  # as it comes, (H, N), it would give what is merged its own order in memory


def varlen_attention_plain(query: Tensor, key: Tensor, value: Tensor, queries_from: Tensor, keys_from: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """`varlen_attention`, one sequence after another."""
    outs, lses = [], []
    each = zip(queries_from.tolist(), queries_from[1:].tolist(), keys_from.tolist(), keys_from[1:].tolist())
    for first, end, key_first, key_end in each:
        asking, keys, values = query[first:end], key[key_first:key_end], value[key_first:key_end]  # (T, H, D), (t, K, D)
        keys, values = (x.repeat_interleave(query.shape[1] // key.shape[1], dim=1).float() for x in (keys, values))
        scores = torch.einsum("qhd,khd->qhk", asking.float(), keys) * query.shape[-1] ** -0.5
        if causal:
            late = torch.ones(len(asking), len(keys), dtype=torch.bool, device=query.device).triu(1)
            scores = scores.masked_fill(late[:, None], -torch.inf)
        outs.append(torch.einsum("qhk,khd->qhd", scores.softmax(-1), values).to(query.dtype))
        lses.append(scores.logsumexp(-1))
    return torch.cat(outs), torch.cat(lses)


class FlatRows:
    """R rows end to end: what attends (`Pattern`) in a call with all their N tokens as one row.

    lengths: tokens of each row. starts: the first token's place in its prompt, where that is not 0.
    `positions` (1, N) are the tokens' places, `last` (1, R) the columns of the rows' last tokens: a layer may be asked for all columns or
    for just these.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device | str, starts: Sequence[int] | None = None) -> None:
        own = torch.tensor(lengths)  # (R,)
        self.first_tokens = starts_of(own)  # (R + 1,), on the CPU
        tokens = torch.arange(int(self.first_tokens[-1])) - self.first_tokens[:-1].repeat_interleave(own)  # (N,): 0, 1, ... in every row
        places = tokens if starts is None else tokens + torch.tensor(starts).repeat_interleave(own)
        self.longest, self.used = int(own.max()), int(places.max()) + 1
        self.tokens_from, self.rows_from = send(self.first_tokens.int(), device), send(torch.arange(len(own) + 1, dtype=torch.int32), device)
        self.positions, self.last = send(places[None], device), send(self.first_tokens[None, 1:] - 1, device)

    def over_own(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Attention of all tokens, or of the last ones, over their own row. Shapes: (1, n, ., D) each -> (n, H, D), (n, H)."""
        if query.shape[1] == key.shape[1]:
            return varlen_attention(query[0], key[0], value[0], self.tokens_from, self.tokens_from, (self.longest, self.longest), True)
        return varlen_attention(query[0], key[0], value[0], self.rows_from, self.tokens_from, (1, self.longest), False)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: None) -> Tensor:
        """See `Pattern`: query (1, N, H, D), or (1, R, H, D) at `last`."""
        return self.over_own(query, key, value)[0][None].flatten(2)


class FlatPrefixes(FlatRows):
    """P prefixes end to end; a call with this pattern keeps their keys and values, (L, M, K, D)."""

    def __init__(self, config: DecoderConfig, lengths: Sequence[int], dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__(lengths, device)
        self.row_lengths = list(lengths)
        shape = (config.num_hidden_layers, sum(lengths), config.num_key_value_heads, config.head_dim)
        self.keys, self.values = torch.empty((2, *shape), dtype=dtype, device=device)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: None) -> Tensor:
        self.keys[layer], self.values[layer] = key[0], value[0]
        return super().attend(layer, query, key, value, mask)


class FlatSuffixes(FlatRows):
    """R rows end to end that continue prefixes.

    prefix_of: for each row its prefix, ascending: 0 is the prefix `first` of `prefixes`, 1 the next, and so on. lengths: tokens of each row.
    """

    def __init__(self, prefixes: FlatPrefixes, prefix_of: Sequence[int], lengths: Sequence[int], first: int = 0) -> None:
        device, count = prefixes.keys.device, prefix_of[-1] + 1
        super().__init__(lengths, device, [prefixes.row_lengths[first + prefix] for prefix in prefix_of])
        rows_from = starts_of(torch.bincount(torch.tensor(prefix_of), minlength=count))  # (P + 1,)
        tokens_from = self.first_tokens[rows_from]
        self.prefixes, self.keys_from = prefixes, prefixes.tokens_from[first : first + count + 1]
        self.rows_of, self.most_rows = send(rows_from.int(), device), int(rows_from.diff().max())
        self.tokens_of, self.most_tokens = send(tokens_from.int(), device), int(tokens_from.diff().max())

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: None) -> Tensor:
        asking, most = (self.tokens_of, self.most_tokens) if query.shape[1] == key.shape[1] else (self.rows_of, self.most_rows)
        keys, values = self.prefixes.keys[layer], self.prefixes.values[layer]
        behind, behind_lse = varlen_attention(query[0], keys, values, asking, self.keys_from, (most, self.prefixes.longest), False)
        own, own_lse = self.over_own(query, key, value)
        return merged(behind[None], behind_lse[None], own[None], own_lse[None]).flatten(2)


def send(x: Tensor, device: torch.device | str) -> Tensor:
    """x on the device. From pinned memory a GPU fetches it when it gets there, and Python does not wait for that."""
    return x.pin_memory().to(device, non_blocking=True) if torch.device(device).type == "cuda" else x.to(device)


def starts_of(lengths: Tensor) -> Tensor:
    """Where things of these lengths begin if they lie end to end, and where the last one ends. Shapes: (n,) -> (n + 1,)."""
    return torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
