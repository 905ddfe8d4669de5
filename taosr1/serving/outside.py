"""Says where a pair lies outside of what a small judge has learned: most of its words never occurred in training.

A judge of 0.7 M weights gives confident nonsense for an iPhone, and its probabilities do not show it: the words do.
`examples/bundled_student.py` measures the signal beside label mass and entropy, and writes the word list.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from taosr1.runtime.bad_rows import shorten
from taosr1.task.judgement import Judgement

WORDS_FILE = "known_words.txt"
MAX_UNKNOWN_FRAC = 0.25  # of a text's words. Choice: one misspelt word of four is still inside
LOW_MASS = 0.5  # label mass below which a judge rarely answers with a label at all
LOW_MASS_REASON = "low label mass"
SHOWN_WORDS, SHOWN_CHARS = 5, 40  # in a message: how many, and of each
# Units ("30l", "5 cm"), the s of a possessive and other words of one or two letters say nothing about a world.
_WORD = re.compile(r"(?<![^\W_])[^\W\d_]{3,}(?![^\W_])|[^\x00-\x7f\W\d_]+")
_ENDINGS = ("", "s", "es")


def words_of(text: str) -> list[str]:
    """The words of a text, in lower case: three letters or more, any number of them beyond ASCII."""
    return _WORD.findall(text.lower())


@dataclass(frozen=True)
class World:
    """The words of the queries and products that a judge was trained on; None where its folder does not list them."""

    known: frozenset[str] | None = None

    @staticmethod
    def load(folder: str | Path) -> World:
        """The word list beside the weights. A judge made from a language model has none, and needs none."""
        path = Path(folder) / WORDS_FILE
        return World(frozenset(path.read_text(encoding="utf-8").split())) if path.is_file() else World()

    def save(self, folder: str | Path) -> None:
        (Path(folder) / WORDS_FILE).write_text("\n".join(sorted(self.known or ())) + "\n", encoding="utf-8")

    def reason(self, row: Judgement, fields: Sequence[str], label_mass: float | None = None) -> str:
        """Why this pair is outside, "" where it is not: its words, or a label mass below `LOW_MASS`."""
        if unknown := self.unknown_words(row, fields):
            # One "word" may be 20,000 letters of a query, and a reply names it once for each of 1,000 products.
            shown = ", ".join(shorten(word, SHOWN_CHARS) for word in unknown[:SHOWN_WORDS])
            shown += ", ..." if len(unknown) > SHOWN_WORDS else ""
            return f"unknown words: {shown}"
        return LOW_MASS_REASON if label_mass is not None and label_mass < LOW_MASS else ""

    def unknown_words(self, row: Judgement, fields: Sequence[str]) -> tuple[str, ...]:
        """The words that put a pair outside: those of its query and shown product fields that never occurred.

        Empty where at most `MAX_UNKNOWN_FRAC` of the query's words and of the product's words are unknown, and for a
        judge without a word list. A text without a single word ("???") is outside, and is itself what is unknown.
        """
        if self.known is None:
            return ()
        found, outside = [], False
        for text in (row.query, " ".join(getattr(row, name) for name in fields)):
            unknown, frac = _unknown(self.known, text)
            outside = outside or frac > MAX_UNKNOWN_FRAC
            found += unknown
        return tuple(dict.fromkeys(found)) if outside else ()


@lru_cache(maxsize=8)  # 1,000 products have one query, whose 20,000 characters take 2 ms each time
def _unknown(known: frozenset[str], text: str) -> tuple[tuple[str, ...], float]:
    """The unknown words of a text, and how many of its words they are; a text without words is itself unknown."""
    words = words_of(text)
    if not words:
        return (text.strip(),), 1.0
    # In the singular or the plural.
    unknown = [
        word for word in words if not any(word + end in known or word.removesuffix(end) in known for end in _ENDINGS)
    ]
    return tuple(dict.fromkeys(unknown)), len(unknown) / len(words)


def known_words(rows: Iterable[Judgement], fields: Sequence[str]) -> World:
    """The world of a judge that was trained on these rows and reads these product fields."""
    texts = (getattr(row, name) for row in rows for name in ("query", *fields))
    return World(frozenset(word for text in texts for word in words_of(text)))
