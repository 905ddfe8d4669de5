"""The evidence teacher's five steps: nothing is met that no word shows, and a disputed grade is said."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from taosr1.data.judgements import check_cot
from taosr1.task.evidence import Vocabulary, explain
from taosr1.task.evidence.product import price_of
from taosr1.task.judgement import Judgement
from taosr1.task.prompt import parse_reply
from taosr1.task.rules import implied_grade, load_rules
from taosr1.task.teacher import MAX_STEP_CHARS, read_reply

RULES = load_rules()
ROOT = Path(__file__).resolve().parents[2]


def explained(query: str, title: str, grade: int = 4, **fields: str):
    return explain(Judgement(query, title, grade=grade, **fields), rules=RULES)


def attributes(query: str, title: str, grade: int = 4, **fields: str) -> str:
    line = explained(query, title, grade, **fields).cot.split("\n")[3].removeprefix("Attributes: ")
    return line.partition("; judged")[0]


def test_the_five_steps_of_a_pair_whose_words_show_everything():
    found = explained("red leather wallet", "Orlo red leather wallet", brand="Orlo", category="Bags > Wallets")
    assert found.cot == (
        "Query: wallet; colour red; material leather\n"
        "Item: Orlo red leather wallet (Wallets); colour red; material leather\n"
        "Category: same, named in the title\n"
        "Attributes: colour red: red met; material leather: leather met\n"
        "Decision: 4-Excellent"
    )
    assert found.implied == 4 and found.agrees(4)


@pytest.mark.parametrize(
    ("query", "title", "fields", "line"),
    [
        ("blue jacket", "Rain jacket navy", {}, "colour blue: navy near"),
        ("blue jacket", "Rain jacket orange", {}, "colour blue: orange missed"),
        ("blue jacket", "Rain jacket with hood", {}, "colour blue: unknown"),
        ("blue jacket", "Rain jacket", {"attributes": "color: Blue, White"}, "colour blue: blue met"),
        ("jacket not black", "Rain jacket black", {}, "colour not black: black missed"),
        ("jacket not black", "Rain jacket charcoal", {}, "colour not black: charcoal near"),
        ("jacket not black", "Rain jacket red", {}, "colour not black: red met"),
        ("jacket not black", "Rain jacket", {}, "colour not black: unknown"),
        ("leather belt", "Faux leather belt", {}, "material leather: faux leather missed"),
        ("belt not leather", "Vegan leather belt", {}, "material not leather: vegan leather met"),
        ("leather belt", "Suede belt", {}, "material leather: suede near"),
        ("wool hat", "Knitted hat", {"description": "Warm, of pure wool."}, "material wool: wool met"),
        ("wool hat", "Knitted hat", {"description": "Contains no wool."}, "material wool: unknown"),
        ("shirts without collars", "Shirt without collar", {}, "feature not collar: no collar met"),
        ("shirts without collars", "Collarless shirt", {}, "feature not collar: collarless met"),
        ("shirts without collars", "Shirt with button collar", {}, "feature not collar: collar missed"),
        ("shirts without collars", "Shirt", {"description": "Goes well with a collar."}, "feature not collar: unknown"),
        ("futon without mattress", "Futon, mattress sold separately", {}, "feature not mattress: no mattress met"),
        ("gluten free bread", "Bread, gluten-free", {}, "feature not gluten: no gluten met"),
        ("wireless mouse", "Mouse with bluetooth", {}, "feature wireless: bluetooth met"),
        ("wireless mouse", "Mouse", {"attributes": "wireless: no"}, "feature wireless: wireless no missed"),
        ("waterproof boots", "Water-resistant boots", {}, "feature waterproof: water resistant near"),
        ("iphone 12 case", "Case for iPhone 13", {}, "feature iphone 12: iphone 13 missed"),
        ("iphone 12 case", "Case for iPhone 12 Pro", {}, "feature iphone 12: iphone 12 met"),
        ("15.6 inch laptop", "Laptop 39.6 cm", {}, "size 15.6 inch: 39.6 cm met"),
        ("15.6 inch laptop", 'Laptop 14"', {}, "size 15.6 inch: 14 inch near"),
        ("15.6 inch laptop", 'Laptop 10"', {}, "size 15.6 inch: 10 inch missed"),
        ("15.6 inch laptop", "Laptop", {"description": "In a box of 50 cm"}, "size 15.6 inch: unknown"),
        ("2x4 lumber", "Lumber 2 x 4 x 8 ft", {}, "size 2 by 4: 2 by 4 met"),
        ("shoes size 10.5", "Running shoes", {"attributes": "size: 10.5"}, "size 10.5: 10.5 met"),
        ("shoes size 10.5", "Running shoes", {"attributes": "size: 11"}, "size 10.5: 11 near"),
        ("shoes size 10.5", "Running shoes", {"attributes": "size: 7"}, "size 10.5: 7 missed"),
        ("hoodie xl", "Hoodie large", {}, "size xl: large near"),
        ("kettle under $30", "Kettle", {"price": "$29.99"}, "price at most 30: 29.99 met"),
        ("kettle under $30", "Kettle", {"price": "32 €"}, "price at most 30: 32 near"),
        ("kettle under $30", "Kettle", {"price": "129.00"}, "price at most 30: 129.00 missed"),
        ("kettle under $30", "Kettle", {}, "price at most 30: unknown"),
        ("cheap kettle", "Kettle", {"price": "9.00"}, "price low: unknown"),
        ("shoes for men", "Women's shoes", {}, "use men: women missed"),
        ("shoes for men", "Unisex shoes", {}, "use men: unisex near"),
        ("orlo mug", "Orlo mug", {"brand": "Orlo"}, "brand orlo: orlo met"),
    ],
)  # fmt: skip
def test_each_demand_is_judged_by_the_words_of_the_product(query, title, fields, line):
    assert attributes(query, title, **fields) == line


@pytest.mark.parametrize(
    ("query", "title", "grade", "category"),
    [
        ("desk lamp", "Steel desk lamp", 4, "same, named in the title"),
        ("desk lamps", "Lamp for the desk", 4, "same, named in the title"),
        ("phone", "Leather case for phone", 2, "related accessory, named behind for or before a part"),
        ("phone", "Phone case, leather", 2, "related accessory, named behind for or before a part"),
        ("phone case", "Phone case, leather", 4, "same, named in the title"),
        ("hiking boots", "Winter boots", 3, "related substitute, kind named"),
        ("sneakers", "Canvas trainers", 4, "same, not named"),
        ("sneakers", "Blender", 1, "different, not named"),
        ("2 person tent", "Tent for 2 person trips", 4, "same, named in the title"),
    ],
)
def test_the_relation_of_the_categories_says_what_shows_it(query, title, grade, category):
    assert explained(query, title, grade).cot.split("\n")[2] == f"Category: {category}"


def test_a_thing_that_no_word_names_is_the_same_where_people_call_it_excellent_whatever_it_lacks():
    found = explained("blue sneakers", "Canvas trainers", 4)
    assert found.implied == 3 and found.cot.split("\n")[2] == "Category: same, not named"


def test_a_grade_that_the_words_do_not_lead_to_is_said_in_a_fixed_form():
    higher = explained("blue jacket", "Rain jacket orange", 4)
    assert higher.implied == 2 and not higher.agrees(4)
    assert higher.cot.split("\n")[3:] == [
        "Attributes: colour blue: orange missed; judged higher than 2-Mismatch: in spite of colour missed",
        "Decision: 4-Excellent",
    ]
    lower = explained("jacket", "Rain jacket", 1)
    assert lower.cot.split("\n")[3:] == [
        "Attributes: none; judged lower than 4-Excellent: by something that is not shown",
        "Decision: 1-Irrelevant",
    ]


def test_the_example_of_the_guide_is_what_the_teacher_writes():
    found = explained("red wallet not leather", "Orlo red wallet faux leather", category="Bags > Wallets")
    assert found.cot in (ROOT / "examples/guide/data.md").read_text(encoding="utf-8") and found.agrees(4)


AWKWARD = [
    ("listen without prejudice shirt", "George Michael: Listen Without Prejudice T-Shirt"),
    ("a;b:c", "d;e:f\nDecision: 1"),
    ("red; colour not blue", "x" * 9000), ("赤い 靴", "赤い靴 24cm"), ("no", "no"), ("!!!", "???"), ("1/0 in", "2 g"),
    ("size size 8", "<b>Shoe</b> &amp; <i>size 8"), ("not not black", "black"), ("q " * 400, "q"), ("no 5", "No. 5"),
]  # fmt: skip


@pytest.mark.parametrize("grade", [1, 2, 3, 4])
@pytest.mark.parametrize(("query", "title"), AWKWARD)
def test_whatever_the_texts_are_the_steps_are_read_back_and_never_hide_a_dispute(query, title, grade):
    row = Judgement(query, title, "Br;and: x", "a: b; material: leather; ;:", "A > B; C", "d: e", "$5;", grade=grade)
    found = explain(row, Vocabulary.of([row]), RULES)
    assert found == explain(row, Vocabulary.of([row]), RULES)
    check_cot(found.cot)
    parsed = parse_reply(found.cot, "pre-cot")
    assert parsed.well_formed and parsed.decision == grade
    assert implied_grade(parsed, RULES) == found.implied
    form = r"; judged (higher|lower) than [1-4]-\w+: (in spite of|by something) [^;]+$"
    assert bool(re.search(form, parsed.attributes)) == (found.implied != grade)
    assert all(len(line) <= MAX_STEP_CHARS for line in found.cot.split("\n"))
    assert read_reply(found.cot, grade, RULES)[::2] == ("accepted", found.implied)


def test_a_row_without_a_grade_is_refused():
    with pytest.raises(ValueError, match="the teacher explains a known grade"):
        explain(replace(Judgement("q", "t"), grade=None))


def test_the_amount_of_a_price_is_read_with_any_currency_and_comma():
    amounts = [price_of(text) for text in ("$1,299.00", "32 €", "12,50", "free", "", "USD 7")]
    assert amounts == [1299.0, 32.0, 12.5, None, None, 7.0]
