"""The rule book: its file, its decisions, what a chain of thought implies, and retrieval."""

import itertools
import json
import math

import pytest

from taosr1.synthetic.shop import make_pool
from taosr1.task.grades import grade_name
from taosr1.task.prompt import Reply, parse_reply
from taosr1.task.rules import (
    BUNDLED_RULES,
    CATEGORY_FACTS,
    DEMANDS,
    EXCLUSIONS,
    OUTCOMES,
    Rule,
    RuleIndex,
    decide,
    facts_from_cot,
    implied_grade,
    load_rules,
    retrieve,
    tokenize,
)

RULES = load_rules()
GROUPS = {"footwear", "clothing", "kitchen", "electronics", "outdoor", "home"}
LINE = {
    "id": "a",
    "applies_to": ["any"],
    "condition": "if",
    "consequence": "then",
    "when": {"colour": "missed"},
    "grade": 2,
    "example": {"query": "red mug", "title": "Blue mug", "grade": 2},
}


def reply(category="same", attributes="none", query="travel mug", decision=4, order="pre-cot"):
    cot = f"Query: {query}\nItem: mug\nCategory: {category}\nAttributes: {attributes}\nDecision: {grade_name(decision)}"
    return parse_reply(cot if order == "pre-cot" else f"{decision}\n{cot}", order)


# --- the file ---------------------------------------------------------------------------------------------------------


def test_the_bundled_book_has_a_decision_rule_for_every_fact_that_costs_a_grade():
    decided = {tuple(rule.when.items())[0] for rule in RULES if rule.decides}
    expected = {("category", fact) for fact in CATEGORY_FACTS if fact != "same"}
    expected |= {(demand, word) for demand in DEMANDS + EXCLUSIONS for word in OUTCOMES if word != "met"}
    assert decided == expected


def test_the_bundled_book_is_atomic_readable_and_covers_every_group():
    assert len({rule.id for rule in RULES}) == len(RULES) >= 40
    assert all(len(rule.when) <= 1 for rule in RULES)
    assert all(rule.id == rule.id.lower() and " " not in rule.id for rule in RULES)
    assert {group for rule in RULES for group in rule.applies_to} == GROUPS | {"any"}
    assert all(rule.example["grade"] == rule.grade for rule in RULES if rule.decides)
    assert all(len(line) < 600 for line in BUNDLED_RULES.read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grade": 5}, "field 'grade' is 5, expected 1-4 or null"),
        ({"grade": True}, "field 'grade' is True"),
        ({"grade": None}, "fields 'when' and 'grade' go together"),
        ({"when": {}}, "fields 'when' and 'grade' go together"),
        ({"when": {"colour": "wrong"}}, "field 'when': fact 'colour' is 'wrong', expected met|near|missed|unknown"),
        ({"when": {"color": "missed"}}, "expected a fact out of category, brand, colour"),
        ({"when": {"category": "met"}}, "expected same|substitute|accessory|sibling|different"),
        ({"when": {"colour": ["missed"]}}, "field 'when': fact 'colour' is ['missed']"),
        ({"when": []}, "field 'when' is []"),
        ({"applies_to": "any"}, "field 'applies_to' is 'any'"),
        ({"applies_to": []}, "field 'applies_to' is []"),
        ({"condition": " "}, "field 'condition' is ' ', expected text"),
        ({"consequence": 3}, "field 'consequence' is 3, expected text"),
        ({"example": {"query": "a"}}, "field 'example' is"),
        ({"example": {"query": "a", "title": "", "grade": 2}}, "field 'example.title' is '', expected text"),
        (
            {"example": {"query": "a", "title": "b", "grade": 4}},
            "field 'example.grade' is 4, expected at most the rule's own grade 2",
        ),
        ({"weight": 1}, "unknown ['weight']"),
    ],
)
def test_a_broken_rule_is_refused_with_file_and_line(tmp_path, change, message):
    path = tmp_path / "rules.jsonl"
    path.write_text(json.dumps({**LINE, "id": "first"}) + "\n" + json.dumps({**LINE, **change}) + "\n")
    with pytest.raises(ValueError) as caught:
        load_rules(path)
    assert str(caught.value).startswith(f"{path}:2: ") and message in str(caught.value)


