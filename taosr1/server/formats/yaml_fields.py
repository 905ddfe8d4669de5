"""Reads the fields of a document from YAML, in the subset that Ruby's and Python's libraries write for plain data.

Keys with text, numbers, lists and keys inside them; plain, quoted and block text. Every value is text, since every
value becomes text of a prompt. No anchors, tags or flow collections with content: nothing here writes them, and a
reader without them has nothing that an untrusted document could reach.
"""

from __future__ import annotations

import re
import textwrap
from typing import Any

_QUOTED = r'"(?:[^"\\]|\\.)*"|\'(?:[^\']|\'\')*\''
_KEY = re.compile(rf"({_QUOTED}|[^\s'\"#\[\]{{}}|>&*!%@`,-][^\n]*?|-[^\s\n][^\n]*?):(?:[ \t]+(.*))?$")
_BLOCK = re.compile(r"([|>])([+-]?)\d?([+-]?)$")
_START = re.compile(r"\s*---(?:[ \t]+!\S+)?[ \t]*")
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[^xuU])", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "0": "\0", "e": "\x1b", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}
_ESCAPES |= {"_": "\xa0", "N": "\x85", "L": "\u2028", "P": "\u2029"}
MAX_DEPTH = 8


def read_yaml(text: str) -> Any:
    """A document: fields as a dict of texts, lists and dicts, or its whole text where it has no fields.

    Raises: ValueError for a line that is neither a field nor a part of one, and for fields too deep in each other.
    """
    if start := _START.match(text):
        text = text[start.end() :]
        if not text.startswith("\n"):
            first, _, rest = text.partition("\n")
            return _value(first, rest.split("\n"), 0) if first else ""
    lines = textwrap.dedent(text).strip("\n").split("\n")
    return _fields(lines, 0) if _KEY.match(lines[0]) else "\n".join(lines).strip()


def _fields(lines: list[str], depth: int) -> dict[str, Any]:
    """The fields of lines that begin at the left, each with the indented lines and list items below it."""
    if depth > MAX_DEPTH:
        raise ValueError(f"more than {MAX_DEPTH} fields in each other")
    found: dict[str, Any] = {}
    place = 0
    while place < len(lines):
        line = lines[place]
        place += 1
        if not line.strip():
            continue
        key = _KEY.match(line)
        if not key:
            raise ValueError(f"the line {line[:40]!r} is no field")
        below = place
        while below < len(lines) and (not lines[below].strip() or lines[below][0] in " \t" or _item(lines[below])):
            below += 1
        found[_scalar(key[1])] = _value(key[2] or "", lines[place:below], depth)
        place = below
    return found


def _item(line: str) -> bool:
    return line == "-" or line.startswith("- ")


def _value(first: str, below: list[str], depth: int) -> Any:
    """What stands behind a key: on its line, and below it."""
    first = first.strip()
    if block := _BLOCK.match(first):
        return _block(block[1], block[2] or block[3], below)
    if first or not any(line.strip() for line in below):
        return _scalar(_folded([first, *below]))
    inside = textwrap.dedent("\n".join(below)).strip("\n").split("\n")
    if _item(inside[0]):
        return _items(inside, depth)
    return _fields(inside, depth + 1) if _KEY.match(inside[0]) else _scalar(_folded(inside))


def _items(lines: list[str], depth: int) -> list[Any]:
    """The items of a list, each a "- " and the lines below it."""
    items: list[list[str]] = []
    for line in lines:
        if _item(line):
            items.append(["  " + line[1:].lstrip()])
        elif items:
            items[-1].append(line)
    found = []
    for item in items:
        inside = textwrap.dedent("\n".join(item)).split("\n")
        fields = _KEY.match(inside[0]) and inside[0][0] not in "'\""
        found.append(_fields(inside, depth + 1) if fields else _value(inside[0], inside[1:], depth))
    return found


def _block(style: str, chomp: str, lines: list[str]) -> str:
    """Text of "|" (lines as they are) or ">" (lines joined)."""
    text = textwrap.dedent("\n".join(lines)).rstrip(None if chomp != "+" else "")
    return text if style == "|" else _folded(text.split("\n"))


def _folded(lines: list[str]) -> str:
    """Lines joined by spaces; an empty line is a line break. In double quotes a backslash at a line's end joins two."""
    text, quoted = "", lines[0].startswith('"')
    for line in lines:
        slashes = len(text) - len(text.rstrip("\\"))
        if quoted and slashes % 2:
            text = text[:-1] + line.strip()
        elif not line.strip():
            text += "\n"
        else:
            text += line.strip() if not text or text.endswith("\n") else " " + line.strip()
    return text.strip()


def _scalar(text: str) -> str:
    """A plain or quoted text without its quotes; null is "", and so is an empty list or object."""
    if text[:1] == '"' and text[-1:] == '"' and len(text) > 1:
        return _ESCAPE.sub(_unescaped, text[1:-1])
    if text[:1] == "'" and text[-1:] == "'" and len(text) > 1:
        return text[1:-1].replace("''", "'")
    return "" if text in ("~", "null", "[]", "{}") else text.partition(" #")[0].rstrip()


def _unescaped(escape: re.Match) -> str:
    name = escape[1]
    if len(name) > 1:
        number = int(name[1:], 16)
        return chr(number) if number < 0x110000 else "\ufffd"
    return _ESCAPES.get(name, name)
