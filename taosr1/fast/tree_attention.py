"""Attention of concatenated tokens that share the beginnings of their rows, forward and backward, in tiles.

Nothing of the scores is kept: the backward pass computes them again, a tile at a time, which is one product more. What
autograd keeps is the largest part of a training step's memory otherwise (heads x keys numbers for every query).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from taosr1.fast.attention import fused_attention
from taosr1.fast.fused_ops import NUMBERS_AT_ONCE

TILE_QUERIES = 128  # of one row, at most: a query before the last one of its tile is given keys that it may not see
GPU_SCORES_AT_ONCE = 2**28


@dataclass(frozen=True)
class Tile:
    """R runs of queries, each of one row: T of them and S keys at most.

    queries: (R, T) int64, indices of the queries. real: (R, T) bool, False in padding, which repeats a query; None
    without padding. keys: (R, S) int64, indices of the keys, and of others that a query must not see: where `bias`,
    (R, 1, T, S), is -inf and not 0. same: how many of the first columns of `keys` are equal in all rows.
    """

    queries: Tensor
    real: Tensor | None
    keys: Tensor
    bias: Tensor
    same: int


@dataclass(frozen=True)
class Tiles:
    """All queries of a call. place_of: (n,) int64, each query's place in the concatenated (R, T) of all tiles."""

    tiles: Sequence[Tile]
    place_of: Tensor

    def in_order(self, parts: Iterable[Tensor]) -> Tensor:
        """(R, T, ...) of every tile -> (n, ...) in the order of the queries."""
        return torch.cat([part.flatten(0, 1) for part in parts]).index_select(0, self.place_of)


def make_tiles(rows: Tensor, columns: Tensor, token_at: Tensor, heads: int, window: int | None) -> Tiles:
    """Tiles of similar shape, little padded, small enough on a CPU for its cache.

    Shapes: rows, columns (n,) int64, row-major: each query's row, and its position there. token_at (B, S) int64: the
        index of the key at every position of a row.
    """
    on_cpu = token_at.device.type == "cpu"
    at_once, longest_run = (NUMBERS_AT_ONCE, TILE_QUERIES) if on_cpu else (GPU_SCORES_AT_ONCE, 2**30)
    runs = _runs(rows.tolist(), columns.tolist(), longest_run, window)
    blocks: list[list[_Run]] = []
    for run in sorted(runs, key=lambda run: (len(run.columns), run.keys), reverse=True):
        if blocks:
            longest = len(blocks[-1][0].columns)
            keys = max(run.keys, *(other.keys for other in blocks[-1]))
            fits = (len(blocks[-1]) + 1) * longest * keys * heads <= at_once
        if blocks and fits and 2 * len(run.columns) > longest:
            blocks[-1].append(run)
        else:
            blocks.append([run])
    place_of, place = torch.empty(len(rows), dtype=torch.int64), 0
    for block in blocks:
        longest = len(block[0].columns)
        for run in block:
            place_of[run.start : run.start + len(run.columns)] = torch.arange(place, place + len(run.columns))
            place += longest
    tiles = [_tile(block, columns, token_at, window) for block in blocks]
    return Tiles(tiles, place_of.to(token_at.device))


@dataclass(frozen=True)
class _Run:
    """Queries of one row, numbers `start` and following; their positions, and that of the first key that one sees."""

    row: int
    start: int
    columns: list[int]
    first_key: int

    @property
    def keys(self) -> int:
        return self.columns[-1] + 1 - self.first_key


def _runs(rows: list[int], columns: list[int], longest: int, window: int | None) -> list[_Run]:
    runs, start = [], 0
    for end in range(1, len(rows) + 1):
        if end == len(rows) or rows[end] != rows[start] or end - start == longest:
            first_key = max(0, columns[start] + 1 - window) if window else 0
            runs.append(_Run(rows[start], start, columns[start:end], first_key))
            start = end
    return runs


def _tile(block: list[_Run], columns: Tensor, token_at: Tensor, window: int | None) -> Tile:
    """The tile of these runs. All that is as large as the scores is made on the device itself."""
    device, lengths = token_at.device, [len(run.columns) for run in block]
    longest, most_keys = lengths[0], max(run.keys for run in block)
    of_runs = torch.tensor([(run.row, run.start, run.first_key) for run in block], device=device)
    rows, starts, first_keys = of_runs[:, :, None].unbind(1)  # (R, 1) each
    counts, within = torch.tensor(lengths, device=device)[:, None], torch.arange(longest, device=device)
    queries = starts + within.clamp(max=counts - 1)  # (R, T)
    positions = columns[queries]
    key_positions = first_keys + torch.arange(most_keys, device=device)  # (R, S)
    hidden = key_positions[:, None] > positions[:, :, None]  # (R, T, S)
    if window:
        hidden |= key_positions[:, None] <= positions[:, :, None] - window
    bias = torch.zeros(hidden.shape, device=device).masked_fill_(hidden, -torch.inf)[:, None]
    keys = token_at[rows, key_positions.clamp(max=token_at.shape[1] - 1)]
    same = int((keys == keys[:1]).all(dim=0).int().cumprod(0).sum())
    return Tile(queries, None if min(lengths) == longest else within < counts, keys, bias, same)


def tree_attention(query: Tensor, key: Tensor, value: Tensor, tiles: Tiles) -> Tensor:
    """Attention of n queries to N keys, which of them a tile says. Shapes: query (n, H, D), key, value (N, K, D) ->
    (n, H, D) in value's type."""
    query, key = query.to(value.dtype), key.to(value.dtype)  # rotations are float32 under autocast
    if by_products(value):
        return _TreeAttention.apply(query, key, value, tiles)
    return tiles.in_order(_fused(query, key, value, tile) for tile in tiles.tiles)