def test_a_repeated_id_a_missing_field_an_empty_and_an_undecided_book_are_refused(tmp_path):
    path = tmp_path / "rules.jsonl"
    path.write_text(json.dumps(LINE) + "\n" + json.dumps(LINE))
    with pytest.raises(ValueError, match=r":2: field 'id' repeats 'a' of line 1"):
        load_rules(path)
    path.write_text(json.dumps({name: value for name, value in LINE.items() if name != "example"}))
    with pytest.raises(ValueError, match=r":1: fields: missing \['example'\]"):
        load_rules(path)
    path.write_text("\n")
    with pytest.raises(ValueError, match="no rules in this file"):
        load_rules(path)
    path.write_text(json.dumps({**LINE, "when": {}, "grade": None}))
    with pytest.raises(ValueError, match="every pair would be graded 4"):
        load_rules(path)
    with pytest.raises(FileNotFoundError, match="check --rules"):
        load_rules(tmp_path / "none.jsonl")


def test_callers_cannot_spoil_the_bundled_book():
    load_rules().clear()
    assert len(load_rules()) == len(RULES)


# --- deciding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "grade", "fired"),
    [
        ({"category": "same"}, 4, ()),
        ({"category": "same", "colour": "met", "no-material": "met"}, 4, ()),
        ({"category": "same", "colour": "near"}, 3, ("colour-near",)),
        ({"category": "same", "price": "unknown"}, 3, ("price-unknown",)),
        ({"category": "substitute"}, 3, ("category-substitute",)),
        ({"category": "accessory"}, 2, ("category-accessory",)),
        ({"category": "sibling"}, 2, ("category-sibling",)),
        ({"category": "different"}, 1, ("category-different",)),
        ({"category": "same", "no-material": "missed"}, 2, ("no-material-missed",)),
        ({"category": "substitute", "size": "near", "use": "met"}, 3, ("category-substitute", "size-near")),
        ({"category": "different", "brand": "missed"}, 1, ("category-different", "brand-missed")),
    ],
)
def test_the_lowest_grade_of_the_rules_that_fire_decides(facts, grade, fired):
    assert decide(facts, RULES) == (grade, fired)


def test_every_combination_of_two_facts_follows_the_table():
    """different 1; accessory, sibling, any missed 2; substitute, near, unknown 3; else 4: the lowest of these."""
    of_category = {"same": 4, "substitute": 3, "accessory": 2, "sibling": 2, "different": 1}
    of_outcome = {"met": 4, "near": 3, "unknown": 3, "missed": 2}
    for category, demand, word in itertools.product(CATEGORY_FACTS, DEMANDS + EXCLUSIONS, OUTCOMES):
        grade = decide({"category": category, demand: word}, RULES)[0]
        assert grade == min(of_category[category], of_outcome[word])


def test_a_rule_with_two_conditions_needs_both():
    both = Rule("both", ("any",), "if", "then", {"colour": "near", "size": "near"}, 1)
    assert decide({"category": "same", "colour": "near"}, [both]) == (4, ())
    assert decide({"category": "same", "colour": "near", "size": "near"}, [both]) == (1, ("both",))


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"colour": "met"}, "facts without 'category'"),
        ({"category": "related"}, "fact 'category' is 'related', expected same"),
        ({"category": "same", "color": "met"}, "fact 'color' is 'met', expected a fact out of"),
        ({"category": "same", "colour": "Missed"}, "expected met|near|missed|unknown"),
    ],
)
def test_a_misspelt_fact_is_an_error_and_not_a_grade(facts, message):
    with pytest.raises(ValueError) as caught:
        decide(facts, RULES)
    assert message in str(caught.value)


