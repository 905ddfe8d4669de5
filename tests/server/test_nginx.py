"""Two servers behind nginx, as examples/serving/nginx.conf says: one is killed under load, and no client sees it."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
import time
from http.client import HTTPConnection
from pathlib import Path

import pytest

CONFIG = Path(__file__).resolve().parents[2] / "examples/serving/nginx.conf"
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
QUERY, TITLES = "travel mug", [f"travel mug number {number}" for number in range(20)]


@pytest.fixture(scope="module")
def proxied(start_server, tmp_path_factory):
    """(port of nginx, its two servers, its log)."""
    tmp_path = tmp_path_factory.mktemp("nginx")
    if NGINX is None:
        pytest.skip("nginx is not installed (Debian: apt-get install nginx-light)")
    servers = [start_server("--model", "bundled") for _ in range(2)]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    text = CONFIG.read_text()
    for stated, real in (("8001", servers[0].port), ("8002", servers[1].port), ("listen 127.0.0.1:8000", port)):
        assert stated in text
        text = text.replace(stated, f"listen 127.0.0.1:{real}" if "listen" in stated else str(real))
    (tmp_path / "nginx.conf").write_text(text)
    log = tmp_path / "nginx.log"
    command = [NGINX, "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")]
    with log.open("wb") as file, subprocess.Popen(command, stderr=file) as nginx:
        try:
            deadline = time.monotonic() + 20
            while ask(port, "GET", "/health")[0] != 200:
                assert time.monotonic() < deadline and nginx.poll() is None, log.read_text()
                time.sleep(0.1)
            yield port, servers, log
        finally:
            nginx.terminate()


def ask(port: int, method: str, path: str, body: object = None) -> tuple[int, dict]:
    """(status, JSON); status 0 where there was no answer."""
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        headers = {"Content-Type": "application/json", "Host": "shop.example"}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        reply = connection.getresponse()
        return reply.status, json.loads(reply.read())
    except (OSError, ValueError) as error:
        return 0, {"error": repr(error)}
    finally:
        connection.close()


def test_events_pass_through_nginx_as_they_are_made(proxied):
    port, *_ = proxied
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    body = json.dumps({"query": QUERY, "product": TITLES[0]})
    connection.request("POST", "/explain", body, {"Content-Type": "application/json"})
    reply = connection.getresponse()
    first = reply.readline()
    begun = time.monotonic()
    rest = reply.read().decode()
    assert first == b"event: score\n" and "event: done" in rest
    assert time.monotonic() - begun > 0.02  # the reasons were still to be decoded when the score was here
    connection.close()


def test_one_of_two_servers_is_killed_under_load_and_no_client_sees_an_error(proxied, start_server):
    port, servers, log = proxied
    _, reply = ask(port, "POST", "/score", {"query": QUERY, "products": TITLES})
    expected = [result["score"] for result in reply["results"]]
    ended, replies = threading.Event(), []

    def client(number: int) -> None:
        turn = 0
        while not ended.is_set():
            places = [(number + turn) % 20, (number * 7 + turn) % 20]
            body = {"query": QUERY, "products": [TITLES[place] for place in places]}
            status, reply = ask(port, "POST", "/score", body)
            replies.append((status, places, [result["score"] for result in reply.get("results", [])]))
            turn += 1

    threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(1)
    servers[0].process.kill()
    servers[0].process.wait()
    time.sleep(1)
    before = len(replies)
    start_server("--model", "bundled", "--port", str(servers[0].port))
    time.sleep(2.5)  # longer than fail_timeout: the new one is asked, too
    assert servers[1].stop() == 0  # a polite stop, also under load
    time.sleep(0.5)
    ended.set()
    for thread in threads:
        thread.join(60)
    assert len(replies) > before > 50
    assert {status for status, _, _ in replies} == {200}, log.read_text()
    for _, places, scores in replies:
        assert scores == pytest.approx([expected[place] for place in places], abs=3e-6)
