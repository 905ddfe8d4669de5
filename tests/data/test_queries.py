"""Rows of one query, pairs that are in two files, ids that mean two queries."""

from __future__ import annotations

import pytest

from taosr1.data.judgements import Judgement, read_judgements, write_judgements
from taosr1.data.queries import query_keys, say_overlap
from taosr1.data.sources import load_rows


def row(query, title="t", **more):
    return Judgement(query, title, **more)


@pytest.mark.parametrize(
    ("rows", "groups"),
    [
        ([row("Red Mug", query_id="1"), row("red  mug", query_id="1"), row("hub", query_id="2")], [0, 0, 1]),
        ([row("mug", query_id="1"), row("hub", query_id="1")], [0, 1]),  # two files that both begin at 1
        ([row("mug", query_id="1"), row("mug"), row("hub"), row("HUB ", query_id="9")], [0, 0, 1, 1]),  # gaps
        ([row("mug", query_id="1"), row("mug", query_id="2"), row("mug")], [0, 1, 2]),  # whose is the third?
        ([row("1"), row("mug", query_id="1")], [0, 1]),  # a text that looks like an id
        ([row("mug"), row("Mug"), row("mug\u00a0")], [0, 0, 0]),
        ([row("caf\u00e9 cup"), row("cafe\u0301 cup"), row("cafe cup")], [0, 0, 1]),  # composed or not
        ([row("\uff4d\uff55\uff47\u3000\uff13"), row("mug 3"), row("MUG 3\ufeff")], [0, 0, 0]),  # wide letters
        ([row("red\u200b mug"), row("red mu\u00adg"), row("\u200fred mug\u2060"), row("redmug")], [0, 0, 0, 1]),
        ([row("GROSSE Tasse"), row("gro\u00dfe tasse")], [0, 0]),
        ([row("mug " * 500 + end) for end in "aba"], [0, 1, 0]),
    ],
)
def test_rows_belong_to_one_query_by_id_and_text(rows, groups):
    keys = query_keys(rows)
    assert max(map(len, keys)) < 80
    assert [list(dict.fromkeys(keys)).index(key) for key in keys] == groups


@pytest.mark.parametrize(
    ("rows", "other", "found", "said"),
    [
        ([row("mug", "a")], [row("MUG ", " A"), row("mug", "b")], (1, 1), "1 of 2 pairs of --dev are in --data too"),
        ([row("mug", "a", price="$1")], [row("mug", "a", price="$2")], (1, 1), "1 of 1 pairs of --dev"),
        ([row("mug", "a")], [row("mug", "b"), row("hub", "c")], (0, 1), "1 of 2 queries of --dev are in --data too"),
        ([row("mug", "", brand="x")], [row("mug", "", brand="y")], (0, 1), "1 of 1 queries of --dev"),
        ([row("mug", "a", query_id="1")], [row("hub", "a", query_id="1")], (0, 0), ""),
    ],
)
def test_overlap_is_counted_by_text(rows, other, found, said, capsys):
    assert say_overlap(rows, other, "--dev", "so the number is too good") == found
    printed = capsys.readouterr().err
    assert said in printed if said else printed == ""


def test_ids_that_mean_another_query_in_another_file_are_said_once_with_a_place(tmp_path, capsys):
    for name, queries in (("a", ("mug", "hub", "lamp")), ("b", ("cup", "hub ", "bulb")), ("c", ("x", "y", "z"))):
        rows = [row(query, f"{name}{n}", query_id=str(n), item_id=f"{name}{n}") for n, query in enumerate(queries)]
        write_judgements(tmp_path / f"{name}.jsonl", rows)
    files = [str(tmp_path / f"{name}.jsonl") for name in "abc"]
    assert len(set(query_keys(load_rows(",".join(files[:2]))))) == 5  # "hub" is one query
    said = f"2 query_ids of several files mean different queries, first '0' in {files[0]} and {files[1]}"
    assert said in capsys.readouterr().err
    load_rows(files[0])
    assert capsys.readouterr().err == ""
    assert len(set(query_keys(load_rows(f"{tmp_path}/*.jsonl")))) == 8


