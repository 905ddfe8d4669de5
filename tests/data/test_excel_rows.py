"""Excel workbooks and parquet files."""

from __future__ import annotations

import builtins
import datetime
import zipfile

import pytest

from taosr1.data.judgements import read_judgements
from taosr1.data.rows import read_rows
from taosr1.data.sources import load_pairs

openpyxl = pytest.importorskip("openpyxl", reason="Excel needs the [data] extra: pip install -e '.[data]'")


def workbook(path, *rows, merge=(), more=()):
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    for cells in merge:
        book.active.merge_cells(cells)
    for name in more:
        book.create_sheet(name).append(["query"])
    book.save(path)
    return path


def refusal(path, **options):
    with pytest.raises((ValueError, ModuleNotFoundError)) as caught:
        read_judgements(path, **options)
    return str(caught.value)


def test_numbers_dates_and_texts_of_a_sheet_are_what_a_reader_sees(tmp_path, capsys):
    day = datetime.datetime(2026, 5, 31)
    rows = [
        ["Query", "product_name", "price", "grade", "SKU", "seen", "new"],
        ["rote schuhe", "Schuhe 42", 19.0, 4, 4012345678901, day, True],
        [],
        ["küche", " Messer ", 1299.5, 1.0, "007", day.replace(hour=9, minute=30), False],
        ["mug", "=x" + "\u200b", "1.299,00 €", None, 0.1, None, None],
    ]
    path = workbook(tmp_path / "a.xlsx", *rows[:4], rows[4][:1] + ["Becher"] + rows[4][2:], more=["other"])
    found = read_judgements(path)
    assert [(row.query, row.title, row.price, row.grade, row.item_id, row.line) for row in found] == [
        ("rote schuhe", "Schuhe 42", "19", 4, "4012345678901", 2), ("küche", " Messer ", "1299.5", 1, "007", 4),
        ("mug", "Becher", "1.299,00 €", None, "0.1", 5),
    ]  # fmt: skip
    assert [row.extra["seen"] for row in found] == ["2026-05-31", "2026-05-31 09:30:00", ""]
    assert [row.extra["new"] for row in found] == ["TRUE", "FALSE", ""]
    assert f"{path}: read sheet 'Sheet', the first of 2" in capsys.readouterr().err
    assert load_pairs(str(path))[0][0]["product_name"] == "Schuhe 42"


def test_a_merged_cell_counts_in_every_row_that_it_covers(tmp_path, capsys):
    rows = [["query", "title", "brand"], ["a", "t1", "x"], [None, "t2", "y"], [None, "t3", None], ["b", "t4", "z"]]
    path = workbook(tmp_path / "a.xlsx", *rows, merge=["A2:A4", "C3:C4"])
    assert [(row.query, row.title, row.brand) for row in read_judgements(path)] == [
        ("a", "t1", "x"), ("a", "t2", "y"), ("a", "t3", "y"), ("b", "t4", "z")
    ]  # fmt: skip
    assert "2 merged cells filled" in capsys.readouterr().err
    rows = [["Report of May", None], ["query", "title"], ["a", "b"]]
    below = ":1: line 2 looks like the header (query, title)"
    assert below in refusal(workbook(tmp_path / "b.xlsx", *rows, merge=["A1:B1"]))
    assert below in refusal(workbook(tmp_path / "c.xlsx", ["May", None, "x"], *rows[1:]))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (["a", "b", "=1+1"], "2: field 'price' is the formula =1+1 without its value"),
        (["a", "b", "#DIV/0!"], "2: field 'price' is #DIV/0!, an error of a formula"),
        (["a", "b", 1e300], "2: field 'price' is 1e+300, too large to be exact"),
        (["a", "b", "c", "d"], "2: a cell ('d') below no name"),
        ([None, "b", "c"], "2: field 'query' is empty"),
    ],
)
def test_what_is_wrong_with_a_row_of_a_sheet_is_named_by_file_and_row(tmp_path, row, message):
    path = workbook(tmp_path / "a.xlsx", ["query", "title", "price"], row, ["q", "t", 3])
    assert f"{path}:{message}" in refusal(path)
    assert [found.price for found in read_judgements(path, max_bad_rows=1)] == ["3"]


def test_a_formula_counts_by_the_value_that_excel_stored(tmp_path):
    path = workbook(tmp_path / "a.xlsx", ["query", "title", "price"], ["a", "b", "=1+1"])
    with zipfile.ZipFile(path) as book:
        parts = {name: book.read(name) for name in book.namelist()}
    with zipfile.ZipFile(path, "w") as book:
        for name, data in parts.items():
            book.writestr(
                name, data.replace(b"<f>1+1</f><v></v>", b"<f>1+1</f><v>2</v>").replace(b"<v />", b"<v>2</v>")
            )
    assert [row.price for row in read_judgements(path)] == ["2"]


