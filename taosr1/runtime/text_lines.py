"""Reads a text file, plain or gzipped (recognised by content), as numbered lines, and detects damaged bytes.

Damage inside one line stays in it as a marked character (`damage_in`), so that the reader can skip that row. Damage to
the file as a whole raises `DamagedFile`: another format or encoding, broken gzip data, a file that changes while read.
The encoding is UTF-8, or found (encodings.py), or the one that the caller says.
"""

from __future__ import annotations

import codecs
import gzip
import os
import re
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from taosr1.runtime.encodings import (
    CP1252,
    UTF_8,
    UTF_16_BE,
    UTF_16_LE,
    Western,
    encoding_of_head,
    is_utf8,
    known_encoding,
    readings,
    shown,
)

# A longer line is not a row: the file is of another kind, and reading on would only fill the memory.
MAX_LINE_BYTES = 64 * 2**20
BYTE_ORDER_MARK = "\ufeff"
JOINED = "a byte order mark inside the file: were two files joined?"
CR_ONLY = "a CR without LF: are the lines ended by CR alone, as on old Macs? tr '\\r' '\\n' < FILE > NEW"

CHUNK_BYTES = 2**20
HEAD_BYTES = 4096

_GZIP = b"\x1f\x8b"
_UNPACK = "expected text, plain or gzipped: unpack it first with"
_SAVE_AS = "save it as .xlsx, or as CSV UTF-8 (File > Save As)"
_OTHER_FORMATS = {
    b"PK\x03\x04": f"a zip archive, {_UNPACK} unzip",
    b"BZh91AY&SY": f"bzip2 data, {_UNPACK} bunzip2",
    b"\xfd7zXZ\0": f"xz data, {_UNPACK} unxz",
    b"\x28\xb5\x2f\xfd": f"Zstandard data, {_UNPACK} unzstd",
    b"7z\xbc\xaf\x27\x1c": f"a 7-Zip archive, {_UNPACK} 7z x",
    b"PAR1\x15": "parquet data, expected text: give the file a name that ends in .parquet",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": f"an old Excel workbook (.xls) or one with a password: {_SAVE_AS}",
    b"SQLite format 3\0": "an SQLite database: export the table as CSV (.mode csv)",
    b"ARROW1": "Arrow (feather) data: save it as parquet, with pyarrow or pandas",
    b"%PDF-": "a PDF, expected a table: export it as CSV",
}
_PAGE = re.compile(rb"\s*<(?:!doctype html|html|table|\?xml)\b", re.IGNORECASE)  # how some shops export "Excel"
# Bytes that are not UTF-8 become U+DC80..U+DCFF ("surrogateescape"); a raw NUL byte becomes U+DC00. UTF-16 may hold
# half a surrogate pair, of any value.
_DAMAGE = re.compile("[\ud800-\udfff]")
_NUL_MARK = "\udc00"
_BINARY = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\udc80-\udcff]")
_GAP, WORD_CHARS = re.compile(r"""[\s,;|"'<>]"""), 10  # between words; and of a word to show, on each side
_C1 = re.compile("[\x80-\x9f]")


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


def read_lines(
    path: Path, encoding: str | None = None, found: Callable[[str], None] = lambda _: None
) -> Iterator[tuple[int, str]]:
    """The lines of a file with their numbers from 1, each with its line end (LF or CR LF); broken bytes are marked.

    A byte order mark at the beginning is dropped. Gzip data may have several members, as `cat a.gz b.gz` makes them.
    encoding: None for UTF-8 alone, "" to find it, else its name. found: is told the name of any that is not UTF-8,
    before the first line that depends on it.

    Raises: DamagedFile naming file and line; OSError naming the file.
    """
    number = 0
    with open_text(path) as (raw, stream):
        size = os.fstat(raw.fileno()).st_size
        name = _choose_encoding(path, _guarded(path, 1, lambda: stream.peek(HEAD_BYTES))[:HEAD_BYTES], encoding)
        if name != UTF_8:
            found(name)
        lines = _wide_lines if name in (UTF_16_LE, UTF_16_BE) else _narrow_lines
        for number, line in enumerate(lines(path, stream, name, encoding, found), start=1):
            if number == 1:
                line = line.removeprefix(BYTE_ORDER_MARK)
            if line:
                yield number, line.replace("\0", _NUL_MARK)
        now = os.fstat(raw.fileno()).st_size
        if now != size:  # else a file cut at the end of a line would pass with fewer rows
            raise DamagedFile(f"{path}:{number}: the file changed while it was read: {size} bytes before, {now} now")


