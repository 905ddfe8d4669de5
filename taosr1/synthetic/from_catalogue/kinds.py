"""What kinds of thing a catalogue sells, and how two kinds are related: from its categories, else from its titles.

A kind is the words that a query would use ("notebook case"). Where most products have a category, its last part names
the kind. Otherwise the titles do: a kind is the end of a run of ordinary words ("Targus CVR600 **notebook case** 15.4")
that several products of at least two brands share. In titles of mixed case the run is in lower case, since names and
values are not; in others it is any run of words.

Two kinds are related as far as their words and fields show it, and "" where they do not: such pairs are never made,
because nobody could grade them by rules.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from taosr1.task.evidence.text import singular, words_of
from taosr1.task.evidence.words import (
    ACCESSORY_WORDS,
    AUDIENCES,
    BREAKS,
    COLOURS,
    MATERIALS,
    NEGATIONS,
    STOP_WORDS,
    UNITS,
    VAGUE_KINDS,
)
from taosr1.task.judgement import Judgement

LEAST_PRODUCTS = 5  # of a kind
LEAST_BRANDS = 2  # of a kind that is read from titles
MAX_WORDS = 3
MOSTLY_LOWER = 0.25  # share of a phrase's occurrences in lower case, in titles of mixed case; of one word twice that
AT_THE_END = 0.6  # share of occurrences that end their run: "premium" does not, "cable" does
AFTER_NUMBER = 0.3  # share behind a number from which on a word is a unit ("1500 sheets")
# Cosines of the fields of two kinds: from the first on they can be siblings, below the second one is no other for it.
ALIKE, UNLIKE = 0.06, 0.1
_RUN = re.compile(r"[^\W\d_]+(?:[- ][^\W\d_]+)*")
_VALUES = {word for table in (COLOURS, MATERIALS, AUDIENCES) for phrase in table for word in phrase}
_NO_KIND = (
    _VALUES
    | STOP_WORDS
    | BREAKS
    | NEGATIONS
    | set(UNITS)
    | VAGUE_KINDS
    | set("original new compatible over per via up down out off all non not more inc ltd gmbh".split())
)
# "1500 sheets", "240-pin", "10th gen", but not "CX5240 toner".
_COUNTED = re.compile(r"(?:^|[\s(])\d[\d.,]*(?:th|st|nd|rd)?[ -]([^\W\d_]+)")
# Fields that name a kind, where the title has their value, too.
_KIND_FIELDS = frozenset(
    ("product type", "type", "device type", "product class", "item type", "produkttyp", "produktart")
)
_SPLIT_LEAF = re.compile(r"\s*(?:[&/,+|]|\band\b|\bund\b|\bet\b|\by\b)\s*")

# Words that name no kind by themselves, though many titles end with them.
_NOT_ALONE = frozenset(
    "unit component part head photo module support cleaning quality upgrade control system machine removable".split()
)

Kind = tuple[str, ...]


@dataclass(frozen=True)
class Kinds:
    """Of each product its kind or (); the products of each kind; and how kinds are related."""

    of_product: list[Kind]
    products: dict[Kind, list[int]]
    paths: dict[Kind, tuple[str, ...]] = field(default_factory=dict)  # the category above each kind, if there is one
    fields: dict[Kind, dict[str, float]] = field(default_factory=dict, repr=False)  # weights, as `_field_weights`
    from_titles: bool = False

    def relation(self, wanted: Kind, kind: Kind) -> str:
        """same, accessory, sibling, different, or "" where the words and fields do not tell.

        Choices: "notebook case" is an accessory of "notebook", for a case belongs to something; two kinds with one last
        word and fields in common are siblings ("laser printer", "label printer"), and so are two categories of one
        shelf; a kind that ends with all words of another is one of its sorts, and is not paired with it.
        """
        if kind == wanted:
            return "same"
        if wanted[-len(kind) :] == kind or kind[-len(wanted) :] == wanted or set(wanted) == set(kind):
            return ""
        if kind[: len(wanted)] == wanted:
            return "accessory" if kind[-1] in ACCESSORY_WORDS else ""
        above, below = self.paths.get(wanted, ()), self.paths.get(kind, ())
        if above and below:
            return (
                "sibling"
                if above == below
                else "different"
                if above[0] != below[0] and not set(wanted) & set(kind)
                else ""
            )
        if wanted[-1] == kind[-1]:
            return "sibling" if self.likeness(wanted, kind) >= ALIKE else ""
        return "different" if not set(wanted) & set(kind) and self.likeness(wanted, kind) < UNLIKE else ""

    def likeness(self, one: Kind, other: Kind) -> float:
        """The cosine of the fields of two kinds, 0 to 1; 0 where one of them has none."""
        mine, theirs = self.fields.get(one, {}), self.fields.get(other, {})
        return sum(weight * theirs.get(name, 0.0) for name, weight in mine.items())


def find_kinds(products: Sequence[Judgement], fields: Sequence[Mapping[str, str]]) -> Kinds:
    """The kinds of a catalogue. fields: of each product its fields, name -> value."""
    with_category = sum(bool(row.category.strip()) for row in products)
    from_titles = 2 * with_category < len(products)
    paths: dict[Kind, tuple[str, ...]] = {}
    if from_titles:
        found = _of_titles(products)
        found = [kind or _of_fields(row, values) for kind, row, values in zip(found, products, fields)]
    else:
        found = _of_categories(products, paths)
    counts = Counter(found)
    of_product = [kind if counts[kind] >= LEAST_PRODUCTS else () for kind in found]
    grouped: dict[Kind, list[int]] = defaultdict(list)
    used: dict[Kind, Counter] = defaultdict(Counter)
    for number, kind in enumerate(of_product):
        if kind:
            grouped[kind].append(number)
            used[kind].update(fields[number].keys())
    return Kinds(
        of_product, {kind: grouped[kind] for kind in sorted(grouped)}, paths, _field_weights(used), from_titles
    )


def _field_weights(used: Mapping[Kind, Counter]) -> dict[Kind, dict[str, float]]:
    """Of each kind a vector of length 1 over its fields: how often it has them, times how few kinds do (tf-idf)."""
    kinds_with = Counter(name for counts in used.values() for name in counts)
    found = {}
    for kind, counts in used.items():
        raw = {name: count * math.log1p(len(used) / kinds_with[name] - 1) for name, count in counts.items()}
        norm = math.sqrt(sum(weight * weight for weight in raw.values()))
        found[kind] = {name: weight / norm for name, weight in raw.items()} if norm else {}
    return found


def _of_categories(products: Sequence[Judgement], paths: dict[Kind, tuple[str, ...]]) -> list[Kind]:
    """Of each product the kind that the last part of its category names; `paths` is filled with the parts above it."""
    titles: dict[str, list[str]] = defaultdict(list)
    for row in products:
        titles[row.category].append(row.title)
    kind_of: dict[str, Kind] = {"": ()}
    for category, texts in sorted(titles.items()):
        parts = [part.strip() for part in re.split(r"\s*[>|›»]\s*|\s/\s", category) if part.strip()]
        if not parts:
            kind_of[category] = ()
            continue
        kind_of[category] = kind = _named_by(parts[-1], texts)
        if kind and len(parts) > 1:
            paths.setdefault(kind, tuple(parts[:-1]))
    return [kind_of.get(row.category, ()) for row in products]


def _named_by(leaf: str, titles: Sequence[str]) -> Kind:
    """The words of a category's last part; of "Bags & Cases" those of the part that most titles have."""
    options = [kind for part in _SPLIT_LEAF.split(leaf) if (kind := tuple(words_of(part)[:4]))]
    if len(options) < 2:
        return options[0] if options else ()
    seen = [set(words_of(title)) for title in titles[:200]]
    return max(options, key=lambda kind: sum(kind[-1] in words for words in seen))


