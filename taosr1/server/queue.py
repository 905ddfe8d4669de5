"""One queue for the requests of all clients: their prompts are scored together, in micro-batches, by one thread."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from taosr1.judge import Judge
from taosr1.server.limits import Limits
from taosr1.server.metrics import Metrics
from taosr1.serving.scorer import Score

T = TypeVar("T")


class ScoringQueue:
    """Runs the model for all requests. Used from the event loop; one thread of its own runs the forward passes."""

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self.limits, self.metrics = limits, metrics
        self._thread = ThreadPoolExecutor(1, "model")

    async def score(self, judge: Judge, prompts: Sequence[Sequence[int]]) -> list[Score]:
        """Scores in the order of the prompts, without `outside`.

        A cancelled call frees its place at once: what of it was not scored yet is never scored.
        Raises: Refused with 429 where the queue is full, 503 where the server drains.
        """
        begun = time.monotonic()
        found = await asyncio.get_running_loop().run_in_executor(self._thread, judge.score_prompts, prompts)
        tokens = sum(map(len, prompts))
        self.metrics.batch(len(prompts), tokens, self.limits.batch_tok, time.monotonic() - begun)
        return found

    async def stream(self, steps: Callable[[], Iterator[T]]) -> AsyncIterator[T]:
        """What an iterator yields that runs the model, one `next` between two micro-batches."""
        loop, end = asyncio.get_running_loop(), object()
        iterator = await loop.run_in_executor(self._thread, steps)
        while (found := await loop.run_in_executor(self._thread, next, iterator, end)) is not end:
            yield found

    async def close(self) -> None:
        """Answer what was accepted, accept nothing more, and end the thread."""
        self._thread.shutdown()
