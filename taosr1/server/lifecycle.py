"""How the server starts, is told to stop, and ends: on top of uvicorn's own server.

uvicorn raises the signal that stopped it once more at its end, so its exit code says failure; here it is 0.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from taosr1.runtime.messages import counted
from taosr1.server.app import Server
from taosr1.server.connections import Connection
from taosr1.server.front import Front, say
from taosr1.server.weights import Loads, Weights

STOPS = (signal.SIGTERM, signal.SIGINT)
RELOADS = getattr(signal, "SIGHUP", None)  # Windows has none
# Shares of --drain-s: when requests that still wait get 503, and when the server ends whatever happens.
HURRY_FRAC, END_FRAC = 0.7, 0.9
BACKLOG = 4096  # connections that wait to be accepted; the system may allow fewer
LATE_S = 2  # beyond --drain-s, after which something hangs
CLOSING_S = 1  # for connections to take their last bytes
OWN_ADDRESS = "expected one of its own, such as 127.0.0.1, or 0.0.0.0 for all of them"


class Lifecycle(uvicorn.Server):
    """announce: called with the server once it is ready. `problem` is why it ended by itself, None where it was told
    to."""

    def __init__(self, server: Server, loads: Loads, announce: Callable[[Server], None]) -> None:
        limits = server.limits

        def connect(**given: Any) -> Connection:
            return Connection(limits, server.metrics, lambda what, status: say(f"- {what} {status}"), **given)

        super().__init__(
            uvicorn.Config(
                Front(server), http=connect, ws="none", lifespan="off", log_config=None, log_level="critical",
                access_log=False, server_header=False, proxy_headers=False, backlog=BACKLOG,
                timeout_keep_alive=limits.keep_alive_s, timeout_graceful_shutdown=CLOSING_S,
                h11_max_incomplete_event_size=limits.max_header_bytes,
            )
        )  # fmt: skip
        self.inside, self.announce = server, announce
        self.weights = Weights(server, loads)
        self.problem: Exception | None = None
        self.tasks: list[asyncio.Task] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, with 503 for everybody, while the judge is loaded and tested."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: say(f"note: {context['message']} {context.get('exception', '')}"))
        await super().startup(sockets)
        if RELOADS is not None:
            loop.add_signal_handler(RELOADS, self._reload)
        self.tasks.append(loop.create_task(self._get_ready()))

    async def _get_ready(self) -> None:
        say("listening, and loading the judge: until it is ready, everybody gets 503")
        try:
            await self.weights.first()
        except Exception as problem:  # is raised again by `serve`, in the main thread
            self.problem, self.should_exit = problem, True
            return
        self.announce(self.inside)
        await self.weights.watch()

    def _reload(self) -> None:
        if self.inside.served is not None and not self.inside.draining:
            self.tasks = [task for task in self.tasks if not task.done()]
            self.tasks.append(asyncio.get_running_loop().create_task(self.weights.exchange()))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer what was accepted; whoever comes meanwhile gets 503, and no new connection once all is answered."""
        inside, loop, drain_s = self.inside, asyncio.get_running_loop(), self.inside.limits.drain_s
        begun = loop.time()
        inside.draining = True
        inside.metrics.ready(None)
        for task in self.tasks:
            task.cancel()
        while (inside.active or self._unread_bytes()) and loop.time() < begun + END_FRAC * drain_s:
            if loop.time() > begun + HURRY_FRAC * drain_s:
                inside.hurry.set()
            await asyncio.sleep(0.02)
        await super().shutdown(sockets)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(inside.queue.close(), max(0.1, begun + drain_s - loop.time()))

    def _unread_bytes(self) -> int:
        """Bytes of replies that clients have not read yet: they would be lost with the process."""
        return sum(connection.transport.get_write_buffer_size() for connection in self.server_state.connections)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """While the server runs, its signals are these; uvicorn's own would be raised again at the end."""
        before = {number: signal.signal(number, self.handle_exit) for number in STOPS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: Any) -> None:
        name = "Ctrl-C" if sig == signal.SIGINT else signal.Signals(sig).name
        if self.should_exit:
            _end_after(0.5, 128 + sig)
            say(f"a second signal ({name}): ended at once")
            os._exit(128 + sig)
        _end_after(self.inside.limits.drain_s + LATE_S, 1)
        self.should_exit = self.inside.draining = True
        waiting, drain_s = counted(self.inside.active, "request"), self.inside.limits.drain_s
        say(f"stopping ({name}): {waiting} to be answered, at most {drain_s:g} s; a second signal ends at once")


def _end_after(seconds: float, code: int) -> None:
    """End the process even where its main thread hangs, as it does in a log whose reader stands still."""
    timer = threading.Timer(seconds, os._exit, (code,))
    timer.daemon = True
    timer.start()


def serve(
    make_server: Callable[[], Server], loads: Loads, listening: socket.socket, announce: Callable[[Server], None]
) -> None:
    """Serve until a signal. Raises: why the judge could not be loaded."""

    async def run() -> Exception | None:
        lifecycle = Lifecycle(make_server(), loads, announce)
        await lifecycle.serve(sockets=[listening])
        return lifecycle.problem

    problem = asyncio.run(run())
    if problem is not None:
        raise problem
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # nobody reads it any more
            stream.flush()
    os._exit(0)  # a load or a forward pass that was given up may still run in its thread


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises: OSError saying what to change."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.create_server(address[:2], family=family, backlog=BACKLOG)
        # asyncio does it for sockets that it opens. Without it the body of each reply waits 40 ms for the client's ACK.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    except socket.gaierror as error:
        raise OSError(f"--host {host}: {error.strerror.lower()}; {OWN_ADDRESS}") from error
    except PermissionError as error:
        raise OSError(f"--port {port}: ports below 1024 are for root, choose a higher one") from error
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            raise OSError(f"--host {host} is not an address of this machine: {OWN_ADDRESS}") from error
        way_out = "choose another --port, 0 takes any"
        raise OSError(f"--port {port} on {host} is not free ({os.strerror(error.errno)}): {way_out}") from error


def allow_open_files(connections: int) -> None:
    """Let the process open a file for each connection. Raises: ValueError where the system allows fewer."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, most = (float("inf") if limit == resource.RLIM_INFINITY else limit for limit in (soft, hard))
    wanted, least = 8 * connections + 256, connections + 256  # those that are refused stay open for a second, too
    if most < least:
        raise ValueError(f"--max-connections {connections} needs more open files than the {hard} of 'ulimit -n -H'")
    if soft < min(wanted, most):
        with contextlib.suppress(ValueError, OSError):  # a service manager may forbid it, and sets the limit itself
            resource.setrlimit(resource.RLIMIT_NOFILE, (int(min(wanted, most)), hard))
            return
    if soft < least:
        raise ValueError(f"--max-connections {connections} needs more open files than the {soft} of 'ulimit -n'")
