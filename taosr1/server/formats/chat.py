"""POST /v1/chat/completions for two programs that ask a language model for judgements; anything else is refused.

- Quepid's LLM judge (o19s/quepid, app/services/llm_judge_adapters): the user's message is a list with the text
  "Query: ...", an empty line, "doc1:" and the document's fields as YAML, and perhaps an image. The reply is the JSON
  {"explanation", "judgment"}. The judgment is on the book's rating scale, which Quepid states in its system prompt,
  else 0 to 3: the grade less 1.
- OpenSearch's search-relevance workbench (opensearch-project/search-relevance, MLConstants and UserPromptFactory):
  "SearchText - ...; Hits - [{"id", "source"}, ...]". The reply is the JSON [{"id", "rating_score"}, ...], one for every
  hit in the order given, or {"ratings": [...]} where the prompt or response_format asks for it. A rating is our score
  in [0, 1], or RELEVANT for the tier Good and IRRELEVANT for the others, or 1 to 5 for older versions' scale.

Choices: a scale of four values takes the grade, one of two the tier, another one the nearest step to the score. A
document is read by its product's columns; one without any of them is shown whole, its first field as the title. Its
texts are cut to the server's `max_chars`.
Images, the rest of the prompt and settings such as temperature have no effect: the judge has its own prompt. A
reference answer is not shown to it.
"""

from __future__ import annotations

import json
import re
import time
from itertools import islice
from typing import Any

from taosr1.server.bodies import parse_json
from taosr1.server.errors import Refused
from taosr1.server.formats import rerank
from taosr1.server.formats.fields import columns_of, flag_of, object_of, product_of, query_of, shown, whole_of
from taosr1.server.formats.format import Answer, Ask, Format
from taosr1.server.formats.yaml_fields import read_yaml
from taosr1.server.limits import Limits
from taosr1.server.served import Served
from taosr1.serving.explain import Explanation
from taosr1.serving.scorer import Score
from taosr1.task.grades import GOOD_TIER, GRADES, grade_name

# Linear in the text's length: nothing that may repeat stands before `.*?`, or 100 kB of spaces would take minutes.
QUEPID = re.compile(r"\s*Query:(.*?)\n[ \t]*\n[ \t]*doc\d*:[ \t]*\n(.*)", re.DOTALL)
HITS = re.compile(r"; Hits(?: -|:) (?=\[)")
MOST_MARKERS = 100  # that are tried: each may cost a look at the whole text
SEARCH_TEXT = re.compile(r"\s*SearchText(?: -|:) ")
SCALE = re.compile(r"rating scale is: ")
SCALE_VALUE = re.compile(r'(-?\d+(?:\.\d+)?)(?: \(labeled "(?:[^"\\]|\\.)*"\))?(, )?')
UNDERSTOOD = (
    "Quepid's judge ('Query: ...', an empty line, 'doc1:' and fields as YAML) and OpenSearch's search-relevance "
    "workbench ('SearchText - ...; Hits - [...]') are understood, and no other chat"
)


def read(body: Any, served: Served, limits: Limits) -> Ask:
    body = object_of(body, "messages")
    if flag_of(body, "stream"):
        raise Refused(422, "field 'stream' is true, expected false: a judgement is one piece")
    if (whole_of(body, "n", 1) or 1) > 1:
        raise Refused(422, f"field 'n' is {body['n']}, expected 1: this judge gives one answer")
    system, user = _messages(body)
    if found := QUEPID.fullmatch(user):
        return _quepid(found[1], found[2], system, served, limits)
    if SEARCH_TEXT.match(user):
        return _workbench(user, system, body, limits)
    raise Refused(422, f"the last message of the user begins with {shown(user[:40])}: {UNDERSTOOD}")


def _messages(body: dict) -> tuple[str, str]:
    """The system's messages, and the last one of the user, as text."""
    if "messages" not in body:
        raise Refused(422, "field 'messages' is missing, expected a list of {role, content}")
    messages = body["messages"]
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise Refused(422, f"field 'messages' is {shown(messages)}, expected a list of {{role, content}}")
    system, user = [], None
    for place, message in enumerate(messages):
        if message.get("role") in ("system", "developer"):
            system.append(_text(message.get("content"), place))
        elif message.get("role") == "user":
            user = _text(message.get("content"), place)
    if user is None:
        raise Refused(422, f"field 'messages' has no message of the user: {UNDERSTOOD}")
    return "\n".join(system), user


def _text(content: Any, place: int) -> str:
    """A message's content: text, or a list of parts of which those of type text are read."""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if isinstance(parts, list) and all(isinstance(part, dict) for part in parts):
        texts = [part.get("text") for part in parts if part.get("type") == "text"]
        if all(isinstance(text, str) for text in texts):
            return "\n".join(texts)
    raise Refused(422, f"'messages[{place}].content' is {shown(content)}, expected text or a list of text parts")


def _quepid(query: str, document: str, system: str, served: Served, limits: Limits) -> Ask:
    query = query_of({"Query": query.strip()}, limits, "Query")
    try:
        fields = read_yaml(document)
    except ValueError as problem:
        raise Refused(422, f"'doc1' cannot be read as YAML: {problem}") from None
    pair = product_of(query, _document(_of_json(fields), "doc1"), "doc1", limits, cut=True)
    if pair is None:
        raise Refused(422, "'doc1' is empty, expected the fields of a document")
    return Ask([pair], explain=served.judge.order != "label", options={"scale": _scale(system)})


def _of_json(fields: Any) -> Any:
    """What a text holds that is a JSON object, else the same."""
    if isinstance(fields, str) and fields.lstrip().startswith("{"):
        try:
            found = parse_json(fields.encode())
        except Refused:
            return fields
        return found if isinstance(found, dict) else fields
    return fields


