"""Reads a shop's catalogue: products without queries, in any format of `--data`; and the pools that are made of it.

Needed is a title; brand, price, category, description, item_id and attributes are read where they are there, under the
names that `--data` knows or that `--columns` gives. Every other column with a short value is an attribute of its own
name ("color", "capacity"): few catalogues keep them in one column.
"""

from __future__ import annotations

import re
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

from taosr1.data.columns import ColumnNames
from taosr1.data.esci import plain_text
from taosr1.data.flags import AS_FOUND, ReadFlags
from taosr1.data.flatten import is_blank, to_text, without_missing
from taosr1.data.queries import plain
from taosr1.data.rows import data_files, read_rows
from taosr1.runtime.bad_rows import BadRows, shorten
from taosr1.runtime.messages import counted
from taosr1.synthetic.from_catalogue.pools import POOLS, make_pool
from taosr1.synthetic.from_catalogue.shop import Shop
from taosr1.synthetic.shop import POOL_SIZES
from taosr1.task.judgement import Judgement

FIELDS = ("title", "brand", "attributes", "category", "description", "price", "item_id")
SHORT_VALUE = 60  # characters of a column that is read as an attribute
_NO_ATTRIBUTE = re.compile(
    r"url|image|img|link|\bid\b|_id$|^id|sku|ean|gtin|upc|date|time|html|score|rank|grade|split|query"
)


def read_catalogue(spec: str | Path, read: ReadFlags = AS_FOUND) -> list[Judgement]:
    """The products of a catalogue, each once, as judgements with an empty query.

    Tags and entities of HTML are taken out of every text. Of products with the same title, brand and attributes the
    first is kept, and the others are counted on stderr.

    Raises: FileNotFoundError; ValueError naming file, line and field for a row without a title or with a value that is
        no text (the first `read.max_bad_rows` are skipped, and counted), and for a file without a product.
    """
    files = tuple((str(path), *_stamp(path)) for path in data_files(spec))
    return list(_products(str(spec), files, read))


def read_catalogue_pool(
    spec: str | Path, pool: str, size: int | None = None, seed: int = 0, read: ReadFlags = AS_FOUND
) -> list[Judgement]:
    """The pairs of one pool of a catalogue's world (`taosr1/synthetic/from_catalogue/pools.py`).

    Raises: as `read_catalogue`; ValueError for an unknown pool, or where no kind of thing has enough products.
    """
    if pool not in POOLS:
        expected = f"expected catalogue:FILE:NAME or catalogue:FILE:NAME*SIZE, NAME one of {', '.join(POOLS)}"
        raise ValueError(f"catalogue:{spec}:{pool}: no such pool of a catalogue, {expected}")
    files = tuple((str(path), *_stamp(path)) for path in data_files(spec))
    shop = _shop(str(spec), files, read)
    usual = POOL_SIZES.get(pool, POOL_SIZES["labelled"])  # of "explained" and "titles", too
    return make_pool(shop, pool, usual if size is None else size, seed)


@lru_cache(maxsize=2)
def _shop(spec: str, files: tuple[tuple, ...], read: ReadFlags) -> Shop:
    shop = Shop.of(_products(spec, files, read))
    print(f"{spec}: {shop.said()}", file=sys.stderr)
    return shop


def _stamp(path: Path) -> tuple[int, int]:
    return (path.stat().st_mtime_ns, path.stat().st_size) if path.is_file() else (0, 0)


@lru_cache(maxsize=2)  # a training reads one catalogue for --data, --dev and --test
def _products(spec: str, files: tuple[tuple, ...], read: ReadFlags) -> tuple[Judgement, ...]:
    names, found, rows = ColumnNames(read.columns), {}, 0
    # A catalogue has no grades: those names are of the judgements that the same command reads.
    names.wanted = {name: ours for name, ours in names.wanted.items() if ours in FIELDS}
    for path, *_ in files:
        bad_rows, of_file = BadRows(path, read.max_bad_rows), 0
        for line, raw in read_rows(path, bad_rows, read):
            try:
                product = _product(without_missing(_with_query(names, raw)), path, line)
            except ValueError as problem:
                bad_rows.add(line, problem)
                continue
            of_file += 1
            found.setdefault((plain(product.title), plain(product.brand), plain(product.attributes)), product)
        if not of_file:
            raise ValueError(f"{path}: no products in this file: check --data catalogue:FILE:POOL")
        rows += of_file
    names.check_found(spec)
    twice = rows - len(found)
    said = f"; {counted(twice, 'duplicate')} left out" if twice else ""
    print(f"{spec}: {counted(len(found), 'product')}, {_shares(list(found.values()))}{said}", file=sys.stderr)
    return tuple(found.values())


def _with_query(names: ColumnNames, raw: dict) -> dict:
    row = names.rename(raw)
    if "title" not in row:
        has = shorten(", ".join(map(repr, raw)), 200) or "no columns"
        raise ValueError(f"field 'title' is missing; the row has {has}: --columns \"NAME=title\" says which one it is")
    return row


def _product(row: dict[str, Any], path: str, line: int) -> Judgement:
    text = {name: to_text(name, row.get(name)) for name in FIELDS}
    texts = {name: plain_text(value) if name not in ("item_id", "price") else value for name, value in text.items()}
    if is_blank(texts["title"]):
        raise ValueError("field 'title' is empty: a product needs one")
    others = (_attribute(name, value) for name, value in row.items() if name not in FIELDS)
    texts["attributes"] = "; ".join(filter(None, [texts["attributes"], *others]))
    return Judgement("", **texts, source=path, line=line)


def _attribute(name: str, value: Any) -> str:
    """A column that is none of ours, as "name: value"; "" where it is long, empty, or names no property."""
    if isinstance(value, (dict, list)) or value is None or _NO_ATTRIBUTE.search(name.casefold()):
        return ""
    text = plain_text(("yes" if value else "no") if isinstance(value, bool) else str(value)).replace(";", ",")
    short = 0 < len(text) <= SHORT_VALUE and not is_blank(text)
    return f"{name.replace('_', ' ').replace(':', ' ').strip()}: {text}" if short else ""


def _shares(products: list[Judgement]) -> str:
    """ "brand in 99 %, price in 87 %, ..." of the columns that some product has."""
    filled = {name: sum(bool(getattr(row, name).strip()) for row in products) for name in FIELDS[1:-1]}
    return ", ".join(f"{name} in {100 * count / len(products):.0f} %" for name, count in filled.items() if count) or (
        "titles alone"
    )
