"""Reward parts on replies as the parser returns them, and the weighted sum."""

import math

import numpy as np
import pytest

from taosr1.data.judgements import Judgement
from taosr1.learning.rewards import (
    REWARD_PARTS,
    NonFiniteRewardError,
    consistency,
    label_right,
    ordinal_closeness,
    parse_weights,
    reward_parts,
    rule_steps,
    total_reward,
    well_formed,
)
from taosr1.learning.rollout_group import read_rollout

COT = """Query: travel mug; material not plastic
Item: travel mug; material {material}
Category: same
Attributes: material {outcome}
Decision: {decision}"""


def reply_of(label, decision="4-Excellent", outcome="met", material="steel"):
    return read_rollout(f"{label}\n" + COT.format(decision=decision, outcome=outcome, material=material), "post-cot")


def gold(grade):
    return Judgement(query="travel mug not plastic", title="Steel Travel Mug", grade=grade)


GARBAGE = read_rollout("well, it depends", "post-cot")


def test_the_label_is_right_or_not():
    assert label_right(reply_of(4), gold(4)) == 1.0
    assert label_right(reply_of(3), gold(4)) == 0.0
    assert label_right(GARBAGE, gold(4)) == 0.0


@pytest.mark.parametrize(
    ("label", "grade", "expected"), [(4, 4, 1.0), (3, 4, 2 / 3), (2, 4, 1 / 3), (1, 4, 0.0), (4, 1, 0.0), (2, 3, 2 / 3)]
)
def test_ordinal_closeness_falls_by_a_third_per_grade(label, grade, expected):
    assert ordinal_closeness(reply_of(label), gold(grade)) == pytest.approx(expected)


def test_a_reply_without_a_label_is_as_far_as_can_be():
    assert ordinal_closeness(GARBAGE, gold(2)) == 0.0


def test_format_is_the_parser_s_verdict():
    assert well_formed(reply_of(4), gold(1)) == 1.0
    assert well_formed(GARBAGE, gold(1)) == 0.0


def test_consistency_compares_the_steps_with_the_label_and_not_with_the_gold_grade():
    """All demands met imply 4. A missed demand implies 2: label 4 then contradicts its own steps, label 2 does not."""
    assert consistency(reply_of(4), gold(1)) == 1.0
    assert consistency(reply_of(3), gold(3)) == 0.0
    assert consistency(reply_of(4, outcome="missed", material="plastic"), gold(4)) == 0.0
    assert consistency(reply_of(2, decision="2-Mismatch", outcome="missed", material="plastic"), gold(4)) == 1.0
    assert consistency(GARBAGE, gold(4)) == 0.0


REFERENCE = """Query: travel mug; material not plastic; colour red
Item: travel mug; material steel red
Category: same
Attributes: material met; colour met
Decision: 4-Excellent"""


def explained(text=REFERENCE, grade=4):
    return Judgement(query="red travel mug not plastic", title="Steel Travel Mug Red", grade=grade, cot=text)


def steps_of(*changes, label=4):
    text = REFERENCE
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return rule_steps(read_rollout(f"{label}\n{text}", "post-cot"), explained())


def test_steps_count_a_quarter_each():
    """The Item line of the reference has the words travel, mug, material, steel, red."""
    assert steps_of() == 1.0
    # Four of six words in common, and the rule book still says 4.
    assert steps_of(("material steel red", "material glass red")) == pytest.approx((1 + 4 / 6 + 1 + 1) / 4)
    # A substitute is grade 3 under the rules, and that is the label here: only the category is wrong.
    assert steps_of(("Category: same", "Category: related substitute"), label=3) == pytest.approx(3 / 4)
    # One of two outcomes wrong: (material met) in common of (material met, colour met, colour near).
    assert steps_of(("colour met", "colour near"), label=3) == pytest.approx((3 + 1 / 3) / 4)
    # A demand too many costs as much as one too few: listing everything does not pay.
    assert (
        steps_of(("; colour met", ""))
        == steps_of(("colour met", "colour met; size met; brand met"))
        == pytest.approx((3 + 1 / 2) / 4)
    )


