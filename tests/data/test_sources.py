"""`--data`: files and synthetic pools, and the messages about what they lack."""

from __future__ import annotations

from dataclasses import replace

import pytest

from taosr1.data.flags import ReadFlags
from taosr1.data.judgements import read_judgements, write_judgements
from taosr1.data.sources import load_pairs, load_rows
from taosr1.synthetic.shop import read_pool
from taosr1.task.prompt import label_of_cot


@pytest.fixture(scope="module")
def reasoned():
    return read_pool("reasoned", 6)


def test_a_synthetic_pool_has_the_size_that_is_asked_for_under_either_spelling(reasoned):
    assert load_rows("synthetic:reasoned*6") == reasoned
    assert load_rows("world:reasoned*6") == reasoned  # the spelling until version 0.1
    assert load_rows("synthetic:reasoned*6", limit=2) == reasoned[:2]
    assert load_rows("synthetic:reasoned*6", seed=3) == read_pool("reasoned", 6, 3)


def test_the_explained_pool_is_the_labelled_one_with_true_reasons():
    labelled, explained = (
        load_rows("synthetic:labelled*200", seed=2),
        load_rows("synthetic:explained*200", seed=2, need_cot=True),
    )
    assert [replace(row, cot="") for row in explained] == labelled
    assert all(label_of_cot(row.cot) == row.grade for row in explained)


