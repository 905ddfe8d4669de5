"""Makes one readable text of a cell: numbers, lists and objects are flattened, missing and invisible values are empty.

Choices: an object of attributes becomes "name: value; name: value", a nested one "ram size: 16; ram unit: GB". A brand
that is an object is its name, a price its amount and currency. "nan", "None", "<NA>" and the like, alone in a cell, are
what other programs write for a missing value; a word of a longer text is never touched.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any

from taosr1.runtime.bad_rows import shorten
from taosr1.task.judgement import COLUMNS

MISSING_WORDS = frozenset(
    "nan NaN NAN -nan None null NULL Null <NA> NA N/A n/a #N/A #NA NaT \\N (null) undefined".split()
)
_FORMULA = re.compile(r"=\s*(?:\$?[A-Z]{1,3}\$?\d|[A-Z]+\()")  # of a spreadsheet: =A2&"x", =TEXT(A2;"000")
MAX_LEVELS = 4  # of attributes inside attributes; a deeper object is no list of attributes
_JOINERS = {"attributes": "; ", "category": " > ", "description": " "}  # columns in which a list has a clear meaning
_NAME_KEYS, _VALUE_KEYS = ("name", "key", "attribute", "label"), ("value", "values", "val")
# Drawn as nothing, though Unicode calls them letters, signs or marks.
_DRAWN_AS_NOTHING = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0") | {
    chr(code) for code in (*range(0x180B, 0x1810), *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))
}


def is_blank(text: str) -> bool:
    """Whether nothing of a text can be seen: spaces, marks of width zero or of direction, soft hyphens, fillers."""
    return all(
        char.isspace() or char in _DRAWN_AS_NOTHING or unicodedata.category(char) in ("Cc", "Cf", "Zs", "Zl", "Zp")
        for char in text
    )


def is_missing(value: Any) -> bool:
    """Whether a cell is "nan", "None", "<NA>" or another word that a program wrote for a missing value."""
    return isinstance(value, str) and value.strip() in MISSING_WORDS


def without_missing(row: dict) -> dict:
    """The row with the missing values of its known columns as ""; the row itself if there are none.

    Raises: ValueError for a query or title that is missing: the row judges nothing.
    """
    missing = [name for name, value in row.items() if name in _READ and is_missing(value)]
    for name in missing:
        if name in ("query", "title", "product_title"):
            raise ValueError(f"field {name!r} is {row[name]!r}, the word of a program for a missing value")
    return {**row, **dict.fromkeys(missing, "")} if missing else row


def to_text(name: str, value: Any) -> str:
    """The value of a text column as text. Raises: ValueError naming the field, and the place in it."""
    if isinstance(value, str):
        if value[:1] == "=" and name in ("query_id", "item_id") and _FORMULA.match(value):
            raise ValueError(f"field {name!r} is the formula {shorten(repr(value))}, expected its value: export values")
        return value if "!" <= value[:1] <= "~" or not is_blank(value) else ""
    if isinstance(value, (dict, list)):
        if name == "attributes":
            return "; ".join(_attributes(value, "", MAX_LEVELS))
        if isinstance(value, list) and name in _JOINERS:
            paths = name == "category" and any(isinstance(item, list) for item in value)
            return (", " if paths else _JOINERS[name]).join(filter(None, (_element(name, item) for item in value)))
        if name == "brand" and (found := _first(value, _NAME_KEYS)):
            return to_text(name, found)
        if name == "price" and (amount := _first(value, ("amount", "value", "price"))) is not None:
            return " ".join(filter(None, (_number(name, amount), _number(name, _first(value, ("currency", "unit"))))))
        raise ValueError(f"field {name!r} is {shorten(repr(value))}, expected text")
    return _number(name, value)


def _number(name: str, value: Any) -> str:
    """A number, text or null as text."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        if abs(value) >= 2**53:  # two ids of so many digits can be the same float
            raise ValueError(f"field {name!r} is {value}, too large to be exact as a float: write it as text")
        # Many tools write the integers of a column with missing values as 123.0.
        return str(int(value)) if value.is_integer() else str(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise ValueError(f"field {name!r} is {shorten(repr(value))}, expected text")


def _element(name: str, item: Any) -> str:
    """One element of a category or description: text, {"name": ...}, or a path of a list of paths."""
    if isinstance(item, dict) and (found := _first(item, _NAME_KEYS)) is not None:
        item = found
    if isinstance(item, list) and name == "category" and not any(isinstance(part, (dict, list)) for part in item):
        return " > ".join(filter(None, (_element(name, part) for part in item)))
    if isinstance(item, (dict, list)):
        raise ValueError(f"field {name!r} holds {shorten(repr(item))}, expected text in its list")
    return _scalar(name, item)


def _attributes(value: Any, path: str, levels: int) -> list[str]:
    """ "name: value" for every value in an object or list of attributes; `path` is the name of the whole."""
    if isinstance(value, dict):
        if path_and_value := _named(value):
            value = dict([path_and_value])
        _check_levels(value, path, levels)
        return [
            text for name, item in value.items() for text in _attributes(item, f"{path} {name}".strip(), levels - 1)
        ]
    if isinstance(value, list):
        if any(isinstance(item, (dict, list)) for item in value):
            _check_levels(value, path, levels)
            return [text for item in value for text in _attributes(item, path, levels - 1)]
        if path:  # several values of one name
            text = ", ".join(filter(None, (_scalar("attributes", item) for item in value)))
            return [f"{_clean(path)}: {_clean(text)}"] if text else []
        return [text for item in value if (text := _clean(_scalar("attributes", item)))]
    text = _clean(_scalar("attributes", value))
    return [f"{_clean(path)}: {text}" if path else text] if text else []


def _check_levels(value: Any, path: str, levels: int) -> None:
    if levels <= 0:
        where = f" at {shorten(repr(path))}" if path else ""
        raise ValueError(
            f"field 'attributes' holds {shorten(repr(value))}{where}, more than {MAX_LEVELS} lists and objects in each "
            "other: write it as text"
        )


def _named(value: dict) -> tuple[str, Any] | None:
    """Name and value of {"name": "colour", "value": "red"}."""
    names, values = [key for key in _NAME_KEYS if key in value], [key for key in _VALUE_KEYS if key in value]
    if len(value) == 2 and names and values and isinstance(value[names[0]], str):
        return value[names[0]], value[values[0]]
    return None


def _first(value: Any, keys: tuple[str, ...]) -> Any:
    """The first of these entries of an object that is a plain value, else None."""
    found = [value[key] for key in keys if key in value] if isinstance(value, dict) else []
    return found[0] if found and isinstance(found[0], (str, int, float)) else None


def _scalar(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = _number(name, value)
    return "" if is_missing(text) or is_blank(text) else text


def _clean(text: str) -> str:
    return text.replace(";", ",")  # ";" separates attributes, so it cannot stand inside one


_READ = frozenset(COLUMNS) | {
    "product_title", "product_brand", "product_color", "product_color_name", "product_bullet_point",
    "product_description", "product_category", "product_price", "product_id", "esci_label",
}  # fmt: skip
