"""POST /v1/rerank and /v2/rerank as Cohere, Jina and vLLM have it: documents with their scores, best first.

Written after Cohere's API version 2 (and the objects, `rank_fields` and `return_documents` of its version 1), Jina's
reranker API and vLLM's rerank protocol. Choices, where they differ or are silent:

- relevance_score is our `score`, the expected grade brought to [0, 1]; always a JSON float, for OpenSearch casts it.
- There is one result for every document unless top_n says fewer; 0 means all, as in vLLM. Equal scores keep the order
  given. A document with nothing to see in it (an empty field of an index) has score 0.0 and is not judged: one such
  document must not cost the ranking of all others.
- Documents are strings, or objects: a product's columns, or "text" as its title. `rank_fields` are the fields of
  objects that are read; one that is none of a product's columns is read as an attribute of that name.
- A document is cut to `max_tokens_per_doc` tokens of the judge's tokenizer, fields in the judge's order, and before
  that to the server's `max_chars`; Cohere cuts, too. A query that is too long is refused.
- `model` may have any value: one judge is served, and the reply names it. `documents` come back only with
  `return_documents`, as they were sent. Fields that are not known are ignored, as those systems do, but not what asks
  for something that this server would get wrong: `truncate_prompt_tokens` and `relevant_spans`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from taosr1.server.errors import Refused
from taosr1.server.formats.fields import (
    columns_of,
    flag_of,
    list_of,
    object_of,
    product_of,
    query_of,
    shown,
    whole_of,
)
from taosr1.server.formats.format import Answer, Ask, Format
from taosr1.server.limits import Limits
from taosr1.server.served import Served
from taosr1.task.judgement import Judgement
from taosr1.task.prompt import count_tokens

MAX_TOKENS_PER_DOC = 4096  # Cohere's default


def read(body: Any, served: Served, limits: Limits) -> Ask:
    body = object_of(body, "query and documents")
    query = query_of(body, limits)
    documents = list_of(body, "documents", limits, "documents")
    _refuse_what_would_be_wrong(body)
    most = whole_of(body, "max_tokens_per_doc", 1) or MAX_TOKENS_PER_DOC
    rank_fields = _rank_fields(body)
    found = []
    for place, document in enumerate(documents):
        name = f"documents[{place}]"
        if isinstance(document, dict) and rank_fields:
            document = _ranked_fields(document, rank_fields, name)
        pair = product_of(query, document, name, limits, cut=True)
        found.append(pair and cut_to_tokens(pair, served, most))
    top_n = whole_of(body, "top_n", 0) or len(documents)
    kept = documents if flag_of(body, "return_documents") else None
    return asked(found, top_n=top_n, documents=kept)


def asked(found: Sequence[Judgement | None], **options: Any) -> Ask:
    """The pairs to score, and the places of all documents in them: None for one with nothing to see."""
    pairs = [pair for pair in found if pair is not None]
    numbers = iter(range(len(pairs)))
    return Ask(pairs, options={"places": [None if pair is None else next(numbers) for pair in found], **options})


def document_scores(ask: Ask, answer: Answer) -> list[float]:
    """A score in [0, 1] for every document of a request, in the order given."""
    places = ask.options["places"]
    return [0.0 if place is None else float(answer.scores[place].score) for place in places]


def best_first(scores: Sequence[float]) -> list[int]:
    """The places of the documents, best score first; of equal ones the one that was given first."""
    return sorted(range(len(scores)), key=lambda place: -scores[place])


def reply(ask: Ask, answer: Answer) -> dict:
    scores, documents = document_scores(ask, answer), ask.options["documents"]
    results = []
    for place in best_first(scores)[: ask.options["top_n"]]:
        result = {"index": place, "relevance_score": scores[place]}
        if documents is not None:
            document = documents[place]
            result["document"] = {"text": document} if isinstance(document, str) else document
        results.append(result)
    meta = {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}}
    usage = {"prompt_tokens": answer.tokens, "total_tokens": answer.tokens}
    meta["tokens"] = {"input_tokens": answer.tokens, "output_tokens": 0}
    return {"id": answer.id, "model": answer.served.name, "results": results, "meta": meta, "usage": usage}


def error(refused: Refused) -> dict:
    """Cohere's clients read `message`, vLLM's all of it."""
    kind = "BadRequestError" if refused.status < 500 else "InternalServerError"
    return {"object": "error", "message": refused.message, "type": kind, "param": None, "code": refused.status}


def cut_to_tokens(pair: Judgement, served: Served, most: int) -> Judgement:
    """The pair with its product's shown fields cut to so many tokens in all, first fields first."""
    model, left, cut = served.judge.model, most, {}
    # The prompt shows no more than max_chars of a field, so no more is tokenised.
    texts = {name: getattr(pair, name).strip()[: model.prompt.max_chars] for name in model.prompt.columns}
    # A token has a byte or more, so most documents need not be tokenised to be found short enough.
    if sum(len(text.encode()) + 1 for text in texts.values()) <= most:
        return pair
    for name, text in texts.items():
        cut[name] = first_tokens(model.tokenizer, text, left)
        left -= count_tokens(model.tokenizer, cut[name])
    return replace(pair, **cut)


def first_tokens(tokenizer, text: str, most: int) -> str:
    """The longest beginning of a text that is at most so many tokens, in a prompt, where a space is before it."""
    if count_tokens(tokenizer, text) <= most:
        return text
    fits, too_long = 0, len(text)  # characters; found by halving, as a longer beginning hardly ever has fewer tokens
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        if count_tokens(tokenizer, text[:middle]) <= most:
            fits = middle
        else:
            too_long = middle
    return text[:fits].strip()


def _refuse_what_would_be_wrong(body: dict) -> None:
    limit = body.get("truncate_prompt_tokens")
    if limit not in (None, -1):
        message = f"field 'truncate_prompt_tokens' is {shown(limit)}, expected none: the prompt is cut by fields"
        raise Refused(422, f"{message}, 'max_tokens_per_doc' limits the tokens of a document")
    spans = body.get("relevant_spans")
    if isinstance(spans, dict) and spans.get("mode") not in (None, "disabled"):
        raise Refused(422, "field 'relevant_spans' is not supported: this judge scores whole documents, leave it out")


def _rank_fields(body: dict) -> list[str]:
    value = body.get("rank_fields")
    if value is None:
        return []
    if not isinstance(value, list) or not value or not all(isinstance(name, str) for name in value):
        raise Refused(422, f"field 'rank_fields' is {shown(value)}, expected a list of names of documents' fields")
    return value


def _ranked_fields(document: dict, rank_fields: list[str], name: str) -> dict:
    """The fields of a document that are to be read; those that are no columns of a product as attributes."""
    kept = {field: document[field] for field in rank_fields if field in document}
    if not kept:
        raise Refused(422, f"{name!r} has none of 'rank_fields': {', '.join(rank_fields)[:100]}")
    known, others = {}, {}
    for field, value in kept.items():
        try:
            columns_of({field: value}, name)
            known[field] = value
        except Refused:
            others[field] = value
    if others and not (known and "title" in columns_of(known, name)):
        first = next(iter(others))
        known["title"] = others.pop(first)
    return {**known, "attributes": others} if others else known


RERANK = Format("rerank", ("/v1/rerank", "/v2/rerank"), read, reply, error)
