"""5,000 clients at once, a third of them hostile: bounded answers, right answers, flat memory, and normal again after.

Everything is on this machine and bounded in count and time. Where the system allows fewer open files, fewer clients
come, and the test says how many.
"""

from __future__ import annotations

import asyncio
import json
import random
import resource
import time
from collections import Counter
from dataclasses import dataclass, field

import pytest

from tests.server.http_bytes import request, statuses

CLIENTS, LEAST = 5000, 1000
QUERY = "travel mug but not steel"
BRANDS, KINDS = ("Norvell", "Oddly", "Kestro", "Galden"), ("travel mug", "rain jacket", "desk lamp", "camping tent")
TITLES = [f"{brand} {kind} {of}" for brand in BRANDS for kind in KINDS for of in ("steel", "bamboo", "cotton")]
ANSWERED = {200, 400, 408, 413, 422, 429, 431, 499, 503}
HOSTILE = {
    "garbage": b"\x16\x03\x01 no HTTP\r\n\r\n",
    "bad JSON": request(b'{"query": '),
    "deep JSON": request(b"[" * 5000),
    "bad UTF-8": request(b'{"query": "\xff"}'),
    "too many": request(json.dumps({"query": QUERY, "products": ["mug"] * 10_000}).encode()),
    "empty": request(json.dumps({"query": QUERY, "products": []}).encode()),
    "too large": request(b"", Content_Length=str(100 << 20)),
    "huge header": request(b"", X_Huge="x" * 100_000),
    "half a body": request(b'{"query": ', Content_Length="500"),
    "half a header": b"POST /score HTTP/1.1\r\nHost: loc",
}


@dataclass
class Storm:
    """What the clients saw. found: statuses; wrong: what no client may see; asked: requests that wanted an answer."""

    found: Counter = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


async def read_all(reader: asyncio.StreamReader) -> bytes:
    found = b""
    try:
        while part := await asyncio.wait_for(reader.read(65536), 60):
            found += part
    except ConnectionResetError:
        pass
    return found


async def client(server, number: int, expected: dict[str, float], storm: Storm) -> None:
    """One client: asks for its own products, or does something hostile, or leaves before its answer."""
    draw = random.Random(number)
    kind = draw.choice(["asks"] * 8 + ["leaves", *HOSTILE][number % 11 : number % 11 + 1] * 4)
    titles = draw.sample(TITLES, draw.randint(1, 8))
    own = request(json.dumps({"query": QUERY, "products": titles}).encode())
    try:
        reader, writer = await asyncio.open_connection(server.host, server.port)
    except OSError as error:
        storm.wrong.append(f"no connection: {error}")
        return
    try:
        writer.write(HOSTILE.get(kind, own))
        if kind == "leaves":
            await asyncio.sleep(draw.random() / 5)
            storm.found["left"] += 1
            return
        answer = await read_all(reader)
    finally:
        writer.close()
    (status,) = statuses(answer) or [0]
    storm.found[status] += 1
    if status == 200 and kind == "asks":
        results = json.loads(answer.partition(b"\r\n\r\n")[2])["results"]
        right = [result["index"] for result in results] == list(range(len(titles)))
        gaps = [abs(result["score"] - expected[title]) for result, title in zip(results, titles, strict=True)]
        if not right or max(gaps) > 3e-6:
            storm.wrong.append(f"{titles} got {results}")
    elif status == 0 or (status == 200) or status not in ANSWERED:
        storm.wrong.append(f"{kind}: status {status}, {answer[:200]!r}")


def run_storm(server, clients: int, expected: dict[str, float]) -> Storm:
    storm = Storm()

    async def run() -> None:
        await asyncio.gather(*(client(server, number, expected, storm) for number in range(clients)))

    asyncio.run(asyncio.wait_for(run(), 100))
    return storm


def megabytes(server) -> float:
    with open(f"/proc/{server.process.pid}/status") as file:
        return int(next(line for line in file if line.startswith("VmRSS")).split()[1]) / 1024


@pytest.mark.long
def test_five_thousand_clients_get_answers_and_the_server_is_itself_again_in_five_seconds(start_server, capsys):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    clients = CLIENTS if hard == resource.RLIM_INFINITY else min(CLIENTS, hard - 500)
    assert clients >= LEAST, f"'ulimit -n -H' is {hard}: too few open files for this test"
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        server = start_server("--model", "bundled", "--body-timeout-s", "5")
        _, reply = server.ask("/score", {"query": QUERY, "products": TITLES})
        expected = {title: result["score"] for title, result in zip(TITLES, reply["results"], strict=True)}
        run_storm(server, LEAST, expected)  # the first fills caches and the allocator's pools
        before, begun = megabytes(server), time.monotonic()
        storm = run_storm(server, clients, expected)
        ended = time.monotonic()
        while True:
            asked = time.monotonic()
            status, _ = server.ask("/score", {"query": QUERY, "products": TITLES[:5]})
            text = server.ask("/metrics")[1]
            if status == 200 and time.monotonic() - asked < 1 and "taosr1_queue_requests 0.0" in text:
                break
            assert time.monotonic() < ended + 5, text
        after = megabytes(server)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with capsys.disabled():
        found = ", ".join(f"{status}: {number}" for status, number in sorted(storm.found.items(), key=str))
        print(f"\n{clients} clients in {ended - begun:.1f} s: {found}; memory {before:.0f} to {after:.0f} MB")
    assert not storm.wrong, storm.wrong[:5]
    assert sum(storm.found.values()) == clients and storm.found[200] > clients / 20
    assert after - before < 60
    assert "Traceback" not in server.log.read_text() and server.stop() == 0
