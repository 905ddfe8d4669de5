"""Ways out for rows in which a column is missing: which column it may be, and which shape is expected of JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from taosr1.runtime.bad_rows import shorten

SHOWN = 3  # columns that are named as possible
SUCH_AS = 'such as {"query": "travel mug", "title": "Steel mug", "grade": 4}'
ONE_PAIR = f"expected one object for each pair, {SUCH_AS}"
# Parts of names that may say what a column is, too vague to read it without being told.
LIKELY = {
    "query": ("search", "query", "such", "requ", "recherche", "busq", "consulta", "keyword", "term", "phrase"),
    "title": ("title", "titel", "titre", "product", "produkt", "produit", "producto", "artikel", "item", "name"),
    "grade": ("grade", "rating", "relevan", "label", "judg", "bewertung", "score", "stars"),
}  # fmt: skip


def likely(ours: str, names: Iterable[str]) -> list[str]:
    """`NAME=ours` for the names that may mean it, as --columns takes them."""
    words = LIKELY[ours]
    found = [name for name in names if any(word in name.casefold() for word in words) and not set(name) & {",", '"'}]
    return [f'"{name.strip()}={ours}"' for name in found if len(name) <= 60][:SHOWN]


def shape_of(row: dict, known: Callable[[str], str]) -> str:
    """What is wrong with a row of JSON that holds its texts elsewhere; "" if nothing is seen. known: a name as ours."""
    if all(isinstance(row.get(name), (dict, list)) for name in ("query", "title")) or {"columns", "data"} <= row.keys():
        return f"the table is written column by column: {ONE_PAIR} (pandas: orient='records', lines=True)"
    if isinstance(hits := row.get("hits"), dict) and "hits" in hits:
        return f"this is an answer of Elasticsearch: {ONE_PAIR} (jq -c '.hits.hits[]._source' FILE > rows.jsonl)"
    for name, value in row.items():
        inner = value[0] if isinstance(value, list) and value else value
        if isinstance(inner, dict) and any(known(key) in ("query", "title") for key in inner):
            what = "a list of objects" if inner is not value else "an object"
            return f"{shorten(repr(name))} is {what} with texts inside: {ONE_PAIR}"
    return ""
