"""Columns under other names, cells for nothing, and values that are no text."""

from __future__ import annotations

import json

import pytest

from taosr1.data.flags import ReadFlags
from taosr1.data.judgements import parse_judgement, read_judgements
from taosr1.data.sources import load_pairs

RIGHT = ("red boots", "Boots, red", "Alder", 4, "q7", "0042")


def table(folder, header, *rows, name="a.tsv"):
    (folder / name).write_text("\n".join("\t".join(cells) for cells in (header, *rows)) + "\n", encoding="utf-8")
    return folder / name


def fields(row):
    return row.query, row.title, row.brand, row.grade, row.query_id, row.item_id


def refusal(path, **flags):
    with pytest.raises(ValueError) as caught:
        read_judgements(path, ReadFlags(**flags))
    return str(caught.value)


@pytest.mark.parametrize(
    "names",
    [
        ("Query", "TITLE", " brand ", "Grade", "Query_ID", "item id"),
        ("search_term", "product_name", "brand_name", "label", "qid", "sku"),
        ("Keyword", "Product Title", "Product-Brand", "Relevance", "Query ID", "ASIN"),
        ("search query", "name", "Brand", "judgment", "queryid", "docid"),
        ("\ufeffquery", "Item Name", "BRAND", "Relevance-Label", "query-id", "Doc_ID"),
    ],
)
def test_common_names_in_any_case_are_known_and_said(tmp_path, capsys, names):
    cells = ("red boots", "Boots, red", "Alder", "4", "q7", "0042")
    path = table(tmp_path, names, cells)
    assert fields(read_judgements(path)[0]) == RIGHT
    first = names[0].strip().strip("\ufeff")
    if first != "query":
        assert f"read {first!r} as query" in capsys.readouterr().err
    jsonl = tmp_path / "a.jsonl"
    jsonl.write_text(json.dumps(dict(zip(names, cells))) + "\n", encoding="utf-8")
    assert fields(read_judgements(jsonl)[0]) == RIGHT
    raw, row = load_pairs(str(jsonl))[0]
    assert tuple(raw) == names and fields(row) == RIGHT  # what is written back has the names of the input


def test_columns_that_nobody_reads_are_named_and_stay_in_extra(tmp_path, capsys):
    path = table(tmp_path, ("query", "title", "colour", "price_eur", "split"), ("a", "b", "red", "12", "test"))
    assert read_judgements(path)[0].extra == {"colour": "red", "price_eur": "12", "split": "test"}
    said = capsys.readouterr().err
    assert said == f'{path}: not shown to the judge: colour, price_eur (--columns "colour=attributes" shows one)\n'
    row = read_judgements(path, ReadFlags(columns="colour=attributes,price_eur=price"))[0]
    assert (row.attributes, row.price, row.extra) == ("colour: red", "12", {"split": "test"})


@pytest.mark.parametrize(
    ("header", "columns"),
    [
        (("Suchanfrage", "Titel", "Marke", "Bewertung", "Nr", "Artikel Nr"),
         "Suchanfrage=query,Titel=title,Marke=brand,Bewertung=grade,Nr=query_id,Artikel Nr=item_id"),
        (("requête", "titre", "marque", "note", "id requête", "réf, code"),
         'requête=query, titre=title, marque=brand, note=grade, id requête=query_id, "réf, code=item_id"'),
        (("検索語", "商品名", "ブランド", "評価", "a=b", "番号"),
         "検索語=query,商品名=title,ブランド=brand,評価=grade,a=b=query_id,番号=item_id"),
    ],
)  # fmt: skip
def test_columns_of_any_language_are_mapped_by_the_flag_and_asked_for_without_it(tmp_path, header, columns):
    path = table(tmp_path, header, ("red boots", "Boots, red", "Alder", "4", "q7", "0042"))
    assert fields(read_judgements(path, ReadFlags(columns=columns))[0]) == RIGHT
    message = refusal(path, max_bad_rows=9)
    assert f"{path}: field 'query' is missing; the row has {header[0]!r}, {header[1]!r}" in message
    assert '--columns "NAME=query"' in message


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("Titel", "--columns has 'Titel', expected YOURS=OURS pairs"),
        ("Titel=name", "--columns has 'Titel=name', and 'name' is none of ours: query, title, brand"),
        ("a=query,a=title", "--columns names 'a' twice"),
        ("a=title,b=title", "--columns gives two columns to 'title'; only attributes can have several"),
        ("Farbe=brand", "--columns names 'Farbe', which no row has"),
    ],
)
def test_a_wrong_map_of_columns_is_refused(tmp_path, columns, message):
    assert message in refusal(table(tmp_path, ("query", "title"), ("a", "b")), columns=columns)


