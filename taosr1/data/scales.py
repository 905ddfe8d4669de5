"""Grades in other scales: reads the grade column of a file as 1-4, or says which map it needs.

`--grades "Exact=4,Partial=3,Irrelevant=1"` maps the file's own grades. Without a map the digits 1-4 and our own names
are read. A column that holds anything else is looked at as a whole, and the error names its values and the map that
they seem to need: one row of a 0/1 column says nothing about its other rows.
"""

from __future__ import annotations

import csv
import io
import re
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from taosr1.data.esci import GRADE_OF_ESCI, is_esci
from taosr1.data.gold import gold_value, in_our_grades, is_empty, pseudo_label
from taosr1.runtime.bad_rows import shorten
from taosr1.runtime.messages import say_once
from taosr1.task.grades import GRADE_NAMES, GRADES, grade_name

OUR_DIGITS = {str(grade): grade for grade in GRADES}
OUR_NAMES = {name.lower(): grade for grade in GRADES for name in (GRADE_NAMES[grade], grade_name(grade))}
PRESETS = {
    "wands": {"exact": 4, "partial": 3, "irrelevant": 1},
    "binary": {
        **dict.fromkeys(("0", "false", "f", "no", "n", "not relevant"), 1),
        **dict.fromkeys(("1", "true", "t", "yes", "y", "relevant"), 4),
    },
    "0-3": {"0": 1, "1": 2, "2": 3, "3": 4},
    "esci": {name.lower(): grade for name, grade in GRADE_OF_ESCI.items()},
}
ASSUMPTIONS = {
    "wands": "Exact is read as 4, Partial as 3, Irrelevant as 1; nothing becomes 2",
    "binary": "0 (no, false) is read as 1-Irrelevant, 1 (yes, true, relevant) as 4-Excellent",
    "0-3": "0 is read as 1-Irrelevant, 1 as 2-Mismatch, 2 as 3-Related, 3 as 4-Excellent",
    "esci": "E, S, C, I are read as 4, 3, 2, 1, which keeps their order but is not their definition",
}
# What a column of these values alone seems to be: (values, name of the scale, preset, map).
_SCALES = (
    ({"0", "1"}, "a 0-based scale", "binary", "0=1,1=4"),
    ({"0", "1", "2"}, "a 0-based scale", "", "0=1,1=3,2=4"),
    ({"0", "1", "2", "3"}, "a 0-based scale", "0-3", "0=1,1=2,2=3,3=4"),
    ({"0", "1", "2", "3", "4"}, "a 0-based scale of five", "", "0=1,1=1,2=2,3=3,4=4"),
    ({"1", "2", "3", "4", "5"}, "a scale of five", "", "1=1,2=1,3=2,4=3,5=4"),
    ({"0", "1", "2", "3", "4", "5"}, "a 0-based scale of six", "", "0=1,1=1,2=2,3=2,4=3,5=4"),
    ({"0", "0.5", "1"}, "a scale from 0 to 1", "", "0=1,0.5=3,1=4"),
    ({"-1", "1"}, "a scale from -1 to 1", "", "-1=1,1=4"),
    ({"-1", "0", "1"}, "a scale from -1 to 1", "", "-1=1,0=2,1=4"),
    ({*PRESETS["binary"], "irrelevant"} - {"0", "1"}, "yes and no", "binary", ""),
    ({"exact", "partial", "irrelevant"}, "the scale of WANDS", "wands", ""),
    (set(PRESETS["esci"]), "the scale of ESCI", "esci", ""),
)
MAX_VALUES = 1000  # distinct values that are counted; a column of scores has more, and needs no longer list
SHOWN_VALUES = 12
WORD_CHARS = 40  # a longer text is no name of a grade
SYSTEMATIC_FRAC = 0.05  # of the graded rows: fewer that cannot be read are slips, and bad rows like others
NO_GRADE = "none"  # in a map: what means that nobody has judged

_NUMBER = re.compile(r"[+-]?[0-9]{1,15}(?:[.,][0-9]{0,15})?")


class GradesError(ValueError):
    """A whole column is in another scale, or is no gold: no bad row, so --max-bad-rows does not skip it."""


