"""`--data -`: rows from the standard input, kept in a file while the program runs: rows are read more than once."""

from __future__ import annotations

import atexit
import gzip
import shutil
import sys
import tempfile
from functools import lru_cache
from pathlib import Path

from taosr1.runtime.distributed import this_rank
from taosr1.runtime.outputs import STANDARD

HEAD_BYTES = 4096  # looked at to tell the format


def local_path(path: str | Path) -> Path:
    """The path itself; for "-" a file with everything that the standard input holds, named after its format.

    Raises: ValueError under torchrun, whose ranks do not share an input.
    """
    return _spooled() if str(path) == STANDARD else Path(path)


@lru_cache(maxsize=1)
def _spooled() -> Path:
    if (world := this_rank().world) > 1:
        raise ValueError(f"--data -: {world} ranks do not share a standard input: save its rows to a file first")
    folder = Path(tempfile.mkdtemp(prefix="taosr1-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    spooled = folder / "standard_input"
    with open(spooled, "wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
    return spooled.rename(spooled.with_suffix(suffix_of(spooled)))


def suffix_of(path: Path) -> str:
    """What a file without a name seems to hold, as the end of a name; the reader of each finds out the rest."""
    with open(path, "rb") as file:
        head = file.read(HEAD_BYTES)
    if head.startswith(b"PAR1"):
        return ".parquet"
    if head.startswith(b"PK"):
        return ".xlsx"
    if head.startswith(b"\x1f\x8b"):
        try:
            with gzip.open(path) as file:
                head = file.read(HEAD_BYTES)
        except (OSError, EOFError):
            return ".json"  # whose reader says what is wrong with the data
    text = head.replace(b"\0", b"").decode("utf-8", "ignore").lstrip("\ufeff \t\r\n")  # without the zeros of UTF-16
    return ".json" if not text or text.startswith(("{", "[")) else ".txt"
