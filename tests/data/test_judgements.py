"""Reading and writing judgements: what is accepted, and exact round trips."""

import gzip
import json
import os
import stat

import pytest

from taosr1.data.columns import ColumnNames
from taosr1.data.flatten import is_blank, is_missing
from taosr1.data.judgements import Judgement, judgement_to_dict, read_judgements, write_judgements
from taosr1.runtime.bad_rows import BadRows
from taosr1.runtime.jsonl import read_jsonl, write_jsonl
from taosr1.task.judgement import COLUMNS

GOOD = {"query": "red boots", "title": "Boots, red", "grade": 4}
COT = "Query: boots\nItem: boots\nCategory: same\nAttributes: none\nDecision: 4-Excellent"


def save(folder, lines, name="data.jsonl"):
    """A data file of these lines: str, bytes or objects, each ended by a line feed."""
    path = folder / name
    encoded = [
        line if isinstance(line, bytes) else (line if isinstance(line, str) else json.dumps(line)).encode()
        for line in lines
    ]
    path.write_bytes(b"".join(line + b"\n" for line in encoded))
    return path


def refusal(path, **options):
    with pytest.raises(ValueError) as caught:
        read_judgements(path, **options)
    return str(caught.value)


def test_jsonl_rows_become_judgements_and_other_columns_stay_verbatim(tmp_path):
    row = {**GOOD, "brand": "Alder", "shop": {"id": [1, 2.5, None, True]}, "rank": 3}
    assert read_judgements(save(tmp_path, [row])) == [
        Judgement("red boots", "Boots, red", "Alder", grade=4, extra={"shop": {"id": [1, 2.5, None, True]}, "rank": 3})
    ]


