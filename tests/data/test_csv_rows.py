"""CSV and TSV records: cells are kept exactly, damaged ones refused by file and line."""

from __future__ import annotations

import csv
import json
import subprocess
import time

import pytest

from infer import score
from taosr1.data import dialect
from taosr1.data.csv_rows import read_csv
from taosr1.data.flags import ReadFlags
from taosr1.data.flatten import is_blank, is_missing
from taosr1.data.judgements import read_judgements, read_rows
from taosr1.runtime.bad_rows import BadRows
from taosr1.runtime.jsonl import read_jsonl, write_jsonl
from taosr1.runtime.text_lines import DamagedFile

ENCLOSE = ReadFlags(quotes="enclose")
NEED_HYPOTHESIS = "property tests need the [dev] extra: pip install -e '.[dev]'"


def put(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refusal(found):
    with pytest.raises(ValueError) as caught:
        list(found)
    return str(caught.value)


def test_cells_are_kept_to_the_character(tmp_path):
    cells = [
        " spaced ",
        "",
        'the "best"',
        "a,b",
        "two\nlines",
        "cr\r\nlf",
        "\ufeffmark",
        "x" * 2**20,
        "007",
        "1e3",
        "NaN",
        "\u2028",
        "=1+1",
        '"',
        "é",
        "\\n",
    ]
    for name, delimiter in (("a.csv", ","), ("a.tsv", "\t")):
        with open(tmp_path / name, "w", newline="", encoding="utf-8") as file:
            csv.writer(file, delimiter=delimiter).writerows(
                [["query", "title", "kept"], *[["q", "t", cell] for cell in cells]]
            )
        assert [row.extra["kept"] for row in read_judgements(tmp_path / name)] == cells
        pairs = score.read_pairs(score.Config(data=str(tmp_path / name), out="out.jsonl"))
        assert [row for row, _ in pairs] == [{"query": "q", "title": "t", "kept": cell} for cell in cells]


def test_a_quote_that_is_never_closed_is_as_many_bad_rows_as_it_swallows(tmp_path, capsys):
    path = put(tmp_path / "a.csv", 'query,title\na,b\nc,"open\n' + "e,f\n\n" * 40)
    assert "a.csv:3: broken CSV: unexpected end of data" in refusal(read_csv(path, BadRows(path, 40), ENCLOSE))
    ledger = BadRows(path, 41)
    assert list(read_csv(path, ledger, ENCLOSE)) == [(2, {"query": "a", "title": "b"})]
    assert (ledger.rows, ledger.skipped) == (42, 41)
    assert f"{path}: skipped 41 of 42 rows: broken CSV 41" in capsys.readouterr().err


def test_a_quote_that_is_closed_in_a_later_row_is_found_by_its_cells_and_counted_by_its_lines(tmp_path):
    path = put(tmp_path / "a.csv", 'query,title,grade\na,"b,4\nc,d,3\ne,f",2,1\ng,h,4\n')
    ledger = BadRows(path, 3)
    assert [row["query"] for _, row in read_csv(path, ledger, ENCLOSE)] == ["g"] and ledger.skipped == 3
    assert "a.csv:2: 4 cells, expected 3 as in the header; counted as 3 rows" in refusal(
        read_csv(path, BadRows(path, 2), ENCLOSE)
    )


@pytest.mark.parametrize("header", ["query,title", " query , title "])
def test_a_header_that_comes_again_is_no_row(tmp_path, header):
    path = put(tmp_path / "a.csv", f"{header}\na,b\n\ufeff{header}\nc,d\nquery,title\n")
    assert f"{path}:3: a byte order mark inside the file" in refusal(read_csv(path))
    assert [number for number, _ in read_csv(path, BadRows(path, 2))] == [2, 4]
    assert f"{path}:5: this record repeats the header: were two files joined?" in refusal(
        read_csv(path, BadRows(path, 1))
    )


@pytest.mark.parametrize("text", ["query,title\ra,b\rc,d\r", "query,title\na,b\rc,d\re,f\n"])
def test_csv_of_an_old_mac_is_explained(tmp_path, text):
    path = put(tmp_path / "a.csv", text)
    found = refusal(read_csv(path))
    assert str(path) in found and "ended by CR alone, as on old Macs" in found
    if text.count("\n") == 2:
        assert "a.csv:2: " in found and "counted as 3 rows" in found


def test_blank_lines_are_passed_over_but_an_empty_quoted_cell_is_a_record(tmp_path):
    path = put(tmp_path / "a.csv", 'query,title\n\n   \n\r\na,b\n""\nc,d\n')
    assert "a.csv:6: 1 cells, expected 2" in refusal(read_csv(path))
    assert [number for number, _ in read_csv(path, BadRows(path, 1))] == [5, 7]


def test_a_cell_beyond_the_limit_ends_the_reading_for_what_follows_lies_inside_it(tmp_path, monkeypatch):
    path = put(tmp_path / "a.csv", 'query,title\na,"' + "x\n" * 200_000 + "c,d\n")
    limit = csv.field_size_limit()
    monkeypatch.setattr(dialect, "MAX_LINE_BYTES", 131_072)
    try:
        csv.field_size_limit(131_072)
        with pytest.raises(DamagedFile, match=r"a\.csv:2: broken CSV: field larger than field limit"):
            list(read_csv(path, BadRows(path, 10**9)))
    finally:
        csv.field_size_limit(limit)


def test_a_header_of_broken_bytes_or_of_very_many_equal_names_is_refused_at_once(tmp_path):
    assert "a.csv:1: not UTF-8: byte 0xe9" in refusal(read_csv(put(tmp_path / "a.csv", b"query,caf\xe9\na,b\n")))
    start = time.perf_counter()
    text = refusal(read_csv(put(tmp_path / "a.csv", ",".join(f"c{n}" for n in range(100_000)) + ",c99999,c5\n")))
    assert "header names" in text and len(text) < 600 and time.perf_counter() - start < 5


def test_text_in_is_text_out_through_every_reader_and_back(tmp_path):
    hypothesis = pytest.importorskip("hypothesis", reason=NEED_HYPOTHESIS)
    strategies = hypothesis.strategies
    text = strategies.text(strategies.characters(exclude_categories=["Cs"], exclude_characters="\0"))
    title = text.filter(lambda cell: not is_blank(cell) and not is_missing(cell))

    @hypothesis.settings(max_examples=80, deadline=None)
    @hypothesis.given(
        strategies.lists(strategies.tuples(title, text, text), min_size=1, max_size=4),
        strategies.sampled_from([".jsonl", ".csv", ".tsv"]),
    )
    def check(cells, suffix):
        path = tmp_path / f"a{suffix}"
        raw = [{"query": "q", "title": title, "brand": brand, "kept": kept} for title, brand, kept in cells]
        with open(path, "w", newline="", encoding="utf-8") as file:
            if suffix == ".jsonl":
                file.writelines(json.dumps(row) + "\n" for row in raw)
            else:
                writer = csv.DictWriter(file, list(raw[0]), delimiter="\t" if suffix == ".tsv" else ",")
                writer.writeheader()
                writer.writerows(raw)
        assert [row for _, row in read_rows(path)] == raw
        found = read_judgements(path)
        seen = [(title, "" if is_blank(brand) or is_missing(brand) else brand, kept) for title, brand, kept in cells]
        assert [(row.title, row.brand, row.extra["kept"]) for row in found] == seen
        scored = [row for row, _ in score.read_pairs(score.Config(data=str(path), out="out.jsonl"))]
        write_jsonl(tmp_path / "scored.jsonl", scored)
        assert [row for _, row in read_jsonl(tmp_path / "scored.jsonl")] == raw

    check()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# exported 2026\nquery,title,grade\nmug,Mug,4\n", ":1: line 2 looks like the header (query, title, grade)"),
        ("Relevance, Q3\n\n\nquery;title;grade\nmug;Mug;4\n", ":1: line 4 looks like the header (query, title, grade)"),
        ("Shop\tMay\nQuery\tproduct_name\na\tb\n", ":1: line 2 looks like the header (Query, product_name)"),
        ("mug,Mug big,4\nlamp,Lamp,1\n", "put a header above it, such as query,title,grade; if it is the header"),
        ("17;mug;Mug big;Acme;4.0\n", "such as column1,query,title,column4,grade"),
        ("mug;Mug big\nlamp;Lamp\n", "put a header line above it, such as query,title,grade"),
        ('"query;title;grade"\n"mug;Mug;4"\n', ":1: the header is in quotes as a whole: sed -e"),
        ('query;title;grade\nmug;Mug;4\n"lamp;Lamp, ""big"";1"\n', ":3: this line is in quotes as a whole: sed -e"),
        ('query,title,item_id\nmug,Mug,=A2&"x"\n', ":2: field 'item_id' is the formula '=A2&\"x\"', expected"),
    ],
)
def test_a_first_line_that_is_no_header_is_refused_with_a_way_out(tmp_path, text, message):
    (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    for flags in (ReadFlags(), ReadFlags(max_bad_rows=0 if ":2:" in message or ":3:" in message else 5)):
        with pytest.raises(ValueError) as caught:
            read_judgements(tmp_path / "a.csv", flags)
        assert message in str(caught.value)
    if "sed -e" in message:  # the way out works
        command = str(caught.value).partition("as a whole: ")[2].partition(" takes")[0]
        subprocess.run(command.replace("FILE", "a.csv").replace("NEW", "b.csv"), shell=True, check=True, cwd=tmp_path)
        assert [row.grade for row in read_judgements(tmp_path / "b.csv")][:1] == [4]


def test_row_one_is_not_lost_as_a_header_that_the_user_has_named(tmp_path):
    (tmp_path / "a.csv").write_text("mug,Mug big,4\nlamp,Lamp,1\n", encoding="utf-8")
    with pytest.raises(ValueError, match="'4' is a number: if the line is a row, put a header above it"):
        read_judgements(tmp_path / "a.csv", ReadFlags(columns="mug=query,Mug big=title,4=grade"))


@pytest.mark.parametrize(
    ("text", "cells"),
    [
        (',,query,title\n,,mug,Mug\n', ("mug", "Mug", "")),
        ('query, title, grade\nmug, "Mug, big", 4\nlamp, Lamp, 1\n', ("mug", "Mug, big", "")),
        ('query;title;brand\nmug; "Mug; big";x\n"a"; "b ""c"" d"; y\n', ("mug", "Mug; big", "x")),
        ('query,title,brand\nmug, Mug "big",x\n', ("mug", ' Mug "big"', "x")),
        ('query,title,item_id\nmug,"=""00123""",="00123"\n', ("mug", "00123", "")),
    ],
)  # fmt: skip
def test_spaces_before_quotes_and_columns_of_nothing_are_no_part_of_the_cells(tmp_path, text, cells):
    (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    row = read_judgements(tmp_path / "a.csv")[0]
    assert (row.query, row.title, row.brand) == cells
    assert row.item_id == ("00123" if "item_id" in text else "")
