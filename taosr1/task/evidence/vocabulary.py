"""What a file of rows teaches about its words: which are brands, and which are written nowhere and so perhaps typos."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from taosr1.task.evidence.text import Text, words_of
from taosr1.task.evidence.words import AUDIENCES, COLOURS, MATERIALS, STOP_WORDS
from taosr1.task.judgement import Judgement

_ORDINARY = {word for table in (COLOURS, MATERIALS, AUDIENCES) for phrase in table for word in phrase} | STOP_WORDS
_NO_BRANDS = frozenset("generic unknown unbranded various none no brand not applicable other".split())


@dataclass(frozen=True)
class Vocabulary:
    """The brands and words of the products of a file."""

    brands: dict[str, list[tuple[str, ...]]] = field(default_factory=dict)  # by first word, the longest names first
    words: frozenset[str] = frozenset()  # of titles, brands and categories
    by_start: dict[str, list[str]] = field(default_factory=dict, repr=False)  # these words by their first letter

    @staticmethod
    def of(rows: Iterable[Judgement]) -> Vocabulary:
        """The vocabulary of some rows.

        Choice: the name of a brand is no brand in a query where most titles with these words are of other brands
        ("Guitar", "Makeup"): there it is what the thing is called.
        """
        products = {(row.title, row.brand, row.category): None for row in rows}
        names = {brand: tuple(words_of(brand)) for _, brand, _ in products if brand.strip()}
        names = {brand: words for brand, words in names.items() if _can_be_brand(words)}
        known: dict[str, list[tuple[str, ...]]] = defaultdict(list)
        for words in dict.fromkeys(names.values()):
            known[words[0]].append(words)
        own, seen, words = Counter(), Counter(), set()
        for title, brand, category in products:
            text = Text.of(title)
            words.update(text.words, words_of(category), names.get(brand, ()))
            found = {name for word in text.places for name in known.get(word, ()) if text.holds(name)}
            seen.update(found)
            own.update(found & {names.get(brand, ())})
        mostly = {name for found in known.values() for name in found if seen[name] < 2 * own[name] + 2}
        brands = {first: sorted(mostly & {*found}, key=_longest_first) for first, found in known.items()}
        by_start: dict[str, list[str]] = defaultdict(list)
        for word in sorted(words):
            by_start[word[0]].append(word)
        return Vocabulary({first: found for first, found in brands.items() if found}, frozenset(words), dict(by_start))

    def brand_at(self, words: list[str], place: int, own: tuple[str, ...] = ()) -> tuple[str, ...]:
        """The longest brand that begins at a place of a query, () if none; `own` is the brand of the row's product."""
        names = [*self.brands.get(words[place], ()), *([own] if own and own[0] == words[place] else [])]
        return max((name for name in names if tuple(words[place : place + len(name)]) == name), key=len, default=())

    def spelled(self, word: str) -> str:
        """The word that was meant: itself, or where no product has it, the one of the file that is one letter away.

        Only words of at least seven letters are looked at, only one candidate counts, and a letter in another's place
        is no typo: "lumber" and "lumbar" are two things.
        """
        if len(word) < 7 or not self.words or word in self.words or not word.isalpha():
            return word
        near = [other for other in self.by_start.get(word[0], ()) if one_letter_away(word, other)]
        return near[0] if len(near) == 1 else word


def _longest_first(name: tuple[str, ...]) -> tuple[int, tuple[str, ...]]:
    return -len(name), name


def _can_be_brand(words: tuple[str, ...]) -> bool:
    if not words or words[0] in _NO_BRANDS or sum(map(len, words)) < 2:
        return False
    return not all(word in _ORDINARY or not word.isalpha() for word in words)


def one_letter_away(one: str, other: str) -> bool:
    """Whether one letter too many or too few, or two neighbours in the wrong order, make one word of the other."""
    if abs(len(one) - len(other)) > 1 or one == other:
        return False
    start = next((place for place, pair in enumerate(zip(one, other)) if pair[0] != pair[1]), min(len(one), len(other)))
    rests = one[start:], other[start:]
    swapped = rests[0][1:2] + rests[0][:1] + rests[0][2:]
    return rests[0][1:] == rests[1] or rests[0] == rests[1][1:] or swapped == rests[1]
