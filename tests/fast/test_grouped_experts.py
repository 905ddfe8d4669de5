"""The grouped product against the loop, and the fast mixture of experts against the plain one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from taosr1.fast.decoder import use_fast_modules
from taosr1.fast.grouped_experts import grouped_linear, looped_linear


def inputs(sizes: list[int], dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(sum(sizes), 16, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(len(sizes), 24, 16, generator=generator).to(dtype).requires_grad_()
    return rows, weight, torch.tensor(sizes).cumsum(0, dtype=torch.int32)


@pytest.mark.parametrize("sizes", [[3, 2, 4], [0, 5, 0, 1], [7, 0], [0, 0, 2], [1]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_grouped_product_and_its_gradients_equal_the_loop(sizes, dtype):
    results = []
    for product in (grouped_linear, looped_linear):
        rows, weight, ends = inputs(sizes, dtype)
        out = product(rows, weight, ends)
        (out * torch.arange(24)).sum().backward()
        results.append((out, rows.grad, weight.grad))
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    for got, expected in zip(*results):
        assert got.dtype == dtype
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance * float(expected.detach().abs().max()))


@pytest.mark.parametrize("inner", [18, 7, 1])
def test_sizes_that_the_kernel_refuses_are_computed_by_the_loop(inner, make_model):
    model = use_fast_modules(make_model("qwen3_moe", moe_intermediate_size=inner))
    for low in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            model(torch.tensor([[5, 9, 2]])).float().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_each_run_of_rows_meets_its_own_matrix():
    rows, weight, ends = inputs([2, 0, 1])
    for product in (grouped_linear, looped_linear):
        out = product(rows, weight, ends)
        torch.testing.assert_close(out[:2], F.linear(rows[:2], weight[0]))
        torch.testing.assert_close(out[2:], F.linear(rows[2:], weight[2]))


def test_an_expert_without_rows_has_no_gradient():
    rows, weight, ends = inputs([2, 0, 1])
    grouped_linear(rows, weight, ends).square().sum().backward()
    assert weight.grad[1].abs().max() == 0 and weight.grad[0].abs().min() > 0


def test_autocast_rules_the_experts_as_it_rules_linear_layers():
    rows, weight, ends = inputs([2, 3])
    with torch.autocast("cpu", torch.bfloat16):
        out = grouped_linear(rows, weight, ends)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), grouped_linear(rows, weight, ends), rtol=2e-2, atol=2e-1)
