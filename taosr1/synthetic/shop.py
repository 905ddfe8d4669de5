"""The synthetic shop: deterministic query-product pairs, graded by the rule book, so that every stage runs offline.

It has five pools: few pairs with a grade and a (noisy) teacher's chain of thought, more with a grade only, many with
neither; and dev and test pairs whose products, query templates and a share of whose (kind, value) combinations occur in
no training pool. Scripts call `read_pool("reasoned")`.

Choice: the paper's data are private. The grade shares (50/5/36/9 % for 4/3/2/1) and the hard query kinds are the
paper's; everything else here is ours.
"""

from __future__ import annotations

import random
import zlib
from dataclasses import replace
from functools import lru_cache

from taosr1.synthetic import catalogue
from taosr1.synthetic.catalogue import ALL_BRANDS, GROUP_OF, TIER_OF_BRAND, TYPES, VALUES
from taosr1.synthetic.facts import Demand, Item, Query, category_path, compare, cot_of, facts_of, wrong_facts
from taosr1.task.judgement import Judgement
from taosr1.task.rules import decide, load_rules

POOL_SIZES = {"reasoned": 3000, "labelled": 9000, "unlabelled": 40000, "dev": 3000, "test": 4000}
EXPLAINED = "explained"  # the pairs of "labelled" with a correct chain of thought
# Products are split by a hash of their attributes into sixteen buckets, each of which belongs to one pool.
POOL_BUCKETS = {
    "test": (0, 1), "dev": (2, 3), "reasoned": (4, 5), "labelled": (6, 7, 8), "unlabelled": tuple(range(9, 16)),
}  # fmt: skip
HELD_OUT_POOLS = ("dev", "test")
KIND_SHARES = {"plain": 0.40, "negation": 0.15, "affordable": 0.15, "question": 0.15, "knowledge": 0.15}
GRADE_SHARES = {4: 0.50, 3: 0.05, 2: 0.36, 1: 0.09}
ITEMS_PER_QUERY = {"dev": 2, "test": 2}  # one in the other pools: more distinct queries teach more
HELD_OUT_COMBINATIONS = 0.20  # share of (kind, attribute, value) combinations that training queries never use
TEACHER_NOISE = 0.20  # share of reasoned pairs whose chain of thought has one wrong step
NEAR_MISS_SHARE = 0.70  # share of Mismatch items of the wanted type, or its substitute, that miss a demand
OUTCOME_MIX = ("met", "met", "near", "missed")  # outcomes of demands that do not decide a pair's grade


# --- Drawing queries --------------------------------------------------------------------------------------------------
def is_held_out(kind: str, demand: Demand) -> bool:
    """Whether training queries of this kind never name this demand (a knowledge phrase may: it has to be taught)."""
    return zlib.crc32(f"{kind}|{demand.fact}|{demand.value}".encode()) % 1000 < 1000 * HELD_OUT_COMBINATIONS


def _draw_demand(
    rng: random.Random, kind: str, group: str, attribute: str, held_out: bool, excluded: bool = False
) -> Demand | None:
    """A demand that this pool may use, or None if the group has no such attribute."""
    demands = [Demand(attribute, value, excluded) for value in VALUES[attribute][group]]
    options = [demand for demand in demands if held_out or not is_held_out(kind, demand)]
    return rng.choice(options) if options else None


def _positive_demands(rng: random.Random, kind: str, group: str, taken: set[str], held_out: bool) -> list[Demand]:
    (count,) = rng.choices((0, 1, 2), (0.10, 0.65, 0.25) if kind == "plain" else (0.7, 0.3, 0))
    attributes = [name for name in catalogue.DEMAND_PHRASES if name not in taken]
    demands = [_draw_demand(rng, kind, group, name, held_out) for name in rng.sample(attributes, count)]
    return [demand for demand in demands if demand]


def draw_query(rng: random.Random, kind: str, held_out: bool) -> Query:
    """One query of a kind, worded by a training template or by a held-out one."""
    type_name = rng.choice(list(GROUP_OF))
    group = GROUP_OF[type_name]
    words = {"t": rng.choice(TYPES[group][type_name][0])}
    special: Demand | None = None
    if kind == "negation":
        special = _draw_demand(rng, kind, group, rng.choice(catalogue.EXCLUDABLE), held_out, excluded=True)
        if special is None:
            return draw_query(rng, kind, held_out)
        words["x"] = special.value
    elif kind == "affordable":
        special = _draw_demand(rng, kind, group, "price", held_out)
        words["b"] = special.value
    elif kind == "knowledge":
        phrases, demand = rng.choice(catalogue.CONCEPTS)
        special = Demand(*demand)
        if special.value not in VALUES[special.attribute][group]:
            return draw_query(rng, kind, held_out)
        words["c"] = rng.choice(phrases)
    elif kind == "question":
        words["n"] = rng.choice(catalogue.NEEDS[type_name])
    positive = _positive_demands(rng, kind, group, {special.attribute, "brand"} if special else set(), held_out)
    words["d"] = " ".join(rng.choice(catalogue.DEMAND_PHRASES[d.attribute]).format(v=d.value) for d in positive)
    template = rng.choice(catalogue.TEMPLATES[kind][1 if held_out else 0])
    demands = tuple(positive) + ((special,) if special else ())
    return Query(kind, type_name, demands, template, spelled(template, words))