@pytest.mark.parametrize(
    ("header", "both"),
    [
        (("query", "product_name", "name"), "'product_name' and 'name' could both be the title"),
        (("Query", "QUERY", "title"), "'Query' and 'QUERY' could both be the query"),
        (("query", "title", "label", "relevance"), "'label' and 'relevance' could both be the grade"),
        (("query", "product_title", "name"), "'product_title' and 'name' could both be the title"),
    ],
)
def test_two_columns_that_could_be_one_are_refused_unless_one_has_our_name(tmp_path, header, both):
    message = refusal(table(tmp_path, header, ("1",) * len(header)), max_bad_rows=5)
    assert both in message and '--columns "' in message
    row = {name: str(number) for number, name in enumerate(header)}
    with pytest.raises(ValueError, match="could both be the"):
        parse_judgement(row)
    ours = both.rpartition(" ")[2]
    assert str(getattr(parse_judgement({**row, ours: "4"}), ours)) == "4"


def test_a_column_can_be_left_out_or_put_in_the_place_of_another(tmp_path):
    path = table(tmp_path, ("query", "title", "long title", "label"), ("a", "b", "b in long", "5"))
    assert refusal(path).startswith(f"{path}:2: field 'grade' is '5'")
    row = read_judgements(path, ReadFlags(columns="label=,long title=title"))[0]
    assert (row.title, row.grade, row.extra) == ("b in long", None, {})


def test_wands_is_read_with_its_categories_and_features(tmp_path, capsys):
    header = ["id", "query_id", "query", "query_class", "product_id", "product_name", "product_class"]
    header += ["category hierarchy", "product_description", "product_features", "rating_count", "label"]
    cells = ["4", "0", "salon chair", "Massage Chairs", "25434", "21.7 '' w chair", "Waiting Room Chairs"]
    cells += ["Furniture / Office", 'a "recliner" chair', "legmaterial : wood|framecolor:brown; dark", "12.0", "Exact"]
    row = read_judgements(table(tmp_path, header, cells, name="wands.csv"), ReadFlags(grades="wands"))[0]
    assert (row.title, row.grade, row.item_id, row.query_id) == ("21.7 '' w chair", 4, "25434", "0")
    assert (row.category, row.attributes) == ("Furniture / Office", "legmaterial: wood; framecolor: brown, dark")
    said = capsys.readouterr().err
    assert "not shown to the judge: id, query_class, product_class, rating_count" in said
    short = table(tmp_path, ["query", "product_name", "product_class", "label"], ["a", "b", "Chairs", "Partial"])
    row = read_judgements(short, ReadFlags(grades="wands"))[0]
    assert (row.category, row.grade) == ("Chairs", 3)


@pytest.mark.parametrize("word", ["nan", "NaN", "None", "<NA>", "NULL", "null", "N/A", "#N/A", "NaT", "\\N", " nan "])
def test_a_word_for_nothing_alone_in_a_cell_is_empty_and_counted(tmp_path, capsys, word):
    header = ("query", "title", "brand", "price", "grade", "item_id", "note")
    rows = [("nan bread", "none of it", word, "9", "4", word, word), ("mug", "Mug", "N/A Mugs", word, word, "7", "x")]
    found = read_judgements(table(tmp_path, header, *rows))
    assert [(row.query, row.title, row.brand, row.price, row.grade, row.item_id) for row in found] == [
        ("nan bread", "none of it", "", "9", 4, ""), ("mug", "Mug", "N/A Mugs", "", None, "7")
    ]  # fmt: skip
    assert found[0].extra == {"note": word}  # a column that is not read stays as it is
    assert ": 2 rows had 'nan' or another word for a missing value in a cell, read as empty" in capsys.readouterr().err
    for row in ((word, "t"), ("q", word)):
        message = refusal(table(tmp_path, ("query", "title"), row))
        assert ":2: field '" in message and "the word of a program for a missing value" in message


