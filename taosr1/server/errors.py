"""A request that is refused: its status, what is wrong, and when to try again. Each format words it in its own way."""

from __future__ import annotations

LEFT = 499  # what nginx writes into its log for a client that did not wait


class Refused(Exception):
    """Raised wherever a request cannot be answered; `front.py` answers with it in the words of the request's format.

    status: 400 no JSON or no HTTP, 401 no key, 403 another Host, 404, 405, 408 too slow, 409 another rubric, 413 too
        large, 415 no JSON by its content type, 422 a field that cannot be used, 429 queue full, 431 headers too large,
        503 not ready, draining, out of time or too many connections.
    message: one line for the client: what was found, what is expected, what to change.
    retry_after_s: sent as Retry-After, in whole seconds; given with 429 and 503.
    """

    def __init__(self, status: int, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.retry_after_s = status, message, retry_after_s


class ClientLeft(Exception):
    """The client closed its connection before it was answered. In the log and in the metrics it is status 499."""


class OutOfTime(Exception):
    """A part of a request took longer than it may."""
