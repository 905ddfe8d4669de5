"""Our GPU kernels against their plain twins: built on a GPU, interpreted by Triton without one (tests/conftest.py). Whole models on a GPU: test_gpu.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed (it is part of the [dev] extra): no kernels to test")

from taosr1.fast import fused_ops as pointwise
from taosr1.fast import triton_kernels as kernels
from taosr1.fast.onednn_linear import plain_paths
from taosr1.fast.quantize import quantize_to_float8
from taosr1.fast.static_cache import StaticCache, decode_attention_plain
from taosr1.fast.varlen import VarlenPrefixes, VarlenRows, VarlenSuffixes, prefix_attention_plain
from taosr1.model.decoder import DecoderConfig, RMSNorm

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TYPES = [torch.float32, torch.float16] + [torch.bfloat16] * (DEVICE == "cuda")  # numpy, which interprets, has no bfloat16
HEADS = [(4, 2, 16), (3, 3, 64), (14, 2, 16)]  # of queries, of keys, size


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


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_rows_behind_prefixes_equal_one_query_after_another(draw, heads, dtype):
    """Prefixes longer and shorter than a block, rows of one token and of more than a tile, several rows in a tile; all columns and the last ones."""
    config = config_of(*heads)
    prefixes = VarlenPrefixes(config, [7, 64, 101], dtype, DEVICE)
    prefixes.computed = True
    flat = VarlenSuffixes(prefixes, [0, 1, 1, 1, 1, 1], [3, 1, 40, 9, 150, 2], first=1)  # the first prefix belongs to somebody else
    keys, prefix_keys = [draw(dtype, count, *heads[1:]) for count in (205, 205)], [draw(dtype, 172, *heads[1:]) for _ in range(2)]
    for sight, count in ((flat.everywhere, 205), (flat.at_last, 6)):
        query = draw(dtype, count, heads[0], heads[2])
        expected = prefix_attention_plain(query, *keys, *prefix_keys, sight)
        close(kernels.prefix_attention(query, *keys, *prefix_keys, *sight), expected)
        assert not torch.allclose(expected, prefix_attention_plain(query, *keys, prefix_keys[0].flip(0), prefix_keys[1], sight), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_rows_alone_and_tensors_that_are_parts_of_others(draw, dtype):
    flat = VarlenRows(config_of(4, 2, 16), [5, 1, 70], DEVICE)
    query, (key, value) = draw(dtype, 76, 7, 16)[:, 3:], draw(dtype, 2, 76, 3, 16)[:, :, 1:]
    close(kernels.prefix_attention(query, key, value, key, value, *flat.everywhere), prefix_attention_plain(query, key, value, key, value, flat.everywhere))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("rows_of", [[3, 8, 1], [40, 1, 2]], ids=str)
def test_newest_tokens_equal_rows_with_a_copy_of_their_prefix(draw, heads, dtype, rows_of):
    """More samples of a prefix than a tile has rows; places that no row has hold NaN, and nobody may notice."""
    config, longest = config_of(*heads), 70
    lengths, prefix_of = torch.tensor([70, 1, 33], device=DEVICE), torch.arange(3, device=DEVICE).repeat_interleave(torch.tensor(rows_of, device=DEVICE))
    prefix = draw(dtype, 2, 2, 3, heads[1], longest, heads[2])
    caches = [StaticCache(config, *prefix, lengths, prefix_of, 40) for _ in range(2)]
    for cache in caches:
        cache.keys[..., longest:, :] = cache.values[..., longest:, :] = float("nan")
    for step in range(37):
        query, key, value = (draw(dtype, sum(rows_of), count, heads[2]) for count in (heads[0], heads[1], heads[1]))
        expected = decode_attention_plain(query, key, value, caches[1], 1)
        if DEVICE == "cpu" and 2 <= step < 36:  # interpreting takes a while
            for part, new in ((caches[0].keys, key), (caches[0].values, value)):
                part[1][prefix_of, :, caches[0].slots(torch.arange(len(prefix_of)), caches[0].column[None])[:, 0]] = new
        else:
            cache = caches[0]
            got = kernels.decode_attention(query, key, value, cache.keys[1], cache.values[1], cache.rows_from, lengths, cache.column, longest, cache.places)
            close(got, expected)
        for cache in caches:
            cache.advance(1)
    assert torch.equal(caches[0].keys.isnan(), caches[1].keys.isnan()) and caches[0].keys[1].nansum() == caches[1].keys[1].nansum()


def test_a_cache_of_another_type_than_its_newest_tokens(draw):
    """Under autocast weights and cache are float32, and what linear layers give is not."""
    config, prefix_of = config_of(4, 2, 16), torch.tensor([0, 0, 1], device=DEVICE)
    prefix, new = draw(torch.float32, 2, 2, 2, 2, 5, 16), [draw(torch.float16, 3, count, 16) for count in (4, 2, 2)]
    cache, other = (StaticCache(config, *prefix, torch.tensor([5, 2], device=DEVICE), prefix_of, 3) for _ in range(2))
    got = kernels.decode_attention(*new, cache.keys[0], cache.values[0], cache.rows_from, cache.prefix_lengths, cache.column, 5, 2)
    assert got.dtype == torch.float32
    close(got, decode_attention_plain(*new, other, 0))


def test_half_precision_scores_do_not_overflow():
    """25 * 25 * 128 is more than float16 holds."""
    large = torch.full((1, 1, 1, 1, 1, 128), 25.0, dtype=torch.float16, device=DEVICE)
    cache = StaticCache(config_of(1, 1, 128), large[0], large[0], torch.tensor([1], device=DEVICE), torch.tensor([0], device=DEVICE), 2)
    new = large[0, 0, 0]
    out = kernels.decode_attention(new, new, new, cache.keys[0], cache.values[0], cache.rows_from, cache.prefix_lengths, cache.column, 1, 1)
    assert (out == 25).all()
    assert (decode_attention_plain(new, new, new, cache, 0) == 25).all()


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("shape", [(3, 5, 4, 32), (1, 300, 2, 128), (7, 1, 3, 16)], ids=str)
@torch.no_grad()
def test_heads_normalised_and_turned(draw, shape, dtype):
    """Tables of all rows or of one; heads that are part of a wider tensor."""
    rows, length, heads, size = shape
    x, weight = draw(dtype, rows, length, heads + 1, size)[:, :, 1:], draw(dtype, size)
    for tables in (draw(dtype, 2, rows, length, 1, size), draw(dtype, 2, length, 1, size)):
        for arguments in ((x, weight, 1e-3, *tables), (x, None, 0.0, *tables)):
            with plain_paths():
                expected = pointwise.norm_and_rotate(*(y.double() if torch.is_tensor(y) else y for y in arguments)).to(dtype)
            close(kernels.norm_and_rotate(*arguments), expected)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@torch.no_grad()
def test_gates(draw, dtype):
    gate, up = draw(dtype, 2, 7, 500)[:, 2:] * 8, draw(dtype, 2, 5, 500)
    with plain_paths():
        close(kernels.gated(gate, up), pointwise.gated(gate.double(), up.double()).to(dtype))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@torch.no_grad()
def test_sums_behind_their_norm(draw, dtype):
    x, added, norm = draw(dtype, 2, 9, 300)[:, 4:], draw(dtype, 2, 5, 300), RMSNorm(300, 1e-3).to(DEVICE, dtype)
    norm.weight.copy_(draw(dtype, 300))
    (total, normed), expected = kernels.add_and_norm(x, added, norm.weight, norm.eps), x + added
    close(total, expected)
    close(normed, norm.double()(expected.double()).to(dtype))


@torch.no_grad()
def test_block_sums(draw):
    logits = draw(torch.float32, 3, 100, 64)
    logits[1, 50:] = -torch.inf
    top = logits.amax((1, 2))[:, None]
    with plain_paths():
        expected = pointwise.block_sums(logits.double(), top.double()).float()
    close(kernels.block_sums(logits, top), expected)
    assert (expected[1, 50:] == 0).all()


@pytest.mark.skipif(DEVICE == "cpu", reason="numpy, which interprets Triton here, has no 8-bit floats")
@torch.no_grad()
def test_rounding_to_float8(draw):
    x = draw(torch.bfloat16, 2, 30, 300)
    x[0, 3] = 0
    numbers, scale = kernels.quantize_to_float8(x, torch.float8_e4m3fn)
    with plain_paths():
        expected, expected_scale = quantize_to_float8(x)
    torch.testing.assert_close(scale, expected_scale, rtol=1e-6, atol=0)
    different = numbers.float() != expected.float()
    assert different.float().mean() < 1e-3  # a quotient that rounds the other way
    torch.testing.assert_close(numbers.float(), expected.float(), rtol=0.13, atol=0)


def test_the_probe_runs():
    kernels.probe(torch.device(DEVICE))


@pytest.mark.skipif(DEVICE == "cuda", reason="there is a GPU, for which all of them have just been built")
def test_every_kernel_can_be_built_for_gpus_that_are_not_here_and_fits_into_them(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    found = subprocess.run([sys.executable, Path(__file__).parents[1] / "compile_kernels.py"], env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    report = json.loads(found.stdout)
    assert report.keys() == {"86", "90"} and len(report["90"]) == 8
    assert max(report["86"].values()) <= 99 * 2**10 and max(report["90"].values()) <= 227 * 2**10