# --- what a chain of thought implies ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("category", "attributes", "grade"),
    [
        ("same", "none", 4),
        ("same", "colour met; price near", 3),
        ("same", "colour met; price missed", 2),
        ("related substitute", "none", 3),
        ("related sibling", "material met", 2),
        ("different", "colour met", 1),
        ("Same, both are mugs", "Colour: met; price: near.", 3),
        ("related  accessory (a lid)", "none", 2),
        ("same", "compatibility missed", 2),  # not a demand of the book: counted as a feature, not ignored
        ("same", "colour met; colour missed", 2),
        ("same", "colour met;", 4),
    ],
)
@pytest.mark.parametrize("order", ["pre-cot", "post-cot"])
def test_the_steps_imply_a_grade_whatever_the_decision_says(category, attributes, grade, order):
    for decision in (1, 2, 3, 4):
        assert implied_grade(reply(category, attributes, decision=decision, order=order), RULES) == grade


@pytest.mark.parametrize(
    ("category", "attributes"),
    [
        ("related", "none"),
        ("similar", "none"),
        ("", "none"),
        ("samesame", "none"),
        ("same", ""),
        ("same", "colour"),
        ("same", "colour wrong"),
        ("same", "met"),
        ("same", "colour met, price near, size"),
        ("same", "colour not met at all"),
    ],
)
def test_steps_that_cannot_be_read_imply_nothing(category, attributes):
    assert implied_grade(Reply(4, "q", "i", category, attributes, 4), RULES) is None


def test_exclusions_come_from_the_query_line_in_order():
    facts = facts_from_cot(
        reply(
            "same",
            "colour near; colour met; material missed",
            query="mug; colour red; colour not blue; material not steel",
        )
    )
    assert facts == {"category": "same", "colour": "near", "no-colour": "met", "no-material": "missed"}
    assert facts_from_cot(reply("same", "size met", query="mug; size not 8")) == {"category": "same", "size": "met"}
    assert facts_from_cot(reply("same", "no-colour near")) == {"category": "same", "no-colour": "near"}


def test_the_synthetic_shop_and_the_rule_book_agree_on_every_chain_of_thought():
    for _, _, judgement in make_pool("reasoned", 150):
        parsed = parse_reply(judgement.cot, "pre-cot")
        assert parsed.well_formed and implied_grade(parsed, RULES) == parsed.decision


def test_implied_grade_never_raises():
    hypothesis = pytest.importorskip(
        "hypothesis", reason="property tests need the [dev] extra: pip install -e '.[dev]'"
    )
    word = hypothesis.strategies.sampled_from(
        [
            "same",
            "related",
            "substitute",
            "different",
            "colour",
            "not",
            "met",
            "near",
            ";",
            ":",
            " ",
            "none",
            "no-colour",
            "category",
        ]
    )
    text = hypothesis.strategies.lists(word | hypothesis.strategies.text(max_size=4), max_size=9).map(" ".join)

    @hypothesis.settings(max_examples=300, deadline=None)
    @hypothesis.given(text, text, text)
    def check(query, category, attributes):
        assert implied_grade(Reply(None, query, "", category, attributes), RULES) in (None, 1, 2, 3, 4)

    check()
    assert implied_grade(Reply(None), RULES) is None


def test_a_hostile_attributes_line_is_read_in_linear_time():
    assert implied_grade(Reply(4, "", "", "same", " " * 200_000 + "x" * 200_000), RULES) is None
    assert implied_grade(Reply(4, "", "", "same", "x : " * 100_000), RULES) is None
    assert implied_grade(Reply(4, "", "", "same", "x" + " " * 200_000 + "y"), RULES) is None


# --- Retrieval --------------------------------------------------------------------------------------------------------


def ids(query, title, category, k):
    return [rule.id for rule in retrieve(query, title, category, RULES, k)]


