"""Reads what infer/score.py wrote: gold grades and predictions, to measure them without a model."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from taosr1.data.columns import under_our_names
from taosr1.data.flags import AS_FOUND, ReadFlags
from taosr1.data.gold import PRED_GRADE, is_empty
from taosr1.data.judgements import read_parsed
from taosr1.data.predictions import PREDICTED, is_predicted
from taosr1.evaluation.summary import Prediction
from taosr1.runtime.bad_rows import shorten
from taosr1.task.grades import GRADES, TIER_OF_GRADE, TIERS
from taosr1.task.judgement import Judgement
from taosr1.task.probabilities import checked_probs


def read_scores(
    path: str | Path,
    read: ReadFlags = AS_FOUND,
    *,
    split: str = "",
    flag: str = "the path",
    need_gold: bool = True,
    need_probs: bool = True,
) -> list[tuple[Judgement, Prediction]]:
    """The scored pairs with their gold grades, and the predictions with their stored tiers.

    The prediction is `pred_grade`, in files of before version 0.2 `grade` (`taosr1/data/gold.py`). Copies of such files
    as tables are read too. flag: the option that errors name. need_gold: False where a row may have no gold grade.
    need_probs: False to read what infer/explain.py wrote of a thinker too, which has no probabilities and may have no
    grade. Of infer/explain.py's rows the reply, and the grades that its reasons come to, are read as well.

    Raises: FileNotFoundError; ValueError naming file, line and field, as `read_judgements`, also for a row without a
        gold grade (where it is needed) and for one that infer/score.py cannot have written.
    """
    needs = {"need_grade": need_gold or None, "need_gold": need_gold}
    return read_parsed(path, partial(_prediction, need_probs=need_probs), read, split=split, flag=flag, **needs)


def _prediction(row: dict, judgement: Judgement, *, need_probs: bool) -> Prediction:
    row = under_our_names(row, {"grade", "reply", "well_formed", *PREDICTED})
    name = PRED_GRADE if PRED_GRADE in row else "grade"
    grade, mass, probs, tier = _number(row.get(name)), _number(row.get("label_mass")), row.get("probs"), row.get("tier")
    if name == "grade" and "probs" not in row:
        raise ValueError("field 'gold_grade' is missing, and so is 'pred_grade': is this an output of infer/score.py?")
    reasons = _reasons(row)
    if not need_probs and is_predicted(row) and all(map(is_empty, (probs, mass))):
        return replace(_of_a_thinker(grade), **reasons)
    if isinstance(grade, bool) or grade not in GRADES:
        raise ValueError(f"field {name!r} is {shorten(repr(grade))}, expected the predicted grade 1-4")
    if tier not in TIERS:
        raise ValueError(f"field 'tier' is {shorten(repr(tier))}, expected one of {', '.join(TIERS)}")
    if isinstance(probs, str):
        with suppress(ValueError, RecursionError):
            probs = json.loads(probs)
    # No text, no bool, and no integer too large for a float.
    if not (isinstance(probs, list) and all(type(value) in (int, float) and abs(value) < 1e9 for value in probs)):
        expected = "expected four numbers: is this an output of infer/score.py?"
        raise ValueError(f"field 'probs' is {shorten(repr(probs))}, {expected}")
    if isinstance(mass, bool) or not isinstance(mass, (int, float)) or not 0 <= mass <= 1:
        raise ValueError(f"field 'label_mass' is {shorten(repr(mass))}, expected a number from 0 to 1")
    return Prediction(int(grade), tuple(checked_probs([probs])[0].tolist()), mass, tier=tier, **reasons)


def _reasons(row: dict) -> dict:
    """What infer/explain.py adds to a prediction; {} of other rows, whose columns of these names are their own."""
    if not is_predicted(row) or "well_formed" not in row:
        return {}
    stated = {name: _number(row.get(name)) for name in ("decision", "implied")}
    known = {name: int(grade) for name, grade in stated.items() if type(grade) in (int, float) and grade in GRADES}
    return known | ({"reply": row["reply"]} if isinstance(row.get("reply"), str) else {})


def _of_a_thinker(grade: Any) -> Prediction:
    """A grade that was decoded, or none that could be read, without probabilities; the tier is the grade's."""
    if not is_empty(grade) and (isinstance(grade, bool) or grade not in GRADES):
        raise ValueError(f"field {PRED_GRADE!r} is {shorten(repr(grade))}, expected the predicted grade 1-4, or none")
    return Prediction() if is_empty(grade) else Prediction(int(grade), tier=TIER_OF_GRADE[int(grade)])


def _number(value: Any) -> Any:
    """A cell of a table as the number it spells; anything else as it is."""
    return float(value) if isinstance(value, str) and re.fullmatch(r"[0-9]+(\.[0-9]*)?(e-?[0-9]+)?", value) else value
