"""The rule book: atomic relevance rules, the grade that follows from them, and retrieval of those about a pair.

The paper cuts its business rules into atomic rules, keeps them in a knowledge base and retrieves those relevant to a
pair (section 3.2). Its rules are not public; ours are `rules.jsonl` beside this file, one rule a line, meant to be
read and edited. There are two sorts of rule:

- decision rules have `when` (facts about a pair) and `grade`. `decide` takes the lowest grade of those that match.
- definition rules (`when` empty, `grade` null) explain the facts: "suede is near to leather". They are for people,
  teachers and full prompts; `decide` ignores them.

Facts are words. `category` is one of `CATEGORY_FACTS`; each demand of the query (`DEMANDS`, with the prefix "no-"
if the query excludes it) has one of `OUTCOMES`. A rule book of your own uses the same words.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from taosr1.runtime.jsonl import read_jsonl
from taosr1.task.grades import GRADES

if TYPE_CHECKING:
    from taosr1.task.prompt import Reply

BUNDLED_RULES = Path(__file__).with_name("rules.jsonl")

CATEGORY_FACTS = ("same", "substitute", "accessory", "sibling", "different")
OUTCOMES = ("met", "near", "missed", "unknown")
DEMANDS = ("brand", "colour", "material", "size", "feature", "use", "price")
EXCLUSIONS = ("no-brand", "no-colour", "no-material", "no-feature")
FACT_VALUES = {"category": CATEGORY_FACTS, **{demand: OUTCOMES for demand in DEMANDS + EXCLUSIONS}}
# If one demand is listed twice, the worse outcome counts: every rule grades it no higher.
_WORST_FIRST = ("missed", "near", "unknown", "met")

# Words in a shop's category path that mean a group of the rule book, beside the group's own name.
GROUP_WORDS = {
    "footwear": ("shoes", "shoe", "boots", "sandals", "slippers", "sneakers"),
    "clothing": ("clothes", "apparel", "fashion"),
    "kitchen": ("cookware", "dining", "kitchenware"),
    "electronics": ("electronic", "computers", "phones", "headphones", "audio"),
    "outdoor": ("outdoors", "camping", "hiking"),
    "home": ("furniture", "bedding", "household", "decor"),
}


@dataclass(frozen=True)
class Rule:
    """One atomic rule: if `condition` holds, `consequence` follows."""

    id: str
    applies_to: tuple[str, ...]  # category groups, or ("any",)
    condition: str
    consequence: str
    when: dict[str, str] = field(default_factory=dict, hash=False)  # fact -> value; empty in a definition rule
    grade: int | None = None  # the highest grade possible once the rule matches; None in a definition rule
    example: dict = field(default_factory=dict, hash=False)  # {"query", "title", "grade"}

    @property
    def decides(self) -> bool:
        """Whether the rule can set a grade."""
        return self.grade is not None

    @property
    def text(self) -> str:
        """The rule as one line for a prompt."""
        return f"{self.condition} -> {self.consequence}"


def load_rules(path: str | Path | None = None) -> list[Rule]:
    """Read a rule book (the bundled one by default).

    Raises: ValueError naming file, line and field for a malformed rule, a repeated id or an unknown fact.
    """
    return list(_bundled_rules() if path is None else _read_rules(Path(path)))


@lru_cache(maxsize=1)
def _bundled_rules() -> tuple[Rule, ...]:
    return tuple(_read_rules(BUNDLED_RULES))


def _read_rules(path: Path) -> list[Rule]:
    rules: list[Rule] = []
    seen: dict[str, int] = {}
    for line, row in read_jsonl(path, flag="--rules"):
        try:
            rule = _parse_rule(row)
        except ValueError as error:
            raise ValueError(f"{path}:{line}: {error}") from None
        if rule.id in seen:
            raise ValueError(f"{path}:{line}: field 'id' repeats {rule.id!r} of line {seen[rule.id]}")
        seen[rule.id] = line
        rules.append(rule)
    if not rules:
        raise ValueError(f"{path}: no rules in this file")
    if not any(rule.decides for rule in rules):
        raise ValueError(f"{path}: no rule has a 'when' and a 'grade', so every pair would be graded 4")
    return rules


def _parse_rule(row: dict) -> Rule:
    """One checked rule from its JSON object; ValueError says which field is wrong."""
    expected = {"id", "applies_to", "condition", "consequence", "when", "grade", "example"}
    if set(row) != expected:
        problems = [f"missing {sorted(expected - set(row))}"] if expected - set(row) else []
        problems += [f"unknown {sorted(set(row) - expected)}"] if set(row) - expected else []
        raise ValueError("fields: " + ", ".join(problems))
    for name in ("id", "condition", "consequence"):
        if not isinstance(row[name], str) or not row[name].strip():
            raise ValueError(f"field {name!r} is {row[name]!r}, expected text")
    groups = row["applies_to"]
    if not isinstance(groups, list) or not groups or not all(isinstance(group, str) and group for group in groups):
        raise ValueError(f"field 'applies_to' is {groups!r}, expected a list of category groups or [\"any\"]")
    when, grade = row["when"], row["grade"]
    if not isinstance(when, dict):
        raise ValueError(f"field 'when' is {when!r}, expected an object of facts")
    for fact, value in when.items():
        if value not in FACT_VALUES.get(fact, ()):
            raise ValueError(f"field 'when' says {fact!r}: {value!r}, expected {_allowed(fact)}")
    if not _is_grade(grade) and grade is not None:
        raise ValueError(f"field 'grade' is {grade!r}, expected 1-4 or null")
    if bool(when) != (grade is not None):
        raise ValueError("fields 'when' and 'grade' go together: both set (decision) or {} and null (definition)")
    _check_example(row["example"], grade)
    return Rule(row["id"], tuple(groups), row["condition"], row["consequence"], when, grade, row["example"])


def _check_example(example: object, grade: int | None) -> None:
    if not isinstance(example, dict) or set(example) != {"query", "title", "grade"}:
        raise ValueError(f"field 'example' is {example!r}, expected an object with query, title and grade")
    if not all(isinstance(example[name], str) and example[name].strip() for name in ("query", "title")):
        raise ValueError("field 'example' needs text for query and title")
    if not _is_grade(example["grade"]):
        raise ValueError(f"field 'example.grade' is {example['grade']!r}, expected 1-4")
    if grade is not None and example["grade"] > grade:
        raise ValueError(f"field 'example.grade' is {example['grade']}, above the rule's own grade {grade}")


def _allowed(fact: str) -> str:
    return "|".join(FACT_VALUES.get(fact, ())) or f"a fact out of {', '.join(FACT_VALUES)}"


def _is_grade(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value in GRADES


def decide(facts: dict[str, str], rules: Iterable[Rule]) -> tuple[int, tuple[str, ...]]:
    """The grade the rules give to a pair: the lowest of those that match, 4 if none does.

    Returns: (grade, ids of all decision rules that match, in rule-book order).
    Raises: ValueError for a fact or value outside `FACT_VALUES`, or if the category fact is missing.
    """
    if "category" not in facts:
        raise ValueError(f"facts without 'category': {facts!r}; expected one of {'|'.join(CATEGORY_FACTS)}")
    for fact, value in facts.items():
        if value not in FACT_VALUES.get(fact, ()):
            raise ValueError(f"fact {fact!r} is {value!r}, expected {_allowed(fact)}")
    matching = [rule for rule in rules if rule.grade is not None and rule.when.items() <= facts.items()]
    return min([4, *(rule.grade for rule in matching)]), tuple(rule.id for rule in matching)


# --- The facts in a chain of thought ----------------------------------------------------------------------------------

_CATEGORY = re.compile(r"(same|different|related\s+(?:substitute|accessory|sibling))\b", re.IGNORECASE)


def facts_from_cot(reply: Reply) -> dict[str, str] | None:
    """The facts in the Category and Attributes lines of a chain of thought; None if these cannot be read.

    The Query line says which demands are exclusions ("material not plastic"): the n-th `material` of the Attributes
    line belongs to the n-th `material` of the Query line. A demand listed twice under one key keeps its worse outcome.
    Choice: a demand outside `DEMANDS` (an outside LLM's "compatibility missed") counts as a feature, so that it is not
    lost.
    """
    category = _CATEGORY.match(_text(reply.category).strip())
    attributes = _text(reply.attributes).strip().rstrip(".")
    if category is None or not attributes:
        return None
    facts = {"category": category.group(1).lower().split()[-1]}
    if attributes.lower() == "none":
        return facts
    negations = _negations(_text(reply.query))
    for entry in filter(None, (text.strip() for text in attributes.split(";"))):
        *words, outcome = entry.lower().replace(":", " ").split() or [""]
        if not words or outcome not in OUTCOMES:
            return None
        # In "colour red: navy near", what was asked and what the item has stand between demand and outcome.
        name = (words[0] if words[0].removeprefix("no-") in DEMANDS else " ".join(words)).removeprefix("no-")
        demand = name if name in DEMANDS else "feature"
        excluded = negations[name].pop(0) if negations.get(name) else words[0].startswith("no-")
        key = f"no-{demand}" if excluded and f"no-{demand}" in EXCLUSIONS else demand
        facts[key] = min(outcome, facts.get(key, outcome), key=_WORST_FIRST.index)
    return facts


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _negations(query_line: str) -> dict[str, list[bool]]:
    """For each demand of a Query line ("travel mug; material not plastic"), in order: whether it is an exclusion."""
    found: dict[str, list[bool]] = {}
    for entry in query_line.split(";")[1:]:
        words = entry.lower().split()
        if words:
            found.setdefault(words[0], []).append("not" in words[1:2])
    return found


def implied_grade(reply: Reply, rules: Sequence[Rule]) -> int | None:
    """The grade that follows from the steps of a chain of thought, whatever its label and its decision are.

    Compared with the emitted label it measures discriminative hallucination: right reasoning, wrong label (paper, 4.3).
    Returns: 1-4, or None if the Category or Attributes line cannot be read. Never raises for a reply's text.
    """
    facts = facts_from_cot(reply)
    return None if facts is None else decide(facts, rules)[0]


# --- Retrieval --------------------------------------------------------------------------------------------------------

# One token per CJK character: without spaces a phrase would otherwise be one word that never matches.
_CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_TOKEN = re.compile(rf"[{_CJK}]|[^\W_{_CJK}]+")
_STOP_WORDS = frozenset("a an and are as at by for from in is it its of on or that the this to with".split())


def tokenize(text: str) -> list[str]:
    """Lower-case words without stop words; a plural "s" is cut so that "boots" finds "boot"."""
    words = (word for word in _TOKEN.findall(text.lower()) if word not in _STOP_WORDS)
    return [word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word for word in words]


class RuleIndex:
    """BM25 over the text of each rule (condition, consequence, example).

    Source: Robertson & Zaragoza 2009, "The Probabilistic Relevance Framework", eq. 3.15; idf with the +1 inside the
    logarithm, which keeps it positive.
    """

    def __init__(self, rules: Sequence[Rule], k1: float = 1.2, b: float = 0.75) -> None:
        self.rules = tuple(rules)
        counts = [Counter(tokenize(_rule_words(rule))) for rule in self.rules]
        words = sorted(set().union(*counts)) if counts else []
        self.column = {word: index for index, word in enumerate(words)}
        frequency = np.zeros((len(self.rules), len(words)))  # (rules, words)
        for row, counter in enumerate(counts):
            for word, count in counter.items():
                frequency[row, self.column[word]] = count
        length = frequency.sum(axis=1, keepdims=True)  # (rules, 1)
        mean_length = max(float(length.mean()) if len(self.rules) else 0.0, 1.0)
        present = (frequency > 0).sum(axis=0)  # (words,)
        idf = np.log1p((len(self.rules) - present + 0.5) / (present + 0.5))
        saturation = frequency + k1 * (1 - b + b * length / mean_length)
        self.weight = idf * frequency * (k1 + 1) / saturation  # (rules, words)

    def scores(self, text: str) -> np.ndarray:
        """BM25 score of every rule for a text. Returns: (rules,) float64."""
        columns = sorted({self.column[word] for word in tokenize(text) if word in self.column})
        return self.weight[:, columns].sum(axis=1)


def _rule_words(rule: Rule) -> str:
    return " ".join((rule.condition, rule.consequence, rule.example.get("query", ""), rule.example.get("title", "")))


def category_groups(category: str, groups: Iterable[str]) -> set[str]:
    """The rule book's groups that a category text names, by the group's name or one of its `GROUP_WORDS`."""
    words = set(_TOKEN.findall(category.lower()))
    return {group for group in groups if words & {group.lower(), *GROUP_WORDS.get(group, ())}}


@lru_cache(maxsize=8)
def _index(rules: tuple[Rule, ...]) -> RuleIndex:
    return RuleIndex(rules)


def retrieve(query: str, title: str, category: str, rules: Sequence[Rule], k: int) -> list[Rule]:
    """The k rules most relevant to a pair, best first: category filter, then BM25 on query and title.

    A rule passes the filter if it applies to "any" or to a group that the category names; with an empty category all
    rules pass. Equal scores keep rule-book order, so the result never varies; if fewer than k rules share a word with
    the pair, the first rules of the book (the general ones) are added.

    Returns: at most k rules.
    Raises: ValueError for a negative k.
    """
    if k < 0:
        raise ValueError(f"k is {k}, expected 0 or more rules")
    index = _index(tuple(rules))
    allowed = {"any"} | category_groups(category, {group for rule in index.rules for group in rule.applies_to})
    passes = [not category.strip() or not allowed.isdisjoint(rule.applies_to) for rule in index.rules]
    scores = index.scores(f"{query} {title}")
    rows = [row for row, keep in enumerate(passes) if keep]
    # Rounded: two sums of the same terms in another order must not differ by the last bit of a float.
    rows.sort(key=lambda row: (-round(float(scores[row]), 9), row))
    return [index.rules[row] for row in rows[:k]]
