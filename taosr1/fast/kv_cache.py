"""What attends in the fast decoder: a backend decides which keys the queries of a call attend to, and computes it."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Protocol

import torch
from torch import Tensor

from taosr1.fast.attention import fused_attention
from taosr1.model.attention import causal_mask
from taosr1.model.kv_cache import KVCache


class AttentionBackend(Protocol):
    """Computes attention in the place of `fused_attention`: a cache, or a layout of several rows in one.

    used: one past the highest position of any row.
    """

    used: int

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Attention of one layer. Shapes: query (B, T', H, D), key and value (B, T, K, D) -> (B, T', H * D)."""


class Cache(AttentionBackend, Protocol):
    """What the fast decoder asks of a cache of earlier tokens.

    rows: sequences. lengths: (rows,) int64, tokens that each has so far. used: one past the highest position of any
    row, announced tokens included.
    """

    rows: int
    lengths: Tensor

    def place(self, positions: Tensor) -> Tensor | None:
        """Announce the new tokens' positions (rows, T); returns the mask for `attend`, None for causal attention."""

    def advance(self, tokens: int) -> None:
        """Count so many of the new tokens, in every row, as real."""

    def select(self, rows: Tensor) -> Cache:
        """The same with these rows only, (R,) int64 ascending."""


class FastKVCache(KVCache):
    """`KVCache` as an attention backend. A prefill from position 0 attends by the causal kernel, without a mask."""

    _prefill = False

    def place(self, positions: Tensor) -> Tensor | None:
        """Returns: (rows, 1, T, used) bool, or None if plain causal attention over the new tokens is the same."""
        length, first = positions.shape[1], self.used == 0
        used = self.reserve(positions)
        from_zero = torch.arange(length, device=positions.device)
        self._prefill = first and used == length and bool((positions == from_zero).all())
        window = self.config.sliding_window
        if self._prefill and (window is None or length <= window):
            return None
        return causal_mask(positions, used, window)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        key, value = key.transpose(1, 2), value.transpose(1, 2)
        if not self._prefill:
            return fused_attention(query, *self.update(layer, key, value), mask)
        self.keys[layer, :, :, : self.used] = key
        self.values[layer, :, :, : self.used] = value
        return fused_attention(query, key, value, mask)

    def advance(self, tokens: int) -> None:
        self.lengths += tokens

    def slice(self, start: int, end: int) -> FastKVCache:
        """Rows start to end - 1, in the same memory."""
        part = copy(self)
        part.rows = end - start
        part.keys, part.values = self.keys[:, start:end], self.values[:, start:end]
        part.lengths = self.lengths[start:end]
        return part

    def expand(self, samples: int, capacity: int) -> FastKVCache:
        """A new cache of another capacity, with each row repeated `samples` times, the copies of a row side by side.

        Raises: ValueError for a capacity below what is in use.
        """
        if capacity < self.used:
            raise ValueError(f"capacity {capacity} is smaller than the {self.used} positions already in use")
        repeated = FastKVCache(self.config, self.rows * samples, capacity, self.keys.dtype, self.keys.device)
        repeated.keys[:, :, :, : self.used] = self.keys[:, :, :, : self.used].repeat_interleave(samples, dim=1)
        repeated.values[:, :, :, : self.used] = self.values[:, :, :, : self.used].repeat_interleave(samples, dim=1)
        repeated.lengths, repeated.used = self.lengths.repeat_interleave(samples), self.used
        return repeated


class ConcatCache:
    """The rows of several caches, one new token a row: rows that entered at different times differ in own tokens."""

    def __init__(self, caches: Sequence[Cache]) -> None:
        self.caches, self.sizes = list(caches), [cache.rows for cache in caches]
        self.rows = sum(self.sizes)
        self._masks: list[Tensor | None] = []

    @property
    def lengths(self) -> Tensor:
        return torch.cat([cache.lengths for cache in self.caches])

    @property
    def used(self) -> int:
        return max(cache.used for cache in self.caches)

    def place(self, positions: Tensor) -> None:
        if positions.shape[1] != 1:
            raise ValueError(f"{positions.shape[1]} tokens a row: ConcatCache takes one at a time")
        self._masks = [cache.place(own) for cache, own in zip(self.caches, positions.split(self.sizes))]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: None) -> Tensor:
        each = zip(self.caches, query.split(self.sizes), key.split(self.sizes), value.split(self.sizes), self._masks)
        return torch.cat([cache.attend(layer, *arguments) for cache, *arguments in each])

    def advance(self, tokens: int) -> None:
        for cache in self.caches:
            cache.advance(tokens)
