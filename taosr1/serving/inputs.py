"""What Python callers give as query, products and pairs, as checked judgements; every error names its place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from taosr1.data.columns import ColumnNames
from taosr1.data.judgements import judgement_to_dict, parse_judgement
from taosr1.runtime.bad_rows import shorten
from taosr1.runtime.jsonl import clean_value
from taosr1.task.judgement import Judgement

# A title; columns as in a data file (other names are ignored, as readers do); or a judgement.
Product = str | Mapping[str, Any] | Judgement
# (query, product), or what holds both: columns with "query", or a judgement.
Pair = tuple[str, Product] | list[Any] | Mapping[str, Any] | Judgement
_NAMES = ColumnNames()
PRODUCT_EXPECTED = "expected a title, a dict of columns (title, brand, price, ...) or a Judgement"
PAIR_EXPECTED = "expected (query, product), a dict with query and title, or a Judgement"


def judgements_of(query_or_pairs: Any, products: Any = None) -> tuple[list[Judgement], bool]:
    """(judgements, whether a single product or pair was given).

    With `products`, the first argument is their query; without, it is one pair or several. Several: a list, tuple,
    generator, array, data frame (its rows), or anything else that can be iterated over and has an order.
    Places are counted from 0, as Python does. No products and no pairs give no judgements.
    Raises: ValueError naming the product or pair: an empty query, a product without a word, bytes, None, NaN, ...
    """
    if products is None:
        return _judgements_of_pairs(query_or_pairs)
    query = _query(query_or_pairs, "")
    if is_product(products):
        return [_judgement(query, products, "")], True
    places = enumerate(listed(products, "products"))
    return [_judgement(query, product, f"product {place}: ") for place, product in places], False


def is_product(value: Any) -> bool:
    """Whether this is one product, not several."""
    value = _as_mapping(value)
    return isinstance(value, (str, bytes, bytearray, Mapping, Judgement)) or _is_number(value)


def _as_mapping(value: Any) -> Any:
    """A row of a data frame (a Series by column, a named tuple) as a dict; of (index, row) the row; else unchanged."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return value._asdict()
    if hasattr(value, "index") and hasattr(value, "to_dict") and not hasattr(value, "columns"):
        columns = value.to_dict()
        return columns if columns and all(isinstance(name, str) for name in columns) else value
    if isinstance(value, tuple) and len(value) == 2 and isinstance(row := _as_mapping(value[1]), Mapping):
        return row if not isinstance(value[0], str) and "query" in row else value
    return value


def _judgements_of_pairs(pairs: Any) -> tuple[list[Judgement], bool]:
    if isinstance(pairs, str):
        raise ValueError(f"products are missing: score({shorten(pairs)!r}, products), or score(pairs)")
    pairs = _as_mapping(pairs)
    if isinstance(pairs, (Mapping, Judgement)):
        return [_of_pair(pairs, "")], True
    items = listed(pairs, "pairs")
    if len(items) == 2 and isinstance(items[0], str):
        return [_of_pair(items, "")], True  # as CrossEncoder.predict: (query, product) and [query, product] are a pair
    return [_of_pair(pair, f"pair {place}: ") for place, pair in enumerate(items)], False


def _of_pair(pair: Any, where: str) -> Judgement:
    pair = _as_mapping(pair)
    if isinstance(pair, Judgement):
        return _judgement(_query(pair.query, where), pair, where)
    if isinstance(pair, Mapping):
        pair = _columns(pair)
        if "query" not in pair:
            found = ", ".join(map(repr, pair)) or "no columns"
            raise ValueError(f"{where}query is missing; the pair has {shorten(found, 200)}")
        return _judgement(_query(pair["query"], where), pair, where)
    if isinstance(pair, (str, bytes)) or not hasattr(pair, "__len__") or len(pair) != 2:
        several = "; for several products of one query: score(query, products)" if isinstance(pair, str) else ""
        raise ValueError(f"{where}{_shown(pair)}, {PAIR_EXPECTED}{several}")
    query, product = pair
    return _judgement(_query(query, where), product, where)


def _query(query: Any, where: str) -> str:
    if not isinstance(query, str):
        raise ValueError(f"{where}query is {shorten(repr(query))}, expected text")
    if not query.strip():
        raise ValueError(f"{where}query is empty")
    return str(query)


def _judgement(query: str, product: Any, where: str) -> Judgement:
    product = _as_mapping(product)
    if isinstance(product, Judgement):
        row = judgement_to_dict(product)
    elif isinstance(product, Mapping):
        row = _columns(product)
    elif isinstance(product, str) or (_is_number(product) and product == product):  # a title such as 1984, not NaN
        row = {"title": _unwrapped(product)}
    else:
        raise ValueError(f"{where}{_shown(product)}, {PRODUCT_EXPECTED}")
    own = row.get("query")
    if own not in (None, "", query):
        raise ValueError(f"{where}its own query is {shorten(repr(own))}, but {shorten(repr(query))} was given")
    needed = {name: value for name, value in row.items() if name not in ("grade", "cot")}  # judging needs neither
    try:
        return parse_judgement(clean_value({**needed, "query": query}))
    except ValueError as problem:
        raise ValueError(f"{where}{problem}") from None


def _columns(row: Mapping[Any, Any]) -> dict[str, Any]:
    """A row's columns under our names, as the readers of files find them."""
    return _NAMES.rename({str(name): _unwrapped(value) for name, value in row.items()})


def listed(values: Any, name: str) -> list[Any]:
    """The elements of anything that has several in an order; of a data frame its rows as dicts."""
    for rows in ("to_dicts", "to_pylist"):  # polars, pyarrow
        if hasattr(values, rows):
            return list(getattr(values, rows)())
    if hasattr(values, "columns") and hasattr(values, "to_dict"):  # pandas
        return list(values.to_dict("records"))
    if isinstance(values, (set, frozenset)):
        raise ValueError(f"{name} are a set, which has no order: give a list")
    try:
        return list(values)
    except TypeError:
        expected = PRODUCT_EXPECTED if name == "products" else PAIR_EXPECTED
        raise ValueError(f"{name}: {_shown(values)}, {expected}, or several of them") from None


def _is_number(value: Any) -> bool:
    """An int or a float, or one of numpy's; no bool."""
    value = _unwrapped(value, keep_nan=True)
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _unwrapped(value: Any, *, keep_nan: bool = False) -> Any:
    """A numpy scalar as Python's own; what pandas writes for a missing value as None."""
    if type(value).__module__.partition(".")[0] == "numpy" and getattr(value, "shape", None) == ():
        value = value.item()
    if type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and value != value and not keep_nan):
        return None
    return value


def _shown(value: Any) -> str:
    kind = type(value).__name__
    hint = " (decode it first)" if isinstance(value, (bytes, bytearray)) else ""
    return f"{shorten(repr(value))}{f' of type {kind}' if value is not None else ''}{hint}"
