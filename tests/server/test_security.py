"""Who may ask, what a browser may do with a reply, and what the log never holds."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from http.client import HTTPConnection
from pathlib import Path

import pytest

from infer.serve import main
from taosr1.server.errors import Refused
from taosr1.server.security import Access, access_problems
from tests.server.http_bytes import BODY, PAIR

ROOT = Path(__file__).resolve().parents[2]
KEY = "correct-horse-battery-\u0021"


@pytest.fixture(scope="module")
def guarded(start_server):
    """A server with a key, for pages of one other origin, whose log holds texts."""
    return start_server("--model", "bundled", "--api-key", KEY, "--cors", "https://shop.example", "--log-text")


def reply(server, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, dict[str, str]]:
    """Status and headers; header names are written with _ for -."""
    connection = HTTPConnection(server.host, server.port, timeout=30)
    try:
        names = {"Content-Type": "application/json", **{name.replace("_", "-"): headers[name] for name in headers}}
        connection.request(method, path, body, names)
        found = connection.getresponse()
        found.read()
        return found.status, {name.lower(): value for name, value in found.getheaders()}
    finally:
        connection.close()


@pytest.mark.parametrize("path", ["/score", "/rerank", "/info", "/metrics", "/v1/models", "/no/such", "/v2/rerank"])
@pytest.mark.parametrize(
    "given", ["", KEY, "Bearer", "Bearer x", f"Basic {KEY}", f"Bearer {KEY[:-1]}", f"Bearer {KEY}x", "Bearer \u00fc"]
)
def test_without_the_key_nothing_but_the_page_and_health_is_answered(guarded, path, given):
    method, body = ("POST", BODY) if path in ("/score", "/rerank", "/v2/rerank") else ("GET", None)
    status, headers = reply(guarded, method, path, body, **({"Authorization": given} if given else {}))
    assert status == 401 and headers["www-authenticate"] == "Bearer"


def test_with_the_key_everything_is_answered_and_without_it_the_page_and_health(guarded):
    for given in (f"Bearer {KEY}", f"bearer {KEY}", f"Bearer  {KEY} "):
        assert reply(guarded, "POST", "/score", BODY, Authorization=given)[0] == 200
    assert reply(guarded, "GET", "/metrics", Authorization=f"Bearer {KEY}")[0] == 200
    assert reply(guarded, "GET", "/no/such", Authorization=f"Bearer {KEY}")[0] == 404
    assert reply(guarded, "GET", "/")[0] == reply(guarded, "GET", "/health")[0] == 200


def test_the_key_is_never_shown(guarded):
    assert KEY not in guarded.log.read_text() and KEY not in repr(access_problems("short", ""))
    with pytest.raises(Refused) as refused:
        Access(KEY).check_key({"authorization": f"Bearer {KEY[:-1]}"})
    assert KEY[:-1] not in refused.value.message


@pytest.mark.parametrize(
    ("host", "allowed"),
    [("localhost", True), ("LOCALHOST:8000", True), ("localhost.:8000", True), ("127.0.0.1:1", True),
     ("127.8.8.8", True), ("[::1]:80", True),
     ("evil.example", False), ("localhost.evil.example", False), ("127.0.0.1.evil.example", False),
     ("192.168.1.7:8000", False), ("localhost:80:80", False), ("", True)],
)  # fmt: skip
def test_a_page_that_gives_its_own_name_our_address_reads_nothing(server, guarded, host, allowed):
    """DNS rebinding: the browser believes that it talks to evil.example."""
    status, _ = reply(server, "GET", "/info", Host=host)
    assert status == (200 if allowed else 403)
    status, _ = reply(guarded, "GET", "/info", Host=host, Authorization=f"Bearer {KEY}")
    assert status == 200  # such a page does not know the key


def test_pages_of_other_origins_may_ask_only_where_they_are_named(server, guarded):
    asking = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "content-type"}
    status, headers = reply(server, "OPTIONS", "/score", Origin="https://shop.example", **asking)
    assert status == 405 and not [name for name in headers if name.startswith("access-control")]
    status, headers = reply(guarded, "OPTIONS", "/score", Origin="https://evil.example", **asking)
    assert not [name for name in headers if name.startswith("access-control")]
    status, headers = reply(guarded, "OPTIONS", "/score", Origin="https://shop.example", **asking)
    assert status == 204 and headers["access-control-allow-origin"] == "https://shop.example"
    assert "Authorization" in headers["access-control-allow-headers"] and headers["vary"] == "Origin"
    key = {"Authorization": f"Bearer {KEY}"}
    for origin, shown in (("https://shop.example", True), ("https://evil.example", False), ("null", False)):
        status, headers = reply(guarded, "POST", "/score", BODY, Origin=origin, **key)
        assert status == 200 and ("access-control-allow-origin" in headers) == shown


@pytest.mark.parametrize(("method", "path"), [("GET", "/"), ("POST", "/score"), ("GET", "/no/such"), ("PUT", "/score")])
def test_every_reply_has_an_id_and_the_headers_that_protect_the_page(server, method, path):
    _, headers = reply(server, method, path, BODY if method == "POST" else None)
    assert headers["x-content-type-options"] == "nosniff"
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
    assert re.fullmatch("[0-9a-f]{32}", headers["x-request-id"])
    _, headers = reply(server, method, path, BODY if method == "POST" else None, X_Request_Id="trace-7.b")
    assert headers["x-request-id"] == "trace-7.b"
    _, headers = reply(server, method, path, BODY if method == "POST" else None, X_Request_Id="<script>")
    assert re.fullmatch("[0-9a-f]{32}", headers["x-request-id"])


def logged(server, text: str, count: int) -> list[str]:
    """The lines of the log that hold a text. A line is written after its reply, so it may come a moment later."""
    deadline = time.monotonic() + 10
    while True:
        lines = [line for line in server.log.read_text().split("\n") if text in line]
        if len(lines) >= count or time.monotonic() > deadline:
            return lines
        time.sleep(0.02)


def test_the_log_has_a_line_for_each_request_without_its_texts(start_server):
    server = start_server("--model", "bundled")
    hostile = {"query": "SECRETQUERY", "products": ["SECRETTITLE\n2026-11-30T00:00:00.000Z forged GET / 200", "mug"]}
    _, answer = server.ask("/score", hostile, headers={"X-Request-Id": "abc"})
    server.ask("/SECRETPATH%0a%1b[31mred?SECRETSTRING", headers={"X-Request-Id": "a b\tc"})
    server.ask("/score", {"query": "SECRETQUERY", "products": [{"titel": "SECRETTITLE"}]})
    server.ask("/score", b"SECRETBODY")
    lines = logged(server, " ms=", 4)
    log = server.log.read_text()
    assert not re.search("SECRET(QUERY|TITLE|BODY|STRING)", log)
    stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
    assert len(lines) == 4 and all(re.match(stamp, line) for line in lines)
    assert re.fullmatch(stamp + r" abc POST /score 200 products=2 tokens=\d+ ms=\d+\.\d", lines[0])
    assert "/SECRETPATH\\n\\x1b[31mred 404" in lines[1] and "\x1b" not in log


def test_with_log_text_the_texts_are_in_the_line_and_cannot_begin_one(guarded):
    hostile = {"query": "SECRETQUERY\u2028", "products": ["a\r\n\x1b[31mforged", "mug"]}
    guarded.ask("/score", hostile, headers={"Authorization": f"Bearer {KEY}"})
    (line,) = logged(guarded, "SECRETQUERY", 1)
    assert '"SECRETQUERY\\u2028", "a\\r\\n\\u001b[31mforged", "mug"' in line


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0 can be reached from other machines: add --api-key KEY or set"),
        (["--api-key", "short"], "--api-key (or TAOSR1_API_KEY) has to be 8 or more"),
        (["--cors", "*"], "--cors is '*', expected one origin"),
        (["--cors", "https://shop.example/path"], "expected one origin"),
        (["--host", "no.such.host.invalid"], "--host no.such.host.invalid"),
        (["--host", "203.0.113.7"], "--host 203.0.113.7 is not an address of this machine"),
        (["--port", "70000"], "--port is 70000, expected 0 to 65535"),
        (["--max-connections", "0", "--drain-s", "0"], "--max-connections is 0, expected at least 1; --drain-s is 0"),
        (["--max-connections", "9999999"], "ulimit -n"),
        (["--model", "no/such/run/here"], "no/such/run/here"),
        (["--model", "bundled-thinker"], "--model bundled-thinker reasons before it answers (pre-cot)"),
        (["--model", "bundled", "--max-new-tokens", "513"], "half of them for the prompt: give at most"),
        (["--model", "bundled", "--compare", "bundled-thinker"], "--compare bundled-thinker reasons before it answers"),
        (["--model", "bundled", "--compare", "runs/gone"], "--compare runs/gone: no such run here"),
        (["--model", "bundled", "--watch", "runs/x"], "--watch and --model are given"),
        (["--watch", "no/such/run"], "--watch no/such/run: not a run folder"),
        (["--beta", "2"], "--beta is 2.0"),
    ],
)
def test_a_start_that_cannot_be_is_one_line_that_names_the_flag(flags, says, monkeypatch, capsys):
    pytest.importorskip("uvicorn")
    monkeypatch.delenv("TAOSR1_API_KEY", raising=False)
    with pytest.raises((SystemExit, ValueError, OSError)) as error:
        main(["--port", "0", *flags])
    printed = capsys.readouterr()
    said = printed.err.strip() if error.type is SystemExit else str(error.value)
    assert says in said and "\n" not in said and not printed.out


def test_a_port_that_is_taken_is_one_line_with_the_way_out(server):
    command = [sys.executable, str(ROOT / "infer/serve.py"), "--model", "bundled", "--port", str(server.port)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60)
    said = f"error: --port {server.port} on 127.0.0.1 is not free (Address already in use): choose another --port"
    assert found.returncode == 1 and found.stderr.startswith(said) and found.stderr.count("\n") == 1


def test_the_key_may_come_from_the_environment_where_no_list_of_processes_shows_it(start_server, monkeypatch):
    monkeypatch.setenv("TAOSR1_API_KEY", KEY)
    server = start_server("--model", "bundled", "--host", "0.0.0.0")
    server.host = "127.0.0.1"
    assert server.ask("/score", PAIR)[0] == 401
    assert server.ask("/score", PAIR, headers={"Authorization": f"Bearer {KEY}"})[0] == 200
    with open(f"/proc/{server.process.pid}/cmdline") as file:
        assert KEY not in file.read()
