"""The columns of a prediction in a row of data: how they are written, and how those of an earlier scoring are told.

The grade of the data stays in `grade`, the prediction is `pred_grade`. Until version 0.2 the prediction was written as
`grade` and moved the data's own to `gold_grade`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

PREDICTED = ("pred_grade", "tier", "probs", "label_mass", "score", "prompt_sha")
_OURS = {"pred_grade", "prompt_sha"}  # together in no table but our own
_OLD = ({"grade", "tier", "probs", "label_mass"}, {"grade", "reply", "sample", "logp"})


def is_predicted(row: Mapping[str, Any]) -> bool:
    """Whether infer/score.py, infer/explain.py or infer/sample.py wrote the predictions of this row."""
    return row.keys() >= _OURS


def is_old_prediction(row: Mapping[str, Any]) -> bool:
    """Whether they wrote it before version 0.2: its `grade` is a prediction."""
    return "pred_grade" not in row and any(row.keys() >= columns for columns in _OLD)


def without_prediction(row: dict) -> tuple[dict, list[str]]:
    """(row to write a new prediction into, columns of the input that were renamed).

    The prediction of an earlier scoring is left out, and its `gold_grade` is `grade` again. A column of the input that
    merely has one of the names is kept as input_NAME: a search engine's `score`, for example.
    """
    if is_predicted(row):
        return {name: value for name, value in row.items() if name not in PREDICTED}, []
    if is_old_prediction(row):
        kept = {name: value for name, value in row.items() if name not in (*PREDICTED, "grade")}
        return {"grade" if name == "gold_grade" else name: value for name, value in kept.items()}, []
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


def from_cells(row: dict[str, str]) -> dict[str, Any]:
    """A record of a CSV file with what `to_cell` did undone, and the prediction as numbers; others unchanged."""
    if not is_predicted(row):
        return row
    cells = {name: value[1:] if _is_marked(value) else value for name, value in row.items()}
    return {name: _number(value) if name in PREDICTED else value for name, value in cells.items()}


def _is_marked(cell: str) -> bool:
    return cell.startswith("'") and cell.lstrip("'").startswith(_FORMULA)


def _number(cell: str) -> Any:
    """A number or a list of them from its JSON; any other text as it is, for the reader to refuse."""
    try:
        return json.loads(cell)
    except ValueError:
        return cell or None
