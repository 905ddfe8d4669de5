"""ESCI rows as judgements: the real slice where it lies beside the checkout, made-up rows and parquet everywhere."""

import csv
import gzip
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from taosr1.data.esci import esci_row, is_esci, keep_split, plain_text, query_kind
from taosr1.data.judgements import Judgement, parse_judgement, read_judgements, write_judgements

ESCI = Path(__file__).resolve().parents[2].parent / "shared/data/esci_us/pairs.jsonl.gz"
needs_esci = pytest.mark.skipif(not ESCI.exists(), reason=f"the real ESCI slice is not at {ESCI}")

ROW = {
    "query_id": 7,
    "query": "bed sheets not polyester",
    "product_id": "B01",
    "esci_label": "S",
    "split": "train",
    "product_title": "Sheet &amp; Pillow Set <queen>",
    "product_brand": "Simplo",
    "product_color": "Navy; Blue",
    "product_category": ["Home & Kitchen", "Bedding"],
    "product_bullet_point": "SOFT: brushed<br>twice\n\nWashable; 60 C",
    "product_description": "<p>Made of &lt;b&gt;cotton&lt;/b&gt;.</p>\n<ul><li>fits <12 inch</li></ul>",
}
EXAMPLES = [
    {
        "example_id": 0,
        "query": "red mug",
        "query_id": 1,
        "product_id": "A",
        "product_locale": "us",
        "esci_label": "E",
        "small_version": 1,
        "large_version": 1,
        "split": "train",
    },
    {
        "example_id": 1,
        "query": "red mug",
        "query_id": 1,
        "product_id": "B",
        "product_locale": "us",
        "esci_label": "I",
        "small_version": 0,
        "large_version": 1,
        "split": "test",
    },
    {
        "example_id": 2,
        "query": "taza roja",
        "query_id": 2,
        "product_id": "A",
        "product_locale": "es",
        "esci_label": "C",
        "small_version": 0,
        "large_version": 1,
        "split": "test",
    },
]
PRODUCTS = [
    {
        "product_id": name,
        "product_title": f"{name} in {locale}",
        "product_description": None,
        "product_bullet_point": None,
        "product_brand": None,
        "product_color": "Red",
        "product_locale": locale,
    }
    for name in "CBA"
    for locale in ("us", "es")
]


def test_an_esci_row_is_mapped_field_by_field():
    row = parse_judgement(ROW)
    assert row == Judgement(
        query="bed sheets not polyester",
        title="Sheet & Pillow Set <queen>",
        brand="Simplo",
        attributes="colour: Navy, Blue; feature: SOFT: brushed twice; feature: Washable, 60 C",
        category="Home & Kitchen > Bedding",
        description="Made of cotton . fits <12 inch",
        grade=3,
        query_kind="negation",
        query_id="7",
        item_id="B01",
        extra={name: value for name, value in ROW.items() if name not in ("query", "query_id")},
    )


@pytest.mark.parametrize(
    ("label", "grade"),
    [("E", 4), ("S", 3), ("C", 2), ("I", 1), ("exact", 4), ("complement", 2), (None, None), ("", None)],
)
def test_labels_keep_their_order_as_grades(label, grade):
    assert parse_judgement({**ROW, "esci_label": label}).grade == grade


def test_an_unknown_label_is_refused_with_file_and_line(tmp_path):
    (tmp_path / "esci.jsonl").write_text(json.dumps({**ROW, "esci_label": "X"}) + "\n")
    with pytest.raises(ValueError, match="esci.jsonl:1: field 'esci_label' is 'X', expected E, S, C or I"):
        read_judgements(tmp_path / "esci.jsonl")


def test_empty_and_missing_product_fields_are_empty_text():
    bare = {"query": "mug", "product_title": "Mug", "product_brand": None, "product_color": "", "esci_label": "E"}
    assert parse_judgement(bare) == Judgement(
        "mug",
        "Mug",
        grade=4,
        query_kind="plain",
        extra={"product_title": "Mug", "product_brand": None, "product_color": "", "esci_label": "E"},
    )


@pytest.mark.parametrize("label", ["X", "EE", True, 4, ["E"], {"E": 1}])
def test_another_label_is_refused(label):
    with pytest.raises(ValueError, match="field 'esci_label' is .* expected E, S, C or I"):
        parse_judgement({**ROW, "esci_label": label})


def test_a_column_of_our_own_in_an_esci_row_is_kept_and_a_prediction_is_no_label():
    row = parse_judgement(
        {**ROW, "brand": "Ours", "query_kind": "knowledge", "item_id": "i9", "category": "", "grade": 1}
    )
    assert (row.brand, row.query_kind, row.item_id, row.category, row.grade) == (
        "Ours",
        "knowledge",
        "i9",
        "Home & Kitchen > Bedding",
        3,
    )
    assert parse_judgement({**ROW, "esci_label": None, "grade": 1}).grade == 1


