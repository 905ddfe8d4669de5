"""How tables are read: the flags that every script with `--data` inherits, and the one argument of the readers."""

from __future__ import annotations

from dataclasses import dataclass

from taosr1.runtime.cli import option


@dataclass(frozen=True)
class ReadFlags:
    """Settings of reading; the defaults find everything out by looking at the file."""

    columns: str = option("", 'your column names and ours, "Suchanfrage=query,Bewertung=grade" (common ones are known)')
    grades: str = option(
        "", 'your grades and ours, "Exact=4,Partial=3,Irrelevant=1", or a preset: esci, wands, binary, 0-3'
    )
    delimiter: str = option("", "what separates the cells of a table: , ; | or tab (none: found)")
    quotes: str = option("", "enclose: quotes around a cell enclose it; text: they are characters of it (none: found)")
    encoding: str = option("", "encoding of a text file, such as utf-8, utf-16, cp1252 (none: found)")
    max_bad_rows: int = option(0, "unreadable rows to skip (all are counted, the first 20 named) before giving up")


AS_FOUND = ReadFlags()
