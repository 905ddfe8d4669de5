"""/health, /info and /metrics say what is true, and the counters move by as much as happened."""

from __future__ import annotations

import pytest

from taosr1 import __version__
from tests.server.http_bytes import PAIR

Sample = tuple[str, tuple[tuple[str, str], ...]]


@pytest.fixture(scope="module")
def counted(start_server):
    """A server that nobody else asks."""
    return start_server("--model", "bundled")


def samples(server) -> dict[Sample, float]:
    """Every sample of /metrics by name and labels, as Prometheus' own parser reads it."""
    parser = pytest.importorskip("prometheus_client.parser")
    status, text = server.ask("/metrics")
    assert status == 200
    families = list(parser.text_string_to_metric_families(text))
    assert {family.type for family in families} == {"counter", "gauge", "histogram"}
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def grown(before: dict[Sample, float], after: dict[Sample, float]) -> dict[Sample, float]:
    return {name: value - before.get(name, 0) for name, value in after.items() if value != before.get(name, 0)}


def test_the_counters_move_by_what_happened(counted):
    before = samples(counted)
    _, reply = counted.ask("/score", {"query": "travel mug", "products": ["steel travel mug", "iphone 15 pro max"]})
    counted.ask("/score", {"query": "travel mug", "products": []})
    counted.ask("/score", b"no JSON")
    counted.ask("/no/such/path")
    counted.ask("/another")
    found = grown(before, samples(counted))

    def value(name: str, **labels: str) -> float:
        return found.get((f"taosr1_{name}", tuple(sorted(labels.items()))), 0)

    for status in ("200", "400", "422"):
        assert value("requests_total", path="/score", status=status) == 1
    assert value("requests_total", path="other", status="404") == 2  # of any path: else a scanner makes many series
    assert value("rejected_total", status="404") == 2 and value("rejected_total", status="422") == 1
    for result in reply["results"]:
        assert value("products_total", grade=str(result["grade"]), tier=result["tier"]) >= 1
    assert sum(value for (name, _), value in found.items() if name == "taosr1_products_total") == 2
    assert value("outside_total", reason="unknown words") == 1
    assert value("label_mass_count") == value("request_products_sum") == value("batch_prompts_sum") == 2
    assert value("label_mass_sum") == pytest.approx(sum(result["label_mass"] for result in reply["results"]))
    assert value("prompt_tokens_total") > 10 and value("batches_total") == 1 and 0 < value("batch_fill_sum") <= 1
    for part in ("tokenise", "wait", "score", "write"):
        assert value("part_seconds_count", part=part) >= 1, part
        assert value("part_seconds_sum", part=part) < 10
    assert value("part_seconds_count", part="read") == 3
    assert value("part_seconds_count", part="total") == 6  # the first look at /metrics itself is one of them


def test_an_explanation_is_counted_and_its_tokens_are_not_prompts(counted):
    before = samples(counted)
    counted.ask("/score", {"query": "travel mug", "products": ["steel travel mug"], "explain": True})
    found = grown(before, samples(counted))
    assert found["taosr1_part_seconds_count", (("part", "explain"),)] == 1
    assert found["taosr1_label_mass_count", ()] == 1


def test_what_is_open_and_waiting_is_back_at_rest(counted):
    found = samples(counted)
    assert found["taosr1_connections", ()] == 1  # the one that asks
    assert found["taosr1_queue_requests", ()] == found["taosr1_queue_tokens", ()] == 0
    assert found["taosr1_ready", ()] == 1
    _, info = counted.ask("/info")
    labels = (("model_sha", info["model_sha"]), ("rubric", info["rubric"]))
    assert found["taosr1_model", labels] == 1
    assert found["process_resident_memory_bytes", ()] > 1e7


def test_health_and_info_name_the_judge_its_prompt_and_every_limit(counted):
    _, reply = counted.ask("/score", PAIR)
    status, health = counted.ask("/health")
    assert status == 200 and health["status"] == "ready" and health["warnings"] == []
    status, info = counted.ask("/info")
    facts = ("model", "model_sha", "rubric", "beta", "temperature")
    assert status == 200 and {name: info[name] for name in facts} == {name: reply[name] for name in facts}
    assert health["model_sha"] == info["model_sha"] and info["version"] == __version__
    assert info["order"] == "post-cot" and info["fields"] == ["title", "price"] and info["compare"] is None
    assert info["limits"]["max_products"] == 1000 and info["limits"]["drain_s"] == 20
    assert info["formats"]["score"] == ["/score"] and "/v1/rerank" in sum(info["formats"].values(), [])
    for paths in info["formats"].values():
        for path in paths:
            assert counted.ask(path, b"{}")[0] in (400, 422)
