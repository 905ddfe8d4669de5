"""The server starts, says that it is ready, is told to stop, answers what it accepted, and ends with exit code 0."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.server.http_bytes import PAIR, request, statuses

ROOT = Path(__file__).resolve().parents[2]
LONG = json.dumps({"query": "mug", "products": [f"travel mug {i}" for i in range(10)], "explain": True}).encode()


def begin(server, body: bytes) -> socket.socket:
    """A connection whose request is being worked on."""
    connection = socket.create_connection((server.host, server.port), timeout=60)
    connection.sendall(request(body))
    return connection


def answer(connection: socket.socket) -> bytes:
    found = b""
    while part := connection.recv(65536):
        found += part
    return found


def test_told_to_stop_it_answers_what_it_accepted_refuses_what_comes_and_ends_with_0(start_server):
    server = start_server("--model", "bundled")
    busy, idle = [begin(server, LONG) for _ in range(3)], socket.create_connection((server.host, server.port))
    half = socket.create_connection((server.host, server.port), timeout=60)
    whole = request(json.dumps(PAIR).encode())
    half.sendall(whole[:-10])  # its headers were accepted, its body is on the way
    time.sleep(0.7)
    server.process.terminate()
    time.sleep(0.4)
    assert server.ask("/health")[0] == 503
    status, reply = server.ask("/score", PAIR)
    assert status == 503 and "stopping" in reply["error"]
    half.sendall(whole[-10:])
    assert statuses(answer(half)) == [200]
    for connection in busy:
        found = answer(connection)
        assert statuses(found) == [200]
        assert len(json.loads(found.partition(b"\r\n\r\n")[2])["results"]) == 10
    assert answer(idle) == b""
    assert server.process.wait(10) == 0
    log = server.log.read_text()
    assert "Traceback" not in log and "Error" not in log and "stopping (" in log


def test_idle_it_stops_at_once_on_ctrl_c_too(start_server):
    server = start_server("--model", "bundled")
    begun = time.monotonic()
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(10) == 0 and time.monotonic() - begun < 3
    assert "stopping (Ctrl-C)" in server.log.read_text() and "Traceback" not in server.log.read_text()


def test_what_cannot_be_answered_within_drain_s_gets_503_and_the_exit_code_is_still_0(start_server):
    server = start_server("--model", "bundled", "--drain-s", "2")
    busy = [begin(server, LONG.replace(b"mug", b"m")) for _ in range(12)]
    slow = socket.create_connection((server.host, server.port), timeout=60)
    slow.sendall(request(b"", Content_Length="500"))  # a body that never comes
    stream = socket.create_connection((server.host, server.port), timeout=60)
    time.sleep(0.7)
    begun = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - begun < 3
    found = [status for connection in busy for status in statuses(answer(connection))]
    assert len(found) == 12 and set(found) <= {200, 503} and 503 in found
    assert statuses(answer(slow)) == [503]  # and not 408: it was not too slow
    assert answer(stream) == b"" and "Traceback" not in server.log.read_text()


def test_a_second_signal_ends_at_once(start_server):
    server = start_server("--model", "bundled")
    busy = [begin(server, LONG) for _ in range(12)]
    time.sleep(0.5)
    server.process.terminate()
    time.sleep(0.3)
    begun = time.monotonic()
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(10) == 128 + signal.SIGINT and time.monotonic() - begun < 1
    assert "Traceback" not in server.log.read_text() and len(busy) == 12


def test_a_reply_that_is_being_read_is_sent_to_its_end_though_the_server_stops(start_server):
    """Longer than what the system keeps for a socket, so that its rest would be lost with the process."""
    server = start_server("--model", "bundled", "--max-body-bytes", "40000000")
    documents = [{"title": "mug", "blob": "x" * 15_000_000}]
    body = json.dumps({"query": "mug", "documents": documents, "return_documents": True}).encode()
    with socket.create_connection((server.host, server.port), timeout=60) as connection:
        connection.sendall(request(body, "/v1/rerank"))
        begun = connection.recv(10)
        server.process.terminate()
        time.sleep(2)
        found = begun + answer(connection)
    assert statuses(found[:100]) == [200] and json.loads(found.partition(b"\r\n\r\n")[2])["results"]
    assert server.process.wait(10) == 0


def test_a_log_whose_reader_stands_still_does_not_keep_a_second_signal_from_ending_it():
    pytest.importorskip("uvicorn")
    command = [sys.executable, "infer/serve.py", "--model", "bundled", "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=-1, stderr=-1, text=True) as process:
        try:
            port = int(re.search(r":(\d+) ", process.stdout.readline())[1])
            with socket.create_connection(("127.0.0.1", port), timeout=1) as connection, pytest.raises(TimeoutError):
                for _ in range(1000):  # lines in the log, until the pipe is full and the server waits
                    connection.sendall(request(b"", "/" + 150 * "x", "GET", Connection="keep-alive"))
                    assert connection.recv(65536)
            for number in (signal.SIGTERM, signal.SIGINT):
                process.send_signal(number)
                time.sleep(0.2)
            assert process.wait(10) == 128 + signal.SIGINT
        finally:
            process.kill()


SPEAKING_HANDLER = """
import signal
from taosr1.server.front import say
signal.signal(signal.SIGALRM, lambda *_: say("from the handler"))
signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)
for number in range(10_000):
    say(f"line {number}")
