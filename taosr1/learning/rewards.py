"""Rewards as named parts: plain functions of (reply, gold judgement) -> float, weighted and added up.

A new reward is one such function and one entry in `REWARD_PARTS`: train/grpo.py --rewards then knows its name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from numbers import Real
from types import MappingProxyType
from typing import TYPE_CHECKING

from taosr1.task.grades import GRADES
from taosr1.task.prompt import parse_reply
from taosr1.task.rules import facts_from_cot, implied_grade, load_rules

if TYPE_CHECKING:
    from taosr1.data.judgements import Judgement
    from taosr1.task.prompt import Reply
    from taosr1.task.rules import Rule

RewardPart = Callable[["Reply", "Judgement"], float]


def is_right(reply: Reply, gold: Judgement) -> bool:
    """Does the emitted label equal the gold grade? What difficulty counts; an unparsed label is not right.

    Raises: ValueError where the judgement has no grade.
    """
    if gold.grade not in GRADES:
        raise ValueError(f"the judgement of {gold.query!r} / {gold.title!r} has grade {gold.grade}, expected 1-4")
    return reply.grade == gold.grade


def label_right(reply: Reply, gold: Judgement) -> float:
    """1 for the gold grade, 0 for any other label or none."""
    return float(is_right(reply, gold))


def well_formed(reply: Reply, gold: Judgement) -> float:
    """1 where the reply follows its format to the end, 0 where it does not."""
    return float(reply.well_formed)


def consistency(reply: Reply, gold: Judgement, rules: Sequence[Rule] | None = None) -> float:
    """1 where the grade implied by the reply's own Category and Attributes lines is the label it emits.

    It looks at no gold grade, so on its own it pays a coherent wrong answer: use it beside `label_right`. A reply
    without a label, or with steps that cannot be read, gets 0.
    """
    implied = implied_grade(reply, _bundled_rules() if rules is None else rules)
    return float(implied is not None and implied == reply.grade)


def ordinal_closeness(reply: Reply, gold: Judgement) -> float:
    """1 - |label - gold| / 3: a near miss is worth more than a far one; no label is worth 0, as the farthest miss."""
    is_right(reply, gold)  # the check of the gold grade
    if reply.grade is None:
        return 0.0
    return 1.0 - abs(reply.grade - gold.grade) / (GRADES[-1] - GRADES[0])


def rule_steps(reply: Reply, gold: Judgement, rules: Sequence[Rule] | None = None) -> float:
    """How much of the reference chain of thought (`gold.cot`) the reply's four steps say, 0 to 1, behind a hard rule gate.

    The gate: a reply whose label is not what the rule book makes of its own steps gets 0, however good the steps. Behind it each
    step counts a quarter: Query and Item by their words, Category by its relation, Attributes by its outcomes; shared over all
    that either names, so that listing everything does not pay. The label may be wrong: a reply that is wrong in one step is worth
    more than one that is wrong in three.

    Raises: ValueError where the judgement has no chain of thought that can be read.
    Source: TaoSR-AGRL 2510.08048, rule-aware reward shaping; its formula is not public, this one is ours.
    """
    reference = parse_reply(gold.cot, "pre-cot")
    wanted = facts_from_cot(reference)
    if wanted is None:
        raise ValueError(f"reward 'steps' compares with a chain of thought (column 'cot'), which {gold.query!r} / {gold.title!r} lacks")
    if not consistency(reply, gold, rules):
        return 0.0
    stated = facts_from_cot(reply)
    same_category = stated.pop("category") == wanted.pop("category")
    words = (_overlap(_words(getattr(reply, step)), _words(getattr(reference, step))) for step in ("query", "item"))
    return (sum(words) + same_category + _overlap(set(stated.items()), set(wanted.items()))) / 4


class NonFiniteRewardError(FloatingPointError):
    """A reward is NaN or infinite. `records`: the groups it came up in, as samples.jsonl shows them."""

    def __init__(self, message: str, records: Sequence[dict] = ()) -> None:
        super().__init__(message)
        self.records = list(records)


REWARD_PARTS: Mapping[str, RewardPart] = MappingProxyType({
    "label": label_right, "format": well_formed, "consistency": consistency, "ordinal": ordinal_closeness, "steps": rule_steps,
})  # fmt: skip


def reward_parts(
    reply: Reply, gold: Judgement, weights: Mapping[str, float], parts: Mapping[str, RewardPart] = REWARD_PARTS
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

    Raises: ValueError where the two name different parts or a weight is not a finite number; NonFiniteRewardError where a part or the
        sum is not, naming `row` and the part. A NaN reward would poison its whole group in silence.
    """
    where = "" if row is None else f"row {row}: "
    if parts.keys() != weights.keys():
        raise ValueError(f"{where}reward parts {sorted(parts)} and weights {sorted(weights)} name different parts")
    for name, value in parts.items():
        if not _is_finite(value):
            raise NonFiniteRewardError(f"{where}reward {name!r} is {value!r}, expected a finite number")
        if not _is_finite(weights[name]):
            raise ValueError(f"{where}the weight of reward {name!r} is {weights[name]!r}, expected a finite number")
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


def _words(line: str) -> set[str]:
    return set(re.findall(r"[^\s;:,]+", line.lower()))


def _overlap(found: set, wanted: set) -> float:
    """What the two have in common, as a share of all that either has (Jaccard); two empty sets agree."""
    return len(found & wanted) / len(found | wanted) if found | wanted else 1.0


def _is_finite(value: object) -> bool:
    return isinstance(value, Real) and math.isfinite(value)  # NumPy's numbers are real numbers too


@lru_cache(maxsize=1)
def _bundled_rules() -> tuple[Rule, ...]:
    return tuple(load_rules())
