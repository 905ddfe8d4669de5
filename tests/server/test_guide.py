"""examples/guide/serving.md does what it shows: its commands, fields, paths, flags and metrics."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from infer.serve import Config

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "examples/guide/serving.md").read_text(encoding="utf-8")
CURLS = [shlex.split(line) for line in GUIDE.splitlines() if line.startswith("curl ")]


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_its_commands_are_answered(server):
    asked = [[word.replace("localhost:8000", f"{server.host}:{server.port}") for word in words] for words in CURLS]
    scored, streamed = (subprocess.run(words, capture_output=True, text=True, timeout=60).stdout for words in asked)
    reply = json.loads(scored)
    table = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", GUIDE, flags=re.M)
    of_result, of_explanation, of_reply = (re.findall(r"`(\w+)`", names) for names in table[:3])
    assert len(reply["results"]) == 2 and set(of_result) <= reply["results"][0].keys()
    assert of_explanation == ["explanation"] and set(of_reply) <= reply.keys()
    events = re.findall(r"^event: (\w+)$", streamed, flags=re.M)
    assert events[0] == "score" and events[-1] == "done" and events.count("step") == 5


def test_its_paths_flags_and_metrics_are_there(server):
    paths = re.findall(r"`(?:POST|GET) (/[\w/]+)`|, `(/[\w/]+)`", GUIDE)
    for path in {first or second for first, second in paths}:
        status, _ = server.ask(path)  # GET: 405 where only POST is possible
        assert status in (200, 405), path
    flags = {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(Config)}
    assert set(re.findall(r"(?<!-)--[a-z][a-z-]+", GUIDE)) <= flags | {"--help"}
    _, metrics = server.ask("/metrics")
    for name in re.findall(r"`(taosr1_\w+)`", GUIDE):
        assert name in metrics, name


def test_every_file_that_it_links_to_is_there():
    for target in re.findall(r"\]\(([\w./-]+)\)", GUIDE):
        assert (ROOT / "examples/guide" / target).exists(), target
