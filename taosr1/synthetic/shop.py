"""The embedded shop: a deterministic shop whose grades follow from the rule book, so that every stage runs offline.

Five pools, as in a real shop: a few pairs with a grade and a (noisy) teacher's chain of thought, more with a grade only,
many with neither; and dev and test pairs whose products, query templates and a share of whose (kind, value)
combinations no training pool contains. Grades follow from `facts.py`. `read_pool("reasoned")` is the one entry point the scripts use.

Choice: the paper's data are private. The grade shares (50/5/36/9 % for 4/3/2/1) and the hard query kinds are the
paper's; everything else here is ours.
"""

from __future__ import annotations

import random
import zlib
from dataclasses import replace
from functools import lru_cache

from taosr1.synthetic import catalogue as shop
from taosr1.synthetic.facts import (
    ALL_BRANDS,
    GROUP_OF,
    TIER_OF_BRAND,
    Demand,
    Item,
    Query,
    category_path,
    compare,
    cot_of,
    facts_of,
    wrong_facts,
)
from taosr1.task.judgement import Judgement
from taosr1.task.rules import decide, load_rules

POOL_SIZES = {"reasoned": 3000, "labelled": 9000, "unlabelled": 40000, "dev": 3000, "test": 4000}
EXPLAINED = "explained"  # "labelled" with the true reasons
# Products are split by a hash of what they are; each pool owns some of sixteen buckets.
POOL_BUCKETS = {"test": (0, 1), "dev": (2, 3), "reasoned": (4, 5), "labelled": (6, 7, 8), "unlabelled": tuple(range(9, 16))}
HELD_OUT_POOLS = ("dev", "test")
KIND_SHARES = {"plain": 0.40, "negation": 0.15, "affordable": 0.15, "question": 0.15, "knowledge": 0.15}
GRADE_SHARES = {4: 0.50, 3: 0.05, 2: 0.36, 1: 0.09}
ITEMS_PER_QUERY = {"dev": 2, "test": 2}  # one elsewhere: so many distinct queries teach more
HELD_OUT_COMBINATIONS = 0.20  # share of (kind, attribute, value) combinations that training queries never use
TEACHER_NOISE = 0.20  # share of reasoned pairs whose chain of thought has one wrong step
NEAR_MISS_SHARE = 0.70  # share of Mismatch items that miss a demand, though they are of the wanted type or its substitute
OUTCOME_MIX = ("met", "met", "near", "missed")  # what becomes of the demands that do not decide a pair's grade


# --- Drawing queries --------------------------------------------------------------------------------------------------
def is_held_out(kind: str, demand: Demand) -> bool:
    """True for the (kind, attribute, value) combinations that training queries never spell out.

    What a knowledge phrase stands for is exempt: only training can teach its meaning.
    """
    key = f"{kind}|{demand.fact}|{demand.value}"
    return zlib.crc32(key.encode()) % 1000 < 1000 * HELD_OUT_COMBINATIONS


def _values(group: str, attribute: str) -> tuple[str, ...]:
    if attribute in ("brand", "price"):
        return ALL_BRANDS
    if attribute == "colour":
        return tuple(value for family in shop.COLOUR_FAMILIES for value in family)
    table = {"material": shop.MATERIALS, "size": shop.SIZES, "feature": shop.FEATURES, "use": shop.USES}[attribute]
    return table.get(group, ())


def _draw_demand(rng: random.Random, kind: str, group: str, attribute: str, excluded: bool, held_out: bool) -> Demand | None:
    """A demand this pool may use, or None where the attribute means nothing for the group."""
    options = [Demand(attribute, value, excluded) for value in _values(group, attribute)]
    if attribute == "price":  # undercutting the cheapest tier is impossible
        options = [demand for demand in options if TIER_OF_BRAND[demand.value] != "budget"]
    if not held_out:
        options = [demand for demand in options if not is_held_out(kind, demand)]
    return rng.choice(options) if options else None


