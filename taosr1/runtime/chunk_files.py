"""Finished chunks of rows on disk: one line with a checksum for each, in files that are only appended to."""

from __future__ import annotations

import json
import os
import re
import sys
import zlib
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from taosr1.runtime.files import delete, fsync

_LINE = re.compile(rb'\{"chunk": (\d+), "crc32": "[0-9a-f]{8}", "answers": (.*)\}\n', re.DOTALL)


class ChunkFiles:
    """The files of finished chunks in a folder, one for each rank: all can be read, this rank's own is appended to.

    place: for each finished chunk its file, and the offset and length of its line there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.place: dict[int, tuple[Path, int, int]] = {}
        self._scanned: dict[Path, tuple[int, int]] = {}  # how far a file was read: offset, lines
        self._own: IO[bytes] | None = None

    def scan(self) -> None:
        """Find the chunks that were finished since the last call. A chunk found twice counts once; a damaged line is
        reported and does not count."""
        for path in sorted(self.folder.glob("rank-*.jsonl")):
            offset, lines = self._scanned.get(path, (0, 0))
            with open(path, "rb") as file:
                file.seek(offset)
                for line in file:
                    if not line.endswith(b"\n"):  # being written, or torn
                        break
                    found, lines = parse_line(line), lines + 1
                    if found is None:
                        problem = f"{path}:{lines} is damaged (its checksum does not match): its chunk is done again"
                        print(f"warning: {problem}", file=sys.stderr)
                    else:
                        self.place.setdefault(found[0], (path, offset, len(line)))
                    offset += len(line)
            self._scanned[path] = offset, lines

    def open_own(self, path: Path) -> None:
        """Append to this file from now on. A last line without a line end was left by a crash and is cut off."""
        self._own = file = open(path, "ab", buffering=0)
        end, _ = self._scanned.get(path, (0, 0))
        if file.tell() > end:
            print(f"{path}: cut off an unfinished last line of {file.tell() - end} bytes", file=sys.stderr)
            file.truncate(end)
            file.seek(end)
        os.fsync(file.fileno())
        fsync(self.folder)

    def add(self, number: int, answers: Any) -> None:
        """Append a finished chunk and force it to disk. Raises: as `ChunkedJob.add`."""
        assert self._own is not None
        line, end = chunk_line(number, json.dumps(answers, allow_nan=False).encode()), self._own.tell()
        try:
            left = memoryview(line)
            while left:  # an unbuffered write may write less than it was given
                left = left[self._own.write(left) :]
            os.fsync(self._own.fileno())
        except OSError as error:
            with suppress(OSError):  # if this fails too, the next start does it
                self._own.truncate(end)
            raise OSError(error.errno, error.strerror, self._own.name) from error
        self.place[number] = Path(self._own.name), end, len(line)

    def read(self, number: int) -> Any:
        """The answers of a finished chunk.

        Raises: ValueError for a line that was damaged since it was found.
        """
        path, offset, length = self.place[number]
        with open(path, "rb") as file:
            file.seek(offset)
            found = parse_line(file.read(length))
        if found is None or found[0] != number:
            way_out = "the same command does that chunk again"
            raise ValueError(f"{path}: damaged at byte {offset} since it was written; {way_out}")
        return json.loads(found[1])

    def forget(self) -> None:
        """Delete every finished chunk."""
        delete(self.folder.glob("rank-*.jsonl"))
        self.place.clear()
        self._scanned.clear()

    def close(self) -> None:
        if self._own is not None:
            self._own.close()


def chunk_line(number: int, payload: bytes) -> bytes:
    """A finished chunk as one line: its number, a checksum, and its answers, which are JSON text.

    The checksum covers the number too: a flipped bit in it must not give the answers to other rows.
    """
    checksum = zlib.crc32(payload, zlib.crc32(b"%d" % number))
    return b'{"chunk": %d, "crc32": "%08x", "answers": %s}\n' % (number, checksum, payload)


def parse_line(line: bytes) -> tuple[int, bytes] | None:
    """Number and answers (JSON text) of such a line, or None where it is damaged."""
    match = _LINE.fullmatch(line)
    if match is None or line != chunk_line(int(match[1]), match[2]):
        return None
    return int(match[1]), match[2]
