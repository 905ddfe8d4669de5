"""When functions are compiled, and that nothing is lost where they cannot be. What the kernels compute is checked in test_gpu.py."""

from __future__ import annotations

import pytest
import torch

from taosr1.model import pointwise


@pytest.fixture
def worth(monkeypatch):
    """Every call is worth compiling, on a CPU too."""
    monkeypatch.setattr(pointwise, "_can_compile", True)
    monkeypatch.setattr(pointwise, "_worth_compiling", lambda x: pointwise._can_compile)


def test_each_set_of_fixed_sizes_is_compiled_under_its_own_settings_and_then_known(worth, monkeypatch):
    calls = []
    monkeypatch.setattr(torch, "compile", lambda function: lambda *given: calls.append(torch._dynamo.config.automatic_dynamic_shapes) or function(*given))
    doubled = pointwise.fused(0)(lambda x: 2 * x)
    for rows, width in ((3, 4), (5, 4), (5, 7), (9, 7), (1, 7)):
        x = torch.randn(rows, width)
        assert torch.equal(doubled(x), 2 * x)
    assert calls == [False, True, False, True, False]  # a new width, and one row, which is a size of its own


def test_where_compiling_fails_the_function_runs_as_it_is_written_and_says_so_once(worth, monkeypatch):
    def broken(*given):
        raise torch._dynamo.exc.BackendCompilerFailed(lambda: None, RuntimeError("no C compiler"), None)

    monkeypatch.setattr(torch, "compile", lambda function: broken)
    doubled, x = pointwise.fused(0)(lambda x: 2 * x), torch.randn(2, 2)
    with pytest.warns(UserWarning, match="(?s)stay separate kernels .*no C compiler"):
        assert torch.equal(doubled(x), 2 * x)
    assert not pointwise._can_compile and torch.equal(doubled(x), 2 * x)


def test_nothing_is_compiled_on_a_cpu(monkeypatch):
    monkeypatch.setattr(torch, "compile", None)
    with torch.no_grad():
        assert pointwise.gated(torch.zeros(1, 1, 2**20), torch.ones(1, 1, 2**20)).sum() == 0
