"""What is true of a (query, item) pair: categories, outcomes of demands, and how values compare."""

from __future__ import annotations

from dataclasses import replace

import pytest

from taosr1.synthetic.facts import Demand, Item, category_fact, outcome, relation


@pytest.mark.parametrize(
    ("query_type", "item_type", "accessory", "expected"),
    [
        ("tent", "tent", None, "same"),
        ("tent", "hammock", None, "substitute"),
        ("tent", "backpack", None, "sibling"),
        ("tent", "tent", "pegs", "accessory"),
        ("tent", "quilt", None, "different"),
        ("tent", "quilt", "clips", "different"),
    ],
)
def test_the_category_relation_follows_the_catalogue(query_type, item_type, accessory, expected):
    item = Item(item_type, "Alder", "red", "cotton", None, (), None, accessory)
    assert category_fact(query_type, item) == expected


@pytest.mark.parametrize(
    ("demand", "changes", "expected"),
    [
        (Demand("colour", "red"), {"colour": "red"}, "met"),
        (Demand("colour", "red"), {"colour": "crimson"}, "near"),
        (Demand("colour", "red"), {"colour": "navy"}, "missed"),
        (Demand("colour", "red", True), {"colour": "red"}, "missed"),
        (Demand("colour", "red", True), {"colour": "crimson"}, "near"),
        (Demand("colour", "red", True), {"colour": "navy"}, "met"),
        (Demand("size", "small"), {"size": "medium"}, "near"),
        (Demand("size", "small"), {"size": "large"}, "missed"),
        (Demand("size", "small"), {"size": None}, "unknown"),
        (Demand("use", "travel"), {"use": "gym"}, "near"),
        (Demand("use", "travel"), {"use": None}, "unknown"),
        (Demand("feature", "waterproof"), {"features": ("waterproof", "lightweight")}, "met"),
        (Demand("feature", "waterproof"), {"features": ("lightweight",)}, "missed"),
        (Demand("feature", "waterproof", True), {"features": ("waterproof",)}, "missed"),
        (Demand("feature", "waterproof"), {"features": (), "accessory": "laces"}, "unknown"),
        (Demand("price", "Belmont"), {"brand": "Alder"}, "met"),
        (Demand("price", "Belmont"), {"brand": "Galden"}, "near"),
        (Demand("price", "Belmont"), {"brand": "Belmont"}, "missed"),
        (Demand("price", "Belmont"), {"brand": "Isolde"}, "missed"),
    ],
)
def test_outcomes_of_demands(demand, changes, expected):
    item = Item("hiking boots", "Alder", "red", "nylon", "small", ("insulated",), "work", None)
    assert outcome(replace(item, **changes), demand) == expected


@pytest.mark.parametrize(
    ("demand", "changes", "expected"),
    [
        (Demand("colour", "red"), {"colour": "red"}, "same"),
        (Demand("colour", "red", True), {"colour": "red"}, "same"),
        (Demand("colour", "red", True), {"colour": "crimson"}, "near"),
        (Demand("colour", "red", True), {"colour": "navy"}, "other"),
        (Demand("size", "small"), {"size": None}, ""),
        (Demand("feature", "waterproof"), {"features": ("lightweight",)}, ""),
        (Demand("feature", "waterproof", True), {"features": ("waterproof",)}, "same"),
        (Demand("price", "Belmont"), {"brand": "Alder"}, "lower"),
        (Demand("price", "Belmont"), {"brand": "Galden"}, "same"),
        (Demand("price", "Belmont"), {"brand": "Belmont"}, "itself"),
        (Demand("price", "Belmont"), {"brand": "Isolde"}, "higher"),
    ],
)
def test_how_the_items_value_stands_to_the_demanded_one(demand, changes, expected):
    item = Item("hiking boots", "Alder", "red", "nylon", "small", ("insulated",), "work", None)
    assert relation(replace(item, **changes), demand) == expected
