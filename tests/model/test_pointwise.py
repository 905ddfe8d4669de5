"""When the small steps are one kernel each, and that nothing is lost where it cannot be built. What the kernels compute: test_kernels.py."""

from __future__ import annotations

import importlib.util
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from taosr1.model import on_gpu, pointwise
from taosr1.model.linear import plain_paths


@pytest.fixture
def on_a_gpu(monkeypatch):
    """This machine has a GPU, as far as anybody can tell by asking."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: "here")
    on_gpu.kernels_run.cache_clear()
    yield SimpleNamespace(device=torch.device("cuda", 0), dtype=torch.float32)
    on_gpu.kernels_run.cache_clear()


def test_kernels_serve_where_they_can_be_built_for_heads_that_are_powers_of_two(on_a_gpu, monkeypatch):
    probed = []
    monkeypatch.setitem(sys.modules, "taosr1.model.kernels", SimpleNamespace(probe=probed.append))
    monkeypatch.setattr("taosr1.model.kernels", sys.modules["taosr1.model.kernels"], raising=False)
    assert on_gpu.kernels_serve(on_a_gpu) and [size for size in range(300) if on_gpu.kernels_serve(on_a_gpu, size)] == [16, 32, 64, 128]
    assert probed == [on_a_gpu.device]  # once
    assert not on_gpu.kernels_serve(torch.zeros(1)) and not on_gpu.kernels_serve(SimpleNamespace(device=on_a_gpu.device, dtype=torch.float64))
    with plain_paths():
        assert not on_gpu.kernels_serve(on_a_gpu)
    assert not pointwise.in_one_pass(on_a_gpu)  # gradients are recorded
    with torch.no_grad():
        assert pointwise.in_one_pass(on_a_gpu)
    on_gpu.kernels_run.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert not on_gpu.kernels_serve(on_a_gpu)


def test_where_they_cannot_be_built_that_is_said_once_and_nothing_uses_them(on_a_gpu, monkeypatch):
    def broken(device):
        raise RuntimeError("no C compiler")

    monkeypatch.setitem(sys.modules, "taosr1.model.kernels", SimpleNamespace(probe=broken))
    monkeypatch.setattr("taosr1.model.kernels", sys.modules["taosr1.model.kernels"], raising=False)
    with pytest.warns(UserWarning, match="PyTorch's own are used .*no C compiler") as said:
        assert not on_gpu.kernels_serve(on_a_gpu) and not on_gpu.kernels_serve(on_a_gpu)
    assert len(said) == 1


def test_without_triton_nothing_asks_for_a_kernel(on_a_gpu, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not on_gpu.kernels_serve(on_a_gpu)


def test_a_sum_and_its_norm():
    x, added, norm = torch.tensor([[[3.0, 0.0]]]), torch.tensor([[[0.0, 4.0]]]), lambda x: F.rms_norm(x, (2,), torch.tensor([1.0, 10.0]), 0.0)
    total, normed = pointwise.add_and_norm(x, added, norm)
    assert total.tolist() == [[[3, 4]]]
    torch.testing.assert_close(normed, torch.tensor([[[3.0, 40.0]]]) / 12.5**0.5)
