"""What `parts.py` needs of files: finished chunks as lines with checksums, and locks that end with their process."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import zlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # not a POSIX system: one process works there, unlocked
    fcntl = None  # type: ignore[assignment]

_LINE = re.compile(rb'\{"chunk": (\d+), "crc32": "([0-9a-f]{8})", "answers": (.*)\}\n', re.DOTALL)


class PartFiles:
    """The files of finished chunks in a folder, one a rank: any of them can be read, one's own appended to.

    place: of each finished chunk its file, and offset and length of its line there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.place: dict[int, tuple[Path, int, int]] = {}
        self._scanned: dict[Path, tuple[int, int]] = {}  # how far a file was read: offset, lines
        self._own: IO[bytes] | None = None

    def scan(self) -> None:
        """Find the chunks that were finished since the last look. What is there twice counts once; what is damaged is said and not counted."""
        for path in sorted(self.folder.glob("rank-*.jsonl")):
            offset, lines = self._scanned.get(path, (0, 0))
            with open(path, "rb") as file:
                file.seek(offset)
                for line in file:
                    if not line.endswith(b"\n"):  # being written, or torn
                        break
                    found, lines = parse_part(line), lines + 1
                    if found is None:
                        print(f"warning: {path}:{lines} is damaged (its checksum does not fit): its chunk is done again", file=sys.stderr)
                    else:
                        self.place.setdefault(found[0], (path, offset, len(line)))
                    offset += len(line)
            self._scanned[path] = offset, lines

    def open_own(self, path: Path) -> None:
        """Append to this file from now on. A last line without its end is what a crash left: it is cut off."""
        self._own = file = open(path, "ab", buffering=0)
        end, _ = self._scanned.get(path, (0, 0))
        if file.tell() > end:
            print(f"{path}: cut off an unfinished last line of {file.tell() - end} bytes", file=sys.stderr)
            file.truncate(end)
            file.seek(end)
        os.fsync(file.fileno())
        sync_folder(self.folder)

    def add(self, number: int, answers: Any) -> None:
        """Append a finished chunk and force it to disk.

        Raises: OSError where the disk is full, ValueError for NaN; what was added before stays.
        """
        assert self._own is not None
        line, end = part_line(number, json.dumps(answers, allow_nan=False).encode()), self._own.tell()
        try:
            left = memoryview(line)
            while left:  # an unbuffered write may take less than it was given
                left = left[self._own.write(left) :]
            os.fsync(self._own.fileno())
        except OSError as error:
            with suppress(OSError):  # where this fails too, the next start does it
                self._own.truncate(end)
            raise OSError(error.errno, error.strerror, self._own.name) from error
        self.place[number] = Path(self._own.name), end, len(line)

    def read(self, number: int) -> Any:
        """The answers of a finished chunk.

        Raises: ValueError for a line that was damaged since it was written.
        """
        path, offset, length = self.place[number]
        with open(path, "rb") as file:
            file.seek(offset)
            found = parse_part(file.read(length))
        if found is None or found[0] != number:
            raise ValueError(f"{path}: damaged at byte {offset} since it was written; the same command does that chunk again")
        return json.loads(found[1])

    def forget(self) -> None:
        """Delete every finished chunk."""
        delete(self.folder.glob("rank-*.jsonl"))
        self.place.clear()
        self._scanned.clear()

    def close(self) -> None:
        if self._own is not None:
            self._own.close()


def part_line(number: int, payload: bytes) -> bytes:
    """A finished chunk as one line: its number, a checksum, and its answers, which are JSON already."""
    return b'{"chunk": %d, "crc32": "%s", "answers": %s}\n' % (number, _checksum(number, payload), payload)


def parse_part(line: bytes) -> tuple[int, bytes] | None:
    """Number and answers of such a line, or None where it is not what was written."""
    match = _LINE.fullmatch(line)
    if match is None or match[2] != _checksum(int(match[1]), match[3]):
        return None
    return int(match[1]), match[3]


def _checksum(number: int, payload: bytes) -> bytes:
    """Of the chunk's number too: a flipped bit in it must not give the answers to other rows."""
    return b"%08x" % zlib.crc32(payload, zlib.crc32(b"%d" % number))


def can_lock() -> bool:
    """Whether this system has locks that keep processes apart."""
    return fcntl is not None


def locked(file: IO[bytes], *, wait: bool) -> bool:
    """Lock a file for as long as it is open; False where another process has it and we do not wait."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}: --out must be on a file system with file locks", file.name) from error
    return True


def is_at(file: IO[bytes] | None, path: Path) -> bool:
    """Whether an open file still has its name: a lock on a removed file keeps nobody out."""
    try:
        return file is not None and os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def delete(paths: Iterable[Path]) -> None:
    """Delete files, where they are still there."""
    for path in list(paths):
        path.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """A file's digest, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def sync_folder(folder: Path) -> None:
    """Force a folder's list of names to disk; elsewhere than on POSIX a folder cannot be opened."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
