"""Explanations of several products, decoded one after the other, token by token, between micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from itertools import chain

from taosr1.judge import Judge
from taosr1.server.queue import ScoringQueue
from taosr1.serving.explain import Explanation
from taosr1.serving.stream import Explained
from taosr1.task.judgement import Judgement


async def explain_all(
    queue: ScoringQueue, judge: Judge, pairs: Sequence[Judgement], max_new_tokens: int
) -> list[Explanation]:
    """One stream for all of them: a request has one place among those that are decoded."""
    streams = (judge.explain_stream(pair, max_new_tokens=max_new_tokens) for pair in pairs)
    async with aclosing(queue.stream(lambda: chain.from_iterable(streams))) as events:
        return [event.explanation async for event in events if isinstance(event, Explained)]
