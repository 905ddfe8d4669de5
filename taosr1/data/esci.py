"""ESCI, Amazon's Shopping Queries data (arXiv 2206.06588), as judgements: renames and cleans its columns.

Amazon's own column names are understood (`ESCI_COLUMNS` with `query`, `query_id` and `split`), whether the product
columns are already joined to the labels in one JSONL, CSV or parquet file, or lie in two parquet files in one folder
(`..._examples.parquet` and `..._products.parquet`). `product_category` and `product_price` are read if present.

**Assumption, to be stated with every number from ESCI**: E, S, C, I -> 4, 3, 2, 1 keeps ESCI's order but is not the
paper's definition of its grades. A substitute (S) can be close to a Mismatch, and a complement (C) is an accessory.

Choices: a category list becomes "A > B > C". `product_color` and the bullet points go into `attributes` ("colour:
Blue; feature: ..."). Titles, bullet points and descriptions are unescaped ("&amp;" -> "&"), the latter two lose their
HTML tags. Every original column stays in the judgement's `extra`. `query_kind` is guessed from words. Where a row also
has a column under our own name, that one counts, except `grade`: next to an `esci_label` it is a prediction of
infer/score.py.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from taosr1.data.queries import plain, split_of
from taosr1.runtime.bad_rows import BadRows, shorten
from taosr1.runtime.jsonl import clean_text, clean_value
from taosr1.runtime.messages import install
from taosr1.task.judgement import Judgement

ESCI_COLUMNS = (
    "esci_label", "product_id", "product_locale", "product_title", "product_brand", "product_color",
    "product_color_name", "product_bullet_point", "product_description", "product_category", "product_price",
)  # fmt: skip
# The KDD Cup files spell the labels out.
GRADE_OF_ESCI = {"E": 4, "S": 3, "C": 2, "I": 1, "EXACT": 4, "SUBSTITUTE": 3, "COMPLEMENT": 2, "IRRELEVANT": 1}

_TAG = re.compile(r"</?[a-zA-Z][^<>]*>|<!--[^<>]*-->")
_NEGATION = re.compile(r"\b(?:without|not|no)\b", re.IGNORECASE)
_QUESTION_WORDS = "how|what|whats|which|who|whose|where|when|why|can|could|do|does|is|are|should"
_QUESTION = re.compile(rf"\s*(?:{_QUESTION_WORDS})\b", re.IGNORECASE)


def is_esci(row: dict) -> bool:
    """Whether a row has ESCI's labels or product columns, and not our own `title`."""
    return "title" not in row and ("esci_label" in row or "product_title" in row)


def query_kind(query: str) -> str:
    """negation (without, not, no), question (how, what, ... or a question mark) or plain: a guess from words alone."""
    if _NEGATION.search(query):
        return "negation"
    return "question" if _QUESTION.match(query) or query.rstrip().endswith("?") else "plain"


def plain_text(text: str, *, tags: bool = True) -> str:
    """Text of a product page on one line: entities unescaped, HTML tags replaced by a space (if `tags`).

    Unescaping comes first because shops often store tags escaped ("&lt;br&gt;"). "<10 inch" is not a tag and stays.
    """
    text = html.unescape(text)
    return " ".join((_TAG.sub(" ", text) if tags else text).split())


def esci_row(row: dict) -> dict:
    """One ESCI row with our own column names added to its original ones. Raises: ValueError naming the wrong field."""
    if "product_title" not in row:
        raise ValueError(
            "field 'product_title' is missing: this file has ESCI labels without product text. Give the folder with "
            "both parquet files (examples and products), or a file that joins them on product_id and product_locale"
        )
    colour = _text("product_color", row.get("product_color"))
    colour = plain_text(colour or _text("product_color_name", row.get("product_color_name")))
    points = row.get("product_bullet_point")  # one a line in ESCI, a list in some re-published sets
    points = points if isinstance(points, list) else _text("product_bullet_point", points).split("\n")
    features = [plain_text(_text("product_bullet_point", point)) for point in points]
    attributes = ["colour: " + colour] if colour else []
    attributes += ["feature: " + feature for feature in features if feature]
    ours = {
        "query": row.get("query"),
        "title": plain_text(_text("product_title", row.get("product_title")), tags=False),
        "brand": plain_text(_text("product_brand", row.get("product_brand")), tags=False),
        # ";" separates attributes, so it cannot stand inside one.
        "attributes": "; ".join(attribute.replace(";", ",") for attribute in attributes),
        "category": row.get("product_category"),
        "description": plain_text(_text("product_description", row.get("product_description"))),
        "price": row.get("product_price"),
        "query_kind": query_kind(str(row.get("query") or "")),
        "query_id": row.get("query_id"),
        "item_id": row.get("product_id"),
    }
    own = {name: row[name] for name in ours if row.get(name) not in (None, "")}
    label = row.get("esci_label")
    word = "" if label is None else str(label).strip().upper()
    if word and word not in GRADE_OF_ESCI:
        raise ValueError(f"field 'esci_label' is {shorten(repr(label))}, expected E, S, C or I")
    return {**row, **ours, **own, "grade": GRADE_OF_ESCI.get(word, row.get("grade"))}


