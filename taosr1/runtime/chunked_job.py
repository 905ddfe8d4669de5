"""Long jobs in finished parts: killed at any moment they continue where they were, and several ranks share one without a message.

    chunks = chunks_of(len(rows), 1024)
    with ChunkedJob("out.jsonl", job_identity("score", config, rows), chunks, this_rank()) as parts:
        for chunk in parts.missing():                     # this rank's, without those that are done
            parts.add(chunk, [answer(row) for row in rows[chunk.start : chunk.stop]])
        if parts.to_merge():                              # all are done, and it falls to this rank to write the output
            write_jsonl("out.jsonl", (row for answers in parts.answers() for row in answers))

Ranks meet in files only. They may be torchrun's or shells started by hand, at one time or one after another, on any machines that
share a file system with file locks. Beside OUT stand, while the job is unfinished,

    OUT.parts/job.json            what its answers depend on: a job that differs is refused, and told in what
    OUT.parts/rank-00000.jsonl    the chunks that rank 0 has finished, one a line, each with its checksum and forced to disk
    OUT.parts/rank-00000.lock     locked while rank 0 lives, so that nobody else is rank 0
    OUT.parts/gate.lock           locked while somebody comes or goes, and by the one that merges

and after a job of several ranks OUT.done.json: by it a rank that comes late, when the parts are gone, knows that its job is done.
Rank r of n does the chunks r, r + n, ... that are in nobody's file yet, so a restart may have another number of ranks.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from taosr1 import __version__
from taosr1.runtime.chunk_files import ChunkFiles
from taosr1.runtime.distributed import Ranks, unmute_stdout
from taosr1.runtime.files import can_lock, delete, is_at, locked, sha256
from taosr1.runtime.jsonl import clean_value, read_jsonl, write_jsonl

# They say where things are and how a job is executed. What they lead to is in the digests of rows and judge.
FREE_SETTINGS = ("model", "data", "out", "device", "batch_tok", "split", "limit", "max_bad_rows")


def chunks_of(rows: int, size: int, start: int = 0) -> list[range]:
    """Row numbers start .. start + rows - 1, cut into ranges of `size`; the last may be shorter."""
    return [range(first, min(first + size, start + rows)) for first in range(start, start + rows, size)]


def job_identity(job: str, config: Any, rows: Iterable[object], **facts: object) -> dict[str, Any]:
    """What a job's answers depend on: its settings (a dataclass), the content of its rows (dicts or dataclasses), other facts."""
    settings = {name: value for name, value in asdict(config).items() if name not in FREE_SETTINGS}
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, default=vars).encode() + b"\n")
    return {"job": job, "taosr1": __version__, **settings, **facts, "digest of the rows": digest.hexdigest()}