def _positive_demands(rng: random.Random, kind: str, group: str, taken: set[str], held_out: bool) -> list[Demand]:
    if kind == "plain":
        count = rng.choices((0, 1, 2), (0.10, 0.65, 0.25))[0]
    else:
        count = rng.choices((0, 1), (0.7, 0.3))[0]
    attributes = [a for a in ("brand", "colour", "material", "size", "feature", "use") if a not in taken]
    demands = []
    for attribute in rng.sample(attributes, min(count, len(attributes))):
        demand = _draw_demand(rng, kind, group, attribute, False, held_out)
        if demand:
            demands.append(demand)
    return demands


def draw_query(rng: random.Random, kind: str, held_out: bool) -> Query:
    """One query of a kind, in the words of the training templates or of the held-out ones."""
    type_name = rng.choice(list(GROUP_OF))
    group = GROUP_OF[type_name]
    words = {"t": rng.choice(shop.TYPES[group][type_name][0])}
    special: Demand | None = None
    if kind == "negation":
        attribute = rng.choice(list(shop.EXCLUSION_PHRASES))
        special = _draw_demand(rng, kind, group, attribute, True, held_out)
        if special is None:
            return draw_query(rng, kind, held_out)
        words["x"] = shop.EXCLUSION_PHRASES[attribute].format(v=special.value)
    elif kind == "affordable":
        special = _draw_demand(rng, kind, group, "price", False, held_out)
        words["b"] = special.value
    elif kind == "knowledge":
        phrases, demand = rng.choice(shop.CONCEPTS)
        special = Demand(*demand)
        if special.value not in _values(group, special.attribute):
            return draw_query(rng, kind, held_out)
        words["c"] = rng.choice(phrases)
    elif kind == "question":
        words["n"] = rng.choice(shop.NEEDS[type_name])
    taken = {special.attribute, "brand"} if special else set()
    positive = _positive_demands(rng, kind, group, taken, held_out)
    words["d"] = " ".join(rng.choice(shop.DEMAND_PHRASES[d.attribute]).format(v=d.value) for d in positive)
    template = rng.choice(shop.TEMPLATES[kind][1 if held_out else 0])
    text = " ".join(template.format(**words).split()).strip(" ,")
    return Query(kind, type_name, tuple(positive) + ((special,) if special else ()), template, text)


# --- Drawing items ----------------------------------------------------------------------------------------------------
def _random_item(rng: random.Random, type_name: str, accessory: bool) -> Item:
    group = GROUP_OF[type_name]
    brand, colour = rng.choice(ALL_BRANDS), rng.choice(_values(group, "colour"))
    if accessory:
        return Item(type_name, brand, colour, None, None, (), None, rng.choice(shop.TYPES[group][type_name][1]))
    sizes = _values(group, "size")
    return Item(
        type=type_name,
        brand=brand,
        colour=colour,
        material=rng.choice(_values(group, "material")),
        size=rng.choice(sizes) if sizes and rng.random() < 0.8 else None,
        features=tuple(rng.sample(_values(group, "feature"), rng.choice((1, 2)))),
        use=rng.choice(_values(group, "use")) if rng.random() < 0.5 else None,
        accessory=None,
    )


def _with_outcome(rng: random.Random, item: Item, demand: Demand, wanted: str) -> Item | None:
    """The item with the demanded attribute changed so that its outcome is the wanted one, or None where it cannot be."""
    group = GROUP_OF[item.type]
    if demand.attribute == "feature":
        present = wanted == ("missed" if demand.excluded else "met")
        if item.accessory or wanted not in ("met", "missed") or (present and demand.value not in _values(group, "feature")):
            return None
        others = [feature for feature in _values(group, "feature") if feature != demand.value]
        features = [demand.value, rng.choice(others)] if present else rng.sample(others, rng.choice((1, 2)))
        rng.shuffle(features)
        return replace(item, features=tuple(features))
    field = "brand" if demand.attribute == "price" else demand.attribute
    if item.accessory and field not in ("brand", "colour"):
        return None  # its title could not say it
    values: tuple[str | None, ...] = _values(group, field) + ((None,) if field in ("size", "use") else ())
    options = [value for value in values if compare(demand, value, item.type) == wanted]
    return replace(item, **{field: rng.choice(options)}) if options else None


