"""Checks label probabilities: four numbers a row, columns in grade order 1..4, that sum to 1."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from taosr1.task.grades import GRADES

# Wide enough for float32 softmax and for JSON rounded to four decimals, far too narrow for logits or percentages.
SUM_TOLERANCE = 1e-3


def checked_probs(probs, name: str = "probs") -> np.ndarray:
    """Check label probabilities and return them as float64 (N, 4).

    Shapes: probs (N, 4), an array, a tensor or nested sequences; no rows give (0, 4).
    Raises: ValueError naming the first row that is not finite, is negative, or does not sum to 1.
    """
    if hasattr(probs, "detach"):  # a tensor, perhaps on a device, perhaps bfloat16, which numpy does not know
        probs = probs.detach().cpu().double()
    rows = np.asarray(probs, dtype=np.float64)
    if rows.size == 0 and rows.shape[:1] == (0,):
        return rows.reshape(0, len(GRADES))
    if rows.ndim != 2 or rows.shape[1] != len(GRADES):
        raise ValueError(f"{name} has shape {rows.shape}, expected (N, {len(GRADES)}), one column per grade 1..4")
    with np.errstate(invalid="ignore"):  # inf - inf
        bad = ~(np.abs(rows.sum(-1) - 1.0) <= SUM_TOLERANCE) | (rows < 0).any(-1)  # no sum with inf or NaN is near 1
    if bad.any():
        row = int(bad.argmax())
        expected = f"expected four finite, non-negative numbers that sum to 1 within {SUM_TOLERANCE}"
        hint = "(probabilities of grades 1..4, not logits)"
        raise ValueError(f"{name}[{row}] is {rows[row].tolist()}, {expected} {hint}")
    return rows


def checked_probs_and_grades(probs, grades: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Check label probabilities and gold grades of the same rows; return float64 (N, 4) and int64 (N,).

    Raises: ValueError as `checked_probs`; for no rows, lists of different length, or a grade that is not 1-4, by row.
    """
    probs = checked_probs(probs)
    gold = np.asarray(grades)
    if len(gold) != len(probs):
        raise ValueError(f"probs has {len(probs)} rows, grades has {len(gold)}: they must be parallel")
    if len(gold) == 0:
        raise ValueError("no rows: probs and grades are empty")
    wrong = ~np.isin(gold, GRADES)
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(f"grades[{row}] is {gold[row]}, expected 1-4")
    return probs, gold.astype(np.int64)
