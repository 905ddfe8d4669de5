"""The order in which rows are drawn: endless streams, pure functions of seed and position: resuming needs no replay."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Sequence

import torch

from taosr1.task.grades import GRADES


def shuffled_order(num_rows: int, seed: int, start: int, count: int, *, stream: Hashable = "rows") -> list[int]:
    """Draws start .. start + count - 1 of an endless stream of row indices: every epoch a new shuffle of all rows.

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
    of the frequency, 1 as in the data. The stream is made of rounds that hold the same number of each grade every time,
    shuffled; each grade runs through a shuffle of its own rows and is shuffled anew when they are used up.

    Raises: ValueError for no rows, a grade outside 1-4, a power outside [0, 1], or a negative start or count.
    """
    rows_of = rows_by_grade(grades)
    if not rows_of or start < 0 or count < 0 or not 0 <= power <= 1:
        got = f"{len(grades)} rows, {start}, {count}, {power}"
        raise ValueError(f"need rows, start >= 0, count >= 0 and a power in [0, 1], got {got}")
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


def uniform_of_rows(generators: Sequence[torch.Generator], samples: int, max_new_tokens: int) -> torch.Tensor:
    """Numbers in [0, 1) to draw the replies to each row with, from a generator of its own: (rows * samples, N).

    So a reply depends neither on the rows that are answered together nor on how many ranks there are.
    """
    shape = (samples, max_new_tokens)
    return torch.cat([torch.rand(shape, generator=generator) for generator in generators])


def draw(rows: list[int], count: int, generator: torch.Generator) -> list[int]:
    """`count` of the rows without replacement, in drawn order."""
    return [rows[place] for place in torch.randperm(len(rows), generator=generator)[:count].tolist()]


def rows_by_grade(grades: Sequence[int]) -> dict[int, list[int]]:
    """Row indices by grade, only for grades that are present.

    Raises: ValueError for a grade outside 1-4.
    """
    rows_of: dict[int, list[int]] = defaultdict(list)
    for row, grade in enumerate(grades):
        if grade not in GRADES:
            raise ValueError(f"grade of row {row} is {grade}, expected one of {GRADES}")
        rows_of[int(grade)].append(row)
    return dict(rows_of)


def _round_quotas(counts: dict[int, int], power: float, precision: int = 100) -> dict[int, int]:
    """How many draws of a round each grade gets: shares of counts**power, rounded to about 1 / precision, never 0."""
    if power == 0:
        return dict.fromkeys(counts, 1)
    weights = {grade: count**power for grade, count in counts.items()}
    total = sum(weights.values())
    return {grade: max(1, round(precision * weight / total)) for grade, weight in weights.items()}
