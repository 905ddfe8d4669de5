"""Long jobs in chunks: a job that was killed continues where it was, and several ranks share one without messages.

    def work(rows, start):                                 # one chunk; `start` is the number of its first row
        return [{"grade": grade(row)} for row in rows]     # answers are JSON objects

    identity = job_identity("score", config, rows)
    with run_in_chunks("out.jsonl", identity, rows, 1024, work, "score") as answers:
        if answers is not None:                            # all chunks are finished, and this rank writes the output
            write_jsonl("out.jsonl", answers)

Ranks share nothing but files. They may be started by torchrun or by hand, at the same time or one after another, on any
machines that share a file system with file locks. While the job is unfinished, these files are beside OUT:

    OUT.parts/job.json            what the answers depend on: another job is refused, and the difference is named; and
                                  how the rows are cut, by the time that the first of them took (chunk_sizes.py)
    OUT.parts/rank-00000.jsonl    the finished chunks of rank 0, one a line, each with its checksum and forced to disk
    OUT.parts/rank-00000.lock     locked while a process works as rank 0, so that no second one does
    OUT.parts/gate.lock           the directory's lock: held while a rank starts or ends, and while OUT is written

and after a job of several ranks OUT.done.json, which tells a rank that starts after the end that its job is finished.
Rank r of n does those of the chunks r, r + n, ... that are in no file yet: a restart may have another number of ranks.
The rank that begins the job measures, while the others wait for it; a job that continues keeps its chunks.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, fields
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from taosr1 import __version__
from taosr1.runtime.chunk_files import ChunkFiles
from taosr1.runtime.chunk_sizes import Cut, measured_cut
from taosr1.runtime.distributed import Ranks, this_rank, unmute_stdout
from taosr1.runtime.files import DamagedError, delete, differences, read_json, sha256, write_json
from taosr1.runtime.job_locks import RankLock, locked_directory
from taosr1.runtime.outputs import there_already
from taosr1.runtime.progress import Bar, listening

T = TypeVar("T")
FORMAT = 3  # of stored jobs. 2 had equal chunks, and replies were drawn by chunk instead of by row
# Settings that say where things are and how a job is executed. What they lead to is in the digests of rows and judge.
FREE_SETTINGS = (
    "model", "data", "out", "overwrite", "format", "index", "device", "batch_tok", "split", "limit", "max_bad_rows"
)  # fmt: skip


class NothingToWriteError(ValueError):
    """The answers lead to no output. Raised while they are merged, it removes them: a restart would only repeat it."""


Work = Callable[[list[T], int], list[dict]]  # work(rows of a chunk, number of the first): any number of JSON objects


@contextmanager
def run_in_chunks(
    out: str | Path, identity: dict, rows: list[T], largest: int, work: Work, description: str, *, boundary: int = 0,
    overwrite: bool = False, silent: bool = False,
) -> Iterator[Iterable[dict] | None]:  # fmt: skip
    """Answer rows in chunks. Yields all answers in order, or None on a rank that leaves the output to another.

    The answers can be iterated over several times. `out` must be written inside the context: when that ends, the stored
    answers are removed. After an exception they stay, and the same command continues.
    out: "" keeps the answers in memory; then one process does everything, and begins again where it was killed.
    identity: as `job_identity` makes it, the same on every rank.
    largest: rows of a chunk at most; a slow model gets fewer (`measured_cut`). What `work` returns for a row must not
        depend on it, apart from rounding.
    boundary: no chunk holds rows from both sides of this row number.
    overwrite: `out` may be there already. silent: without a progress bar.
    Raises: ValueError where OUT.parts holds another job or other processes work as these ranks, for an `out` that is
        there already, for NaN in an answer, and for several ranks without `out`; OSError where the disk is full.
    """
    ranks = this_rank()
    if not out and ranks.world > 1:
        raise ValueError(f"--out is missing: the {ranks.world} ranks share their answers through files beside it")
    with ExitStack() as shown:
        bar = shown.enter_context(Bar(total=len(rows), desc=description, unit="row", disable=silent))
        shown.enter_context(listening(bar.part))

        def answer(chunk: range) -> list[dict]:
            return work(rows[chunk.start : chunk.stop], chunk.start)

        def answered(chunks: Iterable[range]) -> Iterator[tuple[range, list[dict]]]:
            with shown:  # the bar ends before anything is said about the job
                for chunk in chunks:
                    yield chunk, answer(chunk)
                    bar.update(len(chunk))

        cut = partial(measured_cut, len(rows), largest, boundary, answer)
        if not out:
            yield [given for _, answers in answered(cut().chunks()) for given in answers]
            return
        with ChunkedJob(out, identity, len(rows), cut, ranks, overwrite=overwrite) as job:
            total, missing = sum(map(len, job.own)), list(job.missing())
            bar.begin_at(total - sum(map(len, missing)), total)
            for chunk, answers in answered(missing):
                job.add(chunk, answers)
            yield job if job.to_merge() else None


def job_identity(job: str, config: Any, rows: Iterable[object], **facts: object) -> dict[str, Any]:
    """What a job's answers depend on: its settings (a dataclass), its rows (dicts or dataclasses), and other facts."""
    settings = {name: value for name, value in asdict(config).items() if name not in FREE_SETTINGS}
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, default=_content).encode() + b"\n")
    return {"job": job, "taosr1": __version__, **settings, **facts, "digest of the rows": digest.hexdigest()}


