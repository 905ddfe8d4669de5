"""What a product's text shows about each demand: met, near, missed or unknown, with the words that show it.

"met" needs words of the product; "missed" needs another value of the same field (another brand, another colour), or a
denial; everything else is unknown. Choice: long texts describe more than the product ("fits leather bags", "for a
laptop of 15 inch"), so that a value in them can meet a demand but never miss one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from taosr1.task.evidence.demands import ANYTHING, Demand
from taosr1.task.evidence.text import Text, number_of, quantities, words_of
from taosr1.task.evidence.words import (
    ACCESSORY_WORDS,
    AUDIENCES,
    COLOUR_FAMILIES,
    COLOURS,
    CURRENCIES,
    IMITATIONS,
    MATERIAL_FAMILIES,
    MATERIALS,
    NEAR_FEATURE,
    OTHER_AUDIENCES,
    SAME_FEATURE,
    SIZE_STEPS,
    SIZES,
    VAGUE_KINDS,
)
from taosr1.task.judgement import Judgement

MAX_FIELD_CHARS = 4000  # of a description or of all attributes: what stands behind is not looked at
SHORT_VALUE = 40  # characters: a value of a field, and no text about it
EQUAL, NEXT_STEP = 1.02, 1.25  # ratios of two amounts
YES, NO = ("yes", "true", "y", "ja", "oui"), ("no", "false", "n", "none", "nein", "non")
_FIELD_NAMES = {
    "colour": ("colour", "color", "farbe", "couleur"), "material": ("material", "materiau", "matière", "fabric"),
    "size": ("size", "größe", "taille"),
}  # fmt: skip
# Words before such a name that leave it the colour of the whole product: a "backlight colour" is not.
_WHOLE = frozenset("product main item primary body housing case cable printing outer shell frame shoe fabric".split())


@dataclass(frozen=True)
class Finding:
    """The outcome of one demand, and the product's own words for it ("" where it has none)."""

    outcome: str
    words: str = ""


UNKNOWN = Finding("unknown")


class Product:
    """The text of a product, field by field."""

    def __init__(self, row: Judgement) -> None:
        self.row, self.title = row, Text.of(row.title[:MAX_FIELD_CHARS])
        self.brand, self.category = Text.of(row.brand), Text.of(row.category[:MAX_FIELD_CHARS])
        attributes = row.attributes[:MAX_FIELD_CHARS]
        pairs = [entry.partition(":") for entry in attributes.split(";")]
        self.fields = [(" ".join(words_of(name)), value.strip()) for name, colon, value in pairs if colon]
        self._attributes, self._description = attributes, row.description[:MAX_FIELD_CHARS]

    @cached_property
    def attributes(self) -> Text:
        """All attributes, names and values."""
        return Text.of(self._attributes)

    @cached_property
    def description(self) -> Text:
        """The description."""
        return Text.of(self._description)

    @property
    def texts(self) -> tuple[Text, ...]:
        """All fields, those that say most surely what the product is first."""
        return (self.title, self.category, self.attributes, self.description, self.brand)

    def values(self, name: str) -> Iterator[Text]:
        """The short values of the fields of a name (colour, material, size)."""
        for field, value in self.fields:
            if is_field_of(name, field) and len(value) <= SHORT_VALUE:
                yield Text.of(value)


def is_field_of(name: str, field: str) -> bool:
    """Whether a field of this name says the colour, material or size of the whole product."""
    before, _, last = field.rpartition(" ")
    return last in _FIELD_NAMES[name] and (not before or before in _WHOLE)


def look(product: Product, demand: Demand) -> Finding:
    """The outcome of a demand."""
    looked = {"brand": _brand, "colour": _colour, "material": _material, "size": _size, "use": _use, "price": _price}
    return looked.get(demand.name, _feature)(product, demand)


def how_named(product: Product, thing: Sequence[str]) -> str:
    """How a product's title or category names the thing: a key of `teacher._OPEN`."""
    if list(thing) == [ANYTHING]:
        return "nothing named"
    text, phrase = product.title, tuple(thing)
    held = [word for word in thing if text.holds((word,))]
    if len(held) == len(thing):
        whole = text.find(phrase)
        places = whole or text.places.get(thing[-1], [])
        asked = any(word in ACCESSORY_WORDS for word in thing)
        end = places[0] + (len(phrase) if whole else 1) if places else 0
        before = [{*text.words[max(place - 2, 0) : place]} for place in places]
        fitted = bool(before) and all(words & {"for", "with", "fit"} for words in before)
        if not asked and (fitted or set(text.words[end : end + 1]) & ACCESSORY_WORDS):
            return "accessory"
        return "named in the title"
    held += [word for word in thing if product.category.holds((word,)) and word not in held]
    if len(held) == len(thing):
        return "named in the category"
    if thing[-1] in held and thing[-1] not in VAGUE_KINDS:
        return "kind named"
    return "named in part" if held else "not named"


