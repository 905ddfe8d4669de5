"""What a hostile client sends: each of these once made the server wait for minutes, fail, or say what is not so."""

from __future__ import annotations

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("starlette")

from taosr1.server.errors import Refused
from taosr1.server.formats import ours
from taosr1.server.formats.chat import CHAT
from taosr1.server.limits import Limits
from taosr1.serving.inputs import judgements_of
from taosr1.task.prompt import ITEM_FIELDS


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


def test_a_small_request_does_not_wait_until_large_ones_are_tokenised(start_server):
    """Twelve bodies take most of a second each to tokenise; the queue holds one of them, the others get 429."""
    server = start_server("--model", "bundled", "--max-queue-tok", "500000")
    titles = ["".join(chr(0x4E00 + (7 * row + place) % 20000) for place in range(600)) for row in range(1000)]
    body = json.dumps({"query": "mug", "products": titles}, ensure_ascii=False).encode()
    head = f"POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    large = [socket.create_connection((server.host, server.port)) for _ in range(12)]
    with ThreadPoolExecutor(len(large)) as threads:  # all at once
        list(threads.map(lambda one: one.sendall(f"{head}\r\n\r\n".encode() + body), large))
    while 'taosr1_part_seconds_count{part="read"} 12.0' not in server.ask("/metrics")[1]:
        time.sleep(0.05)  # until all have arrived; a few may be tokenised by then
    status, _ = server.ask("/score", {"query": "mug", "products": ["steel travel mug"] * 100})
    tokenised = server.log.read_text().count(" 429 ")
    for connection in large:
        connection.close()
    assert status == 200 and tokenised < 8
    server.process.kill()


def test_a_path_cannot_look_like_the_fields_of_the_log(start_server):
    server = start_server("--model", "bundled")
    server.ask("/score%20200%20products=9%0d%0a2026-01-01%20all%20is%20well")
    assert server.stop() == 0
    (line,) = [line for line in server.log.read_text().splitlines() if "all" in line]
    assert " 404 products=0 " in line and line.split()[3].startswith("/score%20200") and len(line.split()) == 8


@pytest.mark.parametrize("query", ["x" * 19_999, "?" * 19_999, "\u9ea6" * 6_000, "qx " * 6_000])
def test_a_reply_is_not_many_times_as_long_as_its_request(query, server):
    """The reason why a pair is outside named the query's one word of 20,000 letters for every product: 20 MB."""
    body = {"query": query, "products": ["steel mug"] * 200}
    status, reply = server.ask("/score", body)
    assert status == 200 and all(one["outside"].startswith("unknown words: ") for one in reply["results"])
    assert max(len(one["outside"]) for one in reply["results"]) < 300
    assert len(json.dumps(reply)) < 200 * 1000


def test_a_long_query_is_looked_at_once_and_not_for_each_of_a_thousand_products(served):
    """24 kB took 2.2 s of processor time after scoring, and other requests waited meanwhile."""
    words = " ".join("abc" + "".join(chr(97 + int(digit)) for digit in str(i)) for i in range(2400))
    pairs = ours.SCORE.read({"query": words, "products": ["a"] * 1000}, served, Limits()).pairs
    score = served.judge.score_prompts(served.judge.model.prompts(pairs[:1]))[0]
    begun = time.thread_time()
    found = served.judge.with_outside(pairs, [score] * len(pairs))
    assert time.thread_time() - begun < 1 and len({one.outside for one in found}) == 1
    assert found[0].outside.startswith("unknown words: abca, abcb, abcc, abcd, abce, ...")


@pytest.mark.parametrize(
    "product",
    [{"title": "mug", "product_features": "colour : red|size:8"},
     {"product_title": "mug &amp; lid", "product_color": "red", "product_brand": "M", "product_bullet_point": "a\nb"},
     {"product_title": "mug", "product_description": "<p>keeps tea <b>warm</b></p>", "brand": "M", "esci_label": "E"},
     {"product_title": "mug", "attributes": "size: 8", "product_color": "red", "price": 3.5}],
)  # fmt: skip
def test_a_product_is_read_as_infer_score_reads_the_same_columns_of_a_file(product, served):
    (asked,) = ours.SCORE.read({"query": "mug", "products": [product]}, served, Limits()).pairs
    ((read,), _) = judgements_of("mug", [product])
    assert [getattr(asked, name) for name in ITEM_FIELDS] == [getattr(read, name) for name in ITEM_FIELDS]
