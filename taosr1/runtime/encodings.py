"""Finds the encoding of a text file by its bytes: UTF-8, UTF-16 with or without a mark, or cp1252.

Choice: a wrong guess would change texts without a word, so there are few. UTF-8 and UTF-16 can be recognised. cp1252
(Excel on Windows, in Western Europe) is believed only if no line of the whole file is UTF-8, and if its bytes spell
words: letters of Western languages, few of them side by side, signs at the ends of words. Text of cp1251, Shift-JIS,
cp1250 or Mac Roman fails this test, and so does a file with one damaged line; both are errors that show what a word is
in each encoding, for --encoding.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable

UTF_8, UTF_16_LE, UTF_16_BE, CP1252 = "utf-8", "utf-16-le", "utf-16-be", "cp1252"
SHOWN = {UTF_8: "UTF-8", UTF_16_LE: "UTF-16 LE", UTF_16_BE: "UTF-16 BE", "utf-32": "UTF-32"}
LEAST_CHARS, LEAST_LINES = 3, 2  # beyond ASCII, before a file is taken for cp1252
STRANGE_SHARE = 0.02  # of these characters, at most, do not look like Western text

_LETTERS = "A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u00ff\u0152\u0153\u0160\u0161\u0178\u017d\u017e"
_BEYOND_ASCII = re.compile(r"[^\x00-\x7f]")
# Signs that may stand inside a word ("l’eau", "café–bar"), beside the letters.
_INSIDE = "\u2018\u2019\u00b4\u00ae\u2122\u2013\u2014\u00b7\u00ad\u2026\u00a0"
_NO_WORDS = (
    f"(?<=[{_LETTERS}])[^{_LETTERS}{_INSIDE}\\x00-\\x7f](?=[{_LETTERS}])"
    # Three letters beyond ASCII side by side: Cyrillic, Greek, Chinese, ... read as cp1252.
    "|[\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u00ff]{3,}"
    # A capital inside a word in small letters: Mac Roman.
    "|(?<=[A-Za-z])[\u00c0-\u00d6\u00d8-\u00de\u0152\u0160\u0178\u017d](?=[a-z])"
    "|[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f]"
)
_STRANGE = re.compile(
    # Letters that the same byte spells in a neighbour of cp1252 (Czech, Polish, Turkish) far more often than in it;
    # Hungarian has one where Portuguese has õ, which stands before e.
    "[ðþýÐÞÝšžŠŽŸ\u00a4\u00a6\u00a8\u00ac\u00af\u00b8\u0192\u02c6\u02dc]|õ(?!e)|" + _NO_WORDS
)
_NO_WESTERN_WORDS = re.compile(_NO_WORDS)
_SIGN_INSIDE = f"(?<=[^\\W\\d_])[^\\w\\s{_INSIDE}\\x00-\\x7f](?=[^\\W\\d_])"
_TWO_SCRIPTS = "[A-Za-z][\u0370-\u052f]|[\u0370-\u052f][A-Za-z]"
_NO_WORDS_ANYWHERE = re.compile(f"{_SIGN_INSIDE}|{_TWO_SCRIPTS}|[\x80-\x9f]")
_WESTERN = ("cp1252", "cp850", "iso8859-1", "iso8859-15", "mac-roman")
# What a file that is not UTF-8 may be, in the order of their readers.
CANDIDATES = {
    CP1252: "Western Europe", "cp1250": "Central Europe", "cp1251": "Cyrillic", "cp1254": "Turkish",
    "mac-roman": "old Macs", "cp850": "DOS", "gbk": "Chinese", "shift_jis": "Japanese",
}  # fmt: skip
OTHERS = ", ".join(f"{name} ({whose})" for name, whose in CANDIDATES.items())


def shown(encoding: str) -> str:
    """The name of an encoding for a message."""
    return SHOWN.get(encoding, encoding)


def known_encoding(name: str) -> str:
    """Python's name of an encoding that the user has named. Raises: ValueError naming --encoding."""
    try:
        info = codecs.lookup(name)
        is_text = info._is_text_encoding  # false for base64 and the like
    except (LookupError, ValueError):
        is_text = False
    if not is_text or info.name in ("idna", "punycode", "unicode_escape", "raw_unicode_escape", "utf-7"):
        raise ValueError(
            f"--encoding is {name!r}, expected one such as utf-8, utf-16, cp1252, cp1251, gbk or shift_jis"
        )
    return {"utf-8-sig": UTF_8}.get(info.name, info.name)


def encoding_of_head(head: bytes) -> str:
    """UTF-8, UTF-16 or "utf-32" by the first bytes of a file: a mark, or the zero bytes of ASCII characters.

    UTF-8 stands for anything without them; the lines will show whether it is.
    """
    zeros = [byte == 0 for byte in head[:4]]
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)) or zeros in (
        [False, True, True, True],
        [True, True, True, False],
    ):
        return "utf-32"
    even, odd = head[::2].count(0), head[1::2].count(0)
    many = max(8, len(head) // 20)
    if head.startswith(codecs.BOM_UTF16_LE) or zeros == [False, True] * 2 or (odd >= many and even == 0):
        return UTF_16_LE
    if head.startswith(codecs.BOM_UTF16_BE) or zeros == [True, False] * 2 or (even >= many and odd == 0):
        return UTF_16_BE
    return UTF_8


def is_utf8(line: bytes) -> bool:
    """Whether the bytes are UTF-8."""
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def readings(word: bytes) -> str:
    """What a word is in each of `CANDIDATES`: "cp1252 (Western Europe) reads 'Tür', cp1251 (Cyrillic) reads 'Tьr'"."""
    found: dict[str, str] = {}
    for name, whose in CANDIDATES.items():
        try:
            text = word.decode(name)
        except UnicodeDecodeError:
            continue
        if text.isprintable() and text not in found.values():
            found[f"{name} ({whose})"] = text
    return ", ".join(f"{name} reads {text!r}" for name, text in found.items())


def looks_wrong(texts: Iterable[str], encoding: str) -> int | None:
    """The number of the first text with a word that does not look like one, if there are many such; else None."""
    western = known_encoding(encoding) in _WESTERN
    pattern, first, strange, characters = _NO_WESTERN_WORDS if western else _NO_WORDS_ANYWHERE, None, 0, 0
    for number, text in enumerate(texts):
        if text.isascii():
            continue
        characters += len(_BEYOND_ASCII.findall(text))
        if found := len(pattern.findall(text)):
            strange += found
            first = number if first is None else first
    return first if strange > STRANGE_SHARE * characters else None


class Western:
    """Looks at every line of a file that is not ASCII: is it all text in cp1252?"""

    def __init__(self) -> None:
        self.lines = self.characters = self.strange = 0

    def add(self, line: bytes) -> bool:
        """Count a line. Returns: False where it cannot be cp1252, and so decides for the whole file."""
        try:
            text = line.decode("cp1252")
        except UnicodeDecodeError:  # five bytes stand for nothing
            return False
        self.lines += 1
        self.characters += len(_BEYOND_ASCII.findall(text))
        self.strange += len(_STRANGE.findall(text))
        return not is_utf8(line)

    def decide(self) -> bool:
        """Whether the lines counted are certainly text in cp1252."""
        enough = self.characters >= LEAST_CHARS and self.lines >= LEAST_LINES
        return enough and self.strange <= STRANGE_SHARE * self.characters
