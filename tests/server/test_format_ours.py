"""Our own format, POST /score and POST /explain, field by field."""

from __future__ import annotations

from dataclasses import replace

import pytest

from taosr1.server.errors import Refused
from taosr1.server.formats import ours
from taosr1.server.limits import Limits
from taosr1.serving.inputs import judgements_of

PRODUCTS = ["LED desk lamp", {"title": "Steel mug", "price": "$9.50"}]
GOOD = {"query": "desk lamp", "products": PRODUCTS}


def test_every_product_has_what_the_judge_says_about_it(answered, served):
    reply = answered(ours.SCORE, GOOD)
    assert list(reply) == ["id", "results", "model", "model_sha", "rubric", "beta", "temperature"]
    for place, (result, product) in enumerate(zip(reply["results"], PRODUCTS, strict=True)):
        alone = served.judge.score("desk lamp", product)
        assert result["index"] == place and result["grade"] == alone.grade and result["tier"] == alone.tier
        assert result["score"] == pytest.approx(alone.score, abs=3e-6)
        assert result["probs"] == pytest.approx(alone.probs, abs=3e-6)
        assert set(result) == {"index", "grade", "tier", "score", "probs", "label_mass", "outside"}
    assert (reply["model"], reply["rubric"]) == (served.name, served.rubric_sha)


def test_an_explanation_has_five_steps_and_notes(answered):
    products = [
        {"title": "Kestro pro lightweight camping shelter cotton blue", "price": "$39"},
        {"title": "raincoat Alder"},
    ]
    body = {"query": "small camping shelter", "products": products}
    reply = answered(ours.SCORE, {**body, "explain": True, "rubric": None, "judge": ""})
    for result in reply["results"]:
        assert list(result["explanation"]) == ["query", "item", "category", "attributes", "decision", "notes"]
    assert all(reply["results"][0]["explanation"][step] for step in ("query", "item", "category", "decision"))


@pytest.mark.parametrize(
    "product",
    [
        "LED desk lamp",
        {"title": "LED desk lamp"},
        {"Product Title": "LED desk lamp", "url": "https://example.com"},
        {"name": "LED desk lamp"},
        {"text": "LED desk lamp"},
        {"text": "a page about lamps", "title": "LED desk lamp"},
        {"title": "LED desk lamp", "product_name": "another name gives way to ours"},
    ],
)
def test_a_product_is_a_title_or_columns_by_the_names_that_the_readers_know(product, served):
    ask = ours.SCORE.read({"query": "desk lamp", "products": [product]}, served, Limits())
    assert ask.pairs[0].title == "LED desk lamp"


def test_columns_become_the_text_that_a_data_file_gives(served):
    product = {
        "item_title": "Kettle", "brand": {"name": "Bruno"}, "price": {"amount": 30, "currency": "EUR"},
        "category_path": ["home", "kitchen"], "attributes": {"colour": "red", "sizes": ["S", "M"]}, "desc": "hot",
    }  # fmt: skip
    pair = ours.SCORE.read({"query": "kettle", "products": [product]}, served, Limits()).pairs[0]
    by_front_door = judgements_of("kettle", [product])[0][0]
    assert pair == replace(by_front_door, extra={}) and by_front_door.category == "home > kitchen"