# --- Kinds from titles ------------------------------------------------------------------------------------------------
def _of_titles(products: Sequence[Judgement]) -> list[Kind]:
    """Of each product the kind that its title names, () where it names none."""
    capitals = [word[:1].isupper() for row in products for word in row.title.split() if word.isalpha()]
    mixed = bool(capitals) and 0.2 < sum(capitals) / len(capitals) < 0.9
    count, lower, ending, brands = Counter(), Counter(), Counter(), defaultdict(set)
    seen_word, behind_number = Counter(), Counter()
    brand_words = [set(words_of(row.brand)) for row in products]
    for row, own in zip(products, brand_words):
        seen_word.update(words_of(row.title))
        counted = (match[1].casefold() for match in _COUNTED.finditer(row.title))
        behind_number.update(map(singular, counted))
        found: dict[Kind, tuple[bool, bool]] = {}
        for kind, is_lower, ends in _phrases(row.title, mixed):
            if own.isdisjoint(kind):
                known = found.get(kind, (False, False))
                found[kind] = (known[0] or is_lower, known[1] or ends)
        for kind, (is_lower, ends) in found.items():
            count[kind] += 1
            lower[kind] += is_lower
            ending[kind] += ends
            brands[kind].add(row.brand)
    units = {word for word, number in seen_word.items() if behind_number[word] > AFTER_NUMBER * number}
    kinds = set()
    for kind, number in count.items():
        alone = 2 if len(kind) == 1 else 1  # one word alone is a kind only where more products show it
        often = number >= alone * LEAST_PRODUCTS and len(brands[kind]) >= alone * LEAST_BRANDS
        placed = ending[kind] >= AT_THE_END * number and (not mixed or lower[kind] >= alone * MOSTLY_LOWER * number)
        if often and placed and units.isdisjoint(kind):
            kinds.add(kind)
    return [_kind_in(row.title, mixed, kinds, count, own) for row, own in zip(products, brand_words)]


