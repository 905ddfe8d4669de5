"""8-bit products: what rounding costs, by hand and in a whole model, on any device; float8's own hardware is checked in test_gpu.py."""

from __future__ import annotations

import pytest
import torch

from taosr1.fast import quantize as eight_bits
from taosr1.fast.onednn_linear import Linear, plain_paths
from taosr1.fast.quantize import (
    FLOAT8,
    Float8Linear,
    Int8Linear,
    QuantizedLinear,
    Rounding,
    lacks,
    quantize,
    quantize_to_float8,
    quantize_to_int8,
)
from taosr1.judge import load_judge
from taosr1.model.lora import LoraConfig, add_adapters
from taosr1.synthetic.shop import read_pool

KINDS = {"float8": (Float8Linear, quantize_to_float8), "int8": (Int8Linear, quantize_to_int8)}
needs_int8 = pytest.mark.skipif(bool(lacks("int8", torch.device("cpu"))), reason="this CPU multiplies no 8-bit integers")


def test_float8_has_a_scale_for_each_row_that_makes_its_largest_number_448():
    numbers, scale = quantize_to_float8(torch.tensor([[1.0, -2.0, 0.5], [0.0, 0.0, 0.0], [448.0, 1.0, 3.3]]))
    assert numbers.dtype == FLOAT8 and scale.shape == (3, 1)
    assert numbers[0].tolist() == [224.0, -448.0, 112.0] and numbers[1].tolist() == [0, 0, 0]
    assert numbers[2].tolist() == [448.0, 1.0, 3.25]  # 3 bits behind the point: 3.25 or 3.5
    torch.testing.assert_close(scale[:, 0], torch.tensor([2 / 448, 1e-12, 1.0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_has_a_scale_for_each_row_that_makes_its_largest_number_127(dtype):
    numbers, scale = quantize_to_int8(torch.tensor([[1.0, -2.0, 0.5], [0.0, 0.0, 0.0], [127.0, 1.0, 3.25]], dtype=dtype))
    assert numbers.dtype == torch.uint8 and numbers.tolist() == [[128 + 64, 128 - 127, 128 + 32], [128, 128, 128], [128 + 127, 129, 131]]
    torch.testing.assert_close(scale[:, 0], torch.tensor([2 / 127, 1e-12, 1.0]), rtol=0.01, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_with_a_bias_is_near_the_one_it_was_made_from_and_rounds_an_input_once(kind):
    torch.manual_seed(0)
    make, rounded = KINDS[kind]
    linear, rounding, x = Linear(64, 32), Rounding(rounded), torch.randn(2, 5, 64)
    with torch.no_grad(), plain_paths():
        layer = make(linear, rounding)
        expected, got = linear(x), layer(x)
        once = rounding.found
        layer(x)
        assert rounding.found is once
        layer(x.clone())
        assert rounding.found is not once
        torch.testing.assert_close(layer(x.transpose(0, 1)), got.transpose(0, 1))  # not contiguous; with threads sums have another order
        error = (got - expected).norm() / expected.norm()
        assert 1e-3 < error < 0.05, error
        layer.scale *= 2
        assert (layer(x) - expected).norm() / expected.norm() > 0.5  # a wrong scale is not lost somewhere


@needs_int8
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_int8_kernel_equals_its_plain_twin(dtype):
    torch.manual_seed(0)
    layer, x = Int8Linear(Linear(96, 48).to(dtype), Rounding(quantize_to_int8)), (torch.randn(3, 70, 96) * 5).to(dtype)
    with torch.no_grad():
        found = layer(x)
        with plain_paths():
            expected = layer(x)
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected, rtol=1e-5 if dtype == torch.float32 else 0.01, atol=1e-4 if dtype == torch.float32 else 0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_keeps_its_probabilities_nearly_and_its_head_entirely(make_model, kind):
    model, ids = make_model(hidden_size=32, intermediate_size=48, head_dim=8), torch.arange(40)[None]
    with torch.no_grad(), plain_paths():
        expected = model(ids).log_softmax(-1)
        got = quantize(model, kind)(ids).log_softmax(-1)
    assert len([module for module in model.modules() if isinstance(module, QuantizedLinear)]) == 2 * 7
    assert not any(isinstance(module, QuantizedLinear) for module in (model.lm_head, model.model.embed_tokens))
    assert 1e-4 < (got.exp() - expected.exp()).abs().mean() < 0.01


@needs_int8
def test_a_judge_in_int8_gives_nearly_the_same_probabilities():
    probs = []
    for dtype in ("float32", "int8"):
        judge = load_judge("bundled", dtype=dtype)
        with torch.no_grad():
            probs.append(judge.model(torch.tensor(judge.prompts(read_pool("dev")[:1]))).float().softmax(-1))
    assert 1e-6 < (probs[0] - probs[1]).abs().mean() < 2e-4


def test_what_has_no_8_bit_form_is_refused(make_model, monkeypatch):
    with pytest.raises(ValueError, match="--dtype float8: needs a GPU that multiplies 8-bit floats .*this is cpu: use bfloat16"):
        load_judge("bundled", dtype="float8")
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    with pytest.raises(ValueError, match="--dtype int8: needs a CPU that multiplies 8-bit integers"):
        load_judge("bundled", dtype="int8")
    with plain_paths():
        with pytest.raises(ValueError, match="mixtures of experts"):
            quantize(make_model("qwen3_moe"), "float8")
        with pytest.raises(ValueError, match=r"expected multiples of 16"):
            quantize(make_model(), "int8")
        adapted = make_model(hidden_size=32, intermediate_size=48)
        add_adapters(adapted, LoraConfig(rank=2, alpha=4))
        with pytest.raises(ValueError, match="merge them first"):
            quantize(adapted, "float8")
    assert "this is cuda" in eight_bits.lacks("int8", torch.device("cuda"))
