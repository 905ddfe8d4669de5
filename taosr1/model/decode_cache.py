"""Samples of shared prompts on a GPU, one token at a time: shapes and addresses that never change, and few large products.

Two ideas. What a prompt's M samples have written lies behind the prompt itself, the M newest tokens side by side, so that one product
gives the scores of all samples over the prompt and over everything that any of them wrote; a mask then hides what is another sample's.
Tensor cores multiply tiles of 16 queries and more, whether they are used or not, so for a dozen samples the hidden scores cost little, and
every key is read once. And nothing that the device does depends on a number that only Python knows: which column comes next lies on the device, so a
decode step can be recorded as a CUDA graph and replayed (`sampling/decode_step.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from taosr1.model.attention import Grid
from taosr1.model.cache import KVCache
from taosr1.model.pointwise import masked_softmax

if TYPE_CHECKING:
    from taosr1.model.decoder import DecoderConfig

STRIDE = 64  # columns; products reach over what is written, rounded up to so many


class DecodeCache:
    """R rows that continue P prefixes, all by equally many tokens, one at a time; see `Branches`, whose results these are.

    Shapes:
        keys, values: (L, P, K, S + capacity * M, D), M being the most rows of a prefix: the prefix, then column after column of M rows.
        prefix_of: (R,) int64, ascending.
    """

    def __init__(self, config: DecoderConfig, keys: Tensor, values: Tensor, prefix_lengths: Tensor, prefix_of: Tensor, capacity: int) -> None:
        """keys, values: (L, P, K, S, D), the prefixes; they are copied."""
        self.config, self.capacity, self.grown, self._new = config, capacity, 0, 0  # grown: columns that are written
        self.rows, self.longest, self.prefix_lengths = len(prefix_of), int(prefix_lengths.max()), prefix_lengths
        self.start, self.grid = prefix_lengths[prefix_of], Grid(prefix_of, len(prefix_lengths))
        device, places = keys.device, self.grid.places
        self.place_of = torch.arange(self.rows, device=device) if self.grid.full else self.grid.place_of
        self.place_of = self.place_of % places  # (R,): which of its prefix's rows
        self.column = torch.zeros((), dtype=torch.int64, device=device)  # `grown`, where the device finds it
        layers, prefixes, heads, _, size = keys.shape
        longest = self.longest
        # Zeros, not empty: a hidden slot has weight 0, and 0 times an uninitialised NaN would be NaN.
        self.keys, self.values = keys.new_zeros(2, layers, prefixes, heads, longest + capacity * places, size)
        self.keys[..., :longest, :], self.values[..., :longest, :] = keys[..., :longest, :], values[..., :longest, :]
        real = torch.arange(longest, device=device) < prefix_lengths[:, None]  # (P, S)
        self._prefix_seen = real[:, None].expand(prefixes, places, longest)
        self._same = torch.eye(places, dtype=torch.bool, device=device)

    @classmethod
    def of(cls, prefixes: KVCache, prefix_of: Tensor, capacity: int) -> DecodeCache:
        """Rows that continue the sequences of a cache."""
        longest, window = int(prefixes.lengths.max()), prefixes.config.sliding_window
        if window is not None and window < longest + capacity:
            raise ValueError(f"DecodeCache of up to {longest} + {capacity} tokens knows no sliding window of {window}: use KVCache.expand")
        return cls(prefixes.config, prefixes.keys, prefixes.values, prefixes.lengths, prefix_of, capacity)

    @property
    def lengths(self) -> Tensor:
        return self.start + self.column

    @property
    def used(self) -> int:
        return self.longest + self.grown + self._new

    @property
    def reach(self) -> int:
        """Columns over which the next products go. What was recorded holds as long as this stays."""
        return min(self.capacity, -(-(self.grown + 1) // STRIDE) * STRIDE)

    def place(self, positions: Tensor) -> Tensor:
        """See `Cache`. The mask: (P, 1, M, 1, S + reach * M), True where a prefix's row may look."""
        if positions.shape[1] != 1:
            raise ValueError(f"{positions.shape[1]} tokens a row: DecodeCache takes one at a time")
        if self.grown == self.capacity:
            raise ValueError(f"{self.grown + 1} tokens a row, but the cache holds {self.capacity}: give DecodeCache a larger capacity")
        self._new = 1
        self._slots = self.longest + self.column * self.grid.places + self.place_of  # (R,)
        written = torch.arange(self.reach, device=positions.device) <= self.column
        own = (written[:, None] & self._same[:, None]).flatten(1)  # (M, reach * M): column by column
        seen = torch.cat([self._prefix_seen, own.expand(len(self._prefix_seen), -1, -1)], -1)
        return seen[:, None, :, None]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        """See `Cache`."""
        keys, values, end = self.keys[layer], self.values[layer], mask.shape[-1]
        keys[self.grid.prefix_of, :, self._slots] = key[:, 0].to(keys.dtype)  # under autocast they may differ
        values[self.grid.prefix_of, :, self._slots] = value[:, 0].to(keys.dtype)
        query = (query.to(keys.dtype) * query.shape[-1] ** -0.5).view(self.rows, keys.shape[1], -1, keys.shape[-1])
        query = self.grid.to_prefixes(query)  # (P, K, M * n, D)
        scores = query @ keys[:, :, :end].transpose(-1, -2)
        by_row = scores.view(*scores.shape[:2], self.grid.places, -1, end)  # (P, K, M, n, end)
        probs = masked_softmax(by_row, mask).view_as(scores)
        return self.grid.to_rows(probs @ values[:, :, :end]).reshape(self.rows, 1, -1)

    def advance(self, tokens: int) -> None:
        """The new tokens are real ones: the next call goes behind them."""
        self.grown += tokens
        self.column += tokens
        self._new = 0

    def select(self, rows: Tensor) -> DecodeCache:
        """Only these rows, (R',) int64 ascending, and the prefixes that they need."""
        kept, prefix_of = self.grid.prefix_of[rows].unique_consecutive(return_inverse=True)
        parts = (x[:, kept, :, : self.longest] for x in (self.keys, self.values))
        copy = DecodeCache(self.config, *parts, self.prefix_lengths[kept], prefix_of, self.capacity)
        columns = torch.arange(self.grown, device=rows.device)
        slots, new_slots = (cache.longest + columns * cache.grid.places + places[:, None]
                            for cache, places in ((self, self.place_of[rows]), (copy, copy.place_of)))  # fmt: skip
        for mine, theirs in ((self.keys, copy.keys), (self.values, copy.values)):
            theirs[:, prefix_of[:, None], :, new_slots] = mine[:, self.grid.prefix_of[rows][:, None], :, slots]
        copy.advance(self.grown)
        return copy
