"""examples/guide/python.md: its blocks run one after the other, offline, and do what the text says."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from taosr1.serving.formats import JUDGEMENT_FORMATS

GUIDE = (Path(__file__).parents[2] / "examples" / "guide" / "python.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", GUIDE, re.S)


def test_the_blocks_run_in_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    found: dict = {}
    for block in BLOCKS:
        exec(compile(block, "python.md", "exec"), found)
    printed = capsys.readouterr().out
    assert len(BLOCKS) == 5 and found["one"].outside == "" and found["one"].label_mass > 0.9
    for said in re.findall(r"# ((?:Judge|pair|\d).*)", GUIDE):
        assert re.search(re.escape(said).replace(re.escape("..."), ".*"), printed), said
    equal = [found["several"][1], found["many"][0], found["one"]]
    assert len(found["many"]) == 2 and len({score.grade for score in equal}) == 1
    assert [score.score for score in equal] == pytest.approx([found["one"].score] * 3, abs=1e-5)
    assert isinstance(found["scores"], np.ndarray) and found["scores"].shape == (2,)
    assert [hit["text"] for hit in found["ranking"]] == found["products"][::-1]
    assert found["why"].text in printed and found["why"].grade == found["several"][0].grade


def test_every_format_for_other_systems_is_in_its_table():
    assert re.findall(r"^\| `(\w+)` \|", GUIDE, re.M) == list(JUDGEMENT_FORMATS)
