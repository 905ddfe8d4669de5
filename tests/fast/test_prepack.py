"""Prepacked weights against the same weights as they were: products, whole models, and what files and digests read."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from taosr1.fast.onednn_linear import OneDNNLinear, has_onednn
from taosr1.fast.prepack import PrepackedLinear, prepack
from taosr1.model.io.digest import model_digest
from taosr1.model.lora import LoraConfig, LoraLinear, add_adapters
from tests.prefix_cases import draw

needs_onednn = pytest.mark.skipif(not has_onednn(torch.float32), reason="this torch or processor cannot prepack")


def count_prepacked(model) -> int:
    return sum(isinstance(layer, PrepackedLinear) for layer in model.modules())


@needs_onednn
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("rows, bias", [((1,), False), ((3,), True), ((64,), False), ((2, 5), True)])
def test_a_prepacked_layer_computes_what_the_layer_did(dtype, tolerance, rows, bias):
    torch.manual_seed(0)
    if not has_onednn(dtype):
        pytest.skip(f"this processor cannot prepack {dtype}")
    layer, x = nn.Linear(48, 40, bias=bias).to(dtype), torch.randn(*rows, 48, dtype=dtype)
    with torch.no_grad():
        found = PrepackedLinear(layer)(x)
        assert found.dtype == dtype
        torch.testing.assert_close(found, layer(x), atol=tolerance, rtol=tolerance)


@needs_onednn
@pytest.mark.parametrize("decodes", [False, True])
def test_a_prepacked_model_answers_as_before_and_files_and_digests_read_its_weights(
    family, decodes, twins, tokenizer, assert_close
):
    (plain, model), ids = twins(family), draw(3, 7, 0)
    with torch.no_grad():
        weights = plain.state_dict()
        prepack(model, decodes=decodes)
        assert count_prepacked(model)
        assert isinstance(model.lm_head, PrepackedLinear) == (decodes or not model.config.tie_word_embeddings)
        assert not any(type(layer) is OneDNNLinear for layer in model.modules())
        assert_close(model(ids), plain(ids))
    assert model_digest(model, tokenizer) == model_digest(plain, tokenizer)
    assert list(model.state_dict()) == list(weights)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


@needs_onednn
def test_adapters_stay_as_they_are(make_fast_model, assert_close):
    model, ids = add_adapters(make_fast_model(), LoraConfig(2, 4, targets=("q_proj",))), draw(2, 5, 0)
    with torch.no_grad():
        before = model(ids)
        prepack(model)
        layer = model.model.layers[0]
        assert isinstance(layer.self_attn.q_proj, LoraLinear) and isinstance(layer.mlp.up_proj, PrepackedLinear)
        assert_close(model(ids), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_of_a_type_that_the_processor_refuses_stays_as_it_is(make_fast_model, monkeypatch, dtype):
    """oneDNN refuses bfloat16 on processors without its instructions: `--dtype bfloat16` is slow there, and works."""

    def refuse(*_):
        raise RuntimeError("bf16 path needs the cpu support avx512bw")

    has_onednn.cache_clear()
    monkeypatch.setattr("taosr1.fast.onednn_linear.onednn_product", refuse)
    try:
        model = prepack(make_fast_model().to(dtype))
    finally:
        has_onednn.cache_clear()
    assert not count_prepacked(model)
    with torch.no_grad():
        assert model(draw(2, 5, 0)).isfinite().all()


def test_plain_models_and_types_without_such_a_layout_are_not_prepacked(twins):
    plain, model = twins()
    assert not count_prepacked(prepack(plain)) and not count_prepacked(prepack(model.double()))
