"""A cache of rows that continue shared prefixes: samples of one prompt, products of one query.

`FastKVCache.expand` gives every row a copy of its prompt's keys and values. Here a prefix is stored once and all its
rows attend to it: less memory, fewer bytes to read, and larger products (`attention.shared_attention`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from taosr1.fast.attention import PrefixGrouping, copied_prefix_attention, one_token_attention, shared_attention
from taosr1.fast.kv_cache import Cache, FastKVCache
from taosr1.fast.static_cache import StaticCache
from taosr1.fast.triton_support import can_use_triton
from taosr1.model.config import DecoderConfig

COLUMNS_AT_ONCE = 8  # of every row, added when its columns are used up
COPY_UP_TO, COPIES_UP_TO = 1.5, 2.0  # rows per prefix, on average; see `SharedPrefixCache.fork`
SCORES_AT_ONCE = 2**24  # numbers; `shared_attention` keeps the scores of all heads of a layer


def continue_prefixes(prefixes: FastKVCache, prefix_of: Tensor, tokens: int) -> Cache:
    """A cache for rows that add up to `tokens` tokens to the sequences of another one, of the kind that is fast here.

    prefix_of: (R,) int64, ascending, each row's sequence. Tokens are added one at a time.
    """
    return (SharedPrefixCache if rows_can_fork(prefixes) else StaticCache).of(prefixes, prefix_of, tokens)


def rows_can_fork(prefixes: FastKVCache) -> bool:
    """Whether rows can be added later: not to a `StaticCache`, whose shapes stay so that a step can be recorded."""
    return not can_use_triton(prefixes.keys, prefixes.config.head_dim)


class SharedPrefixCache:
    """R rows that continue P prefixes, all by equally many tokens: token j of a row is in column j of its own keys.

    Rows of different lengths are padded on the right; no real token attends to padding.

    Rows have no gap between their columns and the next row's, so all are moved now and then. With memory for all future
    columns between them a CPU takes three times as long for the short products of one row, as each touches other pages;
    and oneDNN would copy keys of a half type at every product. To multiply a few unused columns too costs less.

    To group rows by prefix takes a dozen passes over queries and scores, and if some prefixes have more rows than
    others, their product is partly empty. So where few rows share a prefix each row can have a copy of it instead
    (`copy_prefixes`), in the first `prefix_len` columns of its own keys.

    Shapes:
        prefix_keys, prefix_values: (L, P, K, S, D), with copies (L, 0, K, S, D). prefix_of: (R,) int64.
        keys, values: (L, R, K, allocated, D), views of `buffer`: (2, L, R * K * (prefix_len + capacity) * D or more).
    """

    def __init__(
        self,
        config: DecoderConfig,
        prefix_keys: Tensor,
        prefix_values: Tensor,
        prefix_lengths: Tensor,
        prefix_of: Tensor,
        capacity: int,
        buffer: Tensor | None = None,
        prefix_len: int = 0,
    ) -> None:
        self.config, self.capacity, self.prefix_len = config, capacity, prefix_len
        self.length, self._new = 0, 0  # own tokens of each row, and those announced by `place`
        longest = self.longest = int(prefix_lengths.max())
        if config.sliding_window is not None and config.sliding_window < longest + capacity:
            raise ValueError(
                f"SharedPrefixCache of up to {longest} + {capacity} tokens has no sliding window of "
                f"{config.sliding_window}: use FastKVCache.expand"
            )
        self.prefix_keys, self.prefix_values = prefix_keys[:, :, :, :longest], prefix_values[:, :, :, :longest]
        self.prefix_lengths = prefix_lengths
        real = torch.arange(longest, device=prefix_of.device) < prefix_lengths[:, None]
        self.prefix_mask = None if bool(real.all()) else real  # (P, S)
        self._assign_prefixes(prefix_of)
        self._row_size = config.num_key_value_heads * (prefix_len + capacity) * config.head_dim  # in one layer
        if buffer is None:  # empty, not zeros: no column is read before it is written
            buffer = prefix_keys.new_empty(2, config.num_hidden_layers, self.rows * self._row_size)
        self.buffer = buffer
        self._allocate(self._columns_for(1))

    def _assign_prefixes(self, prefix_of: Tensor) -> None:
        self.prefix_of, self.rows, self.start = prefix_of, len(prefix_of), self.prefix_lengths[prefix_of]
        if self.prefix_len:
            padding = torch.arange(self.prefix_len, device=prefix_of.device) >= self.start[:, None]  # (R, prefix_len)
            self.padding = padding[:, None, None] if bool(padding.any()) else None
        else:
            self.grouping = PrefixGrouping(prefix_of, len(self.prefix_lengths))

    @classmethod
    def of(cls, prefixes: FastKVCache, prefix_of: Tensor, capacity: int, first: int = 0) -> SharedPrefixCache:
        """Rows that continue sequences of a cache, without a copy. 0 in `prefix_of` is the cache's row `first`."""
        chosen = slice(first, first + int(prefix_of.max()) + 1)
        keys, values, lengths = prefixes.keys[:, chosen], prefixes.values[:, chosen], prefixes.lengths[chosen]
        return cls(prefixes.config, keys, values, lengths, prefix_of, capacity)

    @property
    def lengths(self) -> Tensor:
        return self.start + self.length

    @property
    def used(self) -> int:
        return self.longest + self.length + self._new

    def _columns_for(self, tokens: int) -> int:
        """How many columns to allocate for so many own tokens: some more, as each change copies all of them."""
        multiple = max(COLUMNS_AT_ONCE, self.prefix_len // 8)
        return min(self.prefix_len + self.capacity, -(-(self.prefix_len + tokens) // multiple) * multiple)

    def _allocate(self, columns: int) -> None:
        """Give every row and head so many columns, in the same memory. Without own tokens nothing is moved."""
        allocated, written = self._view(columns), self.prefix_len + self.length
        if self.length:
            for new, old in zip(allocated, (self.keys, self.values)):
                for layer in range(len(new)):
                    new[layer, :, :, :written] = old[layer, :, :, :written].clone()
        (self.keys, self.values), self.allocated = allocated, columns

    def _view(self, columns: int) -> Tensor:
        """The buffer as keys and values of all rows with so many columns: (2, L, R, K, columns, D)."""
        shape = (self.rows, self.config.num_key_value_heads, columns, self.config.head_dim)
        return self.buffer[..., : math.prod(shape)].view(2, self.config.num_hidden_layers, *shape)

    def place(self, positions: Tensor) -> Tensor | None:
        """See `Cache`; the positions have to be the next ones of every row."""
        self._new = positions.shape[1]
        end = self.length + self._new
        if end > self.capacity:
            raise ValueError(
                f"{end} tokens a row, but the cache holds {self.capacity}: "
                "give SharedPrefixCache a larger capacity (padding counts too)"
            )
        if self.prefix_len + end > self.allocated:
            self._allocate(self._columns_for(end))
        if self._new == 1:
            return None
        if self.prefix_len:
            raise ValueError(f"{self._new} tokens a row: rows with copies of their prefixes take one at a time")
        columns = torch.arange(end, device=positions.device)
        return (columns <= columns[self.length :, None])[None, None]  # (1, 1, T, end)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """See `AttentionBackend`."""
        first, length = self.prefix_len + self.length, query.shape[1]
        end = first + self._new
        self.keys[layer, :, :, first:end] = key.transpose(1, 2)
        self.values[layer, :, :, first:end] = value.transpose(1, 2)
        own_keys, own_values = self.keys[layer], self.values[layer, :, :, :end]
        if mask is not None:
            own_keys = own_keys[:, :, :end]
        if self.prefix_len:
            return one_token_attention(query, own_keys, own_values, self.padding)
        grouping, prefix_keys, prefix_values = self.grouping, self.prefix_keys[layer], self.prefix_values[layer]
        inputs = (query, prefix_keys, prefix_values, self.prefix_mask, own_keys, own_values, mask)
        scores = grouping.prefixes * grouping.places * length * query.shape[2] * (prefix_keys.shape[2] + end)
        # With many queries a GPU's fused kernel beats three products. One token a row has fewer scores than keys.
        if length > 1 and (scores > SCORES_AT_ONCE or query.device.type != "cpu"):
            return copied_prefix_attention(*inputs, self.prefix_of)
        return shared_attention(*inputs, grouping)

    def advance(self, tokens: int) -> None:
        self.length += tokens
        self._new = 0

    def copy_prefixes(self, prefix_len: int) -> SharedPrefixCache:
        """The same rows, each with a copy of its prefix in `prefix_len` columns; 0: each prefix stored once again."""
        prefixes = (self.prefix_keys, self.prefix_values)
        if self.prefix_len:
            rows = torch.arange(self.rows, device=self.prefix_of.device)
            row_with = torch.zeros_like(self.prefix_lengths).scatter_(0, self.prefix_of, rows)  # any with the prefix
            prefixes = tuple(x[:, row_with, :, : self.longest] for x in (self.keys, self.values))
        other = SharedPrefixCache(
            self.config, *prefixes, self.prefix_lengths, self.prefix_of, self.capacity, prefix_len=prefix_len
        )
        other._allocate(other._columns_for(self.length + 1))
        other.length = self.length  # not before: `_allocate` would move what is not there yet
        own, new = (slice(cache.prefix_len, cache.prefix_len + self.length) for cache in (self, other))
        for prefix, source, target in zip(prefixes, (self.keys, self.values), (other.keys, other.values)):
            target[..., new, :] = source[..., own, :]
            if prefix_len:
                for layer in range(len(target)):
                    target[layer, :, :, :prefix_len] = prefix[layer, self.prefix_of]
        if prefix_len:  # no views: they would keep the prefixes in memory
            other.prefix_keys = other.prefix_values = prefixes[0][:, :0].clone()
        return other

    def fork(self, rows: Tensor, most: int) -> SharedPrefixCache:
        """Append a copy of each listed row, (n,) int64, with its own tokens. Use the result, no longer `self`.

        The rows get copies of their prefixes if there are at most COPY_UP_TO rows per prefix, and keep them up to
        COPIES_UP_TO, unless that takes more memory than `most` rows, the most there can ever be, with shared prefixes.
        """
        count, prefixes, longest = self.rows + len(rows), len(self.prefix_lengths), self.prefix_len or self.longest
        affordable = (prefixes * self.longest + most * self.capacity) // (longest + self.capacity)  # rows with copies
        per_prefix = COPIES_UP_TO if self.prefix_len else COPY_UP_TO
        copies = self.keys.device.type == "cpu" and count <= min(per_prefix * prefixes, affordable)
        cache = self if copies == bool(self.prefix_len) else self.copy_prefixes(self.longest if copies else 0)
        return cache._append(rows, min(most, affordable) if copies else most)

    def _append(self, rows: Tensor, most: int) -> SharedPrefixCache:
        old, written = self.rows, self.prefix_len + self.length
        before = (self.keys[..., :written, :], self.values[..., :written, :])
        self._assign_prefixes(torch.cat([self.prefix_of, self.prefix_of[rows]]))
        too_small = self.rows * self._row_size > self.buffer.shape[-1]
        if too_small:  # memory for twice the rows: one fork follows another
            self.buffer = self.buffer.new_empty(*self.buffer.shape[:2], min(2 * self.rows, most) * self._row_size)
        self.keys, self.values = self._view(self.allocated)
        for source, target in zip(before, (self.keys[..., :written, :], self.values[..., :written, :])):
            if too_small:
                target[:, :old] = source
            target[:, old:] = source[:, rows]
        return self

    def select(self, rows: Tensor) -> SharedPrefixCache:
        """These rows only, (R',) int64, in this order, and their prefixes. Use the result, no longer `self`.

        Rows move within their memory, and prefixes within that of the cache they come from; with `compact_order` few
        have to. Rows that would use less than half of their memory are copied into a smaller buffer instead.
        """
        needed = torch.zeros_like(self.prefix_lengths, dtype=torch.bool).index_fill_(0, self.prefix_of[rows], True)
        kept = compact_order(needed)
        new_index = torch.empty_like(self.prefix_lengths)
        new_index.index_copy_(0, kept, torch.arange(len(kept), device=kept.device))
        prefixes = (self.prefix_keys, self.prefix_values)
        if len(kept) < len(needed) and not self.prefix_len:
            prefixes = (_compact(keys_or_values, kept) for keys_or_values in prefixes)
        in_place = 2 * len(rows) * self._row_size >= self.buffer.shape[-1]
        prefix_of, buffer = new_index[self.prefix_of[rows]], self.buffer if in_place else None
        selected = SharedPrefixCache(
            self.config, *prefixes, self.prefix_lengths[kept], prefix_of, self.capacity, buffer, self.prefix_len
        )
        selected._allocate(self.allocated)
        selected.length = self.length
        moved = torch.arange(len(rows), device=rows.device)
        if in_place:
            moved = (rows != moved).nonzero()[:, 0]
        written = self.prefix_len + self.length
        for source, target in ((self.keys, selected.keys), (self.values, selected.values)):
            for layer in range(len(source)):  # indexing copies first, so a row may be written where another was read
                target[layer, moved, :, :written] = source[layer, rows[moved], :, :written]
        return selected


def compact_order(kept: Tensor) -> Tensor:
    """Indices that compact the kept entries while moving as few as possible: the last ones fill the gaps.

    Shapes: (n,) bool -> (n',) int64.
    """
    count = int(kept.sum())
    order = torch.arange(count, device=kept.device)
    order[~kept[:count]] = kept[count:].nonzero()[:, 0] + count
    return order


def _compact(keys_or_values: Tensor, order: Tensor) -> Tensor:
    """Sequences `order` of a tensor (L, P, ...), in its own memory unless most of that would be unused."""
    compacted = keys_or_values[:, : len(order)]
    if 2 * compacted.numel() * compacted.element_size() < compacted.untyped_storage().nbytes():
        return keys_or_values.index_select(1, order)
    moved = (order != torch.arange(len(order), device=order.device)).nonzero()[:, 0]
    for of_layer in keys_or_values:
        of_layer[moved] = of_layer[order[moved]]
    return compacted
