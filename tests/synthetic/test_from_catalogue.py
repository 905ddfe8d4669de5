"""A world made from a catalogue: its kinds, its queries, its grades, and that its pools are apart."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from taosr1.data.catalogue import read_catalogue
from taosr1.data.flags import ReadFlags
from taosr1.data.judgements import check_cot
from taosr1.synthetic.from_catalogue.fields import Field
from taosr1.synthetic.from_catalogue.fields import outcome as field_outcome
from taosr1.synthetic.from_catalogue.kinds import find_kinds
from taosr1.synthetic.from_catalogue.pools import POOLS, make_pool
from taosr1.synthetic.from_catalogue.queries import plural
from taosr1.synthetic.from_catalogue.shop import Asked, Shop
from taosr1.synthetic.from_catalogue.wordings import BEFORE, KINDS, PRICE_FORMS, TEMPLATES, language_of
from taosr1.synthetic.shop import GRADE_SHARES, KIND_SHARES
from taosr1.task.evidence.demands import Demand
from taosr1.task.evidence.product import Product
from taosr1.task.evidence.text import words_of
from taosr1.task.judgement import Judgement
from taosr1.task.prompt import parse_reply
from taosr1.task.rules import implied_grade, load_rules
from tests.synthetic.catalogues import COLOURS, messy, tidy, write_jsonl

CATALOGUE = Path(__file__).resolve().parents[3] / "shared/data/chorus_icecat/catalogue.jsonl.gz"
RULES = load_rules()


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Shop:
    return Shop.of(read_catalogue(write_jsonl(tmp_path_factory.mktemp("catalogue") / "products.jsonl", tidy())))


def kinds_of(titles: list[str], **fields: str) -> list[str]:
    rows = [Judgement("", title, title.split()[0], **fields) for title in titles]
    return [" ".join(kind) for kind in find_kinds(rows, [{}] * len(rows)).of_product]


def test_kinds_come_from_categories_where_most_products_have_one(shop):
    assert not shop.kinds.from_titles
    assert {" ".join(kind) for kind in shop.kinds.products} == {
        "desk lamp", "floor lamp", "wool blanket", "quilt", "travel mug", "water bottle", "headphone", "speaker",
        "phone", "phone case",
    }  # fmt: skip


def test_kinds_come_from_the_ends_of_runs_of_lower_case_words_where_there_are_no_categories():
    titles = [f"{brand} X{number} notebook case 15 Black" for number, brand in enumerate(["Orlo", "Acme", "Zeta"] * 3)]
    titles += [
        f"{brand} Y{number} all-purpose label 500 sheets White" for number, brand in enumerate(["Orlo", "Acme"] * 4)
    ]
    found = kinds_of([*titles, "Orlo something else"])
    assert found == ["notebook case"] * 9 + ["label"] * 0 + found[9:17] + [""]
    assert set(found[9:17]) <= {"label", ""} and "sheet" not in found  # "purpose label" begins inside a word


def test_relations_are_those_that_words_and_categories_show(shop):
    relation = {
        name: shop.kinds.relation(("phone",), kind) for kind in shop.kinds.products for name in [" ".join(kind)]
    }
    assert relation["phone"] == "same" and relation["phone case"] == "accessory"
    assert (
        relation["quilt"] == "different" and relation["speaker"] == ""
    )  # electronics, but another shelf: nobody knows
    assert shop.kinds.relation(("desk", "lamp"), ("floor", "lamp")) == "sibling"
    assert shop.kinds.relation(("phone", "case"), ("phone",)) == "sibling"


@pytest.mark.parametrize("pool", ["reasoned", "explained"])
def test_every_pair_has_steps_that_lead_to_its_grade_and_the_shares_of_the_embedded_shop(shop, pool):
    rows = make_pool(shop, pool, 300)
    for row in rows:
        check_cot(row.cot)
        parsed = parse_reply(row.cot, "pre-cot")
        assert parsed.well_formed and parsed.decision == row.grade == implied_grade(parsed, RULES), row.cot
    grades, kinds = Counter(row.grade for row in rows), Counter(row.query_kind for row in rows)
    assert all(abs(grades[grade] / 300 - share) < 0.12 for grade, share in GRADE_SHARES.items()), grades
    assert all(abs(kinds[kind] / 300 - share) < 0.06 for kind, share in KIND_SHARES.items()), kinds


def test_what_the_steps_call_met_is_what_the_product_has(shop):
    """Independent of the maker: the colours and amounts of the made-up catalogue stand in its titles."""
    checked = Counter()
    for row in make_pool(shop, "reasoned", 300):
        title = row.title.casefold()
        for entry in parse_reply(row.cot, "pre-cot").attributes.split("; "):
            words = entry.split(":")[0].split()
            if words[0] == "colour" and row.cot.startswith("Query: ") and entry.endswith(" met"):
                assert (words[-1] in title) != ("not" in words), (entry, row.title)
                checked["colour"] += 1
            if words[0] == "size" and entry.endswith((" met", " missed")):
                assert (f"{words[1]} gb" in title) == entry.endswith(" met"), (entry, row.title)
                checked["size"] += 1
            if words[0] == "price" and words[1:3] == ["at", "most"] and entry.endswith(" met"):
                assert float(row.price) <= float(words[3])
                checked["price"] += 1
    assert min(checked["colour"], checked["size"], checked["price"]) > 3, checked


def test_pools_are_the_same_for_the_same_seed_and_share_no_query(shop):
    queries = {}
    for pool in ("reasoned", "labelled", "unlabelled", "dev", "test"):
        rows = make_pool(shop, pool, 120)
        assert rows == make_pool(shop, pool, 120) and rows != make_pool(shop, pool, 120, seed=1)
        assert rows[:60] == make_pool(shop, pool, 60)[:60]
        queries[pool] = {row.query.casefold() for row in rows}
        assert len({(row.query, row.title) for row in rows}) == len(rows)
        assert all((row.grade is None) == (pool == "unlabelled") for row in rows)
        assert all(bool(row.cot) == (pool == "reasoned") for row in rows)
    names = list(queries)
    assert all(queries[one].isdisjoint(queries[other]) for one in names for other in names if one < other)
    assert [row.cot != "" for row in make_pool(shop, "explained", 20)] == [True] * 20
    assert [(row.query, row.title) for row in make_pool(shop, "explained", 20)] == [
        (row.query, row.title) for row in make_pool(shop, "labelled", 20)
    ]


def test_a_pool_does_not_depend_on_what_was_drawn_before(shop):
    make_pool(shop, "labelled", 300)
    fresh = Shop.of([replace(row, attributes=row.attributes) for row in shop.rows])
    assert make_pool(shop, "reasoned", 120) == make_pool(fresh, "reasoned", 120)


def test_a_price_is_low_for_its_own_kind_and_not_for_the_one_that_was_asked_about_before(tmp_path):
    cheap = [{"title": f"Orlo pen {n}", "category": "Office > Pens", "price": 1 + n} for n in range(10)]
    dear = [{"title": f"Orlo desk {n}", "category": "Office > Desks", "price": 100 + n} for n in range(10)]
    shop = Shop.of(read_catalogue(write_jsonl(tmp_path / "office.jsonl", cheap + dear)))
    low = Asked(Demand("price", ("low",)))
    assert [shop.finding(9, kind, low).outcome for kind in (("desk",), ("pen",))] == ["met", "missed"]


def test_a_large_catalogue_also_has_no_product_in_training_and_measuring(tmp_path):
    large = Shop.of(read_catalogue(write_jsonl(tmp_path / "products.jsonl", tidy(2100))))
    titles = {pool: {row.title for row in make_pool(large, pool, 200)} for pool in ("labelled", "dev", "test")}
    assert titles["labelled"].isdisjoint(titles["dev"] | titles["test"]) and titles["dev"].isdisjoint(titles["test"])


def test_a_catalogue_of_titles_alone_and_a_messy_one_still_make_a_world(tmp_path, capsys):
    for name, rows in (("bare", tidy(category=False)), ("messy", messy())):
        products = read_catalogue(write_jsonl(tmp_path / f"{name}.jsonl", rows))
        made = make_pool(Shop.of(products), "reasoned", 60)
        assert len(made) == 60 and len({row.grade for row in made}) >= 3, name
        assert all(row.title and "<b>" not in row.title and "&amp;" not in row.title for row in made)
    assert "duplicates left out" in capsys.readouterr().err


@pytest.mark.parametrize("seed", range(3))
def test_whatever_a_catalogue_holds_it_is_skipped_by_row_or_makes_rows_that_can_be_learned_from(tmp_path, seed):
    rng, rows = random.Random(seed), messy(seed)
    odd = "lamp LED <b>x</b> &amp; ; : , \u202e 赤い 靴 ö 1/0 00 1,000.00 -5 % n/a None @ \x00 $5 'quoted'".split(" ")
    for row in rows:
        for name in row.keys() - {"title"}:
            if rng.random() < 0.15:
                row[name] = rng.choice(
                    [None, "", 3, True, 2.5, {"a": {"b": [1, "x"]}}, ["x"], " ".join(rng.choices(odd, k=6))]
                )
        if rng.random() < 0.1:
            row["title"] = " ".join(rng.choices(odd, k=rng.randint(1, 200)))
    products = read_catalogue(write_jsonl(tmp_path / "odd.jsonl", rows), ReadFlags(max_bad_rows=300))
    made = make_pool(Shop.of(products), "reasoned", 40)
    assert len(made) == 40
    for row in made:
        check_cot(row.cot)
        assert implied_grade(parse_reply(row.cot, "pre-cot"), RULES) == row.grade


def test_a_used_up_catalogue_gives_fewer_rows_and_says_so(tmp_path, capsys):
    rows = [{"title": f"Orlo desk lamp {colour}", "category": "Lamps", "brand": "Orlo"} for colour in COLOURS]
    few = make_pool(Shop.of(read_catalogue(write_jsonl(tmp_path / "few.jsonl", rows))), "labelled", 500)
    assert len(few) < 500 and f"only {len(few)} of 500 pairs of 'labelled' could be made" in capsys.readouterr().err
    with pytest.raises(ValueError, match="no kind of thing is there at least five times, by category or title"):
        Shop.of(read_catalogue(write_jsonl(tmp_path / "three.jsonl", rows[:3])))
    with pytest.raises(ValueError, match="pool is 'train' of size 3, expected one of reasoned, labelled"):
        make_pool(Shop.of(read_catalogue(tmp_path / "few.jsonl")), "train", 3)


def test_queries_are_in_the_language_of_the_catalogue(tmp_path):
    german = [
        {
            **row,
            "description": "Das ist eine gute Lampe für das Haus und der Garten mit Licht",
            "category": "Haus > Lampen",
        }
        for row in tidy(120)
    ]
    shop = Shop.of(read_catalogue(write_jsonl(tmp_path / "de.jsonl", german)))
    text = " ".join(row.query for row in make_pool(shop, "unlabelled", 80))
    assert shop.language == "de" and " ohne " in text and " without " not in text
    assert language_of([]) == "en" and language_of(["le chat et la souris pour une fille"]) == "fr"


def test_every_language_has_two_lists_of_templates_for_every_kind_and_none_is_in_both():
    for language, table in TEMPLATES.items():
        assert set(table) == {kind for kind in KINDS if kind != "affordable"} | set(PRICE_FORMS) and language in BEFORE
        for training, held_out in table.values():
            assert training and held_out and not set(training) & set(held_out)
            assert all("{t}" in template and "{d}" in template for template in training + held_out)


def test_plurals_are_those_of_english():
    words = ["lamp", "switch", "battery", "tray", "box", "mouse", "headphones"]
    assert [plural(word) for word in words] == [
        "lamps",
        "switches",
        "batteries",
        "trays",
        "boxes",
        "mouse",
        "headphones",
    ]


def test_title_pairs_are_their_own_product_near_ones_and_far_ones_by_the_words_they_lack(shop):
    rows = make_pool(shop, "titles", 400)
    assert rows == make_pool(shop, "titles", 400) and rows != make_pool(shop, "titles", 400, seed=1)
    grades, added = Counter(row.grade for row in rows), 0
    assert 150 < grades[4] < 190 and grades[1] > 60 and grades[2] > 60 and not grades[3] and "titles" in POOLS
    for number, row in enumerate(rows):
        wanted, found = set(words_of(row.query)), set(words_of(row.title))
        lacking = len(wanted - found)
        if row.grade == 4:
            assert not lacking, (row.query, row.title)
        elif number % 2:  # another product
            assert lacking and (2 * lacking <= len(wanted)) == (row.grade == 2), (row.query, row.title)
        else:
            added += 1
            assert row.grade == 2 and lacking, (row.query, row.title)
    assert added > 15
    shared = [len(set(words_of(row.query)) & set(words_of(row.title))) for row in rows[1::2]]
    assert sum(count > 1 for count in shared) > 50  # near: no common word alone tells the grades apart


@pytest.mark.skipif(not CATALOGUE.exists(), reason=f"no catalogue at {CATALOGUE}")
def test_a_real_catalogue_of_electronics_without_categories_makes_a_world(tmp_path):
    import gzip

    with gzip.open(CATALOGUE, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for number, line in enumerate(lines) if number % 6 == 0]
    shop = Shop.of(read_catalogue(write_jsonl(tmp_path / "electronics.jsonl", rows)))
    assert ("toner", "cartridge") in shop.kinds.products and len(shop.kinds.products) > 30
    made = make_pool(shop, "reasoned", 200)
    assert len(made) == 200 and {row.grade for row in made} == {1, 2, 3, 4}
    assert {row.query_kind for row in made} == set(KINDS)


@pytest.mark.parametrize(
    ("title", "value", "outcome"),
    [
        ("Flash drive 16 GB", "16", "met"),
        ("Flash drive 32 GB", "32", "near"),
        ("Flash drive 64 GB", "64", "missed"),  # 32 lies between
        ("Flash drive 4 GB", "4", "missed"),  # nothing lies between, but it is far away
        ("Flash drive 16384 MB", "16384", None),  # the field has no unit, and the title has another one
        ("Flash drive", "16", None),  # nobody can see what the 16 are
        ("Flash drive", "", "unknown"),
        ("Flash drive 16 GB", "", None),  # the title says more than the field
    ],
)
def test_a_number_is_met_near_or_missed_by_the_steps_of_its_kind_and_nothing_where_its_unit_is_not_shown(
    title, value, outcome
):
    field = Field("capacity", "size", "number", "gb")
    product = Product(Judgement("", title, attributes=f"capacity: {value}" if value else ""))
    found = field_outcome(product, {"capacity": value} if value else {}, field, field.demand_of("16"), [8, 16, 32, 64])
    assert (found and found.outcome) == outcome


@pytest.mark.parametrize(
    ("title", "attributes", "outcome"),
    [
        ("Drum cyan", "colour: cyan", "met"),
        ("Drum", "colour: cyan", "met"),
        ("Drum black", "colour: black", "missed"),
        ("Drum black", "colour: cyan", None),  # title and field contradict each other
        ("Printer", "printing colour: black, cyan, magenta", None),  # not what the printer looks like
    ],
)
def test_a_colour_that_title_and_field_do_not_agree_on_makes_no_pair(title, attributes, outcome):
    field = Field("colour", "colour", "words")
    product = Product(Judgement("", title, attributes=attributes))
    found = field_outcome(product, dict(product.fields), field, field.demand_of("cyan"), [])
    assert (found and found.outcome) == outcome
