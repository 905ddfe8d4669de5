"""The one check of label probabilities."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from taosr1.task.probabilities import checked_probs


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_tensors_of_any_type_become_float64_arrays(dtype):
    found = checked_probs(torch.tensor([[0.25] * 4, [0, 0, 0.5, 0.5]], dtype=dtype, requires_grad=True))
    assert found.dtype == np.float64 and found.tolist() == [[0.25] * 4, [0, 0, 0.5, 0.5]]


def test_probabilities_rounded_to_four_decimals_pass():
    rows = np.round(np.random.default_rng(0).dirichlet(np.ones(4), 1000), 4)
    assert checked_probs(rows.tolist()).shape == (1000, 4)


@pytest.mark.parametrize("rows", [[], np.zeros((0, 4)), torch.zeros(0, 4)])
def test_no_rows_keep_four_columns(rows):
    assert checked_probs(rows).shape == (0, 4)


@pytest.mark.parametrize("row", [[25.0] * 4, [0.3, 0.3, 0.3, 0.3], [-0.1, 0.4, 0.4, 0.3], [float("nan"), 0, 0, 1]])
def test_a_wrong_row_is_named(row):
    with pytest.raises(ValueError, match=r"label_probs\[1\] is .* expected four finite, non-negative numbers"):
        checked_probs([[0.25] * 4, row], "label_probs")


@pytest.mark.parametrize("rows", [[0.25] * 4, [[0.5, 0.5]], [[[0.25] * 4]]])
def test_a_wrong_shape_is_named(rows):
    with pytest.raises(ValueError, match=r"has shape .* expected \(N, 4\)"):
        checked_probs(rows)
