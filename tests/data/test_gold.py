"""Predictions and pseudo-labels never become gold: not scored again, not as a table, not in old files."""

from __future__ import annotations

import csv
import json

import pytest

from taosr1.data.flags import ReadFlags
from taosr1.data.gold import gold_value, without_old_prediction
from taosr1.data.judgements import read_judgements
from taosr1.data.predictions import without_prediction
from taosr1.data.scales import GradesError
from taosr1.data.sources import load_rows
from taosr1.evaluation.scores import read_scores

PROBS = {"tier": "Good", "probs": [0.01, 0.02, 0.03, 0.94], "label_mass": 0.9}
NEW = {"pred_grade": 4, **PROBS, "prompt_sha": "abc", "score": 0.97}
OLD = {"grade": 4, **PROBS, "prompt_sha": "abc"}
PREDICTED = {  # columns beside the pair's texts -> the gold grade
    "scored now, graded": ({"grade": 2, **NEW}, 2),
    "scored now, unlabelled": (NEW, None),
    "scored now, empty grade": ({"grade": "", **NEW}, None),
    "scored now, gold under another name": ({"gold_grade": 3, **NEW}, 3),
    "scored before 0.2, graded": ({"gold_grade": 1, **OLD}, 1),
    "scored before 0.2, unlabelled": (OLD, None),
    "scored before 0.2, some columns dropped": ({"grade": 4, "tier": "Good", "probs": PROBS["probs"]}, None),
    "sampled before 0.2": ({"row": 0, "sample": 1, "reply": "4", "grade": 4, "gold_grade": None, "logp": -1.5}, None),
    "sampled before 0.2, graded": ({"row": 0, "sample": 0, "reply": "4", "grade": 4, "gold_grade": 2}, 2),
    "explained before 0.2, a thinker": ({"grade": 3, "probs": None, "reply": "...", "well_formed": True}, None),
    "somebody's own data": ({"grade": 3, "score": 0.7, "tier": "gold member"}, 3),
}


def save(path, rows, kind):
    rows = [{"query": f"mug {n}", "title": f"blue mug {n}", **row} for n, row in enumerate(rows)]
    path = path / f"rows.{kind}"
    with open(path, "w", encoding="utf-8", newline="") as file:
        if kind == "jsonl":
            file.writelines(json.dumps(row) + "\n" for row in rows)
        else:  # as a spreadsheet or pandas would write it: lists as their text
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return str(path)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv"])
@pytest.mark.parametrize("columns, gold", PREDICTED.values(), ids=PREDICTED)
def test_only_what_a_row_came_with_is_gold(tmp_path, kind, columns, gold):
    path = save(tmp_path, [columns] * 3, kind)
    assert [row.grade for row in read_judgements(path)] == [gold] * 3
    for needs in ({"need_grade": True}, {"need_gold": True}):
        if gold:
            assert [row.grade for row in load_rows(path, **needs)] == [gold] * 3
        else:
            name = "grade" if "pred_grade" in columns else "gold_grade"
            with pytest.raises(ValueError, match=rf":\d+: field '{name}' is missing: .*label_pool.*no row has one$"):
                load_rows(path, **needs)


SPELLINGS = [
    str.upper,
    str.title,
    lambda name: f" {name.replace('_', ' ').capitalize()}",
    lambda name: name.replace("_", "-"),
]


@pytest.mark.parametrize("spell", SPELLINGS)
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
@pytest.mark.parametrize("columns, gold", PREDICTED.values(), ids=PREDICTED)
def test_the_marks_of_a_prediction_are_found_however_they_are_spelled(tmp_path, kind, columns, gold, spell):
    rows = [{spell(name): value for name, value in columns.items()}] * 2
    path = save(tmp_path, rows, kind)
    assert [row.grade for row in read_judgements(path)] == [gold] * 2
    again = [{**without_prediction(row)[0], "pred_grade": 1, "prompt_sha": "b"} for row in rows]  # scored once more
    assert [row.grade for row in read_judgements(save(tmp_path, again, kind))] == [gold] * 2


@pytest.mark.parametrize("spell", SPELLINGS)
@pytest.mark.parametrize("columns", [{"grade": 2, **NEW}, {"gold_grade": 2, **OLD}])
def test_scores_are_read_however_their_columns_are_spelled(tmp_path, columns, spell):
    path = save(tmp_path, [{spell(name): value for name, value in columns.items()}], "csv")
    ((row, prediction),) = read_scores(path)
    assert (row.grade, prediction.grade) == (2, 4)


@pytest.mark.parametrize("spell", SPELLINGS)
def test_pseudo_labels_are_refused_however_their_column_is_spelled(tmp_path, spell):
    path = save(tmp_path, [{spell("grade"): 3, spell("labelled_by"): "judge"}], "csv")
    assert load_rows(path, need_grade=True)[0].extra["labelled_by"] == "judge"
    with pytest.raises(GradesError, match="is the answer of a judge"):
        load_rows(path, need_gold=True)


@pytest.mark.parametrize(
    "columns",
    ["labelled_by=", "labelled_by=attributes", "Labelled By=brand", "pred_grade=grade", "PRED_GRADE=grade",
     "prompt_sha=,label_mass=", "probs=attributes", "tier=grade", "Score=grade"],
)  # fmt: skip
def test_columns_cannot_make_gold_of_what_a_judge_wrote(tmp_path, columns):
    path = save(tmp_path, [{"labelled_by": "judge", **NEW}], "jsonl")
    with pytest.raises(ValueError, match="--columns has .*judge.*never"):
        load_rows(path, ReadFlags(columns=columns, max_bad_rows=9), need_grade=True)


