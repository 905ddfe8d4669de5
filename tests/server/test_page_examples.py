"""What the page's examples show is right: grade, tier and reasons are those of the shop's rule book."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from taosr1.judge import Judge
from taosr1.synthetic.catalogue import ALL_BRANDS, COLOUR_FAMILIES, FEATURES, MATERIAL_FAMILIES, SIZES, TYPES
from taosr1.synthetic.facts import Demand, Item, Query, cot_of, facts_of
from taosr1.task.grades import TIER_OF_GRADE
from taosr1.task.rules import decide, load_rules

EXAMPLES = Path(__file__).resolve().parents[2] / "taosr1/server/page/examples.json"
COLOURS, MATERIALS = sum(COLOUR_FAMILIES, ()), sum(MATERIAL_FAMILIES, ())
NAMES = {name: kind for types in TYPES.values() for kind, (names, _, _) in types.items() for name in names}
ACCESSORIES = {kind: words for types in TYPES.values() for kind, (_, words, _) in types.items()}
# What each query asks for, as the shop's catalogue has it: the kind of product, and what it demands.
WANTED = {
    "hiking boots not leather": ("hiking boots", Demand("material", "leather", excluded=True)),
    "affordable frying pan like Norvell": ("frying pan", Demand("price", "Norvell")),
    "blue foldable headphones": ("headphones", Demand("colour", "blue"), Demand("feature", "foldable")),
    "what do i need to keep coffee hot on the train": ("travel mug",),
    "backpack for vegans": ("backpack", Demand("material", "leather", excluded=True)),
    "desk lamp in black": ("desk lamp", Demand("colour", "black")),
}
SHOWN = {"met", "missed", "accessory", "substitute", "sibling", "different"}


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge.load("bundled")


def examples() -> list[tuple[str, dict]]:
    """(query, product) of all examples, the products as the page reads them."""
    found = json.loads(EXAMPLES.read_text(encoding="utf-8"))
    assert {example["query"] for example in found} == WANTED.keys()
    return [(one["query"], product) for one in found for product in csv.DictReader(one["products"].splitlines())]


def item_of(title: str) -> Item | None:
    """The product that a title of the shop describes; None for one from elsewhere."""
    words = title.split()
    kind = next((NAMES[name] for name in sorted(NAMES, key=len, reverse=True) if name in title), None)
    brand = next((word for word in words if word in ALL_BRANDS), None)
    if kind is None or brand is None:
        return None

    def one(values) -> str | None:
        return next((word for word in words if word in values), None)

    features = tuple(word for word in words if any(word in known for known in FEATURES.values()))
    use = title.partition(" for ")[2].split(" ")[0]
    accessory = one(ACCESSORIES[kind])
    used = None if accessory or not use else use
    return Item(kind, brand, one(COLOURS), one(MATERIALS), one(SIZES), features, used, accessory)


@pytest.mark.parametrize(("query", "product"), [pair for pair in examples() if item_of(pair[1]["title"])])
def test_grade_tier_and_all_five_reasons_of_an_example_are_those_of_the_rule_book(query, product, judge):
    kind, *demands = WANTED[query]
    asked, item = Query("", kind, tuple(demands), "", query), item_of(product["title"])
    facts = facts_of(asked, item)
    grade, _ = decide(facts, load_rules())
    found = judge.explain(query, product)
    assert (found.grade, found.tier) == (grade, TIER_OF_GRADE[grade])
    assert found.reply == f"{grade}\n{cot_of(asked, item, facts, grade)}"
    assert not found.outside and not found.notes


def test_the_examples_show_every_grade_and_what_decides_it(judge):
    facts = [
        facts_of(Query("", WANTED[query][0], WANTED[query][1:], "", query), item)
        for query, product in examples()
        if (item := item_of(product["title"]))
    ]
    assert SHOWN <= {value for one in facts for value in one.values()}
    assert {decide(one, load_rules())[0] for one in facts} == {1, 2, 3, 4}


def test_an_examples_tier_depends_on_beta(judge):
    """The note of the first example says: two products are close calls."""
    query = "hiking boots not leather"
    probs = [judge.score(query, product).probs for asked, product in examples() if asked == query]
    close = [row for row in probs if 0.3 < row[3] + row[2] < 0.5]
    assert len(close) == 2


@pytest.mark.parametrize("pair", [pair for pair in examples() if not item_of(pair[1]["title"])])
def test_products_from_elsewhere_are_said_to_be_outside(pair, judge):
    assert judge.score(*pair).outside
