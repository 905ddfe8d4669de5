"""Explanations as they are decoded, token by token between micro-batches; those of POST /explain as events.

event: score   the result of /score for this product, and `prompt`: what the model saw, as [{text, untrusted}]
event: token   {"text"}: what was decoded
event: step    {"name", "text"}: one line of the reasons is complete
event: done    {"notes"}: warnings about the answer
event: error   {"error", "status"}: in place of what would have come, since the status 200 is sent already
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from itertools import chain

from starlette.responses import StreamingResponse

from taosr1.judge import Judge
from taosr1.server.errors import OutOfTime, Refused
from taosr1.server.formats import ours
from taosr1.server.formats.format import Answer, Ask
from taosr1.server.queue import ScoringQueue
from taosr1.server.served import Served
from taosr1.server.waiting import within
from taosr1.serving.explain import Explanation
from taosr1.serving.scorer import Score
from taosr1.serving.stream import Event, Explained, Step, Token
from taosr1.task.judgement import Judgement

HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # nginx would keep events back to send many at once


async def explain_all(
    queue: ScoringQueue, judge: Judge, pairs: Sequence[Judgement], max_new_tokens: int
) -> list[Explanation]:
    """One stream for all of them: a request has one place among those that are decoded."""
    streams = (judge.explain_stream(pair, max_new_tokens=max_new_tokens) for pair in pairs)
    async with aclosing(queue.stream(lambda: chain.from_iterable(streams))) as events:
        return [event.explanation async for event in events if isinstance(event, Explained)]


@dataclass(frozen=True)
class Told:
    """One explanation of POST /explain that has begun. events: what follows its score."""

    ask: Ask
    served: Served
    id: str
    score: Score
    events: AsyncIterator[Event]

    def response(self, seconds: float, hurry: asyncio.Event) -> StreamingResponse:
        """It ends after so many seconds, or where `hurry` is set, with an error as its last event."""
        return StreamingResponse(self._lines(seconds, hurry), 200, HEADERS, "text/event-stream")

    async def _lines(self, seconds: float, hurry: asyncio.Event) -> AsyncIterator[str]:
        until = time.monotonic() + seconds
        async with aclosing(self.events):
            yield _line("score", self._scored())
            try:
                while True:
                    event = await within(_next(self.events), until - time.monotonic(), hurry)
                    if isinstance(event, Explained):
                        yield _line("done", {"notes": event.explanation.notes})
                        return
                    if isinstance(event, Token):
                        yield _line("token", {"text": event.text})
                    elif isinstance(event, Step):
                        yield _line("step", {"name": event.name, "text": event.text})
            except OutOfTime:
                why = "the server is stopping" if hurry.is_set() else "out of time (--request-timeout-s)"
                yield _line("error", ours.error(Refused(503, why)))
            except Exception:
                yield _line("error", ours.error(Refused(500, "internal error; the server's log names its place")))
                raise

    def _scored(self) -> dict:
        reply = ours.reply(self.ask, Answer([self.score], (), self.served, 0, self.id))
        seen = self.served.judge.model.marked_prompt(self.ask.pairs[0])
        return {**reply["results"][0], "prompt": [{"text": text, "untrusted": untrusted} for text, untrusted in seen]}


async def begin(queue: ScoringQueue, ask: Ask, served: Served, request_id: str, max_new_tokens: int) -> Told:
    """Waits for the score, which is the first event. Raises: Refused as `ScoringQueue.stream`."""
    events = queue.stream(lambda: served.judge.explain_stream(ask.pairs[0], max_new_tokens=max_new_tokens))
    try:
        first = await _next(events)
    except BaseException:
        await events.aclose()
        raise
    return Told(ask, served, request_id, first.score, events)


async def _next(events: AsyncIterator[Event]) -> Event:
    return await events.__anext__()


def _line(event: str, data: dict) -> str:
    return f"event: {event}\ndata: {json.dumps(data, ensure_ascii=False, allow_nan=False)}\n\n"