def spelled(template: str, words: dict[str, str]) -> str:
    """The text of a query: a template filled in, without the spaces and commas that an empty part leaves."""
    return " ".join(template.format(**words).split()).strip(" ,")


# --- Drawing items ----------------------------------------------------------------------------------------------------
def random_item(rng: random.Random, type_name: str, accessory: bool) -> Item:
    """A product of this type, or an accessory of it, without a title."""
    group = GROUP_OF[type_name]
    brand, colour = rng.choice(ALL_BRANDS), rng.choice(VALUES["colour"][group])
    if accessory:
        return Item(type_name, brand, colour, None, None, (), None, rng.choice(TYPES[group][type_name][1]))
    material, sizes = rng.choice(VALUES["material"][group]), VALUES["size"][group]
    size = rng.choice(sizes) if sizes and rng.random() < 0.8 else None
    features = tuple(rng.sample(VALUES["feature"][group], rng.choice((1, 2))))
    use = rng.choice(VALUES["use"][group]) if rng.random() < 0.5 else None
    return Item(type_name, brand, colour, material, size, features, use, None)


def _with_outcome(rng: random.Random, item: Item, demand: Demand, wanted: str) -> Item | None:
    """The item with the demanded attribute changed so that its outcome is `wanted`; None if no value gives it."""
    group = GROUP_OF[item.type]
    if demand.attribute == "feature":
        present, known = wanted == ("missed" if demand.excluded else "met"), VALUES["feature"][group]
        if item.accessory or wanted not in ("met", "missed") or (present and demand.value not in known):
            return None
        others = [feature for feature in known if feature != demand.value]
        features = [demand.value, rng.choice(others)] if present else rng.sample(others, rng.choice((1, 2)))
        rng.shuffle(features)
        return replace(item, features=tuple(features))
    field = "brand" if demand.attribute == "price" else demand.attribute
    if item.accessory and field not in ("brand", "colour"):
        return None  # the title of an accessory names no other attribute
    values: tuple[str | None, ...] = VALUES[field][group] + ((None,) if field in ("size", "use") else ())
    options = [value for value in values if compare(demand, value) == wanted]
    return replace(item, **{field: rng.choice(options)}) if options else None


def _item_for(rng: random.Random, query: Query, grade: int) -> Item | None:
    """An item intended to get `grade` for this query; None if the draw failed (the caller draws again)."""

    def any_outcomes() -> dict[Demand, str]:
        return {demand: rng.choice(OUTCOME_MIX) for demand in query.demands}

    group = GROUP_OF[query.type]
    types = list(TYPES[group])
    partner = types[types.index(query.type) ^ 1]
    type_name, accessory = query.type, False
    wanted = dict.fromkeys(query.demands, "met")
    decisive = query.demands if grade > 2 else ()  # demands whose outcome must be as wanted
    if grade == 1:
        type_name = rng.choice([t for t in GROUP_OF if GROUP_OF[t] != group])
        accessory = rng.random() < 0.1
        wanted = any_outcomes()
    elif grade == 2 and query.demands and rng.random() < NEAR_MISS_SHARE:
        decisive = (rng.choice(query.demands),)
        wanted = any_outcomes() | {decisive[0]: "missed"}
        type_name = partner if rng.random() < 0.3 else query.type
    elif grade == 2 and rng.random() < 0.5:
        accessory = True  # for the wanted type; only its brand and colour can still be as wanted
    elif grade == 2:
        type_name = rng.choice([t for t in types if t not in (query.type, partner)])
        wanted = any_outcomes()
    elif grade == 3 and (not query.demands or rng.random() < 0.4):
        type_name = partner
    elif grade == 3:
        wanted[rng.choice(query.demands)] = rng.choice(("near", "near", "unknown"))
    item = random_item(rng, type_name, accessory)
    for demand, result in wanted.items():
        changed = _with_outcome(rng, item, demand, result)
        if changed is None and demand in decisive:
            return None
        item = changed or item
    return item


def title_of(rng: random.Random, item: Item, name: str = "") -> str:
    """A title that says everything about the product; name: the word for its type, one of its synonyms if empty."""
    names, brand, colour = TYPES[GROUP_OF[item.type]][item.type][0], item.brand, item.colour
    name = name or rng.choice(names)
    if item.accessory:
        forms = (f"{brand} {item.accessory} for {name} {colour}", f"{colour} {name} {item.accessory} by {brand}")
        return rng.choice(forms)
    features = " ".join(item.features)
    use = f"for {item.use}" if item.use else ""
    size = f"size {item.size}" if item.size else ""
    fluff = rng.choice(catalogue.FLUFF) if rng.random() < 0.3 else ""
    forms = (
        f"{brand} {fluff} {features} {name} {item.material} {colour} {size} {use}",
        f"{brand} {name} {use} {features} {colour} {item.material} {fluff} {size}",
        f"{colour} {item.material} {name} {use} {size} {features} by {brand} {fluff}",
        f"{fluff} {name} {brand} {size} {features} {item.material} {colour} {use}",
    )
    return " ".join(rng.choice(forms).split())


