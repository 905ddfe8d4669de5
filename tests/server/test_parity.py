"""examples/serving/parity.py against our own server, and against a server made of transformers.

The latter answers as vLLM (/generative_scoring; /v1/completions with return_tokens_as_token_ids) and SGLang (/v1/score)
do by their sources, from the same folder, by other code than ours: it is what a difference would show against.
"""

from __future__ import annotations

import json
import runpy
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from taosr1.judge_model import judge_folder

SCRIPT = Path(__file__).resolve().parents[2] / "examples/serving/parity.py"


def compare(*flags: str) -> int:
    """The exit code of the script."""
    try:
        runpy.run_path(str(SCRIPT))["main"](["--model", "bundled", "--limit", "40", "--batch", "16", *flags])
    except SystemExit as ended:
        return int(ended.code)
    return 0


@pytest.mark.parametrize("api", ["vllm", "sglang"])
def test_our_own_server_has_the_same_probabilities(api, server, capsys):
    assert compare("--url", server.url, "--api", api, "--tolerance", "1e-5") == 0
    printed = capsys.readouterr().out
    assert "40 prompts; largest difference of P(1..4): " in printed and "other grade: 0" in printed


@pytest.fixture(scope="module")
def foreign():
    """A server of transformers; `distort` scales its logits."""
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(judge_folder("bundled-student")).eval()

    class Handler(BaseHTTPRequestHandler):
        distort = 1.0

        def do_GET(self) -> None:
            self.say(200, {"object": "list", "data": [{"id": "judge"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert body["model"] == "judge"
            if self.path == "/v1/completions":
                self.say(200, {"choices": [self.choice(*found) for found in enumerate(self.probs(body["prompt"]))]})
            elif self.path in ("/generative_scoring", "/v1/score"):
                rows = self.probs([body["query"] + item for item in body["items"]])[:, body["label_token_ids"]].tolist()
                data = [{"index": place, "object": "score", "score": row[0]} for place, row in enumerate(rows)]
                self.say(200, {"scores": rows} if self.path == "/v1/score" else {"data": data[::-1]})
            else:
                self.say(404, {"error": {"message": "no such path"}})

        def probs(self, prompts: list[list[int]]) -> torch.Tensor:
            with torch.no_grad():
                last = [model(torch.tensor([prompt])).logits[0, -1] for prompt in prompts]
            return (torch.stack(last).double() * self.distort).softmax(-1)

        def choice(self, place: int, probs: torch.Tensor) -> dict:
            top = probs.topk(20)
            found = zip(top.indices.tolist(), top.values.log().tolist())
            return {"index": place, "logprobs": {"top_logprobs": [{f"token_id:{token}": log for token, log in found}]}}

        def say(self, status: int, body: object) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *arguments: object) -> None:
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}", Handler
    running.shutdown()


@pytest.mark.parametrize("api", ["vllm", "completions", "sglang"])
def test_transformers_has_the_same_probabilities_and_another_model_is_found(api, foreign, capsys):
    url, handler = foreign
    handler.distort = 1.0
    # The least of the 20 most probable tokens bounds what a label that is not among them can have.
    assert compare("--url", url, "--api", api, "--tolerance", "1e-4" if api == "completions" else "1e-5") == 0
    handler.distort = 0.9
    assert compare("--url", url, "--api", api, "--tolerance", "1e-3") == 1
    printed = capsys.readouterr().out
    assert "NOT within the tolerance of 0.001" in printed and f"(judge, --api {api})" in printed


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--url", "localhost:8001"], "--url is 'localhost:8001', expected http://HOST:PORT"),
        (["--url", "http://127.0.0.1:9"], "cannot be asked"),
        (["--url", "http://127.0.0.1:9", "--tolerance", "2"], "--tolerance is 2.0, expected a number from 0 to 1"),
        (["--url", "http://127.0.0.1:9", "--batch", "0"], "--batch is 0, expected at least 1"),
    ],
)
def test_what_cannot_be_compared_is_said(flags, says, capsys):
    with pytest.raises((ValueError, SystemExit)) as stopped:
        runpy.run_path(str(SCRIPT))["main"](["--model", "bundled", *flags])
    assert says in str(stopped.value) + capsys.readouterr().err


def test_a_server_without_this_path_is_said(foreign):
    url, _ = foreign
    with pytest.raises(ValueError, match=r"/v1/missing answered 404: .*no such path"):
        script = runpy.run_path(str(SCRIPT))
        script["post"](script["Config"](url=url), "/v1/missing", {"model": "judge"})
