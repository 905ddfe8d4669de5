"""How the rows of a job are cut into chunks: by the time that the first of them take."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain, repeat

# A chunk takes about 5 to 10 s: a machine that gets three times slower still stores one every 30 s.
CHUNK_S = 10.0
GROW_FAST_S = 5.0  # grow four times while such a chunk would take no longer
MEASURED_FROM = 16  # rows: a job whose chunks are no larger anyway is not measured


@dataclass(frozen=True)
class Cut:
    """How rows 0 .. rows - 1 are cut: the chunks from `boundary` on begin with those of sizes `first`, all others have
    `size` rows; no chunk holds rows from both sides of the boundary."""

    rows: int
    size: int
    boundary: int = 0
    first: tuple[int, ...] = ()

    def chunks(self) -> list[range]:
        """In the order of the rows; the last before the boundary, and the last of all, may be shorter."""
        found, start = chunks_of(self.boundary, self.size), self.boundary
        for size in chain(self.first, repeat(self.size)):
            if start >= self.rows:
                return found
            found.append(range(start, min(start + size, self.rows)))
            start = found[-1].stop


def chunks_of(rows: int, size: int, start: int = 0) -> list[range]:
    """Row numbers start .. start + rows - 1, cut into ranges of `size`; the last may be shorter."""
    return [range(first, min(first + size, start + rows)) for first in range(start, start + rows, size)]


def measured_cut(
    rows: int, largest: int, boundary: int, work: Callable[[range], object], clock: Callable[[], float] = time.monotonic
) -> Cut:
    """Do chunks that grow from one row until one takes about `CHUNK_S` seconds or has `largest` rows.

    They are the first chunks of the job, so nothing is done twice. The size is decided once, and a job that continues
    keeps it: how many rows a model gets in one call may change the last bits of its answers.
    Choice: growing steps instead of one measurement and a division: two rows cost little less than eight, and a first
    call may compile kernels (the first row is therefore done alone, and does not count).
    """
    if largest <= MEASURED_FROM:
        return Cut(rows, largest, boundary)
    first: list[int] = []
    size, start = 1, boundary
    while start < rows:
        began, chunk = clock(), range(start, min(start + size, rows))
        work(chunk)
        seconds = clock() - began
        first.append(size)
        start = chunk.stop
        if len(first) == 1:
            continue
        grown = 4 if 4 * seconds <= GROW_FAST_S else 2 if 2 * seconds <= CHUNK_S else 1
        if size == largest or grown == 1:
            break
        size = min(size * grown, largest)
    return Cut(rows, size, boundary, tuple(first))
