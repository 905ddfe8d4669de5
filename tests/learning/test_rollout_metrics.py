"""What a GRPO run says of its groups: how many there were, and what became of them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from taosr1.learning.rollout_group import Group, Rollout
from taosr1.learning.rollout_metrics import count_outcomes, describe_outcomes


def described(groups: dict[str, int], **steps: int) -> str:
    outcomes = {"steps": 2} | groups | {name.replace("_", " "): count for name, count in steps.items()}
    return describe_outcomes({"outcomes": outcomes})


def test_groups_are_counted_by_what_became_of_them():
    assert described({"all right": 9, "all wrong": 1}, steps_without_a_group=2) == (
        "of 10 sampled groups: 9 all right, 1 all wrong. Nothing was learned"
    )
    assert described({"trained on": 3, "balance": 1}) == "of 4 sampled groups: 3 trained on, 1 balance"
    assert described({"trained on": 3}, steps=9, steps_short_of_groups=4, steps_without_a_group=2) == (
        "of 3 sampled groups: 3 trained on; of 9 batches of rollouts 4 held fewer than --min-groups groups to train "
        "on, 2 none at all"
    )


@pytest.mark.parametrize(("cut", "told"), [(0, False), (2, False), (3, True), (4, True)])
def test_the_first_step_tells_where_most_replies_were_cut_and_later_ones_are_silent(capsys, cut, told):
    replies = [Rollout("model", "", [1], finished=number >= cut) for number in range(4)]
    group, cursor = Group(0, [1], 4, replies), {}
    settings = SimpleNamespace(max_new_tokens=5, min_groups=2)
    count_outcomes(cursor, [group], [group], settings)
    said = capsys.readouterr().err
    assert said == (f"note: {cut} of the first 4 replies were cut at --max-new-tokens 5: raise it\n" if told else "")
    count_outcomes(cursor, [group], [], settings)
    assert capsys.readouterr().err == ""
    assert cursor["outcomes"] == {"trained on": 2, "steps": 2, "steps short of groups": 2, "steps without a group": 1}