def _content(row: Any) -> dict[str, Any]:
    """The fields of a dataclass that are compared: where a row was read does not matter."""
    return {field.name: getattr(row, field.name) for field in fields(row) if field.compare}


class ChunkedJob:
    """The stored chunks of one job, as one of its ranks works on them."""

    def __init__(
        self, out: str | Path, identity: dict[str, Any], rows: int, cut: Callable[[], Cut], ranks: Ranks, *,
        overwrite: bool = False,
    ) -> None:  # fmt: skip
        """cut: called where this rank begins the job; any other finds its chunks in job.json. identity: the same on
        every rank."""
        self.overwrite, self._cut = overwrite, cut
        self.out, self.ranks = Path(out), ranks
        self.chunks: list[range] = []  # known once the job has begun
        self.folder, self.record = Path(f"{out}.parts"), Path(f"{out}.done.json")
        self.job_file = self.folder / "job.json"
        self.identity: dict[str, Any] = json.loads(json.dumps({**identity, "rows": rows, "format": FORMAT}))  # as read
        self._number: dict[int, int] = {}
        self._files = ChunkFiles(self.folder)
        self._lock = RankLock(self.folder, ranks)
        self._directory_lock = ExitStack()  # held while this rank merges
        self._merging = False
        self._over = False  # the stored chunks were merged, or removed

    # ---- The chunks --------------------------------------------------------------------------------------------------

    @property
    def own(self) -> list[range]:
        """This rank's chunks."""
        return self.chunks[self.ranks.rank :: self.ranks.world]

    def missing(self) -> Iterator[range]:
        """This rank's chunks that are in no file yet."""
        for chunk in self.own:
            if not self._over and self._number[chunk.start] not in self._files.place:
                yield chunk

    def add(self, chunk: range, answers: list[dict]) -> None:
        """Store a finished chunk's answers durably.

        Raises: OSError where the disk is full, ValueError for NaN; what was added before stays.
        """
        self._files.add(self._number[chunk.start], answers)

    def to_merge(self) -> bool:
        """Whether this rank has to write the output: all chunks are finished, and no rank has written it. Ask once.

        True makes the other ranks wait until the `with` ends; by then OUT must be written, and the chunks are removed.
        Raises: ValueError where the folder was removed while this rank was working.
        """
        if self._over:
            self._report(f"{self._lock.name} finds the job done ({self.record}); to do it again, delete {self.out}")
            return False
        self._directory_lock.enter_context(locked_directory(self.folder))
        ours = self._lock.is_held()
        if not (ours and self.job_file.exists()):  # the folder was removed while this rank was working
            if not self._is_recorded():
                raise ValueError(
                    f"{self.folder} was removed while {self._lock.name} was working: another rank gave up and printed "
                    "why, or somebody deleted it; the same command begins again"
                )
            self._report("another rank has written the output")
            self._over = True
            if ours:  # that rank was killed while it removed the folder
                self._remove()
            return False
        self._files.scan()
        missing = [number for number in range(len(self.chunks)) if number not in self._files.place]
        if missing:
            self._report_missing(missing)
            return False
        self._merging = True
        # Temporary files of a merge that was killed. No rank writes them now: the directory is locked.
        name = re.compile(rf"\.{re.escape(self.out.name)}(\.(done|counts)\.json)?\.\d+\.tmp")
        delete(path for path in self.out.parent.glob(".*.tmp") if name.fullmatch(path.name))
        unmute_stdout()
        return True

    def __iter__(self) -> Iterator[dict]:
        """The answers of all chunks in the order of the rows, read from disk chunk by chunk.

        Raises: ValueError for a line that was damaged since `to_merge`.
        """
        assert self._merging, "only the rank that merges can read the answers"
        return chain.from_iterable(map(self._files.read, range(len(self.chunks))))

    # ---- Start -------------------------------------------------------------------------------------------------------

    def __enter__(self) -> ChunkedJob:
        """Begin the job, or continue it. Raises: ValueError as `run_in_chunks`."""
        if self.out.is_dir():
            raise ValueError(f"{self.out} is a folder, expected a file name to write: check --out")
        if self.ranks.world > 1 and os.name != "posix":
            raise ValueError("several ranks need POSIX file locks, which this system lacks: run one process")
        if self.out.is_file() and not (self.overwrite or self.job_file.exists()):
            if not (self.ranks.world > 1 and self._is_recorded()):  # else this rank only finds the job done
                raise ValueError(there_already(self.out))
        try:
            with locked_directory(self.folder, create=True):
                self._begin_or_continue()
        except BaseException:
            self._close()
            self._leave_folder()
            raise
        return self

    def _begin_or_continue(self) -> None:
        others = self._lock.others()
        self._lock.refuse_conflicts(others, self.out)
        try:
            stored = read_json(self.job_file) if self.job_file.exists() else None
        except DamagedError as error:
            raise ValueError(f"{error}: delete the folder {self.folder} to begin again") from error
        if stored is None and self.ranks.world > 1 and self._is_recorded():
            self._remove()
            return
        if stored is None and others:
            raise ValueError(f"{self.job_file} is missing, although {others[0]} is working: end that process first")
        self._lock.take()
        self._files.scan()
        cut = stored and stored.pop("cut", None)
        if stored is not None and stored != self.identity and (others or self._files.place):
            raise ValueError(self._refusal(stored))
        if stored != self.identity:  # a new job; chunks without a job.json are left from a removal that was interrupted
            self._files.forget()
            try:
                cut = asdict(self._cut())
            except BaseException:
                self._remove()
                raise
            write_json(self.job_file, {**self.identity, "cut": cut}, ascii=True)
        self.chunks = Cut(**cut).chunks()
        self._number = {chunk.start: number for number, chunk in enumerate(self.chunks)}
        self._files.open_own(self._lock.path.with_suffix(".jsonl"))
        if self._files.place:
            self._report(f"{self._lock.name} continues, {self._progress()}")

    def _refusal(self, stored: dict) -> str:
        what, finish = "of another version of taosr1", "with that version"
        if stored.get("format") == FORMAT:
            changed = "; ".join(text for _, text in differences(stored, self.identity))
            what, finish = f"with other settings or input ({changed})", "as it was begun"
        way_out = f"finish it {finish}, choose another --out, or delete that folder to begin again"
        return f"{self.folder} holds an unfinished job {what}: {way_out}"

    # ---- End ---------------------------------------------------------------------------------------------------------

    def __exit__(self, kind, error, trace) -> None:
        try:
            if self._merging and isinstance(error, NothingToWriteError):
                self._remove()
            elif self._merging and kind is None:
                self._finish()
            elif kind is not None and self._files.place and not self._over and self.folder.exists():
                with suppress(OSError):  # only to count what the other ranks have finished meanwhile
                    self._files.scan()
                self._report(f"stopped; {self._progress()} and kept in {self.folder}: the same command continues")
        finally:
            self._close()
        if not (self._files.place or self._over):
            self._remove_unused()
        self._leave_folder()

    def _leave_folder(self) -> None:
        if self._over:  # only now: network file systems keep the names of removed files while they are open
            with suppress(OSError):  # not empty: another rank has started in between
                self.folder.rmdir()

    def _finish(self) -> None:
        """OUT is complete: record it for ranks that start later, remove the chunks. A crash here repeats the merge."""
        if self.ranks.world > 1:
            write_json(self.record, self._proof(), ascii=True)
        else:
            delete([self.record])
        self._remove()

    def _is_recorded(self) -> bool:
        """Whether OUT is this job's output, written by one of several ranks and unchanged since."""
        try:
            return read_json(self.record) == self._proof()
        except (FileNotFoundError, DamagedError):
            return False  # no proof, so the job is done again

    def _proof(self) -> dict:
        return {"job": self.identity, "sha256 of the output": sha256(self.out)}

    def _remove(self) -> None:
        """Remove the files, job.json first: chunks without it belong to no job, and the next start deletes them."""
        self._over = True
        self._files.close()
        self._lock.release()
        for pattern in ("job.json", ".job.json.*.tmp", "rank-*.jsonl", "rank-*.lock", "gate.lock"):
            delete(self.folder.glob(pattern))

    def _remove_unused(self) -> None:
        """Remove the files again where no chunk was finished and no other rank is working."""
        with locked_directory(self.folder) as exists:
            if exists and not self._lock.others():
                self._files.scan()
                if not self._files.place:
                    self._remove()

    def _close(self) -> None:
        self._files.close()
        self._lock.release()
        self._directory_lock.close()

    # ---- Messages ----------------------------------------------------------------------------------------------------

    def _report_missing(self, missing: list[int]) -> None:
        working, ranks = self._lock.others(), sorted({number % self.ranks.world for number in missing})
        idle = [str(rank) for rank in ranks if not any(other.startswith(f"rank {rank} of ") for other in working)]
        hint = "the rank that finishes last writes the output"
        if idle:
            hint = f"no process works on those of rank {', '.join(idle)}: start it, or let one process do the rest"
        self._report(f"{self._lock.name} has done its share, {self._progress()}; {hint}")

    def _progress(self) -> str:
        return f"{len(self._files.place)} of {len(self.chunks)} chunks are done"

    def _report(self, text: str) -> None:
        print(f"{self.out}: {text}", file=sys.stderr)
