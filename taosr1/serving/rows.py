"""A row of data with its prediction, as infer/score.py and infer/explain.py write it."""

from __future__ import annotations

import json
from collections.abc import Sequence

from taosr1.data.predictions import PREDICTED
from taosr1.serving.explain import Explanation
from taosr1.serving.scorer import Score
from taosr1.task.judgement import COLUMNS, Judgement

DIGITS = 6  # of probabilities and scores in a file


def prediction(found: Score | Explanation, wording: str) -> dict:
    """The columns of `PREDICTED`. This function alone decides what is written; wording: of the prompt (SHA-256)."""
    probs = found.probs and [round(value, DIGITS) for value in found.probs]
    mass, score = (value if value is None else round(value, DIGITS) for value in (found.label_mass, found.score))
    values = (found.grade, found.tier, probs, mass, score, found.outside, wording)
    return dict(zip(PREDICTED, values, strict=True))


def predicted_row(row: dict, judgement: Judgement, found: Score | Explanation, wording: str, *, flat: bool) -> dict:
    """The columns of the input, then the prediction. row: without an earlier prediction (`without_prediction`).

    flat: for CSV, whose cells are text: lists and objects of the judgement's own columns as the judge reads them.
    """
    read = {name: getattr(judgement, name) for name in COLUMNS if isinstance(row.get(name), (list, dict))}
    return {**row, **(read if flat else {}), **prediction(found, wording)}


def columns_of(pairs: Sequence[tuple[dict, Judgement]]) -> tuple[list[str], bool]:
    """(every column of any row, in order of appearance, and those of the prediction; whether all text is ASCII)."""
    names: dict[str, None] = {}
    ascii_only = True
    for row, _ in pairs:
        names |= dict.fromkeys(row)
        ascii_only = ascii_only and json.dumps(row, ensure_ascii=False).isascii()
    return [*names, *PREDICTED], ascii_only
