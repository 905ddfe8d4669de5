"""Whether `--out` can be written: asked before a model is loaded or a row is read."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

LONGEST_NAME = 255 - 25  # bytes; while a file is written, ".NAME.counts.json.PROCESS.tmp" is beside it


def out_problems(
    path: str, *, folder: bool = False, required: bool = True, standard: bool = False, flag: str = "--out"
) -> list[tuple[bool, str]]:
    """Problems for `taosr1.runtime.cli.check`.

    required: False where "" is allowed, or where the caller refuses it in its own words. standard: whether "-" is the
    standard output here.
    """
    if not path:
        return [(required, f"{flag} is missing, expected a {'folder' if folder else 'file name'}")]
    if path == "-":
        return [(not standard, f"{flag} -: this script cannot write to the standard output, expected a name")]
    problem = why_not_writable(path, folder=folder)
    return [(bool(problem), f"{flag} {path}: {problem}")]


def check_out(path: str, *, flag: str = "--out") -> None:
    """`out_problems` of a file for scripts without a config. Raises: ValueError."""
    for wrong, problem in out_problems(path, flag=flag):
        if wrong:
            raise ValueError(problem)


def same_path(one: str, other: str) -> bool:
    """Whether two names, links followed, are of one file, be it there or not."""
    return os.path.realpath(one) == os.path.realpath(other)


def why_not_writable(path: str | Path, *, folder: bool = False) -> str:
    """Why no file (or run folder) can be written at `path`, whose folders may be missing; "" where it can."""
    text, path = str(path), Path(path)
    if "\0" in text:
        return "a name cannot hold a NUL character"
    long = next((name for name in path.parts if len(os.fsencode(name)) > LONGEST_NAME), "")
    if long:
        return f"the name {long[:20]}... is too long: {len(os.fsencode(long))} bytes, expected at most {LONGEST_NAME}"
    try:
        if folder and path.exists() and not path.is_dir():
            return "is a file, expected a folder"
        if not folder and (path.is_dir() or text.endswith("/")):
            return "is a folder, expected a file name"
        if not folder and path.exists() and not path.is_file():
            return "is a device or pipe, expected the name of a file, which is replaced when it is complete"
        return _why_no_place(path if folder or path.is_symlink() and not path.exists() else path.parent)
    except OSError as error:
        return f"cannot be written ({error.strerror})"


def _why_no_place(path: Path) -> str:
    """The nearest place that exists, of this and its parents, has to be a folder in which files can be made."""
    place = next(place for place in (path, *path.parents) if os.path.lexists(place))
    if place.is_symlink() and not place.exists():
        return f"{place} is a symbolic link to {os.readlink(place)}, which is not there (a disk that is not mounted?)"
    if not place.is_dir():
        return f"{place} is a file, expected a folder"
    try:
        with tempfile.TemporaryFile(dir=place):  # it has no name and leaves nothing behind
            return ""
    except OSError as error:
        return f"nothing can be written in {place} ({error.strerror})"