@pytest.mark.parametrize(
    "text", ["\u200b", "\u00a0\u3000", "\ufeff", "\u00ad\u200f", "\u2060 \u180e", "\u3164", "\t \x1f"]
)
def test_text_of_which_nothing_is_seen_is_empty(tmp_path, text):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"query": "a", "title": text, "brand": "x", "price": text}), encoding="utf-8")
    assert (read_judgements(path)[0].title, read_judgements(path)[0].price) == ("", "")
    path.write_text(json.dumps({"query": text, "title": "b"}), encoding="utf-8")
    assert "field 'query' is empty" in refusal(path)
    path.write_text(json.dumps({"query": f"a{text}b", "title": "\u202eb"}), encoding="utf-8")
    assert read_judgements(path)[0].query == f"a{text}b"  # inside a text it stays


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (
            {"ram": {"size": 16, "unit": "GB"}, "ports": ["usb-c", "hdmi"]},
            "ram size: 16; ram unit: GB; ports: usb-c, hdmi",
        ),
        (
            [{"name": "colour", "value": "red"}, {"key": "fits", "value": ["men", "women"]}],
            "colour: red; fits: men, women",
        ),
        ([{"size": 8}, {"size": 9}, "vegan"], "size: 8; size: 9; vegan"),
        ({"a": {"b": {"c": 1299.0}}, "d": None, "e": "nan", "f": [], "g": "x; y"}, "a b c: 1299; g: x, y"),
        ({"screen": {"name": "diagonal", "value": '24"'}, "hdr": True}, 'screen diagonal: 24"; hdr: yes'),
    ],
)
def test_nested_attributes_are_readable_text(value, text):
    assert parse_judgement({"query": "a", "title": "b", "attributes": value}).attributes == text


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("brand", {"name": "Acme", "id": 3}, "Acme"),
        ("price", {"amount": 1299.0, "currency": "EUR"}, "1299 EUR"),
        ("price", 1299.5, "1299.5"),
        ("category", [{"id": 1, "name": "Shoes"}, {"id": 2, "name": "Boots"}], "Shoes > Boots"),
        ("category", [["Shoes", "Boots"], ["Sale"]], "Shoes > Boots, Sale"),
        ("description", ["warm", None, "dry"], "warm dry"),
    ],
)
def test_objects_with_one_clear_meaning_are_text(name, value, text):
    assert getattr(parse_judgement({"query": "a", "title": "b", name: value}), name) == text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("title", ["a", "b"]), ("brand", {"id": 3}), ("price", [1, 2]), ("query", {"text": "a"}),
        ("category", [{"id": 1}]), ("attributes", {"a": {"b": {"c": {"d": {"e": 1}}}}}), ("item_id", [7]),
        ("description", {"html": "a"}),
    ],
)  # fmt: skip
def test_any_other_object_is_refused_by_file_line_and_field(tmp_path, name, value):
    path = tmp_path / "a.jsonl"
    rows = [{"query": "a", "title": "b"}, {"query": "a", "title": "b", name: value}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert refusal(path).startswith(f"{path}:2: field {name!r} ")


@pytest.mark.parametrize(
    ("header", "cells", "ways", "right"),
    [
        (("Search", "Title", "Keywords"), ("mug", "Red mug", "cup coffee"), '"Keywords=query" or "Search=query"', 1),
        (("Suchwort", "keyword", "title"), ("mug", "cup", "Red mug"), '"keyword=query" or "Suchwort=query"', 1),
        (("query", "name", "product"), ("mug", "Anna", "Red mug"), '"name=title" or "product=title"', 1),
        (("query", "Name", "Stück", "Art"), ("a", "b", "", "c"), '"Name=title" or "Stück=title" or "Art=title"', 2),
    ],
)
def test_a_vague_name_beside_another_text_is_not_guessed(tmp_path, header, cells, ways, right):
    path = table(tmp_path, header, cells)
    assert f"say which, --columns {ways}" in refusal(path, max_bad_rows=5)
    way = ways.split(" or ")[right].strip('"')
    name, _, ours = way.partition("=")
    found = read_judgements(path, ReadFlags(columns=way))[0]
    assert getattr(found, ours) == cells[header.index(name)]


def test_a_vague_name_alone_is_read(tmp_path):
    header = ("keyword", "name", "image_url", "rating_count", "clicked_on", "Colour")
    path = table(tmp_path, header, ("mug", "Red mug", "x.jpg", "4", "2026-01-31", "red"))
    row = read_judgements(path)[0]
    assert (row.query, row.title) == ("mug", "Red mug")


@pytest.mark.parametrize("name", ["rating", "Score", "Bewertung", "relevanceGrade", "stars"])
def test_what_may_be_stars_or_scores_is_no_grade_until_the_user_says_so(tmp_path, capsys, name):
    path = table(tmp_path, ("query", "title", name), ("mug", "Red mug", "4"))
    assert read_judgements(path)[0].grade is None
    way = f'--columns "{name}=grade"'
    assert f"no column is known as the grade: {way}" in capsys.readouterr().err
    with pytest.raises(ValueError, match=f'"NAME=grade" says which one it is .perhaps "{name}=grade"'):
        read_judgements(path, need_grade=True)
    assert read_judgements(path, ReadFlags(columns=f"{name}=grade"), need_grade=True)[0].grade == 4


def test_a_misspelt_name_of_the_flag_is_shown_beside_the_names_of_the_file(tmp_path):
    path = table(tmp_path, ("query", "title", "grade"), ("mug", "Red mug", "4"))
    message = refusal(path, columns="titel=brand")
    assert message.endswith("--columns names 'titel', which no row has; the rows have 'query', 'title', 'grade'")


def test_a_missing_column_names_those_that_may_be_it(tmp_path):
    path = table(tmp_path, ("Suchanfrage", "Produkt", "grade"), ("mug", "Red mug", "4"))
    assert '--columns "NAME=query" says which one it is (perhaps "Suchanfrage=query")' in refusal(path)
    assert '(perhaps "Produkt=title")' in refusal(path, columns="Suchanfrage=query")
