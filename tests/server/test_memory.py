"""What a request held is free once it was answered, refused or left: judges, bodies, keys and values."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator
from contextlib import aclosing, suppress

import pytest

pytest.importorskip("starlette")

from taosr1.judge import Judge
from taosr1.server.bodies import BODIES_AT_A_TIME, SMALL, Bodies
from taosr1.server.errors import ClientLeft, OutOfTime, Refused
from taosr1.server.limits import Limits
from taosr1.server.metrics import Metrics
from taosr1.server.queue import ScoringQueue
from taosr1.server.waiting import within


class Held:
    """Something large that a request holds."""


async def gone(reference: weakref.ref) -> bool:
    """Whether it is gone within a second, while nothing else happens."""
    for _ in range(100):
        if reference() is None:
            return True
        await asyncio.sleep(0.01)
    return False


def test_an_idle_queue_keeps_neither_an_exchanged_judge_nor_a_stream_that_was_left():
    async def run() -> tuple[bool, bool]:
        queue, judge, held = ScoringQueue(Limits(), Metrics()), Judge.load("bundled"), []
        old = weakref.ref(judge)

        def steps() -> Iterator[int]:
            keys = Held()
            held.append(weakref.ref(keys))
            while keys:
                yield 1

        try:
            async with aclosing(queue.stream(steps)) as stream:
                await stream.__anext__()
            stream_gone = await gone(held[0])
            await queue.score(judge, [[1, 2, 3]])
            del judge
            gc.collect()  # the model's modules know each other
            return stream_gone, await gone(old)
        finally:
            await queue.close()

    assert asyncio.run(run()) == (True, True)


@pytest.mark.parametrize("ends", [ValueError, OutOfTime, ClientLeft])
def test_what_a_request_held_is_free_at_once_however_it_ends(ends):
    """A circle through the error would wait for the garbage collector, which comes rarely: 300 bodies kept 400 MB."""

    async def work(held: Held) -> None:
        await asyncio.sleep(0.01)
        if ends is ValueError:
            raise ValueError
        await asyncio.sleep(60)

    async def receive() -> dict:
        if ends is not ClientLeft:
            await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    async def run() -> bool:
        held = Held()
        reference = weakref.ref(held)
        waiting = within(work(held), 0.1, asyncio.Event(), receive)
        del held
        with suppress(ends):
            await waiting
            pytest.fail("it ended well")
        del waiting
        return reference() is None

    gc.disable()
    try:
        assert asyncio.run(run())
    finally:
        gc.enable()


def test_a_body_is_counted_until_its_request_is_answered_and_small_ones_are_always_read():
    most = 4 * SMALL

    async def read(bodies: Bodies, size: int) -> int:
        async def receive() -> dict:
            return {"type": "http.request", "body": b"x" * size, "more_body": False}

        return len(await bodies.read({"content-length": str(size)}, receive))

    async def run() -> None:
        bodies = Bodies(most)
        with bodies.holding(BODIES_AT_A_TIME * most):
            with pytest.raises(Refused) as refused:
                await read(bodies, SMALL + 1)
            assert refused.value.status == 503 and refused.value.retry_after_s
            assert await read(bodies, SMALL) == SMALL
        assert await read(bodies, SMALL + 1) == SMALL + 1 and bodies.held == 0

    asyncio.run(run())
