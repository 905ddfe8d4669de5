"""Explanations of several products, decoded one after the other between micro-batches."""

from __future__ import annotations

from collections.abc import Sequence

from taosr1.judge import Judge
from taosr1.server.queue import ScoringQueue
from taosr1.serving.explain import Explanation
from taosr1.task.judgement import Judgement


async def explain_all(
    queue: ScoringQueue, judge: Judge, pairs: Sequence[Judgement], max_new_tokens: int
) -> list[Explanation]:
    return [found async for found in queue.stream(
        lambda: (judge.explain(pair, max_new_tokens=max_new_tokens) for pair in pairs)
    )]  # fmt: skip
