"""Rows of two judges are paired by query and product; what cannot be paired is an error, or counted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from taosr1.evaluation.pairing import Side, pair_rows
from taosr1.evaluation.summary import Prediction
from taosr1.task.judgement import Judgement

ROWS = [
    Judgement("Red Mug", "Mug red", grade=4, query_id="1", item_id="x", query_kind="plain", source="a.csv", line=2),
    Judgement("Red Mug", "Mug blue", grade=2, query_id="1", item_id="y", source="a.csv", line=3),
    Judgement("lamp", "LED lamp", grade=3, query_id="2", item_id="x2", source="a.csv", line=4),
]
ANSWERS = [Prediction(4, tier="Good"), Prediction(1, tier="Bad"), Prediction(3, tier="Good")]


def side(name: str = "a.csv", rows=ROWS, answers=ANSWERS) -> Side:
    return Side(name, list(rows), list(answers))


def other(**changes) -> Side:
    """The same answers, the second row changed."""
    return side("b.csv", [ROWS[0], replace(ROWS[1], **changes), ROWS[2]])


def test_rows_are_paired_whatever_their_order():
    """The wrong twin, by line, would find three changed grades."""
    paired = pair_rows([side(), side("b.csv", ROWS[::-1], ANSWERS[::-1])])
    assert paired.predictions[0] == paired.predictions[1] == ANSWERS and paired.rows == ROWS
    assert [row.grade for row in paired.rows] == [4, 2, 3] and paired.queries == ["id 1", "id 1", "id 2"]
    assert paired.unpaired == {} and paired.notes == []


def test_without_ids_texts_are_compared_whatever_their_case_and_spaces():
    bare = [replace(row, query_id="", item_id="", query=row.query.upper() + " ") for row in ROWS]
    for by in ("auto", "text"):
        assert len(pair_rows([side(), side("b.csv", bare)], by).rows) == 3
    with pytest.raises(ValueError, match="--pair-by ids: 'RED MUG ' with 'Mug red' has no query_id|a.csv:2.*no query"):
        pair_rows([side(), side("b.csv", bare)], "ids")


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        (side("b.csv", ROWS[:2], ANSWERS[:2]), "missing in B, such as a.csv:4: 'lamp' with 'LED lamp'"),
        (other(title="Mug green"), "with the same ids and another title, such as a.csv:3"),
        (other(query="Blue mug"), "with the same ids and another query"),
        (other(grade=3), "with another gold grade"),
        (side("b.csv", [*ROWS, ROWS[1]], [*ANSWERS, Prediction(2, tier="Mid")]), "twice in B with different answers"),
    ],
)
def test_what_cannot_be_compared_is_an_error_that_names_it_and_may_be_left_out(second, reason):
    with pytest.raises(ValueError, match=reason) as error:
        pair_rows([side(), second])
    assert "1 pair cannot be compared" in str(error.value) and "--max-unpaired N" in str(error.value)
    paired = pair_rows([side(), second], allowed=1)
    assert len(paired.rows) == 2 and list(paired.unpaired.values()) == [1] and reason in paired.notes[0]


def test_a_pair_that_is_missing_on_both_sides_counts_twice_and_the_limit_holds():
    second = side("b.csv", [ROWS[0], ROWS[1], replace(ROWS[2], item_id="z")])
    with pytest.raises(ValueError, match="2 pairs cannot be compared.*more than the 1 of --max-unpaired"):
        pair_rows([side(), second], allowed=1)
    assert pair_rows([side(), second], allowed=2).unpaired == {"missing in B": 1, "missing in A": 1}
    assert len(pair_rows([side(), second], "text").rows) == 3  # the ids are of no account there


def test_files_of_other_rows_have_no_pair_in_common():
    strangers = [replace(row, query=f"other {row.query}", query_id=f"9{row.query_id}") for row in ROWS]
    with pytest.raises(ValueError, match="no pair in common: 3 pairs missing in B.*--pair-by text"):
        pair_rows([side(), side("b.csv", strangers)], allowed=99)


def test_a_repeated_row_counts_once():
    paired = pair_rows([side(), side("b.csv", [*ROWS, ROWS[0]], [*ANSWERS, ANSWERS[0]])])
    assert len(paired.rows) == 3 and paired.notes == ["1 row of B repeating an earlier one: not counted"]


def test_gold_of_one_side_counts_for_both_and_a_pseudo_label_is_none():
    ungraded = [replace(row, grade=None, query_kind="") for row in ROWS]
    paired = pair_rows([side(rows=ungraded), side("b.csv")])
    assert [row.grade for row in paired.rows] == [4, 2, 3] and paired.rows[0].query_kind == "plain"
    assert "3 pairs with a gold grade on one side only" in paired.notes[0]
    labelled = [replace(row, extra={"labelled_by": "judge"}) for row in ROWS]
    paired = pair_rows([side(rows=labelled), side("b.csv", labelled)])
    assert [row.grade for row in paired.rows] == [None] * 3
    assert "no gold grades" in paired.notes[0] and "nothing is measured" in paired.notes[-1]


def test_text_in_a_message_cannot_control_a_terminal():
    rows = [replace(ROWS[0], query_id="7", query="\x1b[2Jmug\u202e"), *ROWS[1:]]
    with pytest.raises(ValueError, match="cannot be compared") as error:
        pair_rows([side(), side("b.csv", rows)])
    assert str(error.value).isprintable()
