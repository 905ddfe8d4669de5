"""What the server counts and times, in Prometheus' text format at /metrics."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from taosr1.serving.scorer import Score


class Metrics:
    """One registry for one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._rejected = Counter("taosr1_rejected", "Refused requests", ["status"], registry=self.registry)
        self._batches = Counter("taosr1_batches", "Forward passes", registry=self.registry)
        self._tokens = Counter("taosr1_prompt_tokens", "Prompt tokens scored", registry=self.registry)
        self._waiting = Gauge("taosr1_waiting_requests", "Requests waiting or being scored", registry=self.registry)

    def rejected(self, status: int) -> None:
        self._rejected.labels(str(status)).inc()

    def batch(self, prompts: int, tokens: int, budget: int, seconds: float) -> None:
        """One micro-batch was scored."""
        self._batches.inc()
        self._tokens.inc(tokens)

    def queue(self, requests: int, tokens: int) -> None:
        """What is waiting or being scored now."""
        self._waiting.set(requests)

    def part(self, name: str, seconds: float) -> None:
        """Time a request spent in one part: read, tokenise, wait, score, reply, total."""

    def scores(self, scores: Sequence[Score]) -> None:
        """Grades, tiers and label mass that were served."""

    def text(self) -> bytes:
        return generate_latest(self.registry)