def by_products(value: Tensor) -> bool:
    """Whether attention is products of ours: on a CPU, whose fused kernels reach a fifth of their rate in bfloat16."""
    return value.device.type == "cpu"


def _fused(query: Tensor, key: Tensor, value: Tensor, tile: Tile) -> Tensor:
    """A tile (R, T, H, D) by PyTorch's fused kernels."""
    rows, longest = tile.queries.shape
    keys, values = (_SharedRows.apply(x, tile.keys).transpose(1, 2) for x in (key, value))
    out = fused_attention(_rows_of(query, tile.queries), keys, values, tile.bias == 0)
    return out.view(rows, longest, *query.shape[1:])


class _SharedRows(torch.autograd.Function):
    """`_rows_of`, whose gradient is added up in float32: hundreds of rows may share a prefix, and a GPU that adds in
    bfloat16 does not get past 256 ones."""

    @staticmethod
    def forward(ctx, x: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.shape = x.shape
        return _rows_of(x, places)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (places,), wide = ctx.saved_tensors, torch.promote_types(grad.dtype, torch.float32)
        total = grad.new_zeros(ctx.shape, dtype=wide)
        total.index_add_(0, places.flatten(), grad.flatten(0, 1).to(wide))
        return total.to(grad.dtype), None


class _TreeAttention(torch.autograd.Function):
    """`tree_attention` in products of a tile. It keeps its inputs alone.

    With P = softmax(Q K^T / sqrt(D)) and O = P V: dV = P^T dO, dP = dO V^T, dS = P (dP - sum(P dP)), dQ = dS K and
    dK = dS^T Q, the last two over sqrt(D). Gradients of keys are added up over the rows that share them.
    """

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, tiles: Tiles) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.tiles = tiles
        found = []
        for tile in tiles.tiles:
            grouped, keys, values = _of_tile(query, key, value, tile)
            found.append(_ungrouped(_probs(grouped, keys, tile).to(value.dtype) @ values, query.shape[1]))
        return tiles.in_order(found)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value = ctx.saved_tensors
        wide = torch.promote_types(value.dtype, torch.float32)
        key_grad, value_grad, found = *key.new_zeros(2, *key.shape, dtype=wide), []
        with torch.autocast(value.device.type, enabled=False):  # a backward pass may run inside of autocast
            for tile in ctx.tiles.tiles:
                grouped, keys, values = _of_tile(query, key, value, tile)
                probs = _probs(grouped, keys, tile)
                out_grad = _rows_of(grad, tile.queries)
                if tile.real is not None:
                    out_grad[~tile.real] = 0.0
                out_grad = _grouped(out_grad, key.shape[1])
                probs_grad = out_grad @ values.transpose(-1, -2)
                scores_grad = torch._softmax_backward_data(probs_grad.to(wide), probs, -1, wide).to(value.dtype)
                _add_keys(value_grad, probs.to(value.dtype).transpose(-1, -2) @ out_grad, tile)
                _add_keys(key_grad, scores_grad.transpose(-1, -2) @ grouped, tile)  # scaled: the queries are
                found.append(_ungrouped(scores_grad @ keys * query.shape[-1] ** -0.5, query.shape[1]))
        return ctx.tiles.in_order(found), key_grad.to(key.dtype), value_grad.to(value.dtype), None


def _rows_of(x: Tensor, places: Tensor) -> Tensor:
    """x[places] by whole rows. Shapes: x (n, ...), places (R, T) -> (R, T, ...)."""
    return x.index_select(0, places.flatten()).unflatten(0, places.shape)


def _grouped(x: Tensor, kv_heads: int) -> Tensor:
    """The query heads that share a key head stand together: (R, T, H, D) -> (R, K, n T, D), n = H / K."""
    rows, length, heads, size = x.shape
    return x.view(rows, length, kv_heads, -1, size).permute(0, 2, 3, 1, 4).reshape(rows, kv_heads, -1, size)


def _ungrouped(x: Tensor, heads: int) -> Tensor:
    """(R, K, n T, D) -> (R, T, H, D)."""
    rows, kv_heads, _, size = x.shape
    return x.view(rows, kv_heads, heads // kv_heads, -1, size).permute(0, 3, 1, 2, 4).flatten(2, 3)


def _of_tile(query: Tensor, key: Tensor, value: Tensor, tile: Tile) -> tuple[Tensor, Tensor, Tensor]:
    """Scaled queries (R, K, n T, D), keys and values (R, K, S, D)."""
    grouped = _grouped(_rows_of(query, tile.queries), key.shape[1]) * query.shape[-1] ** -0.5
    keys, values = (_rows_of(x, tile.keys).transpose(1, 2).contiguous() for x in (key, value))
    return grouped, keys, values


def _probs(grouped: Tensor, keys: Tensor, tile: Tile) -> Tensor:
    """Probabilities (R, K, n T, S), in float32 or wider."""
    scores = grouped @ keys.transpose(-1, -2)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    rows, longest = tile.queries.shape
    scores.view(rows, -1, longest, scores.shape[-1]).add_(tile.bias)  # a quarter of the time of masked_fill_
    return scores.softmax(-1)


def _add_keys(total: Tensor, part: Tensor, tile: Tile) -> None:
    """Add a tile's gradients (R, K, S, D) to those of the keys (N, K, D)."""
    part = part.transpose(1, 2)  # (R, S, K, D)
    if tile.same:
        shared = part[:, : tile.same].sum(dim=0, dtype=total.dtype)
        total[tile.keys[0, : tile.same]] += shared
    own = tile.keys[:, tile.same :].flatten()
    total.index_add_(0, own, part[:, tile.same :].flatten(0, 1).to(total.dtype))
