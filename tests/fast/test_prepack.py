"""Packed weights against the same weights as they were: products, whole models, and what files and digests see."""

from __future__ import annotations

import pytest
import torch

from taosr1.fast import prepack as packed
from taosr1.fast.onednn_linear import Linear, plain_paths
from taosr1.fast.prepack import PrepackedLinear, can_prepack, prepack
from taosr1.model.io.digest import model_digest
from taosr1.model.lora import LoraConfig, LoraLinear, add_adapters
from tests.prefix_cases import draw

needs_onednn = pytest.mark.skipif(not can_prepack(torch.float32), reason="this torch or processor has no packed products")


@needs_onednn
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("rows", [(1,), (3,), (64,), (2, 5)])
@pytest.mark.parametrize("bias", [False, True])
def test_a_packed_layer_gives_what_the_layer_gave(dtype, tolerance, rows, bias):
    torch.manual_seed(0)
    if not can_prepack(dtype):
        pytest.skip(f"this processor has no packed products in {dtype}")
    layer, x = Linear(48, 40, bias=bias).to(dtype), torch.randn(*rows, 48, dtype=dtype)
    with torch.no_grad():
        found = PrepackedLinear(layer)(x)
        assert found.dtype == dtype
        torch.testing.assert_close(found, layer(x), atol=tolerance, rtol=tolerance)


@needs_onednn
@pytest.mark.parametrize("decodes", [False, True])
def test_a_packed_model_answers_as_before_and_files_and_digests_see_its_weights(family, decodes, make_model, tokenizer, assert_close):
    model, ids = make_model(family), draw(3, 7, 0)
    with torch.no_grad():
        before, weights = model(ids), {name: tensor.clone() for name, tensor in model.state_dict().items()}
        digest = model_digest(model, tokenizer)
        prepack(model, decodes=decodes)
        assert any(isinstance(module, PrepackedLinear) for module in model.modules())
        assert isinstance(model.lm_head, PrepackedLinear) == (decodes or not model.config.tie_word_embeddings)
        assert not any(type(module) is Linear for module in model.modules())
        assert_close(model(ids), before)
    assert model_digest(model, tokenizer) == digest
    assert list(model.state_dict()) == list(weights)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


@needs_onednn
def test_adapters_stay_what_they_are(make_model, assert_close):
    model, ids = add_adapters(make_model(), LoraConfig(2, 4, targets=("q_proj",))), draw(2, 5, 0)
    with torch.no_grad():
        before = model(ids)
        prepack(model)
        assert isinstance(model.model.layers[0].self_attn.q_proj, LoraLinear) and isinstance(model.model.layers[0].mlp.up_proj, PrepackedLinear)
        assert_close(model(ids), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_where_the_processor_refuses_a_type_the_model_stays_as_it_is(make_model, monkeypatch, dtype):
    """As oneDNN does on processors without the instructions for bfloat16: `--dtype bfloat16` is slow there, and still works."""
    can_prepack.cache_clear()
    monkeypatch.setattr(packed, "onednn_product", lambda *_: (_ for _ in ()).throw(RuntimeError("bf16 path needs the cpu support avx512bw")))
    try:
        model = prepack(make_model().to(dtype))
    finally:
        can_prepack.cache_clear()
    assert not any(isinstance(module, PrepackedLinear) for module in model.modules())
    with torch.no_grad():
        assert model(draw(2, 5, 0)).isfinite().all()


def test_the_plain_path_and_types_without_such_a_layout_pack_nothing(make_model):
    with plain_paths():
        assert not any(isinstance(module, PrepackedLinear) for module in prepack(make_model()).modules())
    assert not any(isinstance(module, PrepackedLinear) for module in prepack(make_model().double()).modules())
