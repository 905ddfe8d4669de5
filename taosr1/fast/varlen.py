"""Rows of any length in one call on a GPU (varlen): their tokens are concatenated in one sequence, without padding.

Rows that continue a prefix attend to it and to themselves, in one kernel (`triton_kernels.prefix_attention`). The twins
are `FastKVCache` and `SharedPrefixCache`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from taosr1.fast.triton_support import can_use_triton, load_kernels
from taosr1.model.config import DecoderConfig

TILE_ROWS = 128  # of a tile: queries times the query heads that share a key head


def use_varlen(x: Tensor, config: DecoderConfig) -> bool:
    """Whether rows with keys like `x` are computed in this form: in bfloat16 or float16, where our kernels run."""
    # Under autocast queries and values would have different types.
    half = x.dtype in (torch.bfloat16, torch.float16) and not torch.is_autocast_enabled("cuda")
    return half and can_use_triton(x, config.head_dim)


class AttentionRanges(NamedTuple):
    """The keys that each of n concatenated queries attends to: a range of own keys, and one of prefix keys.

    tiles: (t, 4) int32, the queries of a tile (first, end) and the prefix keys (first, end) that all of them attend to.
    first_keys, last_keys: (n,) int32, each query's own keys, both ascending.
    tile_rows: of a tile at most, queries times the query heads that share a key head.
    """

    tiles: Tensor
    first_keys: Tensor
    last_keys: Tensor
    tile_rows: int


def prefix_attention(
    query: Tensor, key: Tensor, value: Tensor, prefix_key: Tensor, prefix_value: Tensor, ranges: AttentionRanges
) -> Tensor:
    """Attention of n queries to their prefixes and to their own rows, without a gradient.

    Shapes: query (n, H, D), key, value (N, K, D), prefix_key, prefix_value (M, K, D) -> (n, H, D).
    """
    return load_kernels().prefix_attention(query, key, value, prefix_key, prefix_value, ranges)


class PrefixKeys(NamedTuple):
    """Which prefix keys consecutive rows attend to.

    cu_rows: (S + 1,) int64; first, end: (S,) int64. Rows cu_rows[i] to cu_rows[i + 1] - 1 attend to the prefix keys
    first[i] to end[i] - 1.
    """

    cu_rows: Tensor
    first: Tensor
    end: Tensor


class VarlenRows:
    """R concatenated rows, an `AttentionBackend` for a call with all their N tokens as one row.

    positions: (1, N) int64, in each token's own prompt. last: (1, r) int64, the columns of the last tokens of the rows
    that are needed. A layer computes all columns, or these only.
    """

    def __init__(
        self,
        config: DecoderConfig,
        lengths: Sequence[int],
        device: torch.device | str,
        starts: Sequence[int] | None = None,
        prefix_keys: PrefixKeys | None = None,
        unused: int = 0,
    ) -> None:
        """lengths: tokens of each row. starts: the position of each row's first token (None: 0).

        prefix_keys: None for rows without a prefix. unused: how many leading rows need no output; they are the rows of
        its first range.
        """
        own = torch.tensor(lengths)  # (R,)
        cu_tokens = cu_seqlens(own)  # (R + 1,)
        tokens = torch.arange(int(cu_tokens[-1]))
        first_keys = cu_tokens[:-1].repeat_interleave(own)  # (N,)
        positions = tokens - first_keys
        if starts is not None:
            positions = positions + torch.tensor(starts).repeat_interleave(own)
        self.group, self.used = config.num_attention_heads // config.num_key_value_heads, int(positions.max()) + 1
        self.tile_queries = max(1, TILE_ROWS // self.group)  # of a tile, at most
        self.positions = to_device_async(positions[None], device)
        self.last = to_device_async(cu_tokens[None, unused + 1 :] - 1, device)
        zero = torch.zeros(1, dtype=torch.int64)
        cu_rows, first, end = prefix_keys or PrefixKeys(torch.tensor([0, len(own)]), zero, zero)
        tiles = make_tiles(cu_tokens[cu_rows], first, end, self.tile_queries)
        self.all_ranges = self._ranges(tiles, first_keys, tokens)
        needed = slice(1 if unused else 0, None)
        tiles = make_tiles(cu_rows[needed] - unused, first[needed], end[needed], self.tile_queries)
        self.last_ranges = self._ranges(tiles, cu_tokens[unused:-1], cu_tokens[unused + 1 :] - 1)

    def _ranges(self, *tables: Tensor) -> AttentionRanges:
        tables = (to_device_async(x.int(), self.positions.device) for x in tables)
        return AttentionRanges(*tables, tile_rows=self.tile_queries * self.group)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: None) -> Tensor:
        """See `AttentionBackend`: query (1, N, H, D), or (1, r, H, D) at the columns `last`."""
        return self.attend_to(key[0], value[0], query, key, value)

    def attend_to(self, prefix_key: Tensor, prefix_value: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if torch.is_grad_enabled() and query.requires_grad:
            raise ValueError("varlen rows cannot be used where gradients are recorded: call under torch.no_grad()")
        # If each row is one token, the two are the same.
        ranges = self.all_ranges if query.shape[1] == key.shape[1] else self.last_ranges
        return prefix_attention(query[0], key[0], value[0], prefix_key, prefix_value, ranges)[None].flatten(2)


class VarlenPrefixes:
    """P concatenated prefixes, M tokens: memory for their keys and values, (L, M, K, D).

    The first rows that continue them compute them too (`VarlenSuffixes.computes_prefixes`).
    """

    def __init__(
        self, config: DecoderConfig, lengths: Sequence[int], dtype: torch.dtype, device: torch.device | str
    ) -> None:
        self.config, self.lengths, self.cu_tokens = config, list(lengths), cu_seqlens(torch.tensor(lengths))
        shape = (config.num_hidden_layers, sum(lengths), config.num_key_value_heads, config.head_dim)
        self.keys, self.values = torch.empty((2, *shape), dtype=dtype, device=device)


class VarlenSuffixes(VarlenRows):
    """R concatenated rows that continue prefixes.

    prefix_of: each row's prefix, ascending; 0 is the prefix `first` of `prefixes`. lengths: tokens of each row.
    computes_prefixes: the call begins with the tokens of all prefixes, and stores their keys and values. One call
        instead of two, because a few hundred tokens alone are too few for a GPU.
    """

    def __init__(
        self,
        prefixes: VarlenPrefixes,
        prefix_of: Sequence[int],
        lengths: Sequence[int],
        first: int = 0,
        computes_prefixes: bool = False,
    ) -> None:
        self.prefixes, self.computes_prefixes = prefixes, computes_prefixes
        cu_rows = cu_seqlens(torch.bincount(torch.tensor(prefix_of)))  # (P + 1,)
        cu_keys = prefixes.cu_tokens[first : first + len(cu_rows)]
        keys, starts = PrefixKeys(cu_rows, cu_keys[:-1], cu_keys[1:]), [prefixes.lengths[first + p] for p in prefix_of]
        unused = len(prefixes.lengths) if computes_prefixes else 0
        if computes_prefixes:  # the prefixes are rows without a prefix
            zero = torch.zeros(1, dtype=torch.int64)
            keys = PrefixKeys(*(torch.cat([zero, x]) for x in (cu_rows + unused, keys.first, keys.end)))
            starts, lengths = [0] * unused + starts, [*prefixes.lengths, *lengths]
        super().__init__(prefixes.config, lengths, prefixes.keys.device, starts, keys, unused)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: None) -> Tensor:
        keys, values = self.prefixes.keys[layer], self.prefixes.values[layer]
        if self.computes_prefixes:
            keys.copy_(key[0, : len(keys)])
            values.copy_(value[0, : len(values)])
        return self.attend_to(keys, values, query, key, value)


def make_tiles(cu_queries: Tensor, first_keys: Tensor, end_keys: Tensor, most: int) -> Tensor:
    """`AttentionRanges.tiles` of up to `most` queries.

    Queries cu_queries[i] to cu_queries[i + 1] - 1 attend to the prefix keys first_keys[i] to end_keys[i] - 1.
    """
    counts = -(-cu_queries.diff() // most)  # tiles of each range
    index = torch.arange(len(counts)).repeat_interleave(counts)
    first = cu_queries[index] + (torch.arange(len(index)) - cu_seqlens(counts)[index]) * most
    end = torch.minimum(first + most, cu_queries[index + 1])
    return torch.stack([first, end, first_keys[index], end_keys[index]], 1)


def to_device_async(x: Tensor, device: torch.device | str) -> Tensor:
    """x on the device. From pinned memory a GPU fetches it when it gets there, and Python does not wait for that."""
    return x.pin_memory().to(device, non_blocking=True) if torch.device(device).type == "cuda" else x.to(device)


def cu_seqlens(lengths: Tensor) -> Tensor:
    """Where each of several concatenated sequences begins, and where the last one ends. Shapes: (n,) -> (n + 1,)."""
    return torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
