"""Our own format.

POST /score {query, products: [title or columns], explain?, rubric?, judge?} -> {id, results: [{index, grade, tier,
score, probs, label_mass, outside, explanation?}], model, model_sha, rubric, beta, temperature}, in the order given.
POST /explain {query, product, rubric?, judge?} asks for one product, streamed.

Choice: a field that is not known is refused, since a misspelt "explain" would silently have no effect. The other
systems' formats ignore what they do not know, as those systems do.
"""

from __future__ import annotations

from typing import Any

from taosr1.server.errors import Refused
from taosr1.server.formats.fields import (
    flag_of,
    list_of,
    object_of,
    product_of,
    products_of,
    query_of,
    refuse_unknown,
    word_of,
)
from taosr1.server.formats.format import Answer, Ask, Format
from taosr1.server.limits import Limits
from taosr1.server.served import Served
from taosr1.serving.explain import Explanation

COMPARE = "compare"  # the second judge


def read(body: Any, served: Served, limits: Limits) -> Ask:
    """POST /score. Whether `judge` is there and has this `rubric` is checked where it is chosen."""
    body = object_of(body, "query and products")
    refuse_unknown(body, ("query", "products", "explain", "rubric", "judge"))
    query = query_of(body, limits)
    products = list_of(body, "products", limits, "products")
    explain = flag_of(body, "explain")
    if explain and len(products) > limits.max_explained:
        limit = f"expected at most {limits.max_explained} with 'explain': true"
        raise Refused(422, f"field 'products' has {len(products)} products, {limit}: send several requests")
    return Ask(products_of(query, products, "products", limits), explain=explain, **_judge(body))


def read_explain(body: Any, served: Served, limits: Limits) -> Ask:
    """POST /explain."""
    body = object_of(body, "query and product")
    refuse_unknown(body, ("query", "product", "rubric", "judge"))
    query = query_of(body, limits)
    if "product" not in body:
        raise Refused(422, "field 'product' is missing, expected a title as text, or an object with a title")
    pair = product_of(query, body["product"], "product", limits)
    if pair is None:
        raise Refused(422, "field 'product' is empty, expected a title as text, or an object with a title")
    return Ask([pair], explain=True, **_judge(body))


def _judge(body: dict) -> dict[str, str]:
    judge = word_of(body, "judge")
    if judge not in ("", COMPARE):
        raise Refused(422, f"field 'judge' is {judge[:60]!r}, expected {COMPARE!r} for the second judge, or none")
    return {"judge": judge, "rubric": word_of(body, "rubric")}


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
