"""Pairs that come again: kept and counted where they say the same, bad rows where they contradict."""

from __future__ import annotations

import json
import tracemalloc

import pytest

from taosr1.data.duplicates import Duplicates
from taosr1.data.judgements import Judgement, iter_judgements, read_judgements, write_judgements
from taosr1.data.sources import load_rows
from taosr1.runtime.bad_rows import BadRows
from taosr1.synthetic.shop import read_pool

ONE = {"query": "red boots", "title": "Boots, red", "grade": 4, "query_id": "q1", "item_id": "i1"}
OTHER = {"query": "mug", "title": "Mug", "grade": 1, "query_id": "q2", "item_id": "i1"}


def save(tmp_path, *rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_an_exact_repeat_is_kept_counted_and_said_once(tmp_path, capsys):
    path = save(tmp_path, ONE, OTHER, {**ONE, "price": "$9"}, ONE)
    assert len(read_judgements(path)) == 4
    said = f"{path}: 2 rows repeated an earlier pair, and were kept, first at {path}:3 (as line 1)\n"
    assert capsys.readouterr().err.count(said) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"grade": 2},
            "repeated ids: field 'grade' is 2, but it was 4 in line 1 for query_id 'q1' and item_id 'i1'; "
            "give one grade a pair",
        ),
        ({"title": "Boots, blue"}, "repeated ids: query_id 'q1' and item_id 'i1' had another query or title in line 1"),
        ({"query": "blue boots"}, "repeated ids: query_id 'q1' and item_id 'i1' had another query or title in line 1"),
    ],
)
def test_a_contradiction_is_a_bad_row_named_with_both_lines_and_the_first_one_stands(tmp_path, capsys, change, message):
    path = save(tmp_path, ONE, OTHER, {**ONE, **change}, ONE)
    with pytest.raises(ValueError) as caught:
        read_judgements(path)
    assert str(caught.value) == f"{path}:3: {message} (--max-bad-rows N skips up to N)"
    assert [row.grade for row in read_judgements(path, max_bad_rows=1)] == [4, 1, 4]
    printed = capsys.readouterr().err
    assert f"skipped {path}:3: {message}" in printed and "skipped 1 of 4 rows: repeated ids 1" in printed
    streamed = iter_judgements(path)
    assert next(streamed).grade == 4 and next(streamed).grade == 1
    with pytest.raises(ValueError, match=":3: repeated ids"):
        next(streamed)


def test_a_missing_grade_contradicts_nothing_but_the_first_one_given_counts(tmp_path):
    rows = [{**ONE, "grade": grade} for grade in (None, 3, None, 3)]
    assert [row.grade for row in read_judgements(save(tmp_path, *rows))] == [None, 3, None, 3]
    with pytest.raises(ValueError, match=r":5: repeated ids: field 'grade' is 2, but it was 3 in line 1"):
        read_judgements(save(tmp_path, *rows, {**ONE, "grade": 2}))


@pytest.mark.parametrize("missing", ["query_id", "item_id"])
def test_rows_without_both_ids_are_not_compared(tmp_path, capsys, missing):
    rows = [{**ONE, missing: value, "grade": grade} for value, grade in (("", 4), ("", 1), (None, 2))]
    assert len(read_judgements(save(tmp_path, *rows))) == 3
    assert "repeated" not in capsys.readouterr().err


def test_ids_are_compared_as_a_pair_and_a_number_is_its_text(tmp_path, capsys):
    apart = [
        {**OTHER, "query_id": a, "item_id": b, "title": f"{a}-{b}", "grade": 4}
        for a, b in (("a", "bc"), ("ab", "c"), ("1", "23"), ("12", "3"), ("7", "07"), ("07", "7"))
    ]
    assert len(read_judgements(save(tmp_path, *apart))) == 6 and capsys.readouterr().err == ""
    with pytest.raises(ValueError, match=":2: repeated ids"):
        read_judgements(save(tmp_path, {**ONE, "query_id": 7}, {**OTHER, "query_id": "7"}))


def test_a_row_that_was_skipped_is_no_earlier_pair(tmp_path):
    path = save(tmp_path, {**ONE, "grade": 9}, {**ONE, "grade": None}, {**ONE, "grade": 2})
    assert [row.grade for row in read_judgements(path, max_bad_rows=2, need_grade=True)] == [2]


def test_what_is_held_of_a_pair_does_not_grow_with_its_text():
    count = 20_000
    repeats = Duplicates(BadRows("rows.jsonl"))
    tracemalloc.start()
    for number in range(count):
        repeats.add(
            number + 1, Judgement("q" * 2000, "t" * 2000, query_id=f"{'query' * 20}-{number}", item_id=f"item-{number}")
        )
    held = tracemalloc.get_traced_memory()[0] / count
    tracemalloc.stop()
    assert held < 600


def test_the_synthetic_pools_and_their_files_have_each_pair_once(tmp_path, capsys):
    for pool in ("reasoned", "labelled", "unlabelled", "dev", "test", "explained"):
        rows = read_pool(pool, 400)
        write_judgements(tmp_path / "pool.jsonl", rows)
        assert read_judgements(tmp_path / "pool.jsonl") == rows
    assert capsys.readouterr().err == ""


def test_any_sequence_of_rows_is_kept_but_for_its_contradictions(tmp_path):
    hypothesis = pytest.importorskip(
        "hypothesis", reason="property tests need the [dev] extra: pip install -e '.[dev]'"
    )
    few = hypothesis.strategies.sampled_from
    row = hypothesis.strategies.builds(
        Judgement,
        query=few(["a", "b"]),
        title=few(["x", "y"]),
        grade=few([None, 1, 4]),
        query_id=few(["", "1", "2"]),
        item_id=few(["", "1", "2"]),
    )

    @hypothesis.settings(max_examples=80, deadline=None)
    @hypothesis.given(hypothesis.strategies.lists(row, min_size=1, max_size=12))
    def check(rows):
        write_judgements(tmp_path / "any.jsonl", rows)
        kept = read_judgements(tmp_path / "any.jsonl", max_bad_rows=12)
        expected: list[Judgement] = []
        for row in rows:  # the same rule, written as it is said
            same = [
                other
                for other in expected
                if row.query_id and row.item_id and (other.query_id, other.item_id) == (row.query_id, row.item_id)
            ]
            agrees = all((other.query, other.title) == (row.query, row.title) for other in same)
            asked = [other for other in expected if row.query_id and other.query_id == row.query_id]
            agrees = agrees and all(other.query == row.query for other in asked)
            grades = {other.grade for other in [*same, row]} - {None}
            expected += [row] if agrees and len(grades) < 2 else []
        assert kept == expected

    check()


@pytest.mark.parametrize("need_grade", [True, None, False])
def test_several_grades_of_one_pair_are_said_also_where_no_grade_is_needed(need_grade, tmp_path, capsys):
    path = tmp_path / "rows.csv"
    path.write_text("query,title,grade\ndesk lamp,LED lamp,4\nDesk  lamp,LED lamp,1\nmug,Mug,2\n", encoding="utf-8")
    assert len(load_rows(str(path), need_grade=need_grade)) == 3
    assert "1 row contradicted an earlier row (the same query and product text" in capsys.readouterr().err
