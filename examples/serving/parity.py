"""Compare a judge here with the same checkpoint on a vLLM or SGLang server: same prompts as token ids, same P(1..4).

    vllm serve runs/mine/checkpoints/best ...                      # see examples/serving/vllm.md
    python examples/serving/parity.py --url http://localhost:8001 --api vllm --model runs/mine

Each prompt is encoded once, by this judge, and sent as token ids, so that a chat template or tokenizer that the server
applies in another way cannot hide. Compared are the probabilities of the four labels at the first token of the reply,
unscaled, and the label mass. Exit code 1 where any probability differs by more than --tolerance.

--api says how the server is asked:
  vllm         POST /generative_scoring, four times a batch, with the labels rotated: it returns the first label's score
  completions  POST /v1/completions for one token with its 20 most probable ones; a label that is not among them counts
               as 0, so probabilities are right to the least of those. Any server of OpenAI's API that takes token ids
  sglang       POST /v1/score, which returns the probabilities of all labels

The default tolerance is for servers in bfloat16; in float32 the difference should be below 1e-4 (--tolerance 1e-4).
"""

from __future__ import annotations

import json
import math
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from os.path import commonprefix
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a fresh checkout runs without being installed

from taosr1.judge import Judge
from taosr1.judge_model import SERVING_DTYPE_HELP, SERVING_DTYPES
from taosr1.runtime.cli import at_least, check, option, parse_config
from taosr1.runtime.signals import run_main
from taosr1.serving.deployed import MODEL_HELP
from taosr1.synthetic.shop import read_pool
from taosr1.task.grades import GRADES

APIS = ("vllm", "completions", "sglang")
MOST_LOGPROBS = 20  # that vLLM returns, unless it is started with more


@dataclass(frozen=True)
class Config:
    url: str = option("", "address of the server, such as http://localhost:8001")
    api: str = option("vllm", "how it is asked", APIS)
    model: str = option("", MODEL_HELP)
    data: str = option("", "rows to compare on (none: pairs of the bundled shop)")
    limit: int = option(200, "most rows")
    batch: int = option(32, "prompts a request")
    tolerance: float = option(0.02, "largest difference of a probability that is accepted")
    served_name: str = option("", "the server's name for the model (none: the first that it lists)")
    api_key: str = option("", "key of the server")
    device: str = option("cpu", "torch device of the judge here")
    dtype: str = option("float32", SERVING_DTYPE_HELP, SERVING_DTYPES)

    def __post_init__(self) -> None:
        check([
            (not self.url.startswith(("http://", "https://")), f"--url is {self.url!r}, expected http://HOST:PORT"),
            *at_least(self, limit=1, batch=1),
            (not 0 <= self.tolerance <= 1, f"--tolerance is {self.tolerance}, expected a number from 0 to 1"),
        ])  # fmt: skip


