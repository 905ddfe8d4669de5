"""ESCI, Amazon's Shopping Queries data (arXiv 2206.06588), as judgements: renames and cleans its columns.

Amazon's own column names are understood, whether the product columns are already joined to the labels in one JSONL,
CSV or parquet file, or lie in two parquet files in one folder (`..._examples.parquet` and `..._products.parquet`):
`query`, `query_id`, `product_id`, `esci_label`, `split`, `product_locale`, `product_title`, `product_brand`,
`product_color`, `product_bullet_point`, `product_description`, and if present `product_category`, `product_price`.

**Assumption, to be stated with every number from ESCI**: E, S, C, I -> 4, 3, 2, 1 keeps ESCI's order but is not the
paper's definition of its grades. A substitute (S) can be close to a Mismatch, and a complement (C) is an accessory.

Choices: a category list becomes "A > B > C". `product_color` and the bullet points go into `attributes` ("colour:
Blue; feature: ..."). Titles, bullet points and descriptions are unescaped ("&amp;" -> "&"), the latter two lose their
HTML tags. Every original column stays in the judgement's `extra`. `query_kind` is guessed from words (`query_kind`).
Where a row also has a column under our own name, that one counts, except `grade`: next to an `esci_label` it is a
prediction of infer/score.py.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from taosr1.runtime.bad_rows import BadRows, shorten
from taosr1.runtime.jsonl import clean_value
from taosr1.task.judgement import Judgement

ESCI_COLUMNS = (
    "esci_label", "product_id", "product_locale", "product_title", "product_brand", "product_color",
    "product_color_name", "product_bullet_point", "product_description", "product_category", "product_price",
)  # fmt: skip
GRADE_OF_ESCI = {"E": 4, "S": 3, "C": 2, "I": 1}
# The KDD Cup files spell the labels out.
_LONG_LABELS = {"EXACT": "E", "SUBSTITUTE": "S", "COMPLEMENT": "C", "IRRELEVANT": "I"}

_BLANK = re.compile(r"\s+")
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
    return _BLANK.sub(" ", _TAG.sub(" ", text) if tags else text).strip()


def esci_row(row: dict) -> dict:
    """One ESCI row with our own column names added to its original ones.

    Raises: ValueError naming the field, for an unknown label or a row of labels without product columns.
    """
    if "product_title" not in row:
        raise ValueError(
            "field 'product_title' is missing: this file has ESCI labels without product text. Give the folder with "
            "both parquet files (examples and products), or a file that joins them on product_id and product_locale"
        )
    title = plain_text(_text(row, "product_title"), tags=False)
    colour = plain_text(_text(row, "product_color") or _text(row, "product_color_name"))
    bullets = [plain_text(point) for point in _points(row)]
    attributes = [f"colour: {colour}"] if colour else []
    attributes += [f"feature: {point}" for point in bullets if point]
    ours = {
        "query": row.get("query"),
        "title": title,
        "brand": plain_text(_text(row, "product_brand"), tags=False),
        # ";" separates attributes, so it cannot stand inside one.
        "attributes": "; ".join(attribute.replace(";", ",") for attribute in attributes),
        "category": row.get("product_category"),
        "description": plain_text(_text(row, "product_description")),
        "price": row.get("product_price"),
        "query_kind": query_kind(str(row.get("query") or "")),
        "query_id": row.get("query_id"),
        "item_id": row.get("product_id"),
    }
    own = {name: row[name] for name in ours if row.get(name) not in (None, "")}
    grade = _grade(row.get("esci_label"))
    return {**row, **ours, **own, "grade": row.get("grade") if grade is None else grade}


def keep_split(rows: Sequence[Judgement], split: str) -> list[Judgement]:
    """The judgements whose `split` column is `split` ("train" or "test" in ESCI).

    Raises: ValueError naming the splits that exist, if no row has this one.
    """
    kept = [row for row in rows if row.extra.get("split") == split]
    if not kept:
        found = sorted({str(row.extra["split"]) for row in rows if row.extra.get("split") not in (None, "")})
        has = f"the data has {shorten(str(found), 200)}" if found else "no 'split' column"
        raise ValueError(f"no row has split {split!r}: {has}")
    return kept


def _text(row: dict, name: str) -> str:
    value = row.get(name)
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return " ".join(value)
    return _scalar(name, value)


def _points(row: dict) -> list[str]:
    """Bullet points: one a line in ESCI, a list in some re-published sets."""
    value = row.get("product_bullet_point")
    if isinstance(value, list):
        return [_scalar("product_bullet_point", point) for point in value]
    return _text(row, "product_bullet_point").split("\n")


def _scalar(name: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise ValueError(f"field {name!r} is {shorten(repr(value))}, expected text")
    return value


def _grade(label: Any) -> int | None:
    word = "" if label is None else str(label).strip().upper()
    if not word:
        return None
    grade = GRADE_OF_ESCI.get(_LONG_LABELS.get(word, word))
    if grade is None:
        raise ValueError(f"field 'esci_label' is {shorten(repr(label))}, expected E, S, C or I")
    return grade


# --- Parquet (needs the [data] extra) ---------------------------------------------------------------------------------


def read_parquet(path: str | Path, bad_rows: BadRows | None = None) -> Iterator[tuple[int, dict]]:
    """The rows of a parquet file, or of ESCI's two files joined, with row numbers from 1.

    `path` is one parquet file, or ESCI's examples file, or the folder that holds it and the products file. Examples
    keep their order; only the products they name are held in memory.

    Raises: ModuleNotFoundError without pyarrow; FileNotFoundError; ValueError naming the file that is damaged, for a
        product that occurs twice and differs, and for an example whose product is missing (`bad_rows` may skip it).
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no file at {path}: check --data")
    examples = _one_file(path, "*examples*.parquet") if path.is_dir() else path
    bad_rows = bad_rows or BadRows(examples)
    bad_rows.path = examples  # the file whose rows are counted, even if `path` is the folder
    columns = _parquet(examples).schema_arrow.names
    try:
        if "product_title" in columns or "esci_label" not in columns:
            for number, row in enumerate(_parquet_rows(examples), start=1):
                bad_rows.rows += 1
                yield number, row
        else:
            yield from _join_products(examples, _one_file(examples.parent, "*products*.parquet"), bad_rows)
    finally:
        bad_rows.summarise()


