"""Our own format: POST /score {query, products: [title or columns], explain?, rubric?}."""

from __future__ import annotations

from typing import Any

from taosr1.server.errors import Refused
from taosr1.server.formats.format import Answer, Ask, Format
from taosr1.server.limits import Limits
from taosr1.server.served import Served
from taosr1.serving.explain import Explanation
from taosr1.serving.inputs import judgements_of


def read(body: Any, served: Served, limits: Limits) -> Ask:
    if not isinstance(body, dict):
        raise Refused(422, "the body is not a JSON object, expected {query, products}")
    products = body.get("products")
    if not isinstance(products, list):
        raise Refused(422, "field 'products' is missing, expected a list of titles or objects")
    try:
        pairs, _ = judgements_of(body.get("query"), products)
    except ValueError as error:
        raise Refused(422, str(error)) from error
    return Ask(pairs, explain=bool(body.get("explain")), judge=body.get("judge", ""), rubric=body.get("rubric", ""))


def reply(ask: Ask, answer: Answer) -> dict:
    results = [{"index": place, **vars(score)} for place, score in enumerate(answer.scores)]
    for result, explanation in zip(results, answer.explanations):
        result["explanation"] = explained(explanation)
    return {"id": answer.id, "results": results, **answer.served.facts()}


def explained(found: Explanation) -> dict:
    """The five steps as fields, and what is odd about them."""
    steps = ("query", "item", "category", "attributes", "decision")
    return {**{name: getattr(found, name) for name in steps}, "notes": found.notes}


def error(refused: Refused) -> dict:
    return {"error": refused.message, "status": refused.status}


SCORE = Format("score", ("/score",), read, reply, error)
