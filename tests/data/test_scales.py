"""Grades in other scales: what is read, what stops and with which map, and that the map which is named is right."""

from __future__ import annotations

import json
import re
import shlex

import pytest

from taosr1.data.flags import ReadFlags
from taosr1.data.judgements import read_judgements
from taosr1.data.scales import GradesError, parse_map
from taosr1.data.sources import load_pairs, load_rows
from taosr1.runtime.messages import say_once


def table(path, grades, name="rows.csv"):
    lines = [f'"lamp {number}","desk lamp {number}","{grade}"\n' for number, grade in enumerate(grades)]
    (path / name).write_text("query,title,grade\n" + "".join(lines), encoding="utf-8")
    return str(path / name)


def grades_of(path, grades="", **needs):
    return [row.grade for row in load_rows(path, ReadFlags(grades=grades), **{"need_grade": True, **needs})]


@pytest.mark.parametrize(
    ("spelled", "expected"),
    [
        (["Excellent", "related", "MISMATCH", "Irrelevant"], [4, 3, 2, 1]),
        (["4-Excellent", "3 - related", " 2-Mismatch ", "1.0"], [4, 3, 2, 1]),
        (["4,0", "3", "2.0", "1"], [4, 3, 2, 1]),
        (["Excellent", "3", "", "1"], [4, 3, None, 1]),
    ],
)
def test_our_digits_and_names_are_read_without_a_map(tmp_path, spelled, expected):
    assert grades_of(table(tmp_path, spelled), need_grade=None) == expected


@pytest.mark.parametrize(
    ("spelled", "grades", "expected"),
    [
        (["Exact", "partial", " IRRELEVANT "], "Exact=4,Partial=3,Irrelevant=1", [4, 3, 1]),
        (["0", "1", "1.0"], "0=1, 1=4", [1, 4, 4]),
        (["1", "2", "3", "4"], "1=4,2=3,3=2,4=1", [4, 3, 2, 1]),  # 1 is best
        (["2.0", "0.5", "1"], "2=Excellent,0.5=Mismatch,1=3-Related", [4, 2, 3]),
        (["perfect match", "a=b", "so so"], "Perfect Match=4,a=b=1,so so=2", [4, 1, 2]),
        (["-1", "0", "1"], "-1=1,0=2,1=4", [1, 2, 4]),
        (["1", "?", "4"], "1=1,?=none,4=4", [1, None, 4]),
        (["gut", "Excellent", "schlecht"], "gut=3,schlecht=1", [3, 4, 1]),  # our own names count beside a map
        (["Exact", "Partial", "Irrelevant"], "wands", [4, 3, 1]),
        (["0", "1", "true", "No"], "binary", [1, 4, 4, 1]),
        (["0", "1", "2", "3"], "0-3", [1, 2, 3, 4]),
        (["E", "s", "Complement", "I"], "esci", [4, 3, 2, 1]),
    ],
)
def test_a_map_or_a_preset_reads_the_files_own_grades(tmp_path, spelled, grades, expected):
    assert grades_of(table(tmp_path, spelled), grades, need_grade=None) == expected