def test_a_file_is_read_and_cut(reasoned, tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    write_judgements(path, reasoned)
    assert load_rows(str(path), need_grade=True, need_cot=True) == reasoned
    assert load_rows(str(path), limit=4) == reasoned[:4]


def test_several_sources_are_joined_in_order(reasoned, tmp_path):
    path = tmp_path / "rows.jsonl"
    write_judgements(path, reasoned[:2])
    rows = load_rows(f"{path}, synthetic:dev*3,synthetic:test*2")
    assert rows == reasoned[:2] + read_pool("dev", 3) + read_pool("test", 2)
    assert load_rows(f"{path},synthetic:dev*3", limit=3) == rows[:3]
    with pytest.raises(ValueError, match=r"synthetic:unlabelled\*3: its pairs have no grade"):
        load_rows("synthetic:dev*3,synthetic:unlabelled*3", need_grade=True)


def test_split_keeps_the_rows_that_say_so(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("query,title,grade,split\na,b,4,train\nc,d,1,test\n", encoding="utf-8")
    assert [row.query for row in load_rows(str(path), split="test")] == ["c"]
    assert len(load_rows(str(path))) == 2


@pytest.mark.parametrize(
    "spec", ["world:", "synthetic:train", "synthetic:dev*x", "synthetic:dev*-3", "synthetic:dev*1.5"]
)
def test_an_unknown_pool_or_size_names_what_is_allowed(spec):
    with pytest.raises(
        ValueError,
        match="expected synthetic:NAME or synthetic:NAME\\*SIZE, NAME one of reasoned, labelled, unlabelled, dev, test",
    ):
        load_rows(spec)


def test_what_a_pool_lacks_is_said_with_the_way_out():
    with pytest.raises(
        ValueError,
        match="no grade; use synthetic:labelled or synthetic:reasoned, or grade them with train/label_pool.py",
    ):
        load_rows("synthetic:unlabelled*2", need_grade=True)
    with pytest.raises(
        ValueError,
        match="'cot' is missing.*use synthetic:reasoned or synthetic:explained, or write them with train/label_pool.py",
    ):
        load_rows("synthetic:labelled*2", need_cot=True)
    with pytest.raises(ValueError, match=r"synthetic:dev\*0: no rows"):
        load_rows("synthetic:dev*0")


def test_a_missing_file_a_wrong_grade_an_empty_file_and_a_negative_limit_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file at .*gone.jsonl: check --data"):
        load_rows(str(tmp_path / "gone.jsonl"))
    path = tmp_path / "rows.jsonl"
    path.write_text(
        '{"query": "a", "title": "b", "grade": 4}\n{"query": "a", "title": "b", "grade": 9}\n', encoding="utf-8"
    )
    with pytest.raises(ValueError, match=r"rows\.jsonl:2: field 'grade' is 9, expected 1-4"):
        load_rows(str(path))
    assert len(load_rows(str(path), ReadFlags(max_bad_rows=1))) == 1
    path.write_text('{"query": "a", "title": "b"}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: field 'grade' is missing"):
        load_rows(str(path), need_grade=True)
    path.write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match="no rows in this file"):
        load_rows(str(path))
    with pytest.raises(ValueError, match="-1 rows asked for, expected 0"):
        load_rows("synthetic:dev*3", limit=-1)


def put(folder, name, *queries):
    (folder / name).write_text("query,title\n" + "".join(f"{query},b\n" for query in queries), encoding="utf-8")
    return folder / name


def test_several_files_and_patterns_are_one_table_whose_rows_know_their_file_and_line(tmp_path, capsys):
    one, two = put(tmp_path, "part-1.csv", "a", "b"), put(tmp_path, "part-2.csv", "c")
    ten = put(tmp_path, "p10.csv", "d")
    found = load_rows(f"{tmp_path}/part-*.csv,{ten}")
    assert [(row.query, row.source, row.line) for row in found] == [
        ("a", str(one), 2), ("b", str(one), 3), ("c", str(two), 2), ("d", str(ten), 2)
    ]  # fmt: skip
    assert "part-*.csv: 2 files, read in this order: part-1.csv, part-2.csv" in capsys.readouterr().err
    assert [raw for raw, _ in load_pairs(f"{two},{one}", limit=2)] == [{"query": q, "title": "b"} for q in "ca"]
    assert [row.query for row in read_judgements(f"{two}, {one}")] == ["c", "a", "b"]


def test_a_file_whose_name_looks_like_a_list_or_a_pattern_is_one_file(tmp_path):
    for name in ("a,b.csv", "a[1].csv", "what?.csv"):
        assert [row.query for row in load_rows(str(put(tmp_path, name, "q")))] == ["q"]


def test_the_error_of_several_files_names_the_right_one(tmp_path):
    good, empty = put(tmp_path, "good.csv", "a"), put(tmp_path, "empty.csv")
    with pytest.raises(ValueError, match=r"empty\.csv: no rows in this file"):
        load_rows(f"{good},{empty}")
    with pytest.raises(FileNotFoundError, match="no file matches '.*none-.*': check --data"):
        load_rows(f"{good},{tmp_path}/none-*.csv")
    with pytest.raises(FileNotFoundError, match=r"no file at .*gone\.csv: check --data"):
        load_rows(f"{good},{tmp_path}/gone.csv")
    with pytest.raises(ValueError, match=r"names .*good\.csv twice"):
        load_rows(f"{good},{tmp_path}/g*.csv")
    with pytest.raises(ValueError, match="has an empty name"):
        load_rows(f"{good},")


def test_a_folder_of_wands_is_read_joined(tmp_path):
    for name, text in {
        "label": "id\tquery_id\tproduct_id\tlabel\n0\t7\t12\tExact\n1\t7\t13\tIrrelevant\n2\t8\t12\tPartial\n",
        "query": "query_id\tquery\tquery_class\n7\tsalon chair\tChairs\n8\tbed, wide\tBeds\n",
        "product": 'product_id\tproduct_name\tproduct_features\n12\tbed 5"\tcolor : red|w:2\n13\tmug\t\n',
    }.items():
        (tmp_path / f"{name}.csv").write_text(text, encoding="utf-8")
    rows = load_rows(str(tmp_path), ReadFlags(grades="wands"), need_grade=True)
    assert [(row.query, row.title, row.grade, row.query_id, row.item_id, row.line) for row in rows] == [
        ("salon chair", 'bed 5"', 4, "7", "12", 2), ("salon chair", "mug", 1, "7", "13", 3),
        ("bed, wide", 'bed 5"', 3, "8", "12", 4),
    ]  # fmt: skip
    assert rows[0].attributes == "color: red; w: 2"
    for name in ("label", "query", "product"):
        with pytest.raises(ValueError, match="join the two by their ids .the folder of WANDS or ESCI is read joined"):
            load_rows(str(tmp_path / f"{name}.csv"))
    (tmp_path / "product.csv").write_text("product_id\tproduct_name\n12\tbed\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"label.csv:3: unknown product_id: '13' is not in product.csv"):
        load_rows(str(tmp_path), ReadFlags(grades="wands"))
    assert len(load_rows(str(tmp_path), ReadFlags(grades="wands", max_bad_rows=1))) == 2


def test_parts_of_a_folder_and_addresses_are_named_as_they_can_be_read(tmp_path):
    (tmp_path / "part-0.csv").write_text("query,title\na,b\n", encoding="utf-8")
    (tmp_path / "_SUCCESS").touch()
    assert [row.query for row in load_rows(f"{tmp_path}/*")] == ["a"]
    with pytest.raises(FileNotFoundError, match=r"name its files .'.*/\*\.csv'"):
        load_rows(str(tmp_path))
    for address in ("s3://bucket/a.csv", "https://example.org/a.csv", "gs://bucket/part-*.csv"):
        with pytest.raises(ValueError, match="--data .*is an address, and only files are read") as caught:
            load_rows(address)
        assert address in str(caught.value)
