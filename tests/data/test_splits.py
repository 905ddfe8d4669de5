"""One's own data are divided by query, the same way every time, and never judged on the embedded shop."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

import pytest

from taosr1.data.flags import ReadFlags
from taosr1.data.judgements import Judgement, write_judgements
from taosr1.data.splits import AUTO, load_splits, resolved, resolved_of_pairs, say_trained_on, split_by_query
from taosr1.runtime.files import write_json


@dataclass(frozen=True)
class Settings(ReadFlags):
    data: str = ""
    dev: str = AUTO
    test: str = AUTO
    split: str = ""
    dev_split: str = ""
    dev_rows: int = 1000
    seed: int = 0


def graded(queries, items=4, shift=0):
    pairs = [(query, item) for query in range(queries) for item in range(items)]
    return [Judgement(f"query {q}", f"item {q}-{i}", grade=1 + (q * shift + i) % 4) for q, i in pairs]


def save(path, rows):
    write_judgements(path, rows)
    return str(path)


def load(data, **settings):
    return load_splits(resolved(Settings(data=data, **settings)))


def queries(rows):
    return {row.query for row in rows}


@pytest.mark.parametrize("seed", [0, 1, 7])
@pytest.mark.parametrize("rows", [graded(50), graded(300, 1, 1), graded(20, 7, 3), graded(6), graded(2)])
def test_no_query_is_in_both_parts_and_both_have_every_grade(rows, seed):
    train, dev = split_by_query(rows, seed)
    assert not queries(train) & queries(dev)
    assert sorted(map(repr, train + dev)) == sorted(map(repr, rows)) and train and dev
    assert {row.grade for row in train} == {row.grade for row in dev} == {1, 2, 3, 4}
    if len(queries(rows)) >= 20:
        assert 0.15 < len(dev) / len(rows) < 0.3


def test_the_division_depends_on_the_seed_and_not_on_the_order_of_the_rows():
    rows = graded(60, 3, 1)
    shuffled = random.Random(5).sample(rows, len(rows))
    held = [queries(split_by_query(rows, seed)[1]) for seed in (0, 1)]
    assert queries(split_by_query(shuffled, 0)[1]) == held[0] != held[1]


@pytest.mark.parametrize("spelled", [("Red Mug", "red mug"), ("red  mug", "RED MUG"), ("red mug", " red mug ")])
def test_spellings_of_one_query_stay_together(spelled):
    rows = [Judgement(spelled[n % 2], f"mug {n}", grade=1 + n % 4) for n in range(8)] + graded(8)
    for part in split_by_query(rows, 0):
        assert len(queries(part) & set(spelled)) in (0, 2)


def test_a_rare_grade_of_one_query_stays_in_training():
    rows = [*graded(30, 3), Judgement("rare", "thing", grade=4)]
    for seed in range(20):
        train, dev = split_by_query(rows, seed)
        assert "rare" in queries(train) and {row.grade for row in dev} == {1, 2, 3}


def test_one_large_query_is_not_set_aside():
    rows = [Judgement("large", f"item {n}", grade=1 + n % 4) for n in range(200)] + graded(20)
    for seed in range(20):
        assert "large" in queries(split_by_query(rows, seed)[0])


def test_own_data_without_dev_are_divided_and_it_is_said(tmp_path, capsys):
    path = save(tmp_path / "own.jsonl", graded(50))
    rows = load(path)
    assert len(rows.data) == 160 and len(rows.dev) == 40 and rows.test == []
    assert "no --dev: 40 rows of 10 queries of --data are set aside for it" in capsys.readouterr().err
    assert load(path) == rows
    assert len(load(path, dev_rows=12).dev) == 12  # no more than are used is taken from training


@pytest.mark.parametrize("data", ["synthetic:labelled*4", "world:labelled", "synthetic:dev,synthetic:reasoned"])
def test_the_embedded_shop_has_its_own_dev_and_test_rows(data):
    settings = resolved(Settings(data=data))
    assert (settings.dev, settings.test) == ("synthetic:dev", "synthetic:test")


def test_beside_ones_own_data_the_shop_is_only_trained_on(tmp_path):
    path = save(tmp_path / "own.jsonl", graded(10))
    rows = load(f"{path},synthetic:labelled*30")
    assert len(rows.data) == 62 and {row.source for row in rows.dev} == {path}


@pytest.mark.parametrize(
    ("rows", "split", "message"),
    [
        (graded(1), "", r"--dev is missing, and --data cannot be divided by query \(one query in 4 rows\): give --dev"),
        ([Judgement("q", str(n), grade=1 + n % 4, extra={"split": "ab"[n % 2]}) for n in range(8)], "a", "--dev-split"),
        (
            [Judgement(f"q{n}", "t", grade=4, extra={"labelled_by": "judge"}) for n in range(9)],
            "",
            "0 queries with grades of people",
        ),
    ],
)
def test_data_that_cannot_be_divided_need_dev_rows(tmp_path, rows, split, message):
    with pytest.raises(ValueError, match=message):
        load(save(tmp_path / "own.jsonl", rows), split=split)


def test_pseudo_labels_are_never_set_aside_and_never_given_as_dev_rows(tmp_path):
    pool = [Judgement(f"p{n}", "t", grade=1 + n % 4, extra={"labelled_by": "judge"}) for n in range(20)]
    own, labelled = save(tmp_path / "own.jsonl", graded(10)), save(tmp_path / "pool.jsonl", pool)
    rows = load(f"{own},{labelled}")
    assert {row.source for row in rows.dev} == {own} and len(rows.data) == 52
    for settings in ({"dev": labelled}, {"dev": own, "test": labelled}):
        with pytest.raises(ValueError, match="pool.jsonl:1: field 'grade' is the answer of a judge"):
            load(own, **settings)


def test_rows_of_a_query_that_is_set_aside_are_left_out_of_training_wherever_they_come_from(tmp_path, capsys):
    again = [Judgement(row.query.upper(), "other", grade=2, extra={"labelled_by": "judge"}) for row in graded(10, 1)]
    own, pool = save(tmp_path / "own.jsonl", graded(10)), save(tmp_path / "pool.jsonl", again)
    rows = load(f"{own},{pool}")
    assert not {row.query.lower() for row in rows.data} & queries(rows.dev) and len(rows.dev) == 8
    assert len(rows.data) == 32 + 8 and "2 rows of the same queries" in capsys.readouterr().err


def test_dev_split_without_dev_takes_the_rows_of_data(tmp_path, capsys):
    rows = [Judgement(f"q{n}", "t", grade=1 + n % 4, extra={"split": ("train", "dev")[n % 2]}) for n in range(20)]
    path = save(tmp_path / "own.jsonl", rows)
    found = load(path, split="train", dev_split="dev")
    assert len(found.data) == len(found.dev) == 10 and not queries(found.data) & queries(found.dev)
    assert capsys.readouterr().err == ""
    load(path)
    assert "column 'split' with dev (10), train (10), and all rows are trained on" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["dev", "test"])
def test_rows_that_are_measured_and_trained_on_are_warned_about(tmp_path, capsys, name):
    own, other = save(tmp_path / "own.jsonl", graded(9)), save(tmp_path / "other.jsonl", graded(12)[30:])
    load(own, **{"dev": other, "test": "", name: other})
    said = capsys.readouterr().err
    assert f"warning: 6 of 18 pairs of --{name} are in --data too" in said
    assert ("warning: 18 of 18 pairs of --test are in --dev too" in said) == (name == "test")


@pytest.mark.parametrize(
    ("trained", "measured", "warned"),
    [
        ({"data": "own.jsonl"}, ("own.jsonl", ""), True),
        ({"data": "synthetic:labelled,own.jsonl", "split": "train"}, ("./own.jsonl", "train"), True),
        ({"data": "o*.jsonl"}, ("other.jsonl,own.jsonl", ""), True),
        ({"data": "own.jsonl", "split": "train"}, ("own.jsonl", "test"), False),
        ({"data": "own.jsonl"}, ("other.jsonl", ""), False),
        ({"data": "synthetic:labelled"}, ("synthetic:labelled", ""), False),
    ],
)
@pytest.mark.parametrize("stages", [1, 2])
def test_a_run_is_not_measured_on_its_own_data_in_silence(
    tmp_path, monkeypatch, capsys, trained, measured, warned, stages
):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "own.jsonl", graded(1))
    for name, config in (("first", trained), ("second", {"data": "later.jsonl", "model": "first"})):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        write_json(tmp_path / name / "config.json", config)
    say_trained_on(("first", "second")[stages - 1], *measured)
    assert ("warning: --model first was trained on rows of --data" in capsys.readouterr().err) == warned


@pytest.mark.parametrize(
    ("mined_from", "dev"),
    [
        ("synthetic:reasoned,synthetic:labelled", "synthetic:dev"),
        ("synthetic:reasoned*40", "synthetic:dev"),
        ("mine.jsonl", None),
        ("synthetic:reasoned,mine.jsonl", None),
        ("", None),
    ],
)
def test_pairs_that_were_mined_from_the_shop_alone_take_its_dev_rows(tmp_path, mined_from, dev):
    settings = Settings(data=str(tmp_path / "pairs.jsonl"))
    if mined_from:
        write_json(tmp_path / "pairs.jsonl.counts.json", {"config": {"data": mined_from}})
    if dev:
        assert resolved_of_pairs(settings).dev == dev
    else:
        assert resolved_of_pairs(settings).dev == ""
    assert resolved_of_pairs(Settings(data="p", dev="mine.csv")).dev == "mine.csv"


def test_a_division_of_many_queries_is_quick():
    rows = graded(20_000, 1, 1)
    train, dev = split_by_query(rows, 0)
    assert Counter(row.grade for row in dev).keys() == {1, 2, 3, 4} and len(dev) == 4000 and len(train) == 16_000


@pytest.mark.parametrize("column", ["split", "Split", " SPLIT"])
@pytest.mark.parametrize("values", [("Train", " test "), ("TRAIN", "Test"), ("train", "test")])
def test_the_split_of_a_row_is_found_whatever_its_case_and_spaces(tmp_path, capsys, column, values):
    lines = [f"q{n},item {n},{1 + n % 4},{values[n // 8]}\n" for n in range(16)]
    path = tmp_path / "rows.csv"
    path.write_text(f"query,title,grade,{column}\n{''.join(lines)}", encoding="utf-8")
    found = load(str(path), split="train", dev_split=" TEST")
    assert [len(rows) for rows in found] == [8, 8, 0] and not queries(found.data) & queries(found.dev)
    load(str(path))
    assert "'split' with test (8), train (8), and all rows are trained on" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["fold", "Teil", "x"])
def test_a_split_under_another_name_is_named_with_columns(tmp_path, name):
    rows = [f"q{n},item {n},{1 + n % 4},{('A', 'b')[n % 2]}\n" for n in range(16)]
    (tmp_path / "rows.csv").write_text(f"query,title,grade,{name}\n{''.join(rows)}", encoding="utf-8")
    found = load(str(tmp_path / "rows.csv"), split="a", dev_split="b", columns=f"{name}=split")
    assert [len(rows) for rows in found] == [8, 8, 0]
