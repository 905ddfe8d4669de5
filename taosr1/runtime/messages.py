"""What programs say: numbers with their noun, notes that come once, and texts of others made safe to print."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

from taosr1.runtime.distributed import this_rank

ZERO_WIDTH_JOINER = "\u200d"  # a format character, but half of all emoji are made with it


def counted(number: int, noun: str) -> str:
    """ "1 row", "2,000 rows", "3 queries"."""
    plural = noun[:-1] + "ies" if noun.endswith("y") else noun + "s"
    return f"{number:,} {noun if number == 1 else plural}"


@lru_cache(maxsize=64)
def say_once(text: str) -> None:
    """Print a note to stderr, the first time only, from the first rank alone."""
    if this_rank().is_rank_zero:
        print(f"note: {text}", file=sys.stderr)


def visible(text: str) -> str:
    """Text that is safe to print: control, format and line-breaking characters as escapes, everything else as it is."""
    shown = []
    for character in text:
        control = unicodedata.category(character)[0] == "C" or character in "\u2028\u2029"
        escape = control and character != ZERO_WIDTH_JOINER
        shown.append(character.encode("unicode_escape").decode() if escape else character)
    return "".join(shown)


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A table whose columns are as wide as their longest cell; the first `left` are aligned left, the others right."""
    widths = [max(map(len, column)) for column in zip(header, *rows)]
    lines = []
    for row in (header, *rows):
        pairs = enumerate(zip(row, widths))
        cells = [cell.ljust(width) if place < left else cell.rjust(width) for place, (cell, width) in pairs]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def install(extra: str) -> str:
    """The command that installs an optional part of the package, at the versions that the tests run with."""
    return f'pip install -c constraints.txt -e ".[{extra}]"'
