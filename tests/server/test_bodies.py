"""Bodies: how many bytes all clients together may be sending, and what counts as JSON."""

from __future__ import annotations

import asyncio

import pytest

from taosr1.server.bodies import BODIES_AT_A_TIME, SMALL, Bodies, parse_json
from taosr1.server.errors import ClientLeft, Refused


def test_all_bodies_together_are_bounded_and_what_was_held_is_given_back():
    bodies = Bodies(2 * SMALL)

    async def half_a_body() -> bytes:
        sent = iter([b"x" * (2 * SMALL)])

        async def receive() -> dict:
            if (part := next(sent, None)) is None:
                await asyncio.sleep(60)  # the rest never comes
            return {"type": "http.request", "body": part, "more_body": True}

        return await bodies.read({}, receive)

    async def run() -> list[object]:
        clients = [asyncio.ensure_future(half_a_body()) for _ in range(BODIES_AT_A_TIME + 5)]
        await asyncio.sleep(0.1)
        assert bodies.held == 2 * SMALL * BODIES_AT_A_TIME
        for client in clients:
            client.cancel()
        return await asyncio.gather(*clients, return_exceptions=True)

    refused = [outcome for outcome in asyncio.run(run()) if isinstance(outcome, Refused)]
    assert len(refused) == 5 and bodies.held == 0
    assert all(outcome.status == 503 and outcome.retry_after_s for outcome in refused)


@pytest.mark.parametrize("declared", ["", "5", "1000", "999999999999999999999", "-1", "x"])
def test_a_body_is_as_long_as_what_arrives_whatever_its_headers_say(declared):
    sent = iter([b"x" * 600, b"x" * 600])

    async def receive() -> dict:
        return {"type": "http.request", "body": next(sent), "more_body": True}

    with pytest.raises(Refused) as refused:
        asyncio.run(Bodies(1000).read({"content-length": declared} if declared else {}, receive))
    assert refused.value.status == 413
    taken = len(list(sent))
    assert taken == (2 if declared == "999999999999999999999" else 0)  # a length that cannot be is not read at all


def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_error_of_it():
    sent = iter([{"type": "http.request", "body": b"x", "more_body": True}, {"type": "http.disconnect"}])

    async def receive() -> dict:
        return next(sent)

    with pytest.raises(ClientLeft):
        asyncio.run(Bodies(1000).read({}, receive))


def test_json_is_read_as_it_is_meant():
    assert parse_json('{"a": [1, 2.5, "\u706f", null, true, {"b": {}}]}'.encode()) == {
        "a": [1, 2.5, "\u706f", None, True, {"b": {}}]
    }
    assert parse_json(b'"\\ud83d\\udca1 \\ud83d \\u0000"') == "\U0001f4a1 \ufffd \ufffd"
    with pytest.raises(Refused, match="more than 100 digits"):
        parse_json(b"1" * 101)
    assert parse_json(b"1" * 100) == int("1" * 100)
