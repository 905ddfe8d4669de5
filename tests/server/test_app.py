"""The server as a client sees it."""

from __future__ import annotations


def test_a_request_is_scored_in_its_own_order(server):
    status, reply = server.ask("/score", {"query": "desk lamp", "products": ["Steel mug", "LED desk lamp"]})
    assert status == 200
    assert [result["index"] for result in reply["results"]] == [0, 1]
    assert reply["results"][0]["score"] < reply["results"][1]["score"]
