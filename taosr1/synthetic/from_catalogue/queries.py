"""Draws queries that a product of the shop could be found by, of the five kinds of the embedded shop."""

from __future__ import annotations

import random
from dataclasses import dataclass

from taosr1.synthetic.from_catalogue.fields import Field
from taosr1.synthetic.from_catalogue.kinds import Kind
from taosr1.synthetic.from_catalogue.shop import Asked, Shop
from taosr1.synthetic.from_catalogue.wordings import (
    BEFORE,
    CONCEPTS,
    OTHER_UNITS,
    PRICE_FORMS,
    TEMPLATES,
    UNIT_SPELLINGS,
)
from taosr1.task.evidence.demands import Demand
from taosr1.task.evidence.text import words_of

# How often each sort of field is asked for: a product has many yes-or-no fields, and shoppers name few of them.
WEIGHTS = {"colour": 4.0, "material": 3.0, "number": 4.0, "use": 2.0, "words": 2.0, "yes or no": 0.4, "brand": 3.0}
COUNTS = {"plain": (0.10, 0.60, 0.30), "question": (0.0, 0.8, 0.2)}  # of 0, 1 and 2 demands
OTHER_COUNTS = (0.65, 0.35, 0.0)  # beside the demand that makes the kind
PLURAL = 0.25  # share of English queries for several


@dataclass(frozen=True)
class Query:
    """A query of the shop: its text, the thing, and what is asked of it, in the order of the steps."""

    kind: str  # plain, negation, affordable, question, knowledge
    thing: Kind
    asked: tuple[Asked, ...]
    text: str


def draw_query(rng: random.Random, shop: Shop, number: int, kind: str, held_out: bool) -> Query | None:
    """A query that the product `number` meets, or None where this product has nothing to ask for of that kind."""
    thing = shop.kinds.of_product[number]
    words = {"t": " ".join(thing)}
    special, form = None, kind
    if kind == "negation":
        special = _excluded(rng, shop, number, words)
    elif kind == "affordable":
        form = rng.choice(PRICE_FORMS)
        special = _price(rng, shop, number, form, words)
    elif kind == "knowledge":
        special = _described(rng, shop, number, words)
    if special is None and kind in ("negation", "affordable", "knowledge"):
        return None
    (count,) = rng.choices((0, 1, 2), COUNTS.get(kind, OTHER_COUNTS))
    taken = {special.demand.name} | ({special.field.name} if special.field else set()) if special else set()
    asked, texts = _positive(
        rng, shop, number, count, taken | ({"brand"} if kind in ("negation", "affordable") else set())
    )
    if kind == "question" and not asked:
        return None
    if special and any(set(one.demand.words) & set(special.demand.words) for one in asked):
        return None  # "usb cable without usb"
    template = rng.choice(TEMPLATES[shop.language][form][1 if held_out else 0])
    if shop.language == "en" and rng.random() < PLURAL and " a " not in template:
        words["t"] = plural(words["t"])
    behind = template.find("{d}") > template.find("{t}")  # "red mug by orlo", "orlo red mug"
    before = (lambda options: options[-1]) if kind == "question" else rng.choice  # "which mug should i buy in red"
    words["d"] = " ".join(before(options) + text if behind else text for options, text in texts)
    text = " ".join(template.format(**words).split()).strip(" ,")
    return Query(kind, thing, (*asked, *([special] if special else [])), text)


def plural(text: str) -> str:
    """The English plural of the last word; the text itself where that is irregular or one already."""
    if text.endswith(("s", "mouse", "foot", "man", "child", "media", "software")):
        return text
    if text.endswith(("x", "ch", "sh", "z")):
        return text + "es"
    return text[:-1] + "ies" if text.endswith("y") and text[-2:-1] not in "aeiou" else text + "s"


def options_of(shop: Shop, number: int) -> list[tuple[Field, str]]:
    """The fields of a product that a query could name, each with its value."""
    values = shop.values[number]
    return [(found, values[name]) for name, found in shop.fields.items() if name in values]


def _positive(
    rng: random.Random, shop: Shop, number: int, count: int, taken: set[str]
) -> tuple[list[Asked], list[tuple[tuple[str, ...], str]]]:
    """Up to `count` demands that the product meets, and of each what may stand before it, and its words."""
    options = [(WEIGHTS.get(found.demand if found.sort == "words" else found.sort, 2.0), found, value)
               for found, value in options_of(shop, number)]  # fmt: skip
    many = sum(found.sort == "yes or no" for _, found, _ in options)
    options = [(weight / max(many, 1) * 3 if found.sort == "yes or no" else weight, found, value)
               for weight, found, value in options]  # fmt: skip
    if shop.looked[number].brand.words:
        options.append((WEIGHTS["brand"], None, shop.rows[number].brand))
    asked: list[Asked] = []
    texts: list[tuple[tuple[str, ...], str]] = []
    while options and len(asked) < count:
        (place,) = rng.choices(range(len(options)), [weight for weight, _, _ in options])
        _, found, value = options.pop(place)
        one = _asked(rng, shop, number, found, value)
        if one is None or {one.demand.name, found.name if found else "brand"} & taken:
            continue
        if found and set(one.demand.words) <= {*shop.looked[number].brand.words, *shop.kinds.of_product[number]}:
            continue  # "intel" of an Intel processor: said already
        taken = taken | {one.demand.name if one.demand.name != "feature" else found.name}
        asked.append(one)
        texts.append(_words(rng, shop.language, one, value))
    return asked, texts


