"""Checks the rows of a file against each other: ids that contradict, one pair with several grades, ids with gaps."""

from __future__ import annotations

import sys
from hashlib import blake2b

from taosr1.data.queries import plain
from taosr1.runtime.bad_rows import BadRows, shorten
from taosr1.task.judgement import PRODUCT_TEXT, Judgement

REPEATED = "repeated an earlier pair, and were kept"
SEVERAL_GRADES = "contradicted an earlier row (the same query and product text, another grade), and were kept"
SEVERAL_TITLES = "came with the item_id of another title, and were kept"


class Duplicates:
    """The rows read so far, as hashes: each pair of ids and each pair of texts with its first line and its grade.

    Choice: of two rows with the same ids and another text or grade one is wrong, and the data does not say which, so
    the later one is a bad row, reported with both lines; so is a query_id that named another query before, since
    metrics by query would mix the two. An exact repeat is harmless (sampling with replacement writes some): it is kept,
    and the summary counts it. Several grades for one pair of texts are kept and counted (several people may have
    judged), and so are several titles of one item. Only hashes are stored: some hundred bytes a row, however long its
    text.
    """

    def __init__(self, bad_rows: BadRows, *, grades_matter: bool = True) -> None:
        self.bad_rows, self.grades_matter = bad_rows, grades_matter
        self._seen: dict[int, int] = {}  # hash of the ids -> line, hash of the text and grade in one integer
        self._queries: dict[int, int] = {}  # hash of a query_id -> line, hash of its text
        self._items: dict[int, int] = {}  # hash of an item_id -> line, hash of its title
        self._pairs: dict[int, int] = {}  # hash of a query and a product as texts -> line, grade
        self._first_without_id = 0
        self._rows = self._without_id = 0

    def add(self, line: int, row: Judgement) -> None:
        """Compare a row with the earlier ones, and store it. Raises: ValueError for a contradiction."""
        grade = (row.grade or 0) * self.grades_matter
        repeats = row.query_id and row.item_id and self._compare_ids(line, row, grade)
        if row.query_id:
            text = _quick(plain(row.query))
            stored = self._queries.setdefault(hash(row.query_id), line << 64 | text)
            if stored & _LOW_64 != text:
                meant = f"query_id {shorten(repr(row.query_id))} had another query in line {stored >> 64}"
                hint = 'give every query its own id, or leave the column out (--columns "NAME="): texts then decide'
                raise ValueError(f"repeated ids: {meant}; {hint}")
        if row.query_id and row.item_id:
            self._store_ids(line, row, grade)
        if row.item_id:
            title = _quick(plain(row.title))
            place = str(row.extra.get("product_locale", ""))  # of ESCI: one product, a title in every language
            stored = self._items.setdefault(hash((row.item_id, place)), line << 64 | title)
            if stored & _LOW_64 != title:
                self.bad_rows.note(line, SEVERAL_TITLES, f" (line {stored >> 64})")
        if row.grade and not repeats:  # said also where no grade is needed: it is a fault of the data
            texts = tuple(plain(getattr(row, name)) for name in ("query", *PRODUCT_TEXT, "price"))
            stored = self._pairs.setdefault(hash(texts), line << 8 | row.grade)
            if stored & 0xFF != row.grade:
                earlier = f" (grade {row.grade}, it is {stored & 0xFF} in line {stored >> 8})"
                self.bad_rows.note(line, SEVERAL_GRADES, earlier)
        self._rows += 1
        if not row.query_id:
            self._without_id += 1
            self._first_without_id = self._first_without_id or line

    def _compare_ids(self, line: int, row: Judgement, grade: int) -> bool:
        """Whether this pair of ids was there before. Raises: ValueError where it was, and contradicts."""
        stored = self._seen.get(_hash(16, row.query_id, row.item_id))
        if stored is None:
            return False
        first, before = stored >> 72, stored & 0xFF
        ids = f"query_id {shorten(repr(row.query_id))} and item_id {shorten(repr(row.item_id))}"
        if _hash(8, row.query, row.title) != stored >> 8 & _LOW_64:
            raise ValueError(f"repeated ids: {ids} had another query or title in line {first}")
        if before and grade and before != grade:
            earlier = f"it was {before} in line {first} for {ids}; give one grade a pair"
            raise ValueError(f"repeated ids: field 'grade' is {grade}, but {earlier}")
        self.bad_rows.note(line, REPEATED, f" (as line {first})")
        return True

    def _store_ids(self, line: int, row: Judgement, grade: int) -> None:
        key = _hash(16, row.query_id, row.item_id)
        stored = self._seen.setdefault(key, line << 72 | _hash(8, row.query, row.title) << 8 | grade)
        if grade and not stored & 0xFF:
            self._seen[key] = stored | grade

    def finish(self) -> None:
        """Say where only some rows have a query_id; the rest is in the summary of `bad_rows`."""
        if 0 < self._without_id < self._rows:
            text = f"{self._without_id} of {self._rows} rows have no query_id, first at line {self._first_without_id}"
            path = self.bad_rows.path
            print(f"{path}: {text}: they belong to the query with the same text", file=sys.stderr)


_LOW_64 = 0xFFFF_FFFF_FFFF_FFFF


def _quick(text: str) -> int:
    """Python's own hash of a text, 0 to 2^64 - 1: a tenth of the other's time, different in every process."""
    return hash(text) & _LOW_64


def _hash(size: int, *parts: str) -> int:
    """A hash of several texts, different for "a", "bc" and "ab", "c"."""
    text = "".join(f"{len(part)}:{part}" for part in parts)
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=size).digest(), "big")
