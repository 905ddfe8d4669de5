"""Which sampled replies become preference pairs (pass@N mining), and as many pairs in one direction as in the other."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch

from taosr1.learning.draw_order import draw
from taosr1.task.grades import GRADES

TEACHER = -1  # in a mined pair: the chosen reply is the teacher's


class Pair(NamedTuple):
    """Indices of a prompt's replies. chosen is TEACHER for oracle guidance. source: "self" or "oracle"."""

    chosen: int
    rejected: int
    source: str


def mine_pairs(
    grades: Sequence[int | None],
    gold: int,
    texts: Sequence[str],
    *,
    has_teacher: bool,
    pairs_per_prompt: int = 1,
    generator: torch.Generator | None = None,
) -> list[Pair]:
    """The preference pairs in one prompt's N sampled replies (pass@N mining).

    Some right, some wrong: own right over own wrong (self-correction). None right: the teacher's reply over own wrong
    (oracle guidance), where there is one. All right: no pair. Equal texts count once. Up to pairs_per_prompt pairs, no
    two alike, which spread over the replies: none is used a second time before every other of its side was used.

    Shapes: grades and texts, one per reply; a grade is None where no label could be read, which is wrong.
    Raises: ValueError for lengths that differ, a gold grade outside 1-4, or pairs_per_prompt < 1.
    Source: TaoSR1 2508.12365, pass@N DPO.
    Choice: which replies are paired is left to the generator (first come first without one), not to their
        log-probs: best-against-worst pairing degrades as N grows (2502.16825).
    """
    if len(grades) != len(texts) or gold not in GRADES or pairs_per_prompt < 1:
        got = f"{len(grades)} grades, {len(texts)} texts, gold {gold}, pairs_per_prompt {pairs_per_prompt}"
        raise ValueError(f"need one grade per text, a gold grade in {GRADES} and pairs_per_prompt >= 1, got {got}")
    first_seen = {text: index for index, text in reversed(list(enumerate(texts)))}
    distinct = sorted(first_seen.values())
    if generator is not None:
        distinct = draw(distinct, len(distinct), generator)
    right = [index for index in distinct if grades[index] == gold]
    wrong = [index for index in distinct if grades[index] != gold]
    source = mining_outcome(grades, gold, has_teacher=has_teacher)
    if source not in ("self", "oracle"):
        return []
    chosen = right if source == "self" else [TEACHER]
    # Walk the right x wrong table along its diagonals: k -> (k mod R, (k + k // lcm) mod W) meets each cell once.
    lap = math.lcm(len(chosen), len(wrong))
    cells = range(min(pairs_per_prompt, len(chosen) * len(wrong)))
    return [Pair(chosen[k % len(chosen)], wrong[(k + k // lap) % len(wrong)], source) for k in cells]


def mining_outcome(grades: Sequence[int | None], gold: int, *, has_teacher: bool) -> str:
    """What a prompt's replies give, for the counters: "self", "oracle", "all right", "no teacher" or "no replies"."""
    if len(grades) == 0:
        return "no replies"
    right = sum(grade == gold for grade in grades)
    if right == len(grades):
        return "all right"
    if right:
        return "self"
    return "oracle" if has_teacher else "no teacher"


def balance_label_flow(flows: Sequence[tuple[int | None, int | None]], generator: torch.Generator) -> list[int]:
    """Indices, ascending, of preference pairs with as many "a over b" as "b over a" for each two grades a, b.

    DPO on unbalanced flow moves the label prior instead of the judgement. The larger direction keeps as many pairs as
    the smaller has, drawn by the generator. Pairs that move no label to another (equal grades, or a reply without a
    label) are all kept.

    Shapes: flows, one (chosen grade, rejected grade) per pair; None where a reply has no label.
    Raises: ValueError for a grade outside 1-4.
    """
    rows_of: dict[tuple[int, int], list[int]] = defaultdict(list)
    kept: list[int] = []
    for row, (chosen, rejected) in enumerate(flows):
        for grade in (chosen, rejected):
            if grade is not None and grade not in GRADES:
                raise ValueError(f"grade of pair {row} is {grade}, expected one of {GRADES} or None")
        if chosen is None or rejected is None or chosen == rejected:
            kept.append(row)
        else:
            rows_of[chosen, rejected].append(row)
    for (chosen, rejected), rows in sorted(rows_of.items()):
        kept += draw(rows, len(rows_of.get((rejected, chosen), ())), generator)
    return sorted(kept)