@pytest.mark.parametrize("spell", [str.upper, str.title, lambda name: f" {name} ", lambda name: name.replace("_", " ")])
def test_esci_columns_are_read_in_any_case(spell):
    assert replace(parse_judgement({spell(name): value for name, value in ROW.items()}), extra={}) == replace(
        parse_judgement(ROW), extra={}
    )


def test_bullet_points_are_text_or_nothing():
    assert "None" not in parse_judgement({**ROW, "product_bullet_point": ["soft", None, ""]}).attributes
    with pytest.raises(ValueError, match="field 'product_bullet_point' is {'a': 1}, expected text"):
        parse_judgement({**ROW, "product_bullet_point": [{"a": 1}]})


def test_labels_without_product_text_say_what_to_do():
    with pytest.raises(ValueError, match="ESCI labels without product text. Give the folder with both parquet files"):
        parse_judgement(EXAMPLES[0])


def test_our_own_rows_are_never_taken_for_esci(tmp_path):
    assert is_esci(ROW) and is_esci(EXAMPLES[0]) and not is_esci({"query": "a", "title": "b", "esci_label": "E"})
    row = parse_judgement(ROW)
    write_judgements(tmp_path / "ours.jsonl", [row])
    assert read_judgements(tmp_path / "ours.jsonl") == [row]


def test_the_original_row_is_not_changed():
    before = json.dumps(ROW)
    esci_row(ROW)
    assert json.dumps(ROW) == before


@pytest.mark.parametrize(
    ("query", "kind"),
    [
        ("wall lamp without cord", "negation"),
        ("bite NOT collar", "negation"),
        ("no show socks", "negation"),
        ("what to wear, not wool", "negation"),
        ("how to clean a pan", "question"),
        ("fits a twin bed?", "question"),
        ("notebook", "plain"),
        ("knot pillow", "plain"),
        ("showerhead", "plain"),
        ("北欧 地毯", "plain"),
    ],
)
def test_the_kind_of_a_query_is_guessed_from_whole_words(query, kind):
    assert query_kind(query) == kind


def test_html_is_removed_and_everything_else_stays():
    assert plain_text("a&nbsp;b<br/>c &lt;br&gt; d<!-- x -->e 1 < 2 > 0 <3") == "a b c d e 1 < 2 > 0 <3"
    assert plain_text("Mug <red>", tags=False) == "Mug <red>"
    assert len(plain_text("<a" * 500_000)) == 1_000_000  # unclosed tags: linear, not quadratic


def test_keep_split_needs_a_split_column():
    with pytest.raises(ValueError, match="the data: no row has split 'test', no 'split' column"):
        keep_split([Judgement("q", "t")], "test")


def test_esci_rows_in_csv_read_like_esci_rows_in_jsonl(tmp_path):
    rows = [{**ROW, "query_id": "7", "product_category": "Home & Kitchen > Bedding"}]
    with gzip.open(tmp_path / "esci.csv.gz", "wt", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (tmp_path / "esci.jsonl").write_text(json.dumps(rows[0]))
    assert read_judgements(tmp_path / "esci.csv.gz") == read_judgements(tmp_path / "esci.jsonl")


# --- parquet ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def write_parquet(tmp_path):
    arrow = pytest.importorskip("pyarrow", reason="parquet needs the [data] extra: pip install -e '.[data]'")
    from pyarrow.parquet import write_table

    def write(name, rows):
        write_table(arrow.Table.from_pylist(rows), tmp_path / name)
        return tmp_path / name

    return write


def test_amazons_two_parquet_files_are_joined_in_the_order_of_the_examples(write_parquet, tmp_path):
    write_parquet("shopping_queries_dataset_products.parquet", PRODUCTS)
    examples = write_parquet("shopping_queries_dataset_examples.parquet", EXAMPLES)
    rows = read_judgements(tmp_path, need_grade=True)
    assert [(row.title, row.grade, row.extra["split"]) for row in rows] == [
        ("A in us", 4, "train"),
        ("B in us", 1, "test"),
        ("A in es", 2, "test"),
    ]
    assert rows[0].attributes == "colour: Red" and rows[0].brand == ""
    assert read_judgements(examples) == rows
    assert [row.item_id for row in read_judgements(tmp_path, split="test")] == ["B", "A"]


def test_an_example_without_its_product_is_a_bad_row(write_parquet, tmp_path, capsys):
    write_parquet("products.parquet", PRODUCTS[:3])  # C us, C es, B us
    write_parquet("examples.parquet", EXAMPLES)
    with pytest.raises(ValueError, match="examples.parquet:1: unknown product: A/us is not in products.parquet"):
        read_judgements(tmp_path / "examples.parquet")
    assert [row.title for row in read_judgements(tmp_path, max_bad_rows=2)] == ["B in us"]
    printed = capsys.readouterr().err
    assert "examples.parquet:3: unknown product: A/es" in printed
    assert "examples.parquet: skipped 2 of 3 rows: unknown product 2" in printed


def test_a_joined_parquet_file_and_values_json_lacks(write_parquet, tmp_path):
    import datetime

    path = write_parquet("joined.parquet", [{**ROW, "product_price": float("nan"), "seen": datetime.date(2024, 5, 1)}])
    row = read_judgements(path)[0]
    assert (row.price, row.category, row.extra["seen"]) == ("", "Home & Kitchen > Bedding", "2024-05-01")
    write_judgements(tmp_path / "ours.jsonl", [row])
    assert read_judgements(tmp_path / "ours.jsonl") == [row]
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="broken.parquet: not a readable parquet file"):
        read_judgements(broken)


