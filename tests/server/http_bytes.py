"""Requests and replies as bytes, for what no HTTP library would send."""

from __future__ import annotations

import json
import re

PAIR = {"query": "desk lamp", "products": ["LED desk lamp"]}
BODY = json.dumps(PAIR).encode()


def statuses(answer: bytes) -> list[int]:
    return [int(code) for code in re.findall(rb"HTTP/1\.1 (\d{3})", answer)]


def request(body: bytes = BODY, path: str = "/score", method: str = "POST", **headers: str) -> bytes:
    """A request whose connection is closed after it; header names are written with _ for -."""
    given = {"Host": "localhost", "Content-Type": "application/json", "Content-Length": str(len(body))}
    given |= {"Connection": "close", **{name.replace("_", "-"): value for name, value in headers.items()}}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items() if value is not None)]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