def _inverted(finding: Finding, demand: Demand) -> Finding:
    """What a finding about a value means where the value is excluded."""
    if not demand.excluded:
        return finding
    return Finding({"met": "missed", "missed": "met"}.get(finding.outcome, finding.outcome), finding.words)


def _brand(product: Product, demand: Demand) -> Finding:
    own = product.brand.words
    if own and (own[: len(demand.words)] == demand.words or product.brand.holds(demand.words)):
        return _inverted(Finding("met", " ".join(own)), demand)
    if own and demand.words[: len(own)] == own:
        return _inverted(Finding("met", " ".join(own)), demand)
    if not own and product.title.holds(demand.words):
        made = not _is_fitted(product.title, demand.words)
        return _inverted(Finding("met", " ".join(demand.words)), demand) if made else UNKNOWN
    return _inverted(Finding("missed", " ".join(own)), demand) if own else UNKNOWN


def _is_fitted(text: Text, words: tuple[str, ...]) -> bool:
    """Whether a name stands behind "for" or "compatible with": what the product fits, not who made it."""
    return all(text.words[max(place - 1, 0) : place] in (("for",), ("with",)) for place in text.find(words))


def named_in(text: Text, table: Mapping[tuple[str, ...], str]) -> dict[str, tuple[str, ...]]:
    """The names of a table that a text has, each with its words, the longest phrase at every place."""
    found: dict[str, tuple[str, ...]] = {}
    place = 0
    while place < len(text.words):
        phrases = (text.words[place : place + size] for size in (3, 2, 1))
        phrase = next((phrase for phrase in phrases if phrase in table), ())
        if phrase:
            found.setdefault(table[phrase], phrase)
        place += len(phrase) or 1
    return found


def _of_table(product: Product, demand: Demand, table: dict, families: tuple, name: str) -> Finding:
    stated: dict[str, tuple[str, ...]] = {}
    for text in (*product.values(name), product.title):
        stated = {**named_in(text, table), **stated}
    if demand.value in stated:
        denied = product.title.says(stated[demand.value]) == "no"
        return _inverted(Finding("missed" if denied else "met", " ".join(stated[demand.value])), demand)
    family = {other for members in families if demand.value in members for other in members}
    near = [words for other, words in stated.items() if other in family]
    words = " ".join(near[0] if near else next(iter(stated.values()), ()))
    if near:
        return Finding("near", words)
    long_texts = (product.attributes, product.description)
    in_text = next((text for text in long_texts if demand.value in named_in(text, table)), None)
    if in_text and not stated:
        said = named_in(in_text, table)[demand.value]
        return _inverted(Finding("met", " ".join(said)), demand) if in_text.says(said) == "yes" else UNKNOWN
    return _inverted(Finding("missed", words), demand) if stated else UNKNOWN


def _colour(product: Product, demand: Demand) -> Finding:
    return _of_table(product, demand, COLOURS, COLOUR_FAMILIES, "colour")


def _material(product: Product, demand: Demand) -> Finding:
    for text in (product.title, *product.values("material")):
        for phrase, value in MATERIALS.items():
            for place in text.find(phrase) if value == demand.value else ():
                if text.words[max(place - 1, 0) : place] and text.words[place - 1] in IMITATIONS:
                    return _inverted(Finding("missed", " ".join((text.words[place - 1], *phrase))), demand)
    return _of_table(product, demand, MATERIALS, MATERIAL_FAMILIES, "material")


def _size(product: Product, demand: Demand) -> Finding:
    if demand.amount and demand.amount[0] != "size":
        return _inverted(_amount(product, demand), demand)
    values = list(product.values("size"))
    if demand.amount:
        wanted = demand.amount[1]
        numbers = [number for text in values for word in text.words if (number := number_of(word)) is not None]
        if wanted in numbers or product.title.holds(("size", *demand.words)):
            return Finding("met", " ".join(demand.words))
        near = [number for number in numbers if abs(number - wanted) <= 1]
        return Finding("near" if near else "missed", f"{(near or numbers)[0]:g}") if numbers else UNKNOWN
    if not demand.value:  # "2 by 4"
        return _said(product, demand.words)
    stated: dict[str, tuple[str, ...]] = {}
    for text in (*values, product.title):
        found = named_in(text, SIZES)
        if text is product.title:  # where a lone letter may mean anything
            found = {name: words for name, words in found.items() if len(" ".join(words)) > 1}
        stated |= found
    if demand.value in stated:
        return _inverted(Finding("met", " ".join(stated[demand.value])), demand)
    steps = [name for name in stated if name in SIZE_STEPS]
    if demand.value in SIZE_STEPS and steps:
        gap = min(abs(SIZE_STEPS.index(name) - SIZE_STEPS.index(demand.value)) for name in steps)
        return Finding("near" if gap == 1 else "missed", " ".join(stated[steps[0]]))
    return _said(product, demand.words)


