"""Catalogues of any shape are read, refused by file, line and field, and are sources of --data."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from taosr1.data.catalogue import read_catalogue
from taosr1.data.flags import ReadFlags
from taosr1.data.gold import LABELLED_BY
from taosr1.data.judgements import Judgement, write_judgements
from taosr1.data.sources import load_pairs, load_rows, same_world
from taosr1.data.splits import resolved
from tests.synthetic.catalogues import tidy, write_jsonl
from train.sft import Config as SftConfig


@pytest.fixture(scope="module")
def products(tmp_path_factory) -> str:
    return str(write_jsonl(tmp_path_factory.mktemp("catalogue") / "products.jsonl", tidy()))


def test_columns_of_their_own_are_attributes_and_html_is_taken_out(tmp_path):
    path = tmp_path / "products.csv"
    path.write_text(
        "sku,product_name,brand,price,color,capacity,image_url,in_stock\n"
        "a1,<b>Desk lamp</b> &amp; bulb,Orlo,$9,Red,5 W,http://x/y.png,yes\n",
        encoding="utf-8",
    )
    (found,) = read_catalogue(path)
    assert (found.title, found.brand, found.price, found.item_id) == ("Desk lamp & bulb", "Orlo", "$9", "a1")
    assert found.attributes == "color: Red; capacity: 5 W; in stock: yes" and found.query == ""


def test_nested_attributes_numbers_and_truth_values_become_text(tmp_path):
    row = {
        "title": "Mug",
        "attributes": {"colour": "red", "size": {"height": 3.0}, "lid": True},
        "price": 5.0,
        "x": None,
    }
    (found,) = read_catalogue(write_jsonl(tmp_path / "p.jsonl", [row]))
    assert found.attributes == "colour: red; size height: 3; lid: yes" and found.price == "5"


def test_products_that_are_there_twice_count_once_and_are_said(tmp_path, capsys):
    rows = [
        {"title": "Red mug", "brand": "Orlo"},
        {"title": "red  MUG", "brand": "orlo"},
        {"title": "Red mug", "brand": "X"},
    ]
    assert [row.brand for row in read_catalogue(write_jsonl(tmp_path / "p.jsonl", rows))] == ["Orlo", "X"]
    assert "2 products, brand in 100 %; 1 duplicate left out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"name_de": "Lampe", "brand": "x"},
            r"p\.jsonl:2: field 'title' is missing; the row has 'name_de', 'brand'.*=title",
        ),
        ({"title": " ", "brand": "x"}, r"p\.jsonl:2: field 'title' is empty"),
        ({"title": "nan"}, r"p\.jsonl:2: field 'title' is 'nan', the word of a program"),
        ({"title": "a", "brand": ["x", "y"]}, r"p\.jsonl:2: field 'brand' is \['x', 'y'\], expected text"),
        ({"title": {"de": "a"}}, r"p\.jsonl:2: field 'title' is"),
    ],
)
def test_a_row_that_cannot_be_read_is_refused_by_file_line_and_field_or_skipped(tmp_path, row, message):
    path = write_jsonl(tmp_path / "p.jsonl", [{"title": "Red mug"}, row])
    with pytest.raises(ValueError, match=message):
        read_catalogue(path)
    assert [found.title for found in read_catalogue(path, ReadFlags(max_bad_rows=1))] == ["Red mug"]


def test_an_empty_and_a_missing_catalogue_are_named(tmp_path):
    (tmp_path / "p.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match=r"p\.jsonl: no products in this file"):
        read_catalogue(tmp_path / "p.jsonl")
    with pytest.raises(FileNotFoundError, match="gone"):
        load_rows(f"catalogue:{tmp_path}/gone.jsonl:labelled")


def test_a_catalogue_is_a_source_of_data_beside_others(products):
    rows = load_rows(f"catalogue:{products}:labelled*20, synthetic:dev*3", need_grade=True)
    assert len(rows) == 23 and all(row.grade for row in rows)
    assert load_rows(f"catalogue:{products}:labelled*20")[:20] == rows[:20]
    assert load_rows(f"catalogue:{products}:labelled*20", seed=1) != rows[:20]
    assert all(row.cot for row in load_rows(f"catalogue:{products}:reasoned*5", need_cot=True))
    assert [raw["query"] for raw, _ in load_pairs(f"catalogue:{products}:dev*4")] == [
        row.query for row in load_rows(f"catalogue:{products}:dev*4", need_gold=True)
    ]


def test_the_names_of_grades_and_queries_in_columns_are_for_the_judgements_beside_a_catalogue(tmp_path, products):
    (tmp_path / "own.csv").write_text("Suchanfrage,title,Note\nred mug,Red mug,4\n", encoding="utf-8")
    read = ReadFlags(columns="Suchanfrage=query,Note=grade")
    rows = load_rows(f"{tmp_path}/own.csv,catalogue:{products}:labelled*4", read, need_grade=True)
    assert [row.query for row in rows[:1]] == ["red mug"] and len(rows) == 5
    with pytest.raises(ValueError, match="--columns names 'Titel', which no row has"):
        load_rows(f"catalogue:{products}:labelled*4", ReadFlags(columns="Titel=title"))


@pytest.mark.parametrize(
    ("pool", "needs", "message"),
    [
        ("train", {}, "no such pool of a catalogue, expected catalogue:FILE:NAME.*NAME one of reasoned, labelled"),
        ("labelled*x", {}, "names no file and pool, expected catalogue:FILE:NAME or catalogue:FILE:NAME"),
        ("unlabelled*4", {"need_grade": True}, r"no grade; use catalogue:.*:labelled or catalogue:.*:reasoned"),
        ("labelled*4", {"need_cot": True}, r"'cot' is missing; use catalogue:.*:reasoned or catalogue:.*:explained"),
        ("dev*0", {}, r"dev\*0: no rows"),
        ("dev*4", {"split": "test"}, "pools have no splits"),
    ],
)
def test_what_a_pool_is_not_or_lacks_is_said_with_the_way_out(products, pool, needs, message):
    with pytest.raises(ValueError, match=message):
        load_rows(f"catalogue:{products}:{pool}", **needs)
    with pytest.raises(ValueError, match="names no file and pool"):
        load_rows(f"catalogue:{pool}")


def test_dev_and_test_of_a_catalogue_are_its_own(products):
    data = f"catalogue:{products}:reasoned*20,synthetic:labelled"
    assert same_world(data, "dev") == f"catalogue:{products}:dev"
    assert same_world("synthetic:labelled", "dev") == "synthetic:dev" and same_world(f"{data},rows.csv", "dev") == ""
    assert resolved(SftConfig(data=data)).dev == f"catalogue:{products}:dev"


def test_variants_drop_a_demand_or_ask_for_a_brand_and_are_no_gold(tmp_path):
    rows = [
        Judgement("red mug", "Orlo red mug", "Orlo", grade=4, query_id="1", item_id="a"),
        Judgement("red mug", "Zeta red mug", "Zeta", grade=4, query_id="1", item_id="b"),
        Judgement("red mug", "Zeta blue mug", "Zeta", grade=2, query_id="1", item_id="c"),
        Judgement("red mug", "Zeta sofa", "Zeta", grade=1, query_id="1", item_id="d"),
        Judgement("red mug without lid", "Orlo cup", "Orlo", grade=1, query_id="2", item_id="e"),
    ]
    write_judgements(tmp_path / "rows.jsonl", rows)
    found = load_rows(f"varied:{tmp_path}/rows.jsonl")
    made = [row for row in found if LABELLED_BY in row.extra]
    assert [row for row in found if LABELLED_BY not in row.extra] == rows
    assert Counter((row.query, row.title, row.grade) for row in made if row.query == "mug") == Counter(
        [("mug", "Orlo red mug", 4), ("mug", "Zeta red mug", 4), ("mug", "Zeta sofa", 1)]
    )
    branded = {(row.title, row.grade) for row in made if row.query != "mug"}
    assert branded in ({("Orlo red mug", 4), ("Zeta red mug", 2)}, {("Orlo red mug", 2), ("Zeta red mug", 4)})
    assert load_rows(f"varied:{tmp_path}/rows.jsonl") == found
    with pytest.raises(ValueError, match="variants are graded by a rule, which is no gold grade"):
        load_rows(f"varied:{tmp_path}/rows.jsonl", need_gold=True)


def test_a_written_pool_is_read_again_as_it_was(products, tmp_path):
    rows = load_rows(f"catalogue:{products}:reasoned*10")
    write_judgements(tmp_path / "pool.jsonl", rows)
    assert load_rows(str(tmp_path / "pool.jsonl"), need_cot=True) == rows
    assert all(json.loads(line)["query_kind"] for line in (tmp_path / "pool.jsonl").read_text("utf-8").splitlines())