def test_bm25_scores_equal_the_formula_worked_by_hand():
    """Two rules of 2 and 4 words, mean 3. "red" is in both: idf = ln(1 + 0.5 / 2.5). In the first, once among 2 words:
    1 * 2.2 / (1 + 1.2 * (0.25 + 0.75 * 2/3)); in the second, twice among 4: 2 * 2.2 / (2 + 1.2 * (0.25 + 0.75 * 4/3)).
    "mug" is in the first only: idf = ln(1 + 1.5 / 1.5).
    """
    index = RuleIndex([Rule("a", ("any",), "red", "mug"), Rule("b", ("any",), "red red", "boot boot")])
    idf = math.log(1 + 0.5 / 2.5)
    first = idf * 2.2 / (1 + 1.2 * 0.75)
    second = idf * 2 * 2.2 / (2 + 1.2 * 1.25)
    assert index.scores("red") == pytest.approx([first, second], rel=1e-12)
    assert index.scores("Reds, MUG mug!") == pytest.approx([first + math.log(2) * 2.2 / 1.9, second], rel=1e-12)
    assert list(index.scores("sofa")) == [0, 0]


def test_the_rules_that_concern_a_pair_come_first():
    assert "leather-relatives" in ids("boots not leather", "suede ankle boots", "footwear > boots", 5)
    assert any(name.startswith("no-material") for name in ids("boots not leather", "suede ankle boots", "footwear", 5))
    assert "alternative-to-a-brand" in ids("travel mug cheaper than Aurelle", "steel mug", "kitchen", 2)
    assert "question-names-a-need" in ids("what do I need to camp", "tent", "outdoor", 3)
    assert "waterproof-scale" in ids("waterproof jacket", "water-resistant jacket", "clothing", 3)


def test_the_category_filter_keeps_general_rules_and_the_named_groups():
    for category, groups in [
        ("kitchen > travel mug", {"kitchen"}),
        ("Clothing, Shoes & Jewelry > Women > Shoes", {"clothing", "footwear"}),
        ("Home & Kitchen > Bedding", {"home", "kitchen"}),
        ("Toys & Games", set()),
        ("", GROUPS),
    ]:
        chosen = retrieve("leather boots", "leather boots", category, RULES, len(RULES))
        assert {group for rule in chosen for group in rule.applies_to if rule.applies_to != ("any",)} >= groups
        assert all("any" in rule.applies_to or groups & set(rule.applies_to) for rule in chosen)


def test_k_rules_come_back_and_ties_keep_the_order_of_the_book():
    assert ids("", "", "", 3) == [rule.id for rule in RULES[:3]]
    assert ids("zzz", "qqq", "", len(RULES)) == [rule.id for rule in RULES]
    assert retrieve("mug", "mug", "", RULES, 0) == []
    assert len(retrieve("mug", "mug", "", RULES, 10_000)) == len(RULES)
    assert ids("red mug", "steel mug", "kitchen", 8)[:4] == ids("red mug", "steel mug", "kitchen", 4)
    assert ids("mug red", "mug steel", "kitchen", 8) == ids("red mug", "steel mug", "kitchen", 8)
    with pytest.raises(ValueError, match="k is -1"):
        retrieve("mug", "mug", "", RULES, -1)


def test_retrieval_survives_any_text_and_an_empty_book():
    for text in ("", "\ud800\0", "防水靴子", "🥾" * 1000, "a" * 100_000):
        assert len(retrieve(text, text, text, RULES, 3)) == 3
    assert retrieve("mug", "mug", "", [], 3) == []


def test_words_are_folded_and_cjk_signs_stand_alone():
    assert tokenize("The BOOTS, of glass & x-ray's 防水靴 2XL") == [
        "boot",
        "glass",
        "x",
        "ray",
        "s",
        "防",
        "水",
        "靴",
        "2xl",
    ]
