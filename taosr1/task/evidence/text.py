"""Words of a text that can be compared: normalised, in the singular, with their numbers, and where they stand."""

from __future__ import annotations

import html
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from taosr1.task.evidence.words import NEGATIONS, UNITS

# Scripts that are written without spaces: a run of them is one word, and is found anywhere inside a text.
_UNSPACED = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff"
_WORD = re.compile(rf"\d+/\d+|\d+(?:[.,]\d+)*|[{_UNSPACED}]+|[^\W\d_{_UNSPACED}]+(?:'[^\W\d_{_UNSPACED}]+)?|[$€£°,|]")
_TAG = re.compile(r"</?[a-z][^<>]*>|<!--[^<>]*-->")
_QUOTES = str.maketrans({"’": "'", "‘": "'", "`": "'", "“": '"', "”": '"', "″": '"', "′": "'", "®": " ", "™": " "})
_SPELLINGS = (
    (re.compile(r"\bw/o\b"), "without"), (re.compile(r"\bt[- ]?shirts?\b"), "t shirt"), (re.compile(r"\bw/"), "with "),
    (re.compile(r"(?<=\d)\s*(?:''|\")"), " inch "), (re.compile(r"(?<=\d)\s*'(?!\w)"), " ft "),
    (re.compile(r"\b100\s*(?:%|percent)|%\s*100\b"), " "), (re.compile(r"(?<=\d)-(?=[a-z])"), " "),
    (re.compile(r"(?<=\d) *[x×] *(?=\d)"), " by "),
)  # fmt: skip
_JAPANESE_WITHOUT = re.compile(rf"([{_UNSPACED}]+?)(?:なし|無し|不要)")
_CHINESE_WITHOUT = re.compile(rf"(?:不含|不带|没有)([{_UNSPACED}]+)")
_NOT_PLURAL = frozenset(
    "gas lens less plus jeans pants this series atlas canvas iris basis asus sans texas wireless cordless".split()
)


@lru_cache(maxsize=64)  # `Text.of` needs it twice: for the words, and as it is
def normal(text: str) -> str:
    """The text in one spelling: lower case, no tags, "inch" for a double quote, "without" for "w/o" and for なし."""
    text = _TAG.sub(" ", html.unescape(unicodedata.normalize("NFKC", text)).casefold().translate(_QUOTES))
    for pattern, spelling in _SPELLINGS:
        text = pattern.sub(spelling, text)
    return _CHINESE_WITHOUT.sub(r" without \1 ", _JAPANESE_WITHOUT.sub(r" without \1 ", text))


@lru_cache(maxsize=2**16)
def singular(word: str) -> str:
    """A word without its plural "s" or possessive; the same for both forms, and no more than that."""
    word = word.removesuffix("'s").removesuffix("'")
    if word in _NOT_PLURAL or len(word) < 4 or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return {"womens": "women", "mens": "men", "ladies": "lady", "feet": "foot"}.get(word, word)
    if word in ("womens", "mens"):
        return word[:-1]
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    return word[:-2] if word.endswith(("sses", "shes", "ches", "xes", "zes")) else word[:-1]


def words_of(text: str) -> list[str]:
    """The words of a text, in the singular; numbers as they are, "1,5" as "1.5" and "1,000" as "1000"."""
    return list(_words(text))


@lru_cache(maxsize=2**16)  # names of fields and short values come again and again
def _words(text: str) -> tuple[str, ...]:
    return tuple(_number_word(word) if word[0].isdigit() else singular(word) for word in _WORD.findall(normal(text)))


def _number_word(word: str) -> str:
    if "," in word and "." in word:  # the last of the two is the decimal one
        word = word.replace(",", "") if word.rindex(".") > word.rindex(",") else word.replace(".", "").replace(",", ".")
    elif "," in word:
        whole, _, rest = word.rpartition(",")
        word = whole.replace(",", "") + (rest if len(rest) == 3 else f".{rest}")
    return word.removesuffix(".0") if "." in word else word


def number_of(word: str) -> float | None:
    """The value of "10.5" or "1/2"; None for another word."""
    if not word[:1].isdigit():
        return None
    over, _, under = word.partition("/")
    try:
        return float(over) / float(under or 1)
    except (ValueError, ZeroDivisionError):
        return None


def is_unspaced(word: str) -> bool:
    """Whether a word is of a script without spaces (Chinese, Japanese, Thai)."""
    return bool(re.match(rf"[{_UNSPACED}]", word))


def quantities(words: Sequence[str]) -> Iterator[tuple[int, int, str, float]]:
    """Every number with a unit: (first word, word behind, what is measured, how much in its base unit)."""
    for place, word in enumerate(words[:-1]):
        value, unit = number_of(word), UNITS.get(words[place + 1])
        if value is None or unit is None:
            continue
        behind = words[place + 2] if place + 2 < len(words) else ""
        if words[place + 1] == "in" and behind[:1].isdigit():  # "2 in 1"
            continue
        if words[place + 1] == "g" and value < 7:  # 3g, 4g, 5g are networks
            continue
        yield place, place + 2, unit[0], value * unit[1]


@dataclass(frozen=True)
class Text:
    """One field of a product: its words, and where each of them stands."""

    words: tuple[str, ...]
    raw: str
    places: dict[str, list[int]] = field(default_factory=dict, repr=False)

    @staticmethod
    def of(text: str) -> Text:
        """The words of a field."""
        words, places = tuple(words_of(text)), defaultdict(list)
        for place, word in enumerate(words):
            places[word].append(place)
        return Text(words, normal(text), dict(places))

    def find(self, phrase: Sequence[str]) -> list[int]:
        """The places where the words of a phrase stand behind each other."""
        phrase = tuple(phrase)
        return [
            start for start in self.places.get(phrase[0], ()) if self.words[start : start + len(phrase)] == phrase
        ] if phrase else []  # fmt: skip

    def holds(self, phrase: Sequence[str]) -> bool:
        """Whether a phrase stands in the text, denied or not; a word without spaces anywhere inside it."""
        if any(map(is_unspaced, phrase)):
            return all(word in self.raw if is_unspaced(word) else word in self.places for word in phrase)
        return bool(self.find(phrase))

    def says(self, phrase: Sequence[str]) -> str:
        """ "yes" where the phrase stands there and is not denied, "no" where it is ("without lid"), else ""."""
        places = self.find(phrase)
        if not places:
            return "yes" if self.holds(phrase) else ""
        return "yes" if any(not self._denied(place, place + len(phrase)) for place in places) else "no"

    def _denied(self, first: int, behind: int) -> bool:
        before = [word for word in self.words[max(first - 3, 0) : first] if word not in ("any", "a", "the", "of")]
        after = self.words[behind : behind + 2]
        free_of = before[-1:] == ["free"] and "of" in self.words[max(first - 3, 0) : first]
        denied_behind = after[:1] == ("free",) or after in (("not", "included"), ("sold", "separately"))
        return bool(before and before[-1] in NEGATIONS) or free_of or denied_behind
