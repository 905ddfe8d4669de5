"""What a query asks for: the thing, and every demand on it that the words of the query name.

Read from left to right, the longest known phrase first. Choices: what no table knows stays part of the thing's name
("weighted blanket"); the scope of a negation ends at a preposition, a comma, a known phrase of another sort, or after
three words; a number without a unit belongs to the word before it ("iphone 12").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from taosr1.task.evidence.text import is_unspaced, number_of, quantities, words_of
from taosr1.task.evidence.vocabulary import Vocabulary
from taosr1.task.evidence.words import (
    AUDIENCES,
    BARE_SIZES,
    BED_SIZES,
    BEDDING,
    BREAKS,
    CARRIERS,
    CHEAP,
    COLOURS,
    COMPOUND_WITH_NO,
    CURRENCIES,
    FEATURES,
    FREE_NAMES,
    LIMITS,
    MATERIALS,
    NEGATIONS,
    NO_DEMANDS,
    NO_NEGATION,
    ORIGINS,
    SIZES,
    STOP_WORDS,
    THINGS_TOO,
    UNITS,
    USE_WORDS,
)

ANYTHING = "anything"  # the thing, where a query names none
MAX_EXCLUDED_WORDS = 3
JOINED = frozenset(("or", "and", "nor", "oder", "ou", "o"))  # "without sugar or milk" excludes both
_ENDS = JOINED | BREAKS | NEGATIONS | {",", "|", "please", "but"}  # of the words behind a negation
_LIMITS = tuple(sorted((tuple(words_of(limit)) for limit in LIMITS), key=len, reverse=True))


@dataclass(frozen=True)
class Demand:
    """One thing that a query asks for. `amount` is (what is measured, how much) where the words are a quantity."""

    name: str  # of `taosr1.task.rules.DEMANDS`
    words: tuple[str, ...]
    value: str = ""  # the name of the colour, material, size or audience that the words mean
    excluded: bool = False
    amount: tuple[str, float] | None = None

    @property
    def shown(self) -> str:
        """The demand as the Query line says it."""
        before = "not " if self.excluded else "at most " if self.amount and self.name == "price" else ""
        return f"{self.name} {before}{' '.join(self.words)}"

    @property
    def fact(self) -> str:
        """The rule book's name of the demand."""
        return f"no-{self.name}" if self.excluded else self.name


@dataclass
class Wanted:
    """A query, understood: the words that name the thing, and the demands in the order of the query."""

    thing: list[str] = field(default_factory=list)
    demands: list[Demand] = field(default_factory=list)


def read_query(query: str, vocabulary: Vocabulary, brand: str = "") -> Wanted:
    """What a query asks for. `brand` is that of the row's product, which a query may name though no other row does."""
    words = words_of(query)
    return _Reader(words, vocabulary, tuple(words_of(brand))).read()


