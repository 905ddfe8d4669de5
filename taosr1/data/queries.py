"""Which rows have the same query, or the same pair: by text, whatever its case and spaces, and by id where that helps.

Ids alone are not enough: two files may both begin at query_id 1, and some rows may have none.
"""

from __future__ import annotations

import sys
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from hashlib import blake2b

from taosr1.data.flatten import is_blank
from taosr1.data.gold import LABELLED_BY
from taosr1.runtime.bad_rows import shorten
from taosr1.runtime.messages import counted
from taosr1.task.judgement import PRODUCT_TEXT, Judgement


def plain(text: str) -> str:
    """The text without differences that nobody sees or means: of case, spaces, Unicode forms, invisible characters."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
        unseen = [char for char in set(text) if not char.isspace() and is_blank(char)]
        text = text.translate(dict.fromkeys(map(ord, unseen))) if unseen else text
    return " ".join(text.split()).casefold()


def split_of(row: Judgement) -> str:
    """What a row's `split` column says, without differences of case and of spaces; "" where it has none."""
    found = row.extra.get("split")
    return "" if found is None else plain(str(found))


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


def _is_same_product(one: Judgement, other: Judgement) -> bool:
    """Whether no column that both rows have tells two products of one title apart."""
    texts = ((getattr(one, name), getattr(other, name)) for name in (*PRODUCT_TEXT, "price"))
    return all(not (a and b) or plain(a) == plain(b) for a, b in texts)


def say_between_files(rows: Sequence[Judgement]) -> int:
    """Say where files contradict each other: a query_id of two queries, other titles, other grades.

    Files are compared with each other only; `Duplicates` compares the rows of one.
    Returns: how many ids mean two queries.
    """
    if len({row.source for row in rows}) < 2:
        return 0
    first: dict[str, Judgement] = {}
    shared: dict[str, Judgement] = {}
    for row in rows:
        if row.query_id:
            before = first.setdefault(row.query_id, row)
            if before.source != row.source and plain(before.query) != plain(row.query):
                shared.setdefault(row.query_id, row)
    _say_other_titles(rows)
    if shared:
        (name, row), count = next(iter(shared.items())), len(shared)
        ids = f"{counted(count, 'query_id')} of several files mean{'s' * (count == 1)} different queries"
        first_place = f"first {shorten(repr(name))} in {first[name].source} and {row.source}"
        print(f"note: {ids}, {first_place}: they are kept apart by their text", file=sys.stderr)
    _say_other_grades(rows)
    return len(shared)


def _say_other_titles(rows: Sequence[Judgement]) -> None:
    """Say where one item_id has two titles in two files; `Duplicates` says it inside one file."""
    first: dict[tuple[str, str], Judgement] = {}
    found: dict[tuple[str, str], Judgement] = {}
    for row in rows:
        if row.item_id:
            key = row.item_id, str(row.extra.get("product_locale", ""))
            before = first.setdefault(key, row)
            if before.source != row.source and plain(before.title) != plain(row.title):
                found.setdefault(key, row)
    if found:
        (key, row), count = next(iter(found.items())), len(found)
        ids = f"{counted(count, 'item_id')} of several files ha{'ve' if count > 1 else 's'} several titles"
        before = first[key]
        places = f"first {shorten(repr(key[0]))} in {before.source}:{before.line} and {row.source}:{row.line}"
        print(f"note: {ids}, {places}: are the ids numbered apart?", file=sys.stderr)


def _say_other_grades(rows: Sequence[Judgement]) -> None:
    """Say where people have graded one pair differently in two files; `Duplicates` says it inside one file.

    Choice: a column that only one of the two files has makes no other pair.
    """
    first: dict[int, list[Judgement]] = defaultdict(list)  # the graded products of one query and title
    found: list[tuple[Judgement, Judgement]] = []
    for row in rows:
        if row.grade and not row.extra.get(LABELLED_BY):
            known = first[pair_key(row)]
            before = next((each for each in known if _is_same_product(each, row)), None)
            if before is None:
                known.append(row)
            elif before.source != row.source and before.grade != row.grade:
                found.append((before, row))
    if found:
        before, row = found[0]
        places = " and ".join(f"{each.grade} in {each.source}:{each.line}" for each in (before, row))
        contradicted = f"{counted(len(found), 'row')} contradicted a row of another file"
        what = "the same query and product, another grade"
        print(f"note: {contradicted} ({what}), first {places}; all are kept", file=sys.stderr)
