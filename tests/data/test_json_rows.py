"""JSON files that are not JSON Lines: arrays, objects over several lines, one list in an object."""

from __future__ import annotations

import gzip
import json

import pytest

from taosr1.data import json_rows
from taosr1.data.judgements import iter_judgements, read_judgements
from taosr1.data.rows import read_rows
from taosr1.runtime.bad_rows import BadRows

ROWS = [
    {"query": f"q{n}", "title": 't "ü" [1, 2], {3}', "grade": 1 + n % 4, "n": {"a": [n, 1.5, None]}} for n in range(5)
]


def put(folder, text, name="a.json"):
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder / name


def refusal(path, **options):
    with pytest.raises(ValueError) as caught:
        read_judgements(path, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(ROWS),
        json.dumps(ROWS, indent=2, ensure_ascii=False),
        "[\n" + ",\n".join(map(json.dumps, ROWS)) + "\n]\n",
        "\ufeff \n" + json.dumps(ROWS),
        "\n".join(json.dumps(row, indent=1) for row in ROWS),  # as jq writes it
        "\n".join(map(json.dumps, ROWS)),  # JSON Lines
        json.dumps({"version": 3, "rows": ROWS, "tags": ["a"]}),
        json.dumps({"data": ROWS}, indent=4),
    ],
    ids=[
        "line",
        "indented",
        "row a line",
        "mark",
        "behind each other",
        "JSON Lines",
        "in an object",
        "in a long object",
    ],
)
@pytest.mark.parametrize("piece", [1, 2**16])
def test_every_form_gives_the_same_rows(tmp_path, monkeypatch, text, piece):
    monkeypatch.setattr(json_rows, "LEAST_CHARS", piece)  # an element that ends where the text read so far ends
    assert [row for _, row in read_rows(put(tmp_path, text))] == ROWS
    assert [row for _, row in read_rows(put(tmp_path, gzip.compress(text.encode()), "b.json.gz"))] == ROWS
    assert [row for _, row in read_rows(put(tmp_path, text.removeprefix("\ufeff").encode("utf-16"), "c.json"))] == ROWS


def test_rows_of_an_array_are_named_by_the_line_on_which_they_begin(tmp_path, capsys):
    path = put(
        tmp_path,
        '[\n{"query": "a", "title": "b"},\n3, null,\n{"query": "a",\n"query": "b"},\n{"query": "c",\n"title": "d"}]',
    )
    assert refusal(path).startswith(f"{path}:3: a JSON int, expected objects in the list")
    ledger = BadRows(path, 3)
    assert [(line, row["query"]) for line, row in read_rows(path, ledger)] == [(2, "a"), (6, "c")] and ledger.rows == 5
    assert f"skipped {path}:4: field 'query' appears twice" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"query": "a", "title": "b"}\n{"query": "a"}]', "2: expected a comma or ]"),
        ('[{"query": "a", "title": "b"},\n{"query": "a', "2: not JSON: Unterminated string"),
        ('[{"query": "a", "title": "b"},\n', "2: the file ends inside the array: was its writing cut off?"),
        ('[{"query": "a", "title": "b"}]\n[]', "2: something follows behind the array"),
        ("[" * 100_000, "1: JSON nested too deeply"),
        ('[{"query": "a", "title": "b", "n": Infinity}]', "1: Infinity is not JSON: write null"),
        ('[{"query": "a", "title": "b", "n": 1e999}]', "1: number 1e999 is out of range"),
        ('[{"query": "a", "title": "b", "n": ' + "9" * 5000 + "}]", "1: a number of more than 4300 digits"),
        (b'[{"query": "a\xff", "title": "b"}]', "1: not UTF-8: byte 0xff"),
        ("[]", "no rows in this file"),
    ],
)
def test_what_is_wrong_with_an_array_is_named_by_its_line(tmp_path, text, message):
    path = put(tmp_path, text)
    assert message in refusal(path) and str(path) in refusal(path)


def test_an_array_is_read_element_by_element(tmp_path):
    good = json.dumps(ROWS[0])
    rows = iter_judgements(put(tmp_path, f"[{good},\n{good}," + "\n" * 2**17 + "oops]"))
    assert [next(rows).query, next(rows).query] == ["q0", "q0"]
    with pytest.raises(ValueError, match=r"a\.json:131074: not JSON"):
        next(rows)


def test_an_array_named_as_json_lines_is_refused_with_the_command_that_makes_them(tmp_path):
    assert "a JSON list, expected one object a line; of an array, jq -c '.[]' FILE makes them" in refusal(
        put(tmp_path, json.dumps(ROWS), "a.jsonl")
    )


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "array.json", "named.csv"])
def test_nan_is_a_missing_value_and_counted(tmp_path, capsys, name):
    rows = '{"query": "a", "title": "b", "price": NaN, "grade": 4}', '{"query": "c NaN", "title": "d", "grade": NaN}'
    text = f"[{rows[0]},\n{rows[1]}]" if name == "array.json" else "\n".join(rows) + "\n"
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert [(row.query, row.price, row.grade) for row in read_judgements(tmp_path / name)] == [
        ("a", "", 4), ("c NaN", "", None)
    ]  # fmt: skip
    assert ": 2 rows had NaN, read as null, first at" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"query": {"0": "a"}, "title": {"0": "b"}, "grade": {"0": 4}}, "the table is written column by column"),
        ({"query": ["a", "b"], "title": ["c", "d"], "label": [1, 4]}, "the table is written column by column"),
        ({"columns": ["query", "title"], "index": [0], "data": [["a", "b"]]}, "written column by column"),
        ({"query": "a", "items": [{"title": "b"}, {"title": "c"}]}, "'items' is a list of objects with texts inside"),
        ([{"query": "a", "doc": {"Product Name": "b"}}], "'doc' is an object with texts inside"),
        ({"hits": {"hits": [{"_source": {"query": "a", "title": "b"}}]}}, "this is an answer of Elasticsearch"),
        ({"17": {"query": "a", "title": "b"}}, "'17' is an object with texts inside"),
        ([["query", "title"], ["a", "b"]], "a JSON list, expected objects in the list"),
    ],
)
def test_json_of_another_shape_is_refused_with_the_shape_that_is_read(tmp_path, value, message):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(value), encoding="utf-8")
    with pytest.raises(ValueError) as caught:
        read_judgements(path, need_grade=True)
    found = str(caught.value)
    assert message in found and 'such as {"query": "travel mug", "title": "Steel mug", "grade": 4}' in found
    assert "--columns" not in found
