"""A real server in a process of its own, on a free port of this machine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


class RunningServer:
    """`python infer/serve.py ...` as a user starts it; `log` is its standard error."""

    def __init__(self, log: Path, *flags: str) -> None:
        command = [sys.executable, str(ROOT / "infer/serve.py"), "--port", "0", *flags]
        settings = {"stdout": subprocess.PIPE, "stderr": log.open("wb"), "cwd": ROOT, "text": True}
        self.log, self.process = log, subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, **settings)
        said = self.process.stdout.readline()
        found = re.search(r"http://([\d.]+):(\d+)", said)
        assert found, said + log.read_text()
        self.host, self.port = found[1], int(found[2])
        self.url = f"http://{self.host}:{self.port}"

    def ask(self, path: str, body: object = None, method: str = "", headers: dict | None = None) -> tuple[int, object]:
        """(status, JSON or text). A body that is bytes is sent as it is."""
        connection = HTTPConnection(self.host, self.port, timeout=60)
        try:
            sent = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
            method = method or ("GET" if body is None else "POST")
            connection.request(method, path, sent, {"Content-Type": "application/json", **(headers or {})})
            reply = connection.getresponse()
            text = reply.read().decode()
            return reply.status, json.loads(text) if "json" in reply.getheader("Content-Type", "") else text
        finally:
            connection.close()

    def stop(self) -> int:
        """Its exit code after SIGTERM."""
        self.process.terminate()
        return self.process.wait(60)


@pytest.fixture(scope="session")
def served():
    """The bundled student without a server around it, for formats as pure functions."""
    from taosr1.judge import Judge
    from taosr1.server.served import Served

    return Served.of(Judge.load("bundled"))


@pytest.fixture
def answered(served):
    """Reads a body with a format, scores its pairs with the real judge, and gives the reply as JSON brings it back."""
    from taosr1.server.formats.format import Answer
    from taosr1.server.limits import Limits

    def answer(form, body: object, **limits: object) -> object:
        ask = form.read(body, served, Limits(**limits))
        pairs, judge = list(ask.pairs), served.judge
        prompts = list(ask.prompts) or judge.model.prompts(pairs)
        found = tuple(judge.explain(pair.query, pair) for pair in pairs) if ask.explain else ()
        scores = judge.score_prompts(prompts)
        return json.loads(json.dumps(form.reply(ask, Answer(scores, found, served, sum(map(len, prompts)), "x"))))

    return answer


@pytest.fixture
def refusal(served):
    """The status and the message with which a format refuses a body; what it says never names a flag."""
    from taosr1.server.errors import Refused
    from taosr1.server.limits import Limits

    def refuse(form, body: object, **limits: object) -> tuple[int, str]:
        with pytest.raises(Refused) as caught:
            form.read(body, served, Limits(**limits))
        message = caught.value.message
        assert "--" not in message and "\n" not in message and len(message) < 500, message
        assert message in json.dumps(form.error(caught.value), ensure_ascii=False).replace('\\"', '"')
        return caught.value.status, message

    return refuse


@pytest.fixture(scope="session")
def start_server(tmp_path_factory) -> Iterator[Callable[..., RunningServer]]:
    """Starts servers with the flags given; all that still run are killed at the end."""
    for name in ("starlette", "uvicorn", "prometheus_client"):
        pytest.importorskip(name)
    running: list[RunningServer] = []

    def start(*flags: str) -> RunningServer:
        running.append(RunningServer(tmp_path_factory.mktemp("server") / "log.txt", *flags))
        return running[-1]

    yield start
    for server in running:
        server.process.kill()
        server.process.wait()


@pytest.fixture(scope="session")
def server(start_server) -> RunningServer:
    """The bundled student, served with default settings."""
    return start_server("--model", "bundled")


class OpenPage:
    """A tab with the page of a server. `asked` are the addresses it requested, `said` what its console said."""

    def __init__(self, browser, server: RunningServer, **settings) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **settings})
        self.tab, self.server = self.context.new_page(), server
        self.tab.set_default_timeout(10_000)
        self.asked: list[str] = []
        self.said: list[str] = []
        self.tab.on("request", lambda request: self.asked.append(request.url))
        self.tab.on("console", lambda message: self.said.append(message.text))
        self.tab.on("pageerror", lambda error: self.said.append(str(error)))
        self.tab.goto(server.url)
        self.tab.wait_for_selector("#examples button")

    def judge(self, query: str, products: str) -> None:
        """Type both, press the button and wait for the reply."""
        self.tab.fill("#query", query)
        self.tab.fill("#products", products)
        self.tab.click("#judge")
        self.tab.wait_for_selector("#results:not([aria-busy]) #table:not([hidden])")

    def texts(self, selector: str) -> list[str]:
        return self.tab.locator(selector).all_inner_texts()

    def check(self) -> None:
        """Nothing was asked of another origin, and nothing went wrong but what the server refused."""
        outside = [url for url in self.asked if not url.startswith((self.server.url + "/", "data:"))]
        assert not outside
        assert not [text for text in self.said if not text.startswith("Failed to load resource")]


@pytest.fixture
def open_page(browser) -> Iterator[Callable[..., OpenPage]]:
    """Opens the page of a server; every opened one is checked at the end."""
    opened: list[OpenPage] = []

    def start(server: RunningServer, **settings) -> OpenPage:
        opened.append(OpenPage(browser, server, **settings))
        return opened[-1]

    yield start
    for page in opened:
        page.check()
        page.context.close()
