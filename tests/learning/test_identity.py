"""What a run is compared by when it is resumed."""

from __future__ import annotations

from dataclasses import replace

from taosr1.learning.trainee import identity
from taosr1.synthetic.shop import read_pool
from taosr1.task import prompt_config


def changed(one: dict, other: dict) -> set[str]:
    return {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)}


def test_each_difference_changes_its_own_entry_and_no_other(make_judge, monkeypatch):
    judge, rows = make_judge(), read_pool("reasoned", 5)
    known = identity(judge, data=rows, dev=rows[:2])
    assert (known["start"], known["world_size"]) == ("fresh weights", "1")
    assert known["data"].startswith("5 rows, sha256 ")
    assert identity(make_judge(seed=1), data=list(rows), dev=rows[:2]) == known
    assert changed(known, identity(judge, data=[*rows[:4], replace(rows[4], cot="")], dev=rows[:2])) == {"data"}
    asked = replace(judge, prompt=replace(judge.prompt, order="label"))
    assert changed(known, identity(asked, data=rows, dev=rows[:2])) == {"prompt_wording"}
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert changed(known, identity(judge, data=rows, dev=rows[:2])) == {"world_size"}


def test_another_wording_of_the_prompt_is_another_run(make_judge, monkeypatch):
    judge = make_judge()
    full = replace(judge, prompt=replace(judge.prompt, style="full"))
    known = identity(full)
    other = prompt_config.INSTRUCTIONS.replace("shopping query", "search query")
    monkeypatch.setattr(prompt_config, "INSTRUCTIONS", other)
    reworded = replace(judge, prompt=replace(judge.prompt, style="full"))
    assert changed(known, identity(reworded)) == {"prompt_wording"}
