"""The outermost part of the application: every request goes in here, and every reply leaves with what all replies have.

That is: an id, the headers that protect the page, a line in the log, its share of the metrics; and for whatever goes
wrong inside, an error in the words of the request's format.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
import traceback
import uuid
from asyncio import wait_for
from asyncio.exceptions import TimeoutError as WaitedEnough
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import Response

from taosr1.runtime.messages import visible
from taosr1.server.connections import LINGER_S
from taosr1.server.errors import LEFT, ClientLeft, Refused
from taosr1.server.security import PROTECTION

_GIVEN_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)


@dataclass
class Exchange:
    """One request and what is said about it in the log. texts: of its query and products, for --log-text alone."""

    scope: Mapping[str, Any]
    receive: Any
    headers: Headers
    id: str
    begun: float
    products: int = 0
    tokens: int = 0
    texts: list[str] = field(default_factory=list)
    body_read: bool = False

    @property
    def method(self) -> str:
        return self.scope["method"]

    @property
    def path(self) -> str:
        return self.scope["path"]

    @property
    def has_body(self) -> bool:
        return self.headers.get("content-length", "0") != "0" or "transfer-encoding" in self.headers


class Front:
    """The ASGI application. `inside` is `app.Server`, whose `respond` answers an exchange."""

    def __init__(self, inside: Any) -> None:
        self.inside = inside

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        name = given if _GIVEN_ID.fullmatch(given) else uuid.uuid4().hex
        exchange = Exchange(scope, receive, headers, name, time.monotonic())

        async def receive_and_note() -> dict:
            message = await receive()
            exchange.body_read |= not message.get("more_body", False)
            return message

        exchange.receive, status = receive_and_note, LEFT
        self.inside.active += 1
        try:
            response = await self._response(exchange)
            status = response.status_code
            await _Reply(exchange, response, self._headers(exchange)).send(send)
        except ClientLeft:
            status = LEFT
        except Exception as error:  # after the status was sent: nothing but the log can be told
            self._report(exchange, error)
            raise
        finally:
            self.inside.active -= 1
            self._note(exchange, status)

    async def _response(self, exchange: Exchange) -> Response:
        """A response for whatever happens. Raises: ClientLeft alone."""
        try:
            if exchange.scope["http_version"] not in ("1.0", "1.1"):
                raise Refused(400, "this HTTP version is not supported, expected 1.1")
            if {"content-length", "transfer-encoding"} <= set(exchange.headers):
                # A proxy in front may have believed the other one of the two (request smuggling).
                raise Refused(400, "Content-Length and Transfer-Encoding say both how long the body is")
            return await self.inside.respond(exchange)
        except Refused as refused:
            return self._error(exchange, refused)
        except ClientLeft:
            raise
        except Exception as error:  # a bug: the client gets an answer, the log the place, and nobody the texts
            self._report(exchange, error)
            return self._error(exchange, Refused(500, "internal error; the server's log names its place"))

    def _report(self, exchange: Exchange, error: Exception) -> None:
        """The place of a bug in the log; its message may hold texts of the request."""
        frames = "".join(traceback.format_tb(error.__traceback__))
        said = f": {visible(str(error))}" if self.inside.log_text else ""
        say(f"{exchange.id} internal error, please report it:\n{frames}{type(error).__name__}{said}")

    def _error(self, exchange: Exchange, refused: Refused) -> Response:
        body = self.inside.error_body(exchange.path, refused)
        headers = {}
        if refused.retry_after_s is not None:
            headers["Retry-After"] = str(max(1, round(refused.retry_after_s)))
        if refused.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if refused.status == 405:
            headers["Allow"] = self.inside.methods(exchange.path)
        return Response(json.dumps(body), refused.status, headers, "application/json")

    def _headers(self, exchange: Exchange) -> dict[str, str]:
        return {"X-Request-Id": exchange.id, **PROTECTION, **self.inside.access.cors_headers(exchange.headers)}

    def _note(self, exchange: Exchange, status: int) -> None:
        seconds = time.monotonic() - exchange.begun
        self.inside.metrics.request(self.inside.known_path(exchange.path), status, seconds)
        path = visible(exchange.path)[:200].replace(" ", "%20")  # or a path could look like the fields behind it
        line = (
            f"{exchange.id} {visible(exchange.method)[:20]} {path} {status} "
            f"products={exchange.products} tokens={exchange.tokens} ms={1000 * seconds:.1f}"
        )
        if self.inside.log_text and exchange.texts:
            line += f" texts={json.dumps(exchange.texts)}"  # ASCII: no text can begin a line of its own
        say(line)


class _Reply:
    """Sends a response with further headers. A connection whose request was not read to its end is closed after it."""

    def __init__(self, exchange: Exchange, response: Response, headers: Mapping[str, str]) -> None:
        self.exchange, self.response, self.headers = exchange, response, headers
        self.closes = exchange.has_body and not exchange.body_read

    async def send(self, send: Any) -> None:
        self.response.headers.update(self.headers)
        if self.closes:
            self.response.headers["Connection"] = "close"

        async def send_and_linger(message: dict) -> None:
            last = message["type"] == "http.response.body" and not message.get("more_body")
            if not (last and self.closes):
                return await send(message)
            await send({**message, "more_body": True})
            with suppress(WaitedEnough):
                await wait_for(self._read_on(), LINGER_S)
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        await self.response(self.exchange.scope, self.exchange.receive, send_and_linger)

    async def _read_on(self) -> None:
        """Read and forget: closing now would reset the connection under a client that has not read its reply yet."""
        while not self.exchange.body_read:
            await self.exchange.receive()


def say(text: str) -> None:
    """One line in the log. A log that nobody reads any more (a closed pipe) stops no request.

    One system call a line, without Python's buffer: a signal handler that speaks while a line is printed would come
    between text and line feed (PYTHONUNBUFFERED=1), or raise RuntimeError (a buffer that is entered twice).
    """
    now = time.time()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
    line = f"{stamp}.{int(now % 1 * 1000):03}Z {text}\n"
    with suppress(OSError, ValueError):
        os.write(sys.stderr.fileno(), line.encode(errors="backslashreplace"))
