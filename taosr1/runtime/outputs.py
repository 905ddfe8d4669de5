"""What a script writes with `--out`: complete or not at all, never over a finished file unasked, or standard output."""

from __future__ import annotations

import errno
import gzip
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from taosr1.runtime.cli import option
from taosr1.runtime.distributed import this_rank
from taosr1.runtime.files import replacing

STANDARD = "-"  # as `--out` the standard output, as `--data` the standard input
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # raised by a write without naming the file


@dataclass(frozen=True)
class OutFlags:
    """The flag of every script that writes a file of results."""

    overwrite: bool = option(False, "replace --out where it exists already")


def there_already(out: str | Path) -> str:
    """The message for a finished file that would be overwritten."""
    return f"--out {out} is there already: --overwrite replaces it, or give another name"


def refuse_overwriting(out: str | Path, overwrite: bool) -> None:
    """Before anything long begins. An unfinished job at `out` is continued, which overwrites nothing.

    Where nothing can be written at all, `out_paths.py` says so.
    Raises: ValueError for a file that exists, unless `overwrite`, and for several ranks at the standard output.
    """
    if str(out) == STANDARD:
        if (world := this_rank().world) > 1:
            raise ValueError(f"--out -: {world} ranks share their answers through files beside --out: give a file name")
        return
    unfinished = Path(f"{out}.parts", "job.json").exists()
    shared = this_rank().world > 1 and Path(f"{out}.done.json").exists()  # ChunkedJob finds out what was finished
    if out and Path(out).is_file() and not (overwrite or unfinished or shared):
        raise ValueError(there_already(out))


@contextmanager
def output_stream(path: str | Path) -> Iterator[BinaryIO]:
    """A binary stream to a file (gzipped if its name ends in .gz) that appears complete or not at all, or to "-".

    A reader of the standard output that leaves early, as `head` does, ends the program without a message.
    Raises: OSError naming the file.
    """
    if str(path) == STANDARD:
        sys.stdout.flush()
        try:
            yield sys.stdout.buffer
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains when it closes it
            sys.exit(0)
        return
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise ValueError(f"{path} is a folder, expected a file name to write: check --out")
    try:
        with replacing(path) as temporary, open(temporary, "wb") as raw:
            # No name and no time inside: the same rows give the same bytes.
            gzipped = gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) if path.suffix == ".gz" else raw
            with gzipped as stream:
                yield stream  # type: ignore[misc]
    except OSError as problem:
        if problem.errno in _DISK_ERRORS and problem.filename is None:
            raise OSError(problem.errno, problem.strerror, str(path)) from problem
        raise
