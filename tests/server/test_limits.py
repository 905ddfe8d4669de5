"""Slow clients, too many clients, and clients that leave: each costs a bounded time and nothing of anybody else's."""

from __future__ import annotations

import json
import socket
import time
from contextlib import ExitStack

import pytest

from tests.server.http_bytes import request, statuses

SLOW = ("--header-timeout-s", "1", "--body-timeout-s", "1", "--keep-alive-s", "1")


@pytest.fixture(scope="module")
def small(start_server):
    """A server with low limits."""
    limits = ("--max-connections", "20", "--max-body-bytes", "50000", "--max-products", "30", "--max-chars", "100")
    return start_server("--model", "bundled", *SLOW, *limits)


def connect(server) -> socket.socket:
    return socket.create_connection((server.host, server.port), timeout=20)


def rest(connection: socket.socket) -> tuple[bytes, float]:
    """What the server still sends until it closes, and after how many seconds it does."""
    begun, found = time.monotonic(), b""
    try:
        while part := connection.recv(65536):
            found += part
    except ConnectionResetError:
        pass
    return found, time.monotonic() - begun


@pytest.mark.parametrize("first", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: 1\r\n"])
def test_headers_that_take_too_long_get_408(small, first):
    with connect(small) as connection:
        connection.sendall(first)
        answer, seconds = rest(connection)
    assert statuses(answer) == [408] and b'"status": 408' in answer
    assert 0.8 < seconds < 5


def test_headers_that_come_a_byte_at_a_time_get_no_more_time_than_others(small):
    with connect(small) as connection:
        begun = time.monotonic()
        try:
            for byte in b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: " + b"x" * 100:
                connection.sendall(bytes([byte]))
                time.sleep(0.05)
        except OSError:
            pass
        assert time.monotonic() - begun < 4
        assert statuses(rest(connection)[0]) in ([408], [])  # a reset may overtake the answer to one who still sends


@pytest.mark.parametrize("sent", [b"", b'{"query": "desk', b"drip"])
def test_bodies_that_take_too_long_get_408(small, sent):
    with connect(small) as connection:
        begun = time.monotonic()
        connection.sendall(request(b"", Content_Length="1000"))
        for byte in sent if sent == b"drip" else [sent]:
            connection.sendall(bytes([byte]) if isinstance(byte, int) else byte)
            time.sleep(0.2)
        answer, _ = rest(connection)
        assert statuses(answer) == [408] and 0.8 < time.monotonic() - begun < 6


def test_an_idle_connection_is_closed_and_a_busy_one_is_kept(small):
    with connect(small) as connection:
        for _ in range(3):
            connection.sendall(request(method="GET", path="/health", body=b"", Connection="keep-alive"))
            time.sleep(0.5)
            assert statuses(connection.recv(65536)) == [200]
        answer, seconds = rest(connection)
        assert answer == b"" and seconds < 4


def test_one_connection_too_many_gets_503_and_is_closed_and_a_free_place_is_taken_again(small):
    with ExitStack() as stack:
        open_ones = [stack.enter_context(connect(small)) for _ in range(20)]
        time.sleep(0.2)
        with connect(small) as connection:
            connection.sendall(request(b"", "/health", "GET"))
            answer, seconds = rest(connection)
        assert statuses(answer) == [503] and b"Retry-After: " in answer and seconds < 3
        open_ones[0].close()
        time.sleep(0.2)
        assert small.ask("/health")[0] == 200
    time.sleep(0.3)
    text = small.ask("/metrics")[1]
    assert "taosr1_refused_connections_total 1.0" in text and "taosr1_connections 1.0" in text
    assert 'taosr1_rejected_total{status="503"} 1.0' in text


def test_the_limits_of_a_request_are_those_of_the_flags(small):
    def status(products: list[str], query: str = "mug") -> int:
        return small.ask("/score", {"query": query, "products": products})[0]

    assert status(["mug"] * 30) == 200 and status(["mug"] * 31) == 422
    assert status(["m" * 100]) == 200 and status(["m" * 101]) == 422 and status(["mug"], "m" * 101) == 422
    assert small.ask("/score", b" " * 50_000)[0] == 400 and small.ask("/score", b" " * 50_001)[0] == 413


@pytest.fixture(scope="module")
def waits(start_server):
    """A server that gives a client three seconds to read its reply."""
    return start_server("--model", "bundled", "--max-body-bytes", "20000000", "--body-timeout-s", "3")


def large_reply() -> bytes:
    """A body whose reply is longer than what the system keeps for a socket."""
    document = {"title": "mug", "blob": "x" * 12_000_000}
    return json.dumps({"query": "mug", "documents": [document], "return_documents": True}).encode()


def test_a_reply_that_nobody_reads_is_given_up(waits):
    with connect(waits) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(request(large_reply(), "/v1/rerank", Connection="keep-alive") + 2 * request())
        deadline = time.monotonic() + 20
        while "taosr1_connections 1.0" not in waits.ask("/metrics")[1]:  # the one that asks
            assert time.monotonic() < deadline
            time.sleep(0.5)


def test_a_slow_client_is_not_given_up_for_a_reply_that_it_has_read(waits):
    """The time for a reply that was read long ago once ended the connection in the middle of a later one."""
    body = large_reply()
    begun = 0.0
    with connect(waits) as connection:
        for starts_after_s, reads_after_s in ((0, 0), (1.5, 3.5)):  # since the first reply
            time.sleep(starts_after_s)
            connection.sendall(request(body, "/v1/rerank", Connection="keep-alive"))
            found = connection.recv(1)
            begun = begun or time.monotonic()
            time.sleep(max(0, begun + reads_after_s - time.monotonic()))
            while len(found) <= len(body):
                part = connection.recv(1 << 20)
                assert part, "the connection was closed"
                found += part
            assert statuses(found[:100]) == [200]


def test_a_full_queue_is_a_429_that_says_when_to_come_again(start_server):
    server = start_server("--model", "bundled", "--max-queue-requests", "2")
    body = json.dumps({"query": "travel mug", "products": [f"travel mug number {i}" for i in range(1000)]}).encode()
    with ExitStack() as stack:
        connections = [stack.enter_context(connect(server)) for _ in range(12)]
        for connection in connections:
            connection.sendall(request(body))
        answers = [rest(connection)[0] for connection in connections]
    found = sorted(status for answer in answers for status in statuses(answer))
    assert set(found) == {200, 429} and len(found) == 12
    for answer in answers:
        assert (b"retry-after: " in answer.lower()) == (b" 429 " in answer)
        if b" 200 " in answer:
            results = json.loads(answer.partition(b"\r\n\r\n")[2])["results"]
            assert [result["index"] for result in results] == list(range(1000))


def test_a_client_that_leaves_frees_its_work(start_server):
    server = start_server("--model", "bundled")
    body = json.dumps({"query": "mug", "products": ["travel mug"] * 20, "explain": True}).encode()
    connections = [connect(server) for _ in range(20)]  # minutes of decoding
    for connection in connections:
        connection.sendall(request(body))
    time.sleep(1)
    for connection in connections:
        connection.close()
    begun = time.monotonic()
    status, _ = server.ask("/score", {"query": "mug", "products": ["travel mug"], "explain": True})
    assert status == 200 and time.monotonic() - begun < 15
    text = server.ask("/metrics")[1]
    assert 'taosr1_requests_total{path="/score",status="499"} 20.0' in text
    assert 'taosr1_rejected_total{status="499"}' not in text and "taosr1_queue_requests 0.0" in text


def test_a_request_that_takes_too_long_gets_503(start_server):
    server = start_server("--model", "bundled", "--request-timeout-s", "0.3")
    begun = time.monotonic()
    status, reply = server.ask("/score", {"query": "mug", "products": ["travel mug"] * 20, "explain": True})
    assert status == 503 and "--request-timeout-s" in reply["error"] and time.monotonic() - begun < 5
