"""The columns of a prediction in a row of data: how they are written, and how those of an earlier scoring are told.

`taosr1/data/gold.py` says which grade of such a row is gold.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from taosr1.data.columns import under_our_names
from taosr1.data.gold import MARKS, is_old_prediction, without_old_prediction

PREDICTED = ("pred_grade", "tier", "probs", "label_mass", "score", "outside", "prompt_sha")
_OURS = {"pred_grade", "prompt_sha"}  # together in no table but our own
_OLD = ({"tier", "probs", "label_mass"}, {"reply", "sample", "logp"})  # until version 0.2, without `pred_grade`


def is_predicted(row: Mapping[str, Any]) -> bool:
    """Whether infer/score.py, infer/explain.py or infer/sample.py wrote the prediction of this row."""
    return row.keys() >= _OURS


def without_prediction(row: dict) -> tuple[dict, list[str]]:
    """(row to write a new prediction into, columns of the input that were renamed).

    The prediction of an earlier scoring is left out, and a `grade` that was one is the data's own again. A column of
    the input that merely has one of the names is kept as input_NAME: a search engine's `score`, for example.
    """
    spelled = under_our_names(row, {*PREDICTED, *MARKS, "grade", "gold_grade", "logp"})
    old = "pred_grade" not in spelled and any(spelled.keys() >= columns for columns in _OLD)
    ours = is_predicted(spelled)
    if ours or old or is_old_prediction(spelled):  # a Score of somebody else keeps its name
        row = without_old_prediction(spelled)
    if ours or old:
        return {name: value for name, value in row.items() if name not in PREDICTED}, []
    renamed = [name for name in PREDICTED if name in row]
    if not renamed:
        return row, []
    return {_free(name, row) if name in renamed else name: value for name, value in row.items()}, renamed


def _free(name: str, row: dict) -> str:
    while name in row:
        name = f"input_{name}"
    return name


# ---- Cells of a CSV file ---------------------------------------------------------------------------------------------
# A spreadsheet runs a cell that begins with one of these as a formula, also a quoted one. An apostrophe in front makes
# it text. In our own files it is written before every such cell, and taken away again when they are read.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def to_cell(value: Any) -> str:
    """A value as the text of a cell that no spreadsheet runs: "" for null, JSON for lists, objects, true and false."""
    if value is None:
        return ""
    if isinstance(value, str):
        return "'" + value if value.lstrip("'").startswith(_FORMULA) else value
    return json.dumps(value, ensure_ascii=False)


def from_cells(row: dict[str, str]) -> dict[str, str]:
    """A record of a CSV file; the apostrophes of `to_cell` are taken away where our scripts wrote it."""
    if not is_predicted(row):
        return row
    return {name: value[1:] if _is_marked(value) else value for name, value in row.items()}


def _is_marked(cell: str) -> bool:
    return cell.startswith("'") and cell.lstrip("'").startswith(_FORMULA)
