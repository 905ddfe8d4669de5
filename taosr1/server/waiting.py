"""Waiting for something that may take too long: bounded in time, given up where the client leaves."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from taosr1.server.bodies import Receive
from taosr1.server.errors import ClientLeft, OutOfTime

T = TypeVar("T")


async def within(
    work: Coroutine[Any, Any, T], seconds: float, hurry: asyncio.Event, receive: Receive | None = None
) -> T:
    """The result of `work`; it is cancelled where it is not waited for any longer.

    hurry: ends all waiting. receive: of a request whose body is read, to see its client leave.
    Raises: OutOfTime, ClientLeft, and what `work` raises.
    """
    tasks: list[asyncio.Future] = [asyncio.ensure_future(work)]
    try:
        await asyncio.sleep(0)
        if tasks[0].done():  # as most bodies are: they came with the headers
            return tasks[0].result()
        tasks.append(asyncio.ensure_future(hurry.wait()))
        if receive is not None:
            tasks.append(asyncio.ensure_future(_left(receive)))
        await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            return tasks[0].result()
        if receive is not None and tasks[2].done():
            raise ClientLeft
        raise OutOfTime
    finally:
        unfinished = [task for task in tasks if not task.done()]
        for task in unfinished:
            task.cancel()
        if unfinished:
            await asyncio.wait(unfinished)
        # An error knows this frame, and a task its error: the circle would keep the request's texts in memory.
        tasks.clear()


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def in_background(work: Callable[[], T]) -> asyncio.Future[T]:
    """The result of `work`, run in a thread that does not keep the process from ending."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(set_it: Callable[[Any], None], value: object) -> None:
        if not future.done():
            set_it(value)

    def run() -> None:
        try:
            outcome = future.set_result, work()
        except BaseException as error:  # is raised where the result is waited for
            outcome = future.set_exception, error
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(settle, *outcome)

    threading.Thread(target=run, daemon=True).start()
    return future
