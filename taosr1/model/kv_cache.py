"""The key/value cache: what every row has read so far, one row per reply being written."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from taosr1.model.attention import AttentionBackend, attention

if TYPE_CHECKING:
    from taosr1.model.decoder import DecoderConfig


class Cache(AttentionBackend, Protocol):
    """What the decoder asks of a cache: where the new tokens go, and what they see of the past.

    rows: sequences. lengths: (rows,) int64, tokens that each has so far. used: one past the highest
    position of any row, announced tokens included.
    """

    rows: int
    lengths: Tensor
    used: int

    def place(self, positions: Tensor) -> Tensor | None:
        """Announce the new tokens' positions (rows, T); the mask that `attend` shall be given, None for plain causal attention."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Write the new keys and values (rows, T, K, D) of one layer, and attend: query (rows, T', H, D) -> (rows, T', H * D)."""

    def advance(self, tokens: int) -> None:
        """So many of the new tokens were real, in every row: the next call goes behind them."""

    def select(self, rows: Tensor) -> Cache:
        """The same with only these rows, (R,) int64 ascending."""


class KVCache:
    """Keys and values of `rows` sequences, each with its own length.

    A key is written at the absolute position of its token in its own row, and a query at position p sees exactly
    slots 0..p of its row (with a sliding window of w positions, the last w of them). So rows of different lengths share one
    batch, padded on the right: what padding writes
    beyond a row's length is overwritten by the row's next real token before any query can see it.

    The caller advances `lengths` after each call of the model (`advance`, or each row by the number of its real tokens);
    the model itself never does, because only the caller knows which tokens are padding.

    Shapes:
        keys, values: (L, rows, K, capacity, D). lengths: (rows,) int64.
    """

    def __init__(
        self,
        config: DecoderConfig,
        rows: int,
        capacity: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if rows < 1 or capacity < 1:
            raise ValueError(f"KVCache needs rows >= 1 and capacity >= 1, got rows={rows}, capacity={capacity}")
        self.config = config
        self.rows, self.capacity = rows, capacity
        shape = (config.num_hidden_layers, rows, config.num_key_value_heads, capacity, config.head_dim)
        # Zeros, not empty: a hidden slot has weight 0, and 0 times an uninitialised NaN would be NaN.
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.lengths = torch.zeros(rows, dtype=torch.int64, device=device)
        self.used = 0  # slots below this one may have been written in some row
        self._row_index = torch.arange(rows, device=device)[:, None]  # (rows, 1)
        self._slots = torch.arange(capacity, device=device)  # (capacity,)
        self._positions: Tensor | None = None
        self._reach = 0
        self._prefill = False

    def place(self, positions: Tensor) -> Tensor | None:
        """Announce where the next tokens of every row go, before `update` is called for each layer.

        Shapes:
            positions: (rows, T) int64, absolute in each row.
        Returns:
            (rows, 1, T, reach) bool, True where a query may look, `reach` being one past the last position asked for;
            None where plain causal attention over the new tokens alone is the same (the first call, from position 0, of no more than
            a sliding window).
        Raises:
            ValueError: a position outside the cache.
        """
        length = positions.shape[1]
        low, high = (int(value) for value in positions.aminmax())
        if low < 0 or high >= self.capacity:
            raise ValueError(
                f"positions run from {low} to {high} but the cache holds 0 to {self.capacity - 1}: "
                "give KVCache a larger capacity (padding counts too)"
            )
        self._positions, self._reach = positions, high + 1
        self._prefill = self.used == 0 and high == length - 1 and bool((positions == self._slots[:length]).all())
        self.used = max(self.used, self._reach)
        window = self.config.sliding_window
        if self._prefill and (window is None or length <= window):
            return None
        slots = self._slots[: self._reach]
        seen = slots <= positions[:, :, None]  # (rows, T, reach)
        if window is not None:
            seen &= slots > positions[:, :, None] - window
        return seen[:, None]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """See `Cache`."""
        return attention(query, *self.update(layer, key, value), mask)

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write the new tokens' keys and values of one layer and return all that their queries may look at.

        Shapes:
            keys, values: (rows, T, K, D). Returns two of (rows, K, T, D) at the first call, else (rows, K, reach, D).
        """
        if self._prefill:
            keys, values = keys.transpose(1, 2), values.transpose(1, 2)
            self.keys[layer, :, :, : self._reach] = keys
            self.values[layer, :, :, : self._reach] = values
            return keys, values
        self.keys[layer][self._row_index, :, self._positions] = keys
        self.values[layer][self._row_index, :, self._positions] = values
        return self.keys[layer, :, :, : self._reach], self.values[layer, :, :, : self._reach]

    def advance(self, tokens: int) -> None:
        """Every row was given so many real tokens."""
        self.lengths += tokens

    def part(self, start: int, end: int) -> KVCache:
        """Rows start to end - 1, in the same memory."""
        part = copy(self)
        part.rows, part._row_index = end - start, self._row_index[: end - start]
        part.keys, part.values, part.lengths = self.keys[:, start:end], self.values[:, start:end], self.lengths[start:end]
        return part

    def expand(self, samples: int, capacity: int | None = None) -> KVCache:
        """A new cache with each row repeated `samples` times, rows of one prompt side by side.

        Raises:
            ValueError: `capacity` (default: the same) is smaller than what is already in use.
        """
        index = torch.arange(self.rows, device=self.keys.device).repeat_interleave(samples)
        return self._copy(index, self.capacity if capacity is None else capacity)

    def select(self, rows: Tensor) -> KVCache:
        """A new cache with only these rows, in this order. Shapes: rows (R,) int64 indices, or (rows,) bool."""
        index = rows.nonzero().flatten() if rows.dtype == torch.bool else rows
        return self._copy(index, self.capacity)

    def _copy(self, index: Tensor, capacity: int) -> KVCache:
        used = self.used
        if capacity < used:
            raise ValueError(f"capacity {capacity} is smaller than the {used} slots already in use")
        copied = KVCache(self.config, len(index), capacity, self.keys.dtype, self.keys.device)
        copied.keys[:, :, :, :used] = self.keys[:, index, :, :used]
        copied.values[:, :, :, :used] = self.values[:, index, :, :used]
        copied.lengths, copied.used = self.lengths[index], used
        return copied
