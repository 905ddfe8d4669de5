"""Requests at random: broken HTTP, and every field of every format with values of every kind. None of them is a 500."""

from __future__ import annotations

import json
import random
import socket
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection

import pytest

from tests.server.http_bytes import request, statuses

BODY = json.dumps({"query": "travel mug", "products": ["steel travel mug"]}).encode()
CHAT = [{"role": "user", "content": "Query: mug\n\ndoc1:\n  title: steel mug\n"}]
BASES = {  # a body that each path takes
    "/score": {"query": "mug", "products": ["steel mug"]},
    "/explain": {"query": "mug", "product": "steel mug"},
    "/rerank": {"query": "mug", "texts": ["steel mug"]},
    "/v1/rerank": {"query": "mug", "documents": ["steel mug"]},
    "/v2/rerank": {"query": "mug", "documents": ["steel mug"], "model": "any"},
    "/generative_scoring": {"query": "mug", "items": ["steel mug"], "label_token_ids": [1, 2, 3, 4]},
    "/v1/score": {"query": "mug", "items": ["steel mug"], "label_token_ids": [1, 2, 3, 4]},
    "/v1/chat/completions": {"model": "any", "messages": CHAT},
}
OTHERS = (
    "explain", "judge", "rubric", "top_n", "return_documents", "raw_scores", "return_text", "truncate", "rank_fields",
    "truncation_direction", "max_tokens_per_doc", "max_chunks_per_doc", "apply_softmax", "item_first", "stream", "n",
    "response_format", "temperature", "max_tokens", "truncate_prompt_tokens",
)  # fmt: skip
VALUES = (
    None, True, False, 0, 1, -1, 2, 3, 10**20, -(10**99), 1.5, -0.0, 1e308, "", " ", "mug", "\x00", "\ud800", "\u202e",
    "x" * 30_000, "0", "compare", "left", [], {}, [[]], [None], [""], ["mug"], ["mug", "lamp"], [1, 2], [-1], [10**12],
    [True], [1.5], [{"text": "mug"}], [{"title": "mug", "price": 5}], [{"text": ["mug"]}], {"title": "mug"},
    {"text": {"a": {}}}, [["mug"]], [[0, 1, 2]], [[-1]], [[10**9]], [[1] * 3000], {"type": "json_object"},
    [{"role": "user", "content": "Query: mug\n\ndoc1:\n  title: mug\n"}], [{"role": 1, "content": [{}]}],
    [{"role": "user", "content": [{"type": "text", "text": "Query: a\n\ndoc1: &a [*a]"}]}],
    [{"role": "user", "content": "SearchText - mug; Hits - [{\"id\": 1, \"source\": {\"a\": [1]}}]"}],
)  # fmt: skip


@pytest.fixture(scope="module")
def hurried(start_server):
    """A server that waits for nobody, and whose explanations are two tokens long."""
    short = ("--header-timeout-s", "0.5", "--body-timeout-s", "0.5", "--keep-alive-s", "0.5", "--max-new-tokens", "2")
    return start_server("--model", "bundled", *short)


def test_every_field_of_every_format_takes_or_refuses_whatever_it_is_given(hurried):
    draw, found = random.Random(7), Counter()
    connection = HTTPConnection(hurried.host, hurried.port, timeout=60)
    for _ in range(1000):
        path = draw.choice([*BASES])
        names = [*BASES[path]] * 4 + [*OTHERS]
        body = {**BASES[path], **{draw.choice(names): draw.choice(VALUES) for _ in range(draw.randint(0, 2))}}
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        reply = connection.getresponse()
        text = reply.read()
        found[reply.status] += 1
        assert reply.status in (200, 400, 409, 413, 422), (path, body, reply.status, text)
        if reply.getheader("Content-Type") == "application/json":
            json.loads(text)
    assert found[200] > 100 and found[422] > 100, found
    assert "internal error" not in hurried.log.read_text()


def mutated(draw: random.Random) -> bytes:
    """A request with a few bytes changed, doubled, left out, or cut off at its end."""
    sent = bytearray(request(BODY, Connection="close"))
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(len(sent))
        change = draw.randrange(5)
        if change == 0:
            sent[place] = draw.randrange(256)
        elif change == 1:
            del sent[place : place + draw.randint(1, 20)]
        elif change == 2:
            sent[place:place] = sent[place : place + draw.randint(1, 40)]
        elif change == 3:
            sent[place:place] = draw.choice([b"\r\n", b"\x00", b"\n", b": ", b"\r\n\r\n", b"Content-Length: 3\r\n"])
        elif draw.random() < 0.3:
            del sent[place:]
        if not sent:
            return b""
    return bytes(sent)


def answered(server, sent: bytes) -> tuple[bytes, bytes]:
    with socket.create_connection((server.host, server.port), timeout=30) as connection:
        answer = b""
        try:
            connection.sendall(sent)
            while part := connection.recv(65536):
                answer += part
        except (ConnectionResetError, BrokenPipeError):
            pass
        return sent, answer


def test_broken_http_is_answered_with_a_documented_status(hurried):
    draw, found = random.Random(11), Counter()
    requests = [mutated(draw) for _ in range(300)]
    with ThreadPoolExecutor(30) as pool:
        for sent, answer in pool.map(lambda sent: answered(hurried, sent), requests):
            assert statuses(answer), sent
            found.update(statuses(answer))
            assert set(statuses(answer)) <= {200, 400, 403, 404, 405, 408, 413, 415, 422, 431, 501}, (sent, answer)
    assert found[400] > 50 and found[200] > 5 and len(found) > 4, found
    assert hurried.ask("/health")[0] == 200 and "internal error" not in hurried.log.read_text()
