"""Which weights are served: loaded and tested in the background, then exchanged in one assignment.

Requests go on with the judge they began with, and every reply names its judge (`model_sha`). If a checkpoint cannot be
loaded or fails the self-test, the log says why, and the judge before it stays.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from taosr1.model.io.model_folder import model_folder
from taosr1.runtime.files import MANIFEST_FILE
from taosr1.server.app import Server
from taosr1.server.front import say
from taosr1.server.served import Served
from taosr1.server.waiting import in_background
from taosr1.serving.deployed import CALIBRATION_FILE, TIERING_FILE

Load = Callable[[], tuple[Served, list[str]]]


@dataclass(frozen=True)
class Loads:
    """load: makes the judge that is served, tested, with warnings about it. second: the same for --compare.
    watched: the run folder of --watch, "" for none. every_s: the time between two looks at it."""

    load: Load
    second: Load | None = None
    watched: str = ""
    every_s: float = 5.0


class Weights:
    """Loads and exchanges the judge of a server."""

    def __init__(self, server: Server, loads: Loads) -> None:
        self.server, self.loads, self.watched = server, loads, loads.watched
        self.seen: object = None  # what was served last, or could not be
        self.swapping, self.asked = asyncio.Lock(), False  # asked: an exchange waits for the one that is going on
        self.beside: list[str] = []  # warnings about the judge of --compare

    async def first(self) -> None:
        """Load what is served to start with. Raises: whatever loading or the self-test raise."""
        self.seen = self._fingerprint()
        if self.loads.second is not None:
            self.server.compare, self.beside = await in_background(self.loads.second)
            self._warn(self.beside)
        self._serve(*await in_background(self.loads.load))

    async def exchange(self) -> None:
        """Load anew, and serve what was loaded; where that fails, say so and change nothing."""
        if self.asked:
            return  # the one that waits will load what is there then
        self.asked = True
        async with self.swapping:
            self.asked = False
            self.seen, server = self._fingerprint(), self.server
            try:
                served, warnings = await in_background(self.loads.load)
            except Exception as error:  # whatever is wrong with new weights, the old ones go on serving
                server.metrics.swap("failed")
                say(f"new weights are not served, {server.served.name} goes on ({type(error).__name__}: {error})")
                return
            self._serve(served, warnings)
            server.metrics.swap("swapped")
            say(f"now serving {served.name}, model_sha {served.model_sha[:16]}")

    async def watch(self) -> None:
        """Look at the watched run from time to time, and exchange the weights where its best checkpoint is another."""
        while self.watched:
            await asyncio.sleep(self.loads.every_s)
            if self._fingerprint() != self.seen:
                await self.exchange()

    def _serve(self, served: Served, warnings: list[str]) -> None:
        self._warn(warnings)
        self.server.warnings = self.beside + warnings
        self.server.served = served
        self.server.metrics.ready(served)

    def _warn(self, warnings: list[str]) -> None:
        for warning in warnings:
            say(f"warning: {warning}")

    def _fingerprint(self) -> object:
        """Differs where the watched run has another best checkpoint, or other numbers beside it."""
        if not self.watched:
            return None
        try:
            folder = Path(model_folder(self.watched))
            files = [folder / name for name in (MANIFEST_FILE, CALIBRATION_FILE, TIERING_FILE)]
            return str(folder), [file.stat().st_mtime_ns if file.exists() else 0 for file in files]
        except Exception as error:  # of whatever kind: the next look may find the run in order
            return str(error)  # tried once, so that the log says it once
