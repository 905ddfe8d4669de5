"""What a file of judgements may not hold: every refusal names file, line and field."""

import gzip
import json

import pytest

from taosr1.data.judgements import iter_judgements, read_judgements

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


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({**GOOD, "grade": 2.5}, "field 'grade' is 2.5, expected 1-4"),
        ({**GOOD, "grade": "4-Related"}, "field 'grade' is '4-Related', expected 1-4"),
        ({**GOOD, "grade": [4]}, "field 'grade' is [4], expected 1-4"),
        ({**GOOD, "title": ["a"]}, "field 'title' is ['a'], expected text"),
        ({**GOOD, "brand": False}, "field 'brand' is False, expected text"),
        ({**GOOD, "category": {"a": "b"}}, "field 'category' is {'a': 'b'}, expected text"),
        (
            {**GOOD, "attributes": {"a": {"b": {"c": {"d": {"e": 1}}}}}},
            "field 'attributes' holds {'e': 1} at 'a b c d'",
        ),
        ({"title": "Boots"}, "field 'query' is missing; the row has 'title'"),
        ({"query": "boots"}, "field 'title' is missing; the row has 'query'"),
        ({**GOOD, "query": "  "}, "field 'query' is empty"),
        ({"query": "boots", "title": ""}, "nothing is said about the product"),
        ("[1, 2]", "a JSON list, expected one object a line"),
        ("null", "a JSON NoneType, expected one object a line"),
        ('{"query": "boots", }', "not JSON"),
        ('{"query": "a", "query": "b", "title": "c"}', "field 'query' appears twice"),
        ('{"query": "a", "title": -Infinity}', "-Infinity is not JSON: write null"),
        ('{"query": "a", "title": "b", "price": 1e999}', "out of range"),
        ('{"query": "a", "title": "b", "deep": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
        ('{"query": "a", "title": "b", "n": ' + "9" * 5000 + "}", "digits"),
        (b'{"query": "caf\xe9", "title": "b"}', "not UTF-8: byte 0xe9"),
        (b'{"query": "a", "title": "b\x00"}', "NUL byte"),
    ],
)
def test_a_bad_row_is_refused_with_file_line_and_field(tmp_path, line, message):
    path = save(tmp_path, [GOOD, "", line, GOOD])
    text = refusal(path)
    assert text.startswith(f"{path}:3: ") and message in text and "--max-bad-rows" in text


def test_a_last_line_cut_off_by_a_crash_is_named_as_such(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b'\n{"query": "red bo')
    assert f"{path}:2: not JSON" in refusal(path) and "cut off" in refusal(path)
    assert len(read_judgements(path, max_bad_rows=1)) == 1


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("query,title,grade\na,b,4\na,b\n", 3, "2 cells, expected 3 as in the header"),
        ("query,title\na,b,c\n", 2, "3 cells, expected 2"),
        ('query,title\n"a\nb",c\na,"b"x\n', 4, "broken CSV"),
        ('query,title\na,b\na,"open\nuntil\nthe end\n', 3, "broken CSV"),
        ("query,title,grade\na,b,7\n", 2, "field 'grade' is '7', expected 1-4"),
        ("query,query,title\n", 1, "header names ['query'] twice"),
        ("query,,title\na,,b\na,b,c\n", 1, "column 2 has cells but no name"),
        (",,\na,b,c\n", 1, "empty column name"),
        ("query;title;grade\na,b,4\n", 1, "header are separated by ';', those of the rows by ','"),
        ("query,title;grade\na,b;4\n", 1, "',' and ';' could both separate the cells: say which, --delimiter"),
    ],
)
def test_a_csv_problem_is_named_by_the_line_it_begins_on(tmp_path, text, line, message):
    (tmp_path / "data.csv").write_text(text, encoding="utf-8")
    error = refusal(tmp_path / "data.csv")
    assert f"data.csv:{line}: " in error and message in error


