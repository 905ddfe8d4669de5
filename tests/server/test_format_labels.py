"""Label probabilities as clients of vLLM and SGLang ask for them.

Sources: vllm-project/vllm, vllm/entrypoints/generate, GenerativeScoringRequest and ServingGenerativeScoring (softmax
over label_token_ids, or the full vocabulary; the score is of the first label); sgl-project/sglang,
entrypoints/openai/protocol.py and serving_score.py (ScoringRequest, ScoringResponse: a list of probabilities a item).
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from taosr1.judge import Judge
from taosr1.server.errors import Refused
from taosr1.server.formats.format import Answer
from taosr1.server.formats.label_scores import GENERATIVE_SCORING, LABEL_SCORE
from taosr1.server.limits import Limits

QUERY, ITEMS = "small camping shelter", ["Kestro pro lightweight camping shelter", "steel travel mug"]


@pytest.fixture(scope="module")
def prompts(served) -> list[list[int]]:
    from taosr1.task.judgement import Judgement

    return served.judge.model.prompts([Judgement(QUERY, title) for title in ITEMS])


@pytest.fixture(scope="module")
def labels(served) -> list[int]:
    return list(served.judge.model.tokenizer.label_ids)


@pytest.fixture(scope="module")
def first_token(served, prompts) -> torch.Tensor:
    """Probabilities of every token at the reply's first position, by one plain forward pass a prompt."""
    with torch.no_grad():
        return torch.stack(
            [served.judge.model.model(torch.tensor([ids]))[0, -1].double().softmax(-1) for ids in prompts]
        )


def test_sglang_gets_every_labels_probability_in_the_order_asked(answered, prompts, labels, first_token):
    split = len(prompts[0]) // 2
    body = {"query": [], "items": prompts, "label_token_ids": labels[::-1], "model": "any"}
    reply = answered(LABEL_SCORE, body)
    assert torch.tensor(reply["scores"]).double() == pytest.approx(first_token[:, labels[::-1]], abs=3e-6)
    assert (reply["object"], reply["usage"]["prompt_tokens"]) == ("scoring", sum(map(len, prompts)))
    one = answered(LABEL_SCORE, {**body, "query": prompts[0][:split], "items": [prompts[0][split:]]})
    assert one["scores"][0] == pytest.approx(reply["scores"][0], abs=3e-6)
    first = {"query": prompts[0][split:], "items": [prompts[0][:split]], "item_first": True}
    assert answered(LABEL_SCORE, {**body, **first})["scores"][0] == pytest.approx(reply["scores"][0], abs=3e-6)


@pytest.mark.parametrize("some", [[0, 1, 2, 3], [3], [2, 0]])
def test_with_softmax_the_labels_asked_for_share_all(some, answered, prompts, labels, first_token):
    asked = [labels[place] for place in some]
    reply = answered(LABEL_SCORE, {"query": [], "items": prompts, "label_token_ids": asked, "apply_softmax": True})
    expected = first_token[:, asked] / first_token[:, asked].sum(-1, keepdim=True)
    assert torch.tensor(reply["scores"]).double() == pytest.approx(expected, abs=3e-6)


@pytest.mark.parametrize("softmax", [None, True, False])
def test_four_calls_of_vllm_with_rotated_labels_give_all_four_probabilities(
    softmax, answered, prompts, labels, first_token
):
    found = []
    for turn in range(4):
        body = {"query": [], "items": prompts, "label_token_ids": labels[turn:] + labels[:turn]}
        reply = answered(GENERATIVE_SCORING, body if softmax is None else {**body, "apply_softmax": softmax})
        assert [(item["index"], item["object"]) for item in reply["data"]] == [(0, "score"), (1, "score")]
        found.append([item["score"] for item in reply["data"]])
    all_four = first_token[:, labels]
    expected = all_four if softmax is False else all_four / all_four.sum(-1, keepdim=True)
    assert torch.tensor(found).T.double() == pytest.approx(expected, abs=3e-6)


