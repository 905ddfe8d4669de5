"""The one check of label probabilities, alone and with gold grades."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from taosr1.task.probabilities import checked_probs, checked_probs_and_grades


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


def test_rows_to_fit_on_come_back_as_arrays():
    probs, gold = checked_probs_and_grades([[0.25] * 4] * 2, torch.tensor([4, 1]))
    assert probs.shape == (2, 4) and gold.dtype == np.int64 and gold.tolist() == [4, 1]


@pytest.mark.parametrize(
    ("probs", "grades", "message"),
    [
        ([], [], "no rows"),
        ([[0.25] * 4], [1, 2], "probs has 1 rows, grades has 2"),
        ([[0.25] * 4] * 2, [1, 5], r"grades\[1\] is 5, expected 1-4"),
        ([[0.25] * 4] * 2, [1.0, 2.5], r"grades\[1\] is 2.5"),
        ([[0.25] * 4] * 2, [0, 1], r"grades\[0\] is 0"),
        ([[0.25] * 4], [None], r"grades\[0\] is None"),
        ([[0.25] * 4], [float("nan")], r"grades\[0\] is nan"),
    ],
)
def test_rows_that_nothing_can_be_fitted_on_are_named(probs, grades, message):
    with pytest.raises(ValueError, match=message):
        checked_probs_and_grades(probs, grades)
