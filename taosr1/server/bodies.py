"""Request bodies: read with a bound on their size, and parsed as strict JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from taosr1.runtime.jsonl import clean_value
from taosr1.server.errors import ClientLeft, Refused

BODIES_AT_A_TIME = 64  # of the longest length: what all clients together may be sending, or wait for an answer to
SMALL = 64 << 10  # bytes of a body that is always read, or a few clients with large ones could shut all others out
MAX_DIGITS = 100  # of a whole number; beyond 308 it would be no float
Receive = Callable[[], Awaitable[Mapping[str, Any]]]


def check_content_type(headers: Mapping[str, str]) -> None:
    """Raises: Refused with 415 for what is not uncompressed JSON in UTF-8 by its headers.

    A web page of another origin can send other content types without asking, but not this one.
    """
    kind, _, rest = headers.get("content-type", "").lower().partition(";")
    kind, rest = kind.strip(), rest.replace(" ", "").replace('"', "")
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        shown = f"the content type is {kind[:60]!r}" if kind else "the content type is missing"
        raise Refused(415, f"{shown}, expected application/json (curl: -H 'Content-Type: application/json')")
    if rest.startswith("charset=") and rest != "charset=utf-8":
        raise Refused(415, "JSON is expected in UTF-8, the content type names another charset")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise Refused(415, "compressed bodies are not read: send the JSON without Content-Encoding")


class Bodies:
    """Reads bodies; knows how many bytes of bodies are held by all requests together, until they are answered."""

    def __init__(self, most: int) -> None:
        self.most, self.held = most, 0

    async def read(self, headers: Mapping[str, str], receive: Receive) -> bytes:
        """The whole body, as it arrives, whatever length its headers claim.

        Raises: Refused with 413 before more than `most` bytes are read, 503 where all clients together send too much;
            ClientLeft.
        """
        declared = headers.get("content-length", "0")
        self._check(int(declared) if declared.isdecimal() else 0)
        parts, size = [], 0
        try:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientLeft
                part = message.get("body", b"")
                size += len(part)
                self.held += len(part)
                self._check(size)
                parts.append(part)
                if not message.get("more_body"):
                    return b"".join(parts)
        finally:
            self.held -= size

    @contextmanager
    def holding(self, size: int) -> Iterator[None]:
        """While a body that was read is in memory."""
        self.held += size
        try:
            yield
        finally:
            self.held -= size

    def _check(self, size: int) -> None:
        if size > self.most:
            raise Refused(413, f"the body is longer than {self.most:,} bytes: send fewer products, or --max-body-bytes")
        if size > SMALL and self.held > BODIES_AT_A_TIME * self.most:
            what = "too many large bodies are being sent or answered"
            raise Refused(503, f"{what}: try again, or send fewer products", retry_after_s=1)


def parse_json(body: bytes) -> Any:
    """The JSON value in a body. NUL and halves of surrogate pairs, which no reply could hold, become U+FFFD.

    Choice: a name that comes twice in an object is refused, since readers differ in which of the two they take.
    Raises: Refused with 400 for anything else than strict JSON in UTF-8, and for what is nested too deeply.
    """
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Refused(400, f"the body is not UTF-8: byte {error.start} is 0x{body[error.start]:02x}") from None
    if not text.strip():
        raise Refused(400, "the body is empty, expected a JSON object")
    rules = {"parse_constant": _no_constant, "parse_float": _finite, "parse_int": _short}
    try:
        return clean_value(json.loads(text, object_pairs_hook=_without_repeats, **rules))
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise Refused(400, f"the body is not JSON: {error.msg} ({where})") from None
    except RecursionError:
        raise Refused(400, "the body's JSON is nested too deeply") from None
    except ValueError as error:  # of the rules above
        raise Refused(400, f"the body's JSON cannot be used: {error}") from None


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError("a number is too large")
    return number


def _short(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a whole number has more than {MAX_DIGITS} digits")
    return int(digits)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name comes twice in one object")
    return found
