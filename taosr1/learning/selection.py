"""What is trained on: difficulty, class balance, the order of prompts, and preference pairs. Numbers only, no model."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from taosr1.task.grades import GRADES

TEACHER = -1  # in mined pairs: the chosen reply is the teacher's


# ---- difficulty -----------------------------------------------------------------------------------------------------


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


# ---- balance --------------------------------------------------------------------------------------------------------


def balance_by_grade(grades: Sequence[int], generator: torch.Generator) -> list[int]:
    """Class-balanced down-sampling: indices, ascending, with equally many of every grade that is present.

    Every grade keeps as many rows as the rarest one, drawn by the generator: the shares of the grades present have
    CV = 0. A grade with no row at all cannot be balanced; `grade_share_cv` then says so.

    Raises: ValueError for a grade outside 1-4.
    Source: TaoSR1 2508.12365 (class-balanced down-sampling with minimal rejection was best, with the least data).
    """
    rows_of = _rows_of(grades)
    quota = min(map(len, rows_of.values()), default=0)
    return sorted(row for grade in sorted(rows_of) for row in _draw(rows_of[grade], quota, generator))


def grade_share_cv(grades: Sequence[int]) -> float:
    """Coefficient of variation of the four grade shares: population std / mean, absent grades counting as 0.

    0 for equal shares, sqrt(3) for a single grade. Nothing at all is 0.0: there is no imbalance in it.

    Raises: ValueError for a grade outside 1-4.
    Source: TaoSR1 2508.12365, whose CV of surviving grade shares falls as macro-F1 rises.
    """
    rows_of = _rows_of(grades)
    if not rows_of:
        return 0.0
    shares = [len(rows_of.get(grade, ())) / len(grades) for grade in GRADES]
    mean = 1 / len(GRADES)
    return math.sqrt(sum((share - mean) ** 2 for share in shares) / len(GRADES)) / mean


def balance_label_flow(
    flows: Sequence[tuple[int | None, int | None]], generator: torch.Generator, *, max_ratio: float = 1.0
) -> list[int]:
    """Indices, ascending, of preference pairs with as many "a over b" as "b over a" for each two grades a, b.

    DPO on unbalanced flow moves the label prior instead of the judgement. The larger direction keeps at most
    max_ratio times the smaller, drawn by the generator. Pairs that move no label to another (equal grades, or a
    reply without a label) are all kept.

    Shapes: flows, one (chosen grade, rejected grade) per pair; None where a reply has no label.
    Raises: ValueError for max_ratio < 1 or a grade outside 1-4.
    """
    if not max_ratio >= 1:
        raise ValueError(f"max_ratio is {max_ratio}, expected at least 1 (1 = exactly as many both ways)")
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
        limit = max_ratio * len(rows_of.get((rejected, chosen), ()))
        kept += _draw(rows, len(rows) if math.isinf(max_ratio) else min(len(rows), int(limit)), generator)
    return sorted(kept)


# ---- the order of prompts -------------------------------------------------------------------------------------------


def shuffled_order(num_rows: int, seed: int, start: int, count: int, *, stream: Hashable = "rows") -> list[int]:
    """Draws start .. start + count - 1 of an endless stream of row indices: every epoch a new shuffle of all rows.

    A pure function of its arguments, so a resumed run needs the integer cursor alone, no replay.

    Raises: ValueError for no rows, or a negative start or count.
    """
    if num_rows < 1 or start < 0 or count < 0:
        raise ValueError(f"need num_rows >= 1, start >= 0, count >= 0, got {num_rows}, {start}, {count}")
    order: list[int] = []
    while len(order) < count:
        epoch, offset = divmod(start + len(order), num_rows)
        shuffle = torch.randperm(num_rows, generator=keyed_generator(seed, stream, epoch)).tolist()
        order += shuffle[offset : offset + count - len(order)]
    return order


def balanced_order(grades: Sequence[int], seed: int, start: int, count: int, *, power: float = 0.0) -> list[int]:
    """Draws start .. start + count - 1 of an endless stream of row indices in which every grade has a fixed share.

    The share of a grade goes with its frequency to the given power: 0 all grades present alike, 0.5 the square root
    of the frequency, 1 as in the data. The stream is made of rounds with a whole number of each grade, shuffled inside;
    each grade runs through a shuffle of its own rows and is shuffled anew when they are used up. A pure function of its
    arguments, as `shuffled_order`.

    Raises: ValueError for no rows, a grade outside 1-4, a power outside [0, 1], or a negative start or count.
    """
    rows_of = _rows_of(grades)
    if not rows_of or start < 0 or count < 0 or not 0 <= power <= 1:
        raise ValueError(
            f"need rows, start >= 0, count >= 0 and a power in [0, 1], got {len(grades)} rows, {start}, {count}, {power}"
        )
    quotas = _round_quotas({grade: len(rows) for grade, rows in rows_of.items()}, power)
    round_size = sum(quotas.values())
    first, last = start // round_size, (start + count + round_size - 1) // round_size
    streams = {
        grade: iter(shuffled_order(len(rows_of[grade]), seed, first * quota, (last - first) * quota, stream=grade))
        for grade, quota in quotas.items()
    }
    members = [grade for grade, quota in sorted(quotas.items()) for _ in range(quota)]
    order: list[int] = []
    for index in range(first, last):
        shuffle = torch.randperm(round_size, generator=keyed_generator(seed, "round", index)).tolist()
        order += [rows_of[members[place]][next(streams[members[place]])] for place in shuffle]
    skip = start - first * round_size
    return order[skip : skip + count]


def keyed_generator(*key: Hashable) -> torch.Generator:
    """A CPU generator seeded from a key such as (seed, "rollout", step): equal keys, equal numbers, on any machine."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


