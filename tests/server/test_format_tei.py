"""POST /rerank as Text Embeddings Inference has it, and as clients of Cohere and vLLM post it.

Sources: huggingface/text-embeddings-inference, router/src/http/types.rs (RerankRequest, Rank, TruncationDirection) and
router/src/http/server.rs (best first; `texts` empty is 400 and "empty", more than max_client_batch_size is 413 and
"validation"; 422 "tokenizer", 424 "backend", 429 "overloaded", 503 "unhealthy").
"""

from __future__ import annotations

import math

import pytest

from taosr1.server.errors import Refused
from taosr1.server.formats.rerank import RERANK
from taosr1.server.formats.tei import TEI, logit
from taosr1.server.limits import Limits

TEXTS = ["Steel mug", "LED desk lamp", "Desk lamp shade"]
GOOD = {"query": "desk lamp", "texts": TEXTS}


def test_the_reply_is_a_bare_list_best_first(answered, served):
    ranks = answered(TEI, GOOD)
    scores = {rank["index"]: rank["score"] for rank in ranks}
    assert scores == pytest.approx({i: served.judge.score("desk lamp", text).score for i, text in enumerate(TEXTS)})
    assert [rank["score"] for rank in ranks] == sorted(scores.values(), reverse=True)
    assert all(list(rank) == ["index", "score"] and type(rank["score"]) is float for rank in ranks)


def test_texts_come_back_with_return_text(answered):
    ranks = answered(TEI, {**GOOD, "return_text": True, "truncate": None, "raw_scores": False})
    assert {rank["index"]: rank["text"] for rank in ranks} == dict(enumerate(TEXTS))


def test_the_sigmoid_of_a_raw_score_is_the_score(answered):
    ranks, raw = answered(TEI, GOOD), answered(TEI, {**GOOD, "raw_scores": True})
    assert [rank["index"] for rank in raw] == [rank["index"] for rank in ranks]
    for rank, other in zip(ranks, raw):
        assert 1 / (1 + math.exp(-other["score"])) == pytest.approx(rank["score"], abs=3e-6)
    assert logit(0.5) == 0 and -17 < logit(0.0) < -16 and 16 < logit(1.0) < 17


def test_a_text_with_nothing_to_see_has_score_0(answered):
    ranks = answered(TEI, {"query": "desk lamp", "texts": ["", "LED desk lamp"]})
    assert (ranks[1]["index"], ranks[1]["score"]) == (0, 0.0)


@pytest.mark.parametrize(
    ("direction", "kept"), [(None, "abcde"), ("Right", "abcde"), ("right", "abcde"), ("Left", "fghij")]
)
def test_a_long_text_is_cut_at_the_side_that_truncation_direction_says(direction, kept, served):
    fields = {} if direction is None else {"truncation_direction": direction}
    ask = TEI.read({"query": "q", "texts": ["abcdefghij"], "truncate": True, **fields}, served, Limits(max_chars=5))
    assert ask.pairs[0].title == kept


@pytest.mark.parametrize(
    ("change", "status", "kind", "says"),
    [
        ({"texts": []}, 400, "empty", "field 'texts' is empty"),
        ({"query": " "}, 400, "empty", "field 'query' is empty"),
        ({"texts": ["a"] * 6}, 413, "validation", "field 'texts' has 6 texts, expected at most 5"),
        ({"query": None}, 422, "validation", "field 'query' is null"),
        ({"texts": None}, 422, "validation", "field 'texts' is null, expected a list of texts"),
        ({"texts": "lamp"}, 422, "validation", "field 'texts' is 'lamp'"),
        ({"texts": ["a", {"text": "b"}]}, 422, "validation", "'texts[1]' is an object of 1, expected text"),
        ({"texts": ["a", 5]}, 422, "validation", "'texts[1]' is 5"),
        ({"texts": ["x" * 51]}, 422, "validation", "'texts[0]' has 51 characters, expected at most 50"),
        ({"raw_scores": "no"}, 422, "validation", "field 'raw_scores' is 'no'"),
        ({"return_text": 1}, 422, "validation", "field 'return_text' is 1"),
        ({"truncate": "yes"}, 422, "validation", "field 'truncate' is 'yes'"),
        ({"truncation_direction": "up"}, 422, "validation", "field 'truncation_direction' is 'up'"),
        ({"truncation_direction": None}, 422, "validation", "field 'truncation_direction' is null"),
    ],
)
def test_a_wrong_request_has_teis_status_and_error_type(change, status, kind, says, refusal):
    found = refusal(TEI, {**GOOD, **change}, max_products=5, max_chars=50)
    assert found[0] == status and says in found[1]
    assert TEI.error(Refused(*found)) == {"error": found[1], "error_type": kind, "message": found[1]}


@pytest.mark.parametrize(
    ("status", "kind"), [(413, "validation"), (429, "overloaded"), (503, "unhealthy"), (401, "validation")]
)
def test_what_the_server_refuses_has_teis_error_type(status, kind):
    assert TEI.error(Refused(status, "why"))["error_type"] == kind


def test_documents_on_this_path_are_cohere_and_vllms(answered, refusal):
    body = {"model": "any", "query": "desk lamp", "documents": TEXTS, "top_n": 2}
    assert answered(TEI, body) == answered(RERANK, body)
    assert refusal(TEI, {"query": "desk lamp"})[1] == "field 'texts' is missing, expected a list of texts"
    assert refusal(TEI, {"query": "desk lamp", "documents": []})[0] == 422
