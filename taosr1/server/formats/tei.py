"""POST /rerank as Text Embeddings Inference has it: {query, texts, ...} -> a bare list {index, score, text?}.

Written after the router of huggingface/text-embeddings-inference (router/src/http/types.rs and server.rs). Clients of
vLLM and Cohere post to /rerank, too; their `documents` make it theirs, and the reply is that of rerank.py. Choices:

- raw_scores: TEI gives the number whose sigmoid is the score, so this is the logit of ours, cut to +-16.
- truncate: with true a text longer than the server's `max_chars` is cut at its end, or at its beginning with
  truncation_direction "Left"; else it is refused, as TEI does. What the judge's prompt has no room for is never shown.
- A text with nothing to see in it has score 0.0 and is not judged.
- Statuses and error types are TEI's: 400 empty, 413 validation (too many texts, too large a body), 422 tokenizer, 429
  overloaded, 503 unhealthy. Where TEI answers a wrong field with 422 and no JSON, this is 422 and validation.
"""

from __future__ import annotations

import math
from typing import Any

from taosr1.server.errors import Refused
from taosr1.server.formats import rerank
from taosr1.server.formats.fields import flag_of, list_of, object_of, product_of, query_of, shown
from taosr1.server.formats.format import Answer, Ask, Format
from taosr1.server.limits import Limits
from taosr1.server.served import Served

ERROR_TYPES = {400: "empty", 424: "backend", 429: "overloaded", 500: "backend", 503: "unhealthy"}  # else validation
LEAST = 1e-7  # of a score and of its distance from 1, so that its logit is finite


def read(body: Any, served: Served, limits: Limits) -> Ask:
    body = object_of(body, "query and texts")
    if "documents" in body and "texts" not in body:
        return rerank.read(body, served, limits)
    query = query_of(body, limits, empty=400)
    texts = list_of(body, "texts", limits, "texts", empty=400, many=413)
    truncate, right = flag_of(body, "truncate"), _direction(body) == "right"
    found = []
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise Refused(422, f"'texts[{place}]' is {shown(text)}, expected text")
        shorter = text if right or not truncate else text[-limits.max_chars :]
        found.append(product_of(query, shorter, f"texts[{place}]", limits, cut=truncate))
    kept = texts if flag_of(body, "return_text") else None
    return rerank.asked(found, texts=kept, raw=flag_of(body, "raw_scores"))


def _direction(body: dict) -> str:
    value = body.get("truncation_direction", "right")
    if isinstance(value, str) and value.lower() in ("left", "right"):
        return value.lower()
    raise Refused(422, f"field 'truncation_direction' is {shown(value)}, expected 'left' or 'right'")


def reply(ask: Ask, answer: Answer) -> Any:
    if "texts" not in ask.options:
        return rerank.reply(ask, answer)
    scores, texts = rerank.document_scores(ask, answer), ask.options["texts"]
    shown_scores = [logit(score) for score in scores] if ask.options["raw"] else scores
    ranks = [{"index": place, "score": shown_scores[place]} for place in rerank.best_first(scores)]
    return ranks if texts is None else [{**rank, "text": texts[rank["index"]]} for rank in ranks]


def logit(score: float) -> float:
    """The number whose sigmoid is the score."""
    inside = min(max(score, LEAST), 1 - LEAST)
    return math.log(inside) - math.log1p(-inside)


def error(refused: Refused) -> dict:
    """TEI's fields, and Cohere's and vLLM's `message` for their clients, who share the path."""
    kind = ERROR_TYPES.get(refused.status, "validation")
    return {"error": refused.message, "error_type": kind, "message": refused.message}


TEI = Format("tei", ("/rerank",), read, reply, error)
