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
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from taosr1.runtime.jsonl import read_jsonl
from taosr1.task.grades import GRADES

if TYPE_CHECKING:
    from taosr1.task.reply import Reply

BUNDLED_RULES = Path(__file__).with_name("rules.jsonl")

CATEGORY_FACTS = ("same", "substitute", "accessory", "sibling", "different")
OUTCOMES = ("met", "near", "missed", "unknown")
DEMANDS = ("brand", "colour", "material", "size", "feature", "use", "price")
EXCLUSIONS = ("no-brand", "no-colour", "no-material", "no-feature")
FACT_VALUES = {"category": CATEGORY_FACTS, **{demand: OUTCOMES for demand in DEMANDS + EXCLUSIONS}}
# If one demand is listed twice, the worse outcome counts: every rule grades it no higher.
_WORST_FIRST = ("missed", "near", "unknown", "met")
# How the last entry of an Attributes line begins where people judged otherwise than the steps show.
JUDGED_OTHERWISE = ("judged higher than ", "judged lower than ")

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
    expected = {item.name for item in fields(Rule)}
    if row.keys() != expected:
        raise ValueError(f"fields: missing {sorted(expected - row.keys())}, unknown {sorted(row.keys() - expected)}")
    for name in ("id", "condition", "consequence"):
        _require(_is_text(row[name]), name, row[name], "text")
    groups, when, grade, example = row["applies_to"], row["when"], row["grade"], row["example"]
    is_list = isinstance(groups, list) and groups and all(map(_is_text, groups))
    _require(is_list, "applies_to", groups, 'a list of category groups or ["any"]')
    _require(isinstance(when, dict), "when", when, "an object of facts")
    _check_facts(when, "field 'when': ")
    _require(grade is None or type(grade) is int and grade in GRADES, "grade", grade, "1-4 or null")
    if bool(when) != (grade is not None):
        raise ValueError("fields 'when' and 'grade' go together: both set (decision) or {} and null (definition)")
    is_example = isinstance(example, dict) and example.keys() == {"query", "title", "grade"}
    _require(is_example, "example", example, "an object with query, title and grade")
    for name in ("query", "title"):
        _require(_is_text(example[name]), f"example.{name}", example[name], "text")
    of_example = example["grade"]
    _require(type(of_example) is int and of_example in GRADES, "example.grade", of_example, "1-4")
    _require(grade is None or of_example <= grade, "example.grade", of_example, f"at most the rule's own grade {grade}")
    return Rule(**{**row, "applies_to": tuple(groups)})


def _require(ok: object, name: str, value: object, expected: str) -> None:
    if not ok:
        raise ValueError(f"field {name!r} is {value!r}, expected {expected}")


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _check_facts(facts: dict[str, str], where: str = "") -> None:
    for fact, value in facts.items():
        allowed = FACT_VALUES.get(fact, ())
        if value not in allowed:
            expected = "|".join(allowed) or f"a fact out of {', '.join(FACT_VALUES)}"
            raise ValueError(f"{where}fact {fact!r} is {value!r}, expected {expected}")


def decide(facts: dict[str, str], rules: Iterable[Rule]) -> tuple[int, tuple[str, ...]]:
    """The grade the rules give to a pair: the lowest of those that match, 4 if none does.

    Returns: (grade, ids of all decision rules that match, in rule-book order).
    Raises: ValueError for a fact or value outside `FACT_VALUES`, or if the category fact is missing.
    """
    if "category" not in facts:
        raise ValueError(f"facts without 'category': {facts!r}; expected one of {'|'.join(CATEGORY_FACTS)}")
    _check_facts(facts)
    matching = [rule for rule in rules if rule.grade is not None and rule.when.items() <= facts.items()]
    return min([4, *(rule.grade for rule in matching)]), tuple(rule.id for rule in matching)


def worst(*outcomes: str) -> str:
    """The outcome that counts where one demand has several."""
    return min(outcomes, key=_WORST_FIRST.index)


# --- The facts in a chain of thought ----------------------------------------------------------------------------------

