"""The ledger of a file: how bad rows are named, counted and summed up."""

from __future__ import annotations

import json

import pytest

from taosr1.data.judgements import iter_judgements, read_judgements
from taosr1.runtime.bad_rows import NAMED, BadRows, kind_of, shorten
from taosr1.runtime.jsonl import read_jsonl

GOOD = {"query": "red boots", "title": "Boots, red", "grade": 4}


def save(path, rows):
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return path


def test_many_bad_rows_are_counted_by_kind_and_only_the_first_are_named(tmp_path, capsys):
    rows = [GOOD, "{", {**GOOD, "query": ""}, {**GOOD, "query": " ", "title": 5.5}, "[]"] * 2000
    path = save(tmp_path / "a.jsonl", rows)
    assert len(read_judgements(path, max_bad_rows=8000)) == 2000
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == NAMED + 2
    assert [line.split(":")[1] for line in printed[:4]] == ["2", "3", "4", "5"]
    assert printed[NAMED] == f"... and more in {path}: from here on they are counted, not named"
    assert printed[-1] == f"{path}: skipped 8000 of 10000 rows: field 'query' 4000, not JSON 2000, a JSON list 2000"


def test_as_many_bad_rows_as_are_named_need_no_further_word(tmp_path, capsys):
    path = save(tmp_path / "a.jsonl", [GOOD, *["{"] * NAMED])
    read_judgements(path, max_bad_rows=NAMED)
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == NAMED + 1 and printed[-1].endswith(f"skipped {NAMED} of {NAMED + 1} rows: not JSON {NAMED}")


def test_a_good_file_needs_no_word_and_one_bad_row_too_many_is_the_only_one(tmp_path, capsys):
    read_judgements(save(tmp_path / "a.jsonl", [GOOD] * 3), max_bad_rows=5)
    assert capsys.readouterr().err == ""
    path = save(tmp_path / "a.jsonl", [GOOD, "{", "{"])
    with pytest.raises(ValueError, match=r"a\.jsonl:3: not JSON.*more than the 1 of --max-bad-rows"):
        read_judgements(path, max_bad_rows=1)
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_who_stops_reading_early_still_hears_how_many_were_skipped(tmp_path, capsys):
    path = save(tmp_path / "a.jsonl", ["{", GOOD, GOOD])
    rows = iter_judgements(path, BadRows(path, 1))
    next(rows)
    rows.close()
    assert capsys.readouterr().err.splitlines()[-1] == f"{path}: skipped 1 of 2 rows: not JSON 1"


def test_a_caller_may_refuse_rows_of_its_own_and_they_are_counted_too(tmp_path, capsys):
    path = save(tmp_path / "a.jsonl", [{"n": number} for number in range(4)])
    ledger = BadRows(path, 2)
    for line, row in read_jsonl(path, ledger):
        if row["n"] % 2:
            ledger.add(line, f"field 'n' is {row['n']}, expected an even one")
    assert (ledger.rows, ledger.skipped, dict(ledger.kinds)) == (4, 2, {"field 'n'": 2})
    assert capsys.readouterr().err.splitlines()[-1] == f"{path}: skipped 2 of 4 rows: field 'n' 2"


@pytest.mark.parametrize(
    ("problem", "kind"),
    [
        ("field 'grade' is 5, expected 1-4", "field 'grade'"),
        ("not JSON: Expecting value at column 3", "not JSON"),
        ("not UTF-8: byte 0xe9", "not UTF-8"),
        ("12 cells, expected 3 as in the header", "N cells"),
        ("NUL byte in the text (was the file damaged in a crash?)", "NUL byte in the text"),
        ("nothing is said about the product: title, brand are all empty", "nothing is said about the product"),
        (":", "other"),
        ("", "other"),
    ],
)
def test_a_kind_is_a_problem_without_its_particulars(problem, kind):
    assert kind_of(problem) == kind


def test_kinds_and_messages_are_bounded_whatever_a_file_invents(tmp_path, capsys):
    names = ["column " + "".join("abcdefghij"[int(digit)] for digit in str(n)) for n in range(300)]
    rows = [f'{{"query": "q", "title": "t", "{name}": 1, "{name}": 2}}' for name in names]
    rows.append({**GOOD, "grade": "x" * 2**20})
    path = save(tmp_path / "a.jsonl", [GOOD, *rows])
    read_judgements(path, max_bad_rows=1000)
    printed = capsys.readouterr().err
    assert len(printed) < 10_000 and "skipped 301 of 302 rows" in printed and ", other " in printed
    counts = [int(part.rpartition(" ")[2]) for part in printed.splitlines()[-1].rpartition(" rows: ")[2].split(", ")]
    assert sum(counts) == 301
    with pytest.raises(ValueError) as caught:
        BadRows("a.jsonl").add(1, "y" * 10_000)
    assert len(str(caught.value)) < 600


def test_long_text_is_shortened_to_the_limit():
    assert shorten("abc", 5) == "abc" and shorten("abcdefgh", 5) == "ab..." and len(shorten("x" * 100)) == 60


def test_a_negative_allowance_is_refused():
    with pytest.raises(ValueError, match="--max-bad-rows is -1, expected 0 or more"):
        BadRows("a.jsonl", -1)