# ---- preference pairs -----------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    """chosen and rejected: indices of a prompt's replies (chosen is TEACHER for oracle guidance); source: self | oracle."""

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
        raise ValueError(
            f"need one grade per text, a gold grade in {GRADES} and pairs_per_prompt >= 1, got {len(grades)} grades, "
            f"{len(texts)} texts, gold {gold}, pairs_per_prompt {pairs_per_prompt}"
        )
    first_seen = {text: index for index, text in reversed(list(enumerate(texts)))}
    distinct = sorted(first_seen.values())
    if generator is not None:
        distinct = _draw(distinct, len(distinct), generator)
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


# ---- helpers --------------------------------------------------------------------------------------------------------


def _upper(group_size: int, gamma: int | None) -> int:
    if gamma is None:
        return group_size
    if not 2 <= gamma <= group_size:
        raise ValueError(f"gamma is {gamma}, expected 2 to the group size {group_size} (kept: 0 < right < gamma)")
    return gamma


def _rows_of(grades: Sequence[int]) -> dict[int, list[int]]:
    """Row indices by grade, only for grades that are present."""
    rows_of: dict[int, list[int]] = defaultdict(list)
    for row, grade in enumerate(grades):
        if grade not in GRADES:
            raise ValueError(f"grade of row {row} is {grade}, expected one of {GRADES}")
        rows_of[int(grade)].append(row)
    return dict(rows_of)


def _draw(rows: list[int], count: int, generator: torch.Generator) -> list[int]:
    """`count` of the rows without replacement, in drawn order."""
    return [rows[place] for place in torch.randperm(len(rows), generator=generator)[:count].tolist()]


def _round_quotas(counts: dict[int, int], power: float, precision: int = 100) -> dict[int, int]:
    """How many draws of a round each grade gets: shares of counts**power, rounded to about 1 / precision, never 0."""
    if power == 0:
        return dict.fromkeys(counts, 1)
    weights = {grade: count**power for grade, count in counts.items()}
    total = sum(weights.values())
    return {grade: max(1, round(precision * weight / total)) for grade, weight in weights.items()}
