"""The bounds of the server, as flags: whatever goes over one of them is refused with a status, never left waiting."""

from __future__ import annotations

from dataclasses import dataclass

from taosr1.runtime.cli import at_least, option


@dataclass(frozen=True)
class Limits:
    """Inherited by the Config of infer/serve.py. Sizes are of one request, unless `queue` or `connections` is named."""

    max_body_bytes: int = option(2 << 20, "longest request body; a longer one gets 413")
    max_header_bytes: int = option(16 << 10, "longest request line with headers; longer ones get 431")
    max_products: int = option(1000, "most products (documents, texts, items) of a request; more get 422")
    max_chars: int = option(20_000, "longest query or product text, before tokenising; longer ones get 422 or are cut")
    max_queue_requests: int = option(512, "requests that may wait or be scored at a time; one more gets 429")
    max_queue_tok: int = option(2_000_000, "prompt tokens of all waiting requests; one more request gets 429")
    max_connections: int = option(1024, "open connections; one more gets 503 and is closed")
    max_explained: int = option(20, "most products of a request with explain: true; more get 422")
    header_timeout_s: float = option(10.0, "time a client has to send its request line and headers; then 408")
    body_timeout_s: float = option(30.0, "time a client has to send the body, then 408; or to read its reply")
    keep_alive_s: float = option(30.0, "how long an idle connection is kept open")
    request_timeout_s: float = option(60.0, "time until an answer; then 503 with Retry-After")
    max_streams: int = option(4, "explanations decoded at a time, a token of each in turn; others wait")
    max_wait_ms: float = option(3.0, "longest time an idle model waits for requests that are being read")
    batch_tok: int = option(16384, "most tokens scored together; changes memory and speed only")
    batch_ms: float = option(200.0, "time they should take: fewer on a slow device. Less is fairer, more is faster")
    drain_s: float = option(20.0, "after SIGTERM: time for the accepted requests to be answered")


def limit_problems(limits: Limits) -> list[tuple[bool, str]]:
    """Problems for `taosr1.runtime.cli.check`."""
    counts = ("max_products", "max_chars", "max_queue_requests", "max_queue_tok", "max_connections", "max_explained")
    counts += ("max_streams", "batch_tok")
    times = ("batch_ms", "header_timeout_s", "body_timeout_s", "keep_alive_s", "request_timeout_s", "drain_s")
    lowest = dict.fromkeys(counts, 1) | dict.fromkeys(times, 0.1) | {"max_wait_ms": 0}
    return at_least(limits, **lowest, max_body_bytes=1024, max_header_bytes=1024)