@pytest.mark.parametrize("name", ["data.csv", "data.tsv", "data.csv.gz"])
def test_csv_tsv_and_gzip_give_the_same_rows_as_jsonl(tmp_path, name):
    separator = "\t" if ".tsv" in name else ","
    text = separator.join(["query", "title", "grade", "shelf"]) + "\r\n"
    text += separator.join(["red boots", '"Boots, red\nsecond line ""quoted"""', "4", "A7"]) + "\r\n\r\n"
    text += separator.join(["red boots", "Sandals", "", ""])  # no final newline
    (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    assert read_judgements(tmp_path / name) == [
        Judgement("red boots", 'Boots, red\nsecond line "quoted"', grade=4, extra={"shelf": "A7"}),
        Judgement("red boots", "Sandals", extra={"shelf": ""}),
    ]


def test_byte_order_mark_crlf_blank_lines_and_a_missing_final_newline_are_no_problem(tmp_path):
    line = json.dumps(GOOD).encode()
    (tmp_path / "data.jsonl").write_bytes(b"\xef\xbb\xbf" + line + b"\r\n\r\n   \n" + line)
    assert read_judgements(tmp_path / "data.jsonl") == [Judgement("red boots", "Boots, red", grade=4)] * 2


def test_gzip_is_recognised_by_content_whatever_the_name(tmp_path):
    (tmp_path / "data.jsonl").write_bytes(gzip.compress(json.dumps(GOOD).encode()))
    save(tmp_path, [GOOD], "unpacked.jsonl.gz")
    assert read_judgements(tmp_path / "data.jsonl") == read_judgements(tmp_path / "unpacked.jsonl.gz")


@pytest.mark.parametrize(
    ("value", "text"),
    [(19.99, "19.99"), (20.0, "20"), (7, "7"), (None, ""), ("  spaced ", "  spaced "), (10**30, str(10**30))],
)
def test_numbers_and_null_in_text_columns_become_text(tmp_path, value, text):
    assert read_judgements(save(tmp_path, [{**GOOD, "price": value}]))[0].price == text


@pytest.mark.parametrize(
    "attributes",
    [
        {"colour": "red", "size": 8, "vegan": True, "fits": ["men", "women"], "lining": None},
        [{"name": "colour", "value": "red"}, {"name": "size", "value": 8}, "vegan: yes", "fits: men, women"],
    ],
)
def test_attribute_objects_and_lists_are_flattened(tmp_path, attributes):
    row = read_judgements(save(tmp_path, [{**GOOD, "attributes": attributes}]))[0]
    assert row.attributes == "colour: red; size: 8; vegan: yes; fits: men, women"


def test_a_semicolon_inside_an_attribute_cannot_split_it(tmp_path):
    row = read_judgements(save(tmp_path, [{**GOOD, "attributes": {"care": "wash cold; dry flat"}}]))[0]
    assert row.attributes == "care: wash cold, dry flat"


def test_a_category_list_becomes_a_path(tmp_path):
    row = read_judgements(save(tmp_path, [{**GOOD, "category": ["Shoes", None, "Boots"]}]))[0]
    assert row.category == "Shoes > Boots"


@pytest.mark.parametrize("grade", [3, 3.0, "3", " 3 ", "3.0", "3-Related", "3-related"])
def test_a_grade_is_read_from_a_number_its_text_or_its_name(tmp_path, grade):
    assert read_judgements(save(tmp_path, [{**GOOD, "grade": grade}]))[0].grade == 3


@pytest.mark.parametrize("grade", [None, "", "  "])
def test_an_empty_grade_means_nobody_has_judged(tmp_path, grade):
    path = save(tmp_path, [{**GOOD, "grade": grade}])
    assert read_judgements(path)[0].grade is None
    assert "data.jsonl:1: field 'grade' is missing, expected 1-4" in refusal(path, need_grade=True)


def test_lone_surrogates_and_escaped_nul_become_the_replacement_character(tmp_path):
    path = save(tmp_path, [r'{"query": "a\ud800b", "title": "x\u0000y \ud83d\ude00", "k\udfff": ["\udc00"]}'])
    row = read_judgements(path)[0]
    assert (row.query, row.title, row.extra) == ("a\ufffdb", "x\ufffdy 😀", {"k\ufffd": ["\ufffd"]})


def test_unicode_line_separators_inside_a_title_do_not_split_the_row(tmp_path):
    title = "one\u2028two\u0085three\x0bfour"
    path = tmp_path / "data.jsonl"
    write_judgements(path, [Judgement("q", title)])
    assert read_judgements(path)[0].title == title


def test_long_fields_and_foreign_scripts_survive(tmp_path):
    row = Judgement("防水登山鞋", "مقاوم للماء 👢", description="длинно " * 50_000, grade=1)
    write_judgements(tmp_path / "data.jsonl", [row])
    assert read_judgements(tmp_path / "data.jsonl") == [row]
    (tmp_path / "data.csv").write_text(f"query,title\nq,{'x' * 300_000}\n", encoding="utf-8")
    assert len(read_judgements(tmp_path / "data.csv")[0].title) == 300_000


def test_split_keeps_one_split_and_names_the_others(tmp_path):
    path = save(tmp_path, [{**GOOD, "split": "train"}, {**GOOD, "query": "blue", "split": "test"}])
    assert [row.query for row in read_judgements(path, split="test")] == ["blue"]
    assert "['test', 'train']" in refusal(path, split="dev")
    assert "no 'split' column" in refusal(save(tmp_path, [GOOD], "plain.jsonl"), split="dev")


def test_written_rows_are_flat_and_every_column_is_there():
    row = judgement_to_dict(Judgement("q", "t", grade=2, extra={"rank": 1}))
    assert list(row)[:2] == ["query", "title"] and row["rank"] == 1 and row["grade"] == 2 and row["brand"] == ""
    with pytest.raises(ValueError, match=r"\['brand'\]"):
        judgement_to_dict(Judgement("q", "t", extra={"brand": "x"}))


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz"])
def test_write_then_read_gives_the_same_rows_and_the_same_bytes(tmp_path, name):
    rows = [
        Judgement(
            "boots not leather",
            'Boots 👢\n\t"x"',
            "B",
            "a: b; c: d",
            "A > B",
            "<b>",
            "$5",
            3,
            "negation",
            "q1",
            "i1",
            COT,
        ),
        Judgement("q", "", category="only this", extra={"z": [1, {"y": None}], "split": "test", "empty": ""}),
    ]
    path = tmp_path / "new" / "folder" / name
    assert write_judgements(path, iter(rows)) == 2
    assert read_judgements(path) == rows
    before = path.read_bytes()
    write_judgements(path, rows)
    assert path.read_bytes() == before
    assert name.endswith(".jsonl") or before[4:8] == bytes(4)  # no time stamp in the gzip header
    assert os.listdir(path.parent) == [name]
    plain = tmp_path / "plain"
    plain.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)  # not the 0600 of a temporary file


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "out.jsonl"
    write_judgements(path, [Judgement("old", "t")])

    def rows():
        yield Judgement("new", "t")
        raise RuntimeError("the producer died")

    with pytest.raises(RuntimeError):
        write_judgements(path, rows())
    assert read_judgements(path) == [Judgement("old", "t")]
    assert os.listdir(tmp_path) == ["out.jsonl"]


