"""The facts about a (query, item) pair of the synthetic shop, and the chain of thought that states them.

Facts are the input of the rule book: how the categories relate, and one outcome per demand. `shop.py` draws the pairs.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from taosr1.synthetic import catalogue
from taosr1.synthetic.catalogue import GROUP_OF, SIZES, TIER_OF_BRAND, TIERS
from taosr1.task.rules import decide, load_rules
from taosr1.task.teacher import write_cot


@dataclass(frozen=True)
class Demand:
    """One thing that the query asks for. `attribute` "price" means: cheaper than brand `value`."""

    attribute: str
    value: str
    excluded: bool = False

    @property
    def fact(self) -> str:
        """The rule book's name of this demand: "colour", or "no-colour" if the colour is excluded."""
        return f"no-{self.attribute}" if self.excluded else self.attribute


@dataclass(frozen=True)
class Query:
    kind: str
    type: str  # canonical type name, even if the text does not name it
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


_FAMILY = {value: family for family in catalogue.COLOUR_FAMILIES + catalogue.MATERIAL_FAMILIES for value in family}


def category_path(type_name: str) -> tuple[str, str, str]:
    """Group, shelf and type of a product: ("kitchen", "drinkware", "travel mug")."""
    group = GROUP_OF[type_name]
    return group, catalogue.SHELVES[group][list(catalogue.TYPES[group]).index(type_name) // 2], type_name


def category_fact(query_type: str, item: Item) -> str:
    """Relation of the item's category to the wanted one: same, substitute, accessory, sibling or different."""
    if GROUP_OF[query_type] != GROUP_OF[item.type]:
        return "different"
    if item.accessory:
        return "accessory"
    if query_type == item.type:
        return "same"
    return "substitute" if category_path(query_type)[:2] == category_path(item.type)[:2] else "sibling"


def item_value(item: Item, demand: Demand) -> str:
    """The item's value of the demanded attribute, "none" (it lacks the feature) or "unknown"."""
    if demand.attribute == "price":
        return TIER_OF_BRAND[item.brand]
    if demand.attribute == "feature":
        if item.accessory:
            return "unknown"
        return demand.value if demand.value in item.features else "none"
    return getattr(item, demand.attribute) or "unknown"


def outcome(item: Item, demand: Demand) -> str:
    """met, near, missed or unknown (the rule book's words) for one demand."""
    return compare(demand, item.brand if demand.attribute == "price" else item_value(item, demand))


def relation(item: Item, demand: Demand) -> str:
    """Relation of the item's value to the demanded one, without regard to "not"; "" if the item has no such value.

    An easy step before the outcome: "not red: red same missed" and "red: red same met" share it.
    """
    if item_value(item, demand) in ("none", "unknown"):
        return ""
    if demand.attribute == "price" and item.brand == demand.value:
        return "itself"
    met, near, missed = ("lower", "same", "higher") if demand.attribute == "price" else ("same", "near", "other")
    return {"met": met, "near": near, "missed": missed}[outcome(item, replace(demand, excluded=False))]


def compare(demand: Demand, value: str | None) -> str:
    """The outcome of a demand if the item has `value` ("price": if it is of brand `value`)."""
    if value in (None, "unknown"):
        return "unknown"
    if demand.attribute == "price":
        gap = TIERS.index(TIER_OF_BRAND[demand.value]) - TIERS.index(TIER_OF_BRAND[value])
        return "met" if gap > 0 else "near" if gap == 0 and value != demand.value else "missed"
    if value == demand.value:
        return "missed" if demand.excluded else "met"
    if demand.attribute == "size":
        near = abs(SIZES.index(value) - SIZES.index(demand.value)) == 1
    else:
        near = demand.attribute == "use" or value in _FAMILY.get(demand.value, ())
    return "near" if near else "met" if demand.excluded else "missed"


def facts_of(query: Query, item: Item) -> dict[str, str]:
    """Every fact the rule book needs: the category relation and one outcome per demand."""
    return {"category": category_fact(query.type, item)} | {d.fact: outcome(item, d) for d in query.demands}


def item_line(item: Item) -> str:
    """The product in one normalised order: type, price tier, brand, then all its other attributes.

    A line with the demanded ones alone would teach the model to copy the query's value, which is mostly right.
    """
    category = " ".join(category_path(item.type)) + (" accessory" if item.accessory else "")
    values = (item.brand, item.colour, item.material, item.size, *sorted(item.features), item.use)
    return f"{category}; {TIER_OF_BRAND[item.brand]} " + " ".join(filter(None, values))


def cot_of(query: Query, item: Item, facts: dict[str, str], grade: int) -> str:
    """The five-line chain of thought for these facts (which may be wrong ones) and the grade that follows from them."""
    wanted, outcomes, evidence = [" ".join(category_path(query.type))], [], []
    for demand in query.demands:
        words, brand = ("not " if demand.excluded else "") + demand.value, ""
        if demand.attribute == "price":
            words, brand = f"below {TIER_OF_BRAND[demand.value]}", f" {demand.value}"
        wanted.append(f"{demand.attribute} {words}{brand}")
        outcomes.append((demand.fact, facts[demand.fact]))
        evidence.append(f"{words}: {item_value(item, demand)} {relation(item, demand)}".rstrip())
    return write_cot("; ".join(wanted), item_line(item), facts["category"], outcomes, grade, evidence)


def wrong_facts(rng: random.Random, query: Query, facts: dict[str, str], grade: int) -> tuple[dict[str, str], int]:
    """Facts with one entry changed so that the rule book gives another grade, and that grade."""
    rules = load_rules()
    options = [("category", value) for value in ("same", "substitute", "sibling", "different")]
    options += [(demand.fact, value) for demand in query.demands for value in ("met", "near", "missed")]
    rng.shuffle(options)
    for name, value in options:
        changed = facts | {name: value}
        decided = decide(changed, rules)[0]
        if decided != grade:
            return changed, decided
    raise AssertionError("some change of the category always changes the grade")