def _of_fields(row: Judgement, values: Mapping[str, str]) -> Kind:
    """The kind that a field such as "product type" names, if the title names it, too."""
    title = f" {' '.join(words_of(row.title))} "
    for name in sorted(_KIND_FIELDS & values.keys()):
        kind = tuple(words_of(values[name]))
        if 0 < len(kind) <= MAX_WORDS and _can_be_kind(kind) and f" {' '.join(kind)} " in title:
            return kind
    return ()


def _phrases(title: str, mixed: bool) -> Iterator[tuple[Kind, bool, bool]]:
    """Every phrase of a title that could be a kind: (its words, whether in lower case, whether it ends its run)."""
    for run in _RUN.findall(title):
        spelled = run.replace("-", " -").split()  # no kind begins inside "all-purpose"
        words = [singular(word.lstrip("-").casefold()) for word in spelled]
        for start in range(len(words)):
            if spelled[start].startswith("-"):
                continue
            for behind in range(start + 1, min(start + MAX_WORDS, len(words)) + 1):
                kind = tuple(words[start:behind])
                if _can_be_kind(kind):
                    # Words of another case ("memory module ECC"), and values, are no part of the phrase.
                    other = behind < len(words) and spelled[behind].islower() != spelled[behind - 1].islower()
                    ends = behind == len(words) or mixed and other or words[behind] in _NO_KIND
                    yield kind, all(word.islower() for word in spelled[start:behind]), ends


def _can_be_kind(kind: Kind) -> bool:
    vague = len(kind) == 1 and kind[0] in _NOT_ALONE
    return not vague and all(len(word) > 2 and word not in _NO_KIND for word in kind)


def _kind_in(title: str, mixed: bool, kinds: set[Kind], count: Counter, brand: set[str]) -> Kind:
    """The kind that a title names at the end of a run: the longest one, of equally long ones the commonest."""
    ending = (kind for kind, _, ends in _phrases(title, mixed) if ends and kind in kinds and brand.isdisjoint(kind))
    return max(ending, key=lambda kind: (len(kind), count[kind], kind), default=())
