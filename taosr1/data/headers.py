"""Whether the first line of a table is its header, or a title, or a row already."""

from __future__ import annotations

import re
from collections.abc import Sequence

from taosr1.data.columns import known_names, parse_columns
from taosr1.runtime.bad_rows import shorten

LOOKED_AT = 20  # lines, for a header below the first
_NUMBER = re.compile(r"\s*[-+]?\d+(?:[.,]\d+)?\s*")
Line = tuple[int, Sequence[Sequence[str]]]  # its number, and its cells by every way in which they can be separated


def header_problem(lines: Sequence[Line], columns: str) -> str:
    """What is wrong with the first of these lines as a header, with the way out; "" if nothing is seen."""
    if not lines:
        return ""
    cells = max(lines[0][1], key=len)
    numbers = {cell.strip() for cell in cells if _NUMBER.fullmatch(cell)}
    known = max(map(known_names, lines[0][1]))
    if known > 1 or (known_names(cells, columns) > known and not numbers & parse_columns(columns).keys()):
        return ""
    for number, readings in lines[1:LOOKED_AT]:
        best = max(readings, key=known_names)
        if known_names(best) > 1:
            names = shorten(", ".join(filter(None, best)), 80)
            return f"line {number} looks like the header ({names}): delete what stands above it"
    if known:
        return ""
    if not numbers or len(cells) == 1:
        return ""
    above = f"put a header above it, such as {','.join(_names_for(cells))}"
    return (
        f"no name in this line is known, and {shorten(repr(min(numbers)))} is a number: if the line is a row, {above}; "
        'if it is the header, --columns "NAME=query,NAME=title"'
    )


def _names_for(row: Sequence[str]) -> list[str]:
    """A header that fits a row: the first two texts, and the last number that could be a grade."""
    names = [f"column{place}" for place in range(1, len(row) + 1)]
    texts = [place for place, cell in enumerate(row) if cell.strip() and not _NUMBER.fullmatch(cell)]
    for place, name in zip(texts, ("query", "title")):
        names[place] = name
    for place in [place for place, cell in enumerate(row) if re.fullmatch(r"\s*[0-5](?:[.,]0)?\s*", cell)][-1:]:
        names[place] = "grade"
    return names