@pytest.mark.parametrize(
    ("one", "two", "said"),
    [
        (row("a", "x", grade=4), row("A ", "x", grade=1), "1 row contradicted a row of another file"),
        (row("a", "x", grade=2, query_id="1"), row("a", "x", grade=3, query_id="8"), "first 2 in"),
        (row("a", "x", grade=4), row("a", "x", grade=4), ""),
        (row("a", "x", price="$2", grade=4), row("a", "x", price="$3", grade=1), ""),
        (row("a", "x", grade=4), row("a", "X", brand="b", price="$3", grade=1), "first 4 in"),
        (row("a", "x", item_id="7"), row("b", "y", item_id="7"), "1 item_id of several files has several titles"),
        (row("a", "x", item_id="7"), row("b", "\uff38", item_id="7"), ""),
        (row("a", "x", grade=4), row("a", "x", grade=1, extra={"labelled_by": "judge"}), ""),
    ],
)
def test_files_that_grade_a_pair_differently_are_said(tmp_path, capsys, one, two, said):
    for name, found in (("a", one), ("b", two)):
        write_judgements(tmp_path / f"{name}.jsonl", [found])
    assert len(load_rows(f"{tmp_path}/a.jsonl,{tmp_path}/b.jsonl")) == 2
    printed = capsys.readouterr().err
    assert said in printed if said else "note: 1" not in printed


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([row("a", "x", grade=4), row("A", "x ", grade=1)], "1 row contradicted an earlier row"),
        ([row("a", "x", grade=4), row("a", "x", grade=1), row("a", "x", grade=2)], "2 rows contradicted"),
        ([row("a", "x", grade=4, query_id="1"), row("a", "x", grade=3)], "(grade 3, it is 4 in line 1)"),
        ([row("a", "x", item_id="7"), row("b", "y", item_id="7")], "1 row came with the item_id of another title"),
        ([row("a", query_id="1"), row("b"), row("c")], "2 of 3 rows have no query_id, first at line 2"),
    ],
)
def test_what_does_not_fit_together_is_kept_and_said_with_its_number_and_place(tmp_path, capsys, rows, said):
    write_judgements(tmp_path / "rows.jsonl", rows)
    assert read_judgements(tmp_path / "rows.jsonl") == rows
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "rows",
    [
        [row("boots", "a", grade=4), row("boots", "b", grade=1)],
        [row("boots", "a", grade=4), row("boots", "a", grade=4)],
        [row("boots", "a", price="$1", grade=4), row("boots", "a", price="$90", grade=1)],
        [row("a", "x", item_id="7", extra={"product_locale": p}) for p in ("us", "us")],
        [row("a", query_id="1", item_id="1"), row("a", query_id="1", item_id="2")],
    ],
)
def test_what_fits_together_is_read_without_a_word(tmp_path, capsys, rows):
    write_judgements(tmp_path / "rows.jsonl", rows)
    assert len(read_judgements(tmp_path / "rows.jsonl")) == 2 and capsys.readouterr().err == ""


@pytest.mark.parametrize("more", [{}, {"item_id": "9"}, {"grade": 2}])
def test_a_query_id_of_two_queries_is_a_bad_row_named_with_both_lines(tmp_path, more):
    rows = [row("mug", "a", query_id="7", **more), row("MUG", "b", query_id="7"), row("hub", "c", query_id="7")]
    write_judgements(tmp_path / "rows.jsonl", rows)
    with pytest.raises(ValueError, match=r"rows.jsonl:3: repeated ids: query_id '7' had another query in line 1"):
        read_judgements(tmp_path / "rows.jsonl")
    assert read_judgements(tmp_path / "rows.jsonl", max_bad_rows=1) == rows[:2]