@dataclass(frozen=True)
class Server:
    """The other server. labels: token ids of "1" to "4"."""

    config: Config
    name: str
    labels: Sequence[int]

    def probabilities(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        """Of the four labels in the whole vocabulary, (P, 4)."""
        ask = {"vllm": self._vllm, "completions": self._completions, "sglang": self._sglang}[self.config.api]
        size = self.config.batch
        return np.concatenate([ask(prompts[start : start + size]) for start in range(0, len(prompts), size)])

    def _vllm(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        columns = []
        for turn in range(len(self.labels)):
            rotated = [*self.labels[turn:], *self.labels[:turn]]
            body = {**_split(prompts), "label_token_ids": rotated, "apply_softmax": False}
            data = self._post("/generative_scoring", body)["data"]
            columns.append([item["score"] for item in sorted(data, key=lambda item: item["index"])])
        return np.array(columns).T

    def _sglang(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        body = {**_split(prompts), "label_token_ids": [*self.labels], "apply_softmax": False}
        return np.array(self._post("/v1/score", body)["scores"])

    def _completions(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        one_token = {"max_tokens": 1, "temperature": 0, "logprobs": MOST_LOGPROBS, "return_tokens_as_token_ids": True}
        reply = self._post("/v1/completions", {"prompt": [[*prompt] for prompt in prompts], **one_token})
        rows = []
        for choice in sorted(reply["choices"], key=lambda choice: choice["index"]):
            found = choice["logprobs"]["top_logprobs"][0]
            logprobs = [found.get(f"token_id:{label}", -math.inf) for label in self.labels]
            rows.append([math.exp(logprob) for logprob in logprobs])
        return np.array(rows)

    def _post(self, path: str, body: dict) -> dict:
        return post(self.config, path, {"model": self.name, **body})


def _split(prompts: Sequence[Sequence[int]]) -> dict[str, list]:
    """The prompts as a query, what all of them begin with, and items, the rest of each."""
    same = len(commonprefix([[*prompt[:-1]] for prompt in prompts]))
    return {"query": [*prompts[0][:same]], "items": [[*prompt[same:]] for prompt in prompts]}


def post(config: Config, path: str, body: dict | None = None) -> dict:
    """The JSON that a path answers; a GET without a body. Raises: ValueError with what the server says."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {config.api_key or 'none'}"}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(config.url.rstrip("/") + path, data, headers)
    try:
        with urllib.request.urlopen(request, timeout=600) as reply:
            return json.loads(reply.read())
    except urllib.error.HTTPError as error:
        said = error.read().decode("utf-8", "replace")[:300]
        raise ValueError(f"{config.url}{path} answered {error.code}: {said}") from error
    except OSError as error:
        raise ValueError(f"{config.url}{path} cannot be asked: {error}") from error


def report(here: np.ndarray, there: np.ndarray, tolerance: float) -> bool:
    """Print how far the probabilities (P, 4), of the whole vocabulary, are apart; True where within the tolerance."""
    shares = [part / np.maximum(part.sum(-1, keepdims=True), 1e-30) for part in (here, there)]
    apart = np.abs(shares[0] - shares[1])
    row = int(apart.max(-1).argmax())
    grades = [part.argmax(-1) + GRADES[0] for part in shares]
    mass = np.abs(here.sum(-1) - there.sum(-1))
    within = bool(apart.max() <= tolerance)
    print(f"{len(here)} prompts; largest difference of P(1..4): {apart.max():.2e}, mean {apart.mean():.2e}")
    print(f"largest difference of the label mass: {mass.max():.2e}; other grade: {(grades[0] != grades[1]).sum()}")
    print(f"the row furthest apart is {row}: here {shares[0][row].round(4)}, there {shares[1][row].round(4)}")
    print(f"{'within' if within else 'NOT within'} the tolerance of {tolerance:g}")
    return within


def main(argv: list[str] | None = None) -> None:
    config = parse_config(Config, __doc__, argv)
    # Temperature 1: a server knows nothing of the scaling that is stored beside the weights.
    judge = Judge.load(config.model, device=config.device, dtype=config.dtype, beta=0.5, temperature=1.0)
    if config.data:
        from taosr1.data.judgements import read_judgements

        rows = read_judgements(config.data, need_grade=False)
    else:
        rows = read_pool("dev")
    prompts = judge.model.prompts(rows[: config.limit])
    name = config.served_name or post(config, "/v1/models")["data"][0]["id"]
    there = Server(config, name, judge.model.tokenizer.label_ids).probabilities(prompts)
    if there.shape != (len(prompts), len(GRADES)):
        raise ValueError(f"{config.url} answered {there.shape[0]} of {len(prompts)} prompts")
    scores = judge.score_prompts(prompts)
    here = np.array([score.probs for score in scores]) * np.array([[score.label_mass] for score in scores])
    print(f"{config.url} ({name}, --api {config.api}) against {judge.name} here")
    if not report(here, there, config.tolerance):
        raise SystemExit(1)


if __name__ == "__main__":
    run_main(main, Config)