@pytest.mark.parametrize(("cell", "message"), [(b"caf\xe9", "byte 0xe9"), (b"a\x00b", "NUL byte")])
def test_damaged_bytes_in_csv_are_a_bad_row_and_never_reach_the_text(tmp_path, cell, message):
    path = save(tmp_path, ["query,title", b"q," + cell, "q,fine"], "data.csv")
    assert message in refusal(path) and "data.csv:2: " in refusal(path)
    assert [row.title for row in read_judgements(path, max_bad_rows=1)] == ["fine"]


def test_bad_rows_up_to_the_limit_are_skipped_and_printed(tmp_path, capsys):
    path = save(tmp_path, [GOOD, {**GOOD, "grade": 9}, "{", GOOD])
    assert len(read_judgements(path, max_bad_rows=2)) == 2
    printed = capsys.readouterr().err.splitlines()
    assert printed[0] == f"skipped {path}:2: field 'grade' is 9, expected 1-4"
    assert printed[1].startswith(f"skipped {path}:3: not JSON")
    assert printed[2] == f"{path}: skipped 2 of 4 rows: field 'grade' 1, not JSON 1"
    assert f"{path}:3: " in refusal(path, max_bad_rows=1)
    assert "more than the 1 of --max-bad-rows" in refusal(path, max_bad_rows=1)
    with pytest.raises(ValueError, match="--max-bad-rows is -1, expected 0 or more"):
        read_judgements(path, max_bad_rows=-1)


def test_a_file_without_rows_is_an_error(tmp_path):
    assert "no rows in this file" in refusal(save(tmp_path, ["", "  "]))
    assert "no rows in this file" in refusal(save(tmp_path, ["query,title"], "data.csv"))
    assert "no rows in this file" in refusal(save(tmp_path, [], "empty.jsonl"))
    assert "(1 bad rows skipped)" in refusal(save(tmp_path, ["{"]), max_bad_rows=3)


def test_a_missing_file_a_folder_and_an_unknown_type_name_the_flag(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file at .*nowhere.jsonl: check --data"):
        read_judgements(tmp_path / "nowhere.jsonl")
    with pytest.raises(FileNotFoundError, match="examples.*check --data"):
        read_judgements(tmp_path)
    assert "unknown file type '.doc'" in refusal(save(tmp_path, [GOOD], "data.doc"))


@pytest.mark.parametrize("keep", [5, 40, -6])
def test_a_truncated_gzip_file_is_named_and_cannot_be_skipped_past(tmp_path, keep):
    lines = b"".join(json.dumps({**GOOD, "item_id": str(number)}).encode() + b"\n" for number in range(50))
    (tmp_path / "data.jsonl.gz").write_bytes(gzip.compress(lines)[:keep])
    assert "data.jsonl.gz:" in refusal(tmp_path / "data.jsonl.gz", max_bad_rows=100)
    assert "damaged or cut off gzip data" in refusal(tmp_path / "data.jsonl.gz", max_bad_rows=100)


def test_a_bit_flip_inside_gzip_data_is_noticed(tmp_path):
    data = bytearray(gzip.compress(json.dumps(GOOD).encode() * 1))
    data[len(data) // 2] ^= 0x55
    (tmp_path / "data.jsonl.gz").write_bytes(bytes(data))
    assert "data.jsonl.gz:" in refusal(tmp_path / "data.jsonl.gz")


def test_utf_32_is_named_with_the_conversion(tmp_path):
    (tmp_path / "data.jsonl").write_text(json.dumps(GOOD), encoding="utf-32")
    assert "UTF-32, expected UTF-8: iconv -f UTF-32 -t UTF-8 data.jsonl > NEW" in refusal(tmp_path / "data.jsonl")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("007", "007"),
        (12345678901234567890, "12345678901234567890"),
        (1e3, "1000"),
        ("1e3", "1e3"),
        (2**53 - 1.0, str(2**53 - 1)),
    ],
)
def test_an_id_stays_what_it_is(tmp_path, value, text):
    assert read_judgements(save(tmp_path, [{**GOOD, "query_id": value}]))[0].query_id == text
    (tmp_path / "data.csv").write_text(f"query,title,item_id\nq,t,{text}\n", encoding="utf-8")
    assert read_judgements(tmp_path / "data.csv")[0].item_id == text


