"""What is judged: one query-product pair, with its grade and its chain of thought where they are known."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

COT_STEPS = ("Query", "Item", "Category", "Attributes", "Decision")
# Of the five lines together, where they are learned: a longer text is no explanation, and costs seconds a row.
MAX_COT_CHARS = 10_000


@dataclass(frozen=True)
class Judgement:
    """One query-product pair. Every text field is untrusted: it is only ever encoded as plain text."""

    query: str
    title: str
    brand: str = ""
    attributes: str = ""  # "name: value; name: value"
    category: str = ""
    description: str = ""
    price: str = ""
    grade: int | None = None  # 1-4, or None where nobody has judged
    query_kind: str = ""  # plain, negation, affordable, question, knowledge, or the data's own word
    query_id: str = ""
    item_id: str = ""
    cot: str = ""  # the five-line chain of thought of a reasoned pair
    extra: dict = field(default_factory=dict)  # every other input column, verbatim
    # Where the row was read; no part of the row, so neither compared nor written.
    source: str = field(default="", compare=False, repr=False)  # the file
    line: int = field(default=0, compare=False, repr=False)  # its line there, from 1


COLUMNS = tuple(item.name for item in fields(Judgement) if item.name != "extra" and item.compare)
PRODUCT_TEXT = ("title", "brand", "attributes", "category", "description")


def check_cot(cot: str) -> None:
    """Raise ValueError unless a chain of thought has its five lines, each beginning with its name, and no more."""
    if not cot:
        raise ValueError("field 'cot' is missing, expected the five lines Query: to Decision:")
    if len(cot) > MAX_COT_CHARS:
        limit = f"expected five lines of at most {MAX_COT_CHARS} together"
        raise ValueError(f"field 'cot' has {len(cot)} characters, {limit}")
    lines = cot.split("\n")
    if len(lines) != len(COT_STEPS):
        raise ValueError(f"field 'cot' has {len(lines)} lines, expected {len(COT_STEPS)}: {', '.join(COT_STEPS)}")
    for line, step in zip(lines, COT_STEPS):
        if not is_cot_line(line, step):
            expected = f"expected it to begin with '{step}: ' and to be one line, without spaces around its text"
            raise ValueError(f"field 'cot' has the line {line[:40]!r}, {expected}")


def is_cot_line(line: str, step: str) -> bool:
    """Whether a line is exactly "Step: text": with text, no space around it and no other line break (CR, U+2028)."""
    text = line.removeprefix(f"{step}: ")
    return text != line and text == text.strip() and text.splitlines() == [text]
