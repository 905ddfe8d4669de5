"""Reads the fields of a request: each is checked, and a message names the field, what was found and what is expected.

Product text is read as it is read from data files, without the messages about files: a product is a title, or an object
with the product's columns under our names or common other ones (`OTHER_NAMES`); fields of other names are not read.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Sequence
from typing import Any

from taosr1.data.columns import OTHER_NAMES, as_attributes
from taosr1.data.esci import esci_row, is_esci
from taosr1.data.flatten import is_blank, is_missing, to_text
from taosr1.runtime.bad_rows import shorten
from taosr1.runtime.jsonl import clean_text, clean_value
from taosr1.server.errors import Refused
from taosr1.server.limits import Limits
from taosr1.task.judgement import Judgement
from taosr1.task.prompt import ITEM_FIELDS

# The names of a product's columns, in the spelling of `_spelling`: {"product_title": "title", ...}.
NAMES = {other: ours for ours in ITEM_FIELDS for other in (ours, *OTHER_NAMES[ours])}
LESSER_NAMES = ("name", "text")  # the title, in this order, where no better name of it is there
_KINDS = {dict: "object", list: "list", str: "text", bool: "boolean", int: "number", float: "number"}


def shown(value: Any) -> str:
    """A value in a message: short, and of long lists and objects the kind alone."""
    if isinstance(value, (dict, list)):
        return f"{'an' if isinstance(value, dict) else 'a'} {_KINDS[type(value)]} of {len(value)}"
    return "null" if value is None else shorten(repr(value), 60)


def object_of(body: Any, expected: str) -> dict:
    """The body. Raises: Refused where it is no JSON object; expected: the fields it should have, as text."""
    if not isinstance(body, dict):
        raise Refused(422, f"the body is {shown(body)}, expected an object with {expected}")
    return body


def refuse_unknown(body: dict, known: Collection[str]) -> None:
    """Raises: Refused naming the first field that is none of these: a misspelt field would have no effect."""
    for name in body:
        if name not in known:
            close = difflib.get_close_matches(name[:100], known, 1)
            meant = f" (perhaps {close[0]!r})" if close else ""
            raise Refused(422, f"field {shorten(repr(name), 60)} is not known{meant}, expected {', '.join(known)}")


def flag_of(body: dict, name: str, default: bool = False) -> bool:
    """A boolean field; null is its default."""
    value = body.get(name)
    if value is None or isinstance(value, bool):
        return default if value is None else value
    raise Refused(422, f"field {name!r} is {shown(value)}, expected true or false")


def word_of(body: dict, name: str) -> str:
    """A field of a few characters; "" where it is absent or null."""
    value = body.get(name)
    if value is None or isinstance(value, str):
        return value or ""
    raise Refused(422, f"field {name!r} is {shown(value)}, expected text")


def whole_of(body: dict, name: str, least: int) -> int | None:
    """An integer field of at least `least`; None where it is absent or null."""
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise Refused(422, f"field {name!r} is {shown(value)}, expected a whole number of {least} or more")
    return value


def query_of(body: dict, limits: Limits, name: str = "query", empty: int = 422) -> str:
    """The query: text with something to see in it. empty: the status where it has nothing."""
    if name not in body:
        raise Refused(422, f"field {name!r} is missing, expected the query as text")
    value = body[name]
    if not isinstance(value, str):
        raise Refused(422, f"field {name!r} is {shown(value)}, expected the query as text")
    if is_blank(value):
        raise Refused(empty, f"field {name!r} is empty, expected the query as text")
    return clean_text(bounded(value, name, limits))


def list_of(body: dict, name: str, limits: Limits, what: str, *, empty: int = 422, many: int = 422) -> list:
    """A list of 1 to `max_products`. what: its elements, in words. empty, many: the statuses of too short and long."""
    if name not in body:
        raise Refused(422, f"field {name!r} is missing, expected a list of {what}")
    value = body[name]
    if not isinstance(value, list):
        raise Refused(422, f"field {name!r} is {shown(value)}, expected a list of {what}")
    if not value:
        raise Refused(empty, f"field {name!r} is empty, expected at least one of its {what}")
    if len(value) > limits.max_products:
        limit = f"expected at most {limits.max_products}: send several requests"
        raise Refused(many, f"field {name!r} has {len(value)} {what}, {limit}")
    return value


def bounded(text: str, name: str, limits: Limits) -> str:
    """The text. Raises: Refused where it is longer than a text may be."""
    if len(text) > limits.max_chars:
        raise Refused(422, f"{name!r} has {len(text)} characters, expected at most {limits.max_chars}: send fewer")
    return text


def product_of(query: str, value: Any, name: str, limits: Limits, *, cut: bool = False) -> Judgement | None:
    """A product to be judged for the query; None where it has nothing to see.

    value: a title, or an object of columns. name: its place in the request, such as products[3]. cut: texts that are
    too long are cut, else refused.
    Raises: Refused naming the place and the field.
    """
    columns = columns_of(value, name) if isinstance(value, dict) else {"title": value}
    if isinstance(value, dict) and is_esci(value):
        columns = {**columns, **_esci_columns(value, columns, name)}
    texts = {}
    for ours, found in columns.items():
        if isinstance(value, dict):
            found = _text(ours, found, name)
        elif not isinstance(found, str):
            raise Refused(422, f"{name!r} is {shown(found)}, expected a title as text, or an object with a title")
        found = "" if is_missing(found) or is_blank(found) else clean_text(found)
        place = f"{name}.{ours}" if isinstance(value, dict) else name
        texts[ours] = found[: limits.max_chars] if cut else bounded(found, place, limits)
    if not any(texts.values()):
        return None
    return Judgement(query=query, **{"title": "", **texts})


def _text(ours: str, value: Any, name: str) -> str:
    """A column as text, as the readers of files flatten it: attributes "name: value; ...", categories "A > B"."""
    try:
        return to_text(ours, clean_value(value))
    except ValueError as problem:
        raise Refused(422, f"{name!r}: {problem}") from None


def columns_of(product: dict, name: str) -> dict[str, Any]:
    """The columns of an object that a product has, under our names.

    Raises: Refused where two could be the same one, and where there is none.
    """
    found: dict[str, str] = {}
    lesser: dict[str, str] = {}
    for key in product:
        spelling = _spelling(key)
        ours = NAMES.get(spelling)
        if ours is None:
            lesser |= {spelling: key} if spelling in LESSER_NAMES else {}
        elif ours not in found or key == ours:
            found[ours] = key  # our own name goes before others
        elif found[ours] != ours:
            both = f"{shorten(repr(found[ours]), 60)} and {shorten(repr(key), 60)}, which could both be its {ours}"
            raise Refused(422, f"{name!r} has {both}: send one of them, or {ours!r}")
    for spelling in LESSER_NAMES:
        if spelling in lesser:
            found.setdefault("title", lesser[spelling])
    if not found:
        names = shorten(", ".join(map(repr, product)), 100) or "no fields"
        raise Refused(422, f"{name!r} has {names}, expected some of {', '.join(ITEM_FIELDS)}")
    return {ours: as_attributes(key, product[key]) for ours, key in found.items()}


def _esci_columns(product: dict, columns: dict, name: str) -> dict[str, str]:
    """ESCI's columns as its reader gives them: entities and tags made plain, colour and bullet points as attributes."""
    known = {key: value for key, value in product.items() if key.startswith("product_")}
    if "product_title" not in known:
        return {}
    try:
        row = esci_row(clean_value(known))
    except ValueError as problem:
        raise Refused(422, f"{name!r}: {problem}") from None
    found = {ours: row[ours] for ours in ("title", "brand", "description") if ours not in product}
    return found | ({} if "attributes" in columns else {"attributes": row["attributes"]})


def _spelling(name: str) -> str:
    """A name in lower case, without spaces and hyphens: "Product Title" -> "product_title"."""
    return re.sub(r"[\s-]+", "_", name[:100].strip().casefold())


def products_of(query: str, values: Sequence[Any], name: str, limits: Limits) -> list[Judgement]:
    """All products of a request, none of them empty."""
    pairs = []
    for place, value in enumerate(values):
        pair = product_of(query, value, f"{name}[{place}]", limits)
        if pair is None:
            raise Refused(422, f"'{name}[{place}]' is empty, expected a title as text, or an object with a title")
        pairs.append(pair)
    return pairs