def price_of(rng: random.Random, item: Item) -> str:
    """A price near that of the brand's tier; only the brand decides what is cheaper."""
    _, _, base = TYPES[GROUP_OF[item.type]][item.type]
    base *= catalogue.TIER_PRICE_FACTOR[catalogue.TIERS.index(TIER_OF_BRAND[item.brand])]
    return f"${max(3, round(base * rng.uniform(0.85, 1.15) * (0.2 if item.accessory else 1.0)))}"


def item_bucket(item: Item) -> int:
    """The bucket (0..15) of this product; depends on its attributes, not on the wording of its title."""
    features = sorted(item.features)
    key = (item.type, item.brand, item.colour, item.material, item.size, features, item.use, item.accessory)
    return zlib.crc32(repr(key).encode()) % 16


def draw_item(rng: random.Random, query: Query, grade: int, buckets: tuple[int, ...], tries: int = 400) -> Item | None:
    """An item of these buckets, with title and price, that gets this grade for the query; None after `tries` draws."""
    rules = load_rules()
    for _ in range(tries):
        item = _item_for(rng, query, grade)
        if item and item_bucket(item) in buckets and decide(facts_of(query, item), rules)[0] == grade:
            return replace(item, title=title_of(rng, item), price=price_of(rng, item))
    return None


# --- Pools ------------------------------------------------------------------------------------------------------------
@lru_cache(maxsize=8)
def make_pool(pool: str, size: int, seed: int = 0) -> tuple[tuple[Query, Item, Judgement], ...]:
    """`size` pairs of one pool (query, item, judgement): the same for the same arguments, on every machine.

    Judgements of "unlabelled" have no grade, only those of "reasoned" have a chain of thought.
    Raises: ValueError for an unknown pool or a negative size.
    """
    if pool not in POOL_BUCKETS or size < 0:
        names = ", ".join(POOL_SIZES)
        raise ValueError(f"synthetic pool is {pool!r} of size {size}, expected one of {names} and a size >= 0")
    rng = random.Random(f"{seed}/{pool}")
    held_out = pool in HELD_OUT_POOLS
    # Kinds come from shuffled decks of twenty, so that every pool has the same share of each kind.
    deck = [kind for kind, share in KIND_SHARES.items() for _ in range(round(20 * share))]
    rows: list[tuple[Query, Item, Judgement]] = []
    queries = 0
    while len(rows) < size:
        if queries % len(deck) == 0:
            rng.shuffle(deck)
        query = draw_query(rng, deck[queries % len(deck)], held_out)
        pairs = [_draw_pair(rng, query, pool) for _ in range(min(ITEMS_PER_QUERY.get(pool, 1), size - len(rows)))]
        if None in pairs:
            continue  # no item found with this grade: draw another query of the same kind
        queries += 1
        for item, grade, cot in pairs:
            row = Judgement(
                query.text, item.title, item.brand, price=item.price, category=" > ".join(category_path(item.type)),
                grade=None if pool == "unlabelled" else grade, query_kind=query.kind,
                query_id=f"{pool}-q{queries}", item_id=f"{pool}-{len(rows)}", cot=cot,
            )  # fmt: skip
            rows.append((query, item, row))
    return tuple(rows)


def _draw_pair(rng: random.Random, query: Query, pool: str) -> tuple[Item, int, str] | None:
    """An item for the query, its grade, and the teacher's chain of thought (reasoned pairs); None if none is found."""
    grade = rng.choices(list(GRADE_SHARES), list(GRADE_SHARES.values()))[0]
    item = draw_item(rng, query, grade, POOL_BUCKETS[pool])
    if item is None:
        return None
    if pool != "reasoned":
        return item, grade, ""
    facts, decided = facts_of(query, item), grade
    if rng.random() < TEACHER_NOISE:
        facts, decided = wrong_facts(rng, query, facts, grade)
    return item, grade, cot_of(query, item, facts, decided)


def read_pool(pool: str, size: int | None = None, seed: int = 0) -> list[Judgement]:
    """The judgements of one pool, default sizes as in `POOL_SIZES`.

    "explained" are the pairs of "labelled", each with its correct chain of thought: what the steps' reward compares to.
    """
    drawn = "labelled" if pool == EXPLAINED else pool
    pairs = make_pool(drawn, POOL_SIZES.get(drawn, 0) if size is None else size, seed)
    if pool != EXPLAINED:
        return [row for _, _, row in pairs]
    return [replace(row, cot=cot_of(query, item, facts_of(query, item), row.grade)) for query, item, row in pairs]
