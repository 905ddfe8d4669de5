"""The test sets of single abilities: who lacks the ability is at chance, who reads the facts is perfect, no leak."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from taosr1.data.judgements import check_cot
from taosr1.data.sources import load_rows
from taosr1.evaluation.minimal_pairs import measure_pairs
from taosr1.synthetic import catalogue
from taosr1.synthetic.abilities.blocks import ABILITIES, _overlap_says_nothing, blocks, read_abilities
from taosr1.synthetic.facts import Demand, facts_of
from taosr1.synthetic.shop import GROUP_OF, POOL_BUCKETS, item_bucket, read_pool
from taosr1.task.prompt import parse_reply
from taosr1.task.rules import decide, implied_grade, load_rules

RULES = load_rules()
BLOCKS = 12  # of each ability: a multiple of how many sorts any of them has
EACH = pytest.mark.parametrize("ability", ABILITIES)


@pytest.fixture(scope="module")
def made():
    return {ability: list(islice(blocks(ability), BLOCKS)) for ability in ABILITIES}


@pytest.fixture(scope="module")
def rows():
    return {ability: read_abilities(f"ability-{ability}", 4 * BLOCKS) for ability in ABILITIES}


def scores(rows, grades):
    found = measure_pairs(rows, grades, samples=0)
    return found["accuracy"].value, found["pair_accuracy"].value


def by_facts(made, read):
    """The grades of a rival that decides after `read` has changed a query, an item or the facts of a pair."""
    return [read(query, item) for block in made for query in block.queries for item in block.items]


# --- Chance -----------------------------------------------------------------------------------------------------------
@EACH
def test_a_rival_that_looks_at_one_side_or_counts_words_is_at_chance_even_if_it_has_seen_the_answers(ability, rows):
    """Every cue is given the most common grade of its value, in these very rows; no training could do better."""
    some = rows[ability]

    def words(text):
        return set(re.findall(r"\w+", text.lower()))

    def shared(row):
        return len(words(row.query) & words(row.title))

    cues = {
        "nothing": lambda row: "",
        "the query": lambda row: row.query,
        "the product": lambda row: (row.title, row.price),
        "shared words": shared,
        "share of the query": lambda row: round(shared(row) / len(words(row.query)), 6),
        "Jaccard": lambda row: round(shared(row) / len(words(row.query) | words(row.title)), 6),
    }
    for name, cue in cues.items():
        seen = defaultdict(Counter)
        for row in some:
            seen[cue(row)][row.grade] += 1
        of_rows, of_pairs = scores(some, [seen[cue(row)].most_common(1)[0][0] for row in some])
        assert of_rows <= 0.5 and of_pairs <= 0.25, name
    for grade in (1, 2, 3, 4):
        of_rows, of_pairs = scores(some, [grade] * len(some))
        assert of_rows <= 0.5 and of_pairs == 0, "it does not see the difference"


def test_a_block_in_which_counting_words_tells_the_grade_is_refused(made):
    """A title that repeats the colour that one of the queries asks for: 2 shared words in two rows, 1 in the others."""
    block = made["attributes"][0]
    assert _overlap_says_nothing(block)
    values = [query.demands[0].value for query in block.queries]
    literal = tuple(replace(item, title=f"{item.title} {value}") for item, value in zip(block.items, values))
    assert not _overlap_says_nothing(replace(block, items=literal))


@EACH
def test_who_reads_the_facts_from_the_true_reasons_is_perfect(ability, rows):
    grades = [implied_grade(parse_reply(row.cot, "pre-cot"), RULES) for row in rows[ability]]
    assert scores(rows[ability], grades) == (1, 1)


def decided(query, item):
    return decide(facts_of(query, item), RULES)[0]


def deaf_to_not(query, item):
    return decided(replace(query, demands=tuple(replace(d, excluded=False) for d in query.demands)), item)


def without_families(query, item):
    """Every value but the very same is another one."""
    facts = facts_of(query, item)
    for demand in query.demands:
        if facts[demand.fact] == "near":
            facts[demand.fact] = "met" if demand.excluded else "missed"
    return decide(facts, RULES)[0]


def without_demands(query, item):
    return decided(replace(query, demands=()), item)


def any_other_brand_is_cheaper(query, item):
    return 2 if item.brand == query.demands[0].value else 4


def brands_are_always_wished(query, item):
    return decided(replace(query, demands=(Demand("brand", query.demands[0].value),)), item)


def knows_a_type_by_its_name_alone(query, item):
    """The same if the title has the name that the query has; all other types are one to it."""
    names = catalogue.TYPES[GROUP_OF[query.type]][query.type][0]
    return 4 if any(name in query.text and name in item.title for name in names) else 2


def same_or_not(query, item):
    return 4 if query.type == item.type else 2


def flaws_add_up(query, item):
    lost = {"substitute": 1, "sibling": 2, "different": 3, "near": 1, "missed": 2}
    return max(1, 4 - sum(lost.get(value, 0) for value in facts_of(query, item).values()))


@pytest.mark.parametrize(
    ("ability", "rival", "of_pairs"),
    [
        ("category", same_or_not, 0),
        ("attributes", without_families, 0),
        ("attributes", without_demands, 0),
        ("synonyms", knows_a_type_by_its_name_alone, 0),
        ("negation", deaf_to_not, 0.25),  # it is right about the wishes
        ("price", any_other_brand_is_cheaper, 0),
        ("affordable", brands_are_always_wished, 0.25),  # the same
        ("question", knows_a_type_by_its_name_alone, 0),
        ("knowledge", without_demands, 0),
        ("rules", flaws_add_up, 0),
    ],
)
def test_a_rival_that_lacks_only_this_ability_is_at_chance(ability, rival, of_pairs, made, rows):
    found = scores(rows[ability], by_facts(made[ability], rival))
    assert found[0] <= 0.5, found
    assert found[1] == of_pairs
    assert scores(rows[ability], by_facts(made[ability], decided)) == (1, 1)


@pytest.mark.parametrize(
    ("sort", "rivals"),
    [
        (0, (knows_a_type_by_its_name_alone, same_or_not)),  # a need, and related categories
        (1, (deaf_to_not, without_families)),  # an exclusion, and a near value
        (2, (without_demands, without_families)),  # a phrase, and a near value
    ],
)
def test_a_combination_needs_both_of_its_abilities(sort, rivals, made, rows):
    blocks_of_sort = made["combination"][sort::3]
    some = [row for row in rows["combination"] if int(row.extra["block"].split("-")[1]) % 3 == sort]
    assert len(some) == 4 * len(blocks_of_sort) == 16
    for rival in rivals:
        of_rows, of_pairs = scores(some, by_facts(blocks_of_sort, rival))
        assert of_rows <= 0.5 and of_pairs == 0, rival
    assert scores(some, by_facts(blocks_of_sort, decided)) == (1, 1)


# --- What a block is --------------------------------------------------------------------------------------------------
@EACH
def test_queries_of_a_block_differ_in_one_demand_and_products_in_one_property(ability, made):
    for block in made[ability]:
        one, other = block.queries
        asked = [(query.type, *((d.attribute, d.value, d.excluded) for d in query.demands)) for query in block.queries]
        assert (one.type != other.type) + (one.demands != other.demands) == 1, asked
        assert len(one.demands) == len(other.demands) <= 1
        differing = {name for name, value in vars(block.items[0]).items() if value != getattr(block.items[1], name)}
        assert len(differing - {"title", "price"}) == 1
        titles = [set(item.title.split()) for item in block.items]
        assert len(titles[0] - titles[1]) <= 2, "a name of a type has two words; everything else is worded alike"


@EACH
def test_the_grades_are_the_rule_books_and_differ_between_the_rows_of_a_query_and_of_a_product(ability, made):
    for block in made[ability]:
        (a, b), (c, d) = block.grades
        assert a != b and c != d and a != c and b != d
        assert block.grades == tuple(tuple(decided(query, item) for item in block.items) for query in block.queries)


def test_each_ability_has_the_grades_that_it_is_about(made):
    found = {ability: {grade for b in some for row in b.grades for grade in row} for ability, some in made.items()}
    assert found == {
        "category": {1, 2, 3}, "attributes": {2, 3}, "synonyms": {2, 3, 4}, "negation": {2, 4}, "price": {2, 3, 4},
        "affordable": {2, 4}, "question": {1, 2, 3, 4}, "knowledge": {2, 4}, "rules": {2, 3}, "combination": {2, 3, 4},
    }  # fmt: skip


@EACH
def test_no_training_pool_has_a_product_or_a_wording_of_these_rows(ability, made, rows):
    for block in made[ability]:
        assert {item_bucket(item) for item in block.items} <= set(POOL_BUCKETS["test"])
        for query in block.queries:
            assert query.template in catalogue.TEMPLATES[query.kind][1]
    for pool in ("reasoned", "labelled", "unlabelled"):
        trained = read_pool(pool, 300)
        assert {row.title for row in rows[ability]}.isdisjoint(row.title for row in trained)
        assert {row.query for row in rows[ability]}.isdisjoint(row.query for row in trained)


# --- As data ----------------------------------------------------------------------------------------------------------
def test_rows_name_their_ability_block_query_and_product_and_explain_themselves(rows):
    first = rows["negation"][:4]
    assert [row.query_id for row in first] == ["negation-0-q0", "negation-0-q0", "negation-0-q1", "negation-0-q1"]
    assert [row.item_id for row in first] == ["negation-0-p0", "negation-0-p1"] * 2
    assert {row.query_kind for row in first} == {"negation"} and {row.extra["block"] for row in first} == {"negation-0"}
    for some in rows.values():
        for row in some:
            check_cot(row.cot)
            assert row.category == "", "the path would spell the type"
        assert len({(row.query, row.title) for row in some}) == len(some)


def test_a_source_gives_one_ability_or_all_by_turns(rows):
    assert load_rows("synthetic:ability-rules*12", need_gold=True, need_cot=True) == rows["rules"][:12]
    assert load_rows("world:ability-rules*4") == rows["rules"][:4]
    by_turns = load_rows("synthetic:abilities*80")
    assert [row.query_kind for row in by_turns[::4]] == [*ABILITIES] * 2
    assert [row for row in by_turns if row.query_kind == "price"] == rows["price"][:8]
    with pytest.raises(ValueError, match="ability-taste: no such pool.*test, explained, abilities, ability-category"):
        load_rows("synthetic:ability-taste")
    with pytest.raises(ValueError, match="ability pool is 'taste' of size 4, expected one of abilities, ability-"):
        read_abilities("taste", 4)
    with pytest.raises(ValueError, match="ability is 'taste', expected one of category"):
        next(blocks("taste"))


def test_the_rows_are_the_same_in_every_process_and_others_with_another_seed():
    code = """import hashlib; from taosr1.synthetic.abilities.blocks import read_abilities
print(hashlib.sha256(repr(read_abilities('abilities', 40, 3)).encode()).hexdigest())"""
    environment = {**os.environ, "PYTHONHASHSEED": "5", "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    other = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    own = [read_abilities("abilities", 40, seed) for seed in (3, 4)]
    assert other.stdout.strip() == hashlib.sha256(repr(own[0]).encode()).hexdigest()
    assert own[0] != own[1]