@pytest.mark.parametrize(
    ("spelled", "right"),
    [
        (["1", "0", "1", "1"], [4, 1, 4, 4]),
        (["0", "0"], [1, 1]),
        (["3", "2", "0", "1"], [4, 3, 1, 2]),
        (["2", "3", "0"], [3, 4, 1]),
        (["2", "0", "1"], [4, 1, 3]),
        (["4", "0", "1", "2", "3"], [4, 1, 1, 2, 3]),
        (["5", "1", "2", "3", "4"], [4, 1, 1, 2, 3]),
        (["0.0", "0.5", "1.0"], [1, 3, 4]),
        (["-1", "1", "1"], [1, 4, 4]),
        (["TRUE", "FALSE", "true"], [4, 1, 4]),
        (["yes", "no", "no"], [4, 1, 1]),
        (["y", "n", "Y"], [4, 1, 4]),
        (["Relevant", "Irrelevant", "not relevant"], [4, 1, 1]),
        (["Exact", "Irrelevant", "Partial"], [4, 1, 3]),
        (["E", "S", "I", "C"], [4, 3, 1, 2]),
        (["exact", "substitute", "complement"], [4, 3, 2]),
    ],
)
@pytest.mark.parametrize("skipped", [0, 1000])
def test_another_scale_stops_and_every_flag_that_the_error_names_reads_it_right(tmp_path, spelled, right, skipped):
    path = table(tmp_path, spelled)
    pattern = r"rows\.csv:\d+: field .grade. is .*This looks like .*values found: "
    with pytest.raises(GradesError, match=pattern) as stop:
        load_rows(path, ReadFlags(max_bad_rows=skipped), need_grade=True)
    assert "--max-bad-rows" not in str(stop.value)
    flags = re.findall(r"--grades[ =]('[^']*'|[^\s,;]+(?:,[^\s,;]+=[1-4])*)", str(stop.value))
    assert flags
    for flag in flags:
        assert grades_of(path, shlex.split(flag)[0]) == right


@pytest.mark.parametrize(
    ("spelled", "expected"),
    [
        (["good", "bad", "3", "good"], "--grades 3=GRADE,bad=GRADE,good=GRADE, each GRADE one of 1-4"),
        (["Relevant", "Partly relevant", "Irrelevant"], "--grades 'partly relevant=GRADE,relevant=GRADE'"),
        (["好", "差", "好"], "好=GRADE"),
        (["0.93", "0.12", "0.5", "1"], "scores or averages"),
        (["75 %", "20 %", "100 %"], "scores or averages"),
        (["2.33", "3.67", "4", "1"], "scores or averages"),
        ([str(number) for number in range(0, 101, 5)], "cut them into grades 1-4 first"),
        (["0", "1", "2", "3", "4", "5", "6"], "This looks like another scale"),
        (["A", "B", "D", "A"], "--grades a=GRADE,b=GRADE,d=GRADE"),
        (["1", "10", "10", "5"], "--grades 1=GRADE,5=GRADE,10=GRADE"),
        (["0 - bad", "1 - fair", "3 - perfect"], "0-bad=GRADE,1-fair=GRADE,3-perfect=GRADE"),
        (["★", "★★★★", "4", "★★"], "★★★★=GRADE"),
    ],
)
def test_a_scale_without_an_obvious_map_stops_and_shows_its_values(tmp_path, spelled, expected):
    with pytest.raises(GradesError) as stop:
        load_rows(table(tmp_path, spelled), ReadFlags(max_bad_rows=1000), need_grade=True)
    assert expected in str(stop.value)


@pytest.mark.parametrize("zero_at", [0, 57, 199])
def test_one_zero_among_two_hundred_grades_stops_wherever_it_is(tmp_path, zero_at):
    spelled = [str(1 + number % 3) for number in range(200)]
    spelled[zero_at] = "0"
    with pytest.raises(GradesError, match=rf"rows\.csv:{zero_at + 2}: field 'grade' is '0'.*0-based.*--grades 0-3"):
        load_rows(table(tmp_path, spelled), ReadFlags(max_bad_rows=50), need_grade=True)


@pytest.mark.parametrize("slip", ["9", "44", "x", "3?"])
def test_a_slip_among_many_grades_is_a_bad_row_like_others(tmp_path, slip):
    path = table(tmp_path, [*"1234" * 25, slip])
    with pytest.raises(ValueError, match=r"rows\.csv:102: field 'grade' is .*, expected 1-4 \(--max-bad-rows N"):
        load_rows(path, need_grade=True)
    assert len(load_rows(path, ReadFlags(max_bad_rows=1), need_grade=True)) == 100


