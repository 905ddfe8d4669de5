"""The synthetic shop: deterministic pools, graded by the rule book; training pools have nothing of dev and test."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from taosr1.data.judgements import check_cot
from taosr1.synthetic import catalogue, shop
from taosr1.synthetic.facts import Demand, facts_of, outcome
from taosr1.synthetic.shop import is_held_out, item_bucket, make_pool, read_pool
from taosr1.task.prompt import label_of_cot, parse_reply
from taosr1.task.rules import decide, facts_from_cot, implied_grade, load_rules

RULES = load_rules()
TRAINING = ("reasoned", "labelled", "unlabelled")
PINNED = {
    "reasoned": "4390e55a", "labelled": "74e62772", "unlabelled": "eee65419", "dev": "847d7f8d", "test": "328b411c",
    "explained": "88407354",
}  # fmt: skip
SIZE = 1200  # a whole number of decks of twenty queries with two items each


@pytest.fixture(scope="module")
def pools():
    return {pool: make_pool(pool, SIZE) for pool in shop.POOL_SIZES}


def identity(item):
    values = (item.type, item.brand, item.colour, item.material, item.size, item.use, item.accessory)
    return values, frozenset(item.features)


def digest(rows) -> str:
    return hashlib.sha256(repr(rows).encode()).hexdigest()


def test_a_pool_is_the_same_in_every_process():
    code = """import hashlib; from taosr1.synthetic.shop import make_pool
