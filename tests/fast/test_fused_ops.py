"""When the kernels of the small steps are used, and what replaces them where they cannot be built.

What the kernels compute is tested in test_triton_kernels.py.
"""

from __future__ import annotations

import importlib.util
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from taosr1.fast import fused_ops, triton_support


@pytest.fixture
def gpu_tensor(monkeypatch):
    """A stand-in for a tensor on a GPU that can build kernels."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: "found")
    triton_support.triton_builds.cache_clear()
    yield SimpleNamespace(device=torch.device("cuda", 0), dtype=torch.float32)
    triton_support.triton_builds.cache_clear()


def replace_kernels(monkeypatch, probe) -> None:
    kernels = SimpleNamespace(probe=probe)
    monkeypatch.setitem(sys.modules, "taosr1.fast.triton_kernels", kernels)
    monkeypatch.setattr("taosr1.fast.triton_kernels", kernels, raising=False)


def test_kernels_are_used_where_they_can_be_built_for_heads_that_are_powers_of_two(gpu_tensor, monkeypatch):
    probed, can_use_triton = [], triton_support.can_use_triton
    replace_kernels(monkeypatch, probed.append)
    assert can_use_triton(gpu_tensor)
    assert [size for size in range(300) if can_use_triton(gpu_tensor, size)] == [16, 32, 64, 128]
    assert probed == [gpu_tensor.device]  # once
    assert not can_use_triton(torch.zeros(1))
    assert not can_use_triton(SimpleNamespace(device=gpu_tensor.device, dtype=torch.float64))
    assert not fused_ops.fused_kernels(gpu_tensor)  # gradients are recorded
    with torch.no_grad():
        assert fused_ops.fused_kernels(gpu_tensor)
    triton_support.triton_builds.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert not can_use_triton(gpu_tensor)


def test_where_kernels_cannot_be_built_a_warning_says_so_once_and_they_are_not_used(gpu_tensor, monkeypatch):
    def broken(device):
        raise RuntimeError("no C compiler")

    replace_kernels(monkeypatch, broken)
    with pytest.warns(UserWarning, match="PyTorch's own are used .*no C compiler") as warned:
        assert not any(triton_support.can_use_triton(gpu_tensor) for _ in range(2))
    assert len(warned) == 1


def test_without_triton_no_kernel_is_used(gpu_tensor, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not triton_support.can_use_triton(gpu_tensor)


def test_a_sum_and_its_norm():
    def norm(x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, (2,), torch.tensor([1.0, 10.0]), 0.0)

    total, normed = fused_ops.add_and_norm(torch.tensor([[[3.0, 0.0]]]), torch.tensor([[[0.0, 4.0]]]), norm)
    assert total.tolist() == [[[3, 4]]]
    torch.testing.assert_close(normed, torch.tensor([[[3.0, 40.0]]]) / 12.5**0.5)


def test_rms_norm_and_swiglu_without_gradients_are_torchs():
    x, weight, up = torch.randn(2, 5, 8), torch.rand(8), torch.randn(2, 5, 8)
    with torch.no_grad():
        torch.testing.assert_close(fused_ops.rms_norm(x, weight, 1e-6), F.rms_norm(x, (8,), weight, 1e-6))
        assert torch.equal(fused_ops.swiglu(x, up), F.silu(x) * up)


@pytest.mark.parametrize("rows_at_once", [2**20, 3 * 64 * 2, 1])
def test_block_sums_are_sums_of_exponentials_however_many_rows_are_computed_at_once(monkeypatch, rows_at_once):
    monkeypatch.setattr(fused_ops, "NUMBERS_AT_ONCE", rows_at_once)
    blocks = torch.randn(5, 3, 64, generator=torch.Generator().manual_seed(0))
    top = blocks.amax((1, 2))[:, None]
    torch.testing.assert_close(fused_ops.block_sums(blocks, top), (blocks - top[..., None]).exp().sum(-1))


@pytest.mark.parametrize("shape, eps", [((5, 8), 1e-6), ((2, 3, 8), 0.5), ((2, 3, 2, 8), 1e-6)])
def test_the_norm_in_training_is_torchs_with_its_gradient(shape, eps):
    generator = torch.Generator().manual_seed(0)
    x, grad = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    weight, found = torch.rand(8, generator=generator), []
    for norm in (fused_ops.rms_norm, lambda x, weight, eps: F.rms_norm(x, weight.shape, weight, eps)):
        tensors = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
        out = norm(*tensors, eps)
        out.backward(grad)
        found.append([out.detach(), *(tensor.grad for tensor in tensors)])
    for ours, torchs in zip(*found):
        torch.testing.assert_close(ours, torchs, rtol=1e-5, atol=1e-6)
    wide = [x.double().requires_grad_(), weight.double().requires_grad_()]
    assert torch.autograd.gradcheck(lambda x, weight: fused_ops.rms_norm(x, weight, eps), wide)


def test_the_norm_in_training_keeps_its_input_its_weight_and_a_number_for_each_row():
    x, weight, kept = torch.randn(5, 8, requires_grad=True), torch.ones(8, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        fused_ops.rms_norm(x, weight, 1e-6)
    assert [tuple(tensor.shape) for tensor in kept] == [(5, 8), (8,), (5, 1)]


def test_the_norm_by_hand():
    """(3, 4): root mean square sqrt(12.5), so (3, 4) w / sqrt(12.5). With w = (1, 1), dy = (1, 0), n = (3, 4) /
    sqrt(12.5): dw = (n1, 0), and dx = ((1, 0) - n n1 / 2) / sqrt(12.5) = (1 - 9 / 25, -12 / 25) / sqrt(12.5)."""
    x, weight = torch.tensor([[3.0, 4.0]], requires_grad=True), torch.ones(2, requires_grad=True)
    out = fused_ops.rms_norm(x, weight, 0.0)
    out.backward(torch.tensor([[1.0, 0.0]]))
    root = 12.5**0.5
    torch.testing.assert_close(out.detach(), torch.tensor([[3 / root, 4 / root]]))
    torch.testing.assert_close(weight.grad, torch.tensor([3 / root, 0.0]))
    torch.testing.assert_close(x.grad, torch.tensor([[0.64 / root, -0.48 / root]]))


@pytest.mark.parametrize("trained", [(True, False), (False, True)])
def test_frozen_tensors_get_no_gradient_of_the_norm_and_autocast_changes_nothing(trained):
    x, weight = torch.randn(6, 8, generator=torch.Generator().manual_seed(0)), torch.linspace(0.5, 2, 8)
    grads = []
    for low in (False, True):
        tensors = [x.clone().requires_grad_(trained[0]), weight.clone().requires_grad_(trained[1])]
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            out = fused_ops.rms_norm(*tensors, 1e-6)
            assert out.dtype == torch.float32
        (out * out.detach().roll(1)).sum().backward()
        assert [tensor.grad is not None for tensor in tensors] == list(trained)
        grads.append(next(tensor.grad for tensor in tensors if tensor.grad is not None))
    assert torch.equal(*grads)


def test_the_gated_silu_keeps_two_tensors_and_has_the_gradient_of_its_formula():
    generator = torch.Generator().manual_seed(0)
    gate, up = (torch.randn(5, 7, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(2))
    assert torch.autograd.gradcheck(fused_ops.swiglu, (gate, up))
    counts = []
    for function in (fused_ops.swiglu, lambda gate, up: F.silu(gate) * up):
        kept = []
        keep = lambda tensor, kept=kept: kept.append(tensor) or tensor  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = function(gate, up)
        assert torch.equal(out, F.silu(gate) * up)
        counts.append(len(kept))
    assert counts == [2, 3]
