"""The peers of the benchmark `serve.py`, as servers of their own: what a user would write in an afternoon.

    python examples/benchmarks/serve_peers.py --kind naive --model bundled
    python examples/benchmarks/serve_peers.py --kind padded --batch-tok 16384

naive:  starlette and uvicorn around `Judge`: each request is scored by itself, with our fast engine.
padded: the method of Hugging Face's text-embeddings-inference, in transformers with the same weights and the same
        prompts: the texts of all requests wait in one line and are taken in the order they came, as many as fit into a
        budget of padded tokens, each computed in full.
Both speak the part of POST /score that the benchmark uses.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a fresh checkout runs without being installed

import torch

from examples.benchmarks.common import load_transformers
from taosr1.judge import Judge
from taosr1.judge_model import BUNDLED_STUDENT, judge_folder
from taosr1.runtime.cli import option, parse_config
from taosr1.runtime.signals import run_main
from taosr1.sampling.batching import pad_right
from taosr1.sampling.label_probs import read_labels
from taosr1.serving.calibration import apply_temperature
from taosr1.serving.inputs import judgements_of


@dataclass(frozen=True)
class Config:
    kind: str = option("naive", "which peer", ("naive", "padded"))
    model: str = option(BUNDLED_STUDENT, "the judge: a bundled one or a folder")
    batch_tok: int = option(16384, "padded: rows x longest row")


class PaddedBatcher:
    """Texts wait in one line; a thread takes as many as fit and runs them, padded to the longest."""

    def __init__(self, model, judge: Judge, most: int) -> None:
        self.model, self.judge, self.most = model, judge, most
        self.line: deque[tuple[list[int], asyncio.Future]] = deque()
        self.changed = threading.Condition()
        threading.Thread(target=self.run, daemon=True).start()

    async def score(self, prompts: list[list[int]]) -> list[tuple[list[float], float]]:
        self.loop = asyncio.get_running_loop()
        futures = [self.loop.create_future() for _ in prompts]
        with self.changed:
            self.line += zip(prompts, futures)
            self.changed.notify()
        return [await future for future in futures]

    def run(self) -> None:
        while True:
            with self.changed:
                while not self.line:
                    self.changed.wait()
                batch, longest = [], 0
                while self.line:
                    longest = max(longest, len(self.line[0][0]))
                    if batch and (len(batch) + 1) * longest > self.most:
                        break
                    batch.append(self.line.popleft())
            found = self.forward([prompt for prompt, _ in batch])
            self.loop.call_soon_threadsafe(self.tell, [future for _, future in batch], found)

    @torch.no_grad()
    def forward(self, prompts: list[list[int]]) -> list[tuple[list[float], float]]:
        hidden = self.model.model(pad_right(prompts), use_cache=False).last_hidden_state  # (B, T, C)
        last = torch.tensor([len(prompt) - 1 for prompt in prompts])
        logits = self.model.lm_head(hidden[torch.arange(len(prompts)), last]).float()
        probs, mass = read_labels(logits, self.judge.model.tokenizer.label_ids)
        probs = apply_temperature(probs, self.judge.temperature)
        return list(zip(probs.tolist(), mass.tolist()))

    @staticmethod
    def tell(futures: list[asyncio.Future], found: list[tuple[list[float], float]]) -> None:
        for future, answer in zip(futures, found):
            future.set_result(answer)


# Given a request's parsed body, the results of its reply; work for the processor is done in a thread.
Answer = Callable[[dict, Callable], Awaitable[list[dict]]]


async def naive(judge: Judge, body: dict, in_thread: Callable) -> list[dict]:
    found = await in_thread(judge.score, body["query"], body["products"])
    return [{"index": place, **vars(score)} for place, score in enumerate(found)]


async def padded(batcher: PaddedBatcher, body: dict, in_thread: Callable) -> list[dict]:
    rows, _ = judgements_of(body["query"], body["products"])
    found = await batcher.score(await in_thread(batcher.judge.model.prompts, rows))
    return [{"index": place, "probs": probs, "label_mass": mass} for place, (probs, mass) in enumerate(found)]


def serve(answer: Answer, name: str) -> None:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    async def score(request):
        return JSONResponse({"results": await answer(await request.json(), run_in_threadpool)})

    app = Starlette(routes=[Route("/score", score, methods=["POST"])])
    listening = socket.create_server(("127.0.0.1", 0), backlog=2048)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as infer/serve.py: else each reply waits 40 ms
    print(f"http://127.0.0.1:{listening.getsockname()[1]} serves {name}", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run(sockets=[listening])


def main(argv: list[str] | None = None) -> None:
    config = parse_config(Config, __doc__, argv)
    judge = Judge.load(config.model)
    if config.kind == "naive":
        serve(partial(naive, judge), config.kind)
    else:
        model = load_transformers(judge_folder(config.model), torch.float32)
        serve(partial(padded, PaddedBatcher(model, judge, config.batch_tok)), config.kind)


if __name__ == "__main__":
    run_main(main, Config)
