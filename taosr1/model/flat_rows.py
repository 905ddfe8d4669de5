"""Rows of any length in one call on a GPU: all their tokens lie end to end in one sequence, with no padding between them.

Rows that continue a prefix see it and themselves, in one kernel (`kernels.attention_behind`). `KVCache` and `Branches` are the twins whose
results these are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from taosr1.model.on_gpu import kernels_serve

if TYPE_CHECKING:
    from taosr1.model.decoder import DecoderConfig


TILE = 128  # rows of a tile: queries times the query heads that share a key head


def lies_flat(x: Tensor, config: DecoderConfig) -> bool:
    """Whether rows with keys like `x` are computed in this form: in bfloat16 or float16, where our kernels run."""
    return x.dtype in (torch.bfloat16, torch.float16) and kernels_serve(x, config.head_dim)


class Sight(NamedTuple):
    """What n queries that lie end to end see: of their own keys each a range, and of the prefixes' keys a range that a tile of them shares.

    tiles: (t, 4) int32: a tile's first query and one past its last, its first prefix key and one past the last.
    firsts, lasts: (n,) int32: each query's first and last own key; neither ever goes down.
    rows: of a tile at most, queries times the query heads that share a key head.
    """

    tiles: Tensor
    firsts: Tensor
    lasts: Tensor
    rows: int


def attention_behind(query: Tensor, key: Tensor, value: Tensor, prefix_key: Tensor, prefix_value: Tensor, sight: Sight) -> Tensor:
    """Attention of n queries over their prefix and their own row. Shapes: query (n, H, D), key, value (N, K, D), prefix_key, prefix_value
    (M, K, D) -> (n, H, D)."""
    if query.device.type != "cuda":
        return attention_behind_plain(query, key, value, prefix_key, prefix_value, sight)
    from taosr1.model import kernels

    return kernels.attention_behind(query, key, value, prefix_key, prefix_value, *sight)


def attention_behind_plain(query: Tensor, key: Tensor, value: Tensor, prefix_key: Tensor, prefix_value: Tensor, sight: Sight) -> Tensor:
    """`attention_behind`, one query after another."""
    outs, firsts, lasts = [], sight.firsts.tolist(), sight.lasts.tolist()
    for first, end, prefix, prefix_end in sight.tiles.tolist():
        for number in range(first, end):
            own = slice(firsts[number], lasts[number] + 1)
            keys, values = (torch.cat([x[prefix:prefix_end], y[own]]) for x, y in ((prefix_key, key), (prefix_value, value)))  # (S, K, D)
            grouped = query[number].view(keys.shape[1], -1, keys.shape[2]).float()  # (K, H / K, D)
            probs = (torch.einsum("kgd,skd->kgs", grouped, keys.float()) * query.shape[-1] ** -0.5).softmax(-1)
            outs.append(torch.einsum("kgs,skd->kgd", probs, values.float()).flatten(0, 1).to(query.dtype))
    return torch.stack(outs)


class FlatRows:
    """R rows end to end: what attends (`Pattern`) in a call with all their N tokens as one row.

    lengths: tokens of each row. starts: the first token's place in its prompt, where that is not 0.
    `positions` (1, N) are the tokens' places, `last` (1, R) the columns of the rows' last tokens: a layer may be asked for all columns or
    for just these.
    """

    def __init__(
        self,
        config: DecoderConfig,
        lengths: Sequence[int],
        device: torch.device | str,
        starts: Sequence[int] | None = None,
        behind: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """behind: (P + 1,) twice: rows behind[0][i] to behind[0][i + 1] see the prefix keys behind[1][i] to behind[1][i + 1]. None: no prefixes."""
        own = torch.tensor(lengths)  # (R,)
        self.first_tokens = starts_of(own)  # (R + 1,), on the CPU
        tokens = torch.arange(int(self.first_tokens[-1])) - self.first_tokens[:-1].repeat_interleave(own)  # (N,): 0, 1, ... in every row
        places = tokens if starts is None else tokens + torch.tensor(starts).repeat_interleave(own)
        self.group, self.used = config.num_attention_heads // config.num_key_value_heads, int(places.max()) + 1
        self.positions, self.last = send(places[None], device), send(self.first_tokens[None, 1:] - 1, device)
        rows_from, keys_from = behind or (torch.tensor([0, len(own)]), torch.tensor([0, 0]))
        self.everywhere = self._sight(self.first_tokens[rows_from], keys_from, self.first_tokens[:-1].repeat_interleave(own), torch.arange(len(tokens)), device)
        self.at_last = self._sight(rows_from, keys_from, self.first_tokens[:-1], self.first_tokens[1:] - 1, device)

    def _sight(self, queries_from: Tensor, keys_from: Tensor, firsts: Tensor, lasts: Tensor, device: torch.device | str) -> Sight:
        tiles = tiles_of(queries_from, keys_from, max(1, TILE // self.group))
        return Sight(*(send(x.int(), device) for x in (tiles, firsts, lasts)), max(TILE, self.group))

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: None) -> Tensor:
        """See `Pattern`: query (1, N, H, D), or (1, R, H, D) at `last`."""
        return self.over(key[0], value[0], query, key, value)

    def over(self, prefix_key: Tensor, prefix_value: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        sight = self.everywhere if query.shape[1] == key.shape[1] else self.at_last
        return attention_behind(query[0], key[0], value[0], prefix_key, prefix_value, sight)[None].flatten(2)


class FlatPrefixes(FlatRows):
    """P prefixes end to end; a call with this pattern keeps their keys and values, (L, M, K, D)."""

    def __init__(self, config: DecoderConfig, lengths: Sequence[int], dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__(config, lengths, device)
        self.config, self.row_lengths = config, list(lengths)
        shape = (config.num_hidden_layers, sum(lengths), config.num_key_value_heads, config.head_dim)
        self.keys, self.values = torch.empty((2, *shape), dtype=dtype, device=device)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: None) -> Tensor:
        self.keys[layer], self.values[layer] = key[0], value[0]
        return super().attend(layer, query, key, value, mask)


class FlatSuffixes(FlatRows):
    """R rows end to end that continue prefixes.

    prefix_of: for each row its prefix, ascending: 0 is the prefix `first` of `prefixes`, 1 the next, and so on. lengths: tokens of each row.
    """

    def __init__(self, prefixes: FlatPrefixes, prefix_of: Sequence[int], lengths: Sequence[int], first: int = 0) -> None:
        count = prefix_of[-1] + 1
        rows_from = starts_of(torch.bincount(torch.tensor(prefix_of), minlength=count))  # (P + 1,)
        starts, keys_from = [prefixes.row_lengths[first + prefix] for prefix in prefix_of], prefixes.first_tokens[first : first + count + 1]
        super().__init__(prefixes.config, lengths, prefixes.keys.device, starts, (rows_from, keys_from))
        self.prefixes = prefixes

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: None) -> Tensor:
        return self.over(self.prefixes.keys[layer], self.prefixes.values[layer], query, key, value)


def tiles_of(queries_from: Tensor, keys_from: Tensor, most: int) -> Tensor:
    """`Sight.tiles`: queries queries_from[i] to queries_from[i + 1] in tiles of up to `most`, all with the keys keys_from[i] to keys_from[i + 1]."""
    counts = -(-queries_from.diff() // most)  # tiles of each prefix
    prefix = torch.arange(len(counts)).repeat_interleave(counts)
    first = queries_from[prefix] + (torch.arange(len(prefix)) - starts_of(counts)[prefix]) * most
    return torch.stack([first, torch.minimum(first + most, queries_from[prefix + 1]), keys_from[prefix], keys_from[prefix + 1]], 1)


def send(x: Tensor, device: torch.device | str) -> Tensor:
    """x on the device. From pinned memory a GPU fetches it when it gets there, and Python does not wait for that."""
    return x.pin_memory().to(device, non_blocking=True) if torch.device(device).type == "cuda" else x.to(device)


def starts_of(lengths: Tensor) -> Tensor:
    """Where things of these lengths begin if they lie end to end, and where the last one ends. Shapes: (n,) -> (n + 1,)."""
    return torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
