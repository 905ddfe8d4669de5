"""Our own GPU kernels, in Triton, which comes with PyTorch: attention with shared prefixes, and fused small steps.

Attention is "flash" (2205.14135). A program takes a tile of queries and walks over their keys block by block; for each
query it keeps the highest score so far, the sum of e^(score - highest), and the sum of the values with these weights.
Scores are never written to memory. PyTorch's own kernels of this kind take one range of keys for a sequence; here a
query attends to two, its prefix and its own row. The query heads that share a key head, of several tokens or of
several samples, are rows of one tile, so a key is read once for all of them. Scores are multiplied by log2(e), as a GPU
has an instruction for 2^x.

A masked key has weight 0. If weights or float16 overflow, 0 times infinity is NaN, for the other rows of that tile too.

The small steps (`fused_ops.py`) are bound by bytes: each kernel reads its tensors once, computes in float32, and rounds
once.

The twins of the small steps are the functions of `fused_ops.py` as they are written there, those of attention are in
`tests/attention_twins.py`. `triton_support.can_use_triton` says where the kernels are used.
"""

from __future__ import annotations

import math
from contextlib import nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2_E = math.log2(math.e)
# Rows of a tile in `decode_attention`, at most: its samples load each other's keys too, and a product takes 16 or more.
DECODE_TILE_ROWS = 32
LOWEST = tl.constexpr(-1e30)  # not -inf: all keys of a block may be masked, and -inf - -inf is NaN


@triton.jit
def _softmax_step(q, key, value, mask, scale, highest, total, weighted, MASKED: tl.constexpr):
    """The running softmax with one more block of keys.

    Shapes: q (M, D), key (D, N), value (N, D), mask (M or 1, N); highest, total (M,), weighted (M, D).
    """
    scores = tl.dot(q, key, input_precision="ieee")
    if MASKED:
        scores = tl.where(mask, scores, float("-inf"))
    new_highest = tl.maximum(highest, tl.max(scores, 1) * scale)
    weights = tl.exp2(scores * scale - new_highest[:, None])
    shrink = tl.exp2(highest - new_highest)
    total = total * shrink + tl.sum(weights, 1)
    weighted = tl.dot(weights.to(value.dtype), value, weighted * shrink[:, None], input_precision="ieee")
    return new_highest, total, weighted


