"""Reads .json files that are not JSON Lines: an array of objects, objects over several lines, or one list in an object.

Element by element, so that a large array is not held in memory (an object that holds the list is). A syntax error ends
the reading, because nothing behind it can be told apart.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from taosr1.data.hints import SUCH_AS
from taosr1.runtime.bad_rows import BadRows, shorten
from taosr1.runtime.encodings import UTF_8, shown
from taosr1.runtime.jsonl import NAN_NUMBERS, REPLACED, clean_value, parse_json
from taosr1.runtime.text_lines import BYTE_ORDER_MARK, MAX_LINE_BYTES, DamagedFile, check_file, damage_in, read_lines

LEAST_CHARS = 2**16  # read at a time
LOOKED_AT = 3  # lines that are not blank, to see whether one of them is an object by itself
_WHITE = " \t\r\n"
_MORE = "write one object a line: jq -c '.[]' {} > rows.jsonl"


def has_lines_of_json(path: Path, encoding: str) -> bool:
    """Whether a .json file holds one object a line. An empty or unreadable one passes for it."""
    lines = (line for _, line in read_lines(path, encoding) if line.strip(_WHITE + BYTE_ORDER_MARK))
    try:
        head = [line.strip(_WHITE + BYTE_ORDER_MARK) for line in islice(lines, LOOKED_AT)]
    except (ValueError, OSError):
        return True  # the reader will say what is wrong
    if not head or head[0].startswith("["):
        return not head
    found = [row for row in map(_object, head) if row is not None]
    return bool(found) and not (len(head) == 1 and list_inside(found[0]))


def holds_json(path: Path) -> bool:
    """Whether the first line of a file named as a table is an object of JSON, or begins an array of objects."""
    try:
        line = next((line.strip(_WHITE) for _, line in read_lines(path, "") if line.strip(_WHITE)), "")
    except (ValueError, OSError):
        return False  # the reader will say what is wrong
    return line.startswith("{") and _object(line) is not None or line == "[" or line.startswith('[{"')


def _object(line: str) -> dict | None:
    try:
        return parse_json(line, [])
    except ValueError:
        return None


def list_inside(value: Any) -> str:
    """The name of the only list of objects in an object ({"rows": [...], "version": 1}), or ""."""
    if not isinstance(value, dict) or "query" in value:
        return ""
    lists = [name for name, item in value.items() if isinstance(item, list) and item and isinstance(item[0], dict)]
    return lists[0] if len(lists) == 1 else ""


def read_json(path: str | Path, bad_rows: BadRows | None = None, encoding: str = "") -> Iterator[tuple[int, dict]]:
    """The objects of a JSON array, of several objects behind each other, or of the one list in an object.

    Returns: each with the line on which it begins (those of a list in an object: the line of that object).
    Raises: ValueError naming file and line for an element that is no object (`bad_rows` may skip it), and for a syntax
        error; FileNotFoundError.
    """
    path = check_file(path)
    with bad_rows or BadRows(path, flag="") as bad_rows:
        values = _Values(path, encoding, bad_rows)
        for line, value, problem, replaced in values.read():
            name = "" if values.is_array else list_inside(value)
            rows = value[name] if name else [value]
            if name:
                bad_rows.say(f"read the list {shorten(repr(name))} of the object")
            for row in rows:
                bad_rows.rows += 1
                if problem or not isinstance(row, dict):
                    other = f"a JSON {type(row).__name__}, expected objects in the list, {SUCH_AS}"
                    bad_rows.add(line, problem or other)
                    continue
                if replaced:
                    bad_rows.note(line, REPLACED)
                if values.has_nan:
                    bad_rows.note(line, NAN_NUMBERS)
                yield line, row


class _Values:
    """The values of an array, or of a file of values behind each other, decoded one by one from its lines."""

    def __init__(self, path: Path, encoding: str, bad_rows: BadRows) -> None:
        self.path, self.encoding, self.is_array, self._bad_rows = path, UTF_8, False, bad_rows
        self._lines = read_lines(path, encoding, self._say)
        self._text, self._at = "", 0  # what was read, and how much of it is decoded
        self._line = 1  # number of the line in which the decoded part ends
        self._problem = ""  # with the value that is being decoded
        self.has_nan = False  # whether that value holds a NaN
        hooks = {"parse_constant": self._constant, "parse_float": self._float, "parse_int": self._int}
        self._decode = json.JSONDecoder(object_pairs_hook=self._pairs, **hooks).raw_decode

    def read(self) -> Iterator[tuple[int, Any, str, bool]]:
        """(line, value, problem, whether characters were replaced) of each."""
        self.is_array = self._next_is("[")
        first = True
        while True:
            if self.is_array and self._next_is("]"):
                break
            if self.is_array and not first and not self._next_is(","):
                raise self._error("expected a comma or ] between the elements")
            if not self._skip_white():
                if self.is_array:
                    raise self._error("the file ends inside the array: was its writing cut off?")
                return
            yield self._value()
            first = False
        if self._skip_white():
            raise self._error("something follows behind the array")

    def _value(self) -> tuple[int, Any, str, bool]:
        line, begin, self._problem, self.has_nan = self._line, self._at, "", False
        while True:
            try:
                found, end = self._decode(self._text, begin)
                if end < len(self._text) or not self._more():  # else a number may go on
                    break
            except RecursionError:
                raise self._error("JSON nested too deeply") from None
            except json.JSONDecodeError as problem:
                if not self._more():
                    self._pass(problem.pos)
                    raise self._error(f"not JSON: {problem.msg}; {_MORE.format(self.path.name)}") from None
            self._problem = ""
        text, value = self._text[begin:end], None
        problem = damage_in(text, self.encoding, named=True) or self._problem
        try:
            value = clean_value(found)
        except ValueError as error:
            problem = problem or str(error)
        self._pass(end)
        return line, value, problem, not problem and "\\u" in text and value != found

    def _more(self) -> bool:
        """Append as much text as there is, so that a long element is tried only a few times."""
        added, wanted = [], max(LEAST_CHARS, len(self._text) - self._at)
        for _, line in self._lines:
            added.append(line)
            wanted -= len(line)
            if wanted < 0:
                break
        if len(self._text) - self._at > MAX_LINE_BYTES:
            raise self._error(f"an element of more than {MAX_LINE_BYTES} characters; {_MORE.format(self.path.name)}")
        self._text += "".join(added)
        return bool(added)

    def _skip_white(self) -> bool:
        """Go to the next character that is not white; False at the end of the file."""
        while True:
            end = self._at
            while end < len(self._text) and self._text[end] in _WHITE:
                end += 1
            self._pass(end)
            if self._at < len(self._text):
                return True
            self._text, self._at = "", 0
            if not self._more():
                return False

    def _next_is(self, char: str) -> bool:
        if self._skip_white() and self._text[self._at] == char:
            self._pass(self._at + 1)
            return True
        return False

    def _pass(self, end: int) -> None:
        self._line += self._text.count("\n", self._at, end)
        self._at = end
        if end > 2**20:  # drop what is decoded
            self._text, self._at = self._text[end:], 0

    def _error(self, problem: str) -> DamagedFile:
        return DamagedFile(f"{self.path}:{self._line}: {problem}")

    def _say(self, encoding: str) -> None:
        self.encoding = encoding
        self._bad_rows.say(f"read in {shown(encoding)}")

    # What a decoder calls for the parts of a value: an exception would lose the place where the value ends.

    def _pairs(self, pairs: list[tuple[str, Any]]) -> dict:
        row = dict(pairs)
        if len(row) != len(pairs):
            (twice, _), *_ = Counter(name for name, _ in pairs).most_common(1)
            self._problem = f"field {shorten(repr(twice))} appears twice"
        return row

    def _constant(self, spelled: str) -> None:
        if spelled == "NaN":
            self.has_nan = True
            return
        self._problem = f"{spelled} is not JSON: write null for a missing value"

    def _float(self, spelled: str) -> float:
        value = float(spelled)
        if not math.isfinite(value):
            self._problem = f"number {spelled[:20]} is out of range"
        return value

    def _int(self, spelled: str) -> int:
        if len(spelled) > 4300:  # Python's own limit, whose error would end the decoding
            self._problem = "a number of more than 4300 digits"
            return 0
        return int(spelled)
