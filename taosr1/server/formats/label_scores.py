"""Probabilities of label tokens, as clients of vLLM and SGLang ask for them, for the four labels of our grades.

- vLLM's POST /generative_scoring (vllm/entrypoints/generate): {query, items, label_token_ids, apply_softmax = true,
  item_first} -> {data: [{index, score}]}, the probability of the first label.
- SGLang's POST /v1/score (ScoringRequest): the same with apply_softmax = false -> {scores: [[...], ...]}, one for
  every label in the order of label_token_ids.

With apply_softmax the labels asked for share a probability of 1, else each has its probability in the full vocabulary.
label_token_ids are some of the judge's four label tokens, in any order. Choices:

- query and items as token ids are joined and scored as they are: a whole prompt of the judge, as these servers take
  it. As text they are a query and products, and the judge's own prompt is put around them, in which no text can become
  a control token; vLLM and SGLang would join the bare texts.
- Probabilities are the model's own, as those servers give them: the judge's temperature scaling is taken back.
- A prompt that is too long is refused; vLLM would cut it and answer.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from taosr1.server.errors import Refused
from taosr1.server.formats.fields import flag_of, list_of, object_of, products_of, query_of, shown
from taosr1.server.formats.format import Answer, Ask, Format
from taosr1.server.limits import Limits
from taosr1.server.served import Served
from taosr1.serving.scorer import Score
from taosr1.task.grades import LABELS
from taosr1.task.prompt import prompt_room


def read_vllm(body: Any, served: Served, limits: Limits) -> Ask:
    return _read(body, served, limits, softmax=True)


def read_sglang(body: Any, served: Served, limits: Limits) -> Ask:
    if isinstance(body, dict) and isinstance(body.get("items"), str):
        body = {**body, "items": [body["items"]]}  # SGLang takes one text, too
    return _read(body, served, limits, softmax=False)


def _read(body: Any, served: Served, limits: Limits, *, softmax: bool) -> Ask:
    body = object_of(body, "query, items and label_token_ids")
    labels = _labels(body, served)
    options = {"labels": labels, "softmax": flag_of(body, "apply_softmax", softmax)}
    items = list_of(body, "items", limits, "items")
    item_first = flag_of(body, "item_first")
    if isinstance(body.get("query"), list):
        query = _tokens(body["query"], "query", served)
        prompts = []
        for place, item in enumerate(items):
            item = _tokens(item, f"items[{place}]", served)
            prompts.append(_fitting(item + query if item_first else query + item, place, served))
        return Ask((), prompts, options=options)
    if item_first:
        raise Refused(422, "field 'item_first' is true, expected false: the judge's prompt has the query first")
    query = query_of(body, limits)
    for place, item in enumerate(items):
        if not isinstance(item, str):
            raise Refused(422, f"'items[{place}]' is {shown(item)}, expected text, as 'query' is")
    return Ask(products_of(query, items, "items", limits), options=options)


def _labels(body: dict, served: Served) -> list[int]:
    """The places among the four labels of the label tokens that are asked for."""
    known = list(served.judge.model.tokenizer.label_ids)
    value = body.get("label_token_ids")
    names = ", ".join(f"{number} ({label!r})" for number, label in zip(known, LABELS))
    expected = f"expected some of this judge's label tokens {names}, each once"
    if "label_token_ids" not in body:
        raise Refused(422, f"field 'label_token_ids' is missing, {expected}")
    if not isinstance(value, list) or not value:
        raise Refused(422, f"field 'label_token_ids' is {shown(value)}, {expected}")
    for number in value:
        if type(number) is not int or number not in known:
            raise Refused(422, f"field 'label_token_ids' holds {shown(number)}, {expected}")
    if len(set(value)) < len(value):
        raise Refused(422, f"field 'label_token_ids' holds a token twice, {expected}")
    return [known.index(number) for number in value]


def _tokens(value: Any, name: str, served: Served) -> list[int]:
    size = served.judge.model.model.config.vocab_size
    if not isinstance(value, list):
        raise Refused(422, f"{name!r} is {shown(value)}, expected token ids, as 'query' is")
    for number in value:
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < size:
            raise Refused(422, f"{name!r} holds {shown(number)}, expected token ids of 0 to {size - 1}")
    return value


def _fitting(prompt: list[int], place: int, served: Served) -> list[int]:
    most = prompt_room(served.judge.model.model.config.max_position_embeddings)
    if not 1 <= len(prompt) <= most:
        raise Refused(422, f"the prompt of 'items[{place}]' has {len(prompt)} tokens, expected 1 to {most}")
    return prompt


def probabilities(score: Score, labels: Sequence[int], *, softmax: bool, temperature: float) -> list[float]:
    """The model's probability of each of these labels, at temperature 1.

    score: scaled by `temperature`, so that its probabilities are in proportion to the model's to the power of
    1 / temperature. softmax: of these labels alone, else of the whole vocabulary.
    """
    unscaled = [probability**temperature for probability in score.probs]
    asked = [unscaled[label] for label in labels]
    total = sum(asked) if softmax else sum(unscaled)
    share = 1.0 if softmax else score.label_mass
    return [share * value / total if total else share / len(labels) for value in asked]


def _of_all(ask: Ask, answer: Answer) -> list[list[float]]:
    how = {"softmax": ask.options["softmax"], "temperature": answer.served.judge.temperature}
    return [probabilities(score, ask.options["labels"], **how) for score in answer.scores]


def _usage(answer: Answer) -> dict[str, int]:
    return {"prompt_tokens": answer.tokens, "total_tokens": answer.tokens, "completion_tokens": 0}


def reply_vllm(ask: Ask, answer: Answer) -> dict:
    found = [probs[0] for probs in _of_all(ask, answer)]
    data = [{"index": place, "object": "score", "score": score} for place, score in enumerate(found)]
    head = {"id": f"generative-scoring-{answer.id}", "object": "list", "created": int(time.time())}
    return {**head, "model": answer.served.name, "data": data, "usage": _usage(answer)}


def reply_sglang(ask: Ask, answer: Answer) -> dict:
    head = {"object": "scoring", "model": answer.served.name}
    return {**head, "scores": _of_all(ask, answer), "usage": _usage(answer)}


def error_vllm(refused: Refused) -> dict:
    """As vLLM words errors: inside of `error`."""
    return {"error": error_sglang(refused)}


def error_sglang(refused: Refused) -> dict:
    """As SGLang words errors: flat."""
    kind = "BadRequestError" if refused.status < 500 else "InternalServerError"
    return {"object": "error", "message": refused.message, "type": kind, "param": None, "code": refused.status}


GENERATIVE_SCORING = Format("generative_scoring", ("/generative_scoring",), read_vllm, reply_vllm, error_vllm)
LABEL_SCORE = Format("label_score", ("/v1/score",), read_sglang, reply_sglang, error_sglang)
