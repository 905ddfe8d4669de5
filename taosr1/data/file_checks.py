"""What shows only once all rows of a file are read: ids that became floats, and texts read in a wrong encoding."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from taosr1.runtime.bad_rows import shorten
from taosr1.runtime.encodings import OTHERS, looks_wrong
from taosr1.task.judgement import Judgement

_FLOAT = re.compile(r"\d{1,15}\.0")


def checked_rows(path: str | Path, rows: Sequence[Judgement], encoding: str) -> Sequence[Judgement]:
    """The rows; where all of a file's query_ids or item_ids are like "12.0", they are "12", and a note says so.

    Many programs make floats of a column of integers in which one is missing. encoding: of --encoding; a warning shows
    a text that does not look like words in it.
    """
    for name in ("query_id", "item_id"):
        ids = [found for row in rows if (found := getattr(row, name))]
        if ids and all(map(_FLOAT.fullmatch, ids)):
            rows = [replace(row, **{name: getattr(row, name).removesuffix(".0")}) for row in rows]
            shown = f"{ids[0]} as {ids[0].removesuffix('.0')}"
            print(f"{path}: every {name} ends in .0 (as programs write a column in which one is missing): read {shown}",
                  file=sys.stderr)  # fmt: skip
    if encoding:
        wrong = looks_wrong((f"{row.query} {row.title}" for row in rows), encoding)
        if wrong is not None:
            row = rows[wrong]
            texts = f"{shorten(repr(row.query))}, {shorten(repr(row.title))}"
            print(
                f"warning: {path}:{row.line}: {texts} does not look like words: is --encoding {encoding} right? "
                f"Others are {OTHERS}",
                file=sys.stderr,
            )
    return rows