_CATEGORY = re.compile(r"(same|different|related\s+(?:substitute|accessory|sibling))\b", re.IGNORECASE)


def facts_from_cot(reply: Reply) -> dict[str, str] | None:
    """The facts in the Category and Attributes lines of a chain of thought; None if these cannot be read.

    The Query line says which demands are exclusions ("material not plastic"): the n-th `material` of the Attributes
    line belongs to the n-th `material` of the Query line. A demand listed twice under one key keeps its worse outcome.
    Choice: a demand outside `DEMANDS` (an outside LLM's "compatibility missed") counts as a feature.
    """
    category = _CATEGORY.match(reply.category.strip())
    attributes = reply.attributes.strip().rstrip(".")
    if category is None or not attributes:
        return None
    facts = {"category": category.group(1).lower().split()[-1]}
    if attributes.lower().split(";")[0].strip() == "none":
        return facts
    excluded_in_query: dict[str, list[bool]] = {}  # of each demand, in the order of its entries
    for entry in reply.query.split(";")[1:]:
        name, *value = entry.lower().split() or [""]
        excluded_in_query.setdefault(name, []).append(value[:1] == ["not"])
    for entry in filter(None, (text.strip() for text in attributes.split(";"))):
        if entry.lower().startswith(JUDGED_OTHERWISE):  # no demand: the bundled teacher's note on the grade
            continue
        *words, outcome = entry.lower().replace(":", " ").split() or [""]
        if not words or outcome not in OUTCOMES:
            return None
        # In "colour red: navy near", what was asked and what the item has stand between demand and outcome.
        name = (words[0] if words[0].removeprefix("no-") in DEMANDS else " ".join(words)).removeprefix("no-")
        demand = name if name in DEMANDS else "feature"
        of_query = excluded_in_query.get(name)
        excluded = of_query.pop(0) if of_query else words[0].startswith("no-")
        key = f"no-{demand}" if excluded and f"no-{demand}" in EXCLUSIONS else demand
        facts[key] = worst(outcome, facts.get(key, outcome))
    return facts


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
        examples = [f"{rule.example.get('query', '')} {rule.example.get('title', '')}" for rule in self.rules]
        counts = [Counter(tokenize(f"{rule.text} {example}")) for rule, example in zip(self.rules, examples)]
        self.column = {word: index for index, word in enumerate(sorted(set().union(*counts)))}
        frequency = np.zeros((len(self.rules), len(self.column)))  # (rules, words)
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


_index_of = lru_cache(maxsize=8)(RuleIndex)


def category_groups(category: str, groups: Iterable[str]) -> set[str]:
    """The rule book's groups that a category text names, by the group's name or one of its `GROUP_WORDS`."""
    words = set(_TOKEN.findall(category.lower()))
    return {group for group in groups if words & {group.lower(), *GROUP_WORDS.get(group, ())}}


def retrieve(query: str, title: str, category: str, rules: Sequence[Rule], k: int) -> list[Rule]:
    """The k rules most relevant to a pair, best first: category filter, then BM25 on query and title.

    A rule passes the filter if it applies to "any" or to a group that the category names; with an empty category all
    rules pass. Equal scores keep rule-book order, so the result never varies; if fewer than k rules share a word with
    the pair, the first rules of the book (the general ones) are added. Raises: ValueError for a negative k.
    """
    if k < 0:
        raise ValueError(f"k is {k}, expected 0 or more rules")
    index = _index_of(tuple(rules))
    allowed = {"any"} | category_groups(category, {group for rule in index.rules for group in rule.applies_to})
    scores = index.scores(f"{query} {title}")
    no_filter = not category.strip()
    rows = [row for row, rule in enumerate(index.rules) if no_filter or not allowed.isdisjoint(rule.applies_to)]
    # Rounded: two sums of the same terms in another order must not differ by the last bit of a float.
    rows.sort(key=lambda row: (-round(float(scores[row]), 9), row))
    return [index.rules[row] for row in rows[:k]]
