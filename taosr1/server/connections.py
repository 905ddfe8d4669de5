"""Connections: how many there may be, and how long a client may take to send its headers and to read its reply.

uvicorn reads HTTP with h11, but has no time-out for headers, answers everybody with 503 where there are too many
connections, and knows only status 400 for what is no HTTP. `Connection` adds what is missing.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from taosr1.server.limits import Limits
from taosr1.server.metrics import Metrics

AT_A_TIME = 16 << 10  # bytes, of which h11 makes events without a look at anything else
MOST_FRAMING = 32 << 10  # bytes of chunk sizes and line ends, beside a tenth of the body
LINGER_S = 1.0  # how long a connection is still read from after its last reply, so that the client can read the reply
_WHAT_IS_WRONG = {
    400: "this is no valid HTTP request",
    408: "the request line and headers took longer than {timeout:g} s (--header-timeout-s)",
    431: "the request line and headers are longer than {longest:,} bytes (--max-header-bytes)",
    501: "this transfer encoding is not supported, expected chunked or none",
    503: "{most:,} connections are open, which is all there may be (--max-connections): try again",
}


class Connection(H11Protocol):
    """One connection of one client."""

    def __init__(self, limits: Limits, metrics: Metrics, log: Callable[[str, int], None], **given: Any) -> None:
        """log(what, status) is called for what is answered here, before it is a request. given: uvicorn's own."""
        super().__init__(**given)
        self.limits, self.metrics, self.log = limits, metrics, log
        self.refused = False
        self.body_bytes = self.framing_bytes = 0  # of the body that is being read: its own, and those of its chunks
        self.timer: asyncio.TimerHandle | None = None  # of the headers, while they are awaited
        self.unread: asyncio.TimerHandle | None = None  # of a reply, while the client has not read it

    # ---- uvicorn calls these -----------------------------------------------------------------------------------------
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.refused = len(self.connections) >= self.limits.max_connections
        if self.refused:  # not among `self.connections`, which it would fill for the others
            self.transport = transport
            self.metrics.refused_connection()
            self._answer(503)
            return
        super().connection_made(transport)
        self.metrics.connections(len(self.connections))
        self._start_timer()

    def connection_lost(self, error: Exception | None) -> None:
        self._stop_timer()
        self._was_read()
        if self.flow is not None:  # it was one of the open connections
            super().connection_lost(error)
            self.metrics.connections(len(self.connections))

    def data_received(self, data: bytes) -> None:
        if self.refused:
            return  # read and forgotten until the connection is closed
        for start in range(0, len(data), AT_A_TIME):
            self._read(data[start : start + AT_A_TIME])
        if self.conn.their_state is not h11.IDLE:
            self._stop_timer()  # the headers are complete
        elif self.timer is None and not self.transport.is_closing():
            self._start_timer()  # the next request of a connection that is kept has begun

    def on_response_complete(self) -> None:
        with suppress(h11.LocalProtocolError):
            super().on_response_complete()
        if self.transport.get_write_buffer_size():
            self._wait_for_reader()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._wait_for_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._was_read()

    def timeout_keep_alive_handler(self) -> None:
        with suppress(h11.LocalProtocolError):
            super().timeout_keep_alive_handler()

    def shutdown(self) -> None:
        try:
            super().shutdown()
        except h11.LocalProtocolError:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Called inside uvicorn's `except`: h11 says which status its error stands for."""
        error = sys.exc_info()[1]
        self._refuse(getattr(error, "error_status_hint", 400))

    # ---- our own -----------------------------------------------------------------------------------------------------
    def _read(self, data: bytes) -> None:
        """Hand some bytes to h11, and refuse a body whose chunks are so small that reading them is an attack.

        h11 takes 40 microseconds a chunk: 6 MB of chunks of one byte would keep everybody waiting for half a minute.
        """
        cycle, before = self.cycle, len(self.cycle.body) if self.cycle else 0
        within_body = self.conn.their_state is h11.SEND_BODY
        with suppress(h11.LocalProtocolError):  # the connection was closed while its last bytes were read
            super().data_received(data)
        if self.refused or not (within_body and self.conn.their_state is h11.SEND_BODY and self.cycle is cycle):
            self.body_bytes = self.framing_bytes = 0
            return
        grown = len(cycle.body) - before
        self.body_bytes += grown
        self.framing_bytes += len(data) - grown
        if self.framing_bytes > MOST_FRAMING + self.body_bytes / 10:
            self._refuse(400)

    def _start_timer(self) -> None:
        self.timer = self.loop.call_later(self.limits.header_timeout_s, self._refuse, 408)

    def _stop_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def _refuse(self, status: int) -> None:
        """Answer with an error, unless a reply has begun, and close. A request that is being read is dropped."""
        self._stop_timer()
        self.refused = True
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._answer(status)
        else:
            self.transport.close()

    def _answer(self, status: int) -> None:
        """Write a reply without h11, which may have given up, and close soon."""
        limits = self.limits
        numbers = {"most": limits.max_connections, "longest": limits.max_header_bytes}
        numbers["timeout"] = limits.header_timeout_s
        body = json.dumps({"error": _WHAT_IS_WRONG[status].format(**numbers), "status": status}).encode()
        retry = "Retry-After: 1\r\n" if status == 503 else ""
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n{retry}X-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.metrics.rejected(status)
        self.log("connection", status)
        if self.transport.can_write_eof():
            self.transport.write_eof()  # closing now would reset what the client has not read yet
        self.loop.call_later(LINGER_S, self.transport.abort)

    def _wait_for_reader(self) -> None:
        self._was_read()
        self.unread = self.loop.call_later(self.limits.body_timeout_s, self._abort_unread)

    def _was_read(self) -> None:
        if self.unread is not None:
            self.unread.cancel()
            self.unread = None

    def _abort_unread(self) -> None:
        if self.transport.get_write_buffer_size():
            self.transport.abort()
