"""How the rows of a job are cut into chunks: by the time that the first of them take."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

# A chunk takes about 5 to 10 s: a machine that gets three times slower still stores one every 30 s.
CHUNK_S = 10.0
GROWTH = ((64, CHUNK_S / 2), (4, CHUNK_S / 2), (2, CHUNK_S))  # times as many rows, if they should take no longer
MEASURED_FROM = 16  # rows: a job whose chunks are no larger anyway is not measured


@dataclass(frozen=True)
class Cut:
    """Rows 0 .. rows - 1 in chunks of `size`, none of which holds rows from both sides of row number `boundary`."""

    rows: int
    size: int
    boundary: int = 0

    def chunks(self) -> list[range]:
        """In the order of the rows; the last before the boundary, and the last of all, may be shorter."""
        after = chunks_of(self.rows - self.boundary, self.size, start=self.boundary)
        return chunks_of(self.boundary, self.size) + after


def chunks_of(rows: int, size: int, start: int = 0) -> list[range]:
    """Row numbers start .. start + rows - 1, cut into ranges of `size`; the last may be shorter."""
    return [range(first, min(first + size, start + rows)) for first in range(start, start + rows, size)]


def measured_cut(
    rows: int, largest: int, boundary: int, work: Callable[[range], object], clock: Callable[[], float] = time.monotonic
) -> Cut:
    """Time growing numbers of rows, from `boundary` on, until a larger chunk would take more than `CHUNK_S` seconds.

    Their answers are thrown away, so that chunks are alike and a fast model's are always the largest: how many rows a
    model gets in one call may change the last bits of its answers. The size is decided once; a job that continues keeps
    it.
    Choice: growing steps instead of one measurement and a division, as a few rows cost little more than one where
    replies are decoded. A first call may compile kernels: one row is done before anything is timed.
    """
    size, available = min(1, largest), rows - boundary
    if min(largest, available) > MEASURED_FROM:
        work(range(boundary, boundary + 1))
    else:
        return Cut(rows, largest, boundary)
    while size < min(largest, available):
        began = clock()
        work(range(boundary, boundary + size))
        seconds = clock() - began
        larger = [(min(size * times, largest), most_s) for times, most_s in GROWTH]
        fitting = [new for new, most_s in larger if seconds * new / size <= most_s]
        if not fitting:
            break
        size = fitting[0]
    return Cut(rows, size, boundary)