class ChunkedJob:
    """The finished chunks of one job, on disk, seen from one of its ranks."""

    def __init__(self, out: str | Path, identity: dict[str, Any], chunks: Sequence[range], ranks: Ranks) -> None:
        """chunks: row numbers, as `chunks_of` cuts them. identity: as `job_identity` makes it, the same on every rank."""
        self.out, self.chunks, self.ranks = Path(out), list(chunks), ranks
        self.folder, self.record = Path(f"{out}.parts"), Path(f"{out}.done.json")
        sizes = {"rows": sum(map(len, chunks)), "chunks": len(chunks), "rows of a chunk": max(map(len, chunks), default=0)}
        self.identity: dict[str, Any] = json.loads(json.dumps(clean_value(identity | sizes)))  # as it is read back
        self._number = {chunk.start: number for number, chunk in enumerate(chunks)}
        self._own = range(ranks.rank, len(chunks), ranks.world)
        self._files = ChunkFiles(self.folder)
        self._lock: IO[bytes] | None = None  # this rank's
        self._gate = ExitStack()  # holds the gate while this rank merges
        self._merging = False
        self._over = False  # somebody has merged the parts, or taken them away

    # ---- what a script does --------------------------------------------------------------------------------------------

    @property
    def total(self) -> int:
        """Rows that are this rank's."""
        return sum(len(self.chunks[number]) for number in self._own)

    @property
    def done(self) -> int:
        """Those of them that are done."""
        return sum(len(self.chunks[number]) for number in self._own if self._over or number in self._files.place)

    def missing(self) -> Iterator[range]:
        """This rank's chunks that nobody has finished."""
        for number in self._own:
            if not self._over and number not in self._files.place:
                yield self.chunks[number]

    def add(self, chunk: range, answers: Any) -> None:
        """Store a finished chunk's answers (JSON values) durably.

        Raises: OSError where the disk is full, ValueError for NaN; what was added before stays.
        """
        self._files.add(self._number[chunk.start], answers)

    def to_merge(self) -> bool:
        """Whether it falls to this rank to write the output: all chunks are done and nobody has merged them.

        True holds the other ranks off until the `with` ends; by then OUT must be written, and the parts are removed. To be asked once.
        Raises: ValueError where the parts were taken away under this rank.
        """
        if self._over:
            self._say(f"{self._who()} comes late, the job is done ({self.record}); to do it again, delete {self.out}")
            return False
        there = self._gate.enter_context(self._at_the_gate())
        ours = there and is_at(self._lock, self._lock_path())  # else the folder was removed, or is another job's by now
        if not (ours and self._job_file().exists()):
            self._see_it_gone(ours)
            return False
        self._files.scan()
        missing = [number for number in range(len(self.chunks)) if number not in self._files.place]
        if missing:
            self._say_who_is_missing(missing)
            return False
        self._merging = True
        self._remove_torn_outputs()
        unmute_stdout()
        return True

    def answers(self) -> Iterator[Any]:
        """What was added for every chunk, in the order of the rows; read from disk one at a time, as often as wanted.

        Raises: ValueError for a line that was damaged since it was found whole.
        """
        assert self._merging, "only who merges reads"
        return map(self._files.read, range(len(self.chunks)))

    def discard(self) -> None:
        """Throw the parts away while merging: they lead to no output, and the same command would only say so again."""
        assert self._merging
        self._remove()

    # ---- coming --------------------------------------------------------------------------------------------------------

    def __enter__(self) -> ChunkedJob:
        """Take this rank's place in the job: begin it, or continue it.

        Raises: ValueError where OUT.parts holds another job, this rank is at work already, or ranks of another number are.
        """
        if self.out.is_dir():
            raise ValueError(f"{self.out} is a folder, expected a file name to write: check --out")
        if self.ranks.world > 1 and not can_lock():
            raise ValueError("several ranks need POSIX file locks, which this system lacks: run one process")
        try:
            with self._at_the_gate(create=True):
                self._begin_or_continue()
        except BaseException:
            self._close()
            raise
        return self

    def _begin_or_continue(self) -> None:
        others, stored = self._others(), self._stored_identity()
        self._refuse_strangers(others)
        if stored is None and self.ranks.world > 1 and self._is_recorded():
            self._over = True
            self._remove()
            return
        if stored is None and others:
            raise ValueError(f"{self._job_file()} is missing, though {_described(others[0])} is at work: end that process first")
        self._lock = self._take_place()
        self._files.scan()
        if stored is not None and stored != self.identity and (others or self._files.place):
            raise ValueError(self._refusal(stored))
        if stored != self.identity:  # a new job; parts without a job.json are what a crash left of a removal
            self._files.forget()
            write_jsonl(self._job_file(), [self.identity])
        self._files.open_own(self._lock_path().with_suffix(".jsonl"))
        if self._files.place:
            self._say(f"{self._who()} continues, {self._progress()}")

    def _others(self) -> list[dict]:
        """Who else is at work, by the locks that are held."""
        found = []
        for path in sorted(self.folder.glob("rank-*.lock")):
            if path != self._lock_path() or self._lock is None or self._lock.closed:  # our own lock is ours
                with open(path, "rb+") as file:
                    if not locked(file, wait=False):
                        found.append(_holder(file))
        return found

    def _refuse_strangers(self, others: list[dict]) -> None:
        """Raises: ValueError where one of the others has our number, or they are not as many as we are said to be."""
        for other in others:
            if (other["rank"], other["world"]) == (self.ranks.rank, self.ranks.world):
                raise ValueError(f"--out {self.out}: {_described(other)} is at work on it already: end that process, or give this one another RANK")
            if other["world"] != self.ranks.world:
                raise ValueError(f"--out {self.out}: {_described(other)} is at work on it: end it or let it finish, then continue as {self._who()}")

    def _take_place(self) -> IO[bytes]:
        """This rank's lock, and who we are written into it. It is free: `_others` has looked, and we are at the gate."""
        file = open(self._lock_path(), "ab+")
        assert locked(file, wait=False)
        me = {"rank": self.ranks.rank, "world": self.ranks.world, "pid": os.getpid(), "host": socket.gethostname()}
        file.truncate(0)
        file.write(json.dumps(me).encode())
        file.flush()
        return file

    def _stored_identity(self) -> dict | None:
        if not self._job_file().exists():
            return None
        try:
            return next(read_jsonl(self._job_file()))[1]
        except (ValueError, StopIteration) as problem:
            raise ValueError(f"{self._job_file()} is damaged ({problem}): delete the folder {self.folder} to begin anew") from problem

    def _refusal(self, stored: dict) -> str:
        now, names = self.identity, sorted(stored.keys() | self.identity.keys())
        changed = [f"{name} was {stored.get(name)!r} and is now {now.get(name)!r}" for name in names if stored.get(name) != now.get(name)]
        return (
            f"{self.folder} holds an unfinished job with other settings or input ({'; '.join(changed)}): finish it as it was begun, choose "
            "another --out, or delete that folder to begin anew"
        )

    # ---- going ---------------------------------------------------------------------------------------------------------

    def __exit__(self, kind, error, trace) -> None:
        try:
            if kind is None and self._merging:
                self._seal()
            elif kind is not None and self._files.place and not self._over and self.folder.exists():
                with suppress(OSError):  # only to say how much the others have done meanwhile
                    self._files.scan()
                self._say(f"stopped; {self._progress()} and kept in {self.folder}: the same command continues")
        finally:
            self._close()
        if not (self._files.place or self._over):
            self._leave_nothing_behind()

    def _see_it_gone(self, ours: bool) -> None:
        """The parts were taken away under this rank. That is well where another rank has merged them, else an error."""
        if not self._is_recorded():
            raise ValueError(
                f"{self.folder} was removed while {self._who()} was at work: another rank gave up (and says why), or somebody deleted it; "
                "the same command begins anew"
            )
        self._say("another rank has merged the parts")
        self._over = True
        if ours:  # that rank was killed while it removed them
            self._remove()

    def _seal(self) -> None:
        """OUT is whole: say whose it is, where a late rank can ask, and remove the parts. A crash in here repeats the merge, at most."""
        if self.ranks.world > 1:
            write_jsonl(self.record, [{"job": self.identity, "sha256 of the output": sha256(self.out)}])
        else:
            delete([self.record])
        self._remove()

    def _is_recorded(self) -> bool:
        """Whether OUT is this very job's output, merged by one of several ranks and unchanged since."""
        if not (self.record.is_file() and self.out.is_file()):
            return False
        try:
            stored = next(read_jsonl(self.record))[1]
        except (ValueError, StopIteration):
            return False  # no proof, so the job is done again
        return stored.get("job") == self.identity and stored.get("sha256 of the output") == sha256(self.out)

    def _remove(self) -> None:
        """Remove the folder. job.json goes first: what is left without it is no job's, and the next start sweeps it away."""
        self._over = True
        self._close_files()  # network file systems keep the names of removed files while they are open
        for pattern in ("job.json", ".job.json.*.tmp", "rank-*.jsonl", "rank-*.lock", "gate.lock"):
            delete(self.folder.glob(pattern))
        self._remove_empty_folder()

    def _remove_empty_folder(self) -> None:
        with suppress(OSError):  # not empty: somebody has come in between, and it is theirs
            self.folder.rmdir()

    def _remove_torn_outputs(self) -> None:
        """What a merge that was killed left of OUT and its companions. Nobody is writing them: we are at the gate."""
        name = re.compile(rf"\.{re.escape(self.out.name)}(\.(done|counts)\.json)?\.\d+\.tmp")
        delete(path for path in self.out.parent.glob(".*.tmp") if name.fullmatch(path.name))

    def _leave_nothing_behind(self) -> None:
        """A start that came to nothing leaves no trace, unless another rank is at work or has finished a chunk."""
        with self._at_the_gate() as there:
            if there and not self._others():
                self._files.scan()
                if not self._files.place:
                    self._remove()

    def _close(self) -> None:
        self._close_files()
        self._gate.close()
        if self._over:
            self._remove_empty_folder()

    def _close_files(self) -> None:
        self._files.close()
        if self._lock is not None:
            self._lock.close()

    # ---- small things --------------------------------------------------------------------------------------------------

    @contextmanager
    def _at_the_gate(self, create: bool = False) -> Iterator[bool]:
        """Hold the gate, so that the folder can be read and changed in one go; False where there is no folder."""
        path = self.folder / "gate.lock"
        while True:
            try:
                if create:
                    self.folder.mkdir(parents=True, exist_ok=True)
                file = open(path, "ab" if create else "rb+")
            except (FileNotFoundError, FileExistsError):  # the folder goes away at this very moment
                if self.folder.is_file() or self.folder.is_symlink():
                    raise
                if create:
                    continue
                yield False
                return
            with file:
                locked(file, wait=True)
                if is_at(file, path):  # else it was removed while we waited for it
                    yield True
                    return

    def _say_who_is_missing(self, missing: list[int]) -> None:
        text = f"{self._who()} has done its share, {self._progress()}"
        working = {other["rank"] for other in self._others()}
        idle = [str(rank) for rank in sorted({number % self.ranks.world for number in missing}) if rank not in working]
        if idle:
            self._say(f"{text}; nobody is at work yet on those of rank {', '.join(idle)}: start it, or give the command to one process, which does the rest")
        else:
            self._say(f"{text}; the rank that finishes last writes the output")

    def _progress(self) -> str:
        return f"{len(self._files.place)} of {len(self.chunks)} chunks are done"

    def _who(self) -> str:
        return f"rank {self.ranks.rank} of {self.ranks.world}"

    def _job_file(self) -> Path:
        return self.folder / "job.json"

    def _lock_path(self) -> Path:
        return self.folder / f"rank-{self.ranks.rank:05}.lock"

    def _say(self, text: str) -> None:
        print(f"{self.out}: {text}", file=sys.stderr)


