"""What a query can ask of a catalogue's products: its fields, as demands of the rule book, and their outcomes.

A field can be asked for where its values are colours, materials, yes and no, few words that titles have, too, or
numbers whose unit titles show ("display diagonal: 15.6" beside '15.6"'). All other fields (package weights, codes) are
kept as text, and no query asks for them.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from taosr1.task.evidence.demands import Demand
from taosr1.task.evidence.product import NO, YES, Finding, Product, is_field_of, look, named_in
from taosr1.task.evidence.text import number_of, quantities, words_of
from taosr1.task.evidence.words import COLOURS, MATERIALS, STOP_WORDS, UNITS

LEAST_VALUES = 10  # products with the field, so that a query can ask for it
MAX_VALUES = 80  # different values of a field of words
MAX_VALUE_WORDS = 3
UNIT_IN_TITLES = 0.35  # share of the products with a number whose title has it with its commonest unit
IN_TITLES = 0.15  # share of the products with a field whose title has its value: else nobody would ask for it
MAX_PARTS = 2  # of a colour or material: a longer list ("printing colours") is not what the product looks like
SAME, ROUNDED = 1.01, 1.02  # ratios of two amounts that are one; of one that a title rounds (39.6 cm, 15.6 inch)
NEXT = 2.0  # ratio beyond which an amount is not the next step, whatever lies between: 16 and 32 GB, but not 3 and 15 m
_LOGISTIC = re.compile(
    r"pack|pallet|carton|master|layer|shipping|harmoni|country|origin|certif|code|ean|gtin|upc|sku|\bid\b|url|image|"
    r"link|date|change|status|warranty|compliance|segment|weight|quantity|number of|rating|review|stock|version|"
    r"humidity|plating|latency|temperature|operating|storage|altitude|imperial|brand|\btype\b|\bname\b|title"
)
_NO_VALUE = frozenset(("not available", "n/a", "na", "none", "unspecified", "not specified", "unknown", "other", "no"))
_USE = re.compile(r"compatib|suitable|recommended|intended|\bfor\b|einsatz|geeignet|\buse\b|usage")


@dataclass(frozen=True)
class Field:
    """A field that queries ask for."""

    name: str  # as in the catalogue, in our words
    demand: str  # of the rule book: colour, material, size, feature, use
    sort: str  # words, yes or no, number
    unit: str = ""  # of a number

    def demand_of(self, value: str, excluded: bool = False) -> Demand | None:
        """The demand for one of its values, None where a query would not name it."""
        words = tuple(words_of(value))
        if self.sort == "number":
            number = number_of(words[0]) if len(words) == 1 else None
            what, factor = UNITS[self.unit]
            amount = (what, number * factor) if number else None
            return Demand("size", (f"{number:g}", self.unit), amount=amount) if amount and not excluded else None
        if self.sort == "yes or no":
            return Demand("feature", tuple(self.name.split()), excluded=excluded)
        table = {"colour": COLOURS, "material": MATERIALS}.get(self.demand)
        if table is not None and words not in table:
            return None
        if (
            value.casefold() in _NO_VALUE
            or not 0 < len(words) <= MAX_VALUE_WORDS
            or not any(word.isalpha() for word in words)
            or "," in words
        ):
            return None
        name = self.demand if not excluded or self.demand in ("colour", "material") else "feature"
        return Demand(name, words, (table or {}).get(words, ""), excluded)


def find_fields(products: Sequence[Product], values: Sequence[Mapping[str, str]]) -> dict[str, Field]:
    """The fields of a catalogue that queries can ask for, by name. values: of each product name -> value."""
    seen: dict[str, Counter] = defaultdict(Counter)
    in_title: Counter = Counter()
    units: dict[str, Counter] = defaultdict(Counter)
    for product, fields in zip(products, values):
        for name, value in fields.items():
            if _LOGISTIC.search(name) or len(value) > 40:
                continue
            seen[name][value.casefold()] += 1
            words = tuple(words_of(value))
            places = product.title.find(words)
            in_title[name] += bool(places)
            if len(words) == 1 and number_of(words[0]) is not None:
                behind = {word for place in places for word in product.title.words[place + 1 : place + 2]}
                units[name].update(behind & UNITS.keys())
    found = (_field(name, counts, in_title[name], units[name]) for name, counts in sorted(seen.items()))
    return {field.name: field for field in found if field}


def _field(name: str, counts: Counter, in_title: int, units: Counter) -> Field | None:
    total, words = counts.total(), name.split()
    if total < LEAST_VALUES or not words:
        return None
    if sum(counts[value] for value in (*YES, *NO)) > 0.9 * total:
        yes = sum(counts[value] for value in YES)
        asked = len(words) <= MAX_VALUE_WORDS and all(word.isalpha() and len(word) > 2 for word in words)
        named = asked and set(words) - STOP_WORDS and not set(words) & {"colour", "color"}
        return Field(name, "feature", "yes or no") if named and yes > 0 else None
    numbers = sum(count for value, count in counts.items() if len(value.split()) == 1 and value[:1].isdigit())
    if numbers > 0.8 * total:
        unit, often = units.most_common(1)[0] if units else ("", 0)
        return Field(name, "size", "number", unit) if often >= UNIT_IN_TITLES * total else None
    for demand, table in (("colour", COLOURS), ("material", MATERIALS)):
        if not is_field_of(demand, name):
            continue
        known = sum(count for value, count in counts.items() if tuple(words_of(value.split(",")[0])) in table)
        if known > 0.5 * total:
            return Field(name, demand, "words")
    if len(counts) > MAX_VALUES or in_title < IN_TITLES * total:
        return None
    return Field(name, "use" if _USE.search(name) else "feature", "words")


# --- Outcomes ---------------------------------------------------------------------------------------------------------
def outcome(
    product: Product, values: Mapping[str, str], field: Field, demand: Demand, steps: Sequence[float]
) -> Finding | None:
    """The outcome of a demand by a product's own field; where it has none, unknown if no text of it says more.

    steps: the numbers of this field in this kind, in order: a neighbour of the wanted one is near.
    Returns: None where field and text contradict each other, or the text knows more than the field: nobody should
        learn from such a pair.
    """
    value = values.get(field.name, "")
    if demand.name in ("colour", "material"):
        values = list(product.values(demand.name))
        if any(len(text.raw.split(",")) > MAX_PARTS for text in values):
            return None
        table = COLOURS if demand.name == "colour" else MATERIALS
        titled, fielded = named_in(product.title, table), {name for text in values for name in named_in(text, table)}
        if titled and fielded and (demand.value in titled) != (demand.value in fielded):
            return None  # "Cyan drum", and its colour is black
        return look(product, demand)
    said = [text.says(demand.words) for text in product.texts]
    if not value:
        silent = not any(said) and look(product, demand).outcome == "unknown"
        return Finding("unknown") if silent else None
    if field.sort == "number":
        return _step(product, value, demand, steps)
    words = words_of(value)
    if field.sort == "yes or no":
        holds, shown = value.casefold() in YES, value.casefold()
        if value.casefold() not in YES + NO:
            return None
    else:
        holds = any(tuple(words[at : at + len(demand.words)]) == demand.words for at in range(len(words)))
        shown = " ".join(words)
        if not holds and said[0] == "yes" or set(words) & set(demand.words) and not holds:
            return None  # "DDR" is no other value than "DDR SDRAM"
    return Finding("met" if holds != demand.excluded else "missed", shown)


def _step(product: Product, value: str, demand: Demand, steps: Sequence[float]) -> Finding | None:
    """A number: met if equal, near if it is the next step (no other number of the kind lies between), else missed.

    None where the title does not show it with a unit: catalogues mix units in one field (8 and 2048 of memory).
    """
    found = number_of((words_of(value) or [""])[0])
    wanted = number_of(demand.words[0])
    what, factor = UNITS[demand.words[1]]
    if (
        not found
        or not wanted
        or not any(
            kind == what and much and 1 / ROUNDED <= found * factor / much <= ROUNDED
            for _, _, kind, much in quantities(product.title.words)
        )
    ):
        return None
    shown = f"{found:g} {demand.words[1]}"
    if max(found, wanted) / min(found, wanted) <= SAME:
        return Finding("met", shown)
    low, high = sorted((found, wanted))
    far = high > NEXT * low or any(low * SAME < step < high / SAME for step in steps)
    return Finding("missed" if far else "near", shown)