def damage_in(text: str, encoding: str = UTF_8, *, named: bool = False) -> str:
    """What is wrong with the bytes of a line or cell; "" if nothing is. named: whether the caller has an --encoding."""
    mark = _DAMAGE.search(text)
    if mark is None:
        return ""
    if mark.group() == _NUL_MARK:
        return "NUL byte in the text (was the file damaged in a crash?)"
    if encoding in (UTF_16_LE, UTF_16_BE):
        return f"not {shown(encoding)}: half of a surrogate pair"
    hint = ""
    if named:
        at = mark.start()
        word = _GAP.split(text[max(0, at - WORD_CHARS) : at])[-1] + _GAP.split(text[at : at + WORD_CHARS])[0]
        read = readings(word.replace(_NUL_MARK, "").encode(encoding, "surrogateescape"))
        hint = f"; --encoding names another one: {read}" if read else "; --encoding names another one"
    return f"not {shown(encoding)}: byte 0x{ord(mark.group()) - 0xDC00:02x}{hint}"


@contextmanager
def open_text(path: Path) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """The file as it is on the disk, and the stream of its text, unpacked if it is gzipped. Refuses other formats."""
    with open(path, "rb") as raw:
        head = raw.read(256)
        raw.seek(0)
        _refuse_other_formats(path, head)
        yield raw, gzip.GzipFile(fileobj=raw) if head.startswith(_GZIP) else raw  # type: ignore[misc]


def _choose_encoding(path: Path, head: bytes, wanted: str | None) -> str:
    """The encoding to begin with. Raises: DamagedFile for one that cannot be read, or is not the one wanted."""
    seen = encoding_of_head(head)
    if seen == "utf-32":
        raise DamagedFile(f"{path}: this file is UTF-32, expected UTF-8: iconv -f UTF-32 -t UTF-8 {path.name} > NEW")
    if wanted is None and seen != UTF_8:
        raise DamagedFile(f"{path}: this file is {shown(seen)}, expected UTF-8")
    if not wanted:
        return seen
    name = known_encoding(wanted)
    if name.startswith("utf-32"):
        raise ValueError(f"--encoding {wanted} is not read: iconv -f UTF-32 -t UTF-8 {path.name} > NEW")
    if name == "utf-16" and seen in (UTF_16_LE, UTF_16_BE):
        return seen
    is_wide, looks_wide = name.startswith("utf-16"), seen != UTF_8
    # Commas, tabs and line ends have a zero byte in UTF-16.
    if is_wide != looks_wide and head and (looks_wide or 0 not in head):
        raise DamagedFile(f"{path}:1: this file is {shown(seen)}, not {name}: leave --encoding out")
    if is_wide and looks_wide and name != seen:
        raise DamagedFile(f"{path}:1: this file is {shown(seen)}, not {shown(name)}: leave --encoding out")
    if head.startswith(codecs.BOM_UTF8) and name != UTF_8:
        raise DamagedFile(f"{path}:1: this file begins with the mark of UTF-8, not {name}: leave --encoding out")
    return {"utf-16": UTF_16_LE}.get(name, name)