def _amount(product: Product, demand: Demand) -> Finding:
    """A quantity: an equal one in any field meets it, another one in the title alone is near or misses it."""
    kind, wanted = demand.amount

    def amounts(text: Text) -> list[tuple[float, str]]:
        found = [(much, " ".join(text.words[a:b])) for a, b, what, much in quantities(text.words) if what == kind]
        return [(max(much, wanted) / min(much, wanted), words) for much, words in found if much and wanted]

    in_title = amounts(product.title)
    for ratio, words in [*in_title, *(pair for text in product.texts[2:4] for pair in amounts(text))]:
        if ratio <= EQUAL:
            return Finding("met", words)
    if not in_title:
        return UNKNOWN
    ratio, words = min(in_title)
    return Finding("near" if ratio <= NEXT_STEP else "missed", words)


def _use(product: Product, demand: Demand) -> Finding:
    if not demand.value:
        return _said(product, demand.words)
    phrases = [phrase for phrase, name in AUDIENCES.items() if name == demand.value]
    for text in product.texts:
        for phrase in phrases:
            if text.says(phrase) == "yes":
                return Finding("met", " ".join(phrase))
    if any(text.holds(("unisex",)) for text in product.texts):
        return Finding("near", "unisex")
    others = OTHER_AUDIENCES.get(demand.value, ())
    for phrase, name in AUDIENCES.items():
        if name in others and (product.title.says(phrase) == "yes" or product.category.says(phrase) == "yes"):
            return Finding("missed", " ".join(phrase))
    return UNKNOWN


def price_of(text: str) -> float | None:
    """The first amount in a price, None where there is none."""
    return next((value for word in words_of(text) if (value := number_of(word)) is not None), None)


def _price(product: Product, demand: Demand) -> Finding:
    price = price_of(product.row.price)
    if demand.amount and price is not None:
        limit = demand.amount[1]
        shown = " ".join(word for word in words_of(product.row.price) if word not in CURRENCIES)
        return Finding("met" if price <= limit else "near" if price <= 1.15 * limit else "missed", shown)
    if demand.words[:1] == ("below",) and product.brand.words[: len(demand.words) - 1] == demand.words[1:]:
        return Finding("missed", "itself")
    return UNKNOWN  # what is cheap for such a thing stands in no product's text


def _said(product: Product, words: tuple[str, ...]) -> Finding:
    """met where a field has the words, behind each other or (several) all in one title; missed where it denies them."""
    denied = False
    for text in product.texts:
        said = text.says(words)
        if said == "yes":
            return Finding("met", " ".join(words))
        denied = denied or said == "no"
    scattered = len(words) > 1 and not any(map(str.isdigit, words))
    if scattered and all(product.title.holds((word,)) for word in words):
        return Finding("met", " ".join(words))
    return Finding("missed", f"no {' '.join(words)}") if denied else UNKNOWN


def _feature(product: Product, demand: Demand) -> Finding:
    wanted = " ".join(demand.words)
    for field, value in product.fields:  # "wireless: no"
        if field == wanted and value.casefold() in YES + NO:
            return _inverted(Finding("met" if value.casefold() in YES else "missed", f"{field} {value}"), demand)
    if demand.excluded:
        return _excluded_feature(product, demand)
    for words in (demand.words, *SAME_FEATURE.get(demand.words, ())):
        finding = _said(product, words)
        if finding.outcome != "unknown":
            return finding
    if any(text.holds(words) for words in NEAR_FEATURE.get(demand.words, ()) for text in product.texts):
        return Finding("near", " ".join(NEAR_FEATURE[demand.words][0]))
    if len(demand.words) == 2 and demand.words[0].isalpha() and demand.words[1].isdigit():  # "iphone 12": an iphone 13
        for place in product.title.find(demand.words[:1]):
            other = product.title.words[place + 1 : place + 2]
            if other and other[0].isdigit():
                return Finding("missed", f"{demand.words[0]} {other[0]}")
    return UNKNOWN


def _excluded_feature(product: Product, demand: Demand) -> Finding:
    """An exclusion is met where a field denies it, missed where the title or a short value has it, else unknown."""
    said = [text.says(demand.words) for text in product.texts]
    if "no" in said:
        return Finding("met", f"no {' '.join(demand.words)}")
    if len(demand.words) == 1 and any(text.holds((f"{demand.words[0]}less",)) for text in product.texts):
        return Finding("met", f"{demand.words[0]}less")
    short = [Text.of(value) for _, value in product.fields if len(value) <= SHORT_VALUE]
    if said[0] == "yes" or any(text.says(demand.words) == "yes" for text in short):
        return Finding("missed", " ".join(demand.words))
    return UNKNOWN
