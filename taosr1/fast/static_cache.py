"""Samples of shared prompts on a GPU, one token at a time: shapes and addresses that never change, and one kernel for all that attends.

What a prompt's M samples have written lies behind the prompt itself, the M newest tokens side by side, so that one pass over a prompt's keys
and what follows them serves all its samples (`kernels.decode_attention`). And nothing that the device does depends on a number that only
Python knows: which column comes next lies on the device, so a decode step can be recorded as a CUDA graph and replayed
(`sampling/decode_step.py`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from taosr1.fast.attention import fused_attention
from taosr1.fast.kv_cache import FastKVCache
from taosr1.model.config import DecoderConfig


class StaticCache:
    """R rows that continue P prefixes, all by equally many tokens, one at a time; see `SharedPrefixCache`, whose results these are.

    Shapes:
        keys, values: (L, P, K, S + capacity * M, D), M being the most rows of a prefix: the prefix, then column after column of M rows.
        prefix_of: (R,) int64, ascending. rows_from: (P + 1,) int32, each prefix's first row. place_of: (R,), which of its prefix's rows.
    """

    def __init__(self, config: DecoderConfig, keys: Tensor, values: Tensor, prefix_lengths: Tensor, prefix_of: Tensor, capacity: int) -> None:
        """keys, values: (L, P, K, S, D), the prefixes; they are copied."""
        self.config, self.capacity, self.length, self._new = config, capacity, 0, 0  # grown: columns that are written
        self.rows, self.longest, self.prefix_lengths, self.prefix_of = len(prefix_of), int(prefix_lengths.max()), prefix_lengths, prefix_of
        counts = torch.bincount(prefix_of, minlength=len(prefix_lengths))  # (P,)
        firsts = counts.cumsum(0) - counts
        self.places, self.rows_from = int(counts.max()), torch.cat([firsts, counts.sum()[None]]).int()
        self.start, self.place_of = prefix_lengths[prefix_of], torch.arange(self.rows, device=keys.device) - firsts[prefix_of]
        self.column = torch.zeros((), dtype=torch.int64, device=keys.device)  # `grown`, where the device finds it
        layers, prefixes, heads, _, size = keys.shape
        # Empty, not zeros: nobody loads a slot before it is written.
        self.keys, self.values = keys.new_empty(2, layers, prefixes, heads, self.longest + capacity * self.places, size)
        for mine, theirs in ((self.keys, keys), (self.values, values)):
            mine[..., : self.longest, :] = theirs[..., : self.longest, :]

    @classmethod
    def of(cls, prefixes: FastKVCache, prefix_of: Tensor, capacity: int) -> StaticCache:
        """Rows that continue the sequences of a cache."""
        longest, window = int(prefixes.lengths.max()), prefixes.config.sliding_window
        if window is not None and window < longest + capacity:
            raise ValueError(f"StaticCache of up to {longest} + {capacity} tokens knows no sliding window of {window}: use KVCache.expand")
        return cls(prefixes.config, prefixes.keys, prefixes.values, prefixes.lengths, prefix_of, capacity)

    @property
    def lengths(self) -> Tensor:
        return self.start + self.column

    @property
    def used(self) -> int:
        return self.longest + self.length + self._new

    def place(self, positions: Tensor) -> None:
        """See `Cache`."""
        if positions.shape[1] != 1:
            raise ValueError(f"{positions.shape[1]} tokens a row: StaticCache takes one at a time")
        if self.length == self.capacity:
            raise ValueError(f"{self.length + 1} tokens a row, but the cache holds {self.capacity}: give StaticCache a larger capacity")
        self._new = 1

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: None) -> Tensor:
        """See `Cache`."""
        return decode_attention(query[:, 0], key[:, 0], value[:, 0], self, layer).flatten(1)[:, None]

    def advance(self, tokens: int) -> None:
        """The new tokens are real ones: the next call goes behind them."""
        self.length += tokens
        self.column += tokens
        self._new = 0

    def slots(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Where the tokens lie that rows have written, in the dimension of keys. Shapes: (r,), (t,) int64 -> (r, t)."""
        return self.longest + columns * self.places + self.place_of[rows, None]

    def select(self, rows: Tensor) -> StaticCache:
        """Only these rows, (R',) int64 ascending, and the prefixes that they need."""
        kept, prefix_of = self.prefix_of[rows].unique_consecutive(return_inverse=True)
        parts = (x[:, kept, :, : self.longest] for x in (self.keys, self.values))
        copy = StaticCache(self.config, *parts, self.prefix_lengths[kept], prefix_of, self.capacity)
        columns = torch.arange(self.length, device=rows.device)
        new_slots, slots = copy.slots(torch.arange(copy.rows, device=rows.device), columns), self.slots(rows, columns)
        for mine, theirs in ((self.keys, copy.keys), (self.values, copy.values)):
            theirs[:, prefix_of[:, None], :, new_slots] = mine[:, self.prefix_of[rows][:, None], :, slots]
        copy.advance(self.length)
        return copy


def decode_attention(query: Tensor, key: Tensor, value: Tensor, cache: StaticCache, layer: int) -> Tensor:
    """Attention of every row's newest token over its prefix, what the row has written, and itself; its key and value join those of the cache.

    Shapes: query (R, H, D), key, value (R, K, D) -> (R, H, D).
    """
    if query.device.type != "cuda":
        return decode_attention_plain(query, key, value, cache, layer)
    from taosr1.fast import triton_kernels

    places = cache.rows_from, cache.prefix_lengths, cache.column, cache.longest, cache.places
    return triton_kernels.decode_attention(query, key, value, cache.keys[layer], cache.values[layer], *places)


def decode_attention_plain(query: Tensor, key: Tensor, value: Tensor, cache: StaticCache, layer: int) -> Tensor:
    """`decode_attention` with a copy of the prefix for every row."""
    rows, columns = torch.arange(cache.rows, device=query.device), torch.arange(cache.length + 1, device=query.device)
    slots = cache.slots(rows, columns)  # (R, t); the last of them is the newest token's
    columns_of_prefix = torch.arange(cache.longest, device=query.device)
    seen = torch.cat([columns_of_prefix < cache.start[:, None], torch.ones_like(slots, dtype=torch.bool)], 1)  # (R, S + t)
    slots = torch.cat([columns_of_prefix.expand(cache.rows, -1), slots], 1)
    every = []
    for new, old in ((key, cache.keys[layer]), (value, cache.values[layer])):
        old[cache.prefix_of, :, slots[:, -1]] = new.to(old.dtype)
        every.append(old[cache.prefix_of[:, None], :, slots].transpose(1, 2))  # (R, K, S + t, D)
    return fused_attention(query.to(every[0].dtype)[:, None], *every, seen[:, None, None]).view_as(query)
