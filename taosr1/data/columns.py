"""Finds our columns under the names that a file gives them: other cases, common other names, and `--columns`.

Choice: a name is known only where it can hardly mean anything else (`OTHER_NAMES`); every name that was mapped is
printed, and so is every column that nothing reads. Two columns that could both be one of ours are an error, unless one
has exactly our name; so is a vague name (`VAGUE_NAMES`) beside a column that could be meant as well. "rating" and
"score" are not known: they are the customers' stars, or a search engine's, as often as grades. German or French names
are not guessed: the error names the columns and --columns.
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Iterable
from typing import Any

from taosr1.data.esci import ESCI_COLUMNS, is_esci
from taosr1.data.gold import GOLD_GRADE, MARKS, is_prediction
from taosr1.data.hints import likely, shape_of
from taosr1.data.scales import GradesError
from taosr1.runtime.bad_rows import shorten
from taosr1.runtime.text_lines import BYTE_ORDER_MARK
from taosr1.task.judgement import COLUMNS

OTHER_NAMES = {
    "query": ("search_term", "search_query", "search_phrase", "searchterm", "query_text"),
    "title": ("product_title", "product_name", "item_title", "item_name", "productname"),
    "brand": ("brand_name", "product_brand"),
    "attributes": ("product_attributes", "product_features", "item_attributes"),
    "category": ("category_hierarchy", "category_path", "product_category", "item_category"),
    "description": ("desc", "product_description", "product_desc", "item_description"),
    "price": ("product_price", "item_price"),
    "grade": ("label", "relevance", "relevance_label", "relevance_grade", "judgement", "judgment"),
    "query_id": ("qid", "queryid"),
    "item_id": ("product_id", "productid", "itemid", "doc_id", "docid", "document_id", "sku", "asin"),
}  # fmt: skip
WEAK_NAMES = {"product_class": "category", "product_type": "category"}  # read only where no better column is there
VAGUE_NAMES = {"keyword": "query", "keywords": "query", "name": "title"}
# Words in the names of columns that are no query and no title, whatever else they are.
_OTHER_THINGS = frozenset(
    "id index nr number url link image img photo picture date time created updated price cost currency color colour "
    "size material locale language lang country rank position clicks views count average reviews rating score stock "
    "weight width height length gender season unnamed version class type level".split()
)
KNOWN = {other: ours for ours, others in OTHER_NAMES.items() for other in (ours, *others)}
KNOWN |= VAGUE_NAMES | {name: name for name in (*COLUMNS, "split", GOLD_GRADE, *MARKS)}
# Columns that our own programs and ESCI write: nobody needs to be told that the judge does not see them.
SILENT = {
    "tier", "probs", "label_mass", "score", "outside", "prompt_sha", "gold_grade", "labelled_by", "split",
    "reply", "finished", "well_formed", "decision", "implied", "small_version", "large_version", "example_id",
    *ESCI_COLUMNS,
}  # fmt: skip
SHOWN_NAMES = 12


class MissingColumn(ValueError):
    """A row without one of the columns that every row needs."""


class SameColumn(ValueError):
    """A row with two columns that could both be one of ours."""


class ColumnNames:
    """Renames the columns of rows to ours, and remembers what to say about them.

    Several columns may be attributes: each is shown under its own name ("colour: red; size: 42").
    """

    def __init__(self, columns: str = "") -> None:
        self.wanted = parse_columns(columns)
        self.mapped: dict[str, str] = {}
        self.unused: dict[str, None] = {}
        self._found: set[str] = set()  # names of `wanted` that a row had
        self._seen: dict[str, None] = {}  # the names of all columns
        self._plans: dict[tuple[str, ...], dict[str, str]] = {}

    def rename(self, row: dict) -> dict:
        """The row under our names; columns of other names stay. Raises: ValueError where two could be one of ours."""
        names = tuple(row)
        plan = self._plans.get(names)
        if plan is None:
            plan = self._plans[names] = self._plan(row)
            if len(self._plans) > 1000:  # rows of JSON may all differ
                self._plans.clear()
        if not plan:
            return row
        targets = {ours for ours in plan.values() if ours}
        # A column of our name gives way to another that --columns puts in its place.
        renamed = {name: value for name, value in row.items() if name not in plan and name not in targets}
        shown = [row["attributes"]] if "attributes" in row and "attributes" not in plan else []
        for name, ours in plan.items():
            if ours == "attributes":
                own = KNOWN.get(_spelling(name)) == ours
                shown.append(as_attributes(name, row[name]) if own else {name.strip(): row[name]})
            elif ours:
                renamed[ours] = row[name]
            elif (known := KNOWN.get(_spelling(name))) and (known == name or known not in row):
                renamed[known] = None  # left out, and not to be found under its other name either
        if "attributes" in targets:
            renamed["attributes"] = shown[0] if len(shown) == 1 else shown
        return renamed

    def note(self, path: object) -> None:
        """Print which columns were renamed and which are not read; nothing where there are none."""
        mapped = [f"{name!r} as {ours}" for name, ours in self.mapped.items()]
        unused = [name for name in self.unused if name not in SILENT and not name.startswith("pred_")]
        said = f"read {', '.join(mapped)}" if mapped else ""
        if unused:
            shown = shorten(", ".join(unused[:SHOWN_NAMES]) + ", ..." * (len(unused) > SHOWN_NAMES), 300)
            example = shorten(unused[0], 40)
            way = f'--columns "{example}=attributes" shows one'
            said += f"{'; ' * bool(said)}not shown to the judge: {shown} ({way})"
            grades = likely("grade", unused) if "grade" not in {*self._seen, *self.mapped.values()} else []
            said += f"; no column is known as the grade: --columns {' or '.join(grades)}" if grades else ""
        if said:
            print(f"{path}: {shorten(said, 900)}", file=sys.stderr)

    def check_found(self, path: object) -> None:
        """Raise ValueError for a name of --columns that no row had."""
        lost = [name for name in self.wanted if name not in self._found]
        if lost:
            has = shorten(", ".join(map(repr, self._seen)), 200)
            raise ValueError(f"{path}: --columns names {shorten(repr(lost[0]))}, which no row has; the rows have {has}")

    def check_texts(self, raw: dict, row: dict) -> None:
        """Whether a row has the columns that every row needs. raw: under its own names; row: under ours.

        Raises: MissingColumn; ValueError for JSON in another shape.
        """
        if is_esci(row):
            return
        lost = [name for name in ("query", "title") if name not in row]
        if (lost or isinstance(row["title"], (dict, list))) and (shape := shape_of(row, _ours)):
            raise ValueError(shape)
        if lost:
            raise self.missing(lost[0], raw)

    def missing(self, name: str, row: dict) -> MissingColumn:
        """The error for a row without a column that every row needs, with its way out."""
        has = shorten(", ".join(map(repr, row)), 200) or "no columns"
        lost = [shorten(repr(name)) for name in self.wanted if name not in row and name not in self._found]
        lost_text = f"; --columns names {', '.join(lost)}, which is not among them" if lost else ""
        way = f'--columns "NAME={name}" says which one it is'
        if found := likely(name, (other for other in row if not _ours(other))):
            way += f" (perhaps {' or '.join(found)})"
        if not any(map(_ours, row)):
            way += "; if these are the cells of a row, put a header line above it, such as query,title,grade"
        elif {"query_id", "item_id"} & set(map(_ours, row)):
            way += "; if another file has it, join the two by their ids (the folder of WANDS or ESCI is read joined)"
        return MissingColumn(f"field {name!r} is missing; the row has {has}{lost_text}: {way}")

    def _plan(self, row: dict) -> dict[str, str]:
        """Which columns of a row, and of others with the same, to rename: its name -> ours, or "" to leave it out."""
        names, plan = tuple(row), dict[str, str]()
        esci = is_esci(dict.fromkeys(map(_spelling, names)))
        for name, ours in self.wanted.items():
            for found in (name, *(other for other in names if _spelling(other) == _spelling(name))):
                if found in names:
                    self._found.add(name)
                    plan[found] = ours
                    break
        self._seen |= dict.fromkeys(names) if len(self._seen) < 1000 else {}
        _check_no_prediction(plan, names)
        taken = set(plan.values())
        candidates: dict[str, list[str]] = {}
        for name in names:
            found = _spelling(name)
            ours = found if esci and found in ESCI_COLUMNS and found not in names else KNOWN.get(found, "")
            if name not in plan and name not in COLUMNS and ours and ours not in taken and ours not in names:
                candidates.setdefault(ours, []).append(name)
        for ours, same in candidates.items():
            if esci and any(name in ESCI_COLUMNS for name in same) and (ours != "title" or len(same) == 1):
                continue  # esci_row reads it
            if len(same) > 1:
                both = " and ".join(shorten(repr(name)) for name in same[:3])
                way = f'--columns "{shorten(same[0], 40)}={ours}"'
                raise SameColumn(f"columns {both} could both be the {ours}: {way} takes the first")
            rivals = [name for name in names if name not in plan and _could_be_text(name, row[name])]
            if _spelling(same[0]) in VAGUE_NAMES and rivals:
                ways = " or ".join(f'"{shorten(name, 40)}={ours}"' for name in (same[0], *rivals[:3]))
                others = ", ".join(shorten(repr(name)) for name in rivals[:3])
                both = f"column {shorten(repr(same[0]))} may be the {ours}, and so may {others}"
                raise SameColumn(f"{both}: say which, --columns {ways}")
            plan[same[0]] = ours
        for name in names:
            ours = WEAK_NAMES.get(_spelling(name))
            if ours and name not in plan and ours not in {*plan.values(), *names} and not esci:
                plan[name] = ours
        for name in names:
            if name in plan and plan[name]:
                if name != plan[name] and len(self.mapped) < 1000:
                    self.mapped[name] = plan[name]
            elif name not in COLUMNS or name in taken:
                if len(self.unused) < 1000:
                    self.unused[name] = None
        return plan


def parse_columns(text: str) -> dict[str, str]:
    """`--columns "Suchanfrage=query,Titel=title"` as a dict; "Bewertung=" leaves a column out.

    A name with a comma stands in quotes with its pair: '"Titel, lang=title"'.

    Raises: ValueError naming --columns.
    """
    wanted: dict[str, str] = {}
    for part in next(csv.reader([text], skipinitialspace=True), []) if text.strip() else []:
        name, equals, ours = (piece.strip() for piece in part.rpartition("="))
        if not equals or not name:
            raise ValueError(f'--columns has {part!r}, expected YOURS=OURS pairs: --columns "Titel=title,Marke=brand"')
        if ours and ours not in (*COLUMNS, "split"):
            raise ValueError(f"--columns has {part!r}, and {ours!r} is none of ours: {', '.join(COLUMNS)}, split")
        if _spelling(name) in MARKS:
            why = "marks the answers of a judge, which are never gold grades: it cannot be renamed or left out"
            raise ValueError(f"--columns has {part!r}, but column {name!r} {why}")
        if name in wanted:
            raise ValueError(f"--columns names {name!r} twice")
        if ours and ours != "attributes" and ours in wanted.values():
            raise ValueError(f"--columns gives two columns to {ours!r}; only attributes can have several")
        wanted[name] = ours
    return wanted


def known_names(header: Iterable[str], columns: str = "") -> int:
    """How many names of a header are known."""
    wanted = {_spelling(name) for name in parse_columns(columns)}
    known = {*KNOWN, *wanted, *ESCI_COLUMNS}
    return sum(_spelling(name) in known for name in header)


def under_our_names(row: dict, names: Iterable[str]) -> dict:
    """The row with the columns that are spelled in another way under these names: "PRED GRADE" as pred_grade."""
    renamed = {name: ours for name in row if (ours := _spelling(name)) in names and ours not in row}
    return {renamed.get(name, name): value for name, value in row.items()} if renamed else row


def _check_no_prediction(plan: dict[str, str], names: Iterable[str]) -> None:
    """Raises: GradesError where --columns makes the grade of what a judge wrote beside its prediction."""
    spelled = dict.fromkeys(map(_spelling, names))
    for name, ours in plan.items():
        if ours == "grade" and _spelling(name) in ("tier", "score") and is_prediction(spelled):
            raise GradesError(f'--columns has "{name}=grade", but column {name!r} is the answer of a judge, never gold')


def as_attributes(name: str, value: Any) -> Any:
    """A cell of WANDS' product_features, "colour : red|size:8", as a list of attributes; any other value as it is."""
    if _spelling(name) != "product_features" or not isinstance(value, str):
        return value
    return [re.sub(r"\s*:\s*", ": ", part.strip(), count=1) for part in value.split("|")]


def _ours(name: str) -> str:
    """Our name of a column that is known under its own; "" if it is not."""
    found = _spelling(name)
    return KNOWN.get(found, "")


def _could_be_text(name: str, value: Any) -> bool:
    """Whether a column that is not known could hold queries or titles, by its name and a value of it."""
    found = _spelling(name)
    if not (value is None or isinstance(value, str)) or (value and not any(map(str.isalpha, value))):
        return False
    return not (found in KNOWN or found in SILENT or found in WEAK_NAMES or _OTHER_THINGS & set(found.split("_")))


def _spelling(name: str) -> str:
    """A name without case, marks and spaces around it: "\\ufeff Product Title " -> "product_title"."""
    return re.sub(r"[\s\-]+", "_", name.strip().strip(BYTE_ORDER_MARK).strip().casefold())
