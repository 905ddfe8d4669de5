"""GPU kernels of our own, in Triton, which comes with PyTorch there: attention behind shared prefixes, and the small steps between products.

Attention is "flash" (2205.14135). A program takes a tile of queries and walks over the keys that they see, block by block; for each
query it keeps the highest score so far, the sum of e^(score - highest), and the sum of the values with these weights. Scores never reach
memory. PyTorch's own kernels of this kind take one range of keys for a sequence; here a query sees two, its prefix and its own row.
And the query heads that share a key head, of several tokens or of several samples, are rows of one tile: a key is read once for all.
Scores are multiplied by log2(e), as a GPU has an instruction for 2^x.

What a query may not see has weight 0. Where weights or float16 overflow, 0 times infinity is NaN, for the other rows of that tile too.

The small steps (`pointwise.py`) are bound by bytes: each kernel reads its tensors once, computes in float32, and rounds once.

The twins, in plain PyTorch, are `flat_rows.prefix_attention_plain`, `decode_cache.decode_attention_plain`, and the functions of `pointwise.py`
as they are written there. `on_gpu.can_use_triton` says where to use what.
"""

from __future__ import annotations

import math
from contextlib import nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2_E = math.log2(math.e)
ROWS_OF_A_STEP = 32  # of a tile in `decode_attention`, at most: its samples load each other's keys too, and 16 rows are the fewest that a product has
LOWEST = tl.constexpr(-1e30)  # not -inf: a query may see nothing of a block, and -inf - -inf is NaN


@triton.jit
def _with_block(q, key, value, seen, scale, top, total, summed, MASKED: tl.constexpr, PRECISION: tl.constexpr):
    """The running softmax, and one block of keys more. q (M, D), key (D, N), value (N, D), seen (M or 1, N); top, total (M,), summed (M, D)."""
    scores = tl.dot(q, key, input_precision=PRECISION)
    if MASKED:
        scores = tl.where(seen, scores, float("-inf"))
    higher = tl.maximum(top, tl.max(scores, 1) * scale)
    weights = tl.exp2(scores * scale - higher[:, None])
    shrinks = tl.exp2(top - higher)
    total = total * shrinks + tl.sum(weights, 1)
    summed = tl.dot(weights.to(value.dtype), value, summed * shrinks[:, None], input_precision=PRECISION)
    return higher, total, summed


