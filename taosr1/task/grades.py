"""The four relevance grades and the three ranking tiers (paper, section 3)."""

from __future__ import annotations

GRADES = (1, 2, 3, 4)
GRADE_NAMES = {4: "Excellent", 3: "Related", 2: "Mismatch", 1: "Irrelevant"}
# The label strings, in grade order: column g - 1 of every (..., 4) probability tensor is grade g.
LABELS = tuple(str(grade) for grade in GRADES)

TIERS = ("Good", "Mid", "Bad")
TIER_OF_GRADE = {4: "Good", 3: "Good", 2: "Mid", 1: "Bad"}


def grade_name(grade: int) -> str:
    """The grade as a reply spells it: 4 -> "4-Excellent"."""
    return f"{grade}-{GRADE_NAMES[grade]}"