def test_the_rule_gate_gives_nothing_for_steps_that_lead_elsewhere():
    assert steps_of(label=1) == steps_of(label=3) == 0.0  # perfect steps, another label
    assert steps_of(("colour met", "colour missed")) == 0.0  # a miss is no 4, whatever the other steps are worth
    assert rule_steps(GARBAGE, explained()) == 0.0


def test_wrong_replies_are_told_apart_by_their_steps():
    """Both labels are wrong; the first reply is wrong in one step, the second in two."""
    near = steps_of(("colour met", "colour near"), label=3)
    far = steps_of(("colour met", "colour near"), ("Category: same", "Category: related substitute"), label=3)
    assert 1 > near > far > 0


def test_numbers_of_numpy_are_numbers():
    assert total_reward({"a": np.float32(0.5), "b": np.int64(2)}, {"a": 2.0, "b": 1.0}) == 3.0


@pytest.mark.parametrize("cot", ["", "Query: a\nItem: b\nCategory: no idea\nAttributes: none\nDecision: 4-Excellent"])
def test_steps_need_a_chain_of_thought_to_compare_with(cot):
    with pytest.raises(ValueError, match="column 'cot'"):
        rule_steps(reply_of(4), explained(cot))


def test_a_part_needs_a_gold_grade_where_it_looks_at_it():
    for part in (label_right, ordinal_closeness):
        with pytest.raises(ValueError, match="travel mug not plastic"):
            part(reply_of(4), gold(None))
    assert consistency(reply_of(4), gold(None)) == 1.0


def test_parts_are_logged_unweighted_and_summed_weighted():
    """label 1 * 1 + format 0.5 * 1 + ordinal 2 * 1/3: label 2 against gold 4 gives 0 + 0.5 + 2/3."""
    weights = {"label": 1.0, "format": 0.5, "ordinal": 2.0}
    parts = reward_parts(reply_of(2), gold(4), weights)
    assert parts == pytest.approx({"label": 0.0, "format": 1.0, "ordinal": 1 / 3})
    assert total_reward(parts, weights) == pytest.approx(0.5 + 2 / 3)


def test_a_reward_of_one_s_own_is_one_function_that_knows_the_text_and_the_tokens():
    def short(reply, judgement):
        return float(len(reply.ids) <= 40)

    def polite(reply, judgement):
        return float("please" in reply.text and reply.finished)

    parts = {**REWARD_PARTS, "short": short, "polite": polite}
    weights = parse_weights("label=1, short=0.25, polite=0.5", parts)
    for text, tokens, expected in (("4", 40, 1.25), ("4", 41, 1.0), ("please", 3, 0.75)):
        reply = read_rollout(text, "label", ids=range(tokens))
        assert total_reward(reward_parts(reply, gold(4), weights, parts), weights) == expected


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None, "1"])
def test_a_reward_that_is_no_number_is_refused_and_names_the_row(value):
    with pytest.raises(NonFiniteRewardError, match="row 17: reward 'label'"):
        total_reward({"format": 1.0, "label": value}, {"format": 1.0, "label": 1.0}, row=17)
    with pytest.raises(ValueError, match="row q7: the weight of reward 'label'"):
        total_reward({"label": 1.0}, {"label": value}, row="q7")


def test_an_overflowing_total_is_refused():
    with pytest.raises(NonFiniteRewardError, match="row 3"):
        total_reward({"label": 1e308}, {"label": 10.0}, row=3)


def test_parts_and_weights_must_name_the_same():
    with pytest.raises(ValueError, match="different parts"):
        total_reward({"label": 1.0}, {"label": 1.0, "format": 1.0})
    with pytest.raises(ValueError, match="unknown reward 'lable'"):
        reward_parts(reply_of(4), gold(4), {"lable": 1.0})


def test_weights_are_read_from_a_flag():
    assert parse_weights("label=1,format=0.1") == {"label": 1.0, "format": 0.1}
    assert parse_weights(" ordinal = -2 ") == {"ordinal": -2.0}


@pytest.mark.parametrize(
    "text", ["", ",", "label", "label=", "label=x", "label=nan", "lable=1", "label=1,label=2", "=1"]
)
def test_weights_that_cannot_be_read_are_named(text):
    with pytest.raises(ValueError, match="expected NAME=NUMBER"):
        parse_weights(text)