def canonical(value: Any) -> str:
    """One spelling for all of a grade's: "exact" for " Exact ", "2" for 2, "2.0" and "2,0"."""
    return _canonical(shorten(str(value), 2 * WORD_CHARS))


@lru_cache(maxsize=1024)
def _canonical(text: str) -> str:
    text = re.sub(r"\s*-\s*(?=\D)", "-", " ".join(text.split()).casefold())
    if not _NUMBER.fullmatch(text):
        return text
    number = float(text.replace(",", "."))
    return str(int(number)) if number.is_integer() else repr(number)


def parse_map(spec: str) -> dict[str, int]:
    """`--grades` as a map from canonical spellings to 1-4, or 0 for no grade; empty for "".

    A name with a comma stands in quotes with its grade, as in --columns: '"Relevant, exakt=4",Nein=1'.

    Raises: ValueError for an entry that is no preset and not NAME=GRADE, and for a name with two grades.
    """
    found: dict[str, int] = {}
    for entry in _entries(spec):
        name, separator, grade = entry.rpartition("=")
        meant = {**OUR_NAMES, **OUR_DIGITS, NO_GRADE: 0}.get(canonical(grade))
        if not separator and entry.lower() in PRESETS:
            pairs = PRESETS[entry.lower()]
        elif separator and name.strip() and meant is not None:
            pairs = {canonical(name): meant}
        else:
            allowed = (
                f"expected YOURS=OURS with OURS 1-4 or none, such as Exact=4,Partial=3, or one of {', '.join(PRESETS)}"
            )
            raise ValueError(f"--grades has {shorten(repr(entry))}, {allowed}")
        for key, value in pairs.items():
            if found.setdefault(key, value) != value:
                raise ValueError(f"--grades gives {key!r} twice: {found[key]} and {value}")
    return found


def _entries(spec: str) -> list[str]:
    cells = next(csv.reader([" ".join(spec.split())], skipinitialspace=True), [])
    return [cell.strip() for cell in cells if cell.strip()]