@pytest.mark.parametrize(
    ("spelled", "grades", "unmapped"),
    [
        (["0", "1", "2"], "0=1,1=4", "2"),
        (["Exact", "Partial"], "Exact=4", "Partial"),
        (["1", "4", "0"], "1=4,4=1", "0"),
        (["1", "2", "3", "9"], "0-3", "9"),  # a slip, and a small file
    ],
)
@pytest.mark.parametrize("skipped", [0, 99])
def test_a_value_that_the_map_leaves_out_is_refused_by_name_and_line(tmp_path, spelled, grades, unmapped, skipped):
    line = spelled.index(unmapped) + 2
    shown = rf"rows\.csv:{line}: field 'grade' is '{unmapped}', which --grades does not.*add {unmapped}=GRADE to it"
    with pytest.raises(GradesError, match=shown):
        load_rows(table(tmp_path, spelled), ReadFlags(grades=grades, max_bad_rows=skipped), need_grade=True)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("Exact", "--grades has 'Exact', expected YOURS=OURS"),
        ("Exact=5", "--grades has 'Exact=5'"),
        ("0=0,1=4", "--grades has '0=0'"),
        ("=4", "--grades has '=4'"),
        ("a=4,A=3", "--grades gives 'a' twice: 4 and 3"),
        ("wand", "or one of wands, binary, 0-3, esci"),
    ],
)
def test_a_map_that_is_none_is_refused(spec, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_map(spec)


@pytest.mark.parametrize("spelled", [["0", "1"], ["Exact", "Partial"], ["0.3", "0.8", "0.1"], ["good", "bad"]])
def test_where_no_grade_is_needed_another_scale_is_left_out_whole_with_one_note(tmp_path, capsys, spelled):
    path = table(tmp_path, spelled)
    assert grades_of(path, need_grade=False) == [None] * len(spelled)
    assert capsys.readouterr().err.count("note: ") == 1
    pairs = load_pairs(path, need_grade=False)
    assert [raw["grade"] for raw, _ in pairs] == spelled  # what is written back is as it came


def test_where_no_grade_is_needed_a_slip_costs_its_own_row_alone(tmp_path):
    assert grades_of(table(tmp_path, [*"1234" * 25, "x"]), need_grade=False) == [*[1, 2, 3, 4] * 25, None]


@pytest.mark.parametrize("found", ["1", "12", "123", "1133"])
def test_a_column_without_a_four_says_what_was_assumed(tmp_path, capsys, found):
    assert grades_of(table(tmp_path, found)) == [int(grade) for grade in found]
    assert "no grade is 4" in capsys.readouterr().err
    grades_of(table(tmp_path, found + "4"))
    assert capsys.readouterr().err == ""


def test_the_assumption_of_a_preset_is_printed_once(tmp_path, capsys):
    say_once.cache_clear()
    path = table(tmp_path, "01")
    for _ in range(2):
        grades_of(path, "binary")
    assert capsys.readouterr().err == (
        "note: --grades binary: 0 (no, false) is read as 1-Irrelevant, 1 (yes, true, relevant) as 4-Excellent\n"
    )


@pytest.mark.parametrize(
    ("spelled", "names"),
    [
        (["Relevant, genau", "Relevant, ähnlich", "nein"], ['"Relevant, genau=4"', '"relevant, ähnlich=3"', "nein=1"]),
        (["yes, fully", "no"], ['"yes, fully"=4', "no=1"]),
        (["a=b, c", "1,5,2"], ['"a=b, c=4"', ' "1,5,2=2"']),
    ],
)
def test_a_grade_with_a_comma_is_named_in_quotes_as_the_error_shows_it(tmp_path, spelled, names):
    path = table(tmp_path, spelled * 2)
    mapped = parse_map(",".join(names))
    assert grades_of(path, ",".join(names)) == [mapped[name.lower()] for name in spelled * 2]
    with pytest.raises(GradesError) as stop:
        grades_of(path)
    shown = shlex.split(str(stop.value).partition("--grades ")[2].partition(", each")[0])
    assert parse_map(shown[0].replace("GRADE", "2")) == dict.fromkeys(map(str.lower, spelled), 2)


@pytest.mark.parametrize(
    ("spelled", "grades", "found"),
    [
        ("1234", "0-3", "they fit 1-4 as they are, and --grades reads 0, 1, 2, 3."),
        ("441", "0=1,1=2,2=3,3=4", "they fit 1-4"),
        ("1234", "0=1,1=3,2=4", "they fit 1-4"),
        ("0123", "1=1,2=1,3=2,4=3,5=4", "they are of another scale, and --grades reads 1, 2, 3, 4, 5."),
        ("12345", "0-3", "they are of another scale"),
    ],
)
def test_a_map_that_was_made_for_another_file_is_not_to_be_made_longer(tmp_path, spelled, grades, found):
    with pytest.raises(GradesError) as stop:
        grades_of(table(tmp_path, spelled), grades)
    assert f"{found}" in str(stop.value) and "write the grades of one as 1-4 first" in str(stop.value)
    assert "GRADE" not in str(stop.value)


@pytest.mark.parametrize(("spelled", "grades"), [("123", "0-3"), ("1234", "0-3,4=4"), ("12", "0=1,1=2,2=4")])
def test_a_map_with_a_zero_is_said_where_no_grade_is_zero(tmp_path, capsys, spelled, grades):
    grades_of(table(tmp_path, spelled), grades)
    assert "--grades reads 0 as 1, but no grade is 0" in capsys.readouterr().err
    grades_of(table(tmp_path, spelled + "0"), grades)
    assert "no grade is 0" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("spelled", "best"), [("012", 2), ("0123", 3), ("01234", 4), ("12345", 5), (["-1", "0", "1"], 1), ("012345", 5)]
)
def test_the_hint_for_another_scale_says_which_end_it_takes_for_the_best(tmp_path, spelled, best):
    with pytest.raises(GradesError, match=f", with {best} as the best "):
        grades_of(table(tmp_path, spelled))


