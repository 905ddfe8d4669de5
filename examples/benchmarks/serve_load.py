"""The load of the benchmark `serve.py`: clients in a process of their own, so that they take no time from the server.

Raw asyncio on connections that stay open; requests are encoded before the clock starts, and of a reply only its status
line, its length and the number of its results are read: some 0.1 ms of processor time a request. What was measured is
printed as one line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from dataclasses import dataclass, field


@dataclass
class Measured:
    """Seconds of every request that was answered with 200, products they held, and the statuses of all."""

    latencies_s: list[float] = field(default_factory=list)
    products: int = 0
    statuses: dict[str, int] = field(default_factory=dict)


class Client:
    """One connection. `ask` sends a request and reads its reply."""

    def __init__(self, port: int) -> None:
        self.port, self.streams = port, None

    async def ask(self, request: bytes) -> tuple[int, int]:
        """The status of the reply, and how many results it has."""
        self.streams = self.streams or await asyncio.open_connection("127.0.0.1", self.port, limit=2**24)
        reader, writer = self.streams
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        body = await reader.readexactly(int(head.split(b"content-length:")[1].split(b"\r\n")[0]))
        if b"connection: close" in head:
            writer.close()
            self.streams = None
        return int(head[9:12]), body.count(b'"label_mass"')


def encoded(request: dict) -> bytes:
    body = json.dumps(request).encode()
    head = "POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def asked(client: Client, request: bytes, count: int, measured: Measured, since: float) -> None:
    status, results = await client.ask(request)
    measured.statuses[str(status)] = measured.statuses.get(str(status), 0) + 1
    if status == 200:
        assert results == count, f"{results} results for {count} products"
        measured.latencies_s.append(time.perf_counter() - since)
        measured.products += results


async def closed(port: int, clients: int, requests: list[tuple[bytes, int]]) -> Measured:
    """Every client sends its next request when it has the reply to its last one, until all were sent."""
    measured, waiting = Measured(), iter(requests)

    async def client() -> None:
        connection = Client(port)
        for request, count in waiting:
            await asked(connection, request, count, measured, time.perf_counter())

    await asyncio.gather(*(client() for _ in range(clients)))
    return measured


async def opened(port: int, per_s: float, requests: list[tuple[bytes, int]], seed: int) -> Measured:
    """Requests at random times (Poisson), whether others are answered or not; latency counts from the planned time."""
    measured, free, draw, due, tasks = Measured(), [], random.Random(seed), time.perf_counter(), []

    async def one(request: bytes, count: int, since: float) -> None:
        connection = free.pop() if free else Client(port)
        await asked(connection, request, count, measured, since)
        free.append(connection)

    for request, count in requests:
        due += draw.expovariate(per_s)
        await asyncio.sleep(due - time.perf_counter())
        tasks.append(asyncio.create_task(one(request, count, due)))
    await asyncio.gather(*tasks)
    return measured


def main() -> None:
    """Reads {port, clients | per_s, seed, requests: [JSON bodies]} from the standard input."""
    work = json.loads(sys.stdin.read())
    requests = [(encoded(request), len(request["products"])) for request in work["requests"]]
    begun = time.perf_counter()
    if "per_s" in work:
        measured = asyncio.run(opened(work["port"], work["per_s"], requests, work["seed"]))
    else:
        measured = asyncio.run(closed(work["port"], work["clients"], requests))
    print(json.dumps({**vars(measured), "seconds": time.perf_counter() - begun}))


if __name__ == "__main__":
    main()
