"""What each ability is: functions that propose two queries and two products whose four grades turn on it.

A proposal may be none: `blocks.py` looks at the grades and the words of each, and drops what is no block.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from taosr1.synthetic.catalogue import (
    BRANDS,
    COLOUR_FAMILIES,
    CONCEPTS,
    DEMAND_PHRASES,
    EXCLUDABLE,
    GROUP_OF,
    MATERIAL_FAMILIES,
    NEEDS,
    TEMPLATES,
    TIERS,
    TYPES,
    VALUES,
)  # fmt: skip
from taosr1.synthetic.facts import Demand, Item, Query
from taosr1.synthetic.shop import POOL_BUCKETS, item_bucket, random_item, spelled

TRIES = 400  # draws of two products, of which one in 64 is of the test pool


@dataclass(frozen=True)
class Draft:
    """What an ability proposes. items: without titles, None where no such products are in the test pool; word: which
    synonym of their types their titles use."""

    queries: tuple[Query, Query]
    items: tuple[Item, Item] | None
    word: int


# --- Wording, and products --------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Asker:
    """How a query is worded: everything but what it asks for."""

    kind: str
    template: str
    word: int  # which synonym of a type it uses

    def __call__(self, type_name: str, *demands: Demand, **words: str) -> Query:
        filled = {"t": TYPES[GROUP_OF[type_name]][type_name][0][self.word], "d": ""} | words
        return Query(self.kind, type_name, demands, self.template, spelled(self.template, filled))


def _asker(rng: random.Random, kind: str, word: int | None = None, suits: Callable[[str], bool] = bool) -> _Asker:
    """A held-out wording. suits: which templates may be used."""
    templates = [text for text in TEMPLATES[kind][1] if suits(text)]
    return _Asker(kind, rng.choice(templates), rng.randrange(2) if word is None else word)


def _compares(template: str) -> bool:
    """Whether an affordable query compares prices, rather than asking for something like a brand."""
    return "less expensive" in template


def _partner(type_name: str) -> str:
    """The type that stands in for this one."""
    types = list(TYPES[GROUP_OF[type_name]])
    return types[types.index(type_name) ^ 1]


def _siblings(type_name: str) -> list[str]:
    """The types of the same group that do not."""
    return [name for name in TYPES[GROUP_OF[type_name]] if name not in (type_name, _partner(type_name))]


def _a_type(rng: random.Random) -> str:
    return rng.choice(list(GROUP_OF))


def _products(
    rng: random.Random, type_name: str, attribute: str, one: str, other: str, **both: str
) -> tuple[Item, Item] | None:
    """Two products of the test pool, without titles, that differ in one value alone; None where none are found.

    attribute: "type" too; of a "feature", each product has the one value and lacks the other. both: what both have.
    """
    if attribute != "type" and not {one, other} <= set(VALUES[attribute][GROUP_OF[type_name]]):
        return None
    for _ in range(TRIES):
        item: Item | None = replace(random_item(rng, type_name, accessory=False), **both)
        if attribute == "type":
            item = _sold_as(rng, item, other)
        if item is None:
            return None
        if attribute == "feature":
            more = tuple(feature for feature in item.features[1:] if feature not in (one, other))
            pair = replace(item, features=(one, *more)), replace(item, features=(other, *more))
        else:
            pair = replace(item, **{attribute: one}), replace(item, **{attribute: other})
        if all(item_bucket(item) in POOL_BUCKETS["test"] for item in pair):
            return pair
    return None


def _sold_as(rng: random.Random, item: Item, type_name: str) -> Item | None:
    """The product with only such values as products of another type have too; None where there are none."""
    own, group = GROUP_OF[item.type], GROUP_OF[type_name]
    if own == group:
        return item
    material, feature = (
        [value for value in VALUES[name][own] if value in VALUES[name][group]] for name in ("material", "feature")
    )
    if not (material and feature):
        return None
    use = item.use if item.use in VALUES["use"][group] else None
    return replace(item, material=rng.choice(material), features=(rng.choice(feature),), size=None, use=use)


def _near_values(rng: random.Random, group: str) -> tuple[str, list[tuple[str, str]]] | None:
    """An attribute, and of two of its families (value to ask for, another that is near to it); None where it has one.

    A value of one family misses what is asked of the other, and no title repeats a word of the query.
    """
    attribute, families = rng.choice((("colour", COLOUR_FAMILIES), ("material", MATERIAL_FAMILIES)))
    known = [family for family in families if set(family) <= set(VALUES[attribute][group])]
    if len(known) < 2:
        return None
    return attribute, [tuple(rng.sample(family, 2)) for family in rng.sample(known, 2)]


# --- The abilities: each function proposes a block, or None -----------------------------------------------------------
def _substitute_or_sibling(rng: random.Random) -> Draft:
    ask, one = _asker(rng, "plain"), _a_type(rng)
    other = rng.choice(_siblings(one))
    return _of_types(rng, ask(one), ask(other), _partner(one), _partner(other), ask.word)


def _sibling_or_different(rng: random.Random) -> Draft:
    ask, one = _asker(rng, "plain"), _a_type(rng)
    other = rng.choice([name for name in GROUP_OF if GROUP_OF[name] != GROUP_OF[one]])
    offered = rng.choice(_siblings(one)), rng.choice(_siblings(other))
    return _of_types(rng, ask(one), ask(other), *offered, ask.word)


def _of_types(rng: random.Random, one: Query, other: Query, offered: str, another: str, word: int) -> Draft:
    return Draft((one, other), _products(rng, offered, "type", offered, another), word)


def _near_or_missed(rng: random.Random, *, substitute: bool = False, excluded: bool = False) -> Draft | None:
    """Two values are asked for (or excluded), and the products have one that is near to the one or to the other."""
    wanted = _a_type(rng)
    ask, found = _asker(rng, "negation" if excluded else "plain"), _near_values(rng, GROUP_OF[wanted])
    if found is None:
        return None
    attribute, ((asked, near), (another, near_another)) = found
    phrase = rng.choice(DEMAND_PHRASES[attribute])

    def query(value: str) -> Query:
        words = {"x": value} if excluded else {"d": phrase.format(v=value)}
        return ask(wanted, Demand(attribute, value, excluded), **words)

    offered = _partner(wanted) if substitute else wanted
    items = _products(rng, offered, attribute, near, near_another)
    return Draft((query(asked), query(another)), items, ask.word)


def _other_name(rng: random.Random, *, sibling: bool) -> Draft:
    """Queries use one name of each type, titles the other."""
    ask, one = _asker(rng, "plain"), _a_type(rng)
    other = rng.choice(_siblings(one)) if sibling else _partner(one)
    return _of_types(rng, ask(one), ask(other), one, other, 1 - ask.word)


def _wished_or_excluded(rng: random.Random) -> Draft | None:
    ask, type_name, attribute = _asker(rng, "plain"), _a_type(rng), rng.choice(EXCLUDABLE)
    value, another = rng.sample(VALUES[attribute][GROUP_OF[type_name]], 2)
    phrase = rng.choice(DEMAND_PHRASES[attribute])
    wish = ask(type_name, Demand(attribute, value), d=phrase.format(v=value))
    excluded = _asker(rng, "negation", ask.word)(type_name, Demand(attribute, value, excluded=True), x=value)
    if not _as_long(wish, excluded):
        return None
    return Draft((wish, excluded), _products(rng, type_name, attribute, value, another), ask.word)


def _as_long(one: Query, other: Query) -> bool:
    """Whether two queries have as many words; else the share of words that a title has would tell them apart."""
    return len(set(one.text.replace(" ,", "").split())) == len(set(other.text.replace(" ,", "").split()))


def _cheaper_brand(rng: random.Random) -> Draft:
    """Two tiers, and of each a brand to ask by and another one that is offered."""
    ask, type_name = _asker(rng, "affordable", suits=_compares), _a_type(rng)
    (one, offered), (other, another) = (rng.sample(BRANDS[tier], 2) for tier in rng.sample(TIERS[1:], 2))
    queries = tuple(ask(type_name, Demand("price", brand), b=brand) for brand in (one, other))
    return Draft(queries, _products(rng, type_name, "brand", offered, another), ask.word)


def _wish_or_measure(rng: random.Random) -> Draft | None:
    """A brand is asked for, or something cheaper than it; the products are of that brand and of a cheaper one."""
    ask, type_name = _asker(rng, "plain"), _a_type(rng)
    cheap, dear = sorted(rng.sample(range(len(TIERS)), 2))
    brand, cheaper = rng.choice(BRANDS[TIERS[dear]]), rng.choice(BRANDS[TIERS[cheap]])
    phrase = rng.choice(DEMAND_PHRASES["brand"])
    wish = ask(type_name, Demand("brand", brand), d=phrase.format(v=brand))
    names = _asker(rng, "affordable", ask.word, suits=lambda text: not _compares(text))
    like = names(type_name, Demand("price", brand), b=brand)
    if not _as_long(wish, like):
        return None
    return Draft((wish, like), _products(rng, type_name, "brand", brand, cheaper), ask.word)


def _need(rng: random.Random, relation: str, *, substitutes: bool = False) -> Draft:
    """Two needs, whose types have this relation; the products are of these types, or are their substitutes."""
    ask, one = _asker(rng, "question"), _a_type(rng)
    far = [name for name in GROUP_OF if GROUP_OF[name] != GROUP_OF[one]]
    other = rng.choice({"substitute": [_partner(one)], "sibling": _siblings(one), "different": far}[relation])
    queries = (ask(name, n=rng.choice(NEEDS[name])) for name in (one, other))
    return _of_types(rng, *queries, *(map(_partner, (one, other)) if substitutes else (one, other)), ask.word)


def _meaning(rng: random.Random) -> Draft | None:
    """Two phrases for values of one attribute, both wished or both excluded; each product suits one of them."""
    (phrases, demand) = rng.choice(CONCEPTS)
    alike = [concept for concept in CONCEPTS if concept[1] != demand and concept[1][::2] == demand[::2]]
    if not alike:
        return None
    others, other = rng.choice(alike)
    one, two = Demand(*demand), Demand(*other)
    offered = (two.value, one.value) if one.excluded else (one.value, two.value)
    return _phrases(rng, (rng.choice(phrases), one), (rng.choice(others), two), offered)


def _meaning_of_near_colour(rng: random.Random) -> Draft | None:
    """Two phrases for colours; each product has a colour that is near to one of them."""
    near = {value: other for family in COLOUR_FAMILIES for value, other in (family, family[::-1])}
    colours = [(phrases, Demand(*found)) for phrases, found in CONCEPTS if found[0] == "colour" and not found[2]]
    one, other = ((rng.choice(phrases), demand) for phrases, demand in rng.sample(colours, 2))
    return _phrases(rng, one, other, (near[one[1].value], near[other[1].value]))


def _phrases(
    rng: random.Random, one: tuple[str, Demand], other: tuple[str, Demand], offered: tuple[str, str]
) -> Draft:
    ask, type_name = _asker(rng, "knowledge"), _a_type(rng)
    queries = tuple(ask(type_name, demand, c=phrase) for phrase, demand in (one, other))
    return Draft(queries, _products(rng, type_name, one[1].attribute, *offered), ask.word)


def _near_value_of_related_type(rng: random.Random) -> Draft | None:
    """A substitute or a sibling, whose value is near to the one that is asked for."""
    ask, one = _asker(rng, "plain"), _a_type(rng)
    other, found = rng.choice(_siblings(one)), _near_values(rng, GROUP_OF[one])
    if found is None:
        return None
    attribute, ((asked, near), _) = found
    words = rng.choice(DEMAND_PHRASES[attribute]).format(v=asked)
    queries = tuple(ask(name, Demand(attribute, asked), d=words) for name in (one, other))
    items = _products(rng, _partner(one), "type", _partner(one), _partner(other), **{attribute: near})
    return Draft(queries, items, ask.word)


_Propose = Callable[[random.Random], Draft | None]
# In the order of tables and pictures. Names are those of the pools ("synthetic:ability-negation") and of the rows'
# query_kind. The sorts of an ability take turns. Behind each: the grades of its pairs.
ABILITIES: dict[str, tuple[_Propose, ...]] = {
    # Which types are substitutes, siblings, or have nothing in common: 3 and 2, 2 and 1.
    "category": (_substitute_or_sibling, _sibling_or_different),
    # The value that the product has, against the one that is asked for: near 3, missed 2.
    "attributes": (_near_or_missed,),
    # The wanted thing under another name 4, its substitute 3, a sibling 2.
    "synonyms": (partial(_other_name, sibling=False), partial(_other_name, sibling=True)),
    # The same value wished and excluded: 4 and 2, 2 and 4.
    "negation": (_wished_or_excluded,),
    # Which of two brands is cheaper: lower tier 4, the same 3, a higher one 2.
    "price": (_cheaper_brand,),
    # A brand as the wish and as the measure: that brand 4 and 2, a cheaper one 2 and 4.
    "affordable": (_wish_or_measure,),
    # The thing that a need calls for 4, or its substitute 3, a sibling 2, another thing 1.
    "question": tuple(partial(_need, relation=name) for name in ("substitute", "sibling", "different")),
    # What a phrase means: "for vegans" is "not leather". Met 4, missed 2.
    "knowledge": (_meaning,),
    # The lowest rule decides, flaws do not add up: two flaws of grade 3 are a 3, one of them with a flaw of 2 is a 2.
    "rules": (partial(_near_or_missed, substitute=True), _near_value_of_related_type),
    # Two abilities at once, of which neither alone helps: need and category (3 and 2), negation and near value (3 and
    # 4), meaning and near value (3 and 2).
    "combination": (
        partial(_need, relation="sibling", substitutes=True),
        partial(_near_or_missed, excluded=True),
        _meaning_of_near_colour,
    ),
}