def keep_split(rows: Sequence[Judgement], split: str, spec: object = "the data") -> list[Judgement]:
    """The judgements whose `split` column is `split` ("train" or "test" in ESCI), whatever its case.

    Raises: ValueError naming `spec` and the splits that exist, if no row has this one.
    """
    kept = [row for row in rows if split_of(row) == plain(split)]
    if not kept:
        found = sorted({split_of(row) for row in rows} - {""})
        has = f"give one of {shorten(str(found), 200)}" if found else "no 'split' column: leave it out"
        raise ValueError(f"{spec}: no row has split {split!r}, {has}")
    return kept


def _text(name: str, value: Any) -> str:
    """A column's value as text; a list of texts is joined."""
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return " ".join(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"field {name!r} is {shorten(repr(value))}, expected text")
    return value or ""


# --- Parquet (needs the [data] extra) ---------------------------------------------------------------------------------


def read_parquet(path: str | Path, bad_rows: BadRows | None = None) -> Iterator[tuple[int, dict]]:
    """The rows of a parquet file, or of ESCI's two files joined, with row numbers from 1.

    `path` is one parquet file, or ESCI's examples file, or the folder that holds it and the products file. Examples
    keep their order; only the products they name are held in memory.

    Raises: ModuleNotFoundError without pyarrow; FileNotFoundError; ValueError naming the file that is damaged, for a
        product that occurs twice and differs, and for an example whose product is missing (`bad_rows` may skip it).
    """
    path = Path(path)
    examples = _one_file(path, "*examples*.parquet") if path.is_dir() else path
    bad_rows = bad_rows or BadRows(examples)
    bad_rows.path = examples  # the file whose rows are counted, even if `path` is the folder
    with _open_parquet(examples) as file:
        columns = file.schema_arrow.names
    keys = [name for name in ("product_id", "product_locale") if name in columns]
    products: Path | None = None  # needed only for labels without product columns
    if "product_title" not in columns and "esci_label" in columns:
        products = _one_file(examples.parent, "*products*.parquet")
        product_of = _read_products(products, keys, {_key(row, keys) for row in _parquet_rows(examples, keys)})
    with bad_rows:
        for number, row in enumerate(_parquet_rows(examples), start=1):
            bad_rows.rows += 1
            if products is None:
                yield number, row
            elif (key := _key(row, keys)) in product_of:
                yield number, {**row, **product_of[key]}
            else:
                bad_rows.add(number, f"unknown product: {'/'.join(key)} is not in {products.name}")


def _key(row: dict, keys: list[str]) -> tuple[str, ...]:
    return tuple(str(row.get(name)) for name in keys)


def _read_products(path: Path, keys: list[str], wanted: set[tuple[str, ...]]) -> dict[tuple[str, ...], dict]:
    found: dict[tuple[str, ...], dict] = {}
    for number, product in enumerate(_parquet_rows(path), start=1):
        key = _key(product, keys)
        if key in wanted and found.setdefault(key, product) != product:
            raise ValueError(f"{path}:{number}: product {'/'.join(key)} is there twice, with different columns")
    return found


def _one_file(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        names = [file.name for file in found]
        raise FileNotFoundError(f"expected one {pattern} in {folder}, found {names or 'none'}: check --data")
    return found[0]


@contextmanager
def _open_parquet(path: Path) -> Iterator[Any]:
    """An open parquet file. pyarrow's errors about damaged data, of many types and without its name, become one."""
    try:
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise ModuleNotFoundError(f"{path}: reading it needs pyarrow: {install('data')}") from None
    try:
        yield parquet.ParquetFile(path)
    except (ValueError, OSError, TypeError, KeyError) as problem:
        if isinstance(problem, OSError) and problem.filename is not None:
            raise
        raise ValueError(f"{path}: not a readable parquet file ({shorten(str(problem), 200)})") from None


def _parquet_rows(path: Path, columns: list[str] | None = None) -> Iterator[dict]:
    with _open_parquet(path) as file:
        for batch in file.iter_batches(batch_size=4096, columns=columns):
            for row in batch.to_pylist():
                yield _json_value(clean_value(row))


def _is_entry(item: Any) -> bool:
    """Whether this is an entry of a map: pyarrow makes a tuple of it, `clean_value` a list."""
    return isinstance(item, list) and len(item) == 2 and isinstance(item[0], str)


def _json_value(value: Any) -> Any:
    """A parquet value as a JSON value: NaN (pandas' missing value) becomes null, dates and decimals their text.

    Bytes are text in UTF-8 (damage stays visible as U+FFFD); a map, which pyarrow gives as pairs, is an object.
    """
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, bytes):
        return clean_text(value.decode("utf-8", "replace"))
    if isinstance(value, list) and value and all(_is_entry(item) for item in value):
        return {name: _json_value(item) for name, item in value}
    if isinstance(value, list):
        return [_json_value(item) for item in value]
    if isinstance(value, dict):
        return {name: _json_value(item) for name, item in value.items()}
    return value if value is None or isinstance(value, (str, int, float)) else str(value)