def test_writing_refuses_names_and_values_it_would_betray(tmp_path):
    with pytest.raises(ValueError, match="expected a name ending in .jsonl"):
        write_judgements(tmp_path / "out.csv", [])
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(ValueError, match="is a folder"):
        write_judgements(tmp_path / "folder.jsonl", [])
    with pytest.raises(ValueError):
        write_jsonl(tmp_path / "out.jsonl", [{"value": float("nan")}])
    assert not (tmp_path / "out.jsonl").exists()


def test_any_rows_survive_a_round_trip(tmp_path):
    hypothesis = pytest.importorskip(
        "hypothesis", reason="property tests need the [dev] extra: pip install -e '.[dev]'"
    )
    given, strategies = hypothesis.given, hypothesis.strategies
    text = strategies.text(strategies.characters(exclude_categories=["Cs"], exclude_characters="\0"))
    filled = text.filter(lambda cell: not is_blank(cell) and not is_missing(cell))
    field = text.map(lambda cell: "" if is_blank(cell) or is_missing(cell) else cell)
    names = text.filter(lambda name: ColumnNames().rename({name: 0}) == {name: 0} and name not in COLUMNS)
    value = strategies.recursive(
        strategies.none()
        | strategies.booleans()
        | strategies.integers()
        | text
        | strategies.floats(allow_nan=False, allow_infinity=False),
        lambda inner: strategies.lists(inner, max_size=3) | strategies.dictionaries(text, inner, max_size=3),
        max_leaves=4,
    )
    rows = strategies.builds(
        Judgement,
        query=filled,
        title=filled,
        brand=field,
        attributes=field,
        category=field,
        description=field,
        price=field,
        grade=strategies.sampled_from([None, 1, 2, 3, 4]),
        query_kind=field,
        query_id=field,
        item_id=field,
        extra=strategies.dictionaries(names, value, max_size=2),
    )

    @hypothesis.settings(max_examples=60, deadline=None)
    @given(
        strategies.lists(rows, min_size=1, max_size=3, unique_by=lambda row: (row.query_id, row.item_id)),
        strategies.sampled_from([".jsonl", ".jsonl.gz"]),
    )
    def check(judgements, suffix):
        path = tmp_path / f"rows{suffix}"
        write_judgements(path, judgements)
        assert read_judgements(path) == judgements

    check()


def test_no_bytes_whatever_make_the_reader_do_anything_but_read_or_refuse(tmp_path):
    hypothesis = pytest.importorskip(
        "hypothesis", reason="property tests need the [dev] extra: pip install -e '.[dev]'"
    )
    good = json.dumps(GOOD).encode()
    piece = hypothesis.strategies.sampled_from(
        [
            good,
            b"\n",
            b"\r\n",
            b"\0",
            b"\xff",
            b'"',
            b"{",
            b"}",
            b",",
            b"\xef\xbb\xbf",
            b"query,title\n",
            b"null",
            b"\x1f\x8b",
        ]
    )
    content = hypothesis.strategies.lists(piece | hypothesis.strategies.binary(max_size=8), max_size=12).map(b"".join)

    @hypothesis.settings(max_examples=150, deadline=None)
    @hypothesis.given(content, hypothesis.strategies.sampled_from([".jsonl", ".csv", ".tsv", ".jsonl.gz"]))
    def check(data, suffix):
        path = tmp_path / f"any{suffix}"
        path.write_bytes(data)
        try:
            rows = read_judgements(path, max_bad_rows=1)
        except ValueError as problem:
            assert str(path) in str(problem)
        else:
            assert rows and all(isinstance(row, Judgement) for row in rows)

    check()


def test_read_jsonl_counts_lines_as_an_editor_does(tmp_path):
    path = save(tmp_path, ["", {"a": 1}, "", "", {"a": 2}])
    assert list(read_jsonl(path)) == [(2, {"a": 1}), (5, {"a": 2})]
    bad_rows = BadRows(path, 1)
    path = save(tmp_path, ["[", {"a": 2}])
    assert list(read_jsonl(path, bad_rows)) == [(2, {"a": 2})] and bad_rows.skipped == 1
