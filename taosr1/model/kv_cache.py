"""The key/value cache: the keys and values of the tokens that each row has processed so far."""

from __future__ import annotations

import torch
from torch import Tensor

from taosr1.model.config import DecoderConfig


class KVCache:
    """Keys and values of `rows` sequences, each with its own length.

    A key is stored at the absolute position of its token in its own row, and the decoder's mask lets a query at
    position p attend to positions 0..p. So rows of different lengths share one batch, padded on the right: what
    padding wrote beyond a row's length is overwritten by the row's next token before any query attends to it.

    The caller advances `lengths` by each row's number of real tokens after a call of the model, because only the
    caller knows which tokens are padding.

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
        self.config, self.rows, self.capacity = config, rows, capacity
        shape = (config.num_hidden_layers, rows, config.num_key_value_heads, capacity, config.head_dim)
        # Zeros, not empty: a masked position has weight 0, and 0 times an uninitialised NaN would be NaN.
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.lengths = torch.zeros(rows, dtype=torch.int64, device=device)
        self.used = 0  # one past the highest position written in any row
        self._positions: Tensor | None = None

    def reserve(self, positions: Tensor) -> int:
        """Announce the positions (rows, T) of the next tokens, before `update` is called for each layer.

        Returns: `used`, how many positions `update` will return.
        Raises: ValueError for a position outside the cache.
        """
        low, high = (int(value) for value in positions.aminmax())
        if low < 0 or high >= self.capacity:
            raise ValueError(
                f"positions run from {low} to {high} but the cache holds 0 to {self.capacity - 1}: "
                "give KVCache a larger capacity (padding counts too)"
            )
        self._positions, self.used = positions, max(self.used, high + 1)
        return self.used

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write the new tokens of one layer; return all keys and values stored so far.

        Shapes: keys, values (rows, K, T, D) -> two of (rows, K, used, D).
        """
        row = torch.arange(self.rows, device=keys.device)[:, None]  # (rows, 1)
        self.keys[layer][row, :, self._positions] = keys.transpose(1, 2).to(self.keys.dtype)
        self.values[layer][row, :, self._positions] = values.transpose(1, 2).to(self.values.dtype)
        return self.keys[layer, :, :, : self.used], self.values[layer, :, :, : self.used]

    def repeat_interleave(self, samples: int) -> KVCache:
        """A new cache with each row repeated `samples` times, the copies of a row side by side."""
        return self.select(torch.arange(self.rows, device=self.keys.device).repeat_interleave(samples))

    def select(self, rows: Tensor) -> KVCache:
        """A new cache with these rows only, in this order. Shapes: rows (R,) int64 indices, or (rows,) bool."""
        index = rows.nonzero().flatten() if rows.dtype == torch.bool else rows
        selected = type(self)(self.config, len(index), self.capacity, self.keys.dtype, self.keys.device)
        selected.keys[:, :, :, : self.used] = self.keys[:, index, :, : self.used]
        selected.values[:, :, :, : self.used] = self.values[:, index, :, : self.used]
        selected.lengths, selected.used = self.lengths[index], self.used
        return selected
