"""One queue for the requests of all clients: their prompts are scored together, in micro-batches, by one thread.

A micro-batch is formed when the model is free, from all that waits then: every request gets a turn of some tokens
(`turns.py`), so that 5 products do not wait for another client's 1,000. Explanations are decoded in the same thread,
a step of each between two micro-batches. The event loop adds calls and is told what was found; one lock guards what
both threads touch, and nobody holds it while the model runs.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from taosr1.judge import Judge
from taosr1.server.errors import Refused
from taosr1.server.limits import Limits
from taosr1.server.metrics import Metrics
from taosr1.server.turns import Call, added_tokens, share_out
from taosr1.serving.scorer import Score

T = TypeVar("T")

FEWEST_TOK = 1024  # of a micro-batch, however slow the machine is: fewer make poor products
FORGET = 0.9  # what a micro-batch leaves of the speed that was measured before it
MOST_RETRY_S = 60.0


@dataclass(eq=False)
class _Stream:
    """One `stream`: what makes its iterator, the iterator once it has begun, and (item, error, more) of each step."""

    start: Callable[[], Iterator[Any]]
    given: asyncio.Queue
    iterator: Iterator[Any] | None = None
    left: bool = False  # nobody reads it any more


class ScoringQueue:
    """Runs the model for all requests. Used from one event loop; a thread of its own runs the forward passes."""

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self.limits, self.metrics = limits, metrics
        self._changed = threading.Condition()  # guards all that follows
        self._waiting: dict[Call, None] = {}  # calls with prompts that were not taken yet, in the order of their turns
        self._calls: set[Call] = set()  # those, and the ones that are being scored
        self._streams: dict[_Stream, None] = {}  # the first `max_streams` of them are being decoded
        self._tokens = 0  # of prompts that are not scored yet
        self._coming = 0
        self._closed = False
        # Of the last micro-batches: tokens of their prompts and seconds; tokens that were computed for them and seconds
        # of this thread's processor time.
        self._speed = (0.0, 0.0, 0.0, 0.0)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    # ---- The event loop's side ---------------------------------------------------------------------------------------
    @contextmanager
    def on_its_way(self) -> Iterator[None]:
        """Around what a request does before its `score`: it is read and tokenised.

        Only for requests that are announced so does an idle model wait, at most `max_wait_ms`: a client that is alone
        never waits for others.
        """
        with self._changed:
            self._coming += 1
        try:
            yield
        finally:
            asyncio.get_running_loop().call_soon(self._arrived)  # by then the same task has called `score`

    def _arrived(self) -> None:
        with self._changed:
            self._coming -= 1
            self._changed.notify()

    async def score(self, judge: Judge, prompts: Sequence[Sequence[int]], group: Hashable = None) -> list[Score]:
        """Scores in the order of the prompts, without `outside`: those of `judge.score_prompts`, to rounding.

        group: calls of one group (with the same query) are scored together where they fit, so that what their prompts
            share is computed once.
        A cancelled call frees its place at once: what of it was not scored yet is never scored.
        Raises: Refused with 422 for more tokens than the queue ever holds, 429 where it is full, 503 where the server
            drains; whatever `judge.score_prompts` raised, if this call's prompts alone raise it too.
        """
        if not prompts:
            return []
        self._loop, tokens = asyncio.get_running_loop(), sum(map(len, prompts))
        call = Call(judge, prompts, group, self._loop.create_future(), time.monotonic(), added_tokens(prompts))
        with self._changed:
            self._admit(tokens)
            self._waiting[call] = None
            self._calls.add(call)
            self._tokens += tokens
            self._changed.notify()
        self._say_queue()
        try:
            found = await call.answer
        finally:
            with self._changed:
                self._forget(call)
            self._say_queue()
        self.metrics.part("wait", call.taken_at - call.begun)
        self.metrics.part("score", time.monotonic() - call.taken_at)
        return found

    async def stream(self, steps: Callable[[], Iterator[T]]) -> AsyncIterator[T]:
        """What an iterator yields that runs the model: one `next` of it between two micro-batches.

        The first `max_streams` iterators are advanced in turns, others wait for one of them to end. `steps` makes the
        iterator; both run in the model's thread. Read it with `contextlib.aclosing`: a result that is closed, or whose
        reader is cancelled, frees its place at once.
        Raises: Refused as `score`, in place of the first item; what the iterator raised, in the place where it did.
        """
        self._loop = asyncio.get_running_loop()
        stream = _Stream(steps, asyncio.Queue())
        with self._changed:
            self._admit(0)
            self._streams[stream] = None
            self._changed.notify()
        self._say_queue()
        try:
            while True:
                item, error, more = await stream.given.get()
                if error:
                    raise error
                if not more:
                    return
                yield item
        finally:
            with self._changed:
                stream.left = True
                self._streams.pop(stream, None)
            self._say_queue()

    async def close(self) -> None:
        """Answer what was accepted, accept nothing more, and end the thread. To give up, cancel the calls."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        await asyncio.to_thread(self._thread.join)

    @property
    def alive(self) -> bool:
        """Whether the model's thread runs."""
        return self._thread.is_alive()

    @property
    def requests(self) -> int:
        """Requests that wait, are scored or are explained."""
        return len(self._calls) + len(self._streams)

    def retry_after_s(self) -> float:
        """When to come again: what is queued now takes so long at the speed of the last micro-batches."""
        tokens, seconds, *_ = self._speed
        return min(MOST_RETRY_S, max(1.0, self._tokens * seconds / tokens if tokens else 1.0))

    def _admit(self, tokens: int) -> None:
        """Raises: Refused where there is no room for a request of so many tokens."""
        most = self.limits.max_queue_tok
        if self._closed or not self.alive:
            raise Refused(503, "the server takes no more requests: it is stopping", retry_after_s=1.0)
        if tokens > most:
            fewer = "send fewer or shorter products, or start the server with a larger --max-queue-tok"
            raise Refused(422, f"the request has {tokens} prompt tokens, expected at most {most}: {fewer}")
        full = f"{self.requests} requests" if self.requests >= self.limits.max_queue_requests else ""
        full = full or (f"prompts of {self._tokens} tokens" if self._tokens + tokens > most else "")
        if full:
            wait_s = self.retry_after_s()
            raise Refused(429, f"the queue is full, {full} are waiting: try again later", retry_after_s=wait_s)

    def _forget(self, call: Call) -> None:
        """Take a call out that was answered, has failed or was cancelled."""
        self._waiting.pop(call, None)
        if call in self._calls:
            self._calls.remove(call)
            self._tokens -= sum(map(len, call.prompts[len(call.found) :]))

    def _say_queue(self) -> None:
        self.metrics.queue(self.requests, self._tokens)

    # ---- The model's thread ------------------------------------------------------------------------------------------
    def _run(self) -> None:
        while self._run_once():
            pass

    def _run_once(self) -> bool:
        """Wait for work, then one micro-batch and a step of each stream. Returns: False once the queue is closed.

        Its variables end with it: while the thread waits, nothing here keeps a judge that was exchanged, or the keys
        and values of a stream that ended, in memory.
        """
        with self._changed:
            idle = not self._waiting and not self._streams
            while not self._waiting and not self._streams:
                if self._closed:
                    return False
                self._changed.wait()
            if idle and not self._streams:
                self._wait_for_others()
            budget = self._budget()
            turns, computed = share_out(self._waiting, budget)
            streams = list(self._streams)[: self.limits.max_streams]
        if turns:
            self._score(turns, computed, budget)
        for stream in streams:
            self._advance(stream)
        return True

    def _wait_for_others(self) -> None:
        """Up to `max_wait_ms`, while requests are on their way that would fit into the micro-batch."""
        until, budget = time.monotonic() + self.limits.max_wait_ms / 1000, self._budget()
        while self._coming and not self._closed and self._tokens < budget:
            left_s = until - time.monotonic()
            if left_s <= 0 or not self._changed.wait(left_s):
                return

    def _budget(self) -> int:
        """Tokens of the next micro-batch: as many as take `batch_ms`, at least FEWEST_TOK, at most `batch_tok`.

        Choice: a GPU reaches `batch_tok` in less time. On a CPU it takes half a second or far more, and until then
        nobody would be answered. In processor time, so that a machine that is busy with other things does not make
        smaller micro-batches, which take more time for each prompt.
        """
        *_, computed, seconds = self._speed
        in_time = computed / seconds * self.limits.batch_ms / 1000 if seconds else FEWEST_TOK
        return int(min(self.limits.batch_tok, max(FEWEST_TOK, in_time)))

    def _score(self, turns: dict[Call, int], computed: int, budget: int) -> None:
        """Score the prompts that were taken from each call last, all together."""
        prompts = [prompt for call, count in turns.items() for prompt in call.prompts[call.taken - count : call.taken]]
        begun, cpu_begun = time.monotonic(), time.thread_time()
        for call in turns:
            call.taken_at = call.taken_at or begun
        try:
            found = iter(next(iter(turns)).judge.score_prompts(prompts))
        except Exception as error:  # of whatever kind: it is the answer to this request, and the next one is served
            self._score_alone(turns, budget, error)
            return
        seconds, tokens = time.monotonic() - begun, sum(map(len, prompts))
        measured = (tokens, seconds, computed, time.thread_time() - cpu_begun)
        self.metrics.batch(len(prompts), tokens, computed, budget, seconds)
        with self._changed:
            self._speed = tuple(FORGET * old + new for old, new in zip(self._speed, measured))
            answers = []
            for call, count in turns.items():
                scores = [next(found) for _ in range(count)]
                if call in self._calls:  # not cancelled meanwhile
                    self._tokens -= sum(map(len, call.prompts[len(call.found) :][:count]))
                    call.found += scores
                    if len(call.found) == len(call.prompts):
                        self._forget(call)
                        answers.append((call, None))
        self._tell(_answer, answers)

    def _score_alone(self, turns: dict[Call, int], budget: int, error: Exception) -> None:
        """After an error in a micro-batch of several calls: each by itself, so that only the one at fault fails."""
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # after an error of memory the allocator may hold too many small pieces
        if len(turns) > 1:
            for call, count in turns.items():
                if call in self._calls:
                    self._score({call: count}, sum(call.costs[call.taken - count : call.taken]), budget)
            return
        call = next(iter(turns))
        with self._changed:
            self._forget(call)
        self._tell(_answer, [(call, error)])

    def _advance(self, stream: _Stream) -> None:
        """One step of an iterator."""
        if stream.left:
            return
        item, error, more = None, None, True
        try:
            stream.iterator = stream.iterator or stream.start()
            item = next(stream.iterator)
        except StopIteration:
            more = False
        except Exception as raised:  # as in `_score`
            error, more = raised, False
        if not more:
            with self._changed:
                self._streams.pop(stream, None)
        self._tell(stream.given.put_nowait, (item, error, more))

    def _tell(self, told: Callable[[Any], None], what: Any) -> None:
        """Call a function in the event loop."""
        try:
            self._loop.call_soon_threadsafe(told, what)
        except RuntimeError:
            if not self._loop.is_closed():  # else nobody is left to be told
                raise


def _answer(answers: list[tuple[Call, Exception | None]]) -> None:
    for call, error in answers:
        if call.answer.done():  # cancelled
            continue
        if error is None:
            call.answer.set_result(call.found)
        else:
            call.answer.set_exception(error)