def _join_products(examples: Path, products: Path, bad_rows: BadRows) -> Iterator[tuple[int, dict]]:
    keys = [name for name in ("product_id", "product_locale") if name in _parquet(examples).schema_arrow.names]
    wanted = {tuple(str(row[key]) for key in keys) for row in _parquet_rows(examples, columns=keys)}
    catalogue: dict[tuple, dict] = {}
    for number, product in enumerate(_parquet_rows(products), start=1):
        key = tuple(str(product.get(name)) for name in keys)
        if key in wanted and catalogue.setdefault(key, product) != product:
            raise ValueError(f"{products}:{number}: product {'/'.join(key)} is there twice, with different columns")
    for number, example in enumerate(_parquet_rows(examples), start=1):
        bad_rows.rows += 1
        key = tuple(str(example[name]) for name in keys)
        if key in catalogue:
            yield number, {**example, **catalogue[key]}
        else:
            bad_rows.add(number, f"unknown product: {'/'.join(key)} is not in {products.name}")


def _one_file(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        names = [file.name for file in found]
        raise FileNotFoundError(f"expected one {pattern} in {folder}, found {names or 'none'}: check --data")
    return found[0]


def _parquet(path: Path) -> Any:
    try:
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise ModuleNotFoundError(f"reading {path.name} needs pyarrow: pip install 'taosr1[data]'") from None
    with _naming_file(path):
        return parquet.ParquetFile(path)


def _parquet_rows(path: Path, columns: list[str] | None = None) -> Iterator[dict]:
    batches = _parquet(path).iter_batches(batch_size=4096, columns=columns)
    while True:
        with _naming_file(path):
            batch = next(batches, None)
            rows = [] if batch is None else [clean_value(row) for row in batch.to_pylist()]
        if batch is None:
            return
        for row in rows:
            yield {name: _json_value(value) for name, value in row.items()}


@contextmanager
def _naming_file(path: Path) -> Iterator[None]:
    """Turn pyarrow's errors about damaged data, of many types and without the file's name, into one that names it."""
    try:
        yield
    except (ValueError, OSError, TypeError, KeyError) as problem:
        if isinstance(problem, OSError) and problem.filename is not None:
            raise
        raise ValueError(f"{path}: not a readable parquet file ({shorten(str(problem), 200)})") from None


def _json_value(value: Any) -> Any:
    """A parquet value as a JSON value: NaN (pandas' missing value) becomes null, dates and decimals their text."""
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, list):
        return [_json_value(item) for item in value]
    if isinstance(value, dict):
        return {name: _json_value(item) for name, item in value.items()}
    return value if value is None or isinstance(value, (str, int, float)) else str(value)