def test_a_workbook_is_known_by_its_content_and_a_damaged_one_refused(tmp_path):
    path = workbook(tmp_path / "a.xlsx", ["query", "title"], ["a", "b"])
    (tmp_path / "b.csv").write_bytes(path.read_bytes())
    assert [row.title for row in read_judgements(tmp_path / "b.csv")] == ["b"]
    for cut in (30, 2000, -20):
        (tmp_path / "c.xlsx").write_bytes(path.read_bytes()[:cut])
        assert f"{tmp_path / 'c.xlsx'}: not a readable Excel workbook" in refusal(tmp_path / "c.xlsx")


@pytest.mark.parametrize(("name", "package"), [("a.xlsx", "openpyxl"), ("a.parquet", "pyarrow")])
def test_a_missing_package_is_one_line_with_the_command(tmp_path, monkeypatch, name, package):
    load = builtins.__import__

    def without(module, *rest):
        if module.split(".")[0] == package:
            raise ModuleNotFoundError(package)
        return load(module, *rest)

    path = tmp_path / name
    path.write_bytes(b"PAR1")
    monkeypatch.setattr(builtins, "__import__", without)
    assert refusal(path) == f'{path}: reading it needs {package}: pip install -c constraints.txt -e ".[data]"'


def test_parquet_rows_of_every_kind_are_read(tmp_path):
    arrow = pytest.importorskip("pyarrow", reason="parquet needs the [data] extra: pip install -e '.[data]'")
    from pyarrow import parquet

    features = arrow.array([[("ram", "16 GB"), ("hdr", "yes")], None], arrow.map_(arrow.string(), arrow.string()))
    columns = {
        "Query": arrow.array(["a", "nan bread"]).dictionary_encode(),
        "name": arrow.array(["Größe".encode(), b"b"], arrow.binary()),
        "product_features": features,
        "category": [["Shoes", "Boots"], []],
        "price": [1299.0, float("nan")],
        "label": [4, None],
        "day": [datetime.date(2026, 5, 31), None],
        "brand": [{"name": "Acme"}, {"name": "nan"}],
    }
    parquet.write_table(arrow.table(columns), tmp_path / "a.parquet")
    one, two = read_judgements(tmp_path / "a.parquet")
    assert (one.query, one.title, one.attributes) == ("a", "Größe", "ram: 16 GB; hdr: yes")
    assert (one.category, one.price, one.grade, one.brand) == ("Shoes > Boots", "1299", 4, "Acme")
    assert (two.query, two.attributes, two.price, two.grade) == ("nan bread", "", "", None)
    assert one.extra == {"day": "2026-05-31"} and len(list(read_rows(tmp_path / "a.parquet"))) == 2


@pytest.mark.parametrize(
    ("format", "value", "shown"),
    [
        ("00000", 123, "00123"),
        ("000000000000", 4012345678.0, "004012345678"),
        ('"ART-"0000', 7, "ART-0007"),
        ("000-000", 12345, "012-345"),
        ("00\\-00", 123456, "1234-56"),
        ("00;-00", 5, "05"),
        ("0", 5, "5"),
        ("0.00", 5, "5"),
        ("#,##0", 1234, "1234"),
    ],
)
def test_an_id_keeps_the_zeros_that_its_format_shows(tmp_path, format, value, shown):
    book = openpyxl.Workbook()
    for row in (["query", "title", "item_id"], ["mug", "Mug", value], ["mug", "Cup", None]):
        book.active.append(row)
    book.active["C2"].number_format = format
    book.active.merge_cells("C2:C3")
    book.save(tmp_path / "a.xlsx")
    assert [row.item_id for row in read_judgements(tmp_path / "a.xlsx")] == [shown, shown]


@pytest.mark.parametrize(
    "first",
    [[], [["Read me"]], [["Judgements of May"], ["graded by three people"]], [["Suche", "Titel"], ["a", "b"]]],
)
def test_rows_on_another_sheet_are_named(tmp_path, first):
    book = openpyxl.Workbook()
    for row in first:
        book.active.append(row)
    for row in (["query", "title"], ["mug", "Mug"]):
        book.create_sheet("pairs" if row[0] == "query" else "empty").append(row)
    book["pairs"].append(["mug", "Mug"])
    book.save(tmp_path / "a.xlsx")
    assert "but 'pairs' may: move that sheet to the front, or save it as CSV" in refusal(tmp_path / "a.xlsx")


def test_hidden_rows_are_read_and_counted_and_empty_columns_are_not(tmp_path, capsys):
    book = openpyxl.Workbook()
    for row in (["query", "title", "grade"], *(["mug", f"Mug {n}", n] for n in (1, 2, 3, 4))):
        book.active.append([None, None, *row])
    for number in (3, 5):
        book.active.row_dimensions[number].hidden = True
    book.save(tmp_path / "a.xlsx")
    assert [row.grade for row in read_judgements(tmp_path / "a.xlsx")] == [1, 2, 3, 4]
    assert "2 hidden rows (a filter?) read as all others" in capsys.readouterr().err
    book.active["B4"] = "x"
    book.save(tmp_path / "a.xlsx")
    assert ":4: a cell ('x') below no name: write one above column 2" in refusal(tmp_path / "a.xlsx")