class InMemory:
    """`ChunkedJob` for a job without an output file: one process, which keeps its answers to itself and starts over when killed."""

    def __init__(self, chunks: Sequence[range], ranks: Ranks) -> None:
        """Raises: ValueError for several ranks, who would have nowhere to meet."""
        if ranks.world > 1:
            raise ValueError(f"--out is missing: that file is where the {ranks.world} ranks meet")
        self.chunks, self.total, self.done = list(chunks), sum(map(len, chunks)), 0
        self._answers: dict[int, Any] = {}

    def __enter__(self) -> InMemory:
        return self

    def __exit__(self, *_) -> None:
        pass

    def missing(self) -> Iterator[range]:
        yield from self.chunks

    def add(self, chunk: range, answers: Any) -> None:
        self._answers[chunk.start] = answers

    def to_merge(self) -> bool:
        return True

    def answers(self) -> Iterator[Any]:
        return (self._answers[chunk.start] for chunk in self.chunks)


def _holder(file: IO[bytes]) -> dict:
    """Who holds a lock, as it wrote down."""
    unknown = {"rank": "?", "world": "?", "pid": "?", "host": "?"}
    try:
        return unknown | json.loads(file.read())
    except ValueError:
        return unknown


def _described(other: dict) -> str:
    return f"rank {other['rank']} of {other['world']} (process {other['pid']} on {other['host']})"
