"""Files and folders that a reader finds old or new, but always complete, whatever happens while they are written.

A folder written by `new_folder` has a manifest with the size and SHA-256 of each of its files, which `verify` checks: a
file that was cut, lengthened, exchanged, or lost a single bit is an error that names it, never a silently worse model.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # not a POSIX system: one process works there, unlocked
    fcntl = None  # type: ignore[assignment]

MANIFEST_FILE = "manifest.json"
STATE_FILE = "state.json"  # in checkpoints only
WRITING, DELETING = ".writing-", ".deleting-"  # prefixes of folders that are not complete


class DamagedError(ValueError):
    """A file does not hold what was written."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; its file is forced to disk and replaces `path`, or is deleted on an exception.

    The rename keeps memory maps of the old file intact: writing into that file would change tensors in use.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # safetensors makes its files readable by their owner alone
        fsync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync(path.parent)


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """`replacing` for a file that one call writes: `write(temporary path)`."""
    with replacing(path) as temporary:
        write(temporary)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises: DamagedError naming the file, where it is not UTF-8, JSON or an object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # covers UnicodeDecodeError and JSONDecodeError
        raise DamagedError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise DamagedError(f"{path} holds a JSON {type(value).__name__}, expected an object")
    return value


def write_json(path: Path, value: dict[str, Any], ascii: bool = False) -> None:
    """Write a JSON object durably, as Hugging Face does: indented, non-ASCII kept.

    ascii: escape it instead, for a value that may hold half a surrogate pair, which UTF-8 cannot encode.
    """
    text = _json_text(value, ascii)
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8", newline="\n"))


def write_checksummed(path: Path, value: dict[str, Any]) -> None:
    """`write_json` with a checksum of the rest under "seal": for small files that no manifest covers."""
    write_json(path, _with_checksum(value))


def read_checksummed(path: Path) -> dict[str, Any]:
    """What `write_checksummed` wrote. Raises: DamagedError naming the file, where one byte of it is different."""
    value = read_json(path)
    value.pop("seal", None)
    if path.read_text(encoding="utf-8") != _json_text(_with_checksum(value)):  # not one space more
        raise DamagedError(f"{path} is not as it was written: changed or damaged, its checksum 'seal' does not match")
    return value


def _with_checksum(value: dict[str, Any]) -> dict[str, Any]:
    return value | {"seal": hashlib.sha256(_json_text(value).encode()).hexdigest()[:16]}


def _json_text(value: dict[str, Any], ascii: bool = False) -> str:
    return json.dumps(value, indent=2, ensure_ascii=ascii) + "\n"


def differences(stored: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, str]]:
    """(name, "NAME was A and is now B") of each entry in which two JSON objects differ, sorted by name."""
    names = [name for name in sorted(stored | now) if stored.get(name) != now.get(name)]
    return [(name, f"{name} was {stored.get(name)!r} and is now {now.get(name)!r}") for name in names]


def fsync(path: Path) -> None:
    """Force a file, or a folder's list of names, to disk."""
    if os.name != "posix" and path.is_dir():  # Windows cannot open a folder, and keeps its names by itself
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """A file's digest, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def delete(paths: Iterable[Path]) -> None:
    """Delete files; those that do not exist are passed over."""
    for path in list(paths):
        path.unlink(missing_ok=True)


# ---- Locks, which the system releases when their process ends --------------------------------------------------------
def locked(file: IO[bytes], *, wait: bool) -> bool:
    """Lock a file until it is closed; False where another process has the lock and `wait` is False."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        problem = f"{error.strerror}: --out must be on a file system with file locks"
        raise OSError(error.errno, problem, file.name) from error
    return True


def take_lock(path: Path, holder: str) -> IO[bytes] | None:
    """The locked file at `path`, with `holder` written into it; None where another process has the lock."""
    file = open(path, "ab+")
    if not locked(file, wait=False):
        file.close()
        return None
    file.truncate(0)
    file.write(holder.encode())
    file.flush()
    return file


def is_at(file: IO[bytes] | None, path: Path) -> bool:
    """Whether an open file is still the one at `path`: a lock on a removed file excludes no other process."""
    try:
        return file is not None and os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


# ---- Folders ---------------------------------------------------------------------------------------------------------
@contextmanager
def new_folder(path: Path, *, manifest: bool = True) -> Iterator[Path]:
    """Write a folder that appears complete or not at all; yields the path to write its files to.

    manifest: False for a folder whose files may be edited.
    Raises: FileExistsError for an existing folder of that name.
    """
    unfinished = begin_folder(path)
    try:
        yield unfinished
        finish_folder(unfinished, path, manifest=manifest)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def begin_folder(path: Path) -> Path:
    """A new, empty folder beside `path`, for `finish_folder`. Raises: FileExistsError where `path` exists."""
    if path.exists():
        raise FileExistsError(f"{path} already exists")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.parent / f"{WRITING}{path.name}"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    return unfinished


def finish_folder(unfinished: Path, path: Path, *, manifest: bool = True) -> None:
    """Write a folder's manifest, force all its files to disk, and only then rename it to `path`."""
    inside = sorted(unfinished.rglob("*"))
    if manifest:
        files = {
            file.relative_to(unfinished).as_posix(): {"bytes": file.stat().st_size, "sha256": sha256(file)}
            for file in inside
            if file.is_file()
        }
        write_checksummed(unfinished / MANIFEST_FILE, {"files": files})
    for place in (*inside, unfinished):
        fsync(place)
    os.replace(unfinished, path)
    fsync(path.parent)


def remove_folder(path: Path) -> None:
    """Delete a folder; renamed first, so that an incomplete one never has its name."""
    renamed = path.parent / f"{DELETING}{path.name}"
    os.replace(path, renamed)
    shutil.rmtree(renamed)


def remove_leftovers(folder: Path) -> None:
    """Remove what an interrupted save or deletion left behind."""
    for path in (*folder.glob(f"{WRITING}*"), *folder.glob(f"{DELETING}*"), *folder.glob(".*.tmp")):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()


def verify(folder: Path, *, without: str = "", required: bool = False) -> None:
    """Check a folder's files against its manifest; files that it does not list (added later) are not checked.

    A folder without a manifest passes, unless it is a checkpoint or the manifest is `required`.
    without: files whose names begin with this are not needed now and not read.
    Raises: DamagedError naming every file that differs, and how.
    """
    path = folder / MANIFEST_FILE
    if not path.exists():
        if required or (folder / STATE_FILE).exists():
            raise DamagedError(f"{path} is missing, so this checkpoint cannot be verified")
        return
    files, problems = read_checksummed(path).get("files"), []
    if files is None:
        raise DamagedError(f"{path}: expected 'files' with 'bytes' and 'sha256' of each")
    for name, facts in files.items():
        file = folder / name
        if without and name.startswith(without):
            continue
        if not file.is_file():
            problems.append(f"{file} is missing")
        elif file.stat().st_size != facts["bytes"]:
            sizes = f"{file.stat().st_size} bytes, but {MANIFEST_FILE} says {facts['bytes']}"
            problems.append(f"{file} has {sizes}: it was cut, lengthened or exchanged")
        elif sha256(file) != facts["sha256"]:
            expected = f"another SHA-256 than {MANIFEST_FILE} says"
            problems.append(f"{file} has {expected}: it was changed, exchanged or damaged on disk")
    if problems:
        raise DamagedError("; ".join(problems))
