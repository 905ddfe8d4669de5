"""Reads what infer/score.py wrote: gold grades and predictions, to measure them without a model."""

from __future__ import annotations

from pathlib import Path

from taosr1.data.flags import AS_FOUND, ReadFlags
from taosr1.data.judgements import parse_judgement, read_parsed
from taosr1.data.predictions import is_old_prediction
from taosr1.evaluation.report import Prediction
from taosr1.runtime.bad_rows import shorten
from taosr1.task.grades import GRADES, TIERS
from taosr1.task.judgement import Judgement
from taosr1.task.probabilities import checked_probs


def read_scores(
    path: str | Path, read: ReadFlags = AS_FOUND, *, split: str = ""
) -> list[tuple[Judgement, Prediction]]:
    """The scored pairs with their gold grades, and the predictions with their stored tiers.

    Raises: FileNotFoundError; ValueError naming file, line and field, as `read_judgements`, also for a row without a
        gold grade and for one that infer/score.py cannot have written.
    """
    return read_parsed(path, _parse, read, split=split, flag="--scores")


def _parse(row: dict) -> tuple[Judgement, Prediction]:
    # Until version 0.2 the prediction was `grade`, and the data's own grade `gold_grade`.
    old = is_old_prediction(row) or ("gold_grade" in row and "pred_grade" not in row)
    judgement = parse_judgement({**row, "grade": row.get("gold_grade")} if old else row)
    if judgement.grade is None:
        named = "gold_grade" if old else "grade"
        raise ValueError(
            f"field {named!r} is missing: nothing to measure against; infer/score.py keeps it for rows that have a "
            "grade"
        )
    name = "grade" if old else "pred_grade"
    grade, tier, probs, mass = (row.get(column) for column in (name, "tier", "probs", "label_mass"))
    if isinstance(grade, bool) or grade not in GRADES:
        raise ValueError(f"field {name!r} is {shorten(repr(grade))}, expected the predicted grade 1-4")
    if tier not in TIERS:
        raise ValueError(f"field 'tier' is {shorten(repr(tier))}, expected one of {', '.join(TIERS)}")
    # No text, no bool, and no integer too large for a float.
    if not (isinstance(probs, list) and all(type(value) in (int, float) and abs(value) < 1e9 for value in probs)):
        expected = "expected four numbers: is this an output of infer/score.py?"
        raise ValueError(f"field 'probs' is {shorten(repr(probs))}, {expected}")
    if isinstance(mass, bool) or not isinstance(mass, (int, float)) or not 0 <= mass <= 1:
        raise ValueError(f"field 'label_mass' is {shorten(repr(mass))}, expected a number from 0 to 1")
    return judgement, Prediction(grade, tuple(checked_probs([probs])[0].tolist()), mass, tier=tier)
