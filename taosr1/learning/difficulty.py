"""Which groups of replies GRPO trains on: difficulty by the number of right replies, equally many of every grade."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from taosr1.learning.draw_order import draw, rows_by_grade
from taosr1.task.grades import GRADES


def drop_reason(right: int, group_size: int, gamma: int | None = None) -> str:
    """Why a group is not worth training on: "all wrong", "all right", "too easy"; "" for one that is kept.

    Kept are groups with 0 < right < gamma: decided by how many replies are right, never by a float std.

    Raises: ValueError for a count that is no integer in 0..group_size, or a gamma outside 2..group_size.
    Source: TaoSR1 2508.12365, difficulty-based dynamic sampling.
    Choice: gamma = group_size where it is not given: only all-right and all-wrong groups go, the "minimal rejection"
        that the paper found best. A group of one is always one of the two.
    """
    if type(right) is not int or not 0 <= right <= group_size:
        raise ValueError(f"right is {right!r}, expected an integer in 0..{group_size}")
    if gamma is not None and not 2 <= gamma <= group_size:
        raise ValueError(f"gamma is {gamma}, expected 2 to the group size {group_size} (kept: 0 < right < gamma)")
    if right in (0, group_size):
        return "all right" if right else "all wrong"
    return "" if gamma is None or right < gamma else "too easy"


def balance_by_grade(grades: Sequence[int], generator: torch.Generator) -> list[int]:
    """Class-balanced down-sampling: indices, ascending, with equally many of every grade that is present.

    Every grade keeps as many rows as the rarest one, drawn by the generator: the shares of the grades present have
    CV = 0. A grade without a row cannot be balanced; `grade_share_cv` then says so.

    Raises: ValueError for a grade outside 1-4.
    Source: TaoSR1 2508.12365 (class-balanced down-sampling with minimal rejection was best, with the least data).
    """
    rows_of = rows_by_grade(grades)
    quota = min(map(len, rows_of.values()), default=0)
    return sorted(row for grade in sorted(rows_of) for row in draw(rows_of[grade], quota, generator))


def grade_share_cv(grades: Sequence[int]) -> float:
    """Coefficient of variation of the four grade shares: population std / mean, absent grades counting as 0.

    0 for equal shares, sqrt(3) for a single grade. Without any grade it is 0.0: there is no imbalance.

    Raises: ValueError for a grade outside 1-4.
    Source: TaoSR1 2508.12365, whose CV of surviving grade shares falls as macro-F1 rises.
    """
    rows_of = rows_by_grade(grades)
    if not rows_of:
        return 0.0
    shares = [len(rows_of.get(grade, ())) / len(grades) for grade in GRADES]
    mean = 1 / len(GRADES)
    return math.sqrt(sum((share - mean) ** 2 for share in shares) / len(GRADES)) / mean
