"""A judgement against its raw row, for tests/faults/fuzz.py, by code that shares nothing with the package."""

from __future__ import annotations

import html
import re
import unicodedata

from fuzz_oracle import Wrong, canonical, leaves

from taosr1.data.judgements import COLUMNS, Judgement

SPELLINGS = """
query: search term, search query, search phrase, searchterm, query text, keyword, keywords
title: product title, product name, item title, item name, productname, name
brand: brand name, product brand
attributes: product attributes, product features, item attributes
category: category hierarchy, category path, product category, item category
description: desc, product description, product desc, item description
price: product price, item price
grade: label, relevance, relevance label, relevance grade, judgement, judgment
query_id: query id, qid, queryid
item_id: item id, product id, productid, itemid, doc id, docid, document id, sku, asin
query_kind: query kind
cot: cot
"""
OURS = {}
for entry in SPELLINGS.strip().split("\n"):
    ours, _, others = entry.partition(": ")
    OURS |= dict.fromkeys([ours, *others.split(", ")], ours)
ESCI = {
    "esci label", "product id", "product locale", "product title", "product brand", "product color",
    "product color name", "product bullet point", "product description", "product category", "product price",
}  # fmt: skip
WORDS_FOR_NOTHING = "nan NaN NAN -nan None null NULL Null <NA> NA N/A n/a #N/A #NA NaT \\N (null) undefined".split()


def spaced(name: str) -> str:
    return " ".join(re.split(r"[\s_-]+", name.strip().strip("\ufeff").strip().lower()))


MARKS = ("pred_grade", "gold_grade", "labelled_by", "label_mass", "prompt_sha", "probs", "well_formed", "split")


def named(raw: dict) -> dict | None:
    """The row under our names, by the documented rules; None if two columns could be one of ours."""
    names = [spaced(name) for name in raw]
    esci = "title" not in names and ("esci label" in names or "product title" in names)
    found: dict[str, list[str]] = {}
    for name in raw:
        if name in COLUMNS:
            continue
        ours = OURS.get(spaced(name))
        if esci and spaced(name) in ESCI:
            ours = spaced(name).replace(" ", "_") if spaced(name).replace(" ", "_") not in raw else ours
        if ours and ours not in raw:
            found.setdefault(ours, []).append(name)
    plan = {}
    for ours, others in found.items():
        official = [name for name in others if esci and name == spaced(name).replace(" ", "_") and spaced(name) in ESCI]
        if official and (ours != "title" or len(others) == 1):
            continue
        if len(others) > 1:
            return None
        plan[others[0]] = ours
    weak = [name for name in raw if spaced(name) in ("product class", "product type")]
    if weak and not esci and "category" not in raw and "category" not in plan.values():
        plan[weak[0]] = "category"
    for name in raw:  # marks of our own programs, however they are spelled
        mark = spaced(name).replace(" ", "_")
        if mark in MARKS and mark not in raw:
            plan[name] = mark
    return {plan.get(name, name): value for name, value in raw.items()}


def is_nothing(value: object) -> bool:
    """A word for a missing value, alone in its cell."""
    return isinstance(value, str) and value.strip() in WORDS_FOR_NOTHING


def visible(text: str) -> str:
    """The text, or "" if no character of it is drawn."""
    drawn = any(
        unicodedata.category(char)[0] not in "CZ" or unicodedata.category(char) in ("Co", "Cn", "Cs") for char in text
    )
    return text if drawn else ""


def check_judgement(row: Judgement, raw: dict, line: int) -> None:
    """Raise Wrong if a judgement differs from its raw row."""
    told_raw, raw = raw, named(raw)
    if raw is None:
        raise Wrong(f"line {line}: two columns could be one of ours, but a row was made of {told_raw!r:.300}")
    for name in [name for name in raw if name in COLUMNS or spaced(name) in ESCI]:
        if is_nothing(raw[name]):
            if name in ("query", "title", "product_title"):
                raise Wrong(f"line {line}: {name} is {raw[name]!r}, but a row was made of it")
            raw[name] = ""
    esci = "title" not in raw
    sources = {
        "title": "product_title", "brand": "product_brand", "category": "product_category", "price": "product_price",
        "item_id": "product_id", "attributes": None, "description": "product_description", "query_kind": None,
    } if esci else {}  # fmt: skip
    for name in COLUMNS:
        told = getattr(row, name)
        source = name if raw.get(name) not in (None, "") else sources.get(name, name)
        if name == "grade":
            told, expected = told, grade_of(raw, esci)
        elif source is None:
            continue
        elif source != name and name in ("title", "brand", "description"):
            expected = raw.get(source)
            expected = visible(" ".join(html.unescape(expected).split())) if isinstance(expected, str) else told
            told, expected = (told, told) if name == "description" and "<" in expected else (told, expected)
        else:
            expected = spelled_as_text(raw.get(source), told, name)
        if told != expected:
            raise Wrong(f"line {line}: {name} is {told!r:.200}, the file says {expected!r:.200}")
    rest = {name: value for name, value in raw.items() if name not in COLUMNS}
    if canonical(row.extra) != canonical(rest):
        raise Wrong(f"line {line}: other columns are {row.extra!r:.200}, the file says {rest!r:.200}")


def grade_of(raw: dict, esci: bool) -> int | None:
    label = raw.get("esci_label") if esci else None
    if label is not None and str(label).strip():
        return {"E": 4, "S": 3, "C": 2, "I": 1}[str(label).strip().upper()[0]]
    value = raw.get("grade")
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    return {"1": 1, "2": 2, "3": 3, "4": 4}[str(value).strip()[0]]


def spelled_as_text(value: object, told: str, name: str) -> str:
    if isinstance(value, str):
        return "\n".join(line.rstrip() for line in value.split("\n")).strip() if name == "cot" else visible(value)
    if value is None:
        return ""
    if isinstance(value, float):
        return told if float(told) == value else repr(value)
    if isinstance(value, (list, dict)):
        words = [
            str(leaf).replace(";", ",") if name == "attributes" else str(leaf)
            for leaf in leaves(value)
            if isinstance(leaf, (str, int)) and not isinstance(leaf, bool) and not is_nothing(leaf)
        ]
        return told if all(word in told for word in words) else repr(value)
    return str(value)
