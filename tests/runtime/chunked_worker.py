"""A chunked job for tests/runtime/test_chunked_job.py, and a process that works on it as one rank.

    python tests/runtime/chunked_worker.py OUT RANK WORLD ENDING AFTER        # ENDING comes after so many chunks
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from taosr1.runtime.chunk_sizes import Cut
from taosr1.runtime.chunked_job import ChunkedJob
from taosr1.runtime.distributed import Ranks
from taosr1.runtime.jsonl import write_jsonl

ROWS, SIZE = 23, 4  # six chunks, the last one short


def answer(row: int) -> dict:
    return {"row": row, "answer": f"№ {row * row}\n"}


def job_of(out: Path, rank: int = 0, world: int = 1, rows: int = ROWS, **identity: object) -> ChunkedJob:
    identity = {"job": "test", **identity}
    return ChunkedJob(out, identity, rows, lambda: Cut(rows, SIZE), Ranks(rank, world), overwrite=True)


def chunk_file(out: Path, rank: int = 0) -> Path:
    return out.parent / f"{out.name}.parts" / f"rank-{rank:05}.jsonl"


def finish(job: ChunkedJob) -> list[range]:
    """Answer this rank's missing chunks; returns them."""
    did = []
    for chunk in job.missing():
        job.add(chunk, [answer(row) for row in chunk])
        did.append(chunk)
    return did


def end(ending: str, out: Path, rank: int) -> None:
    if ending == "torn":
        chunk_file(out, rank).open("ab").write(b'{"chunk": 3, "crc')
    if ending.startswith("asleep"):
        print(ending, flush=True)
        time.sleep(60)
    os.kill(os.getpid(), signal.SIGKILL)


def main(out: Path, rank: int, world: int, ending: str, after: int) -> None:
    if ending == "full disk":  # no file may grow beyond so many bytes
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (after, after))
    with job_of(out, rank, world) as job:
        for done, chunk in enumerate(job.missing()):
            if done == after and ending in ("killed", "torn", "asleep"):
                end(ending, out, rank)
            job.add(chunk, [answer(row) for row in chunk])
        if job.to_merge():
            if ending == "asleep while merging":
                end(ending, out, rank)
            if ending == "killed while merging":  # OUT is written, the chunks are still there
                job._finish = lambda: end(ending, out, rank)
            write_jsonl(out, job)
            print("merged", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], int(sys.argv[5]))
