"""Which rows have the same query, or the same pair: by text, whatever its case and spaces, and by id where that helps.

Ids alone are not enough: two files may both begin at query_id 1, and some rows may have none.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence
from hashlib import blake2b

from taosr1.data.gold import LABELLED_BY
from taosr1.runtime.bad_rows import shorten
from taosr1.task.judgement import PRODUCT_TEXT, Judgement


def plain(text: str) -> str:
    """The text without differences of case and of spaces."""
    return " ".join(text.split()).casefold() if text else ""


def query_keys(rows: Sequence[Judgement]) -> list[str]:
    """A name for each row's query, equal for rows of the same query: "id 7", or "text red mug" where it has no id.

    One id with two texts (of two files) is two queries. A row without an id belongs to the query with its text; where
    several ids have that text, to none of them.
    """
    texts = [plain(row.query) for row in rows]
    ids_of: dict[str, set[str]] = defaultdict(set)
    texts_of: dict[str, set[str]] = defaultdict(set)
    for row, text in zip(rows, texts):
        if row.query_id:
            ids_of[text].add(row.query_id)
            texts_of[row.query_id].add(text)
    keys = []
    for row, text in zip(rows, texts):
        ids = ids_of.get(text, set())
        known = row.query_id or (next(iter(ids)) if len(ids) == 1 else "")
        shared = len(texts_of.get(known, ())) > 1
        keys.append(f"text {_short(text)}" if not known else f"id {known}" + f"\t{_short(text)}" * shared)
    return keys


def _short(text: str) -> str:
    """The text, or its beginning and a hash: arrays of names are as wide as the longest one."""
    if len(text) <= 64:
        return text
    return text[:40] + blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()


def pair_key(row: Judgement) -> int:
    """A hash of the query and the product's title (where it has none: of all that is said about the product)."""
    title = plain(row.title)
    product = (title,) if title else tuple(plain(getattr(row, name)) for name in PRODUCT_TEXT)
    return hash((plain(row.query), product))


def say_overlap(
    rows: Sequence[Judgement], other: Sequence[Judgement], flag: str, consequence: str, data_flag: str = "--data"
) -> tuple[int, int]:
    """Warn on stderr where pairs (query and title) or queries of `flag` are in `data_flag` too, with their numbers.

    Choice: a warning and no refusal: a pair may be there twice for a reason that only its owner knows.
    Returns: the number of rows, and of queries, of `other` that are in `rows` too.
    """
    pairs, queries = {pair_key(row) for row in rows}, {hash(plain(row.query)) for row in rows}
    again = sum(pair_key(row) in pairs for row in other)
    asked = {hash(plain(row.query)) for row in other}
    shared = len(asked & queries)
    if again:
        found = f"{again} of {len(other)} pairs of {flag} are in {data_flag} too"
        print(f"warning: {found}: {consequence}", file=sys.stderr)
    elif shared:
        print(
            f"warning: {shared} of {len(asked)} queries of {flag} are in {data_flag} too, with other products: "
            f"{consequence}",
            file=sys.stderr,
        )
    return again, shared


def say_between_files(rows: Sequence[Judgement]) -> int:
    """Say where files contradict each other: a query_id that means two queries (how many is returned), other grades."""
    if len({row.source for row in rows}) < 2:
        return 0
    first: dict[str, Judgement] = {}
    shared: dict[str, Judgement] = {}
    for row in rows:
        if row.query_id:
            before = first.setdefault(row.query_id, row)
            if before.source != row.source and plain(before.query) != plain(row.query):
                shared.setdefault(row.query_id, row)
    if shared:
        (name, row), count = next(iter(shared.items())), len(shared)
        ids = f"{count} query_id{'s' * (count > 1)} of several files mean{'s' * (count == 1)} different queries"
        first_place = f"first {shorten(repr(name))} in {first[name].source} and {row.source}"
        print(f"note: {ids}, {first_place}: they are kept apart by their text", file=sys.stderr)
    _say_other_grades(rows)
    return len(shared)


def _say_other_grades(rows: Sequence[Judgement]) -> None:
    """Say where people have graded one pair differently in two files; `Duplicates` says it inside one file."""
    first: dict[tuple[str, ...], Judgement] = {}
    found: list[tuple[Judgement, Judgement]] = []
    for row in rows:
        if row.grade and not row.extra.get(LABELLED_BY):
            texts = tuple(plain(getattr(row, name)) for name in ("query", *PRODUCT_TEXT, "price"))
            before = first.setdefault(texts, row)
            if before.source != row.source and before.grade != row.grade:
                found.append((before, row))
    if found:
        before, row = found[0]
        places = " and ".join(f"{each.grade} in {each.source}:{each.line}" for each in (before, row))
        contradicted = f"{len(found)} row{'s'[: len(found) != 1]} contradicted a row of another file"
        print(f"note: {contradicted} (the same texts, another grade), first {places}; all are kept", file=sys.stderr)
