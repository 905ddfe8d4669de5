"""Which files a `--data` names, and their raw rows, whatever the format."""

from __future__ import annotations

import glob
import sys
from collections.abc import Iterator
from pathlib import Path

from taosr1.data.csv_rows import read_csv
from taosr1.data.esci import read_parquet
from taosr1.data.flags import AS_FOUND, ReadFlags
from taosr1.runtime.bad_rows import BadRows, shorten
from taosr1.runtime.jsonl import read_jsonl
from taosr1.runtime.text_lines import check_file

SHOWN_FILES = 6


def split_spec(spec: str | Path) -> list[str]:
    """The parts of "a.csv,b.csv"; a file or folder that exists under the whole name is one part."""
    if isinstance(spec, Path) or Path(spec).exists():
        return [str(spec)]
    return [part.strip() for part in spec.split(",")]


def data_files(spec: str | Path, flag: str = "--data") -> list[Path]:
    """The files (or ESCI folders) that a spec names: one, several with commas between them, or "part-*.csv".

    The files of a pattern are sorted by name, and a note says their order. A name is returned whether it exists or not.

    Raises: FileNotFoundError for a pattern without a file; ValueError for a file that is named twice, or an empty name.
    """
    files: list[Path] = []
    for part in split_spec(spec):
        if not part:
            raise ValueError(f"{flag} {str(spec)!r} has an empty name: expected FILE, FILE,FILE or a pattern")
        files += _matches(part, flag) if glob.has_magic(part) and not Path(part).exists() else [Path(part)]
    seen: set[Path] = set()
    for file in files:
        if file.resolve() in seen:
            raise ValueError(f"{flag} {str(spec)!r} names {file} twice: its rows would count twice")
        seen.add(file.resolve())
    return files


def _matches(pattern: str, flag: str) -> list[Path]:
    found = sorted(map(Path, glob.glob(pattern, recursive=True)))
    if not found:
        raise FileNotFoundError(f"no file matches {pattern!r}: check {flag}")
    shown = [file.name for file in found[:SHOWN_FILES]] + ["..."] * (len(found) > SHOWN_FILES)
    count = f"{len(found)} file{'s'[: len(found) != 1]}, read in this order"
    print(f"{flag} {pattern}: {count}: {', '.join(shown)}", file=sys.stderr)
    return found


def read_rows(
    path: str | Path, bad_rows: BadRows | None = None, read: ReadFlags = AS_FOUND, *, kind: str = ""
) -> Iterator[tuple[int, dict]]:
    """The raw rows of a data file in any supported format, with their line (parquet: row) numbers.

    kind: the format as the end of a name, ".csv"; where it is not given, the file's own.
    """
    path = Path(path) if Path(path).is_dir() else check_file(path)
    kind = kind or Path(path.name.lower().removesuffix(".gz")).suffix or path.suffix
    if path.is_dir() or kind == ".parquet":
        return read_parquet(path, bad_rows)
    if kind in (".csv", ".tsv"):
        return read_csv(path, bad_rows, delimiter="\t" if kind == ".tsv" else ",")
    if kind in (".jsonl", ".json", ".ndjson"):
        return read_jsonl(path, bad_rows)
    expected = ".jsonl, .json, .ndjson, .csv, .tsv, .parquet (text also .gz)"
    raise ValueError(f"{path}: unknown file type {shorten(repr(kind))}, expected {expected}: check --data")