class GradeColumn:
    """The grades of one file: reads them one by one, and knows at the end what they were.

    need: True or None: a grade that cannot be read is an error; False: grades are not needed, and where the whole
        column is in another scale none of it is used.
    gold: the grades are measured or chosen by, so that pseudo-labels are refused.
    all_rows: reads the raw rows of the whole file again; called at most once, at the first value that does not fit.
    """

    def __init__(
        self,
        path: str | Path,
        spec: str,
        all_rows: Callable[[], Iterable[dict]],
        *,
        need: bool | None = None,
        gold: bool = False,
    ) -> None:
        self.path, self.map, self.need, self.gold, self._all_rows = path, parse_map(spec), need, gold, all_rows
        self.values: Counter[str] = Counter()  # canonical spellings of the file's own grades that were read
        self.unread = 0
        self.first_unread = ""
        self.useless = False  # the column is in another scale, and not needed
        self._verdict: str | None = None
        self._counts: Counter[str] | None = None  # of the whole file, once something did not fit
        self._without: bool | None = None
        for name in sorted({entry.lower() for entry in _entries(spec)} & PRESETS.keys()):
            say_once(f"--grades {name}: {ASSUMPTIONS[name]}")

    def read(self, line: int, row: dict) -> int | None:
        """The grade of a raw row; None where it has none.

        Raises: GradesError where the whole column does not fit, or is no gold; ValueError where one value does not fit.
        """
        if problem := pseudo_label(row):
            if self.gold:
                raise GradesError(f"{self.path}:{line}: {problem}")
            if self.need is False:  # where grades are looked at without being needed, something is measured
                return None
        value = self._spelled(row)
        if is_empty(value):
            return None
        if not self.map and is_esci(row) and value == row.get("esci_label"):
            return GRADE_OF_ESCI.get(str(value).strip().upper())  # `esci_row` refuses what is none
        key, ours = canonical(value), in_our_grades(row)
        # A number is read through the map alone, where there is one; our own names always.
        digits = self.map if self.map and not ours else OUR_DIGITS
        found = digits.get(key, OUR_NAMES.get(key))
        if found is None:
            return self._unreadable(line, value)
        if not ours and (key in self.values or len(self.values) < MAX_VALUES):
            self.values[key] += 1
        return found or None

    def _spelled(self, row: dict) -> Any:
        label = row.get("esci_label") if is_esci(row) else None
        return gold_value(row) if is_empty(label) else label

    def _unreadable(self, line: int, value: Any) -> None:
        shown = f"field 'grade' is {shorten(repr(value))}"
        verdict = self._judge_column()
        if self.need is False:
            self.useless = self.useless or bool(verdict)
            self.unread += 1
            self.first_unread = self.first_unread or f"{self.path}:{line}: {shown}"
            return None
        if self.map:
            shown += f", which --grades does not map (values found: {shown_values(self.counts())})"
            raise GradesError(f"{self.path}:{line}: {shown}: {self._way_out(value)}")
        if verdict:
            raise GradesError(f"{self.path}:{line}: {shown}, expected 1-4. {verdict}")
        raise ValueError(f"{shown}, expected 1-4")

    def _judge_column(self) -> str:
        """What the whole column looks like and what to do, "" where only a few of its values do not fit."""
        if self._verdict is None:
            self._verdict = describe_scale(self.counts()) if not self.map else "a map does not fit"
        return self._verdict

    def counts(self) -> Counter[str]:
        """How many rows of the whole file have each of its own grades."""
        if self._counts is None:
            self._counts = Counter()
            for row in self._all_rows():
                value = self._spelled(row)
                if not (is_empty(value) or in_our_grades(row)):
                    key = canonical(value)
                    self._counts[key] += len(self._counts) < MAX_VALUES or key in self._counts
        return self._counts

    def none_given(self) -> bool:
        """Whether no row of the whole file has a grade; it is read once more to know it."""
        if self._without is None:
            self._without = all(is_empty(self._spelled(row)) for row in self._all_rows())
        return self._without

    def beside_esci(self, row: dict, grade: int | None) -> str:
        """A row's own grade where it is another one than that of its `esci_label`, as text; "" where it is not."""
        own = gold_value(row)
        if self.need is False or not is_esci(row) or is_empty(row.get("esci_label")) or is_empty(own):
            return ""
        same = grade in (self.map.get(canonical(own)), OUR_DIGITS.get(canonical(own)), OUR_NAMES.get(canonical(own)))
        return "" if same else f" (esci_label {row['esci_label']!r}, grade {shorten(repr(own))})"

    def _way_out(self, value: Any) -> str:
        """What to do about a value that the map lacks.

        Choice: a map with a number that the file lacks, beside a file with a number that the map lacks and with the
        numbers of another scale alone, was made for another file: the grades would be shifted if the number were added.
        """
        numbers, mapped = ({key for key in keys if _as_number(key) is not None} for keys in (self.counts(), self.map))
        is_scale = any(numbers <= known for known in (OUR_DIGITS.keys(), *(known for known, *_ in _SCALES)))
        if canonical(value) in numbers and mapped - numbers and is_scale:
            of_map = shown_values(Counter(mapped))
            found = "fit 1-4 as they are" if numbers <= OUR_DIGITS.keys() else "are of another scale"
            return (
                f"they {found}, and --grades reads {of_map}. One --grades is for all files: where they have different "
                "scales, write the grades of one as 1-4 first"
            )
        return f"add {shlex.quote(_entry(shorten(str(value)), 'GRADE'))} to it, with GRADE one of 1-4, or none"

    def finish(self) -> None:
        """Print what was assumed or ignored, where a reader of the numbers needs to know it."""
        if self.unread:
            what = "the whole column is" if self.useless else f"{self.unread} grades are"
            hint = "no grade is needed here; --grades would map them"
            print(f"note: {self.first_unread}, expected 1-4; {what} ignored ({hint})", file=sys.stderr)
        elif self.need is False or not self.values:
            return
        elif self.map and "0" in self.map and "0" not in self.values and self.values.keys() <= OUR_DIGITS.keys():
            text = f"{self.path}: --grades reads 0 as {self.map['0'] or NO_GRADE}, but no grade is 0"
            text = f"{text} (values found: {shown_values(self.values)})"
            print(f"note: {text}; if they were 1-4 already, they are shifted now", file=sys.stderr)
        elif not self.map and self.values.keys() <= {"1", "2", "3"}:
            text = f"{self.path}: no grade is 4 (values found: {shown_values(self.values)})"
            text = f"{text}; they are read as they are, 1 Irrelevant to 4 Excellent"
            hint = "if this is another scale (0-based without its 0, or 1 is best), map it with --grades"
            print(f"note: {text}; {hint}", file=sys.stderr)


