"""Locks in the folder of a chunked job: one for each rank that is working, and one for the folder itself."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from taosr1.runtime.distributed import Ranks
from taosr1.runtime.files import is_at, locked, take_lock
from taosr1.runtime.out_paths import why_not_writable


class RankLock:
    """FOLDER/rank-NNNNN.lock: while it is held, no second process can work as that rank.

    The file describes the process that holds it: "rank R of N (process ID on HOST)".
    """

    def __init__(self, folder: Path, ranks: Ranks) -> None:
        self.folder, self.ranks = folder, ranks
        self.name = f"rank {ranks.rank} of {ranks.world}"
        self.path = folder / f"rank-{ranks.rank:05}.lock"
        self._file: IO[bytes] | None = None

    def others(self) -> list[str]:
        """The processes that work on this job, this one excepted, as described in their locks."""
        found = []
        for path in sorted(self.folder.glob("rank-*.lock")):
            if path != self.path or self._file is None:
                with open(path, "rb+") as file:
                    if not locked(file, wait=False):
                        found.append(file.read().decode(errors="replace") or "another process")
        return found

    def refuse_conflicts(self, others: list[str], out: Path) -> None:
        """Raises: ValueError where another process works as this rank, or the ranks at work are of another number."""
        for other in others:
            problem = f"--out {out}: {other} is working on it"
            if other.startswith(f"{self.name} "):
                raise ValueError(f"{problem} already: end that process, or give this one another RANK")
            if f" of {self.ranks.world} (" not in other:
                raise ValueError(f"{problem}: end it or let it finish, then continue as {self.name}")

    def take(self) -> None:
        """Lock, and write this process down. Only where `others` does not have the rank and the directory is locked."""
        self._file = take_lock(self.path, f"{self.name} (process {os.getpid()} on {socket.gethostname()})")
        assert self._file is not None

    def is_held(self) -> bool:
        """Whether the lock file is still the one that was locked; else the folder was removed, or holds another job."""
        return is_at(self._file, self.path)

    def release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


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
            if create and why_not_writable(folder, folder=True):  # it is not: nothing can be made there
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