def test_texts_are_judged_as_query_and_products(answered, prompts, labels):
    asked = {"label_token_ids": labels, "apply_softmax": True}
    by_text = answered(LABEL_SCORE, {"query": QUERY, "items": ITEMS, **asked})
    by_tokens = answered(LABEL_SCORE, {"query": [], "items": prompts, **asked})
    assert by_text["scores"] == by_tokens["scores"]
    assert answered(LABEL_SCORE, {"query": QUERY, "items": ITEMS[0], **asked})["scores"][0] == pytest.approx(
        by_text["scores"][0], abs=3e-6
    )


def test_the_judges_temperature_scaling_is_taken_back(served, prompts, labels, first_token):
    hot = Judge(served.judge.model, temperature=2.5)
    ask = LABEL_SCORE.read({"query": [], "items": prompts, "label_token_ids": labels}, served, Limits())
    reply = LABEL_SCORE.reply(ask, Answer(hot.score_prompts(prompts), (), replace(served, judge=hot), 0, "x"))
    assert torch.tensor(reply["scores"]).double() == pytest.approx(first_token[:, labels], abs=1e-5)


@pytest.mark.parametrize("form", [GENERATIVE_SCORING, LABEL_SCORE], ids=lambda form: form.name)
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"label_token_ids": None}, "field 'label_token_ids' is null, expected some of this judge's label tokens"),
        ({"label_token_ids": []}, "field 'label_token_ids' is a list of 0"),
        ({"label_token_ids": [5]}, "field 'label_token_ids' holds 5, expected some of this judge's label tokens"),
        ({"label_token_ids": [True]}, "field 'label_token_ids' holds True"),
        ({"label_token_ids": [21.0]}, "field 'label_token_ids' holds 21.0"),
        ({"label_token_ids": ["4"]}, "field 'label_token_ids' holds '4'"),
        ({"label_token_ids": "twice"}, "field 'label_token_ids' holds a token twice"),
        ({"items": []}, "field 'items' is empty"),
        ({"items": None}, "field 'items' is null, expected a list of items"),
        ({"items": [[1], [2]] * 3}, "field 'items' has 6 items, expected at most 5"),
        ({"items": ["lamp"]}, "'items[0]' is 'lamp', expected token ids, as 'query' is"),
        ({"items": [[1.5]]}, "'items[0]' holds 1.5, expected token ids of 0 to 1023"),
        ({"items": [[True]]}, "'items[0]' holds True"),
        ({"items": [[1024]]}, "'items[0]' holds 1024"),
        ({"items": [[-1]]}, "'items[0]' holds -1"),
        ({"items": [[]], "query": []}, "the prompt of 'items[0]' has 0 tokens, expected 1 to"),
        ({"items": [[1] * 2000]}, "the prompt of 'items[0]' has 2001 tokens, expected 1 to"),
        ({"query": ["1"]}, "'query' holds '1', expected token ids"),
        ({"query": None}, "field 'query' is null, expected the query as text"),
        ({"query": "lamp"}, "'items[0]' is a list of 1, expected text, as 'query' is"),
        ({"query": "lamp", "items": ["a"], "item_first": True}, "field 'item_first' is true, expected false"),
        ({"query": "lamp", "items": ["a", ""]}, "'items[1]' is empty"),
        ({"apply_softmax": "yes"}, "field 'apply_softmax' is 'yes'"),
    ],
)
def test_a_wrong_field_is_refused_by_its_name(form, change, says, labels, refusal):
    if change.get("label_token_ids") == "twice":
        change = {"label_token_ids": [labels[0]] * 2}
    body = {"query": [7], "items": [[8], [9]], "label_token_ids": labels, **change}
    status, message = refusal(form, body, max_products=5)
    assert status == 422 and says in message
    if says.startswith("field 'label_token_ids' holds 5"):
        assert all(str(label) in message for label in labels)


def test_errors_are_worded_as_each_server_words_them():
    flat = {"object": "error", "message": "why", "type": "BadRequestError", "param": None, "code": 422}
    assert LABEL_SCORE.error(Refused(422, "why")) == flat
    assert GENERATIVE_SCORING.error(Refused(422, "why")) == {"error": flat}
