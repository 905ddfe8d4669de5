"""Caches of rows that continue shared prefixes: samples of one prompt, products of one query.

`KVCache.expand` gives every row a copy of its prompt's keys and values. Here a prefix is kept once, and all its rows read it there:
less memory, fewer bytes to move, and larger products (`attention.shared_attention`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from taosr1.fast.attention import PrefixGrouping, copied_prefix_attention, one_token_attention, shared_attention
from taosr1.fast.kv_cache import Cache, FastKVCache
from taosr1.fast.static_cache import StaticCache
from taosr1.fast.triton_support import can_use_triton
from taosr1.model.config import DecoderConfig

STRIDE = 8  # columns; see `dense_keys`
COPIES_FROM, COPIES_TO = 1.5, 2.0  # rows a prefix, on average; see `SharedPrefixCache.fork`
SCORES_AT_ONCE = 2**24  # numbers; `shared_attention` keeps the scores of all heads of a layer


def continue_prefixes(prefixes: FastKVCache, prefix_of: Tensor, tokens: int) -> Cache:
    """Rows that write up to `tokens` tokens each behind a cache's sequences, one at a time, in the form that is fast on this device.

    prefix_of: (R,) int64, ascending, for each row its sequence.
    """
    return (SharedPrefixCache if rows_can_fork(prefixes) else StaticCache).of(prefixes, prefix_of, tokens)


def rows_can_fork(prefixes: FastKVCache) -> bool:
    """Whether rows behind these sequences may become more on their way. A `StaticCache` has shapes that stay, for a recorded step."""
    return not can_use_triton(prefixes.keys, prefixes.config.head_dim)


def dense_keys(keys: Tensor) -> bool:
    """Whether a row's columns should lie end to end, a few more of them at a time, and a product with some rather go over all of them.

    On a CPU: with room for all columns between one row's and the next's, memory is read a page here and a page there, which takes the short products
    of one row three times as long. And half types are multiplied by oneDNN, which copies such matrices first at every product.
    """
    return keys.device.type == "cpu"


class SharedPrefixCache:
    """R rows that continue P prefixes, all by equally many tokens: token j of every row lies in column j of what is its own.

    Rows of different lengths are padded on the right; what stands behind a row's end is seen by nobody who is read.

    To deal rows out to prefixes and back is a dozen passes over queries and scores, and where some prefixes have more rows than others the
    products with them are half empty. So where few rows have the same prefix each may have a copy of it (`with_copies`): its first `ahead` columns.

    Shapes:
        prefix_keys, prefix_values: (L, P, K, S, D), with copies (L, 0, K, S, D). keys, values: (L, R, K, reach, D). prefix_of: (R,) int64.
        room: (2, L, R * K * (prefix_len + capacity) * D or more), the memory for keys and values; None: of its own.
    """

    def __init__(
        self,
        config: DecoderConfig,
        prefix_keys: Tensor,
        prefix_values: Tensor,
        prefix_lengths: Tensor,
        prefix_of: Tensor,
        capacity: int,
        room: Tensor | None = None,
        prefix_len: int = 0,
    ) -> None:
        self.config, self.capacity, self.prefix_len, self.length, self._new = config, capacity, prefix_len, 0, 0  # grown: columns that are written behind `ahead`
        longest = int(prefix_lengths.max())
        if config.sliding_window is not None and config.sliding_window < longest + capacity:
            raise ValueError(f"SharedPrefixCache of up to {longest} + {capacity} tokens know no sliding window of {config.sliding_window}: use KVCache.expand")
        self.prefix_keys, self.prefix_values, self.prefix_lengths = prefix_keys[:, :, :, :longest], prefix_values[:, :, :, :longest], prefix_lengths
        real = torch.arange(longest, device=prefix_of.device) < prefix_lengths[:, None]
        self.prefix_mask = None if bool(real.all()) else real  # (P, S)
        self.longest = longest
        self._deal(prefix_of)
        self._size = config.num_key_value_heads * (prefix_len + capacity) * config.head_dim  # of a row in a layer
        # Empty, not zeros: a column counts only after all rows have written it.
        self._room = prefix_keys.new_empty(2, config.num_hidden_layers, self.rows * self._size) if room is None else room
        self._reach_to(self._reach_for(1) if dense_keys(prefix_keys) else prefix_len + capacity)

    def _deal(self, prefix_of: Tensor) -> None:
        """Which row has which prefix."""
        self.prefix_of, self.rows, self.start = prefix_of, len(prefix_of), self.prefix_lengths[prefix_of]
        if self.prefix_len:
            padding = torch.arange(self.prefix_len, device=prefix_of.device) >= self.start[:, None]  # (R, ahead)
            self.hidden = padding[:, None, None] if bool(padding.any()) else None
        else:
            self.grid = PrefixGrouping(prefix_of, len(self.prefix_lengths))

    @classmethod
    def of(cls, prefixes: FastKVCache, prefix_of: Tensor, capacity: int, first: int = 0) -> SharedPrefixCache:
        """Rows that continue sequences of a cache; nothing is copied. 0 in `prefix_of` is the cache's row `first`, 1 the next, and so on."""
        chosen = slice(first, first + int(prefix_of.max()) + 1)
        return cls(prefixes.config, prefixes.keys[:, chosen], prefixes.values[:, chosen], prefixes.lengths[chosen], prefix_of, capacity)

    @property
    def lengths(self) -> Tensor:
        return self.start + self.length

    @property
    def used(self) -> int:
        return self.longest + self.length + self._new

    def _reach_for(self, tokens: int) -> int:
        """How many columns to lay out for so many tokens a row: some more, since to lay them out anew is to copy them all."""
        stride = max(STRIDE, self.prefix_len // 8)
        return min(self.prefix_len + self.capacity, -(-(self.prefix_len + tokens) // stride) * stride)

    def _reach_to(self, columns: int) -> None:
        """Lay keys and values out anew, in the same memory, with so many columns for every row and head. Before a token is written nothing moves,
        not even copies of prefixes; but the first layout has a column for one."""
        laid_out, written = self._laid_out(columns), self.prefix_len + self.length
        for kept, room in zip(((self.keys, self.values) if self.length else ()), laid_out):
            for layer in range(len(room)):
                room[layer, :, :, :written] = kept[layer, :, :, :written].clone()
        self.keys, self.values = laid_out
        self.reach = columns

    def _laid_out(self, columns: int) -> Tensor:
        """The room as keys and values of all rows, with so many columns: (2, L, R, K, columns, D)."""
        shape = (self.rows, self.config.num_key_value_heads, columns, self.config.head_dim)
        return self._room[..., : math.prod(shape)].view(2, self.config.num_hidden_layers, *shape)

    def place(self, positions: Tensor) -> Tensor | None:
        """See `Cache`; the positions have to be the next ones of every row."""
        self._new = positions.shape[1]
        end = self.length + self._new
        if end > self.capacity:
            raise ValueError(f"{end} tokens a row, but the cache holds {self.capacity}: give SharedPrefixCache a larger capacity (padding counts too)")
        if self.prefix_len + end > self.reach:
            self._reach_to(self._reach_for(end))
        if self._new == 1:
            return None
        if self.prefix_len:
            raise ValueError(f"{self._new} tokens a row: rows with copies of their prefixes take one at a time")
        columns = torch.arange(end, device=positions.device)
        return (columns <= columns[self.length :, None])[None, None]  # (1, 1, T, end)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """See `Cache`."""
        first, length = self.prefix_len + self.length, query.shape[1]
        end = first + self._new
        self.keys[layer, :, :, first:end] = key.transpose(1, 2)
        self.values[layer, :, :, first:end] = value.transpose(1, 2)
        own_keys, own_values = self.keys[layer], self.values[layer, :, :, :end]
        if mask is not None or not dense_keys(own_keys):
            own_keys = own_keys[:, :, :end]
        if self.prefix_len:
            return one_token_attention(query, own_keys, own_values, self.hidden)
        parts = (query, self.prefix_keys[layer], self.prefix_values[layer], self.prefix_mask, own_keys, own_values, mask)
        scores = self.grid.prefixes * self.grid.places * length * query.shape[2] * (self.prefix_keys.shape[3] + end)
        # Where there are many queries, a GPU's fused kernel beats three products. One token a row has fewer scores than keys.
        if length > 1 and (scores > SCORES_AT_ONCE or query.device.type != "cpu"):
            return copied_prefix_attention(*parts, self.prefix_of)
        return shared_attention(*parts, self.grid)

    def advance(self, tokens: int) -> None:
        """The new tokens are real ones: the next call goes behind them."""
        self.length += tokens
        self._new = 0

    def with_copies(self) -> SharedPrefixCache:
        """The same rows, each with a copy of its prefix."""
        nothing = self.prefix_keys[:, :0].clone()  # a view would keep the prefixes in memory
        others = SharedPrefixCache(self.config, nothing, nothing, self.prefix_lengths, self.prefix_of, self.capacity, prefix_len=self.longest)
        self._give(others)
        for prefixes, theirs in ((self.prefix_keys, others.keys), (self.prefix_values, others.values)):
            for layer in range(len(theirs)):
                theirs[layer, :, :, : self.longest] = prefixes[layer, self.prefix_of]
        return others

    def without_copies(self) -> SharedPrefixCache:
        """The same rows, with each prefix once again."""
        first = torch.zeros_like(self.prefix_lengths).scatter_(0, self.prefix_of, torch.arange(self.rows, device=self.prefix_of.device))  # or any other
        prefixes = (x[:, first, :, : self.longest] for x in (self.keys, self.values))
        others = SharedPrefixCache(self.config, *prefixes, self.prefix_lengths, self.prefix_of, self.capacity)
        self._give(others)
        return others

    def _give(self, others: SharedPrefixCache) -> None:
        """Hand what the rows have written to the same rows in another form."""
        if dense_keys(self.keys):
            others._reach_to(others._reach_for(self.length + 1))
        others.length = self.length  # only now: to lay out anew moves what is written
        for mine, theirs in ((self.keys, others.keys), (self.values, others.values)):
            theirs[..., others.prefix_len : others.prefix_len + self.length, :] = mine[..., self.prefix_len : self.prefix_len + self.length, :]

    def fork(self, rows: Tensor, most: int) -> SharedPrefixCache:
        """Each of these rows, (n,) int64, goes on in one more way: behind all rows comes a copy of each, with all that it has written.

        most: how many rows there can ever be. Returns all rows; do not use `self` afterwards. They get copies of their prefixes if there are no
        more than COPIES_FROM rows a prefix, keep them up to COPIES_TO, and take no more room than `most` rows and each prefix once would.
        """
        count, prefixes = self.rows + len(rows), len(self.prefix_lengths)
        room = (prefixes * self.longest + most * self.capacity) // (max(self.prefix_len, self.longest) + self.capacity)  # rows with copies
        a_prefix = COPIES_TO if self.prefix_len else COPIES_FROM
        if dense_keys(self.keys) and count <= min(a_prefix * prefixes, room):
            return (self if self.prefix_len else self.with_copies())._forked(rows, min(most, room))
        return (self.without_copies() if self.prefix_len else self)._forked(rows, most)

    def _forked(self, rows: Tensor, most: int) -> SharedPrefixCache:
        old, written = self.rows, self.prefix_len + self.length
        before = (self.keys[..., :written, :], self.values[..., :written, :])
        self._deal(torch.cat([self.prefix_of, self.prefix_of[rows]]))
        grows = self.rows * self._size > self._room.shape[-1]
        if grows:  # for as many rows again: forks come one after another
            self._room = self._room.new_empty(*self._room.shape[:2], min(2 * self.rows, most) * self._size)
        self.keys, self.values = self._laid_out(self.reach)
        for then, now in zip(before, (self.keys[..., :written, :], self.values[..., :written, :])):
            if grows:
                now[:, :old] = then
            now[:, old:] = then[:, rows]
        return self

    def select(self, rows: Tensor) -> SharedPrefixCache:
        """Only these rows, (R',) int64, in this order, and the prefixes that they need. They move within the memory they have, which costs
        little where most of them stay in place (`compact_order`): `self` is used up, and so is the cache that the prefixes are from.

        Where little of that memory would still be used, they get less of their own.
        """
        needed = torch.zeros_like(self.prefix_lengths, dtype=torch.bool).index_fill_(0, self.prefix_of[rows], True)
        kept = compact_order(needed)
        number = torch.empty_like(self.prefix_lengths).index_copy_(0, kept, torch.arange(len(kept), device=kept.device))
        prefixes = (self.prefix_keys, self.prefix_values)
        if len(kept) < len(needed) and not self.prefix_len:
            prefixes = (_moved(keys_or_values, kept) for keys_or_values in prefixes)
        stays = 2 * len(rows) * self._size >= self._room.shape[-1]
        fewer = SharedPrefixCache(
            self.config, *prefixes, self.prefix_lengths[kept], number[self.prefix_of[rows]], self.capacity, self._room if stays else None, self.prefix_len
        )
        fewer._reach_to(self.reach)
        fewer.length = self.length
        places = torch.arange(len(rows), device=rows.device)
        if stays:
            places = (rows != places).nonzero()[:, 0]
        written = self.prefix_len + self.length
        for mine, theirs in ((self.keys, fewer.keys), (self.values, fewer.values)):
            for layer in range(len(mine)):  # what stands on the right is a copy, so rows may be written where others were read
                theirs[layer, places, :, :written] = mine[layer, rows[places], :, :written]
        return fewer


def compact_order(stays: Tensor) -> Tensor:
    """Which of n things shall lie in the first places if those that stay close up: they do not move, but the last ones go where
    others have left. Shapes: (n,) bool -> (n',) int64."""
    count = int(stays.sum())
    order = torch.arange(count, device=stays.device)
    order[~stays[:count]] = stays[count:].nonzero()[:, 0] + count
    return order


def _moved(keys_or_values: Tensor, order: Tensor) -> Tensor:
    """Sequences `order` of a tensor (L, P, ...), in their own memory unless most of it would lie idle."""
    wanted = keys_or_values[:, : len(order)]
    if 2 * wanted.numel() * wanted.element_size() < wanted.untyped_storage().nbytes():
        return keys_or_values.index_select(1, order)
    places = (order != torch.arange(len(order), device=order.device)).nonzero()[:, 0]
    for of_layer in keys_or_values:
        of_layer[places] = of_layer[order[places]]
    return wanted


class ConcatCache:
    """Several caches as one, for one token a row: rows that entered the batch at different times, each set with its own columns."""

    def __init__(self, parts: Sequence[Cache]) -> None:
        self.parts, self.sizes = list(parts), [part.rows for part in parts]
        self.rows = sum(self.sizes)
        self._masks: list[Tensor | None] = []

    @property
    def lengths(self) -> Tensor:
        return torch.cat([part.lengths for part in self.parts])

    @property
    def used(self) -> int:
        return max(part.used for part in self.parts)

    def place(self, positions: Tensor) -> None:
        if positions.shape[1] != 1:
            raise ValueError(f"{positions.shape[1]} tokens a row: caches side by side take one at a time")
        self._masks = [part.place(own) for part, own in zip(self.parts, positions.split(self.sizes))]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: None) -> Tensor:
        each = zip(self.parts, query.split(self.sizes), key.split(self.sizes), value.split(self.sizes), self._masks)
        return torch.cat([part.attend(layer, *of_part) for part, *of_part in each])

    def advance(self, tokens: int) -> None:
        for part in self.parts:
            part.advance(tokens)

    def select(self, rows: Tensor) -> ConcatCache:
        """Only these rows, (R,) int64 ascending; parts without a row are dropped."""
        starts, kept = [0, *accumulate(self.sizes)], []
        for part, start, size in zip(self.parts, starts, self.sizes):
            own = rows[(rows >= start) & (rows < start + size)] - start
            if len(own):
                kept.append(part.select(own))
        return ConcatCache(kept)
