"""Which grade of a row is gold: a prediction or a pseudo-label in a file of ours must never be measured against.

A row of infer/score.py, infer/explain.py and infer/sample.py has its prediction in `pred_grade`, and the grade that it
came with in `grade` (or in `gold_grade`). Until version 0.2 the prediction was written as `grade`, and the grade that
the row had come with was moved to `gold_grade`: such rows are known by the columns beside it. train/label_pool.py
writes its pseudo-labels as `grade`, and the name of the judge as `labelled_by`: they may be trained on.
"""

from __future__ import annotations

from typing import Any

from taosr1.runtime.bad_rows import shorten

PRED_GRADE, GOLD_GRADE, LABELLED_BY = "pred_grade", "gold_grade", "labelled_by"
# Columns that our scripts write beside a prediction, and that nobody else's data have.
_OF_PREDICTIONS = ("label_mass", "prompt_sha", "probs", "well_formed")
MARKS = (PRED_GRADE, LABELLED_BY, *_OF_PREDICTIONS, "reply", "sample")  # found however they are spelled (columns.py)


def is_empty(value: Any) -> bool:
    """Whether a cell holds nothing: null, or blanks alone."""
    return value is None or (isinstance(value, str) and not value.strip())


def is_old_prediction(row: dict) -> bool:
    """Whether the `grade` of this row is a prediction: a row that our scripts wrote until version 0.2."""
    if not is_empty(row.get(LABELLED_BY)) or PRED_GRADE in row:
        return False
    return any(name in row for name in _OF_PREDICTIONS) or ("reply" in row and "sample" in row)


def gold_value(row: dict) -> Any:
    """The grade that a row came with, as it is spelled; None where it has none but a prediction."""
    if is_old_prediction(row):
        return row.get(GOLD_GRADE)
    if PRED_GRADE in row and is_empty(row.get("grade")):
        return row.get(GOLD_GRADE)
    return row.get("grade")


def in_our_grades(row: dict) -> bool:
    """Whether `gold_value` was written by a script of ours, as 1-4: a map of the file's own grades is not for it."""
    return is_old_prediction(row) or not is_empty(row.get(LABELLED_BY))


def without_old_prediction(row: dict) -> dict:
    """A row without the prediction that an older version wrote into `grade`: what it came with stands there again."""
    if not is_old_prediction(row) or "grade" not in row:
        return row
    gold = row.get(GOLD_GRADE)
    kept = {name: value for name, value in row.items() if name not in ("grade", GOLD_GRADE)}
    return kept if is_empty(gold) else {**kept, "grade": gold}


def is_prediction(row: dict) -> bool:
    """Whether a judge's prediction is in this row, as a script of ours wrote it, now or before version 0.2."""
    return PRED_GRADE in row or is_old_prediction(row)


def missing_gold(row: dict) -> str:
    """Why there is no grade to train on or to measure by, and what to do."""
    if is_prediction(row):
        gold, name = ("grade", PRED_GRADE) if PRED_GRADE in row else (GOLD_GRADE, "grade")
        return (
            f"field {gold!r} is missing: field {name!r} is the prediction of a judge, which is no gold grade. Give "
            "rows that people have graded; to train on a judge's answers, make them with train/label_pool.py"
        )
    return "field 'grade' is missing, expected 1-4"


def pseudo_label(row: dict) -> str:
    """The problem of a row that is to be measured by or chosen by, but has a pseudo-label; "" if it has none."""
    judge = row.get(LABELLED_BY)
    if is_empty(judge):
        return ""
    by = shorten(repr(judge))
    return (
        f"field 'grade' is the answer of a judge (labelled_by {by}), which is no gold grade: it may be trained on, "
        "but nothing can be measured or chosen by it. Give rows that people have graded"
    )
