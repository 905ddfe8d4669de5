"""What is true of a (query, item) pair of the embedded shop, and the chain of thought that says it.

Facts are what the rule book reads: how the categories relate, and one outcome per demand. `shop.py` draws the pairs.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from taosr1.synthetic import catalogue as shop
from taosr1.task.rules import decide, load_rules
from taosr1.task.teacher import write_cot


@dataclass(frozen=True)
class Demand:
    """One thing the query asks of the item. `attribute` "price" means: cheaper than brand `value`."""

    attribute: str
    value: str
    excluded: bool = False

    @property
    def fact(self) -> str:
        """The rule book's name of this demand: "colour", or "no-colour" where the colour is excluded."""
        return f"no-{self.attribute}" if self.excluded else self.attribute


@dataclass(frozen=True)
class Query:
    kind: str
    type: str  # canonical type name, whether or not the text says it
    demands: tuple[Demand, ...]
    template: str
    text: str


@dataclass(frozen=True)
class Item:
    type: str
    brand: str
    colour: str | None
    material: str | None
    size: str | None
    features: tuple[str, ...]
    use: str | None
    accessory: str | None  # "laces": the item is laces *for* the type
    title: str = ""
    price: str = ""


GROUP_OF = {kind: group for group, types in shop.TYPES.items() for kind in types}
TIER_OF_BRAND = {brand: tier for tier, brands in shop.BRANDS.items() for brand in brands}
ALL_BRANDS = tuple(TIER_OF_BRAND)
_FAMILY = {value: family for family in shop.COLOUR_FAMILIES + shop.MATERIAL_FAMILIES for value in family}


def category_path(type_name: str) -> tuple[str, str, str]:
    """Group, shelf and type, as a shop files its products: ("kitchen", "drinkware", "travel mug")."""
    group = GROUP_OF[type_name]
    return group, shop.SHELVES[group][list(shop.TYPES[group]).index(type_name) // 2], type_name


def category_fact(query_type: str, item: Item) -> str:
    """How the item's category relates to the wanted one: same, substitute, accessory, sibling or different."""
    if GROUP_OF[query_type] != GROUP_OF[item.type]:
        return "different"
    if item.accessory:
        return "accessory"
    if query_type == item.type:
        return "same"
    return "substitute" if category_path(query_type)[:2] == category_path(item.type)[:2] else "sibling"


def item_value(item: Item, demand: Demand) -> str:
    """What the item has where the query demands something: a value, "none" (no such feature) or "unknown"."""
    if demand.attribute == "price":
        return TIER_OF_BRAND[item.brand]
    if demand.attribute == "feature":
        if item.accessory:
            return "unknown"
        return demand.value if demand.value in item.features else "none"
    return getattr(item, demand.attribute) or "unknown"


def outcome(item: Item, demand: Demand) -> str:
    """met, near, missed or unknown (the rule book's words) for one demand."""
    if demand.attribute == "price":
        return compare(demand, item.brand, item.type)
    return compare(demand, item_value(item, demand), item.type)


def relation(item: Item, demand: Demand) -> str:
    """How the item's value stands to the demanded one, before "not" is looked at; "" where the item has none to compare.

    One easy step before the outcome: "not red: red same missed" and "red: red same met" share the comparison.
    """
    value = item_value(item, demand)
    if value in ("none", "unknown"):
        return ""
    plain = replace(demand, excluded=False)
    result = outcome(item, plain)
    if demand.attribute == "price":
        return {"met": "lower", "near": "same", "missed": "higher"}[result] if item.brand != demand.value else "itself"
    return {"met": "same", "near": "near", "missed": "other"}[result]


def compare(demand: Demand, value: str | None, item_type: str) -> str:
    """The outcome of a demand where the item has `value` ("price": where it is of brand `value`)."""
    if value in (None, "unknown"):
        return "unknown"
    if demand.attribute == "price":
        gap = shop.TIERS.index(TIER_OF_BRAND[demand.value]) - shop.TIERS.index(TIER_OF_BRAND[value])
        if value == demand.value or gap < 0:
            return "missed"
        return "met" if gap > 0 else "near"
    if value == demand.value:
        return "missed" if demand.excluded else "met"
    if demand.attribute == "size":
        sizes = shop.SIZES.get(GROUP_OF[item_type], ())
        near = demand.value in sizes and abs(sizes.index(value) - sizes.index(demand.value)) == 1
    else:
        near = demand.attribute == "use" or value in _FAMILY.get(demand.value, ())
    if near:
        return "near"
    return "met" if demand.excluded else "missed"


def facts_of(query: Query, item: Item) -> dict[str, str]:
    """Every fact the rule book needs: the category relation and one outcome per demand."""
    return {"category": category_fact(query.type, item)} | {d.fact: outcome(item, d) for d in query.demands}


def item_line(item: Item) -> str:
    """What the product is, in one normalised order: type, price tier, brand, then what the title says of the rest.

    Everything is listed, whether or not the query asks for it: a line that held only the demanded attributes would
    teach to copy the query's value, which is right more often than not.
    """
    parts = (TIER_OF_BRAND[item.brand], item.brand, item.colour, item.material, item.size, *sorted(item.features), item.use)
    category = " ".join(category_path(item.type)) + (" accessory" if item.accessory else "")
    return f"{category}; " + " ".join(part for part in parts if part)


def cot_of(query: Query, item: Item, facts: dict[str, str], grade: int) -> str:
    """The five-line chain of thought for these facts (which may be wrong ones) and the grade they lead to."""
    asked = [f"{'not ' if d.excluded else ''}{_asked_value(d)}" for d in query.demands]
    wanted = [" ".join(category_path(query.type))]
    wanted += [f"{d.attribute} {words}" + (f" {d.value}" if d.attribute == "price" else "") for d, words in zip(query.demands, asked)]
    outcomes = [(d.fact, facts[d.fact]) for d in query.demands]
    evidence = [" ".join(f"{words}: {item_value(item, d)} {relation(item, d)}".split()) for d, words in zip(query.demands, asked)]
    return write_cot("; ".join(wanted), item_line(item), facts["category"], outcomes, grade, evidence)


def _asked_value(demand: Demand) -> str:
    return f"below {TIER_OF_BRAND[demand.value]}" if demand.attribute == "price" else demand.value


def wrong_facts(rng: random.Random, query: Query, facts: dict[str, str], grade: int) -> tuple[dict[str, str], int]:
    """One wrong step that the verdict follows: facts with one entry changed so that the rule book decides otherwise."""
    rules = load_rules()
    options = [("category", value) for value in ("same", "substitute", "sibling", "different")]
    options += [(demand.fact, value) for demand in query.demands for value in ("met", "near", "missed")]
    rng.shuffle(options)
    for name, value in options:
        changed = facts | {name: value}
        verdict = decide(changed, rules)[0]
        if verdict != grade:
            return changed, verdict
    raise AssertionError("changing the category always changes some verdict")
