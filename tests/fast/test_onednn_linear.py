"""oneDNN's product against `F.linear`: its values, its gradients, and when it is used."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from taosr1.fast import onednn_linear as module
from taosr1.fast.onednn_linear import OneDNNLinear, linear

ROWS, INPUT, OUTPUT = 96, 200, 144


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.fixture
def calls(monkeypatch) -> list[tuple[int, ...]]:
    """Shapes of the inputs that oneDNN was given."""
    if not module.has_onednn():
        pytest.skip("this torch has no oneDNN operator for linear layers: `linear` is `F.linear` here")
    seen, kernel = [], module._onednn
    monkeypatch.setattr(module, "_onednn", lambda x, *rest: seen.append(tuple(x.shape)) or kernel(x, *rest))
    return seen


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(ROWS, INPUT), (4, ROWS // 4, INPUT)])
def test_values_and_gradients_are_those_of_f_linear(shape, bias, calls):
    weight, offset = draw(OUTPUT, INPUT, seed=1), draw(OUTPUT, seed=2) if bias else None
    wanted = draw(*shape[:-1], OUTPUT, seed=3)
    found = []
    for product in (linear, F.linear):
        tensors = [x.clone().requires_grad_() for x in (draw(*shape), weight, *([offset] if bias else []))]
        out = product(*tensors)
        out.backward(wanted)
        found.append([out.detach(), *(x.grad for x in tensors)])
    assert calls == [shape, (ROWS, OUTPUT), (OUTPUT, ROWS)]  # the product, its gradient by x, and by the weight
    for ours, plain in zip(*found):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-4)  # sums of 200 products of normal numbers


def test_the_gradient_of_a_weight_is_contiguous_and_adds_up(calls):
    x, weight, wanted = draw(201, 100), draw(200, 100, seed=1).requires_grad_(), draw(201, 200, seed=2)
    for _ in range(2):  # into an empty `.grad`, and onto one
        linear(x, weight).backward(wanted)
    assert weight.grad.is_contiguous()
    torch.testing.assert_close(weight.grad, 2 * (wanted.double().t() @ x.double()).float(), rtol=1e-5, atol=1e-3)


def test_tensors_need_not_be_contiguous(calls):
    x, weight = draw(INPUT, ROWS).t(), draw(INPUT, OUTPUT, seed=1).t()
    torch.testing.assert_close(linear(x, weight), F.linear(x, weight), rtol=1e-5, atol=1e-4)
    x = draw(4, 2 * ROWS, INPUT)[:, ::2].requires_grad_()
    linear(x, weight).sum().backward()
    torch.testing.assert_close(x.grad, weight.sum(0).expand(x.shape), rtol=1e-5, atol=1e-4)
    assert len(calls) == 3


def test_frozen_tensors_get_no_gradient_and_cost_no_product(calls):
    x, weight = draw(ROWS, INPUT).requires_grad_(), draw(OUTPUT, INPUT, seed=1)
    linear(x, weight).sum().backward()
    assert x.grad is not None and weight.grad is None and len(calls) == 2
    calls.clear()
    weight.requires_grad_()
    linear(x.detach(), weight).sum().backward()
    assert weight.grad is not None and len(calls) == 2
    calls.clear()
    with torch.no_grad():
        assert not linear(x, weight).requires_grad and len(calls) == 1


def test_tensors_that_no_gradient_needs_are_not_kept_and_there_is_no_second_derivative(calls):
    x, weight = draw(ROWS, INPUT).requires_grad_(), draw(OUTPUT, INPUT, seed=1).requires_grad_()
    for tensors, expected in (((x, weight), 2), ((x, weight.detach()), 1), ((x.detach(), weight), 1)):
        kept = []
        keep = lambda tensor, kept=kept: kept.append(tensor) or tensor  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            linear(*tensors)
        assert len(kept) == expected
    (first,) = torch.autograd.grad(linear(x, weight).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_torch_computes_what_onednn_has_no_memory_for(calls, monkeypatch):
    def refuse(*_):
        raise RuntimeError("could not create a primitive")

    x, weight = draw(ROWS, INPUT), draw(OUTPUT, INPUT, seed=1)
    monkeypatch.setattr(module, "onednn_product", refuse)
    assert torch.equal(linear(x, weight), F.linear(x, weight)) and len(calls) == 1


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(RuntimeError, match="96x200"):
        linear(draw(ROWS, INPUT), draw(OUTPUT, INPUT + 1))


def test_torch_computes_other_types_small_products_and_autocast(calls):
    weight = draw(OUTPUT, INPUT, seed=1)
    linear(draw(2, INPUT), weight)  # a token or two: the call would cost more than the product
    linear(draw(ROWS, 4), draw(4, 4))
    assert linear(draw(0, INPUT), weight).shape == (0, OUTPUT)
    for dtype in (torch.float64, torch.bfloat16):
        assert linear(draw(ROWS, INPUT, dtype=dtype), weight.to(dtype)).dtype == dtype
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(draw(ROWS, INPUT), weight).dtype == torch.bfloat16
    assert calls == []


def test_every_linear_layer_of_the_fast_decoder_uses_it(make_fast_model, calls):
    sizes = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 32, "vocab_size": 128}
    model = make_fast_model(**sizes, tie_word_embeddings=False)
    assert all(type(layer) is OneDNNLinear for layer in model.modules() if isinstance(layer, torch.nn.Linear))
    model(torch.zeros(8, 64, dtype=torch.int64))
    assert len(calls) >= 3 * 2 + 1  # the MLPs and the head at least; k and v of this shape are too small
