"""Checks the ids of a file: a (query_id, item_id) pair that occurs again must have the same text and grade."""

from __future__ import annotations

from hashlib import blake2b

from taosr1.runtime.bad_rows import BadRows, shorten
from taosr1.task.judgement import Judgement

REPEATED = "repeated an earlier pair, and were kept"


class Duplicates:
    """The (query_id, item_id) pairs read so far, each with its first line, its text and its grade.

    Choice: of two rows with the same ids and another text or grade one is wrong, and the data does not say which, so
    the later one is a bad row, reported with both lines. An exact repeat is harmless (sampling with replacement writes
    some): it is kept, and the summary counts it. Rows without both ids are not compared. Only hashes are stored: about
    130 bytes a pair, however long its text.
    """

    def __init__(self, bad_rows: BadRows, *, grades_matter: bool = True) -> None:
        self.bad_rows, self.grades_matter = bad_rows, grades_matter
        self._seen: dict[int, int] = {}  # hash of the ids -> line, hash of the text and grade in one integer

    def add(self, line: int, row: Judgement) -> None:
        """Compare a row with the earlier ones, and store it. Raises: ValueError for a contradiction."""
        if not (row.query_id and row.item_id):
            return
        key = _hash(16, row.query_id, row.item_id)
        text, grade = _hash(8, row.query, row.title), (row.grade or 0) * self.grades_matter
        stored = self._seen.get(key)
        if stored is None:
            self._seen[key] = line << 72 | text << 8 | grade
            return
        first, before = stored >> 72, stored & 0xFF
        ids = f"query_id {shorten(repr(row.query_id))} and item_id {shorten(repr(row.item_id))}"
        if text != stored >> 8 & 0xFFFF_FFFF_FFFF_FFFF:
            raise ValueError(f"repeated ids: {ids} had another query or title in line {first}")
        if before and grade and before != grade:
            earlier = f"it was {before} in line {first} for {ids}; give one grade a pair"
            raise ValueError(f"repeated ids: field 'grade' is {grade}, but {earlier}")
        if grade and not before:
            self._seen[key] = stored | grade
        self.bad_rows.note(line, REPEATED, f" (as line {first})")


def _hash(size: int, *parts: str) -> int:
    """A hash of several texts, different for "a", "bc" and "ab", "c"."""
    text = "".join(f"{len(part)}:{part}" for part in parts)
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=size).digest(), "big")
