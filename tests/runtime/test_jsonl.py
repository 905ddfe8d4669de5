"""Reading and writing JSON Lines: rows stay exact, damaged ones are refused, replaced characters reported."""

from __future__ import annotations

import errno
import json
import time

import pytest

from taosr1.data.csv_rows import read_csv
from taosr1.data.judgements import read_judgements, write_judgements
from taosr1.runtime.bad_rows import BadRows
from taosr1.runtime.jsonl import MAX_DEPTH, REPLACED, clean_value, read_jsonl, write_jsonl

NEED_HYPOTHESIS = "property tests need the [dev] extra: pip install -e '.[dev]'"


def put(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refusal(found):
    with pytest.raises(ValueError) as caught:
        list(found)
    return str(caught.value)


def nested(depth):
    value = 1
    for _ in range(depth):
        value = [value]
    return value


def test_what_utf8_cannot_hold_is_replaced_and_said_once_with_the_first_line(tmp_path, capsys):
    path = put(
        tmp_path / "a.jsonl",
        '{"a": "fine \\u00e9"}\n{"a": "x\\ud800"}\n{"a": "\\u0000"}\n{"a": "\\\\u0000 \\ud83d\\ude00"}\n',
    )
    assert [row["a"] for _, row in read_jsonl(path)] == ["fine é", "x\ufffd", "\ufffd", "\\u0000 😀"]
    assert capsys.readouterr().err == f"{path}: 2 rows {REPLACED}, first at {path}:2\n"


def test_what_is_replaced_in_writing_is_said_as_well(tmp_path, capsys):
    path = tmp_path / "out.jsonl"
    written = [{"a": "fine", "b": "\\u0000"}, {"a": ["x\0", {"k\ud800": "\udfff"}]}, {"a": "fine"}]
    assert write_jsonl(path, written) == 3
    assert capsys.readouterr().err == f"{path}: 1 row {REPLACED}, first at {path}:2\n"
    assert [row for _, row in read_jsonl(path)] == [written[0], {"a": ["x\ufffd", {"k\ufffd": "\ufffd"}]}, written[2]]


def test_names_that_become_one_are_refused_and_not_merged(tmp_path):
    path = put(tmp_path / "a.jsonl", '{"k\\ud800": 1, "k\\udfff": 2}\n')
    assert f"{path}:1: two fields have the same name once NUL and lone surrogates are replaced" in refusal(
        read_jsonl(path)
    )
    with pytest.raises(ValueError, match=r"out\.jsonl:1: two fields have the same name"):
        write_jsonl(tmp_path / "out.jsonl", [dict.fromkeys(["k\ud800", "k\udfff"], 1)])


def test_whatever_is_read_can_be_written_however_deep_it_is(tmp_path):
    path = tmp_path / "a.jsonl"
    put(path, json.dumps({"a": nested(MAX_DEPTH - 1)}))
    (_, row), *_ = read_jsonl(path)
    assert write_jsonl(tmp_path / "out.jsonl", [row]) == 1 and list(read_jsonl(tmp_path / "out.jsonl")) == [(1, row)]
    for depth in (MAX_DEPTH, 200, 900, 5000, 100_000):
        put(path, '{"a": ' + "[" * depth + "]" * depth + "}")
        assert f"{path}:1: JSON nested too deeply" in refusal(read_jsonl(path))
    assert clean_value({"a": nested(MAX_DEPTH - 1)}) == {"a": nested(MAX_DEPTH - 1)}


@pytest.mark.parametrize(
    "spelled",
    ["12345678901234567890", "-0", "1e3", "0.1", "1E-7", "123456789.125", "10" * 200, "true", "null", '"007"', '"1e3"'],
)
def test_numbers_and_words_of_other_columns_come_back_as_they_are(tmp_path, spelled):
    put(tmp_path / "a.jsonl", f'{{"query": "q", "title": "t", "n": {spelled}}}\n')
    row = read_judgements(tmp_path / "a.jsonl")[0]
    write_judgements(tmp_path / "b.jsonl", [row])
    again = read_judgements(tmp_path / "b.jsonl")[0].extra["n"]
    assert again == json.loads(spelled) and type(again) is type(json.loads(spelled))


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_line_ends_may_be_mixed_and_the_last_may_be_missing(tmp_path, ending):
    path = put(tmp_path / "a.jsonl", '{"a": 1}\n{"a": 2}\r\n' + ending + '{"a": "x\\r\\n"}' + ending + '{"a": 4}')
    assert [row["a"] for _, row in read_jsonl(path)] == [1, 2, "x\r\n", 4]


def test_lines_of_an_old_mac_are_explained_and_counted_one_by_one(tmp_path, capsys):
    path = put(tmp_path / "a.jsonl", '{"a": 1}\n' + '{"a": 2}\r' * 5)
    text = refusal(read_jsonl(path, BadRows(path, 4)))
    assert f"{path}:2: not JSON" in text and "ended by CR alone, as on old Macs" in text and "counted as 5 rows" in text
    ledger = BadRows(path, 5)
    assert len(list(read_jsonl(path, ledger))) == 1 and (ledger.rows, ledger.skipped) == (6, 5)


def test_a_mark_inside_the_file_tells_that_two_were_joined(tmp_path):
    path = put(tmp_path / "a.jsonl", '{"a": 1}\n\ufeff{"a": 2}\n')
    assert f"{path}:2: a byte order mark inside the file: were two files joined?" in refusal(read_jsonl(path))
    path = put(tmp_path / "a.csv", "query,title\na,b\n\ufeffc,d\n")
    assert f"{path}:3: a byte order mark inside the file" in refusal(read_csv(path))


def test_a_name_given_twice_among_very_many_is_found_at_once(tmp_path):
    names = ", ".join(f'"k{n}": 0' for n in range(200_000))
    path = put(tmp_path / "a.jsonl", "{" + names + ', "k199999": 1}')
    start = time.perf_counter()
    assert "field 'k199999' appears twice" in refusal(read_jsonl(path))
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_while_writing_is_named_with_the_file_that_is_missing_then(tmp_path, monkeypatch, number):
    def fail(_):
        raise OSError(number, "the disk's own words")

    path = tmp_path / "out.jsonl"
    write_jsonl(path, [{"a": 1}])
    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match=r"the disk's own words.*out\.jsonl") as caught:
        write_jsonl(path, [{"a": 2}])
    assert caught.value.errno == number and [file.name for file in tmp_path.iterdir()] == ["out.jsonl"]
    assert list(read_jsonl(path)) == [(1, {"a": 1})]


def test_what_json_cannot_hold_is_named_by_its_row(tmp_path):
    with pytest.raises(ValueError, match=r"out\.jsonl:2: Out of range float"):
        write_jsonl(tmp_path / "out.jsonl", [{"a": 1.0}, {"a": float("nan")}])
