"""Every format over HTTP: its paths, its errors, and the official clients against the running server."""

from __future__ import annotations

import json

import pytest

from taosr1.judge import Judge
from taosr1.task.judgement import Judgement

QUERY, TEXTS = "small camping shelter", ["steel travel mug", "Kestro pro lightweight camping shelter cotton blue", ""]
RERANK = {"query": QUERY, "documents": TEXTS}
CHAT = {"messages": [{"role": "user", "content": f"Query: {QUERY}\n\ndoc1:\n  ---\ntitle: {TEXTS[1]}\nprice: $39\n"}]}


def test_every_path_answers_in_its_own_format(server, served):
    labels = list(served.judge.model.tokenizer.label_ids)
    by_text = {"query": QUERY, "items": TEXTS[:2], "label_token_ids": labels}
    status, score = server.ask("/score", {"query": QUERY, "products": TEXTS[:2]})
    scores = [result["score"] for result in score["results"]]
    assert status == 200 and scores == sorted(scores) and scores[0] < scores[1]
    for path in ("/v1/rerank", "/v2/rerank", "/rerank"):
        status, reply = server.ask(path, RERANK)
        assert status == 200 and [result["index"] for result in reply["results"]] == [1, 0, 2]
        assert reply["results"][0]["relevance_score"] == pytest.approx(scores[1], abs=3e-6)
    status, ranks = server.ask("/rerank", {"query": QUERY, "texts": TEXTS})
    assert status == 200 and [rank["index"] for rank in ranks] == [1, 0, 2]
    status, reply = server.ask("/v1/score", by_text)
    assert status == 200 and sum(reply["scores"][0]) == pytest.approx(score["results"][0]["label_mass"], abs=3e-6)
    status, first = server.ask("/generative_scoring", by_text)
    share = reply["scores"][1][0] / sum(reply["scores"][1])  # of the first label among the four
    assert status == 200 and first["data"][1]["score"] == pytest.approx(share, abs=3e-6)
    status, reply = server.ask("/v1/chat/completions", CHAT)
    judgment = json.loads(reply["choices"][0]["message"]["content"])
    alone = served.judge.score(QUERY, {"title": TEXTS[1], "price": "$39"})
    assert status == 200 and judgment["judgment"] == alone.grade - 1
    assert "Category: " in judgment["explanation"]


def test_prompts_as_token_ids_are_scored_as_they_are(server, served):
    prompts = served.judge.model.prompts([Judgement(QUERY, title) for title in TEXTS[:2]])
    labels = list(served.judge.model.tokenizer.label_ids)
    body = {"query": [], "items": prompts, "label_token_ids": labels, "apply_softmax": True}
    status, reply = server.ask("/v1/score", body)
    unscaled = Judge(served.judge.model, temperature=1).score_prompts(prompts)
    assert status == 200
    for found, score in zip(reply["scores"], unscaled, strict=True):
        assert found == pytest.approx(list(score.probs), abs=3e-6)


def test_a_ranking_of_nothing_to_see_is_answered_without_the_judge(server):
    status, reply = server.ask("/v1/rerank", {"query": QUERY, "documents": ["", " "]})
    assert status == 200 and [result["relevance_score"] for result in reply["results"]] == [0.0, 0.0]


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/score", {"error", "status"}),
        ("/rerank", {"error", "error_type", "message"}),
        ("/v1/rerank", {"object", "message", "type", "param", "code"}),
        ("/v1/score", {"object", "message", "type", "param", "code"}),
        ("/generative_scoring", {"error"}),
        ("/v1/chat/completions", {"error"}),
    ],
)
@pytest.mark.parametrize(("body", "status"), [(b"{not json", 400), (b"[]", 422), (b"{}", 422)])
def test_errors_are_worded_in_the_format_of_their_path(path, fields, body, status, server):
    found, reply = server.ask(path, body)
    assert found == status and set(reply) == fields
    assert "--" not in json.dumps(reply)


def test_what_is_served_is_listed(server):
    status, reply = server.ask("/v1/models")
    assert status == 200 and reply["object"] == "list"
    _, info = server.ask("/info")
    assert [(model["id"], model["object"]) for model in reply["data"]] == [(info["model"], "model")]


def test_the_client_of_cohere_reads_the_ranking(server):
    cohere = pytest.importorskip("cohere")
    client = cohere.ClientV2(api_key="none", base_url=server.url)
    reply = client.rerank(model="rerank-v3.5", query=QUERY, documents=TEXTS, top_n=2, max_tokens_per_doc=100)
    assert [result.index for result in reply.results] == [1, 0] and reply.id
    assert all(type(result.relevance_score) is float for result in reply.results)
    assert reply.meta.tokens.input_tokens > 0
    version_1 = cohere.Client(api_key="none", base_url=server.url)
    documents = [{"text": text} for text in TEXTS]
    reply = version_1.rerank(model="rerank-v3.5", query=QUERY, documents=documents, return_documents=True)
    assert [result.document.text for result in reply.results] == [TEXTS[1], TEXTS[0], ""]
    with pytest.raises(cohere.UnprocessableEntityError) as refused:
        client.rerank(model="rerank-v3.5", query="", documents=TEXTS)
    assert refused.value.body["message"].startswith("field 'query' is empty")


def test_the_client_of_openai_gets_a_judgement(server):
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(api_key="none", base_url=f"{server.url}/v1", max_retries=0)
    reply = client.chat.completions.create(model=client.models.list().data[0].id, **CHAT)
    assert set(json.loads(reply.choices[0].message.content)) == {"explanation", "judgment"}
    with pytest.raises(openai.UnprocessableEntityError, match="and no other chat"):
        client.chat.completions.create(model="any", messages=[{"role": "user", "content": "Tell me a joke"}])