@pytest.mark.parametrize(
    ("pairs", "count"),
    [([("E", 4), ("I", "Irrelevant")], 0), ([("E", 1), ("S", 3), ("C", 4)], 2), ([("exact", ""), ("I", "bad")], 1)],
)
def test_a_grade_beside_an_esci_label_that_says_something_else_is_counted(tmp_path, capsys, pairs, count):
    rows = [{"query": f"q{n}", "product_title": f"t{n}", "esci_label": a, "grade": b} for n, (a, b) in enumerate(pairs)]
    (tmp_path / "esci.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    load_rows(str(tmp_path / "esci.jsonl"), need_grade=True)
    found = f"{count} row{'s'[: count != 1]} had an esci_label and another grade, and the label was read"
    assert (found in capsys.readouterr().err) == (count > 0)


def test_without_its_label_the_own_grade_of_an_esci_row_is_read(tmp_path):
    (tmp_path / "esci.csv").write_text("query,product_title,esci_label,grade\nlamp,Desk lamp,E,2\n", encoding="utf-8")
    (row,) = load_rows(str(tmp_path / "esci.csv"), ReadFlags(columns="esci_label="), need_grade=True)
    assert row.grade == 2


def test_a_map_wins_over_the_grades_of_esci(tmp_path):
    rows = [{"query": f"q{n}", "product_title": f"t{n}", "esci_label": label} for n, label in enumerate("ESCI")]
    path = tmp_path / "esci.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert [row.grade for row in read_judgements(path, need_grade=True)] == [4, 3, 2, 1]
    mapped = read_judgements(path, ReadFlags(grades="E=4,S=2,C=1,I=1"), need_grade=True)
    assert [row.grade for row in mapped] == [4, 2, 1, 1]
    assert [row.extra["esci_label"] for row in mapped] == list("ESCI")
