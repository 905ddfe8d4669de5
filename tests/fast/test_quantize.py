"""8-bit products: what quantizing costs, by hand and in a whole model, on any device; test_gpu.py: float8's units."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from taosr1.fast.quantize import (
    FLOAT8,
    Float8Linear,
    Int8Linear,
    QuantizedInput,
    QuantizedLinear,
    missing_support,
    quantize,
    quantize_to_float8,
    quantize_to_int8,
)
from taosr1.judge_model import load_judge
from taosr1.model.lora import LoraConfig, add_adapters
from taosr1.synthetic.shop import read_pool

KINDS = {"float8": (Float8Linear, quantize_to_float8), "int8": (Int8Linear, quantize_to_int8)}
CPU = torch.device("cpu")
needs_int8 = pytest.mark.skipif(bool(missing_support("int8", CPU)), reason="this CPU multiplies no 8-bit integers")


def test_float8_has_a_scale_for_each_row_that_makes_its_largest_number_448():
    numbers, scale = quantize_to_float8(torch.tensor([[1.0, -2.0, 0.5], [0.0, 0.0, 0.0], [448.0, 1.0, 3.3]]))
    assert numbers.dtype == FLOAT8 and scale.shape == (3, 1)
    assert numbers[0].tolist() == [224.0, -448.0, 112.0] and numbers[1].tolist() == [0, 0, 0]
    assert numbers[2].tolist() == [448.0, 1.0, 3.25]  # 3 bits after the point: 3.25 or 3.5
    torch.testing.assert_close(scale[:, 0], torch.tensor([2 / 448, 1e-12, 1.0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_has_a_scale_for_each_row_that_makes_its_largest_number_127(dtype):
    rows = torch.tensor([[1.0, -2.0, 0.5], [0.0, 0.0, 0.0], [127.0, 1.0, 3.25]], dtype=dtype)
    numbers, scale = quantize_to_int8(rows)
    expected = [[128 + 64, 128 - 127, 128 + 32], [128, 128, 128], [128 + 127, 129, 131]]
    assert numbers.dtype == torch.uint8 and numbers.tolist() == expected
    torch.testing.assert_close(scale[:, 0], torch.tensor([2 / 127, 1e-12, 1.0]), rtol=0.01, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_with_a_bias_is_near_the_one_it_was_made_from(kind):
    torch.manual_seed(0)
    quantized_linear, quantize_rows = KINDS[kind]
    linear, x = nn.Linear(64, 32), torch.randn(2, 5, 64)
    with torch.no_grad():
        layer = quantized_linear(linear, QuantizedInput(quantize_rows), emulate=True)
        expected, got = linear(x), layer(x)
        # Not contiguous; with several threads sums have another order.
        torch.testing.assert_close(layer(x.transpose(0, 1)), got.transpose(0, 1))
        error = (got - expected).norm() / expected.norm()
        assert 1e-3 < error < 0.05, error
        layer.scale *= 2
        assert (layer(x) - expected).norm() / expected.norm() > 0.5  # a wrong scale is not lost somewhere


def test_an_input_is_quantized_once_for_all_layers_that_share_it():
    calls = []
    quantized_input = QuantizedInput(lambda x: calls.append(x) or quantize_to_int8(x))
    layers, x = [Int8Linear(nn.Linear(64, 32), quantized_input, emulate=True) for _ in range(3)], torch.randn(5, 64)
    with torch.no_grad():
        for layer in layers:
            layer(x)
        assert len(calls) == 1
        layers[0](x.clone())
        assert len(calls) == 2


@needs_int8
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_int8_kernel_equals_its_emulation(dtype):
    torch.manual_seed(0)
    linear, x = nn.Linear(96, 48).to(dtype), (torch.randn(3, 70, 96) * 5).to(dtype)
    layers = [Int8Linear(linear, QuantizedInput(quantize_to_int8), emulate) for emulate in (False, True)]
    with torch.no_grad():
        found, expected = (layer(x) for layer in layers)
    assert found.dtype == dtype
    rtol, atol = (1e-5, 1e-4) if dtype == torch.float32 else (0.01, 0.02)
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_nearly_keeps_its_probabilities_and_its_head_is_not_quantized(make_fast_model, kind):
    model, ids = make_fast_model(hidden_size=32, intermediate_size=48, head_dim=8), torch.arange(40)[None]
    with torch.no_grad():
        expected = model(ids).softmax(-1)
        got = quantize(model, kind, emulate=True)(ids).softmax(-1)
    assert sum(isinstance(module, QuantizedLinear) for module in model.modules()) == 2 * 7
    assert not any(isinstance(module, QuantizedLinear) for module in (model.lm_head, model.model.embed_tokens))
    assert 1e-4 < (got - expected).abs().mean() < 0.01


@needs_int8
def test_a_judge_in_int8_gives_nearly_the_same_probabilities():
    probs = []
    for dtype in ("float32", "int8"):
        judge = load_judge("bundled", dtype=dtype)
        with torch.no_grad():
            probs.append(judge.model(torch.tensor(judge.prompts(read_pool("dev")[:1]))).float().softmax(-1))
    assert 1e-6 < (probs[0] - probs[1]).abs().mean() < 2e-4


def test_what_has_no_8_bit_form_is_refused(make_model, monkeypatch):
    with pytest.raises(ValueError, match="--dtype float8: needs a GPU that multiplies 8-bit floats .*this is cpu: use"):
        load_judge("bundled", dtype="float8")
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    with pytest.raises(ValueError, match="--dtype int8: needs a CPU that multiplies 8-bit integers"):
        load_judge("bundled", dtype="int8")
    with pytest.raises(ValueError, match="mixtures of experts"):
        quantize(make_model("qwen3_moe"), "float8", emulate=True)
    with pytest.raises(ValueError, match=r"expected multiples of 16"):
        quantize(make_model(), "int8", emulate=True)
    adapted = add_adapters(make_model(hidden_size=32, intermediate_size=48), LoraConfig(rank=2, alpha=4))
    with pytest.raises(ValueError, match="merge them first"):
        quantize(adapted, "float8", emulate=True)
    assert "this is cuda" in missing_support("int8", torch.device("cuda"))