def _asked(rng: random.Random, shop: Shop, number: int, found: Field | None, value: str) -> Asked | None:
    """The demand for a value of a product, None where the product itself does not meet it beyond doubt."""
    if found is None:
        one = Asked(Demand("brand", shop.looked[number].brand.words))
    else:
        parts = [part.strip() for part in value.split(",")] if found.sort == "words" else [value]
        demand = found.demand_of(rng.choice(parts))
        one = Asked(demand, found) if demand else None
    finding = shop.finding(number, shop.kinds.of_product[number], one) if one else None
    return one if finding and finding.outcome == "met" else None


def _words(rng: random.Random, language: str, one: Asked, value: str) -> tuple[tuple[str, ...], str]:
    """A demand as a query says it: what stands before it behind the thing ("by "), and its own words."""
    demand = one.demand
    if one.field is None:
        sort, text = "brand", value.casefold()
    elif one.field.sort == "number":
        amount, unit = demand.words
        return ("",), rng.choice(UNIT_SPELLINGS.get(unit, ("{} " + unit,))).format(amount)
    else:
        sort = one.field.sort if one.field.sort == "yes or no" else demand.name
        parts = [part.strip() for part in value.split(",")]
        text = next(
            (part.casefold() for part in parts if tuple(words_of(part)) == demand.words), " ".join(demand.words)
        )
        if one.field.sort == "yes or no":
            text = one.field.name
    return BEFORE[language].get(sort, ("",)), text


def _excluded(rng: random.Random, shop: Shop, number: int, words: dict[str, str]) -> Asked | None:
    """Something that other products of the kind have, and this one does not; its words go into "x"."""
    kind = shop.kinds.of_product[number]
    for _ in range(8):
        other = rng.choice(shop.kinds.products[kind])
        options: list[tuple[float, Field | None, str]] = [
            (WEIGHTS.get(found.demand if found.sort == "words" else found.sort, 2.0), found, value)
            for found, value in options_of(shop, other) if found.sort != "number"
        ]  # fmt: skip
        if shop.looked[other].brand.words:
            options.append((WEIGHTS["brand"], None, shop.rows[other].brand))
        if not options:
            continue
        ((_, found, value),) = rng.choices(options, [weight for weight, _, _ in options])
        if found is None:
            demand = Demand("brand", shop.looked[other].brand.words, excluded=True)
        else:
            demand = found.demand_of(rng.choice(value.split(",")).strip(), excluded=True)
        one = Asked(demand, found) if demand else None
        finding = shop.finding(number, kind, one) if one else None
        if finding and finding.outcome == "met" and (has := shop.finding(other, kind, one)) and has.outcome == "missed":
            words["x"] = value.casefold() if found is None else " ".join(demand.words)
            return one
    return None


def _price(rng: random.Random, shop: Shop, number: int, form: str, words: dict[str, str]) -> Asked | None:
    kind, price = shop.kinds.of_product[number], shop.prices[number]
    if not price:
        return None
    if form == "limit":
        limit = _round_up(price * rng.choice((1.0, 1.1, 1.3, 1.6)))
        words["n"] = f"{limit:g}"
        one = Asked(Demand("price", (f"{limit:g}",), amount=("price", limit)))
    elif form == "low":
        one = Asked(Demand("price", ("low",))) if kind in shop.prices_of else None
    else:
        brands = sorted(brand for of_kind, brand in shop.brand_prices if of_kind == kind)
        brand = rng.choice(brands) if brands else ()
        words["b"] = " ".join(brand)
        one = Asked(Demand("price", ("below", *brand))) if brand else None
    finding = shop.finding(number, kind, one) if one else None
    return one if finding and finding.outcome == "met" else None


def _round_up(price: float) -> float:
    """The next price that somebody would name: 7, 25, 140, 1600."""
    step = 10.0 ** max(len(str(int(price))) - 2, 0) * (1 if price < 10 else 5 if price < 100 else 2)
    return step * -(-price // step)


def _described(rng: random.Random, shop: Shop, number: int, words: dict[str, str]) -> Asked | None:
    """A demand in words that have to be understood: a described colour or feature, or an amount in another unit."""
    options = []
    for found, value in options_of(shop, number):
        demand = found.demand_of(value.split(",")[0].strip())
        if demand is None:
            continue
        name = found.name if found.sort == "yes or no" else demand.value or " ".join(demand.words)
        if found.sort == "number" and demand.words[1] in OTHER_UNITS:
            unit, factor = rng.choice(OTHER_UNITS[demand.words[1]])
            amount = float(demand.words[0]) * factor
            options.append(
                (Asked(demand, found), f"of {amount:.3g} {unit}" if amount < 1000 else f"of {amount:.0f} {unit}")
            )
        elif name in CONCEPTS and shop.language == "en":
            options.append((Asked(demand, found), rng.choice(CONCEPTS[name])))
    if not options:
        return None
    one, words["c"] = rng.choice(options)
    finding = shop.finding(number, shop.kinds.of_product[number], one)
    return one if finding and finding.outcome == "met" else None
