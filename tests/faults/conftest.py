"""The fault tests' harness for pytest: a world of short runs, made once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import harness


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> dict[str, list[str]]:
    """The arguments of a short run of every stage, without --out."""
    return harness.make_world(tmp_path_factory.mktemp("world"))
