"""What a hostile client sends: each of these once made the server wait for minutes, fail, or say what is not so."""

from __future__ import annotations

import json
import time

import pytest

pytest.importorskip("starlette")

from taosr1.server.errors import Refused
from taosr1.server.formats.chat import CHAT
from taosr1.server.limits import Limits


def chat_of(user: str, **fields: object) -> dict:
    return {"messages": [{"role": "user", "content": user}], **fields}


@pytest.mark.parametrize(
    "user",
    ["Query:" + " " * 200_000, "Query:" + "\n \t" * 70_000, "SearchText - a" + "; Hits - [" * 50_000,
     "SearchText - a" + '; Hits: ["' * 50_000 + "]", "Query: a\n\ndoc1:\n" + "  k: v\n" * 20_000],
    ids=lambda user: repr(user[:30]),
)  # fmt: skip
def test_a_chat_is_read_in_time_that_grows_with_its_length(user, served):
    """A pattern that tries every cut of 200,000 spaces took 15 minutes, with all other requests waiting."""
    begun = time.process_time()
    try:
        CHAT.read(chat_of(user), served, Limits())
    except Refused as refused:
        assert refused.status == 422
    assert time.process_time() - begun < 2


@pytest.mark.parametrize("number", ['"\\ud800"', "NaN", "-Infinity", '"\\u0000"', "1e999"])
def test_a_hit_whose_id_no_json_can_hold_is_refused_or_answered_as_json(number, served, answered):
    body = chat_of(f'SearchText - mug; Hits - [{{"id": {number}, "source": {{"title": "mug"}}}}]')
    try:
        reply = answered(CHAT, body)
    except Refused as refused:
        assert refused.status == 422
        return
    (rated,) = json.loads(reply["choices"][0]["message"]["content"], parse_constant=pytest.fail)
    assert rated["id"] == "\ufffd" and 0 <= rated["rating_score"] <= 1


def test_a_source_with_half_a_surrogate_pair_is_answered(server):
    hits = '[{"id": "a\\udfff", "source": "{\\"title\\": \\"mug \\\\ud83d\\"}"}]'
    status, reply = server.ask("/v1/chat/completions", chat_of(f"SearchText - steel mug; Hits - {hits}"))
    assert status == 200 and json.loads(reply["choices"][0]["message"]["content"])[0]["id"] == "a\ufffd"
