"""Locks in the folder of a chunked job: one for each rank that is working, and one for the folder itself."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from taosr1.runtime.distributed import Ranks
from taosr1.runtime.files import is_at, locked


@dataclass(frozen=True)
class Holder:
    """The process that holds a rank's lock, as it wrote down; "?" where it has not yet."""

    rank: int | str = "?"
    world: int | str = "?"
    pid: int | str = "?"
    host: str = "?"

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.world} (process {self.pid} on {self.host})"


class RankLock:
    """The lock of one rank, FOLDER/rank-NNNNN.lock: while it is held, no second process can work as that rank."""

    def __init__(self, folder: Path, ranks: Ranks) -> None:
        self.folder, self.ranks = folder, ranks
        self.path = folder / f"rank-{ranks.rank:05}.lock"
        self._file: IO[bytes] | None = None

    def others(self) -> list[Holder]:
        """The processes that work on this job, this one excepted."""
        found = []
        for path in sorted(self.folder.glob("rank-*.lock")):
            if path != self.path or self._file is None or self._file.closed:
                with open(path, "rb+") as file:
                    if not locked(file, wait=False):
                        found.append(_holder(file))
        return found

    def refuse_conflicts(self, others: list[Holder], out: Path) -> None:
        """Raises: ValueError where another process works as this rank, or the ranks at work are of another number."""
        rank, world = self.ranks.rank, self.ranks.world
        for other in others:
            problem = f"--out {out}: {other} is working on it"
            if (other.rank, other.world) == (rank, world):
                raise ValueError(f"{problem} already: end that process, or give this one another RANK")
            if other.world != world:
                raise ValueError(f"{problem}: end it or let it finish, then continue as rank {rank} of {world}")

    def take(self) -> None:
        """Lock, and write this process down. Only where `others` does not have the rank and the directory is locked."""
        self._file = open(self.path, "ab+")
        assert locked(self._file, wait=False)
        self._file.truncate(0)
        holder = Holder(self.ranks.rank, self.ranks.world, os.getpid(), socket.gethostname())
        self._file.write(json.dumps(asdict(holder)).encode())
        self._file.flush()

    def is_held(self) -> bool:
        """Whether the lock file is still the one that was locked; else the folder was removed, or holds another job."""
        return is_at(self._file, self.path)

    def release(self) -> None:
        if self._file is not None:
            self._file.close()


def _holder(file: IO[bytes]) -> Holder:
    try:
        return Holder(**json.loads(file.read()))
    except (ValueError, TypeError):
        return Holder()


@contextmanager
def locked_directory(folder: Path, create: bool = False) -> Iterator[bool]:
    """Hold the lock of a folder, so that it can be read and changed in one go; False where there is no folder."""
    path = folder / "gate.lock"
    while True:
        try:
            if create:
                folder.mkdir(parents=True, exist_ok=True)
            file = open(path, "ab" if create else "rb+")
        except (FileNotFoundError, FileExistsError):  # the folder is being removed at this moment
            if folder.is_file() or folder.is_symlink():
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
