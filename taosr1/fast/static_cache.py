"""Samples of shared prompts on a GPU, one token at a time: shapes and addresses never change, and one kernel attends.

The own tokens of a prompt's M rows are stored behind the prompt, the M tokens of a step side by side, so that one pass
over a prompt's keys and what follows them serves all its rows (`triton_kernels.decode_attention`). And nothing that the
device does depends on a number that only Python knows: which column comes next is stored on the device, so a decode
step can be recorded as a CUDA graph and replayed (`cuda_graph.py`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from taosr1.fast.kv_cache import FastKVCache
from taosr1.fast.triton_support import load_kernels
from taosr1.model.config import DecoderConfig


class StaticCache:
    """R rows that continue P prefixes, all by equally many tokens, one at a time; the twin is `SharedPrefixCache`.

    Shapes:
        keys, values: (L, P, K, S + capacity * M, D), M the most rows of a prefix: S columns of the prefix, then M for
            each step. prefix_of: (R,) int64, ascending. cu_rows: (P + 1,) int32, prefix p has the rows cu_rows[p] to
            cu_rows[p + 1] - 1. place_of: (R,) int64, each row's place among its prefix's.
        length: steps done; steps_done: the same on the device, () int64.
    """

    def __init__(
        self,
        config: DecoderConfig,
        prefix_keys: Tensor,
        prefix_values: Tensor,
        prefix_lengths: Tensor,
        prefix_of: Tensor,
        capacity: int,
    ) -> None:
        """prefix_keys, prefix_values: (L, P, K, S, D); they are copied."""
        self.config, self.capacity, self.length, self._new = config, capacity, 0, 0
        self.prefix_lengths, self.prefix_of, self.rows = prefix_lengths, prefix_of, len(prefix_of)
        self.longest, self.start = int(prefix_lengths.max()), prefix_lengths[prefix_of]
        counts = torch.bincount(prefix_of, minlength=len(prefix_lengths))  # (P,)
        first_rows = counts.cumsum(0) - counts
        self.places, self.cu_rows = int(counts.max()), torch.cat([first_rows, counts.sum()[None]]).int()
        self.place_of = torch.arange(self.rows, device=prefix_keys.device) - first_rows[prefix_of]
        self.steps_done = torch.zeros((), dtype=torch.int64, device=prefix_keys.device)
        layers, prefixes, heads, _, size = prefix_keys.shape
        # Empty, not zeros: no column is read before it is written.
        columns = self.longest + capacity * self.places
        self.keys, self.values = prefix_keys.new_empty(2, layers, prefixes, heads, columns, size)
        self.keys[..., : self.longest, :] = prefix_keys[..., : self.longest, :]
        self.values[..., : self.longest, :] = prefix_values[..., : self.longest, :]

    @classmethod
    def of(cls, prefixes: FastKVCache, prefix_of: Tensor, capacity: int) -> StaticCache:
        """Rows that continue the sequences of a cache."""
        longest, window = int(prefixes.lengths.max()), prefixes.config.sliding_window
        if window is not None and window < longest + capacity:
            raise ValueError(
                f"StaticCache of up to {longest} + {capacity} tokens has no sliding window of {window}: "
                "use FastKVCache.expand"
            )
        return cls(prefixes.config, prefixes.keys, prefixes.values, prefixes.lengths, prefix_of, capacity)

    @property
    def lengths(self) -> Tensor:
        return self.start + self.steps_done

    @property
    def used(self) -> int:
        return self.longest + self.length + self._new

    def place(self, positions: Tensor) -> None:
        """See `Cache`."""
        if positions.shape[1] != 1:
            raise ValueError(f"{positions.shape[1]} tokens a row: StaticCache takes one at a time")
        if self.length == self.capacity:
            raise ValueError(
                f"{self.length + 1} tokens a row, but the cache holds {self.capacity}: "
                "give StaticCache a larger capacity"
            )
        self._new = 1

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: None) -> Tensor:
        """See `AttentionBackend`."""
        return decode_attention(query[:, 0], key[:, 0], value[:, 0], self, layer).flatten(1)[:, None]

    def advance(self, tokens: int) -> None:
        self.length += tokens
        self.steps_done += tokens
        self._new = 0

    def columns(self, rows: Tensor, steps: Tensor) -> Tensor:
        """The columns of keys that hold the rows' tokens of some steps. Shapes: (r,), (t,) int64 -> (r, t)."""
        return self.longest + steps * self.places + self.place_of[rows, None]

    def select(self, rows: Tensor) -> StaticCache:
        """These rows only, (R',) int64 ascending, and their prefixes."""
        kept, prefix_of = self.prefix_of[rows].unique_consecutive(return_inverse=True)
        prefixes = (x[:, kept, :, : self.longest] for x in (self.keys, self.values))
        selected = StaticCache(self.config, *prefixes, self.prefix_lengths[kept], prefix_of, self.capacity)
        steps = torch.arange(self.length, device=rows.device)
        columns = self.columns(rows, steps)
        new_columns = selected.columns(torch.arange(selected.rows, device=rows.device), steps)
        for source, target in ((self.keys, selected.keys), (self.values, selected.values)):
            own = source[:, self.prefix_of[rows][:, None], :, columns]
            target[:, prefix_of[:, None], :, new_columns] = own
        selected.advance(self.length)
        return selected


def decode_attention(query: Tensor, key: Tensor, value: Tensor, cache: StaticCache, layer: int) -> Tensor:
    """Attention of every row's newest token to its prefix and its own tokens; its key and value are added to the cache.

    Shapes: query (R, H, D), key, value (R, K, D) -> (R, H, D).
    """
    places = cache.cu_rows, cache.prefix_lengths, cache.steps_done, cache.longest, cache.places
    return load_kernels().decode_attention(query, key, value, cache.keys[layer], cache.values[layer], places)
