"""Our GPU kernels against their plain twins: built on a GPU, interpreted by Triton without one (tests/conftest.py).

Whole models on a GPU: test_gpu.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton", reason="Triton is not installed (it is part of the [dev] extra): no kernels to test")

from taosr1.fast import triton_kernels as kernels
from taosr1.fast.quantize import quantize_to_float8
from taosr1.fast.static_cache import StaticCache
from taosr1.fast.varlen import VarlenPrefixes, VarlenRows, VarlenSuffixes
from taosr1.model.config import DecoderConfig
from taosr1.model.rotary import rotate
from tests import attention_twins

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TYPES = [torch.float32, torch.float16]
HEADS = [(4, 2, 16), (3, 3, 64), (14, 2, 16)]  # of queries, of keys, size
ROWS_OF = [[3, 8, 1], [40, 1, 2]]  # of each prefix
ROTATED = [(3, 5, 4, 32), (1, 70, 2, 128), (7, 1, 3, 16)]
if DEVICE == "cuda":  # numpy, which interprets, has no bfloat16 and takes seconds: there each value is tested once
    TYPES.append(torch.bfloat16)
    HEADS_AND_TYPES, DECODES = list(product(HEADS, TYPES)), list(product(HEADS, TYPES, ROWS_OF))
    ROTATED_AND_TYPES = list(product(ROTATED, TYPES))
else:
    HEADS_AND_TYPES = list(zip(HEADS, [*TYPES, torch.float32]))
    DECODES = [(*case, rows_of) for case, rows_of in zip(HEADS_AND_TYPES, [ROWS_OF[0], ROWS_OF[1], ROWS_OF[0]])]
    ROTATED_AND_TYPES = list(zip(ROTATED, [*TYPES, torch.float32]))


@pytest.fixture
def draw():
    generator = torch.Generator().manual_seed(0)
    return lambda dtype, *shape: torch.randn(shape, generator=generator).to(DEVICE, dtype)


def config_of(heads: int, kv_heads: int, size: int) -> DecoderConfig:
    return DecoderConfig(97, 24, 40, 2, heads, kv_heads, size)


def close(got: torch.Tensor, expected: torch.Tensor) -> None:
    assert torch.isfinite(got).all()
    rtol, atol = {torch.float32: (1e-5, 1e-5), torch.float16: (2e-3, 2e-3), torch.bfloat16: (2e-2, 1e-2)}[got.dtype]
    torch.testing.assert_close(got, expected, rtol=rtol, atol=atol)


def decode(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cache: StaticCache, layer: int) -> torch.Tensor:
    """`static_cache.decode_attention` as on a GPU."""
    places = cache.cu_rows, cache.prefix_lengths, cache.steps_done, cache.longest, cache.places
    return kernels.decode_attention(query, key, value, cache.keys[layer], cache.values[layer], places)


@pytest.mark.parametrize(("heads", "dtype"), HEADS_AND_TYPES, ids=str)
def test_rows_with_prefixes_equal_one_query_after_another(draw, heads, dtype):
    """Prefixes longer and shorter than a block, rows of one token and of more than a tile, several rows in a tile.

    Both for all columns and for the last ones.
    """
    prefixes = VarlenPrefixes(config_of(*heads), [7, 64, 101], dtype, DEVICE)
    rows = VarlenSuffixes(prefixes, [0, 1, 1, 1, 1, 1], [3, 1, 40, 9, 150, 2], first=1)  # none continues the first one
    keys = [draw(dtype, 205, *heads[1:]) for _ in range(2)]
    prefix_keys = [draw(dtype, 172, *heads[1:]) for _ in range(2)]
    for ranges, count in ((rows.all_ranges, 205), (rows.last_ranges, 6)):
        query = draw(dtype, count, heads[0], heads[2])
        expected = attention_twins.prefix_attention(query, *keys, *prefix_keys, ranges)
        close(kernels.prefix_attention(query, *keys, *prefix_keys, ranges), expected)
        wrong = attention_twins.prefix_attention(query, *keys, prefix_keys[0].flip(0), prefix_keys[1], ranges)
        assert not torch.allclose(expected, wrong, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_rows_without_a_prefix_and_tensors_that_are_parts_of_others(draw, dtype):
    ranges = VarlenRows(config_of(4, 2, 16), [5, 1, 70], DEVICE).all_ranges
    query, (key, value) = draw(dtype, 76, 7, 16)[:, 3:], draw(dtype, 2, 76, 3, 16)[:, :, 1:]
    tensors = query, key, value, key, value
    close(kernels.prefix_attention(*tensors, ranges), attention_twins.prefix_attention(*tensors, ranges))


@pytest.mark.parametrize(("heads", "dtype", "rows_of"), DECODES, ids=str)
def test_newest_tokens_equal_rows_with_a_copy_of_their_prefix(draw, heads, dtype, rows_of):
    """More rows of a prefix than a tile has; columns that no row has are NaN, which must not reach a result."""
    longest, lengths = 70, torch.tensor([70, 1, 33], device=DEVICE)
    prefix_of = torch.arange(3, device=DEVICE).repeat_interleave(torch.tensor(rows_of, device=DEVICE))
    prefix = draw(dtype, 2, 2, 3, heads[1], longest, heads[2])
    cache, twin = (StaticCache(config_of(*heads), *prefix, lengths, prefix_of, 11) for _ in range(2))
    for each in (cache, twin):
        each.keys[..., longest:, :] = each.values[..., longest:, :] = float("nan")
    for step in range(11):
        new = [draw(dtype, sum(rows_of), count, heads[2]) for count in (heads[0], heads[1], heads[1])]
        expected = attention_twins.decode_attention(*new, twin, 1)
        if DEVICE == "cpu" and 2 <= step < 10:  # only store the new tokens: interpreting takes a while
            column = cache.columns(torch.arange(len(prefix_of)), cache.steps_done[None])[:, 0]
            cache.keys[1][prefix_of, :, column], cache.values[1][prefix_of, :, column] = new[1:]
        else:
            close(decode(*new, cache, 1), expected)
        cache.advance(1)
        twin.advance(1)
    assert torch.equal(cache.keys.isnan(), twin.keys.isnan())
    assert cache.keys[1].nansum() == twin.keys[1].nansum()


def test_a_cache_of_another_type_than_its_newest_tokens(draw):
    """Under autocast weights and cache are float32, and the results of linear layers are not."""
    prefix, new = draw(torch.float32, 2, 2, 2, 2, 5, 16), [draw(torch.float16, 3, count, 16) for count in (4, 2, 2)]
    lengths, prefix_of = torch.tensor([5, 2], device=DEVICE), torch.tensor([0, 0, 1], device=DEVICE)
    cache, twin = (StaticCache(config_of(4, 2, 16), *prefix, lengths, prefix_of, 3) for _ in range(2))
    got = decode(*new, cache, 0)
    assert got.dtype == torch.float32
    close(got, attention_twins.decode_attention(*new, twin, 0))


def test_half_precision_scores_do_not_overflow():
    """25 * 25 * 128 is larger than any float16."""
    large = torch.full((1, 1, 1, 1, 1, 128), 25.0, dtype=torch.float16, device=DEVICE)
    one, zero = torch.tensor([1], device=DEVICE), torch.tensor([0], device=DEVICE)
    cache = StaticCache(config_of(1, 1, 128), large[0], large[0], one, zero, 2)
    new = [large[0, 0, 0]] * 3
    assert (decode(*new, cache, 0) == 25).all()
    assert (attention_twins.decode_attention(*new, cache, 0) == 25).all()


@pytest.mark.parametrize(("shape", "dtype"), ROTATED_AND_TYPES, ids=str)
@torch.no_grad()
def test_normalised_and_rotated_heads(draw, shape, dtype):
    """Tables of all rows or of one; heads that are part of a wider tensor."""
    rows, length, heads, size = shape
    x, weight = draw(dtype, rows, length, heads + 1, size)[:, :, 1:], draw(dtype, size)
    normed = F.rms_norm(x.double(), (size,), weight.double(), 1e-3)
    for tables in (draw(dtype, 2, rows, length, 1, size), draw(dtype, 2, length, 1, size)):
        expected = [rotate(each, *tables.double()).to(dtype) for each in (normed, x.double())]
        close(kernels.norm_and_rotate(x, weight, 1e-3, *tables), expected[0])
        close(kernels.norm_and_rotate(x, None, 0.0, *tables), expected[1])


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@torch.no_grad()
def test_gates(draw, dtype):
    gate, up = draw(dtype, 2, 7, 500)[:, 2:] * 8, draw(dtype, 2, 5, 500)
    close(kernels.swiglu(gate, up), (F.silu(gate.double()) * up.double()).to(dtype))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@torch.no_grad()
def test_sums_and_their_norms(draw, dtype):
    x, added, weight = draw(dtype, 2, 9, 300)[:, 4:], draw(dtype, 2, 5, 300), draw(dtype, 300)
    (total, normed), expected = kernels.add_and_norm(x, added, weight, 1e-3), x + added
    close(total, expected)
    close(normed, F.rms_norm(expected.double(), (300,), weight.double(), 1e-3).to(dtype))


@torch.no_grad()
def test_block_sums(draw):
    logits = draw(torch.float32, 3, 100, 64)
    logits[1, 50:] = -torch.inf
    top = logits.amax((1, 2))[:, None]
    expected = (logits.double() - top.double()[..., None]).exp().sum(-1).float()
    close(kernels.block_sums(logits, top), expected)
    assert (expected[1, 50:] == 0).all()


@pytest.mark.skipif(DEVICE == "cpu", reason="numpy, which interprets Triton here, has no 8-bit floats")
def test_quantizing_to_float8(draw):
    x = draw(torch.bfloat16, 2, 30, 300)
    x[0, 3] = 0
    with torch.no_grad():
        numbers, scale = kernels.quantize_to_float8(x, torch.float8_e4m3fn)
    expected, expected_scale = quantize_to_float8(x)  # gradients are recorded: the plain steps
    torch.testing.assert_close(scale, expected_scale, rtol=1e-6, atol=0)
    different = numbers.float() != expected.float()
    assert different.float().mean() < 1e-3  # a quotient that rounds the other way
    torch.testing.assert_close(numbers.float(), expected.float(), rtol=0.13, atol=0)


def test_the_probe_runs_without_an_error():
    assert kernels.probe(torch.device(DEVICE)) is None


@pytest.mark.long
@pytest.mark.skipif(DEVICE == "cuda", reason="there is a GPU, for which all of them have just been built")
def test_every_kernel_can_be_built_for_gpus_that_are_not_here_and_fits_into_them(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    script = Path(__file__).parents[1] / "compile_kernels.py"
    found = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    report = json.loads(found.stdout)
    assert report.keys() == {"86", "90"} and len(report["90"]) == 8
    assert max(report["86"].values()) <= 99 * 2**10 and max(report["90"].values()) <= 227 * 2**10
