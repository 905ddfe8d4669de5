"""8-bit products: what rounding costs, by hand and in a whole model, on any device; the hardware's own product is checked in test_gpu.py."""

from __future__ import annotations

import pytest
import torch

from taosr1.judge import load_judge
from taosr1.model.float8 import FLOAT8, Float8Linear, Rounding, quantised, scaled_product, to_float8
from taosr1.model.linear import Linear
from taosr1.model.lora import LoraConfig, add_adapters


def test_each_row_has_a_scale_that_makes_its_largest_number_448():
    numbers, scale = quantised(torch.tensor([[1.0, -2.0, 0.5], [0.0, 0.0, 0.0], [448.0, 1.0, 3.3]]))
    assert numbers.dtype == FLOAT8 and scale.shape == (3, 1)
    assert numbers[0].tolist() == [224.0, -448.0, 112.0] and numbers[1].tolist() == [0, 0, 0]
    assert numbers[2].tolist() == [448.0, 1.0, 3.25]  # 3 bits behind the point: 3.25 or 3.5
    torch.testing.assert_close(scale[:, 0], torch.tensor([2 / 448, 1e-12, 1.0]))


def test_a_layer_with_a_bias_is_near_the_one_it_was_made_from_and_rounds_an_input_once():
    torch.manual_seed(0)
    linear, rounding = Linear(64, 32), Rounding()
    rounded, x = Float8Linear(linear, rounding), torch.randn(2, 5, 64)
    with torch.no_grad():
        expected, got = linear(x), rounded(x)
        by_hand = (rounding.found[0].float() * rounding.found[1]) @ (rounded.weight.float() * rounded.scale).t() + linear.bias
        once = rounding.found
        rounded(x)
        assert rounding.found is once
        rounded(x.clone())
        assert rounding.found is not once
    torch.testing.assert_close(got, by_hand)
    error = (got - expected).norm() / expected.norm()
    assert 1e-3 < error < 0.05, error
    wrong = scaled_product(rounding.found[0].view(-1, 64), rounded.weight, torch.ones(10, 1), rounded.scale, torch.float32)
    assert (wrong.view_as(expected) + linear.bias - expected).norm() / expected.norm() > 1  # scales left out


def test_a_model_keeps_its_probabilities_nearly_and_its_head_entirely(make_model):
    model, ids = make_model(hidden_size=32, intermediate_size=48, head_dim=8), torch.arange(40)[None]
    with torch.no_grad():
        expected = model(ids).log_softmax(-1)
        got = to_float8(model, emulate=True)(ids).log_softmax(-1)
    assert len([module for module in model.modules() if isinstance(module, Float8Linear)]) == 2 * 7
    assert not any(isinstance(module, Float8Linear) for module in (model.lm_head, model.model.embed_tokens))
    assert 1e-4 < (got.exp() - expected.exp()).abs().mean() < 0.01


def test_what_has_no_8_bit_form_is_refused(make_model):
    with pytest.raises(ValueError, match="--dtype float8 needs a GPU that multiplies 8-bit floats .*this is cpu: use bfloat16"):
        load_judge("bundled", dtype="float8")
    with pytest.raises(ValueError, match="mixtures of experts"):
        to_float8(make_model("qwen3_moe"), emulate=True)
    with pytest.raises(ValueError, match=r"expected multiples of 16"):
        to_float8(make_model(), emulate=True)
    adapted = make_model(hidden_size=32, intermediate_size=48)
    add_adapters(adapted, LoraConfig(rank=2, alpha=4))
    with pytest.raises(ValueError, match="merge them first"):
        to_float8(adapted, emulate=True)
