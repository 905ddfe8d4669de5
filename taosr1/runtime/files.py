"""Writing a file, or a folder, so that a reader finds the old one or the new one, whole, whatever happens in between.

A folder written by `new_folder` carries a manifest: size and SHA-256 of each of its files. Reading such a folder checks it, so a
file that was cut, lengthened, exchanged, or lost a single bit on the way is an error that names it, never a silently worse model.
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
STATE_FILE = "state.json"  # in a checkpoint only: what makes a folder one
TEMPORARY, LEAVING, DAMAGED = ".writing-", ".deleting-", "damaged-"  # how folders are called that are no checkpoints yet, or any more


class DamagedError(ValueError):
    """A file is not what was written."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; what is written there is forced to disk and takes its place, or vanishes on an exception.

    The rename also keeps memory maps of the old file intact, where writing into it would change tensors in use.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # safetensors leaves its files readable by their owner alone
        fsync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync(path.parent)


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """`replacing` for what is written in one go: `write(temporary path)`."""
    with replacing(path) as temporary:
        write(temporary)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ValueError: naming the file, where it is not UTF-8, not JSON or not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # covers UnicodeDecodeError and JSONDecodeError
        raise DamagedError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise DamagedError(f"{path} holds a JSON {type(value).__name__}, expected an object")
    return value


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object durably, as Hugging Face does: indented, non-ASCII kept."""
    text = _json_text(value)
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8", newline="\n"))


def write_checksummed(path: Path, value: dict[str, Any]) -> None:
    """`write_json` with a checksum of the rest under "seal": for small files outside a manifest that decide what is loaded."""
    write_json(path, value | {"seal": _seal(value)})


def read_checksummed(path: Path) -> dict[str, Any]:
    """What `write_checksummed` wrote. Raises: DamagedError naming the file, where it is anything else."""
    value = read_json(path)
    as_written = path.read_text(encoding="utf-8") == _json_text(value)  # not one blank more
    seal = value.pop("seal", None)
    if seal != _seal(value) or not as_written:
        raise DamagedError(f"{path} is not as it was written (its seal does not fit): it was changed or damaged on disk")
    return value


def _seal(value: dict[str, Any]) -> str:
    return hashlib.sha256(_json_text(value).encode()).hexdigest()[:16]


def _json_text(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def fsync(path: Path) -> None:
    """Force a file, or a folder's list of names, to disk."""
    if os.name != "posix" and path.is_dir():  # there a folder cannot be opened, and its names are durable by themselves
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
    """Delete files, where they are still there."""
    for path in list(paths):
        path.unlink(missing_ok=True)


# --- Locks, which end with their process ------------------------------------------------------------------------------
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


# --- Folders ----------------------------------------------------------------------------------------------------------
@contextmanager
def new_folder(path: Path, *, manifest: bool = True) -> Iterator[Path]:
    """Write a folder that appears complete or not at all: aside first, its manifest last, all on disk, then one rename.

    manifest: False for a folder that is its owner's to edit.
    Raises: FileExistsError for an existing folder of that name.
    """
    aside = open_aside(path)
    try:
        yield aside
        commit(aside, path, manifest=manifest)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def open_aside(path: Path) -> Path:
    """An empty folder beside `path`, for `commit`."""
    if path.exists():
        raise FileExistsError(f"{path} already exists")
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.parent / f"{TEMPORARY}{path.name}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    return aside


def commit(aside: Path, path: Path, *, manifest: bool = True) -> None:
    """Give a folder its manifest, force all of it to disk, and only then its name."""
    files = {str(file.relative_to(aside).as_posix()): file for file in sorted(aside.rglob("*")) if file.is_file()}
    if manifest:
        write_checksummed(aside / MANIFEST_FILE, {"files": {name: _facts(file) for name, file in files.items()}})
    for place in (*files.values(), *(folder for folder in aside.rglob("*") if folder.is_dir()), aside):
        fsync(place)
    os.replace(aside, path)
    fsync(path.parent)


def remove_folder(path: Path) -> None:
    """Delete a folder so that half of it is never found under its name."""
    aside = path.parent / f"{LEAVING}{path.name}"
    os.replace(path, aside)
    shutil.rmtree(aside)


def verify(folder: Path, *, without: str = "", required: bool = False) -> None:
    """Check a folder's files against its manifest. One that has none, and is no checkpoint, is left alone unless it is `required`.

    without: files whose names begin so are not read, because nobody wants them now. Files that the manifest does not know (a beta
        that was stored beside the weights later) are left alone too.
    Raises: DamagedError naming every file that is not what was written, and why.
    """
    path = folder / MANIFEST_FILE
    if not path.exists():
        if required or (folder / STATE_FILE).exists():
            raise DamagedError(f"{path} is missing, so nothing says whether this checkpoint is whole")
        return
    problems = []
    for name, facts in _read_manifest(path).items():
        file = folder / name
        if without and name.startswith(without):
            continue
        if not file.is_file():
            problems.append(f"{file} is missing")
        elif file.stat().st_size != facts["bytes"]:
            problems.append(f"{file} has {file.stat().st_size} bytes, but {MANIFEST_FILE} says {facts['bytes']}: it was cut, lengthened or exchanged")
        elif _facts(file) != facts:
            problems.append(f"{file} has another SHA-256 than {MANIFEST_FILE} says: it was changed, exchanged or damaged on disk")
    if problems:
        raise DamagedError("; ".join(problems))


def _read_manifest(path: Path) -> dict[str, dict]:
    files = read_checksummed(path).get("files")
    if not (isinstance(files, dict) and all(isinstance(facts, dict) and facts.keys() == {"bytes", "sha256"} for facts in files.values())):
        raise DamagedError(f"{path}: expected 'files' with 'bytes' and 'sha256' of each")
    return files


def _facts(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}
