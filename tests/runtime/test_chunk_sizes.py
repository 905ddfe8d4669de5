"""How large a job's chunks become: by a clock that is given, for models of any speed."""

from __future__ import annotations

import pytest

from taosr1.runtime.chunk_sizes import CHUNK_S, Cut, chunks_of, measured_cut


def cut_of(rows: int, largest: int, boundary: int = 0, *, call_s: float = 0, row_s: float = 0, first_s: float = 0):
    """The cut for a model that needs call_s + row_s * rows for a call, first_s more for the first; and these calls."""
    now, calls = 0.0, []

    def work(chunk: range) -> None:
        nonlocal now
        now += call_s + row_s * len(chunk) + (0 if calls else first_s)
        calls.append(chunk)

    return measured_cut(rows, largest, boundary, work, lambda: now), calls


@pytest.mark.parametrize(
    ("row_s", "call_s", "largest", "size"),
    [
        (0.0005, 0.003, 1024, 1024),  # the bundled student
        (0.27, 0.0, 1024, 32),  # SmolLM2 on one core
        (0.6, 3.0, 128, 4),  # its replies: a call costs much, a row little
        (60.0, 0.0, 1024, 1),  # even a row is too long
        (0.0, 4.0, 4096, 4096),
    ],
)
def test_a_chunk_takes_at_most_the_time_it_should_and_a_fast_models_are_the_largest(row_s, call_s, largest, size):
    cut, calls = cut_of(10_000, largest, row_s=row_s, call_s=call_s, first_s=30.0)
    assert cut == Cut(10_000, size)
    assert size == 1 or call_s + row_s * size <= CHUNK_S
    assert size in (1, largest) or call_s + row_s * 4 * size > CHUNK_S / 2  # not needlessly small
    assert sum(map(len, calls)) <= 1 + 2 * size  # little is done for the clock alone


def test_a_first_call_that_compiles_kernels_does_not_make_chunks_small():
    assert cut_of(5000, 1024, row_s=0.0005, first_s=60.0)[0].size == 1024


def test_the_rows_behind_the_boundary_are_measured_and_small_jobs_are_not():
    cut, calls = cut_of(300, 512, 100, row_s=0.2)
    assert calls[0] == range(100, 101) and all(chunk.start == 100 for chunk in calls) and cut.boundary == 100
    assert cut_of(10, 512)[1] == cut_of(500, 16)[1] == cut_of(0, 512)[1] == []
    assert cut_of(10, 512)[0].size == 512


def test_chunks_cover_every_row_once_and_none_crosses_the_boundary():
    for rows, size, boundary in ((0, 3, 0), (7, 3, 0), (9, 3, 5), (10, 3, 5), (5, 3, 5)):
        chunks = Cut(rows, size, boundary).chunks()
        assert [row for chunk in chunks for row in chunk] == list(range(rows))
        assert not [chunk for chunk in chunks if chunk.start < boundary < chunk.stop]
        assert chunks == chunks_of(boundary, size) + chunks_of(rows - boundary, size, boundary)
