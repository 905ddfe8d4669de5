"""examples/guide/python.md: its blocks run one after the other, offline, and do what the text says."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from taosr1.serving.formats import JUDGEMENT_FORMATS

GUIDE = (Path(__file__).parents[2] / "examples" / "guide" / "python.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", GUIDE, re.S)


def test_the_blocks_run_in_order(taught_judge, tmp_path, monkeypatch, capsys):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(taught_judge("post-cot"))
    monkeypatch.chdir(tmp_path)
    found: dict = {}
    for block in BLOCKS:
        exec(compile(block, "python.md", "exec"), found)
    printed = capsys.readouterr().out
    assert len(BLOCKS) == 5 and "pair 1: query is empty" in printed and "Judge('runs/mine'" in printed
    equal = [found["several"][0], found["many"][0], found["one"]]
    assert len(found["many"]) == 2 and len({score.grade for score in equal}) == 1
    assert [score.score for score in equal] == pytest.approx([found["one"].score] * 3, abs=1e-5)
    assert isinstance(found["scores"], np.ndarray) and found["scores"].shape == (2,)
    assert found["ranking"][0]["text"] in found["products"] and len(found["ranking"]) == 2
    assert found["why"].grade == found["one"].grade and found["why"].text in printed


def test_every_format_for_other_systems_is_in_its_table():
    assert re.findall(r"^\| `(\w+)` \|", GUIDE, re.M) == list(JUDGEMENT_FORMATS)
