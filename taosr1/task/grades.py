"""The four relevance grades and the three ranking tiers (paper, section 3): one table, everything else follows."""

from __future__ import annotations

# (grade, name, ranking tier), in grade order. Column g - 1 of every (..., 4) probability tensor is grade g.
GRADE_TABLE = (
    (1, "Irrelevant", "Bad"),
    (2, "Mismatch", "Mid"),
    (3, "Related", "Good"),
    (4, "Excellent", "Good"),
)

GRADES = tuple(grade for grade, _, _ in GRADE_TABLE)
LABELS = tuple(str(grade) for grade in GRADES)  # the token a reply gives for each grade
GRADE_NAMES = {grade: name for grade, name, _ in GRADE_TABLE}
TIER_OF_GRADE = {grade: tier for grade, _, tier in GRADE_TABLE}
TIERS = tuple(dict.fromkeys(tier for _, _, tier in reversed(GRADE_TABLE)))  # best first: Good, Mid, Bad
# Index into TIERS of each grade, in grade order: np.array(TIER_INDEX)[grade - 1] is the tier of a grade.
TIER_INDEX = tuple(TIERS.index(tier) for _, _, tier in GRADE_TABLE)
# The grades of each tier, best first: {"Good": (4, 3), "Mid": (2,), "Bad": (1,)}.
GRADES_OF_TIER = {tier: tuple(grade for grade in reversed(GRADES) if TIER_OF_GRADE[grade] == tier) for tier in TIERS}
GOOD_TIER = "Good"  # the tier that good_f1 and the AUC of metrics are about


def grade_name(grade: int) -> str:
    """The grade as a reply spells it: 4 -> "4-Excellent"."""
    return f"{grade}-{GRADE_NAMES[grade]}"
