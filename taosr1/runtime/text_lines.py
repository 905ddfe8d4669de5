"""Reads a text file, plain or gzipped (recognised by content), as numbered lines, and detects damaged bytes.

Damage inside one line stays in it as a marked character (`damage_in`), so that the reader can skip that row. Damage to
the file as a whole raises `DamagedFile`: another format or encoding, broken gzip data, a file that changes while read.
"""

from __future__ import annotations

import codecs
import gzip
import os
import re
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

# A longer line is not a row: the file is of another kind, and reading on would only fill the memory.
MAX_LINE_BYTES = 64 * 2**20
BYTE_ORDER_MARK = "\ufeff"
JOINED = "a byte order mark inside the file: were two files joined?"
CR_ONLY = "a CR without LF: are the lines ended by CR alone, as on old Macs? End them by LF"

_GZIP = b"\x1f\x8b"
_OTHER_FORMATS = {
    b"PK\x03\x04": "a zip archive",
    b"BZh91AY&SY": "bzip2 data",
    b"\xfd7zXZ\0": "xz data",
    b"\x28\xb5\x2f\xfd": "Zstandard data",
    b"PAR1\x15": "parquet data",
}
# Bytes that are not UTF-8 become U+DC80..U+DCFF ("surrogateescape"); a raw NUL byte becomes U+DC00.
_DAMAGE = re.compile("[\udc00-\udcff]")
_NUL_MARK = "\udc00"
_BINARY = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\udc80-\udcff]")


class DamagedFile(ValueError):
    """The file as a whole is damaged or of another kind: skipping rows does not help."""


def check_file(path: str | Path, flag: str = "--data") -> Path:
    """The path of an existing regular file; FileNotFoundError or ValueError names the flag to change.

    A pipe or a device is refused: reading one can block for ever, and some callers read their rows twice.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no file at {path}: check {flag}")
    if path.is_dir():
        raise ValueError(f"{path} is a folder, expected a file: check {flag}")
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError(f"{path} is a pipe or a device, expected a file: save its rows first, then check {flag}")
    return path


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file with their numbers from 1, each with its line end (LF or CR LF); broken bytes are marked.

    A byte order mark at the beginning is dropped. Gzip data may have several members, as `cat a.gz b.gz` makes them.

    Raises: DamagedFile naming file and line; OSError naming the file.
    """
    number = 0
    with open(path, "rb") as raw:
        size = os.fstat(raw.fileno()).st_size
        head = raw.read(16)
        raw.seek(0)
        _refuse_other_formats(path, head)
        stream: BinaryIO = gzip.GzipFile(fileobj=raw) if head.startswith(_GZIP) else raw  # type: ignore[assignment]
        while data := _next_line(stream, path, number + 1):
            number += 1
            if number == 1:
                _refuse_other_encodings(path, data)
                data = data.removeprefix(codecs.BOM_UTF8)
            yield number, data.decode("utf-8", "surrogateescape").replace("\0", _NUL_MARK)
        now = os.fstat(raw.fileno()).st_size
        if now != size:  # else a file cut at the end of a line would pass with fewer rows
            raise DamagedFile(f"{path}:{number}: the file changed while it was read: {size} bytes before, {now} now")


def damage_in(text: str) -> str:
    """What is wrong with the bytes of a line or cell; "" if nothing is."""
    mark = _DAMAGE.search(text)
    if mark is None:
        return ""
    if mark.group() == _NUL_MARK:
        return "NUL byte in the text (was the file damaged in a crash?)"
    return f"not UTF-8: byte 0x{ord(mark.group()) - 0xDC00:02x}"


def rows_in(line: str) -> int:
    """Number of rows in a line if CR alone also ended a row, as on old Macs; at least 1."""
    return max(1, sum(1 for part in line.split("\r") if part.strip())) if "\r" in line else 1


def _next_line(stream: BinaryIO, path: Path, number: int) -> bytes:
    try:
        data = stream.readline(MAX_LINE_BYTES + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as problem:
        raise DamagedFile(f"{path}:{number}: damaged or cut off gzip data ({problem})") from None
    except OSError as problem:  # the error of a failing disk does not name the file
        raise OSError(problem.errno, f"{problem.strerror} (line {number})", str(path)) from problem
    if len(data) > MAX_LINE_BYTES:
        raise DamagedFile(f"{path}:{number}: a line of more than {MAX_LINE_BYTES} bytes; expected one row a line")
    return data


def _refuse_other_formats(path: Path, head: bytes) -> None:
    for magic, name in _OTHER_FORMATS.items():
        if head.startswith(magic):
            raise DamagedFile(f"{path}: this is {name}, expected text, plain or gzipped")
    # By content, not by name: downloads named .gz are often unpacked already, and a .jsonl may be gzipped.
    text = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode(head)  # its last character may be cut
    if path.suffix == ".gz" and not head.startswith(_GZIP) and _BINARY.search(text):
        raise DamagedFile(f"{path}: named .gz, but this is not gzip data")


def _refuse_other_encodings(path: Path, line: bytes) -> None:
    zeros = [byte == 0 for byte in line[:4]]  # without a byte order mark: ASCII characters with their zero bytes
    marks_16, marks_32 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE), (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
    if line.startswith(marks_32) or zeros in ([False, True, True, True], [True, True, True, False]):
        raise DamagedFile(f"{path}: this file is UTF-32, expected UTF-8")
    if line.startswith(marks_16) or zeros in ([False, True] * 2, [True, False] * 2):
        raise DamagedFile(f"{path}: this file is UTF-16, expected UTF-8")