def test_damaged_parquet_data_is_named_and_never_a_bare_traceback(write_parquet, tmp_path):
    path = write_parquet("joined.parquet", [{**ROW, "product_id": str(number)} for number in range(500)])
    whole = path.read_bytes()
    for place in range(4, len(whole), max(1, len(whole) // 150)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x15]) + whole[place + 1 :])
        try:
            read_judgements(path, max_bad_rows=1000)  # a flipped bit of a text is a text
        except ValueError as problem:
            assert str(path) in str(problem)


def test_a_product_that_is_there_twice_has_to_be_the_same(write_parquet, tmp_path):
    write_parquet("examples.parquet", EXAMPLES)
    write_parquet("products.parquet", [*PRODUCTS, PRODUCTS[-1]])
    assert len(read_judgements(tmp_path)) == 3
    write_parquet("products.parquet", [*PRODUCTS, {**PRODUCTS[-1], "product_title": "another"}])
    with pytest.raises(ValueError, match="products.parquet:7: product A/es is there twice, with different columns"):
        read_judgements(tmp_path)


def test_without_pyarrow_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (tmp_path / "data.parquet").write_bytes(b"PAR1")
    with pytest.raises(ModuleNotFoundError, match=r"data.parquet: reading it needs pyarrow: pip install"):
        read_judgements(tmp_path / "data.parquet")


# --- the real slice ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_rows():
    return read_judgements(ESCI, need_grade=True)


@needs_esci
def test_no_real_row_is_lost_and_the_labels_add_up(real_rows):
    """The counts are those of the data's README: 3,490 + 1,176 rows."""
    assert len(real_rows) == 4666
    grades = {split: Counter(row.grade for row in keep_split(real_rows, split)) for split in ("train", "test")}
    assert grades["train"] == {4: 1889, 3: 909, 2: 158, 1: 534}
    assert grades["test"] == {4: 577, 3: 322, 2: 42, 1: 235}
    assert len({row.query_id for row in keep_split(real_rows, "test")}) == 27
    assert len({row.query for row in real_rows if row.query_kind == "negation"}) == 27


@needs_esci
def test_of_the_real_pairs_only_the_contradictions_are_said_with_their_count(capsys):
    """ESCI gave 7 items another grade than an earlier item of the same query, word for word the same product."""
    read_judgements(ESCI, need_grade=True)
    texts = ("query", "product_title", "product_brand", "product_color", "product_bullet_point", "product_description")
    first, contradicting = {}, []
    with gzip.open(ESCI, "rt", encoding="utf-8") as stream:
        for line, fields in enumerate(map(json.loads, stream), start=1):
            key = tuple(str(fields[name]) for name in texts)
            if first.setdefault(key, fields["esci_label"]) != fields["esci_label"]:
                contradicting.append(line)
    said = capsys.readouterr().err
    assert len(contradicting) == 7 and said.count("\n") == 1
    assert "pairs.jsonl.gz: 7 rows contradicted an earlier row" in said
    assert f"pairs.jsonl.gz:{contradicting[0]} (grade 3, it is 1 in line 251)" in said


@needs_esci
def test_real_rows_keep_every_input_column_and_survive_a_round_trip(real_rows, tmp_path):
    write_judgements(tmp_path / "ours.jsonl", real_rows[::10])
    assert read_judgements(tmp_path / "ours.jsonl") == real_rows[::10]
    with gzip.open(ESCI, "rt", encoding="utf-8") as stream:
        for line, row in zip(stream, real_rows):
            raw = json.loads(line)
            assert {name: raw[name] for name in row.extra} == row.extra
            assert set(raw) - set(row.extra) == {"query", "query_id"}


@needs_esci
def test_real_text_is_clean_and_nothing_is_cut(real_rows):
    assert all(row.title and row.query for row in real_rows)
    assert not any("\n" in row.description or "&amp;" in row.description for row in real_rows)
    assert max(len(row.description) for row in real_rows) > 1_500
    assert all(
        part.startswith(("colour: ", "feature: ")) for row in real_rows for part in row.attributes.split("; ") if part
    )