@triton.jit
def _prefix_attention_kernel(
    query, key, value, prefix_key, prefix_value, out, tiles, first_keys, last_keys, scale,
    query_stride, key_stride, value_stride, prefix_key_stride, prefix_value_stride, heads,
    GROUP: tl.constexpr, D: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    tile, head = tl.program_id(0), tl.program_id(1)
    first, end = tl.load(tiles + 4 * tile), tl.load(tiles + 4 * tile + 1)
    prefix, prefix_end = tl.load(tiles + 4 * tile + 2), tl.load(tiles + 4 * tile + 3)
    d, n, m = tl.arange(0, D), tl.arange(0, N), tl.arange(0, M)
    token = first + m // GROUP
    real = token < end
    token_index = token.to(tl.int64)[:, None]
    of_head = ((head * GROUP + m % GROUP) * D)[:, None] + d[None]
    q = tl.load(query + token_index * query_stride + of_head, mask=real[:, None], other=0.0)
    own_first = tl.load(first_keys + token, mask=real, other=0)
    own_last = tl.load(last_keys + token, mask=real, other=2**31 - 1)
    highest, total = tl.full([M], LOWEST, tl.float32), tl.zeros([M], tl.float32)
    weighted = tl.zeros([M, D], tl.float32)

    # The prefix: all of the tile's queries attend to all of it.
    column = (prefix + n).to(tl.int64)
    keys = prefix_key + head * D + column[None] * prefix_key_stride + d[:, None]
    values = prefix_value + head * D + column[:, None] * prefix_value_stride + d[None]
    full_blocks = (prefix_end - prefix) // N
    for _ in range(full_blocks):
        k, v = tl.load(keys), tl.load(values)
        highest, total, weighted = _softmax_step(q, k, v, True, scale, highest, total, weighted, False)
        keys += N * prefix_key_stride
        values += N * prefix_value_stride
    if prefix + full_blocks * N < prefix_end:
        there = n < prefix_end - prefix - full_blocks * N
        k, v = tl.load(keys, mask=there[None], other=0.0), tl.load(values, mask=there[:, None], other=0.0)
        highest, total, weighted = _softmax_step(q, k, v, there[None], scale, highest, total, weighted, True)

    # The rows of the tile's queries: each attends to its own row, up to itself.
    own, own_end = tl.load(first_keys + first), tl.load(last_keys + end - 1) + 1
    column = (own + n).to(tl.int64)
    keys = key + head * D + column[None] * key_stride + d[:, None]
    values = value + head * D + column[:, None] * value_stride + d[None]
    for start in range(own, own_end, N):
        column_now = start + n
        there = column_now < own_end
        k, v = tl.load(keys, mask=there[None], other=0.0), tl.load(values, mask=there[:, None], other=0.0)
        mask = (column_now[None] >= own_first[:, None]) & (column_now[None] <= own_last[:, None])
        highest, total, weighted = _softmax_step(q, k, v, mask, scale, highest, total, weighted, True)
        keys += N * key_stride
        values += N * value_stride
    result = (weighted / total[:, None]).to(out.dtype.element_ty)
    tl.store(out + token_index * heads * D + of_head, result, mask=real[:, None])


@triton.jit
def _decode_attention_kernel(
    query, key, value, keys, values, out, cu_rows, lengths, steps_done, scale,
    query_stride, key_stride, value_stride, prefix_stride, head_stride, longest, places, heads,
    GROUP: tl.constexpr, D: tl.constexpr, PLACES: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    prefix, head, block = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length, steps = tl.load(lengths + prefix).to(tl.int32), tl.load(steps_done).to(tl.int32)
    d, n, m = tl.arange(0, D), tl.arange(0, N), tl.arange(0, M)
    place = block * PLACES + m // GROUP
    first_row, end_row = tl.load(cu_rows + prefix), tl.load(cu_rows + prefix + 1)
    row = first_row + place
    real = (m < PLACES * GROUP) & (row < end_row)
    row_index = row.to(tl.int64)[:, None]
    of_head = ((head * GROUP + m % GROUP) * D)[:, None] + d[None]
    of_key_head = head * D + d[None]
    dtype = keys.dtype.element_ty
    q = tl.load(query + row_index * query_stride + of_head, mask=real[:, None], other=0.0).to(dtype)

    # The newest token comes first in the softmax; its key and value are stored for the steps to come.
    new_key = tl.load(key + row_index * key_stride + of_key_head, mask=real[:, None], other=0.0).to(dtype)
    new_value = tl.load(value + row_index * value_stride + of_key_head, mask=real[:, None], other=0.0).to(dtype)
    base = prefix.to(tl.int64) * prefix_stride + head.to(tl.int64) * head_stride
    new_column = base + (longest + steps * places + place)[:, None] * D + d[None]
    once = (real & (m % GROUP == 0))[:, None]
    tl.store(keys + new_column, new_key, mask=once)
    tl.store(values + new_column, new_value, mask=once)
    highest = tl.sum(q.to(tl.float32) * new_key.to(tl.float32), 1) * scale
    total, weighted = tl.full([M], 1.0, tl.float32), new_value.to(tl.float32)

    for start in range(0, length, N):  # the prefix
        there = start + n < length
        at = base + (start + n) * D
        k = tl.load(keys + at[None] + d[:, None], mask=there[None], other=0.0)
        v = tl.load(values + at[:, None] + d[None], mask=there[:, None], other=0.0)
        highest, total, weighted = _softmax_step(q, k, v, there[None], scale, highest, total, weighted, True)
    for start in range(0, steps * PLACES, N):  # the own tokens of the tile's rows: step by step, row by row
        key_place = block * PLACES + (start + n) % PLACES
        there = (start + n < steps * PLACES) & (first_row + key_place < end_row)
        at = base + (longest + (start + n) // PLACES * places + key_place) * D
        k = tl.load(keys + at[None] + d[:, None], mask=there[None], other=0.0)
        v = tl.load(values + at[:, None] + d[None], mask=there[:, None], other=0.0)
        mask = there[None] & (key_place[None] == place[:, None])
        highest, total, weighted = _softmax_step(q, k, v, mask, scale, highest, total, weighted, True)
    result = (weighted / total[:, None]).to(out.dtype.element_ty)
    tl.store(out + row_index * heads * D + of_head, result, mask=real[:, None])


def prefix_attention(
    query: Tensor, key: Tensor, value: Tensor, prefix_key: Tensor, prefix_value: Tensor, ranges: tuple
) -> Tensor:
    """See `varlen.prefix_attention`; ranges: `varlen.AttentionRanges`."""
    tiles, first_keys, last_keys, tile_rows = ranges
    _, heads, size = query.shape
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    tensors = query, key, value, prefix_key, prefix_value
    # Blocks of 32: rows of some dozen tokens fill larger ones badly. Four warps and three stages: the best on an H200.
    with _on_device_of(query):
        _prefix_attention_kernel[len(tiles), key.shape[1]](
            *tensors, out, tiles, first_keys, last_keys, LOG2_E * size**-0.5, *(x.stride(0) for x in tensors), heads,
            GROUP=heads // key.shape[1], D=size, M=max(16, triton.next_power_of_2(tile_rows)), N=32,
            num_warps=4, num_stages=3,
        )  # fmt: skip
    return out


def decode_attention(query: Tensor, key: Tensor, value: Tensor, keys: Tensor, values: Tensor, rows: tuple) -> Tensor:
    """See `static_cache.decode_attention`; keys and values of a layer, and rows: the cache's attributes below."""
    cu_rows, lengths, steps_done, longest, places = rows
    _, heads, size = query.shape
    prefixes, kv_heads = keys.shape[:2]
    group = heads // kv_heads
    # Powers of two, as a kernel is built for each number of places.
    tile_places = min(triton.next_power_of_2(places), max(1, DECODE_TILE_ROWS // group))
    out = torch.empty(query.shape, dtype=keys.dtype, device=query.device)
    with _on_device_of(query):
        _decode_attention_kernel[prefixes, kv_heads, triton.cdiv(places, tile_places)](
            query, key, value, keys, values, out, cu_rows, lengths, steps_done, LOG2_E * size**-0.5,
            query.stride(0), key.stride(0), value.stride(0), keys.stride(0), keys.stride(1), longest, places, heads,
            GROUP=group, D=size, PLACES=tile_places, M=max(16, triton.next_power_of_2(tile_places * group)),
            N=32 if size * keys.element_size() <= 256 else 16, num_warps=2, num_stages=3,
        )  # fmt: skip
    return out


@triton.jit
def _norm_and_rotate_kernel(
    x, weight, cos, sin, out, rows, table_rows, x_stride, eps,
    HEADS: tl.constexpr, D: tl.constexpr, M: tl.constexpr, NORMED: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * M + tl.arange(0, M)
    token, half, real = row // HEADS, tl.arange(0, D // 2), (row < rows)[:, None]
    at = (token * x_stride + row % HEADS * D)[:, None] + half[None]
    first = tl.load(x + at, mask=real).to(tl.float32)
    second = tl.load(x + at + D // 2, mask=real).to(tl.float32)
    if NORMED:
        factor = tl.rsqrt((tl.sum(first * first, 1) + tl.sum(second * second, 1)) / D + eps)[:, None]
        first *= factor * tl.load(weight + half).to(tl.float32)[None]
        second *= factor * tl.load(weight + D // 2 + half).to(tl.float32)[None]
    in_table = (token % table_rows * D)[:, None] + half[None]
    cos_first = tl.load(cos + in_table, mask=real).to(tl.float32)
    cos_second = tl.load(cos + in_table + D // 2, mask=real).to(tl.float32)
    sin_first = tl.load(sin + in_table, mask=real).to(tl.float32)
    sin_second = tl.load(sin + in_table + D // 2, mask=real).to(tl.float32)
    out_at = (row * D)[:, None] + half[None]
    dtype = out.dtype.element_ty
    tl.store(out + out_at, (first * cos_first + second * sin_first).to(dtype), mask=real)
    tl.store(out + out_at + D // 2, (second * cos_second + first * sin_second).to(dtype), mask=real)


def norm_and_rotate(x: Tensor, weight: Tensor | None, eps: float, cos: Tensor, sin: Tensor) -> Tensor:
    """See `fused_ops.norm_and_rotate`."""
    heads, size = x.shape[2:]
    tokens = x.flatten(0, 1)  # (B * T, H, D)
    cos, sin = cos.reshape(-1, size), sin.reshape(-1, size)  # tables of all rows of x, or of one
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rows, tile_rows = len(tokens) * heads, max(1, 2048 // size)
    with _on_device_of(x):
        _norm_and_rotate_kernel[triton.cdiv(rows, tile_rows),](
            tokens, x if weight is None else weight, cos, sin, out, rows, len(cos), tokens.stride(0), eps,
            HEADS=heads, D=size, M=tile_rows, NORMED=weight is not None,
        )  # fmt: skip
    return out


@triton.jit
def _swiglu_kernel(gate, up, out, count, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = at < count
    x = tl.load(gate + at, mask=there).to(tl.float32)
    result = x / (1 + tl.exp(-x)) * tl.load(up + at, mask=there).to(tl.float32)
    tl.store(out + at, result.to(out.dtype.element_ty), mask=there)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """See `fused_ops.swiglu`."""
    gate, up = gate.contiguous(), up.contiguous()
    out = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    with _on_device_of(gate):
        _swiglu_kernel[triton.cdiv(gate.numel(), 2048),](gate, up, out, gate.numel(), BLOCK=2048)
    return out


@triton.jit
def _add_and_norm_kernel(x, added, weight, total, out, width, eps, BLOCK: tl.constexpr):
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    there = column < width
    at = row * width + column
    both = tl.load(x + at, mask=there, other=0.0).to(tl.float32)
    both += tl.load(added + at, mask=there, other=0.0).to(tl.float32)
    both = both.to(total.dtype.element_ty)
    tl.store(total + at, both, mask=there)
    both = both.to(tl.float32)
    factor = tl.rsqrt(tl.sum(both * both, 0) / width + eps)
    normed = both * factor * tl.load(weight + column, mask=there).to(tl.float32)
    tl.store(out + at, normed.to(out.dtype.element_ty), mask=there)


def add_and_norm(x: Tensor, added: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See `fused_ops.add_and_norm`."""
    x, added, width = x.contiguous(), added.contiguous(), x.shape[-1]
    total, out = torch.empty_like(x), torch.empty(x.shape, dtype=weight.dtype, device=x.device)
    with _on_device_of(x):
        _add_and_norm_kernel[x.numel() // width,](x, added, weight, total, out, width, eps, **_row_settings(width))
    return total, out


@triton.jit
def _block_sums_kernel(blocks, top, out, count, B: tl.constexpr, M: tl.constexpr):
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1) * M + tl.arange(0, M)
    there = block < count
    at = (row * count + block)[:, None] * B + tl.arange(0, B)[None]
    logits = tl.load(blocks + at, mask=there[:, None], other=float("-inf"))
    tl.store(out + row * count + block, tl.sum(tl.exp(logits - tl.load(top + row)), 1), mask=there)


def block_sums(blocks: Tensor, top: Tensor) -> Tensor:
    """See `fused_ops.block_sums`."""
    rows, count, size = blocks.shape
    blocks, out = blocks.contiguous(), torch.empty(rows, count, dtype=blocks.dtype, device=blocks.device)
    with _on_device_of(blocks):
        _block_sums_kernel[rows, triton.cdiv(count, 32)](blocks, top.contiguous(), out, count, B=size, M=32)
    return out


@triton.jit
def _float8_kernel(x, quantized, scales, width, largest, BLOCK: tl.constexpr):
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    there = column < width
    values = tl.load(x + row * width + column, mask=there, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(values), 0) / largest, 1e-12)
    tl.store(quantized + row * width + column, (values / scale).to(quantized.dtype.element_ty), mask=there)
    tl.store(scales + row, scale)


def quantize_to_float8(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """See `quantize.quantize_to_float8`."""
    x, width = x.contiguous(), x.shape[-1]
    quantized = torch.empty(x.shape, dtype=dtype, device=x.device)
    scales = torch.empty((*x.shape[:-1], 1), dtype=torch.float32, device=x.device)
    with _on_device_of(x):
        largest = torch.finfo(dtype).max
        _float8_kernel[x.numel() // width,](x, quantized, scales, width, largest, **_row_settings(width))
    return quantized, scales


def _row_settings(width: int) -> dict[str, int]:
    """Settings of a kernel of which each program takes a row of this width."""
    return {"BLOCK": triton.next_power_of_2(width), "num_warps": 4 if width <= 4096 else 8}


@triton.jit
def _probe_kernel(out):
    tl.store(out, 1)


def probe(device: torch.device) -> None:
    """Build and run a kernel that does next to nothing. Raises whatever Triton raises where it cannot."""
    out = torch.zeros(1, dtype=torch.int32, device=device)
    with _on_device_of(out):
        _probe_kernel[1,](out)


def _on_device_of(x: Tensor):
    """Triton starts kernels on the current device. On a CPU, tests have them interpreted."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
