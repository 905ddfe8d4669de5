"""Reads and writes JSON Lines, plain or gzipped, row by row; every problem is reported with file and line.

Choice: text is cleaned here, once. Lone surrogates (legal in JSON, impossible in UTF-8 and fatal in a tokenizer) and
NUL become U+FFFD, and a line on stderr says in how many rows; nothing else is altered. Integers of any size are exact;
numbers with a point or an exponent are float64.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from taosr1.runtime.bad_rows import BadRows, shorten
from taosr1.runtime.encodings import UTF_8, shown
from taosr1.runtime.outputs import output_stream
from taosr1.runtime.text_lines import BYTE_ORDER_MARK, CR_ONLY, JOINED, check_file, damage_in, read_lines, rows_in

MAX_DEPTH = 64  # nested lists and objects in a row: reading, copying and writing it must not overflow the stack
REPLACED = "held NUL or half a surrogate pair, which became U+FFFD"
NAN_NUMBERS = "had NaN, read as null"  # what Python writes for a missing number

_UNENCODABLE = re.compile("[\ud800-\udfff\0]")


def clean_text(text: str) -> str:
    """The text with every lone surrogate and NUL replaced by U+FFFD."""
    return _UNENCODABLE.sub("\ufffd", text) if _UNENCODABLE.search(text) else text


def clean_value(value: Any, depth: int = MAX_DEPTH) -> Any:
    """Apply `clean_text` to every string inside a JSON value.

    Raises: ValueError for a value nested more than `depth` deep, or where two names become one.
    """
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, (dict, list, tuple)) and depth == 0:
        raise ValueError(f"JSON nested too deeply: more than {MAX_DEPTH} lists and objects in each other")
    if isinstance(value, dict):
        cleaned = {clean_text(str(key)): clean_value(item, depth - 1) for key, item in value.items()}
        if len(cleaned) != len(value):
            raise ValueError("two fields have the same name once NUL and lone surrogates are replaced")
        return cleaned
    if isinstance(value, (list, tuple)):
        return [clean_value(item, depth - 1) for item in value]
    return value


def read_jsonl(
    path: str | Path, bad_rows: BadRows | None = None, *, flag: str = "--data", encoding: str | None = None
) -> Iterator[tuple[int, dict]]:
    """The objects of a JSON Lines file (gzipped or not) with their line numbers from 1; blank lines are skipped.

    encoding: as in `read_lines`: None for UTF-8 alone, "" to find it and to say so, else its name.

    Raises: ValueError naming file and line for a row that is not a JSON object (`bad_rows` may skip it), a repeated
        key, bytes that are not UTF-8, a line cut off at the end of the file, damaged gzip data; FileNotFoundError.
    """
    path, name = check_file(path, flag), UTF_8

    def say(found: str) -> None:
        nonlocal name
        name = found
        bad_rows.say(f"read in {shown(name)}")

    with bad_rows or BadRows(path, flag="") as bad_rows:
        for number, line in read_lines(path, encoding, say):
            if not line.strip():
                continue
            bad_rows.rows += 1
            try:
                if problem := damage_in(line, name, named=encoding is not None):
                    raise ValueError(problem)
                nans: list[str] = []
                row = clean_value(found := parse_json(line, nans))
            except ValueError as problem:
                bad_rows.add(number, problem, rows=rows_in(line))
                continue
            if "\\u" in line and row != found:  # only an escape can spell what is cleaned
                bad_rows.note(number, REPLACED)
            if nans:
                bad_rows.note(number, NAN_NUMBERS)
            yield number, row


def write_jsonl(path: str | Path, rows: Iterable[dict]) -> int:
    """Write rows as JSON Lines (gzipped if the name ends in .gz, "-": to the standard output).

    The file is complete, or there is none, whatever happens.

    Returns: the number of rows.
    Raises: ValueError naming file and row for what JSON cannot hold; OSError naming the file.
    """
    written = BadRows(path)
    with output_stream(path) as stream:
        for row in rows:
            written.rows += 1
            stream.write(_line_of(row, written))
    written.summarise()
    return written.rows


def _line_of(row: dict, written: BadRows) -> bytes:
    try:
        line = json.dumps(row, ensure_ascii=False, allow_nan=False)
        if _UNENCODABLE.search(line) or "\\u0000" in line:
            before, line = line, json.dumps(clean_value(row), ensure_ascii=False, allow_nan=False)
            if line != before:
                written.note(written.rows, REPLACED)
    except ValueError as problem:
        raise ValueError(f"{written.path}:{written.rows}: {problem}") from problem
    return line.encode() + b"\n"


def parse_json(line: str, nans: list[str] | None = None) -> dict:
    """One line as a dict; ValueError says what is wrong with it. nans: collects each NaN, which then becomes null."""

    def constant(spelled: str) -> None:
        if spelled != "NaN" or nans is None:
            raise ValueError(f"{spelled} is not JSON: write null for a missing value")
        nans.append(spelled)

    if line.startswith(BYTE_ORDER_MARK):
        raise ValueError(JOINED)
    try:
        row = json.loads(line, object_pairs_hook=_object, parse_constant=constant, parse_float=_finite)
    except json.JSONDecodeError as problem:
        hint = "" if line.endswith("\n") else "; the file ends inside this line: was its writing cut off?"
        hint = f"; {CR_ONLY}" if rows_in(line) > 1 else hint
        found = f"not JSON: {problem.msg} at column {problem.colno}"
        raise ValueError(f"{found}, expected one object a line{hint}") from None
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None
    if not isinstance(row, dict):
        hint = "; of an array, jq -c '.[]' FILE makes them" if isinstance(row, list) and row else ""
        raise ValueError(f"a JSON {type(row).__name__}, expected one object a line{hint}")
    return row


def _object(pairs: list[tuple[str, Any]]) -> dict:
    row = dict(pairs)
    if len(row) != len(pairs):
        (twice, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"field {shorten(repr(twice))} appears twice")
    return row


def _finite(spelled: str) -> float:
    value = float(spelled)
    if not math.isfinite(value):
        raise ValueError(f"number {spelled[:20]} is out of range")
    return value
