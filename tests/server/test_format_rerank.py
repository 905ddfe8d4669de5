"""POST /v1/rerank and /v2/rerank.

Sources: Cohere's API reference, "v2/rerank" (and "v1/rerank" for objects, rank_fields and return_documents) and its
Python client's types V2RerankResponse and ApiMeta; vLLM, vllm/entrypoints/pooling/scoring/protocol.py (RerankRequest,
RerankResponse; top_n 0 is all); Jina's reranker API (results with `document`, usage.total_tokens);
opensearch-project/ml-commons, CohereRerankPostProcessFunction.java (casts `index` to Integer, `relevance_score` to
Double).
"""

from __future__ import annotations

import json

import pytest

from taosr1.server.errors import Refused
from taosr1.server.formats import rerank
from taosr1.server.formats.format import Answer
from taosr1.server.formats.rerank import RERANK
from taosr1.server.limits import Limits
from taosr1.serving.scorer import Score

DOCUMENTS = ["Steel mug", "LED desk lamp", "Desk lamp shade"]
GOOD = {"model": "rerank-v3.5", "query": "desk lamp", "documents": DOCUMENTS}


def test_documents_come_back_best_first_with_the_judges_scores(answered, served):
    reply = answered(RERANK, GOOD)
    scores = {result["index"]: result["relevance_score"] for result in reply["results"]}
    assert scores == pytest.approx({i: served.judge.score("desk lamp", text).score for i, text in enumerate(DOCUMENTS)})
    assert sorted(scores.values(), reverse=True) == [result["relevance_score"] for result in reply["results"]]
    assert all(set(result) == {"index", "relevance_score"} for result in reply["results"])
    assert set(reply) == {"id", "model", "results", "meta", "usage"}
    assert reply["model"] == served.name  # not the one that was asked for
    assert reply["usage"]["total_tokens"] == reply["meta"]["tokens"]["input_tokens"] > 0


def replied(served, scores: list[float], **fields: object) -> str:
    """The reply's text for documents of these scores."""
    ask = RERANK.read({"query": "q", "documents": ["d"] * len(scores), **fields}, served, Limits())
    # probs that give this score: all of it between grades 1 and 4
    found = [Score(1, "Bad", (1 - score, 0.0, 0.0, score), 1.0) for score in scores]
    return json.dumps(RERANK.reply(ask, Answer(found, (), served, 1, "x")))


def test_a_score_is_always_a_float_for_opensearch_casts_it(served):
    text = replied(served, [1.0, 0.0, 0.5])
    assert '"relevance_score": 1.0}' in text and '"relevance_score": 0.0}' in text
    for result in json.loads(text)["results"]:
        assert type(result["index"]) is int and type(result["relevance_score"]) is float


def test_equal_scores_keep_the_order_given(served):
    results = json.loads(replied(served, [0.5, 0.25, 0.5, 0.25, 0.5]))["results"]
    assert [result["index"] for result in results] == [0, 2, 4, 1, 3]


@pytest.mark.parametrize(("top_n", "count"), [(None, 3), (0, 3), (1, 1), (2, 2), (3, 3), (100, 3)])
def test_there_is_one_result_a_document_unless_top_n_says_fewer(top_n, count, served):
    results = json.loads(replied(served, [0.1, 0.9, 0.5], top_n=top_n))["results"]
    assert [result["index"] for result in results] == [1, 2, 0][:count]


def test_a_document_with_nothing_to_see_has_score_0_and_costs_the_others_nothing(answered):
    reply = answered(RERANK, {**GOOD, "documents": ["", "LED desk lamp", "\u200b", {"title": " "}, "N/A"]})
    assert [result["index"] for result in reply["results"]] == [1, 0, 2, 3, 4]
    assert [result["relevance_score"] for result in reply["results"][1:]] == [0.0] * 4
    nothing = answered(RERANK, {**GOOD, "documents": [" ", ""]})
    assert [result["relevance_score"] for result in nothing["results"]] == [0.0, 0.0]


def test_documents_are_returned_as_they_were_sent_where_that_is_asked(answered):
    documents = ["LED desk lamp", {"text": "Steel mug", "id": 7}]
    reply = answered(RERANK, {**GOOD, "documents": documents, "return_documents": True})
    shown = {result["index"]: result["document"] for result in reply["results"]}
    assert shown == {0: {"text": "LED desk lamp"}, 1: {"text": "Steel mug", "id": 7}}


@pytest.mark.parametrize(
    ("document", "rank_fields", "title", "others"),
    [
        ({"text": "LED lamp"}, None, "LED lamp", {}),
        ({"title": "LED lamp", "price": 9, "sku": "7"}, None, "LED lamp", {"price": "9"}),
        ({"title": "LED lamp", "price": 9}, ["title"], "LED lamp", {"price": ""}),
        ({"title": "LED lamp", "Farbe": "rot"}, ["title", "Farbe"], "LED lamp", {"attributes": "Farbe: rot"}),
        ({"Name des Artikels": "LED lamp", "Farbe": "rot"}, ["Name des Artikels", "Farbe"], "LED lamp",
         {"attributes": "Farbe: rot"}),
        ({"product_title": "LED lamp", "Farbe": "rot"}, ["Farbe", "product_title"], "LED lamp",
         {"attributes": "Farbe: rot"}),
    ],
)  # fmt: skip
def test_objects_are_read_by_their_columns_or_by_rank_fields(document, rank_fields, title, others, served):
    body = {**GOOD, "documents": [document], "rank_fields": rank_fields}
    pair = RERANK.read(body, served, Limits()).pairs[0]
    assert pair.title == title and {name: getattr(pair, name) for name in others} == others


