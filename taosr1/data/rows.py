"""Which files a `--data` names, and their raw rows, whatever the format."""

from __future__ import annotations

import glob
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from taosr1.data.csv_rows import read_csv
from taosr1.data.esci import read_parquet
from taosr1.data.excel_rows import is_workbook, read_excel
from taosr1.data.flags import AS_FOUND, ReadFlags
from taosr1.data.json_rows import has_lines_of_json, holds_json, read_json
from taosr1.data.standard_input import local_path
from taosr1.data.wands import is_wands, read_wands
from taosr1.runtime.bad_rows import BadRows, shorten
from taosr1.runtime.jsonl import read_jsonl
from taosr1.runtime.messages import counted
from taosr1.runtime.text_lines import check_file

SHOWN_FILES = 6
TABLES = {".csv": ",", ".tsv": "\t", ".tab": "\t", ".psv": "|", ".txt": ""}  # and the delimiter of each name
_OFFICE = "soffice --headless --convert-to csv {}"
CONVERSIONS = {
    ".ods": f"save it as CSV in LibreOffice, or {_OFFICE}",
    ".numbers": "export it as CSV in Numbers",
    ".zip": "unpack it first: unzip {}",
    ".tar": "unpack it first: tar xf {}",
    ".tgz": "unpack it first: tar xzf {}",
    ".7z": "unpack it first: 7z x {}",
    ".bz2": "unpack it first: bunzip2 {}",
    ".xz": "unpack it first: unxz {}",
    ".zst": "unpack it first: unzstd {}",
    ".feather": "save it as parquet: pandas.read_feather(...).to_parquet(...)",
    ".arrow": "save it as parquet, with pyarrow",
    ".pkl": "a pickle can run code, so none is opened: save it as parquet or CSV where it was made",
    ".pickle": "a pickle can run code, so none is opened: save it as parquet or CSV where it was made",
    ".db": "export the table as CSV: sqlite3 -header -csv {} 'select * from TABLE'",
    ".sqlite": "export the table as CSV: sqlite3 -header -csv {} 'select * from TABLE'",
    ".xml": "save it as CSV or JSON Lines",
    ".html": "save it as CSV or JSON Lines",
    ".yaml": "save it as JSON Lines",
}


def split_spec(spec: str | Path) -> list[str]:
    """The parts of "a.csv,b.csv"; a file or folder that exists under the whole name is one part."""
    if isinstance(spec, Path) or Path(spec).exists():
        return [str(spec)]
    return [part.strip() for part in spec.split(",")]


def data_files(spec: str | Path, flag: str = "--data") -> list[Path]:
    """The files (or ESCI folders) that a spec names: one, several with commas between them, or "part-*.csv".

    The files of a pattern are sorted by name, and a note says their order. A name is returned whether it exists or not;
    "-" is the standard input, kept in a file.

    Raises: FileNotFoundError for a pattern without a file; ValueError for a file that is named twice, or an empty name.
    """
    files: list[Path] = []
    for part in split_spec(spec):
        if not part:
            raise ValueError(f"{flag} {str(spec)!r} has an empty name: expected FILE, FILE,FILE or a pattern")
        if re.match(r"\w+://", part):
            raise ValueError(f"{flag} {part} is an address, and only files are read: download it first")
        files += _matches(part, flag) if glob.has_magic(part) and not Path(part).exists() else [local_path(part)]
    seen: set[Path] = set()
    for file in files:
        if file.resolve() in seen:
            raise ValueError(f"{flag} {str(spec)!r} names {file} twice: its rows would count twice")
        seen.add(file.resolve())
    return files


def _matches(pattern: str, flag: str) -> list[Path]:
    # Programs that write a folder of parts put files such as _SUCCESS beside them.
    found = sorted(file for file in map(Path, glob.glob(pattern, recursive=True)) if not file.name.startswith("_"))
    if not found:
        raise FileNotFoundError(f"no file matches {pattern!r}: check {flag}")
    shown = [file.name for file in found[:SHOWN_FILES]] + ["..."] * (len(found) > SHOWN_FILES)
    count = f"{counted(len(found), 'file')}, read in this order"
    print(f"{flag} {pattern}: {count}: {', '.join(shown)}", file=sys.stderr)
    return found


def read_rows(
    path: str | Path, bad_rows: BadRows | None = None, read: ReadFlags = AS_FOUND, *, kind: str = ""
) -> Iterator[tuple[int, dict]]:
    """The raw rows of a data file in any supported format, with their line (parquet, Excel: row) numbers.

    A name says whether a file is a table, JSON, parquet or Excel; what a table looks like, and whether JSON is an array
    or one object a line, is found in its content.
    kind: the format as the end of a name, ".csv"; where it is not given, the file's own.
    """
    path = Path(path) if Path(path).is_dir() else check_file(path)
    kind = _kind(path, kind)
    if path.is_dir() and is_wands(path):
        return read_wands(path, bad_rows, read)
    if path.is_dir() and not any(path.glob("*examples*.parquet")):
        kinds = Counter(_suffix(file) for file in path.iterdir() if not file.name.startswith(("_", ".")))
        pattern = f"{path}/*{max(kinds, key=kinds.get, default='.csv')}"
        raise FileNotFoundError(
            f"{path} is a folder without ESCI's *examples*.parquet or WANDS' label.csv: name its files ('{pattern}'), "
            "check --data"
        )
    if path.is_dir() or kind == ".parquet":
        return read_parquet(path, bad_rows)
    if kind == ".xlsx":
        return read_excel(path, bad_rows, read.columns)
    if kind in TABLES:
        return read_csv(path, bad_rows, read, usual=TABLES[kind])
    if kind == ".json" and not has_lines_of_json(path, read.encoding):
        return read_json(path, bad_rows, read.encoding)
    if kind in (".jsonl", ".json", ".ndjson"):
        return read_jsonl(path, bad_rows, encoding=read.encoding)
    if kind in CONVERSIONS:
        raise ValueError(f"{path}: {kind} is not read: {CONVERSIONS[kind].format(path.name)}")
    expected = ".jsonl, .json, .csv, .tsv, .txt (each also .gz), .xlsx or .parquet"
    raise ValueError(f"{path}: unknown file type {shorten(repr(kind))}, expected {expected}: check --data")


def has_header(path: str | Path, kind: str = "") -> bool:
    """Whether all rows of a file have the same columns."""
    return Path(path).is_dir() or _kind(Path(path), kind) not in (".jsonl", ".json", ".ndjson")


def _suffix(path: Path) -> str:
    return Path(path.name.lower().removesuffix(".gz")).suffix + ".gz" * path.name.lower().endswith(".gz")


def _kind(path: Path, kind: str) -> str:
    """The format of a file as the end of a name: its name says it, except where its content is plainly another."""
    kind = kind or _suffix(path).removesuffix(".gz") or path.suffix
    if path.is_file() and is_workbook(path):
        return ".xlsx"
    if kind in TABLES and path.is_file() and holds_json(path):
        return ".json"
    # Many programs call a table of text .xls, so that a double click opens Excel.
    return {".xls": ".txt", ".xlsm": ".xlsx"}.get(kind, kind)