def shown_values(counts: Counter[str]) -> str:
    """The distinct values in order, the numbers first: "0, 1, 2"."""
    keys = [shorten(key, 30) for key in sorted(counts, key=_numbers_first)]
    return ", ".join(keys[:SHOWN_VALUES]) + (", ..." if len(keys) > SHOWN_VALUES else "")


def describe_scale(counts: Counter[str]) -> str:
    """What a column with these values looks like, and the flag that reads it; "" where most values are grades.

    Choice: a 0, a 5 or a negative number among the integers always means another scale, however few rows have it: those
    rows would be lost, and the others could be shifted. So does anything else that a twentieth of the rows have.
    """
    values, total = set(counts), sum(counts.values())
    odd = {key for key in values if key not in OUR_DIGITS and key not in OUR_NAMES}
    found = f"values found: {shown_values(counts)}"
    for known, name, preset, mapping in _SCALES:
        if values <= known and odd:
            flags = [f"--grades {preset}"] * bool(preset)
            flags += [_flag(mapping)] * bool(mapping)
            assumed = f" ({preset}: {ASSUMPTIONS[preset]})" if preset else ", or with other grades of ours"
            best = max((key for key in known if _as_number(key) is not None), key=float, default="")
            way = f", with {best} as the best" if best else ""
            return f"This looks like {name}{way} ({found}): add {', or '.join(flags)}{assumed}"
    numbers = [number for key in odd if (number := _as_number(key)) is not None]
    wanted = values - OUR_NAMES.keys()  # with a map the digits need it too
    rest = " and so on" if len(wanted) > SHOWN_VALUES else ""
    hint = f"add {_flag(_template(wanted))}{rest}, each GRADE one of 1-4, or none"
    unread = sum(counts[key] for key in odd)
    words = sum(counts[key] for key in odd if _is_word(key))
    fractions = sum(not number.is_integer() for number in numbers)
    if len(numbers) > SHOWN_VALUES or fractions > 1 or sum(key.endswith("%") for key in odd) > 1:
        hint = "cut them into grades 1-4 first" if len(odd) > SHOWN_VALUES else hint
        return f"This looks like scores or averages ({found}): {hint}"
    outside = any(number.is_integer() and (number <= 0 or number in (5, 6)) for number in numbers)
    if outside or (unread > 1 and unread >= SYSTEMATIC_FRAC * total) or (words and words >= SYSTEMATIC_FRAC * total):
        return f"This looks like another scale ({found}): {hint}"
    return ""


def _flag(mapping: str) -> str:
    """`--grades MAP` as a shell takes it; the equals sign is needed where the map begins with a dash."""
    return ("--grades=" if mapping.startswith("-") else "--grades ") + shlex.quote(mapping)


def _template(values: Iterable[str]) -> str:
    """ "exact=4,perfect=GRADE": a map to fill in, with what the words of WANDS and ESCI mean there."""
    known = {**PRESETS["esci"], **PRESETS["wands"]}
    filled = {
        key: known.get(key, "GRADE") if len(key) > 1 else "GRADE"
        for key in sorted(values, key=_numbers_first)[:SHOWN_VALUES]
    }
    return ",".join(_entry(key, grade) for key, grade in filled.items())


def _entry(name: str, grade: object) -> str:
    """NAME=GRADE as `parse_map` takes it: in quotes where the name has a comma."""
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow([f"{name}={grade}"])
    return text.getvalue()


def _numbers_first(key: str) -> tuple[bool, float, str]:
    number = _as_number(key)
    return (number is None, number or 0.0, key)


def _as_number(key: str) -> float | None:
    return float(key) if _NUMBER.fullmatch(key) else None


def _is_word(key: str) -> bool:
    return key[0].isalpha() and len(key) <= WORD_CHARS and (len(key) > 2 or not key.isascii())