@pytest.mark.parametrize("most", [1, 2, 3, 5, 8, 13, 50])
@pytest.mark.parametrize(
    "text",
    ["LED desk lamp with a dimmer and a very long arm", "Schreibtischlampe für Büro, größer", "台灯 护眼 学习 LED 灯"],
)
def test_max_tokens_per_doc_cuts_by_tokens_of_the_judges_tokenizer(text, most, served):
    tokenizer = served.judge.model.tokenizer
    body = {**GOOD, "documents": [text], "max_tokens_per_doc": most}
    ask = RERANK.read(body, served, Limits())
    cut = ask.pairs[0].title
    assert text.startswith(cut) and (not cut or len(tokenizer.encode_text(" " + cut)) <= most)
    fitting = [text[:end].strip() for end in range(len(text) + 1)]
    fitting = [start for start in fitting if not start or len(tokenizer.encode_text(" " + start)) <= most]
    assert cut == max(fitting, key=len)  # by trying every length


def test_what_is_cut_changes_the_score_and_costs_fewer_tokens(answered):
    body = {**GOOD, "documents": ["LED desk lamp with a dimmer"]}
    whole, cut = answered(RERANK, body), answered(RERANK, {**body, "max_tokens_per_doc": 1})
    assert cut["usage"]["total_tokens"] < whole["usage"]["total_tokens"]
    assert cut["results"][0]["relevance_score"] != whole["results"][0]["relevance_score"]


def test_all_shown_fields_of_an_object_share_the_tokens(served):
    body = {**GOOD, "documents": [{"title": "LED desk lamp", "price": "$19.99"}], "max_tokens_per_doc": 4}
    pair = RERANK.read(body, served, Limits()).pairs[0]
    encode = served.judge.model.tokenizer.encode_text
    assert sum(len(encode(" " + text)) for text in (pair.title, pair.price) if text) <= 4


def test_a_long_document_is_cut_and_a_long_query_is_refused(served, refusal):
    ask = RERANK.read({**GOOD, "documents": ["lamp " * 5000]}, served, Limits(max_chars=50))
    assert 0 < len(ask.pairs[0].title) <= 50
    assert refusal(RERANK, {**GOOD, "query": "x" * 51}, max_chars=50) == (
        422, "'query' has 51 characters, expected at most 50: send fewer"
    )  # fmt: skip


def test_fields_that_only_other_systems_know_are_ignored(answered):
    extra = {"priority": 3, "max_chunks_per_doc": 10, "user": "me", "truncate_prompt_tokens": -1, "overlap": None}
    extra |= {"relevant_spans": {"mode": "disabled"}}
    assert answered(RERANK, {**GOOD, **extra})["results"] == answered(RERANK, GOOD)["results"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"query": None}, "field 'query' is null"),
        ({"query": ""}, "field 'query' is empty"),
        ({"query": {"text": "lamp"}}, "field 'query' is an object of 1, expected the query as text"),
        ({"documents": None}, "field 'documents' is null, expected a list of documents"),
        ({"documents": "lamp"}, "field 'documents' is 'lamp', expected a list"),
        ({"documents": []}, "field 'documents' is empty"),
        ({"documents": ["a"] * 6}, "field 'documents' has 6 documents, expected at most 5"),
        ({"documents": ["a", 7]}, "'documents[1]' is 7, expected a title as text"),
        ({"documents": ["a", None]}, "'documents[1]' is null"),
        ({"documents": [{"content": []}]}, "'documents[0]' has 'content', expected some of title"),
        ({"documents": [{"text": ["a"]}]}, "'documents[0]': field 'title' is ['a'], expected text"),
        ({"top_n": -1}, "field 'top_n' is -1, expected a whole number of 0 or more"),
        ({"top_n": "2"}, "field 'top_n' is '2', expected a whole number"),
        ({"top_n": True}, "field 'top_n' is True, expected a whole number"),
        ({"top_n": 1.0}, "field 'top_n' is 1.0, expected a whole number"),
        ({"return_documents": "yes"}, "field 'return_documents' is 'yes'"),
        ({"max_tokens_per_doc": 0}, "field 'max_tokens_per_doc' is 0, expected a whole number of 1 or more"),
        ({"rank_fields": "title"}, "field 'rank_fields' is 'title', expected a list"),
        ({"rank_fields": []}, "field 'rank_fields' is a list of 0, expected a list"),
        ({"documents": [{"title": "a"}], "rank_fields": ["body"]}, "'documents[0]' has none of 'rank_fields': body"),
        ({"truncate_prompt_tokens": 100}, "field 'truncate_prompt_tokens' is 100, expected none"),
        ({"relevant_spans": {"mode": "enabled"}}, "field 'relevant_spans' is not supported"),
    ],
)
def test_a_wrong_field_is_refused_by_its_name(change, says, refusal):
    status, message = refusal(RERANK, {**GOOD, **change}, max_products=5)
    assert status == 422 and says in message


def test_errors_have_the_message_that_cohere_reads_and_the_fields_of_vllm():
    assert RERANK.error(Refused(429, "full", retry_after_s=1)) == {
        "object": "error", "message": "full", "type": "BadRequestError", "param": None, "code": 429
    }  # fmt: skip


def test_a_beginning_of_a_text_never_ends_inside_a_character(served):
    tokenizer = served.judge.model.tokenizer
    for most in range(12):
        assert "\ufffd" not in rerank.first_tokens(tokenizer, "灯😀é灯", most)