def test_a_score_of_somebody_else_may_be_the_grade(tmp_path):
    path = save(tmp_path, [{"Score": 3, "tier": "gold member"}], "csv")
    assert load_rows(path, ReadFlags(columns="Score=grade"), need_gold=True)[0].grade == 3


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"Bewertung": "4", "Marke": "x"}] * 2, "'title', 'Bewertung', 'Marke': --columns \"NAME=grade\""),
        ([{"Note": "gut"}], "'Note': --columns"),
        ([{"stars": 3, "price": 1}] * 3, "'stars', 'price': --columns"),
        ([{"grade": "", "Urteil": 4}], "field 'grade' is missing, expected 1-4; no row has one"),
    ],
)
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
@pytest.mark.parametrize("needs", [{"need_grade": True}, {"need_gold": True}])
def test_a_file_without_any_grade_names_its_columns_and_no_number_of_bad_rows(tmp_path, rows, said, kind, needs):
    with pytest.raises(GradesError) as stop:
        load_rows(save(tmp_path, rows, kind), ReadFlags(max_bad_rows=1), **needs)
    assert said in str(stop.value) and "max-bad-rows" not in str(stop.value)


def test_a_row_without_a_grade_among_others_is_a_bad_row(tmp_path):
    path = save(tmp_path, [{"grade": 4}, {"grade": ""}, {"grade": 1}], "csv")
    with pytest.raises(ValueError, match=r":3: field 'grade' is missing, expected 1-4 \(--max-bad-rows"):
        load_rows(path, need_grade=True)
    assert len(load_rows(path, ReadFlags(max_bad_rows=1), need_grade=True)) == 2


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv"])
@pytest.mark.parametrize(
    ("columns", "gold", "predicted"),
    [
        ({"grade": 2, **NEW}, 2, 4),
        ({"gold_grade": 1, **OLD}, 1, 4),
        ({"grade": "1-Irrelevant", **NEW}, 1, 4),
        ({"gold_grade": 3, **NEW}, 3, 4),
    ],
)
def test_scores_are_read_with_gold_and_prediction_apart(tmp_path, kind, columns, gold, predicted):
    ((row, prediction),) = read_scores(save(tmp_path, [columns], kind))
    assert (row.grade, prediction.grade, prediction.tier) == (gold, predicted, "Good")
    assert prediction.probs == pytest.approx(PROBS["probs"]) and prediction.label_mass == 0.9


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
@pytest.mark.parametrize("columns", [NEW, OLD, {"grade": None, **NEW}, {"gold_grade": "", **OLD}])
def test_scores_of_unlabelled_rows_have_nothing_to_be_measured_by(tmp_path, kind, columns):
    with pytest.raises(ValueError, match=r":\d: field '(gold_)?grade' is missing: .* the prediction of a judge.*one$"):
        read_scores(save(tmp_path, [columns] * 2, kind))


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
@pytest.mark.parametrize("more", [{}, {"gold_grade": 2}, {"probs": [0.1, 0.2, 0.3, 0.4]}, NEW])
def test_pseudo_labels_are_trained_on_but_nothing_is_measured_by_them(tmp_path, kind, more):
    path = save(tmp_path, [{"grade": 3, "labelled_by": "runs/thinker", "confidence": -0.1, **more}] * 2, kind)
    assert [row.grade for row in load_rows(path, need_grade=True)] == [3, 3]
    assert [row.grade for row in load_rows(path, need_grade=False)] == [None, None]  # pass@n of infer/sample.py
    for measure in (lambda: load_rows(path, ReadFlags(max_bad_rows=9), need_gold=True), lambda: read_scores(path)):
        with pytest.raises(GradesError, match=r":\d: field 'grade' is the answer of a judge \(labelled_by 'runs/t"):
            measure()


def test_a_map_of_ones_own_grades_is_not_for_those_that_our_scripts_wrote(tmp_path):
    rows = [{"grade": grade, "labelled_by": judge} for grade, judge in (("0", ""), ("1", ""), ("1", "judge"))]
    assert [row.grade for row in load_rows(save(tmp_path, rows, "csv"), ReadFlags(grades="binary"))] == [1, 4, 1]
    graded = [{"grade": grade, **NEW} for grade in (0, 1, 1)]
    found = read_scores(save(tmp_path, graded, "jsonl"), ReadFlags(grades="binary"))
    assert [(row.grade, prediction.grade) for row, prediction in found] == [(1, 4), (4, 4), (4, 4)]
    with pytest.raises(GradesError, match="0-based.*--grades binary"):
        read_scores(save(tmp_path, graded, "jsonl"))


@pytest.mark.parametrize(
    ("row", "kept"),
    [
        ({"query": "q", **OLD}, {"query": "q", **PROBS, "prompt_sha": "abc"}),
        ({**OLD, "gold_grade": 2}, {**PROBS, "prompt_sha": "abc", "grade": 2}),
        ({"grade": 2, **NEW}, {"grade": 2, **NEW}),
        ({"grade": 2, "labelled_by": "j", **PROBS}, {"grade": 2, "labelled_by": "j", **PROBS}),
    ],
)
def test_an_older_prediction_leaves_the_column_that_was_the_datas_own(row, kept):
    assert without_old_prediction(row) == kept and gold_value(kept | {"pred_grade": 1}) == kept.get("grade")
