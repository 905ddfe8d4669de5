"""Every request that is wrong gets the status that infer/serve.py documents, as JSON, and none of them is a 500."""

from __future__ import annotations

import json
import socket
import time
from http.client import HTTPConnection

import pytest

from tests.server.http_bytes import BODY, PAIR, request, statuses


def raw(server, sent: bytes, *, wait_s: float = 20, slowly: tuple[bytes, ...] = (), pause_s: float = 0.0) -> bytes:
    """All that the server answers to these bytes, until it closes the connection or is silent for `wait_s`."""
    with socket.create_connection((server.host, server.port), timeout=wait_s) as connection:
        try:
            connection.sendall(sent)
            for part in slowly:
                time.sleep(pause_s)
                connection.sendall(part)
        except OSError:
            pass  # the server has answered and closed
        found = b""
        try:
            while part := connection.recv(65536):
                found += part
        except (TimeoutError, ConnectionResetError):
            pass
        return found


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"", 400, "empty"),
        (b"{", 400, "line 1, column 2"),
        (b'{"query": "a" "b"}', 400, "not JSON"),
        (b'{"query": "\xff\xfe"}', 400, "not UTF-8"),
        ('{"query": "lamp"}'.encode("utf-16"), 400, "not UTF-8"),
        (b'{"query": NaN}', 400, "NaN"),
        (b'{"query": -Infinity}', 400, "Infinity"),
        (b'{"query": 1e999}', 400, "too large"),
        (b'{"query": ' + b"9" * 5000 + b"}", 400, "digits"),
        (b"[" * 100_000, 400, "nested too deep"),
        (b"[" * 2000 + b"]" * 2000, 400, "nested too deep"),
        (b'{"a":' * 500 + b"1" + b"}" * 500, 400, "nested too deep"),
        (b'{"query": "lamp", "query": "mug", "products": ["a"]}', 400, "twice"),
        (b"[]", 422, "expected an object"),
        (b"null", 422, "expected an object"),
        (b'"text"', 422, "expected an object"),
        (b"{}", 422, "query"),
        (b'{"query": "lamp", "products": []}', 422, "empty"),
        (b'{"query": "", "products": ["a"]}', 422, "empty"),
        (b'{"query": "lamp", "products": "lamp"}', 422, "expected a list"),
        (b'{"query": "lamp", "products": [null]}', 422, "product"),
        (b'{"query": "lamp", "products": [[]]}', 422, "product"),
        (b'{"query": {"a": 1}, "products": ["a"]}', 422, "query"),
        (b'{"query": "lamp", "products": ["a"], "explain": "yes"}', 422, "explain"),
        (b'{"query": "lamp", "products": ["a"], "rubric": "0"}', 409, "rubric"),
        (b'{"query": "lamp", "products": ["a"], "judge": "compare"}', 422, "--compare"),
        (b'{"query": "lamp", "products": ["a"], "judge": ["x"]}', 422, "judge"),
        (json.dumps({"query": "lamp", "products": ["a"] * 10_000}).encode(), 422, "10000"),
        (json.dumps({"query": "lamp", "products": ["a"] * 21, "explain": True}).encode(), 422, "20"),
        (json.dumps({"query": "x" * 20_001, "products": ["a"]}).encode(), 422, "20000"),
        (json.dumps({"query": "lamp", "products": ["x" * 20_001]}).encode(), 422, "20000"),
        (b'{"query": "lamp", "products": ["\\ud800 half", "nul \\u0000"]}', 200, "results"),
        (b'\xef\xbb\xbf{"query": "lamp", "products": ["with a byte order mark"]}', 200, "results"),
        (json.dumps({"query": "lamp" * 5000, "products": ["\u706f" * 20_000, "\u202eto the left\u200b"]}).encode(), 200,
         "results"),
    ],
    ids=lambda value: str(value)[:40] if not isinstance(value, int) else None,
)  # fmt: skip
def test_a_body_that_cannot_be_used_is_refused_with_its_documented_status(server, body, status, says):
    found, reply = server.ask("/score", body)
    assert found == status, reply
    assert says in json.dumps(reply)
    assert status == 200 or reply["status"] == status
    assert server.ask("/score", PAIR)[0] == 200


