"""What the server counts and times, in Prometheus' text format at /metrics.

Names end as Prometheus adds to them: counters in `_total`, histograms in `_bucket`, `_sum` and `_count`.
"""

from __future__ import annotations

from collections import Counter as Counted
from collections.abc import Sequence

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from taosr1.server.errors import LEFT
from taosr1.server.served import Served
from taosr1.serving.outside import LOW_MASS_REASON
from taosr1.serving.scorer import Score

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
PARTS = ("read", "tokenise", "wait", "score", "explain", "write", "total")
PRODUCTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 1.0)
disable_created_metrics()  # a second series for each counter: when it began, which Prometheus sees for itself


class Metrics:
    """One registry for one server. Every method may be called from any thread."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # memory, CPU seconds, open files
        self._requests = self._counter("requests", "Requests by path and status (499: the client left)", "path status")
        self._rejected = self._counter("rejected", "Requests that were refused, by status", "status")
        self._parts = self._histogram("part_seconds", "Time of requests by part", SECONDS, "part")
        self._products = self._histogram("request_products", "Products of a request", PRODUCTS)
        self._batches = self._counter("batches", "Micro-batches")
        self._tokens = self._counter("prompt_tokens", "Prompt tokens that were scored")
        self._fill = self._histogram(
            "batch_fill", "Tokens computed for a micro-batch, of the most it could take", SHARES
        )
        self._batch_seconds = self._histogram("batch_seconds", "Time of a micro-batch", SECONDS)
        self._batch_prompts = self._histogram("batch_prompts", "Prompts of a micro-batch", PRODUCTS)
        self._queue_requests = self._gauge("queue_requests", "Requests that wait or are being scored")
        self._queue_tokens = self._gauge("queue_tokens", "Prompt tokens that wait or are being scored")
        self._connections = self._gauge("connections", "Open connections")
        self._refused = self._counter("refused_connections", "Connections over --max-connections")
        self._served = self._counter("products", "Products that were scored, by grade and tier", "grade tier")
        self._outside = self._counter("outside", "Products outside of what the judge has learned", "reason")
        self._mass = self._histogram("label_mass", "Label mass of the scored products", SHARES)
        self._swaps = self._counter("swaps", "Loads of new weights: swapped or failed", "result")
        self._ready = self._gauge("ready", "1 once the self-test passed, 0 before it and while stopping")
        self._model = self._gauge("model", "The judge that is served", "model_sha rubric")
        for part in PARTS:  # so that a query for any of them finds a series from the start
            self._parts.labels(part)
        for result in ("swapped", "failed"):
            self._swaps.labels(result)

    def _counter(self, name: str, help: str, labels: str = "") -> Counter:
        return Counter(f"taosr1_{name}", help, labels.split(), registry=self.registry)

    def _gauge(self, name: str, help: str, labels: str = "") -> Gauge:
        return Gauge(f"taosr1_{name}", help, labels.split(), registry=self.registry)

    def _histogram(self, name: str, help: str, buckets: Sequence[float], labels: str = "") -> Histogram:
        return Histogram(f"taosr1_{name}", help, labels.split(), buckets=buckets, registry=self.registry)

    def request(self, path: str, status: int, seconds: float) -> None:
        """One request was answered, or left by its client. path: one of ours, or "other"."""
        self._requests.labels(path, str(status)).inc()
        self._parts.labels("total").observe(seconds)
        if status >= 400 and status != LEFT:
            self.rejected(status)

    def rejected(self, status: int) -> None:
        self._rejected.labels(str(status)).inc()

    def part(self, name: str, seconds: float) -> None:
        """Time a request spent in one of `PARTS`."""
        self._parts.labels(name).observe(seconds)

    def batch(self, prompts: int, tokens: int, computed: int, budget: int, seconds: float) -> None:
        """One micro-batch was scored: its prompts, their tokens, and those that were computed, of at most `budget`."""
        self._batches.inc()
        self._tokens.inc(tokens)
        self._fill.observe(computed / budget)
        self._batch_seconds.observe(seconds)
        self._batch_prompts.observe(prompts)

    def queue(self, requests: int, tokens: int) -> None:
        """What waits or is being scored now."""
        self._queue_requests.set(requests)
        self._queue_tokens.set(tokens)

    def connections(self, open_now: int) -> None:
        self._connections.set(open_now)

    def refused_connection(self) -> None:
        self._refused.inc()

    def scores(self, scores: Sequence[Score]) -> None:
        """The scores of one request: grades, tiers, and what shows drift."""
        self._products.observe(len(scores))
        for (grade, tier), number in Counted((score.grade, score.tier) for score in scores).items():
            self._served.labels(str(grade), tier).inc(number)
        for score in scores:
            self._mass.observe(score.label_mass)
            if score.outside:
                reason = LOW_MASS_REASON if score.outside == LOW_MASS_REASON else "unknown words"
                self._outside.labels(reason).inc()

    def swap(self, result: str) -> None:
        """New weights were loaded: "swapped", or "failed" and the old ones stay."""
        self._swaps.labels(result).inc()

    def ready(self, served: Served | None) -> None:
        """The judge that is served from now on; None while nothing is."""
        self._ready.set(served is not None)
        if served is not None:
            self._model.clear()
            self._model.labels(served.model_sha, served.rubric_sha).set(1)

    def text(self) -> bytes:
        return generate_latest(self.registry)