class _Reader:
    """Goes through the words of a query once."""

    def __init__(self, words: list[str], vocabulary: Vocabulary, brand: tuple[str, ...]) -> None:
        self.words, self.vocabulary, self.brand = words, vocabulary, brand
        self.amounts = {first: (behind, kind, much) for first, behind, kind, much in quantities(words)}
        self.wanted, self.others = Wanted(), []  # words behind a preposition that no table knows
        self.after_break = ""

    def read(self) -> Wanted:
        place = 0
        while place < len(self.words):
            place = self._price(place) or self._negation(place) or self._free(place) or self._other(place)
        self._close()
        self.wanted.thing = self.wanted.thing or [ANYTHING]  # "made of brass" is nothing but demands
        self.wanted.demands = list(dict.fromkeys(self.wanted.demands))
        return self.wanted

    def _price(self, place: int) -> int:
        words = self.words
        if words[place] in CHEAP:
            than = words[place + 1 : place + 2] in (["than"], ["alternative"])
            behind = place + (3 if words[place + 2 : place + 3] == ["to"] else 2) if than else place + 1
            name = self.vocabulary.brand_at(words, behind, self.brand) if than and behind < len(words) else ()
            self._add(Demand("price", ("below", *name) if name else ("low",)))
            return behind + len(name) if name else place + 1
        limit = next((limit for limit in _LIMITS if tuple(words[place : place + len(limit)]) == limit), ())
        at = place + len(limit)
        signed = at < len(words) and words[at] in CURRENCIES
        value = number_of(words[at + signed]) if limit and at + signed < len(words) else None
        if value is None:
            return 0
        behind = at + signed + 1
        unit = words[behind] if behind < len(words) else ""
        if not signed and unit not in CURRENCIES and unit in UNITS:
            return 0  # "under 5 lbs"
        self._add(Demand("price", (words[behind - 1],), amount=("price", value)))
        return behind + (unit in CURRENCIES)

    def _negation(self, place: int) -> int:
        """The exclusions behind a "without"; 0 where the word is part of a name, or excludes nothing."""
        words = self.words
        if words[place] not in NEGATIONS or place + 1 >= len(words):
            return 0
        starts = range(max(place - 2, 0), place + 1)
        around = [tuple(words[start : start + size]) for start in starts for size in (2, 3, 4)]
        behind = words[place + 1 :]
        foreign = words[place] not in ("without", "not", "no", "except")
        if any(phrase in NO_NEGATION for phrase in around) or number_of(behind[0]) is not None and words[place] == "no":
            return 0
        if words[place] == "no" and len(behind) > 1 and behind[0] in COMPOUND_WITH_NO or foreign and place == 0:
            return 0
        if len(behind) > 1 and behind[-1] in CARRIERS and not set(behind) & BREAKS and place > 0:
            return 0  # "listen without prejudice shirt": the words are printed on the shirt
        return self._exclude(place + 1)

    def _exclude(self, place: int) -> int:
        """Exclusions from a place on; returns the place behind them."""
        words = self.words
        while place < len(words) and words[place] in (*BREAKS, "any", "a", "the", "be", "include", "included"):
            place += 1
        if place < len(words) and (known := self._known(place)):
            found, behind = known
            name = found.name if found.name in ("brand", "colour", "material") else "feature"
            self._add(Demand(name, found.words, found.value, excluded=True))
        else:
            behind = place
            while behind < len(words) and behind - place < MAX_EXCLUDED_WORDS and self._is_free(behind, place):
                behind += 1
            if behind == place:
                return place
            spelled = tuple(map(self.vocabulary.spelled, words[place:behind]))
            self._add(Demand("feature", spelled, excluded=True))
        joined = behind + 1 < len(words) and words[behind] in JOINED and words[behind + 1] not in NEGATIONS
        return self._exclude(behind + 1) if joined else behind

    def _is_free(self, place: int, first: int) -> bool:
        word = self.words[place]
        known = place > first and (self._known(place) or word in ORIGINS and self._known(place + 1))
        return word not in _ENDS and not known

    def _free(self, place: int) -> int:
        """ "gluten free": an exclusion."""
        word, behind = self.words[place], self.words[place + 1 : place + 2]
        if behind != ["free"] or word in FREE_NAMES or not word.isalpha() or word in STOP_WORDS or word in BREAKS:
            return 0
        self._add(Demand("feature", (word,), excluded=True))
        return place + 2

    def _known(self, place: int) -> tuple[Demand, int] | None:
        """The demand of the longest known phrase that begins at a place, and the place behind it."""
        words = self.words
        if place >= len(words):
            return None
        if name := self.vocabulary.brand_at(words, place, self.brand):
            return Demand("brand", name), place + len(name)
        if words[place : place + 1] == ["usb"] and place + 1 < len(words):
            letter = place + 1 + (words[place + 1] == "type")
            if words[letter : letter + 1] and words[letter] in ("a", "b", "c"):
                return Demand("feature", ("usb", words[letter])), letter + 1
        if place in self.amounts:
            behind, kind, much = self.amounts[place]
            return Demand("size", tuple(words[place:behind]), amount=(kind, much)), behind
        for size in (3, 2, 1):
            phrase = tuple(words[place : place + size])
            if size == 1 and self._is_thing(place):
                return None
            if len(phrase) < size or phrase[0] in BARE_SIZES and size == 1 and words[place - 1 : place] != ["size"]:
                continue
            for name, table in (("colour", COLOURS), ("material", MATERIALS), ("size", SIZES), ("use", AUDIENCES)):
                if phrase in table:
                    return Demand(name, phrase, table[phrase]), place + size
            if phrase in FEATURES:
                return Demand("feature", phrase), place + size
        return None

    def _is_thing(self, place: int) -> bool:
        """Whether a word of the tables is no demand here: a part of a thing's name, or a thing itself."""
        words, word = self.words, self.words[place]
        behind = (words[place + 1 :] or [""])[0]
        if (word, behind) in NO_DEMANDS or tuple(words[max(place - 1, 0) : place + 1]) in NO_DEMANDS:
            return True
        if (word,) in AUDIENCES and number_of(behind) is not None:  # "cat 6 cable"
            return True
        if word in BED_SIZES and not BEDDING & {*words} or word == "plus" and not any((w,) in AUDIENCES for w in words):
            return True
        last = not behind or behind in BREAKS | NEGATIONS | {","}
        return word in THINGS_TOO and last and bool(self.wanted.thing) and not self.after_break

    def _other(self, place: int) -> int:
        words, word = self.words, self.words[place]
        if word == "size" and place + 1 < len(words) and number_of(words[place + 1]) is not None:
            if place + 1 not in self.amounts:
                self._add(Demand("size", (words[place + 1],), amount=("size", number_of(words[place + 1]))))
                return place + 2
        if known := self._known(place):
            demand, behind = known
            self._add(demand)
            return behind
        if word in BREAKS:
            self._close()
            self.after_break = word if self.wanted.thing else ""
        elif number_of(word) is not None:
            return self._number(place)
        elif word in (",", "|") or word in CURRENCIES or word in STOP_WORDS:
            if word == ",":
                self._close()
        elif word == "no" and number_of((words[place + 1 :] or [""])[0]) is not None:  # "chanel no 5"
            self._add(Demand("feature", tuple(words[place : place + 2])))
            return place + 2
        elif word in ORIGINS and self._known(place + 1) or word in NEGATIONS and place + 1 == len(words):
            pass
        elif self.after_break and self.wanted.thing:
            self.others.append(word)
        else:
            self.wanted.thing.append(self.vocabulary.spelled(word))
        return place + 1

    def _number(self, place: int) -> int:
        """A number without a unit: "2 by 4" is a size, "iphone 12" and "2 a" one phrase with the words beside it."""
        words, behind = self.words, place + 1
        while words[behind : behind + 1] == ["by"] and number_of((words[behind + 1 :] or [""])[0]) is not None:
            behind += 2
        if behind > place + 1:
            self._add(Demand("size", tuple(words[place:behind])))
            return behind
        if words[behind : behind + 1] == ["in"] and number_of((words[behind + 1 :] or [""])[0]) is not None:
            self._add(Demand("feature", tuple(words[place : behind + 2])))  # "5 in 1"
            return behind + 2
        letter = (words[behind : behind + 1] or [""])[0]
        if len(letter) == 1 and letter.isalpha() and (letter != "a" or behind + 1 == len(words)):
            behind += 1
        before = words[place - 1] if place else ""
        named = before.isalpha() and not is_unspaced(before) and before not in STOP_WORDS | BREAKS | NEGATIONS
        self._add(Demand("feature", tuple(words[place - named : behind])))
        return behind

    def _close(self) -> None:
        """What stands behind a preposition and is in no table: a use behind "for", else a feature."""
        if self.others:
            self._add(Demand("use" if self.after_break in USE_WORDS else "feature", tuple(self.others[:4])))
        self.others = []

    def _add(self, demand: Demand) -> None:
        self.wanted.demands.append(demand)


def category_words(wanted: Wanted) -> Sequence[str]:
    """The words that name the thing, without repetitions."""
    return list(dict.fromkeys(wanted.thing))
