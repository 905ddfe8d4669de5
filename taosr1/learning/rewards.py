"""Rewards as named parts: plain functions of (reply, gold judgement) -> float, weighted and added up.

A new reward is one such function and one entry in `REWARD_PARTS`: train/grpo.py --rewards then accepts its name. The
reply is a `Rollout`: its label is `reply.grade`, its steps are in `reply.parsed`, and it has `reply.text`, `reply.ids`
(one per token, the end included) and `reply.finished`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from types import MappingProxyType
from typing import TYPE_CHECKING

from taosr1.task.grades import GRADES
from taosr1.task.prompt import parse_reply
from taosr1.task.rules import facts_from_cot, implied_grade, load_rules

if TYPE_CHECKING:
    from taosr1.learning.rollout_group import Rollout
    from taosr1.task.judgement import Judgement
    from taosr1.task.prompt import Reply
    from taosr1.task.rules import Rule

RewardPart = Callable[["Rollout", "Judgement"], float]


def label_right(reply: Rollout, gold: Judgement) -> float:
    """1 for the gold grade, 0 for any other label or none. Raises: ValueError where the judgement has no grade."""
    return float(reply.grade == _gold_grade(gold))


def well_formed(reply: Rollout, gold: Judgement) -> float:
    """1 where the reply follows its format to the end, 0 where it does not."""
    return float(reply.parsed.well_formed)


def consistency(reply: Rollout, gold: Judgement, rules: Sequence[Rule] | None = None) -> float:
    """1 where the grade implied by the reply's own Category and Attributes lines is its label.

    It does not read the gold grade, so on its own it rewards a coherent wrong answer: use it beside `label_right`. A
    reply without a label, or with steps that cannot be read, gets 0.
    """
    implied = implied_grade(reply.parsed, load_rules() if rules is None else rules)
    return float(implied is not None and implied == reply.grade)


def ordinal_closeness(reply: Rollout, gold: Judgement) -> float:
    """1 - |label - gold| / 3: a near miss is worth more than a far one; no label is worth 0, as the farthest miss.

    Raises: ValueError where the judgement has no grade.
    """
    wanted, farthest = _gold_grade(gold), GRADES[-1] - GRADES[0]
    return 0.0 if reply.grade is None else 1.0 - abs(reply.grade - wanted) / farthest


def rule_steps(reply: Rollout, gold: Judgement, rules: Sequence[Rule] | None = None) -> float:
    """Agreement, 0 to 1, of the reply's four steps with the reference chain of thought, `gold.cot`; 0 if inconsistent.

    A reply whose label is not what the rule book makes of its own steps gets 0 (`consistency`). Otherwise each step
    counts a quarter: Query and Item by their words, Category by its relation, Attributes by their outcomes; each is
    the part in common of everything that either text names, so that listing everything is not rewarded. The label may
    be wrong: a reply that is wrong in one step is worth more than one that is wrong in three.

    Raises: ValueError where the judgement has no chain of thought that can be read.
    Source: TaoSR-AGRL 2510.08048, rule-aware reward shaping; its formula is not public, this one is ours.
    """
    reference = parse_reply(gold.cot, "pre-cot")
    if facts_from_cot(reference) is None:
        pair = f"{gold.query!r} / {gold.title!r}"
        raise ValueError(f"reward 'steps' compares with a chain of thought (column 'cot'), which {pair} lacks")
    if not consistency(reply, gold, rules):
        return 0.0
    return sum(step_agreement(reply.parsed, reference).values()) / 4


def step_agreement(reply: Reply, reference: Reply) -> dict[str, float]:
    """Agreement, 0 to 1, of the steps "query", "item", "category" and "attributes" with those of a reference.

    Of a reply whose Category and Attributes lines cannot be read, both are 0.
    Raises: ValueError where those of the reference cannot be read.
    """
    wanted, stated = facts_from_cot(reference), facts_from_cot(reply)
    if wanted is None:
        raise ValueError("the reference has no Category and Attributes lines that can be read (column 'cot')")
    steps = {
        "query": _overlap(_words(reply.query), _words(reference.query)),
        "item": _overlap(_words(reply.item), _words(reference.item)),
    }
    if stated is None:
        return steps | {"category": 0.0, "attributes": 0.0}
    same_category = float(stated.pop("category") == wanted.pop("category"))
    return steps | {"category": same_category, "attributes": _overlap(set(stated.items()), set(wanted.items()))}


REWARD_PARTS: Mapping[str, RewardPart] = MappingProxyType({
    "label": label_right,
    "format": well_formed,
    "consistency": consistency,
    "ordinal": ordinal_closeness,
    "steps": rule_steps,
})  # fmt: skip


class NonFiniteRewardError(FloatingPointError):
    """A reward is NaN or infinite. `records`: the groups with such rewards, as samples.jsonl shows them."""

    def __init__(self, message: str, records: Sequence[dict] = ()) -> None:
        super().__init__(message)
        self.records = list(records)


def reward_parts(
    reply: Rollout, gold: Judgement, weights: Mapping[str, float], parts: Mapping[str, RewardPart] = REWARD_PARTS
) -> dict[str, float]:
    """The value of every part that `weights` names, unweighted: what the log shows.

    Raises: ValueError for a name that `parts` does not have.
    """
    unknown = [name for name in weights if name not in parts]
    if unknown:
        raise ValueError(f"unknown reward {', '.join(map(repr, unknown))}, expected some of {', '.join(parts)}")
    return {name: parts[name](reply, gold) for name in weights}


def total_reward(parts: Mapping[str, float], weights: Mapping[str, float], *, row: object = None) -> float:
    """The weighted sum of the named parts.

    Raises: ValueError where the two name different parts or a weight is not a finite number; NonFiniteRewardError where
        a part or the sum is not, naming `row` and the part. A NaN reward would spoil its whole group without a sign.
    """
    where = "" if row is None else f"row {row}: "
    if parts.keys() != weights.keys():
        raise ValueError(f"{where}reward parts {sorted(parts)} and weights {sorted(weights)} name different parts")
    checked = (("the weight of reward", weights, ValueError), ("reward", parts, NonFiniteRewardError))
    for what, values, error in checked:
        for name, value in values.items():
            if not (isinstance(value, Real) and math.isfinite(value)):  # NumPy's numbers are real numbers too
                raise error(f"{where}{what} {name!r} is {value!r}, expected a finite number")
    total = math.fsum(weights[name] * value for name, value in parts.items())
    if not math.isfinite(total):
        raise NonFiniteRewardError(f"{where}the total reward is {total}, expected a finite number")
    return total


def parse_weights(text: str, parts: Mapping[str, RewardPart] = REWARD_PARTS) -> dict[str, float]:
    """Weights from a flag: "label=1,format=0.1" -> {"label": 1.0, "format": 0.1}.

    Raises: ValueError for an unknown or repeated name, a weight that is no finite number, or no reward at all.
    """
    weights: dict[str, float] = {}
    for piece in filter(None, (piece.strip() for piece in text.split(","))):
        name, _, value = (word.strip() for word in piece.partition("="))
        try:
            weight = float(value)
        except ValueError:
            weight = math.nan
        if name not in parts or name in weights or not math.isfinite(weight):
            raise ValueError(f"reward {piece!r}: expected NAME=NUMBER, each name once, names: {', '.join(parts)}")
        weights[name] = weight
    if not weights:
        raise ValueError(f"no reward is named: expected NAME=NUMBER,... with names from {', '.join(parts)}")
    return weights


def _gold_grade(gold: Judgement) -> int:
    if gold.grade not in GRADES:
        raise ValueError(f"the judgement of {gold.query!r} / {gold.title!r} has grade {gold.grade}, expected 1-4")
    return gold.grade


def _words(line: str) -> set[str]:
    return set(re.findall(r"[^\s;:,]+", line.lower()))


def _overlap(found: set, wanted: set) -> float:
    """What the two have in common, as a share of all that either has (Jaccard); two empty sets agree."""
    return len(found & wanted) / len(found | wanted) if found | wanted else 1.0