def _narrow_lines(
    path: Path, stream: BinaryIO, name: str, wanted: str | None, found: Callable[[str], None]
) -> Iterator[str]:
    """Lines in an encoding in which LF is one byte. Where it is to be found, UTF-8 may turn out to be cp1252."""
    undecided = name != UTF_8 if wanted else wanted is not None
    number = 0
    while data := _next_line(stream, path, number + 1):
        number += 1
        if undecided and not data.isascii():
            undecided, fits = False, is_utf8(data)
            if wanted and fits and _every_line(path, is_utf8):
                raise DamagedFile(
                    f"{path}:{number}: this line is UTF-8, as all others, not {name}: leave --encoding out"
                )
            western = Western()
            if not wanted and not fits and _every_line(path, western.add) and western.decide():
                name = CP1252
                found(name)
        text = data.decode(name, "surrogateescape")
        if name.startswith("iso8859") and _C1.search(text):
            raise DamagedFile(f"{path}:{number}: a control character in {name}: --encoding cp1252 has letters there")
        yield text


def _every_line(path: Path, fits: Callable[[bytes], bool]) -> bool:
    """Whether something is true of every line of a file that is not ASCII: a pass of its own over the file."""
    with open_text(path) as (_, stream):
        number = 0
        while data := _next_line(stream, path, number := number + 1):
            if not data.isascii() and not fits(data):
                return False
    return True


def _wide_lines(
    path: Path, stream: BinaryIO, name: str, wanted: str | None, found: Callable[[str], None]
) -> Iterator[str]:
    """Lines in UTF-16."""
    decoder = codecs.getincrementaldecoder(name)("surrogatepass")
    rest, number = "", 0
    while chunk := _guarded(path, number + 1, lambda: stream.read(CHUNK_BYTES)):
        *lines, rest = (rest + decoder.decode(chunk)).split("\n")
        for line in lines:
            yield line + "\n"
        number += len(lines)
        if len(rest) > MAX_LINE_BYTES:
            raise DamagedFile(_too_long(path, number + 1))
    try:
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        raise DamagedFile(f"{path}:{number + 1}: {shown(name)} that ends inside a character: was it cut off?") from None
    if rest:
        yield rest


def rows_in(line: str) -> int:
    """Number of rows in a line if CR alone also ended a row, as on old Macs; at least 1."""
    return max(1, sum(1 for part in line.split("\r") if part.strip())) if "\r" in line else 1


def _next_line(stream: BinaryIO, path: Path, number: int) -> bytes:
    data = _guarded(path, number, lambda: stream.readline(MAX_LINE_BYTES + 1))
    if len(data) > MAX_LINE_BYTES:
        raise DamagedFile(_too_long(path, number))
    return data


def _too_long(path: Path, number: int) -> str:
    return f"{path}:{number}: a line of more than {MAX_LINE_BYTES} bytes; expected one row a line"


def _guarded(path: Path, number: int, read: Callable[[], bytes]) -> bytes:
    """What `read` returns; the errors of gzip and of the disk name file and line."""
    try:
        return read()
    except (EOFError, zlib.error, gzip.BadGzipFile) as problem:
        raise DamagedFile(f"{path}:{number}: damaged or cut off gzip data ({problem})") from None
    except OSError as problem:  # the error of a failing disk does not name the file
        raise OSError(problem.errno, f"{problem.strerror} (line {number})", str(path)) from problem


def _refuse_other_formats(path: Path, head: bytes) -> None:
    for magic, name in _OTHER_FORMATS.items():
        if head.startswith(magic):
            raise DamagedFile(f"{path}: this is {name}")
    if _PAGE.match(head):
        raise DamagedFile(
            f"{path}: this is a web page (HTML or XML), expected a table: open it in Excel, then {_SAVE_AS}"
        )
    # By content, not by name: downloads named .gz are often unpacked already, and a .jsonl may be gzipped.
    head = head[:16]
    text = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode(head)  # its last character may be cut
    if path.suffix == ".gz" and not head.startswith(_GZIP) and _BINARY.search(text):
        raise DamagedFile(f"{path}: named .gz, but this is not gzip data")