print(hashlib.sha256(repr(make_pool('reasoned', 60, 3)).encode()).hexdigest())"""
    root = Path(shop.__file__).parents[2]
    environment = {**os.environ, "PYTHONHASHSEED": "5", "PYTHONPATH": str(root)}
    other = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert other.stdout.strip() == digest(make_pool.__wrapped__("reasoned", 60, 3))


def test_the_rows_of_every_pool_are_those_of_version_0_1():
    """Results of one version can be compared with those of another only while the rows stay the same."""
    found = {pool: digest(read_pool(pool, 40, seed=1))[:8] for pool in (*shop.POOL_SIZES, shop.EXPLAINED)}
    assert found == PINNED


def test_a_smaller_pool_is_the_beginning_of_a_larger_one_and_another_seed_is_another_pool():
    assert make_pool("dev", 33) == make_pool("dev", 80)[:33]
    assert make_pool("dev", 80, 1) != make_pool("dev", 80, 0)
    assert read_pool("dev", 5) == [row[2] for row in make_pool("dev", 5)]


def test_every_pool_holds_each_query_kind_at_its_quota(pools):
    for pool, rows in pools.items():
        assert len(rows) == SIZE, pool
        expected = {kind: round(share * SIZE) for kind, share in shop.KIND_SHARES.items()}
        assert Counter(query.kind for query, _, _ in rows) == expected, pool
        assert all(judgement.query_kind == query.kind for query, _, judgement in rows)


def test_grade_shares_are_those_of_the_paper(pools):
    counts = Counter(decide(facts_of(query, item), RULES)[0] for rows in pools.values() for query, item, _ in rows)
    shares = {grade: count / (SIZE * len(pools)) for grade, count in counts.items()}
    assert shares == pytest.approx({4: 0.50, 3: 0.05, 2: 0.36, 1: 0.09}, abs=0.02)


def test_every_grade_is_what_the_rule_book_decides(pools):
    for pool, rows in pools.items():
        if pool != "unlabelled":
            for query, item, row in rows:
                assert row.grade == decide(facts_of(query, item), RULES)[0]


def test_only_reasoned_pairs_have_a_chain_of_thought_and_unlabelled_pairs_have_no_grade(pools):
    for pool, rows in pools.items():
        judgements = [row[2] for row in rows]
        assert {row.grade is None for row in judgements} == {pool == "unlabelled"}
        assert {bool(row.cot) for row in judgements} == {pool == "reasoned"}
    for query, item, row in pools["unlabelled"]:  # the grade is not said anywhere else either
        assert not row.extra and row.query == query.text and row.title == item.title
        assert row.category.startswith(f"{shop.GROUP_OF[item.type]} >") and row.category.endswith(f"> {item.type}")


def test_a_fifth_of_the_teachers_chains_has_one_wrong_step_from_which_its_decision_follows(pools):
    wrong = 0
    for query, item, row in pools["reasoned"]:
        check_cot(row.cot)
        reply = parse_reply(row.cot, "pre-cot")
        assert reply.well_formed and implied_grade(reply, RULES) == reply.decision
        said, true = facts_from_cot(reply), facts_of(query, item)
        differing = [fact for fact in true if said[fact] != true[fact]]
        assert said.keys() == true.keys() and len(differing) == (label_of_cot(row.cot) != row.grade)
        wrong += len(differing)
    assert wrong / SIZE == pytest.approx(shop.TEACHER_NOISE, abs=0.04)  # 3.5 standard deviations


def test_titles_say_every_value_that_chains_of_thought_read_from_them(pools):
    for rows in pools.values():
        for _, item, row in rows:
            values = (item.brand, item.colour, item.material, item.size, *item.features, item.use, item.accessory)
            assert [value for value in values if value and value not in row.title] == []
            assert any(name in row.title for name in catalogue.TYPES[shop.GROUP_OF[item.type]][item.type][0])


# --- No leak ----------------------------------------------------------------------------------------------------------
def test_dev_and_test_products_are_in_no_training_pool_and_not_in_each_other(pools):
    products = {pool: {identity(item) for _, item, _ in rows} for pool, rows in pools.items()}
    titles = {pool: {row.title for _, _, row in rows} for pool, rows in pools.items()}
    for held_out in shop.HELD_OUT_POOLS:
        for other in set(pools) - {held_out}:
            assert products[held_out].isdisjoint(products[other]), (held_out, other)
            assert titles[held_out].isdisjoint(titles[other]), (held_out, other)


def test_pools_own_disjoint_buckets_of_products(pools):
    owned = [bucket for buckets in shop.POOL_BUCKETS.values() for bucket in buckets]
    assert sorted(owned) == list(range(16))
    for pool, rows in pools.items():
        assert {item_bucket(item) for _, item, _ in rows} <= set(shop.POOL_BUCKETS[pool])
        item = rows[0][1]
        reworded = replace(item, title="another wording", price="$1", features=item.features[::-1])
        assert item_bucket(reworded) == item_bucket(item)


def test_no_query_of_dev_or_test_is_asked_in_training(pools):
    asked = {query.text for pool in TRAINING for query, _, _ in pools[pool]}
    templates = {query.template for pool in TRAINING for query, _, _ in pools[pool]}
    for pool in shop.HELD_OUT_POOLS:
        assert asked.isdisjoint(query.text for query, _, _ in pools[pool])
        assert templates.isdisjoint(query.template for query, _, _ in pools[pool])


def test_no_held_out_template_can_spell_a_query_of_a_training_template():
    """Every template with and without a demand, as `draw_query` tidies it: the pools above are only samples of this."""

    def spelled(templates):
        words = {"t": "TYPE", "x": "EXCLUDED", "b": "BRAND", "n": "NEED", "c": "CONCEPT"}
        return {" ".join(t.format(**words, d=d).split()).strip(" ,") for t in templates for d in ("", "DEMAND")}

    training = set().union(*(spelled(catalogue.TEMPLATES[kind][0]) for kind in catalogue.TEMPLATES))
    for kind, (_, held_out) in catalogue.TEMPLATES.items():
        assert training.isdisjoint(spelled(held_out)), kind


def test_held_out_combinations_are_asked_in_dev_and_test_only(pools):
    """What a knowledge phrase stands for is exempt: training spells it otherwise, and only training can teach it."""
    concepts = {Demand(*meaning) for _, meaning in catalogue.CONCEPTS}

    def combinations(pool):
        asked = {(query.kind, demand) for query, _, _ in pools[pool] for demand in query.demands}
        return {(kind, demand) for kind, demand in asked if not (kind == "knowledge" and demand in concepts)}

    for pool in TRAINING:
        assert not [pair for pair in combinations(pool) if is_held_out(*pair)]
    for pool in shop.HELD_OUT_POOLS:
        asked = combinations(pool)
        share = sum(is_held_out(*pair) for pair in asked) / len(asked)
        assert share == pytest.approx(shop.HELD_OUT_COMBINATIONS, abs=0.1)


# --- The catalogue ----------------------------------------------------------------------------------------------------
def test_near_values_of_the_catalogue_are_near_in_the_rule_book():
    definitions = [rule.text.lower() for rule in RULES if not rule.decides]
    for family in catalogue.MATERIAL_FAMILIES:
        assert any(all(value in text for value in family) for text in definitions), family
    values = [value for family in catalogue.COLOUR_FAMILIES + catalogue.MATERIAL_FAMILIES for value in family]
    assert len(values) == len(set(values)), "a value of two families would be near to both"


def test_every_value_that_can_be_demanded_is_one_that_some_product_has_and_another_lacks(pools):
    items = {item.type: item for _, item, _ in pools["unlabelled"] if not item.accessory}
    for group, types in catalogue.TYPES.items():
        assert len(types) == 2 * len(catalogue.SHELVES[group]), (
            "a shelf holds two types that are substitutes for each other"
        )
        item = items[next(iter(types))]
        for attribute in ("material", "size", "use"):
            values = catalogue.VALUES[attribute].get(group, ())
            assert len(values) == len(set(values)) and len(values) != 1
            for value in values:
                items_of = [replace(item, **{attribute: other}) for other in values]
                outcomes = {outcome(other, Demand(attribute, value)) for other in items_of}
                assert "met" in outcomes and len(outcomes) > 1
        assert len(catalogue.FEATURES[group]) == len(set(catalogue.FEATURES[group])) > 2
    colours = tuple(value for family in catalogue.COLOUR_FAMILIES for value in family)
    for _, (attribute, value, _) in catalogue.CONCEPTS:
        known = {"any": colours} if attribute == "colour" else catalogue.VALUES[attribute]
        assert any(value in values for values in known.values()), value


def test_every_type_can_be_asked_for_by_need_and_its_words_are_its_own():
    assert catalogue.NEEDS.keys() == shop.GROUP_OF.keys()
    synonyms = [name for types in catalogue.TYPES.values() for names, _, _ in types.values() for name in names]
    needs = [need for phrases in catalogue.NEEDS.values() for need in phrases]
    concepts = [phrase for phrases, _ in catalogue.CONCEPTS for phrase in phrases]
    for words in (synonyms, needs, concepts, list(shop.ALL_BRANDS)):
        assert len(words) == len(set(words))
    assert all(kind == names[0] for types in catalogue.TYPES.values() for kind, (names, _, _) in types.items())


def test_held_out_templates_use_no_word_that_training_queries_lack():
    def words(texts):
        return {word for text in texts for word in text.split()}

    known = words(template for training, _ in catalogue.TEMPLATES.values() for template in training)
    known |= words(phrase for phrases, _ in catalogue.CONCEPTS for phrase in phrases)
    assert words(template for _, held_out in catalogue.TEMPLATES.values() for template in held_out) <= known


def test_an_unknown_pool_or_a_negative_size_is_refused():
    with pytest.raises(ValueError, match="synthetic pool is 'train' of size 0, expected one of reasoned, labelled"):
        read_pool("train")
    with pytest.raises(ValueError, match="of size -1"):
        make_pool("dev", -1)
