"""Explanations in the queue: a step of each between two micro-batches, bounded, and given up when nobody reads them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import aclosing
from functools import partial

import pytest

pytest.importorskip("prometheus_client")

from taosr1.judge import Judge
from taosr1.server.errors import Refused
from taosr1.server.limits import Limits
from taosr1.server.metrics import Metrics
from taosr1.server.queue import ScoringQueue
from taosr1.synthetic.shop import read_pool

ROWS = read_pool("dev")


@pytest.fixture(scope="module")
def bundled() -> Judge:
    return Judge.load("bundled")


def in_queue(work, **limits) -> object:
    async def run() -> object:
        queue = ScoringQueue(Limits(**limits), Metrics())
        try:
            return await asyncio.wait_for(work(queue), 60)
        finally:
            await queue.close()

    return asyncio.run(run())


async def read(queue: ScoringQueue, steps) -> list:
    return [item async for item in queue.stream(steps)]


def test_streamed_explanations_are_those_of_explain_whatever_runs_beside_them(bundled):
    prompts = bundled.model.prompts(ROWS[:200])

    async def work(queue: ScoringQueue) -> list:
        scoring = [queue.score(bundled, prompts[place : place + 20]) for place in range(0, 200, 20)]
        streams = [read(queue, partial(bundled.explain_stream, row)) for row in ROWS[:6]]
        found = await asyncio.gather(*streams, *scoring)
        assert queue.requests == 0
        return found

    found = in_queue(work)
    for row, events in zip(ROWS, found[:6]):
        assert events[-1].explanation == bundled.explain(row)
    grades = [score.grade for scores in found[6:] for score in scores]
    assert grades == [score.grade for score in bundled.score_prompts(prompts)]


def test_scoring_and_streams_take_turns(bundled):
    """An endless stream advances exactly once after every micro-batch."""
    prompts, seen = bundled.model.prompts(ROWS[:1000]), []

    async def work(queue: ScoringQueue) -> list[float]:
        def endless() -> Iterator[int]:
            while True:  # the micro-batches that were scored before each step
                seen.append(queue.metrics.registry.get_sample_value("taosr1_batches_total"))
                yield 0

        async with aclosing(queue.stream(endless)) as stream:
            await anext(stream)
            await queue.score(bundled, prompts)

    in_queue(work, batch_tok=1024)
    assert seen[-1] > 15
    between = [batches for batches in seen if 0 < batches < seen[-1]]
    assert between == [float(number) for number in range(1, int(seen[-1]))]


def test_at_most_max_streams_run_and_the_next_begins_when_one_ends():
    running, most = set(), []

    def steps(name: int) -> Iterator[int]:
        running.add(name)
        most.append(len(running))
        yield from range(20)
        running.remove(name)

    async def work(queue: ScoringQueue) -> list:
        return await asyncio.gather(*(read(queue, partial(steps, name)) for name in range(7)))

    assert in_queue(work, max_streams=2) == 7 * [list(range(20))]
    assert max(most) == 2


def test_more_streams_than_the_queue_holds_are_refused_at_their_first_item():
    async def work(queue: ScoringQueue) -> int:
        reading = [asyncio.create_task(read(queue, partial(iter, range(10**6)))) for _ in range(3)]
        await asyncio.sleep(0.01)
        with pytest.raises(Refused) as caught:
            await read(queue, partial(iter, [1]))
        for task in reading:
            task.cancel()
        await asyncio.gather(*reading, return_exceptions=True)
        assert await read(queue, partial(iter, [1])) == [1]
        assert queue.requests == 0
        return caught.value.status

    assert in_queue(work, max_queue_requests=3) == 429


def test_a_stream_that_nobody_reads_ends_at_once_and_is_closed():
    ended = []

    def steps() -> Iterator[int]:
        try:
            yield from range(10**9)
        finally:
            ended.append(True)

    async def work(queue: ScoringQueue) -> None:
        async with aclosing(queue.stream(steps)) as stream:
            async for number in stream:
                if number == 3:
                    break
        assert queue.requests == 0
        for _ in range(100):
            await asyncio.sleep(0.01)
            if ended:
                return

    in_queue(work)
    assert ended == [True]


def test_an_error_of_a_stream_reaches_its_reader_and_no_one_else(bundled):
    def breaks() -> Iterator[int]:
        yield 1
        raise ValueError("broken")

    async def work(queue: ScoringQueue) -> list:
        found = []
        with pytest.raises(ValueError, match="broken"):
            async for item in queue.stream(breaks):
                found.append(item)
        with pytest.raises(TypeError):
            await read(queue, lambda: 3)
        assert await read(queue, partial(iter, [1, 2])) == [1, 2]
        return found

    assert in_queue(work) == [1]


def test_closing_waits_for_the_streams_that_were_accepted():
    async def run() -> list:
        queue = ScoringQueue(Limits(), Metrics())
        reading = asyncio.create_task(read(queue, partial(iter, range(500))))
        await asyncio.sleep(0)
        await queue.close()
        with pytest.raises(Refused) as caught:
            await read(queue, partial(iter, [1]))
        assert caught.value.status == 503
        return await reading

    assert asyncio.run(run()) == list(range(500))
