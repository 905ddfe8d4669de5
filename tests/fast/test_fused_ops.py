"""When the small steps are one kernel each, and that nothing is lost where it cannot be built. What the kernels compute: test_kernels.py."""

from __future__ import annotations

import importlib.util
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from taosr1.fast import fused_ops as pointwise
from taosr1.fast import triton_support as on_gpu
from taosr1.fast.onednn_linear import plain_paths


@pytest.fixture
def on_a_gpu(monkeypatch):
    """This machine has a GPU, as far as anybody can tell by asking."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: "here")
    on_gpu.triton_builds.cache_clear()
    yield SimpleNamespace(device=torch.device("cuda", 0), dtype=torch.float32)
    on_gpu.triton_builds.cache_clear()


def test_kernels_serve_where_they_can_be_built_for_heads_that_are_powers_of_two(on_a_gpu, monkeypatch):
    probed = []
    monkeypatch.setitem(sys.modules, "taosr1.fast.triton_kernels", SimpleNamespace(probe=probed.append))
    monkeypatch.setattr("taosr1.fast.triton_kernels", sys.modules["taosr1.fast.triton_kernels"], raising=False)
    assert on_gpu.can_use_triton(on_a_gpu) and [size for size in range(300) if on_gpu.can_use_triton(on_a_gpu, size)] == [16, 32, 64, 128]
    assert probed == [on_a_gpu.device]  # once
    assert not on_gpu.can_use_triton(torch.zeros(1)) and not on_gpu.can_use_triton(SimpleNamespace(device=on_a_gpu.device, dtype=torch.float64))
    with plain_paths():
        assert not on_gpu.can_use_triton(on_a_gpu)
    assert not pointwise.use_fused(on_a_gpu)  # gradients are recorded
    with torch.no_grad():
        assert pointwise.use_fused(on_a_gpu)
    on_gpu.triton_builds.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert not on_gpu.can_use_triton(on_a_gpu)


def test_where_they_cannot_be_built_that_is_said_once_and_nothing_uses_them(on_a_gpu, monkeypatch):
    def broken(device):
        raise RuntimeError("no C compiler")

    monkeypatch.setitem(sys.modules, "taosr1.fast.triton_kernels", SimpleNamespace(probe=broken))
    monkeypatch.setattr("taosr1.fast.triton_kernels", sys.modules["taosr1.fast.triton_kernels"], raising=False)
    with pytest.warns(UserWarning, match="PyTorch's own are used .*no C compiler") as said:
        assert not on_gpu.can_use_triton(on_a_gpu) and not on_gpu.can_use_triton(on_a_gpu)
    assert len(said) == 1


def test_without_triton_nothing_asks_for_a_kernel(on_a_gpu, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not on_gpu.can_use_triton(on_a_gpu)


def test_a_sum_and_its_norm():
    x, added, norm = torch.tensor([[[3.0, 0.0]]]), torch.tensor([[[0.0, 4.0]]]), lambda x: F.rms_norm(x, (2,), torch.tensor([1.0, 10.0]), 0.0)
    total, normed = pointwise.add_and_norm(x, added, norm)
    assert total.tolist() == [[[3, 4]]]
    torch.testing.assert_close(normed, torch.tensor([[[3.0, 40.0]]]) / 12.5**0.5)


@pytest.mark.parametrize("shape", [(5, 8), (2, 3, 8), (2, 3, 2, 8)])
@pytest.mark.parametrize("eps", [1e-6, 0.5])
def test_the_norm_in_training_is_torchs_with_its_gradient(shape, eps):
    generator = torch.Generator().manual_seed(0)
    x, weight, grad = torch.randn(shape, generator=generator), torch.rand(8, generator=generator), torch.randn(shape, generator=generator)
    found = []
    for plain in (False, True):
        tensors = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
        with plain_paths(plain):
            out = pointwise.rms_norm(*tensors, eps)
            out.backward(grad)
        assert (type(out.grad_fn).__name__ == "RMSNormalisedBackward") != plain
        found.append([out.detach(), *(tensor.grad for tensor in tensors)])
    for ours, torchs in zip(*found):
        torch.testing.assert_close(ours, torchs, rtol=1e-5, atol=1e-6)
    wide = [x.double().requires_grad_(), weight.double().requires_grad_()]
    assert torch.autograd.gradcheck(lambda x, weight: pointwise.rms_norm(x, weight, eps), wide)


def test_the_norm_by_hand():
    """(3, 4): root mean square sqrt(12.5), so (3, 4) w / sqrt(12.5). With w = (1, 1), dy = (1, 0), n = (3, 4) / sqrt(12.5): dw = (n1, 0), and
    dx = ((1, 0) - n n1 / 2) / sqrt(12.5) = (1 - 9 / 25, -12 / 25) / sqrt(12.5)."""
    x, weight = torch.tensor([[3.0, 4.0]], requires_grad=True), torch.ones(2, requires_grad=True)
    out = pointwise.rms_norm(x, weight, 0.0)
    out.backward(torch.tensor([[1.0, 0.0]]))
    root = 12.5**0.5
    torch.testing.assert_close(out.detach(), torch.tensor([[3 / root, 4 / root]]))
    torch.testing.assert_close(weight.grad, torch.tensor([3 / root, 0.0]))
    torch.testing.assert_close(x.grad, torch.tensor([[0.64 / root, -0.48 / root]]))


@pytest.mark.parametrize("trained", [(True, False), (False, True)])
def test_what_is_frozen_has_no_gradient_of_the_norm_and_autocast_changes_nothing(trained):
    x, weight = torch.randn(6, 8, generator=torch.Generator().manual_seed(0)), torch.linspace(0.5, 2, 8)
    grads = []
    for low in (False, True):
        tensors = [x.clone().requires_grad_(trained[0]), weight.clone().requires_grad_(trained[1])]
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            out = pointwise.rms_norm(*tensors, 1e-6)
            assert out.dtype == torch.float32
        (out * out.detach().roll(1)).sum().backward()
        assert [tensor.grad is not None for tensor in tensors] == list(trained)
        grads.append(next(tensor.grad for tensor in tensors if tensor.grad is not None))
    assert torch.equal(*grads)
