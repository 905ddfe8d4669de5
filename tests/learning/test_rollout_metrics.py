"""What a GRPO run says of its groups: the advice fits why nothing was learned."""

from __future__ import annotations

import pytest

from taosr1.learning.rollout_metrics import describe_outcomes


def described(groups: dict[str, int], replies: dict[str, int] | None = None, **steps: int) -> str:
    outcomes = {"steps": 2} | groups | {name.replace("_", " "): count for name, count in steps.items()}
    return describe_outcomes({"outcomes": outcomes} | ({} if replies is None else {"replies": replies}))


def replies(sampled: int, cut: int = 0, unreadable: int = 0, before: int = 0) -> dict[str, int]:
    return {"sampled": sampled, "cut": cut, "unreadable": unreadable, "cut before the label": before}


KNOWN = "the model already knows these rows: give it others, or raise --temperature or --samples"
NEVER = "the model is never right here: train/sft.py comes first, or raise --temperature or --samples"
CUT = "most replies were cut before they reached their grade, which --max-new-tokens leaves no room for"
FORM = "most replies have no grade that can be read: train/sft.py teaches their form first"


@pytest.mark.parametrize(
    ("groups", "found", "advice"),
    [
        ({"all right": 9, "all wrong": 1}, replies(40), KNOWN),
        ({"all right": 9, "all wrong": 1}, None, KNOWN),  # continued from a version that counted no replies
        ({"all wrong": 9, "all right": 1}, replies(40, unreadable=3), NEVER),
        ({"all wrong": 9}, replies(36, cut=36, unreadable=36, before=36), CUT),
        ({"all wrong": 9}, replies(36, cut=20, unreadable=22, before=19), CUT),
        ({"all wrong": 9}, replies(36, cut=36, unreadable=1), NEVER),  # the label comes first, and was read
        ({"all wrong": 9}, replies(36, cut=5, unreadable=30, before=5), FORM),
        ({"too easy": 5, "all wrong": 1}, replies(24), "--gamma drops what the model is mostly right on: raise it"),
        ({"all wrong": 3}, replies(0), NEVER),  # --difficulty prefill decodes nothing of dropped groups
    ],
)
def test_the_advice_fits_the_cause(groups, found, advice):
    assert described(groups, found).endswith(f". Nothing was learned: {advice}")


def test_groups_are_counted_by_what_became_of_them():
    said = described({"all right": 9, "all wrong": 1}, steps_without_a_group=2)
    assert said.startswith("of 10 sampled groups: 9 all right, 1 all wrong. Nothing was learned: ")
    assert described({"trained on": 3, "balance": 1}) == "of 4 sampled groups: 3 trained on, 1 balance"
    assert described({"trained on": 3}, steps=9, steps_short_of_groups=4, steps_without_a_group=2) == (
        "of 3 sampled groups: 3 trained on; of 9 batches of rollouts 4 held fewer than --min-groups groups to train "
        "on, 2 none at all"
    )


@pytest.mark.parametrize(("cut", "told"), [(0, False), (4, False), (5, True), (40, True)])
def test_cut_replies_are_told_where_they_are_more_than_a_tenth_and_something_was_learned(cut, told):
    said = described({"trained on": 10}, replies(40, cut=cut))
    assert (f"; {cut} of 40 replies were cut: raise --max-new-tokens" in said) == told