@triton.jit
def _behind_kernel(
    query, key, value, prefix_key, prefix_value, out, tiles, firsts, lasts, scale, query_step, key_step, value_step, prefix_key_step, prefix_value_step, heads,
    GROUP: tl.constexpr, D: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    tile, head = tl.program_id(0), tl.program_id(1)
    first, end = tl.load(tiles + 4 * tile), tl.load(tiles + 4 * tile + 1)
    prefix, prefix_end = tl.load(tiles + 4 * tile + 2), tl.load(tiles + 4 * tile + 3)
    d, n, m = tl.arange(0, D), tl.arange(0, N), tl.arange(0, M)
    token = first + m // GROUP
    real = token < end
    here = token.to(tl.int64)[:, None]
    of_head = ((head * GROUP + m % GROUP) * D)[:, None] + d[None]
    q = tl.load(query + here * query_step + of_head, mask=real[:, None], other=0.0)
    own_first, own_last = tl.load(firsts + token, mask=real, other=0), tl.load(lasts + token, mask=real, other=2**31 - 1)
    top, total, summed = tl.full([M], LOWEST, tl.float32), tl.zeros([M], tl.float32), tl.zeros([M, D], tl.float32)

    # The prefix: all of the tile's queries see all of it.
    column = (prefix + n).to(tl.int64)
    keys = prefix_key + head * D + column[None] * prefix_key_step + d[:, None]
    values = prefix_value + head * D + column[:, None] * prefix_value_step + d[None]
    whole = (prefix_end - prefix) // N
    for _ in range(whole):
        top, total, summed = _with_block(q, tl.load(keys), tl.load(values), True, scale, top, total, summed, False, "ieee")
        keys += N * prefix_key_step
        values += N * prefix_value_step
    if prefix + whole * N < prefix_end:
        there = n < prefix_end - prefix - whole * N
        k, v = tl.load(keys, mask=there[None], other=0.0), tl.load(values, mask=there[:, None], other=0.0)
        top, total, summed = _with_block(q, k, v, there[None], scale, top, total, summed, True, "ieee")

    # The rows of the tile's queries: each sees its own, up to itself.
    own, own_end = tl.load(firsts + first), tl.load(lasts + end - 1) + 1
    column = (own + n).to(tl.int64)
    keys = key + head * D + column[None] * key_step + d[:, None]
    values = value + head * D + column[:, None] * value_step + d[None]
    for start in range(own, own_end, N):
        column_now = start + n
        there = column_now < own_end
        k, v = tl.load(keys, mask=there[None], other=0.0), tl.load(values, mask=there[:, None], other=0.0)
        seen = (column_now[None] >= own_first[:, None]) & (column_now[None] <= own_last[:, None])
        top, total, summed = _with_block(q, k, v, seen, scale, top, total, summed, True, "ieee")
        keys += N * key_step
        values += N * value_step
    tl.store(out + here * heads * D + of_head, (summed / total[:, None]).to(out.dtype.element_ty), mask=real[:, None])


@triton.jit
def _newest_kernel(
    query, key, value, keys, values, out, rows_from, lengths, written, scale, query_step, key_step, value_step, prefix_step, head_step, longest, places, heads,
    GROUP: tl.constexpr, D: tl.constexpr, PLACES: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    prefix, head, block = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length, columns = tl.load(lengths + prefix).to(tl.int32), tl.load(written).to(tl.int32)
    d, n, m = tl.arange(0, D), tl.arange(0, N), tl.arange(0, M)
    place = block * PLACES + m // GROUP
    first_row, end_row = tl.load(rows_from + prefix), tl.load(rows_from + prefix + 1)
    row = first_row + place
    real = (m < PLACES * GROUP) & (row < end_row)
    here = row.to(tl.int64)[:, None]
    of_head = ((head * GROUP + m % GROUP) * D)[:, None] + d[None]
    q = tl.load(query + here * query_step + of_head, mask=real[:, None], other=0.0).to(keys.dtype.element_ty)

    # The newest token is the first of the softmax, and joins the keys and values for the steps to come.
    new_key = tl.load(key + here * key_step + head * D + d[None], mask=real[:, None], other=0.0).to(keys.dtype.element_ty)
    new_value = tl.load(value + here * value_step + head * D + d[None], mask=real[:, None], other=0.0).to(keys.dtype.element_ty)
    mine = prefix.to(tl.int64) * prefix_step + head.to(tl.int64) * head_step
    slot = mine + (longest + columns * places + place)[:, None] * D + d[None]
    once = (real & (m % GROUP == 0))[:, None]
    tl.store(keys + slot, new_key, mask=once)
    tl.store(values + slot, new_value, mask=once)
    top = tl.sum(q.to(tl.float32) * new_key.to(tl.float32), 1) * scale
    total, summed = tl.full([M], 1.0, tl.float32), new_value.to(tl.float32)

    for start in range(0, length, N):  # the prompt
        there = start + n < length
        at = mine + (start + n) * D
        k = tl.load(keys + at[None] + d[:, None], mask=there[None], other=0.0)
        v = tl.load(values + at[:, None] + d[None], mask=there[:, None], other=0.0)
        top, total, summed = _with_block(q, k, v, there[None], scale, top, total, summed, True, "ieee")
    for start in range(0, columns * PLACES, N):  # what the tile's rows have written: token by token, row by row
        whose = block * PLACES + (start + n) % PLACES
        there = (start + n < columns * PLACES) & (first_row + whose < end_row)
        at = mine + (longest + (start + n) // PLACES * places + whose) * D
        k = tl.load(keys + at[None] + d[:, None], mask=there[None], other=0.0)
        v = tl.load(values + at[:, None] + d[None], mask=there[:, None], other=0.0)
        seen = there[None] & (whose[None] == place[:, None])
        top, total, summed = _with_block(q, k, v, seen, scale, top, total, summed, True, "ieee")
    tl.store(out + here * heads * D + of_head, (summed / total[:, None]).to(out.dtype.element_ty), mask=real[:, None])


def prefix_attention(query: Tensor, key: Tensor, value: Tensor, prefix_key: Tensor, prefix_value: Tensor, tiles: Tensor, firsts: Tensor, lasts: Tensor, rows: int) -> Tensor:
    """See `flat_rows.prefix_attention`. rows: of a tile, queries times the query heads that share a key head, at most."""
    count, heads, size = query.shape
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    tensors = query, key, value, prefix_key, prefix_value
    # Blocks of 32: rows of some dozen tokens fill larger ones badly. Four warps, three blocks under way: the best of those tried on an H200.
    with _on_device_of(query):
        _behind_kernel[len(tiles), key.shape[1]](
            *tensors, out, tiles, firsts, lasts, LOG2_E * size**-0.5, *(x.stride(0) for x in tensors), heads,
            GROUP=heads // key.shape[1], D=size, M=max(16, triton.next_power_of_2(rows)), N=32, num_warps=4, num_stages=3,
        )  # fmt: skip
    return out


def decode_attention(query: Tensor, key: Tensor, value: Tensor, keys: Tensor, values: Tensor, rows_from: Tensor, lengths: Tensor, written: Tensor, longest: int, places: int) -> Tensor:
    """See `decode_cache.decode_attention`."""
    rows, heads, size = query.shape
    prefixes, kv_heads = keys.shape[:2]
    group = heads // kv_heads
    of_tile = min(triton.next_power_of_2(places), max(1, ROWS_OF_A_STEP // group))  # few numbers, as a kernel is built for each
    out = torch.empty(query.shape, dtype=keys.dtype, device=query.device)
    with _on_device_of(query):
        _newest_kernel[prefixes, kv_heads, triton.cdiv(places, of_tile)](
            query, key, value, keys, values, out, rows_from, lengths, written, LOG2_E * size**-0.5,
            query.stride(0), key.stride(0), value.stride(0), keys.stride(0), keys.stride(1), longest, places, heads,
            GROUP=group, D=size, PLACES=of_tile, M=max(16, triton.next_power_of_2(of_tile * group)),
            N=32 if size * keys.element_size() <= 256 else 16, num_warps=2, num_stages=3,
        )  # fmt: skip
    return out


@triton.jit
def _turn_kernel(x, weight, cos, sin, out, rows, table_rows, x_step, eps, HEADS: tl.constexpr, D: tl.constexpr, M: tl.constexpr, NORMED: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * M + tl.arange(0, M)
    token, half, real = row // HEADS, tl.arange(0, D // 2), (row < rows)[:, None]
    here = (token * x_step + row % HEADS * D)[:, None] + half[None]
    first, second = tl.load(x + here, mask=real).to(tl.float32), tl.load(x + here + D // 2, mask=real).to(tl.float32)
    if NORMED:
        factor = tl.rsqrt((tl.sum(first * first, 1) + tl.sum(second * second, 1)) / D + eps)[:, None]
        first *= factor * tl.load(weight + half).to(tl.float32)[None]
        second *= factor * tl.load(weight + D // 2 + half).to(tl.float32)[None]
    turn = (token % table_rows * D)[:, None] + half[None]
    cos_first, cos_second = tl.load(cos + turn, mask=real).to(tl.float32), tl.load(cos + turn + D // 2, mask=real).to(tl.float32)
    sin_first, sin_second = tl.load(sin + turn, mask=real).to(tl.float32), tl.load(sin + turn + D // 2, mask=real).to(tl.float32)
    there = (row * D)[:, None] + half[None]
    tl.store(out + there, (first * cos_first + second * sin_first).to(out.dtype.element_ty), mask=real)
    tl.store(out + there + D // 2, (second * cos_second + first * sin_second).to(out.dtype.element_ty), mask=real)


def norm_and_rotate(x: Tensor, weight: Tensor | None, eps: float, cos: Tensor, sin: Tensor) -> Tensor:
    """See `pointwise.norm_and_rotate`."""
    heads, size = x.shape[2:]
    tokens, cos, sin = x.flatten(0, 1), cos.reshape(-1, size), sin.reshape(-1, size)  # (B * T, H, D); tables of all rows or of one
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rows, of_tile = len(tokens) * heads, max(1, 2048 // size)
    with _on_device_of(x):
        _turn_kernel[triton.cdiv(rows, of_tile),](
            tokens, x if weight is None else weight, cos, sin, out, rows, len(cos), tokens.stride(0), eps,
            HEADS=heads, D=size, M=of_tile, NORMED=weight is not None,
        )  # fmt: skip
    return out


@triton.jit
def _gate_kernel(gate, up, out, count, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = at < count
    x = tl.load(gate + at, mask=there).to(tl.float32)
    tl.store(out + at, (x / (1 + tl.exp(-x)) * tl.load(up + at, mask=there).to(tl.float32)).to(out.dtype.element_ty), mask=there)


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """See `pointwise.gated`."""
    gate, up, out = gate.contiguous(), up.contiguous(), torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    with _on_device_of(gate):
        _gate_kernel[triton.cdiv(gate.numel(), 2048),](gate, up, out, gate.numel(), BLOCK=2048)
    return out


@triton.jit
def _add_and_norm_kernel(x, added, weight, total, out, width, eps, BLOCK: tl.constexpr):
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    there = column < width
    at = row * width + column
    both = tl.load(x + at, mask=there, other=0.0).to(tl.float32) + tl.load(added + at, mask=there, other=0.0).to(tl.float32)
    both = both.to(total.dtype.element_ty)
    tl.store(total + at, both, mask=there)
    both = both.to(tl.float32)
    factor = tl.rsqrt(tl.sum(both * both, 0) / width + eps)
    tl.store(out + at, (both * factor * tl.load(weight + column, mask=there).to(tl.float32)).to(out.dtype.element_ty), mask=there)


def add_and_norm(x: Tensor, added: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See `pointwise.add_and_norm`."""
    x, added, width = x.contiguous(), added.contiguous(), x.shape[-1]
    total, out = torch.empty_like(x), torch.empty(x.shape, dtype=weight.dtype, device=x.device)
    with _on_device_of(x):
        _add_and_norm_kernel[x.numel() // width,](x, added, weight, total, out, width, eps, BLOCK=triton.next_power_of_2(width), num_warps=4 if width <= 4096 else 8)
    return total, out


@triton.jit
def _block_sums_kernel(blocks, top, out, count, B: tl.constexpr, M: tl.constexpr):
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1) * M + tl.arange(0, M)
    there = block < count
    logits = tl.load(blocks + (row * count + block)[:, None] * B + tl.arange(0, B)[None], mask=there[:, None], other=float("-inf"))
    tl.store(out + row * count + block, tl.sum(tl.exp(logits - tl.load(top + row)), 1), mask=there)


def block_sums(blocks: Tensor, top: Tensor) -> Tensor:
    """See `pointwise.block_sums`."""
    rows, count, size = blocks.shape
    blocks, out = blocks.contiguous(), torch.empty(rows, count, dtype=blocks.dtype, device=blocks.device)
    with _on_device_of(blocks):
        _block_sums_kernel[rows, triton.cdiv(count, 32)](blocks, top.contiguous(), out, count, B=size, M=32)
    return out


@triton.jit
def _float8_kernel(x, numbers, scales, width, most, BLOCK: tl.constexpr):
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    there = column < width
    given = tl.load(x + row * width + column, mask=there, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(given), 0) / most, 1e-12)
    tl.store(numbers + row * width + column, (given / scale).to(numbers.dtype.element_ty), mask=there)
    tl.store(scales + row, scale)


def quantize_to_float8(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """See `eight_bits.quantize_to_float8`."""
    x, width = x.contiguous(), x.shape[-1]
    numbers, scales = torch.empty(x.shape, dtype=dtype, device=x.device), torch.empty((*x.shape[:-1], 1), dtype=torch.float32, device=x.device)
    with _on_device_of(x):
        _float8_kernel[x.numel() // width,](x, numbers, scales, width, torch.finfo(dtype).max, BLOCK=triton.next_power_of_2(width), num_warps=4 if width <= 4096 else 8)
    return numbers, scales


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