signal.setitimer(signal.ITIMER_REAL, 0)
"""


@pytest.mark.parametrize("unbuffered", ["1", ""])
def test_what_a_signal_handler_says_never_falls_into_another_line(unbuffered):
    pytest.importorskip("starlette")
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run([sys.executable, "-c", SPEAKING_HANDLER], cwd=ROOT, env=environment, capture_output=True)
    lines = done.stderr.decode().splitlines()
    assert done.returncode == 0 and sum(line.endswith("Z from the handler") for line in lines) > 10
    assert [line.split()[-1] for line in lines if "Z line " in line] == [str(number) for number in range(10_000)]
    assert all(re.fullmatch(r"[\dT:.-]+Z (line \d+|from the handler)", line) for line in lines)


SLOW_LOAD = """
import time
from taosr1.server.app import Server
from taosr1.server.lifecycle import listen, serve
from taosr1.server.limits import Limits
from taosr1.server.security import Access
from taosr1.server.weights import Loads
listening = listen("127.0.0.1", 0)
print(listening.getsockname()[1], flush=True)
serve(lambda: Server(Limits(), Access()), Loads(lambda: time.sleep(600)), listening, print)
"""


def test_while_the_judge_is_loaded_everybody_gets_503_and_a_signal_ends_it_with_0():
    pytest.importorskip("uvicorn")
    with subprocess.Popen([sys.executable, "-c", SLOW_LOAD], cwd=ROOT, stdout=-1, stderr=-1, text=True) as process:
        try:
            port = int(process.stdout.readline())
            for sent, says in ((request(b"", "/health", "GET"), b'"loading"'), (request(), b"being loaded")):
                with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
                    connection.sendall(sent)
                    found = answer(connection)
                assert statuses(found) == [503] and b"retry-after" in found.lower() and says in found
            process.terminate()
            assert process.wait(10) == 0
            assert process.stdout.read() == "" and "Traceback" not in process.stderr.read()
        finally:
            process.kill()


@pytest.mark.long
def test_killed_and_started_again_on_the_same_port_clients_that_retry_get_every_answer(start_server):
    server = start_server("--model", "bundled")
    port, answers, ended = server.port, {}, threading.Event()
    _, expected = server.ask("/score", {"query": "travel mug", "products": [f"mug number {i}" for i in range(40)]})

    def client(number: int) -> None:
        """Asks for a product of its own, again and again, until it has its answer."""
        body = json.dumps({"query": "travel mug", "products": [f"mug number {number}"]}).encode()
        for turn in range(15):
            while not ended.is_set():
                try:
                    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
                        connection.sendall(request(body))
                        found = answer(connection)
                    if statuses(found) == [200]:
                        results = json.loads(found.partition(b"\r\n\r\n")[2])["results"]
                        answers[number, turn] = results[0]["score"]
                        break
                except (OSError, ValueError, KeyError):
                    pass
                time.sleep(0.05)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    killed_with = len(answers)
    server.process.kill()
    server.process.wait()
    server = start_server("--model", "bundled", "--port", str(port))
    for thread in threads:
        thread.join(60)
    ended.set()
    assert killed_with < len(answers) == 40 * 15
    for (number, _), score in answers.items():
        assert score == pytest.approx(expected["results"][number]["score"], abs=3e-6)
    assert server.stop() == 0
