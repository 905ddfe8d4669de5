"""Rows of any length in one call on a GPU: all their tokens lie end to end in one sequence, with no padding between them.

Rows that continue a prefix see it and themselves, in one kernel (`kernels.prefix_attention`). `KVCache` and `SharedPrefixCache` are the twins whose
results these are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from taosr1.fast.triton_support import can_use_triton
from taosr1.model.config import DecoderConfig

TILE = 128  # rows of a tile: queries times the query heads that share a key head


def use_varlen(x: Tensor, config: DecoderConfig) -> bool:
    """Whether rows with keys like `x` are computed in this form: in bfloat16 or float16, where our kernels run."""
    half = x.dtype in (torch.bfloat16, torch.float16) and not torch.is_autocast_enabled("cuda")  # which would give queries of another type than values
    return half and can_use_triton(x, config.head_dim)


class AttentionRanges(NamedTuple):
    """What n queries that lie end to end see: of their own keys each a range, and of the prefixes' keys a range that a tile of them shares.

    tiles: (t, 4) int32: a tile's first query and one past its last, its first prefix key and one past the last.
    firsts, lasts: (n,) int32: each query's first and last own key; neither ever goes down.
    rows: of a tile at most, queries times the query heads that share a key head.
    """

    tiles: Tensor
    firsts: Tensor
    lasts: Tensor
    rows: int


def prefix_attention(query: Tensor, key: Tensor, value: Tensor, prefix_key: Tensor, prefix_value: Tensor, sight: AttentionRanges) -> Tensor:
    """Attention of n queries over their prefix and their own row. Shapes: query (n, H, D), key, value (N, K, D), prefix_key, prefix_value
    (M, K, D) -> (n, H, D). Raises: ValueError where gradients are recorded, which it has not."""
    if torch.is_grad_enabled() and query.requires_grad:
        raise ValueError("rows that lie end to end cannot be used where gradients are recorded: call under torch.no_grad()")
    if query.device.type != "cuda":
        return prefix_attention_plain(query, key, value, prefix_key, prefix_value, sight)
    from taosr1.fast import triton_kernels

    return triton_kernels.prefix_attention(query, key, value, prefix_key, prefix_value, *sight)


def prefix_attention_plain(query: Tensor, key: Tensor, value: Tensor, prefix_key: Tensor, prefix_value: Tensor, sight: AttentionRanges) -> Tensor:
    """`prefix_attention`, one query after another."""
    outs, firsts, lasts = [], sight.firsts.tolist(), sight.lasts.tolist()
    for first, end, prefix, prefix_end in sight.tiles.tolist():
        for number in range(first, end):
            own = slice(firsts[number], lasts[number] + 1)
            keys, values = (torch.cat([x[prefix:prefix_end], y[own]]) for x, y in ((prefix_key, key), (prefix_value, value)))  # (S, K, D)
            grouped = query[number].view(keys.shape[1], -1, keys.shape[2]).float()  # (K, H / K, D)
            probs = (torch.einsum("kgd,skd->kgs", grouped, keys.float()) * query.shape[-1] ** -0.5).softmax(-1)
            outs.append(torch.einsum("kgs,skd->kgd", probs, values.float()).flatten(0, 1).to(query.dtype))
    return torch.stack(outs)


class VarlenRows:
    """R rows end to end: what attends (`AttentionBackend`) in a call with all their N tokens as one row.

    lengths: tokens of each row. starts: the first token's place in its prompt, where that is not 0.
    `positions` (1, N) are the tokens' places, `last` (1, r) the columns of the last tokens of rows that are read: a layer may be asked for all
    columns or for just these.
    """

    def __init__(
        self,
        config: DecoderConfig,
        lengths: Sequence[int],
        device: torch.device | str,
        starts: Sequence[int] | None = None,
        behind: tuple[Tensor, Tensor, Tensor] | None = None,
        unread: int = 0,
    ) -> None:
        """behind: (S + 1,), (S,), (S,): rows behind[0][i] to behind[0][i + 1] see the prefix keys behind[1][i] to behind[2][i]. None: no prefixes.
        unread: so many rows, those of the first i, are read by nobody."""
        own = torch.tensor(lengths)  # (R,)
        first_tokens = cu_seqlens(own)  # (R + 1,)
        tokens = torch.arange(int(first_tokens[-1]))
        firsts = first_tokens[:-1].repeat_interleave(own)  # (N,)
        places = tokens - firsts if starts is None else tokens - firsts + torch.tensor(starts).repeat_interleave(own)
        self.group, self.used = config.num_attention_heads // config.num_key_value_heads, int(places.max()) + 1
        self.positions, self.last = send(places[None], device), send(first_tokens[None, unread + 1 :] - 1, device)
        rows_from, keys_from, keys_to = behind or (torch.tensor([0, len(own)]), torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
        self.everywhere = self._sight(tiles_of(first_tokens[rows_from], keys_from, keys_to, self.queries), firsts, tokens)
        read = slice(1 if unread else 0, None)
        tiles = tiles_of(rows_from[read] - unread, keys_from[read], keys_to[read], self.queries)
        self.at_last = self._sight(tiles, first_tokens[unread:-1], first_tokens[unread + 1 :] - 1)

    @property
    def queries(self) -> int:
        """Of a tile, at most."""
        return max(1, TILE // self.group)

    def _sight(self, *tables: Tensor) -> AttentionRanges:
        return AttentionRanges(*(send(x.int(), self.positions.device) for x in tables), rows=self.queries * self.group)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: None) -> Tensor:
        """See `AttentionBackend`: query (1, N, H, D), or (1, r, H, D) at `last`."""
        return self.over(key[0], value[0], query, key, value)

    def over(self, prefix_key: Tensor, prefix_value: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        # If each row is one token, the two are the same.
        sight = self.everywhere if query.shape[1] == key.shape[1] else self.at_last
        return prefix_attention(query[0], key[0], value[0], prefix_key, prefix_value, sight)[None].flatten(2)


class VarlenPrefixes:
    """P prefixes end to end, M tokens. The first rows that continue them bring their tokens along; then their keys and values are here, (L, M, K, D)."""

    def __init__(self, config: DecoderConfig, lengths: Sequence[int], dtype: torch.dtype, device: torch.device | str) -> None:
        self.config, self.lengths, self.first_tokens, self.computed = config, list(lengths), cu_seqlens(torch.tensor(lengths)), False
        shape = (config.num_hidden_layers, sum(lengths), config.num_key_value_heads, config.head_dim)
        self.keys, self.values = torch.empty((2, *shape), dtype=dtype, device=device)


class VarlenSuffixes(VarlenRows):
    """R rows end to end that continue prefixes.

    prefix_of: for each row its prefix, ascending: 0 is the prefix `first` of `prefixes`, 1 the next, and so on. lengths: tokens of each row.
    `brings`: the call has the tokens of all prefixes before its own, as nobody has computed them yet. One call instead of two: a few
    hundred tokens alone are too few for a GPU.
    """

    def __init__(self, prefixes: VarlenPrefixes, prefix_of: Sequence[int], lengths: Sequence[int], first: int = 0) -> None:
        self.prefixes, self.brings = prefixes, not prefixes.computed
        prefixes.computed = True  # by the call that this is made for, which comes before any other
        rows_from = cu_seqlens(torch.bincount(torch.tensor(prefix_of)))  # (P + 1,)
        keys_from = prefixes.first_tokens[first : first + len(rows_from)]
        behind, starts = (rows_from, keys_from[:-1], keys_from[1:]), [prefixes.lengths[first + prefix] for prefix in prefix_of]
        unread = len(prefixes.lengths) if self.brings else 0
        if self.brings:
            nothing = torch.zeros(1, dtype=torch.int64)
            behind = torch.cat([nothing, rows_from + unread]), torch.cat([nothing, behind[1]]), torch.cat([nothing, behind[2]])
            starts, lengths = [0] * unread + starts, [*prefixes.lengths, *lengths]
        super().__init__(prefixes.config, lengths, prefixes.keys.device, starts, behind, unread)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: None) -> Tensor:
        keys, values = self.prefixes.keys[layer], self.prefixes.values[layer]
        if self.brings:
            keys.copy_(key[0, : len(keys)])
            values.copy_(value[0, : len(values)])
        return self.over(keys, values, query, key, value)


def tiles_of(queries_from: Tensor, keys_from: Tensor, keys_to: Tensor, most: int) -> Tensor:
    """`AttentionRanges.tiles`: queries queries_from[i] to queries_from[i + 1] in tiles of up to `most`, all with the prefix keys keys_from[i] to keys_to[i]."""
    counts = -(-queries_from.diff() // most)  # tiles of each prefix
    prefix = torch.arange(len(counts)).repeat_interleave(counts)
    first = queries_from[prefix] + (torch.arange(len(prefix)) - cu_seqlens(counts)[prefix]) * most
    return torch.stack([first, torch.minimum(first + most, queries_from[prefix + 1]), keys_from[prefix], keys_to[prefix]], 1)


def send(x: Tensor, device: torch.device | str) -> Tensor:
    """x on the device. From pinned memory a GPU fetches it when it gets there, and Python does not wait for that."""
    return x.pin_memory().to(device, non_blocking=True) if torch.device(device).type == "cuda" else x.to(device)


def cu_seqlens(lengths: Tensor) -> Tensor:
    """Where things of these lengths begin if they lie end to end, and where the last one ends. Shapes: (n,) -> (n + 1,)."""
    return torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