@pytest.mark.parametrize("path", ["/score", "/rerank", "/v1/rerank", "/v2/rerank"])
@pytest.mark.parametrize(
    "body",
    [b"", b"[" * 9999, b"null", b"[1]", b"{}", b'{"query": 1e400}',
     b'{"query": "\\udead", "texts": [{}], "documents": 3}']
    + [json.dumps({"query": "q", name: value}).encode() for name in ("texts", "documents", "products")
       for value in (None, [], {}, "", 0, [None], [[]], [True], [9**99], [{"text": {"a": [1]}}], ["a"] * 1001)],
    ids=lambda body: str(body)[:30],
)  # fmt: skip
def test_no_format_answers_500_whatever_the_body(server, path, body):
    status, reply = server.ask(path, body)
    assert status in (400, 413, 422), reply


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Type": ""}, 415),
        ({"Content-Type": "application/json; charset=latin-1"}, 415),
        ({"Content-Encoding": "gzip"}, 415),
        ({"Content-Type": 'application/json; charset="UTF-8"'}, 200),
        ({"Content-Type": "application/vnd.api+json"}, 200),
    ],
)
def test_only_uncompressed_json_in_utf8_is_read(server, headers, status):
    assert server.ask("/score", BODY, headers=headers)[0] == status


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/score", 405),
        ("PUT", "/rerank", 405),
        ("DELETE", "/", 405),
        ("POST", "/health", 405),
        ("OPTIONS", "/score", 405),
        ("GET", "/no/such", 404),
        ("GET", "/../../etc/passwd", 404),
        ("GET", "/%2e%2e/%00", 404),
        ("GET", "/" + "x" * 9000, 404),
        ("GET", "//", 404),
        ("OPTIONS", "*", 404),
        ("GET", "http://localhost/score", 404),
        ("CONNECT", "localhost:80", 404),
        ("GET", "/?query=text", 200),
        ("HEAD", "/health", 200),
    ],
)
def test_paths_and_methods_that_do_not_exist_are_said_as_json(server, method, path, status):
    answer = raw(server, request(b"", path, method))
    assert statuses(answer) == [status]
    head, _, body = answer.partition(b"\r\n\r\n")
    if status != 200:
        assert json.loads(body)["error"]
        assert (b"\r\nallow: " in head) == (status == 405)


@pytest.mark.parametrize(
    ("sent", "found"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 this is TLS\r\n\r\n", [400]),
        (b"GARBAGE\r\n\r\n", [400]),
        (b"\r\n", [400]),
        (b"GET / HTTP/9.9\r\nHost: localhost\r\nConnection: close\r\n\r\n", [400]),
        (b"GET / HTTP/1.1\r\n\r\n", [400]),  # no Host
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n", [400]),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nBad\x00Name: 1\r\n\r\n", [400]),
        (b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n", [400]),
        (b"POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n", [400]),
        (b"POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", [400]),
        (b"POST /score HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n", [501]),
        (b"POST /score HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked, identity\r\n\r\n", [501]),
        (b"POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
         b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n{}\r\n", [400]),
        (request(b"0\r\n\r\n", Transfer_Encoding="chunked"), [400]),  # both lengths
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 200_000 + b"\r\n\r\n", [431]),
        (b"GET /" + b"x" * 200_000, [431]),
        (b"GET /health HTTP/1.0\r\n\r\n", [200]),
        (b"POST /score HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY,
         [200]),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" * 3 + request(), [200] * 4),  # pipelined
        (request(BODY[:5] + BODY, Content_Length="5"), [400]),  # more than it said: the rest is no request
        (request(b'{"query": "a"} and more', Content_Length="14"), [422]),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
         b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", [200, 200]),
    ],
    ids=lambda value: str(value[:60]),
)  # fmt: skip
def test_what_is_hardly_http_gets_a_status_and_the_next_client_is_served(server, sent, found):
    assert statuses(raw(server, sent)) == found
    assert server.ask("/health")[0] == 200


def test_a_chunked_body_is_read_and_bounded_like_any_other(server):
    head = request(b"", Content_Length=None, Transfer_Encoding="chunked")
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(BODY[i : i + 7]), BODY[i : i + 7]) for i in range(0, len(BODY), 7))
    assert statuses(raw(server, head + chunks + b"0\r\n\r\n")) == [200]
    crumbs = b"1\r\n \r\n" * 200_000
    begun = time.monotonic()
    assert statuses(raw(server, head + crumbs)) in ([400], [])  # a reset may overtake the answer to one who still sends
    assert time.monotonic() - begun < 10
    endless = b"%x\r\n" % (1 << 20) + b" " * (1 << 20) + b"\r\n"
    assert statuses(raw(server, head + endless * 4)) == [413]


@pytest.mark.parametrize("says_so", [True, False])
def test_a_body_of_100_megabytes_is_refused_before_it_is_read_and_the_client_can_read_why(server, says_so):
    size = 100 << 20
    headers = {"Content_Length": str(size)} if says_so else {"Content_Length": None, "Transfer_Encoding": "chunked"}
    before = memory(server)
    with socket.create_connection((server.host, server.port), timeout=20) as connection:
        connection.sendall(request(b"", **headers))
        block = b" " * (1 << 20) if says_so else b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
        try:
            for _ in range(100):
                connection.sendall(block)
        except OSError:
            pass
        assert statuses(connection.recv(4096)) == [413]
    assert memory(server) - before < 30


def memory(server) -> float:
    """Resident memory of the server in MB."""
    with open(f"/proc/{server.process.pid}/status") as file:
        (line,) = (line for line in file if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def test_a_reply_never_waits_for_the_clients_acknowledgement_of_its_first_half(server):
    """40 ms on Linux where Nagle's algorithm is left on."""
    connection, seconds = HTTPConnection(server.host, server.port, timeout=30), []
    for _ in range(30):
        begun = time.monotonic()
        connection.request("GET", "/health")
        connection.getresponse().read()
        seconds.append(time.monotonic() - begun)
    assert min(seconds[5:]) < 0.02


def test_a_client_that_expects_to_be_asked_for_its_body_is_asked_only_where_it_is_wanted(server):
    head = request(b"", Content_Length=str(len(BODY)), Expect="100-continue")
    assert statuses(raw(server, head, slowly=(BODY,), pause_s=0.2)) == [100, 200]
    large = request(b"", Content_Length=str(9 << 20), Expect="100-continue")
    assert statuses(raw(server, large)) == [413]
