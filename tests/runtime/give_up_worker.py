"""One of two ranks for test_distributed.py: rank 1 alone is asked to stop, and both give up at the same place."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from taosr1.runtime.distributed import (
    GivenUp,
    divide_work,
    gather,
    given_up_together,
    init_process_group,
    may_give_up,
    shutdown,
)


def main() -> None:
    rank = init_process_group("cpu").rank
    assert not may_give_up()  # here it would leave the other rank waiting

    def work(places: list[int], asked: bool) -> list[int]:
        assert may_give_up()
        if rank == 1 and asked:
            raise GivenUp
        return [10 * place for place in places]

    for asked in (False, True):
        try:
            found = divide_work([1.0] * 5, partial(work, asked=asked))
            print(f"rank {rank}: {found}", flush=True)
        except GivenUp:
            print(f"rank {rank}: gave up", flush=True)
    with given_up_together():
        pass
    print(f"rank {rank}: {gather(rank)}", flush=True)  # and the ranks still understand each other
    shutdown(0)


if __name__ == "__main__":
    main()