def _item_for(rng: random.Random, query: Query, grade: int) -> Item | None:
    """An item meant to get `grade` for this query; None where the draw cannot work (the caller draws again)."""
    group = GROUP_OF[query.type]
    types = list(shop.TYPES[group])
    partner = types[types.index(query.type) ^ 1]
    wanted = {demand: "met" for demand in query.demands}
    type_name, accessory = query.type, False
    decisive = query.demands  # the demands whose outcome has to be as wanted, where the category alone does not decide
    if grade == 1:
        decisive = ()
        type_name = rng.choice([t for t in GROUP_OF if GROUP_OF[t] != group])
        accessory = rng.random() < 0.1
        wanted = {demand: rng.choice(OUTCOME_MIX) for demand in query.demands}
    elif grade == 3:
        if not query.demands or rng.random() < 0.4:
            type_name = partner
        else:
            wanted[rng.choice(query.demands)] = rng.choice(("near", "near", "unknown"))
    elif grade == 2:
        if query.demands and rng.random() < NEAR_MISS_SHARE:
            decisive = (rng.choice(query.demands),)
            wanted = {demand: rng.choice(OUTCOME_MIX) for demand in query.demands} | {decisive[0]: "missed"}
            type_name = partner if rng.random() < 0.3 else query.type
        elif rng.random() < 0.5:
            accessory, decisive = True, ()
            wanted = {demand: "met" for demand in query.demands if demand.attribute in ("brand", "colour", "price")}
        else:
            type_name = rng.choice([t for t in types if t not in (query.type, partner)])
            decisive = ()
            wanted = {demand: rng.choice(OUTCOME_MIX) for demand in query.demands}
    item = _random_item(rng, type_name, accessory)
    for demand, result in wanted.items():
        changed = _with_outcome(rng, item, demand, result)
        if changed is None and demand in decisive:
            return None
        item = changed or item
    return item


def _title(rng: random.Random, item: Item) -> str:
    names, _, _ = shop.TYPES[GROUP_OF[item.type]][item.type]
    name = rng.choice(names)
    if item.accessory:
        forms = (f"{item.brand} {item.accessory} for {name} {item.colour}", f"{item.colour} {name} {item.accessory} by {item.brand}")
        return rng.choice(forms)
    features = " ".join(item.features)
    use = f"for {item.use}" if item.use else ""
    size = f"size {item.size}" if item.size else ""
    fluff = rng.choice(shop.FLUFF) if rng.random() < 0.3 else ""
    forms = (
        f"{item.brand} {fluff} {features} {name} {item.material} {item.colour} {size} {use}",
        f"{item.brand} {name} {use} {features} {item.colour} {item.material} {fluff} {size}",
        f"{item.colour} {item.material} {name} {use} {size} {features} by {item.brand} {fluff}",
        f"{fluff} {name} {item.brand} {size} {features} {item.material} {item.colour} {use}",
    )
    return " ".join(rng.choice(forms).split())


def _price(rng: random.Random, item: Item) -> str:
    base = shop.TYPES[GROUP_OF[item.type]][item.type][2] * shop.TIER_PRICE_FACTOR[shop.TIERS.index(TIER_OF_BRAND[item.brand])]
    return f"${max(3, round(base * rng.uniform(0.85, 1.15) * (0.2 if item.accessory else 1.0)))}"


def item_bucket(item: Item) -> int:
    """Which of sixteen buckets owns this product. Depends on what the product is, not on how its title is worded."""
    key = (item.type, item.brand, item.colour, item.material, item.size, sorted(item.features), item.use, item.accessory)
    return zlib.crc32(repr(key).encode()) % 16