def _document(fields: Any, name: str) -> Any:
    """A document as a product: as it is where it is text or has a column that is known, else all of its fields."""
    if not isinstance(fields, dict) or not fields:
        return fields
    try:
        columns_of(fields, name)
        return fields
    except Refused as refused:
        if "could both be" in refused.message:
            raise
    first, *others = fields
    return {"title": fields[first], "attributes": {other: fields[other] for other in others}}


def _scale(system: str) -> list[float]:
    """The values of the rating scale that Quepid states, lowest first; 0 to 3 where it states none."""
    values: list[float] = []
    if start := SCALE.search(system):
        place = start.end()
        while (value := SCALE_VALUE.match(system, place)) and len(values) < 100:
            values.append(float(value[1]))
            place = value.end()
            if not value[2]:
                break
    return sorted(values) or [float(grade - GRADES[0]) for grade in GRADES]


def _workbench(user: str, system: str, body: dict, limits: Limits) -> Ask:
    start = SEARCH_TEXT.match(user).end()
    for marker in islice(HITS.finditer(user, start), MOST_MARKERS):
        # The hits are JSON up to the end, so text inside of a query or a hit that looks like this marker is not it.
        try:
            hits = parse_json(user[marker.end() :].encode())
        except Refused:
            continue
        break
    else:
        raise Refused(422, "no hits behind 'SearchText', expected '; Hits - [{\"id\": ..., \"source\": ...}]' as JSON")
    query = query_of({"SearchText": user[start : marker.start()].partition("; Reference: ")[0]}, limits, "SearchText")
    if len(hits) > limits.max_products:
        raise Refused(422, f"'Hits' has {len(hits)} hits, expected at most {limits.max_products}: lower 'tokenLimit'")
    found = []
    for place, hit in enumerate(hits):
        name = f"Hits[{place}]"
        if not isinstance(hit, dict) or type(hit.get("id")) not in (str, int) or "source" not in hit:
            raise Refused(422, f"{name!r} is {shown(hit)}, expected {{id, source}}")
        found.append(product_of(query, _document(_of_json(hit["source"]), name), name, limits, cut=True))
    schema = json.dumps(body.get("response_format"))
    options = {"ids": [hit["id"] for hit in hits], "object": '"ratings"' in system + schema}
    return rerank.asked(found, rating=_rating(system, schema), **options)


def _rating(system: str, schema: str) -> str:
    """What the hits are rated by. The end of the workbench's prompt names RELEVANT whatever is asked for."""
    if "IRRELEVANT: " in system or '"IRRELEVANT"' in schema:
        return "binary"
    return "1 to 5" if "Score 5: " in system else "score"


def reply(ask: Ask, answer: Answer) -> dict:
    content = _quepid_reply(ask, answer) if "scale" in ask.options else _workbench_reply(ask, answer)
    # ASCII: an id of a hit may hold what no reply could hold otherwise, such as half of a surrogate pair.
    message = {"role": "assistant", "content": json.dumps(content, allow_nan=False), "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    usage = {"prompt_tokens": answer.tokens, "completion_tokens": 0, "total_tokens": answer.tokens}
    head = {"id": f"chatcmpl-{answer.id}", "object": "chat.completion", "created": int(time.time())}
    return {**head, "model": answer.served.name, "choices": [choice], "usage": usage}


def _quepid_reply(ask: Ask, answer: Answer) -> dict:
    score, scale = answer.scores[0], ask.options["scale"]
    if len(scale) == len(GRADES):
        judgment = scale[score.grade - GRADES[0]]
    elif len(scale) == 2:
        judgment = scale[score.tier == GOOD_TIER]
    else:
        judgment = scale[round(score.score * (len(scale) - 1))]
    explanation = explained(score, answer.explanations[0] if answer.explanations else None)
    return {"explanation": explanation, "judgment": int(judgment) if judgment.is_integer() else judgment}


def explained(score: Score, found: Explanation | None) -> str:
    """The grade, the five steps of the reasoning where there are any, and what is odd about them, as lines."""
    probs = ", ".join(f"{grade_name(grade)} {score.probs[grade - GRADES[0]]:.2f}" for grade in reversed(GRADES))
    lines = [f"{grade_name(score.grade)}, tier {score.tier} (probabilities: {probs})"]
    if found:
        steps = ("query", "item", "category", "attributes", "decision")
        lines += [f"{step.capitalize()}: {getattr(found, step)}" for step in steps if getattr(found, step)]
        lines += [f"Note: {note}" for note in found.notes]
    return "\n".join(lines)


def _workbench_reply(ask: Ask, answer: Answer) -> Any:
    ratings = []
    for number, place in zip(ask.options["ids"], ask.options["places"]):
        score = None if place is None else answer.scores[place]
        ratings.append({"id": number, "rating_score": _rated(score, ask.options["rating"])})
    return {"ratings": ratings} if ask.options["object"] else ratings


def _rated(score: Score | None, rating: str) -> Any:
    if rating == "binary":
        return "RELEVANT" if score and score.tier == GOOD_TIER else "IRRELEVANT"
    value = score.score if score else 0.0
    return round(1 + 4 * value) if rating == "1 to 5" else float(value)


def error(refused: Refused) -> dict:
    """As OpenAI's API words errors."""
    kind = "invalid_request_error" if refused.status < 500 else "server_error"
    return {"error": {"message": refused.message, "type": kind, "param": None, "code": refused.status}}


CHAT = Format("chat", ("/v1/chat/completions",), read, reply, error)