@pytest.mark.parametrize(
    ("change", "status", "says"),
    [
        ({"query": None}, 422, "field 'query' is null, expected the query as text"),
        ({"query": 5}, 422, "field 'query' is 5"),
        ({"query": " \u200b\n"}, 422, "field 'query' is empty"),
        ({"query": "x" * 101}, 422, "'query' has 101 characters, expected at most 100"),
        ({"products": None}, 422, "field 'products' is null, expected a list of products"),
        ({"products": "LED lamp"}, 422, "field 'products' is 'LED lamp', expected a list"),
        ({"products": []}, 422, "field 'products' is empty"),
        ({"products": ["a"] * 6}, 422, "field 'products' has 6 products, expected at most 5"),
        ({"products": ["a", None]}, 422, "'products[1]' is null, expected a title as text, or an object"),
        ({"products": [3.5]}, 422, "'products[0]' is 3.5, expected a title"),
        ({"products": [["a"]]}, 422, "'products[0]' is a list of 1"),
        ({"products": ["a", "\u200b"]}, 422, "'products[1]' is empty"),
        ({"products": ["nan"]}, 422, "'products[0]' is empty"),
        ({"products": [{}]}, 422, "'products[0]' has no fields, expected some of title, brand"),
        ({"products": [{"sku": "7"}]}, 422, "'products[0]' has 'sku', expected some of title"),
        ({"products": [{"title": ["a"]}]}, 422, "'products[0]': field 'title' is ['a'], expected text"),
        ({"products": [{"title": True}]}, 422, "'products[0]': field 'title' is True, expected text"),
        ({"products": [{"title": "x" * 101}]}, 422, "'products[0].title' has 101 characters"),
        ({"products": [{"Product Title": "a", "item_name": "b"}]}, 422, "could both be its title"),
        ({"products": [{"esci_label": "E", "query": "other"}]}, 422, "'products[0]' has 'esci_label', 'query'"),
        ({"products": ["a"] * 4, "explain": True}, 422, "has 4 products, expected at most 3 with 'explain': true"),
        ({"explain": "yes"}, 422, "field 'explain' is 'yes', expected true or false"),
        ({"explain": 1}, 422, "field 'explain' is 1, expected true or false"),
        ({"rubric": 7}, 422, "field 'rubric' is 7, expected text"),
        ({"judge": "another"}, 422, "field 'judge' is 'another', expected 'compare'"),
        ({"judge": []}, 422, "field 'judge' is a list of 0, expected text"),
        ({"explian": True}, 422, "field 'explian' is not known (perhaps 'explain'), expected query, products, explain"),
    ],
)
def test_a_wrong_field_is_refused_by_its_name(change, status, says, refusal):
    found = refusal(ours.SCORE, {**GOOD, **change}, max_products=5, max_explained=3, max_chars=100)
    assert found[0] == status and says in found[1], found


@pytest.mark.parametrize("body", [None, [], "text", 5, True])
def test_a_body_that_is_no_object_is_refused(body, refusal):
    status, message = refusal(ours.SCORE, body)
    assert status == 422 and message.endswith("expected an object with query and products")


@pytest.mark.parametrize("name", ["query", "products"])
def test_a_missing_field_is_named(name, refusal):
    assert refusal(ours.SCORE, {key: value for key, value in GOOD.items() if key != name}) == (
        422, f"field {name!r} is missing, expected {'the query as text' if name == 'query' else 'a list of products'}"
    )  # fmt: skip


def test_judge_and_rubric_are_handed_on(served):
    ask = ours.SCORE.read({**GOOD, "judge": "compare", "rubric": "1" * 16}, served, Limits())
    assert (ask.judge, ask.rubric) == ("compare", "1" * 16)
    ask = ours.SCORE.read({**GOOD, "judge": None, "rubric": None}, served, Limits())
    assert (ask.judge, ask.rubric) == ("", "")


def test_a_request_for_reasons_has_one_product(served):
    ask = ours.read_explain({"query": "desk lamp", "product": {"title": "LED desk lamp"}}, served, Limits())
    assert ask.explain and [pair.title for pair in ask.pairs] == ["LED desk lamp"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"query": "lamp"}, "field 'product' is missing"),
        ({"query": "lamp", "product": " "}, "field 'product' is empty"),
        ({"query": "lamp", "product": ["a"]}, "'product' is a list of 1, expected a title"),
        ({"query": "lamp", "products": ["a"]}, "field 'products' is not known (perhaps 'product')"),
    ],
)
def test_a_wrong_request_for_reasons_is_refused(body, says, served):
    with pytest.raises(Refused) as caught:
        ours.read_explain(body, served, Limits())
    assert caught.value.status == 422 and says in caught.value.message


def test_text_that_cannot_be_encoded_is_replaced_and_the_rest_is_kept(served):
    ask = ours.SCORE.read({"query": "lamp \ud800", "products": ["a\x00b", "\u202eevil"]}, served, Limits())
    assert ask.pairs[0].query == "lamp \ufffd"
    assert [pair.title for pair in ask.pairs] == ["a\ufffdb", "\u202eevil"]