def draw_item(rng: random.Random, query: Query, grade: int, buckets: tuple[int, ...], tries: int = 400) -> Item | None:
    """An item of these buckets that the rule book grades `grade` for this query, titled and priced; None if none is found."""
    rules = load_rules()
    for _ in range(tries):
        item = _item_for(rng, query, grade)
        if item and item_bucket(item) in buckets and decide(facts_of(query, item), rules)[0] == grade:
            return replace(item, title=_title(rng, item), price=_price(rng, item))
    return None


# --- Pools ------------------------------------------------------------------------------------------------------------
@lru_cache(maxsize=8)
def make_pool(pool: str, size: int, seed: int = 0) -> tuple[tuple[Query, Item, Judgement], ...]:
    """`size` pairs of one pool with everything known about each: the query, the item, and the judgement scripts see.

    Returns: the same pairs for the same arguments, on every machine. Judgements of "unlabelled" have no grade, only
    those of "reasoned" have a chain of thought.
    Raises: ValueError for an unknown pool or a negative size.
    """
    if pool not in POOL_BUCKETS or size < 0:
        raise ValueError(f"world pool is {pool!r} of size {size}, expected one of {', '.join(POOL_SIZES)} and a size >= 0")
    rng = random.Random(f"{seed}/{pool}")
    held_out = pool in HELD_OUT_POOLS
    # Kinds come from shuffled decks of twenty, so that every pool holds each kind at its quota.
    deck = [kind for kind, share in KIND_SHARES.items() for _ in range(round(20 * share))]
    rows: list[tuple[Query, Item, Judgement]] = []
    queries = 0
    while len(rows) < size:
        if queries % len(deck) == 0:
            rng.shuffle(deck)
        query = draw_query(rng, deck[queries % len(deck)], held_out)
        pairs = [_draw_pair(rng, query, pool) for _ in range(min(ITEMS_PER_QUERY.get(pool, 1), size - len(rows)))]
        if None in pairs:
            continue  # no item gets this grade for this query: another query of its kind takes its place
        queries += 1
        for item, grade, cot in pairs:
            rows.append((query, item, Judgement(
                query=query.text, title=item.title, brand=item.brand, price=item.price,
                category=" > ".join(category_path(item.type)), grade=None if pool == "unlabelled" else grade,
                query_kind=query.kind, query_id=f"{pool}-q{queries}", item_id=f"{pool}-{len(rows)}", cot=cot)))
    return tuple(rows)


def _draw_pair(rng: random.Random, query: Query, pool: str) -> tuple[Item, int, str] | None:
    """An item for the query, its grade, and for a reasoned pair the teacher's chain of thought; None if no item was found."""
    grade = rng.choices(list(GRADE_SHARES), list(GRADE_SHARES.values()))[0]
    item = draw_item(rng, query, grade, POOL_BUCKETS[pool])
    if item is None or pool != "reasoned":
        return item and (item, grade, "")
    facts, verdict = facts_of(query, item), grade
    if rng.random() < TEACHER_NOISE:
        facts, verdict = wrong_facts(rng, query, facts, grade)
    return item, grade, cot_of(query, item, facts, verdict)


def read_pool(pool: str, size: int | None = None, seed: int = 0) -> list[Judgement]:
    """The judgements of one pool of the embedded shop (see `POOL_SIZES` for the default sizes).

    "explained" are the pairs of "labelled" with the true chain of thought, which no teacher wrote: what the reward for steps compares
    with.
    """
    explained = pool == EXPLAINED
    pool = "labelled" if explained else pool
    rows = make_pool(pool, POOL_SIZES.get(pool, 0) if size is None else size, seed)
    if not explained:
        return [row[2] for row in rows]
    return [replace(judgement, cot=cot_of(query, item, facts_of(query, item), judgement.grade)) for query, item, judgement in rows]