@pytest.mark.parametrize("value", ["12345678901234567890.0", "1.2345678901234567e19", "9007199254740993.0", "-1e300"])
def test_a_number_that_a_float_cannot_hold_exactly_is_no_id(tmp_path, value):
    path = save(tmp_path, [f'{{"query": "a", "title": "b", "query_id": {value}}}'])
    assert "field 'query_id' is" in refusal(path) and "write it as text" in refusal(path)


def test_an_error_is_short_whatever_the_row_holds(tmp_path):
    big = "x" * 2**20
    for row in (
        {"query": "a", big: "b"},
        {**GOOD, "grade": big},
        {**GOOD, "title": [big]},
        {"query": "a", "product_title": "b", "esci_label": big},
    ):
        assert len(refusal(save(tmp_path, [row]))) < 1000
    assert len(refusal(save(tmp_path, ['{"' + big + '": 1, "' + big + '": 2}']))) < 1000
    assert len(refusal(save(tmp_path, [{f"column {n}": n for n in range(10_000)}]))) < 1000
    assert len(refusal(save(tmp_path, [{**GOOD, "split": str(n)} for n in range(3000)]), split="other")) < 1000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda cot: cot.replace("Category: same", "Category: "), "'Category:'"),
        (lambda cot: cot.replace("Category: same", "Category:  same"), "'Category:  same'"),
        (lambda cot: cot.replace("Category: same", "Category: same\u2028x"), "one line"),
        (lambda cot: cot.replace("Category: same", "Category: same\rx"), "one line"),
        (
            lambda cot: cot.replace("boots", "boots " * 2000),
            "characters, expected five lines of at most 10000 together",
        ),
    ],
)
def test_a_chain_of_thought_that_no_reply_parser_would_call_well_formed_is_refused(tmp_path, change, message):
    path = save(tmp_path, [{**GOOD, "cot": change(COT)}])
    assert message in refusal(path, need_cot=True)
    assert len(read_judgements(path)) == 1  # where it is not learned it is only carried along


def test_spaces_at_the_ends_of_its_lines_are_no_part_of_a_chain_of_thought(tmp_path):
    path = save(tmp_path, [{**GOOD, "cot": "\n" + COT.replace("\n", "  \r\n") + " \n"}])
    assert read_judgements(path, need_cot=True)[0].cot == COT


def test_a_chain_of_thought_is_checked_where_it_is_needed(tmp_path):
    path = save(tmp_path, [{**GOOD, "cot": COT.replace("\n", "\r\n") + "\n"}, GOOD])
    assert [row.cot for row in read_judgements(path)] == [COT, ""]
    assert "data.jsonl:2: field 'cot' is missing" in refusal(path, need_cot=True)
    short = save(tmp_path, [{**GOOD, "cot": COT.partition("\n")[2]}], "short.jsonl")
    assert "field 'cot' has 4 lines, expected 5" in refusal(short, need_cot=True)
    swapped = save(tmp_path, [{**GOOD, "cot": COT.replace("Item:", "Thing:")}], "swapped.jsonl")
    assert "expected it to begin with 'Item: '" in refusal(swapped, need_cot=True)


def test_reading_streams_so_that_a_huge_file_is_no_huge_memory(tmp_path):
    path = save(tmp_path, [GOOD, GOOD, "{"])
    rows = iter_judgements(path)
    assert next(rows).grade == 4 and next(rows).grade == 4
    with pytest.raises(ValueError, match=":3: "):
        next(rows)
