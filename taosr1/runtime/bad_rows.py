"""Counts the bad rows of one input file, by kind, and the good rows about which the reader has a remark.

Everything is printed to stderr. The first `NAMED` skipped rows are printed one by one, so that a million bad rows do
not flood a terminal; the summary at the end of the file counts them all.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path

NAMED = 20  # skipped rows printed one by one
MESSAGE_CHARS = 400  # of one row's problem: a field of a megabyte must not be printed in full
MAX_KINDS = 50  # kinds of problem counted apart; a damaged file can contain any number of field names
SHOWN_KINDS = 8

_KIND = re.compile(r"field '[^']{0,60}'|[^:;,(]{1,60}")


class BadRows:
    """Skips and counts the first `allowed` bad rows of a file; the next one is an error.

    A context, inside which the file is read: its summary is printed at the end.
    Attributes:
        rows: number of rows read so far, bad ones included. skipped: number of bad rows skipped.
        kinds: skipped rows by kind of problem.
    """

    def __init__(self, path: str | Path, allowed: int = 0, *, flag: str = "--max-bad-rows") -> None:
        if allowed < 0:
            raise ValueError(f"{flag} is {allowed}, expected 0 or more")
        self.path, self.allowed, self.flag = path, allowed, flag
        self.rows = self.skipped = 0
        self.kinds: Counter[str] = Counter()
        self._named = 0
        self._notes: dict[str, tuple[int, str]] = {}  # remark -> (number of rows, place of the first)
        self._finished = False  # summarised, or given up with an error

    def add(self, line: int, problem: object, *, rows: int = 1) -> None:
        """Skip one bad row, or raise ValueError("file:line: problem") where no more may be skipped.

        rows: how many rows may be lost with it: a CSV quote that is never closed swallows all rows behind it.
        """
        text = shorten(str(problem), MESSAGE_CHARS)
        if rows > 1:
            text += f"; counted as {rows} rows, for so many may be lost in it"
        if self.skipped + rows > self.allowed:
            self._finished = True
            hint = f"more than the {self.allowed} of {self.flag}" if self.allowed else f"{self.flag} N skips up to N"
            raise ValueError(f"{self.path}:{line}: {text}" + (f" ({hint})" if self.flag else ""))
        self.skipped += rows
        self.rows += rows - 1  # the reader has counted one
        kind = kind_of(str(problem))
        self.kinds[kind if kind in self.kinds or len(self.kinds) < MAX_KINDS else "other"] += rows
        self._named += 1
        if self._named <= NAMED:
            print(f"skipped {self.path}:{line}: {text}", file=sys.stderr)
        elif self._named == NAMED + 1:
            print(f"... and more in {self.path}: from here on they are counted, not named", file=sys.stderr)

    def note(self, line: int, what: str, detail: str = "") -> None:
        """Count a row that is kept but deserves a remark; the summary prints "3 rows WHAT, first at file:17"."""
        count, first = self._notes.get(what, (0, f"{self.path}:{line}{detail}"))
        self._notes[what] = (count + 1, first)

    def say(self, text: str) -> None:
        """Print a remark about the file as a whole."""
        print(f"{self.path}: {text}", file=sys.stderr)

    def __enter__(self) -> BadRows:
        return self

    def __exit__(self, *_: object) -> None:
        self.summarise()

    def summarise(self) -> None:
        """Print once how many rows were skipped or noted; nothing if none was."""
        if self._finished:
            return
        self._finished = True
        if self.skipped:
            shown = dict(self.kinds.most_common(SHOWN_KINDS))
            rest = {"other": self.skipped - sum(shown.values())}
            kinds = ", ".join(f"{kind} {count}" for kind, count in [*shown.items(), *rest.items()] if count)
            print(f"{self.path}: skipped {self.skipped} of {self.rows} rows: {kinds}", file=sys.stderr)
        for what, (count, first) in self._notes.items():
            print(f"{self.path}: {count} row{'s'[: count != 1]} {what}, first at {first}", file=sys.stderr)


class Unreported(BadRows):
    """Skips every bad row and prints nothing: for a look at a file beside its reading."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)

    def add(self, line: int, problem: object, *, rows: int = 1) -> None:
        self.skipped += rows

    def note(self, line: int, what: str, detail: str = "") -> None:
        pass

    def say(self, text: str) -> None:
        pass

    def summarise(self) -> None:
        pass


def kind_of(problem: str) -> str:
    """A problem without its particulars: "field 'grade'" for any wrong grade, "N cells" for any number of cells."""
    found = _KIND.match(problem)
    return re.sub(r"(?<![\w-])\d+", "N", found.group().strip()) if found else "other"


def shorten(text: str, chars: int = 60) -> str:
    """The text, or its beginning and "..." where it is longer than `chars`."""
    return text if len(text) <= chars else text[: chars - 3] + "..."
