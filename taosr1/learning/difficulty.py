"""Which groups of replies GRPO trains on: difficulty by the number of right replies, equally many of every grade."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from taosr1.learning.draw_order import draw, rows_by_grade
from taosr1.task.grades import GRADES


def keep_groups(right_counts: Tensor | Sequence[int], group_size: int, gamma: int | None = None) -> Tensor:
    """Which groups are worth training on: 0 < right < gamma, decided by integer counts, never by a float std.

    Shapes: right_counts (P,) integers in 0..group_size -> (P,) bool.
    Raises: ValueError for counts that are no such integers, or a gamma outside 2..group_size.
    Source: TaoSR1 2508.12365, difficulty-based dynamic sampling.
    Choice: gamma = group_size where it is not given: only all-right and all-wrong groups go, the "minimal rejection"
        that the paper found best. A group of one is always one of the two.
    """
    counts = torch.as_tensor(right_counts)
    if counts.numel() == 0:
        counts = counts.long().reshape(-1)
    if counts.dim() != 1 or counts.is_floating_point() or counts.dtype == torch.bool:
        raise ValueError(f"right_counts must be (P,) integers, got {tuple(counts.shape)} {counts.dtype}")
    if group_size < 1 or bool(((counts < 0) | (counts > group_size)).any()):
        raise ValueError(f"right_counts must lie in 0..{group_size}, got {counts.tolist()}")
    upper = _upper(group_size, gamma)
    return (counts > 0) & (counts < upper)


def drop_reason(right_count: int, group_size: int, gamma: int | None = None) -> str:
    """Why a group is dropped, for the log: "all wrong", "all right", "too easy", or "" for a kept group."""
    if right_count == 0:
        return "all wrong"
    if right_count == group_size:
        return "all right"
    return "" if right_count < _upper(group_size, gamma) else "too easy"


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


def _upper(group_size: int, gamma: int | None) -> int:
    if gamma is None:
        return group_size
    if not 2 <= gamma <= group_size:
        raise ValueError(f"gamma is {gamma}, expected 2 to the group size {group_size} (kept: 0 < right < gamma)")
    return gamma
