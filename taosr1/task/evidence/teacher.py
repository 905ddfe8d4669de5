"""The evidence teacher: the five steps of a graded row, from the words of its query and its product alone.

It is deterministic and runs without any service; an outside LLM (train/teacher.py export and import) reads far more and
is the stronger teacher. A step never says "met" where no word of the product shows it.

How the category is judged. Where the product names the thing that is asked for, it is the same; where it names it only
behind "for", or before a word such as "case", it is an accessory. Where it names a part of the words or none of them,
the text leaves several relations open, and the one that leads to the known grade is taken: the line then says "not
named", so that a reader can tell a relation that is shown from one that was given.

Where the rule book makes another grade of these steps than the known one, the Attributes line ends with an entry of a
fixed form, "judged higher than 3-Related: in spite of colour unknown" or "judged lower than 4-Excellent: by something
that is not shown", and the decision is the known grade.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from taosr1.task.evidence.demands import Demand, Wanted, category_words, read_query
from taosr1.task.evidence.product import Finding, Product, how_named, look
from taosr1.task.evidence.vocabulary import Vocabulary
from taosr1.task.evidence.words import STOP_WORDS
from taosr1.task.grades import grade_name
from taosr1.task.judgement import Judgement
from taosr1.task.rules import Rule, decide, load_rules, worst
from taosr1.task.teacher import write_cot

TITLE_WORDS = 7  # of the title, in the Item line
MAX_DEMANDS = 8  # of a query, in its order
# What the words leave open, the likeliest first.
_OPEN = {
    "named in the title": ("same",),
    "accessory": ("accessory", "same"),
    "named in the category": ("same", "substitute", "sibling"),
    "named in part": ("same", "substitute", "sibling", "accessory", "different"),
    "kind named": ("same", "substitute", "sibling", "accessory"),
    "nothing named": ("same", "different", "sibling", "substitute"),
    "not named": ("different", "sibling", "substitute", "same", "accessory"),
}


@dataclass(frozen=True)
class Explained:
    """A row's chain of thought, and whether the rule book makes the known grade of its steps."""

    cot: str
    implied: int  # the grade that follows from the steps

    def agrees(self, grade: int) -> bool:
        """Whether the steps lead to a grade."""
        return self.implied == grade


def explain(row: Judgement, vocabulary: Vocabulary | None = None, rules: Sequence[Rule] | None = None) -> Explained:
    """The five steps of a graded row. `vocabulary` is that of all rows of the file, which tells brands and typos.

    Raises: ValueError for a row without a grade.
    """
    if row.grade is None:
        raise ValueError(f"no grade for query {row.query[:80]!r}: the teacher explains a known grade")
    rules = load_rules() if rules is None else rules
    wanted = read_query(row.query, vocabulary or Vocabulary(), row.brand)
    wanted.demands = wanted.demands[:MAX_DEMANDS]
    product = Product(row)
    findings = [look(product, demand) for demand in wanted.demands]
    shown, relation = relation_of(product, wanted, findings, row.grade, rules)
    return steps_of(row, wanted, findings, relation, shown, rules)


def facts_of(relation: str, demands: Sequence[Demand], findings: Sequence[Finding]) -> dict[str, str]:
    """The facts that the rule book decides by; of a demand that is there twice, the worse outcome."""
    facts = {"category": relation}
    for demand, finding in zip(demands, findings):
        facts[demand.fact] = worst(finding.outcome, facts.get(demand.fact, finding.outcome))
    return facts


def relation_of(
    product: Product, wanted: Wanted, findings: Sequence[Finding], grade: int, rules: Sequence[Rule]
) -> tuple[str, str]:
    """(how the thing is named, the relation of the categories): the likeliest open one that leads to the grade."""
    shown = how_named(product, category_words(wanted))
    options = _OPEN[shown]
    fits = (option for option in options if decide(facts_of(option, wanted.demands, findings), rules)[0] == grade)
    return shown, next(fits, _nearest(options, wanted, findings, grade, rules))


def _nearest(
    options: Sequence[str], wanted: Wanted, findings: Sequence[Finding], grade: int, rules: Sequence[Rule]
) -> str:
    """The option that comes nearest to the grade: with the demands, then by itself."""

    def distances(option: str) -> tuple[int, int]:
        alone = decide({"category": option}, rules)[0]
        return abs(decide(facts_of(option, wanted.demands, findings), rules)[0] - grade), abs(alone - grade)

    return min(options, key=distances)


def steps_of(
    row: Judgement, wanted: Wanted, findings: Sequence[Finding], relation: str, shown: str, rules: Sequence[Rule]
) -> Explained:
    """The five lines for given findings. Where they do not lead to the row's grade, the Attributes line says so."""
    demands, grade = wanted.demands, row.grade
    facts = facts_of(relation, demands, findings)
    implied, matching = decide(facts, rules)
    query_line = "; ".join([_clean(" ".join(category_words(wanted))), *(_clean(demand.shown) for demand in demands)])
    item = [_item(row), *(f"{d.name} {_clean(f.words)}" for d, f in zip(demands, findings) if f.words)]
    outcomes = [(demand.fact, finding.outcome) for demand, finding in zip(demands, findings)]
    evidence = [
        f"{_clean(demand.shown).partition(' ')[2]}: {_clean(finding.words)}".rstrip()
        for demand, finding in zip(demands, findings)
    ]
    cot = write_cot(query_line, "; ".join(dict.fromkeys(item)), relation, outcomes, grade, evidence)
    lines = cot.split("\n")
    if shown:
        lines[2] += f", {'named behind for or before a part' if shown == 'accessory' else shown}"
    if implied != grade:
        judged = [f"{demand.name} {finding.outcome}" for demand, finding in zip(demands, findings)]
        lines[3] += f"; {_disputed(implied, grade, relation, judged)}"
    return Explained("\n".join(lines), implied)


def _disputed(implied: int, grade: int, relation: str, outcomes: Sequence[str]) -> str:
    """The last entry of the Attributes line where people judged otherwise than the words show."""
    if grade > implied:
        open_ones = [text for text in dict.fromkeys(outcomes) if not text.endswith(" met")]
        against = ", ".join([*(["category " + relation] if relation != "same" else []), *open_ones]) or "the category"
        return f"judged higher than {grade_name(implied)}: in spite of {against}"
    return f"judged lower than {grade_name(implied)}: by something that is not shown"


def _clean(text: str) -> str:
    """Text that can stand in a step: one line, without the marks that separate entries."""
    return " ".join(text.replace(";", ",").replace(":", " ").split())


def _item(row: Judgement) -> str:
    """What the product is: the beginning of its title, and the last part of its category."""
    words = (row.title.split() or row.description.split() or row.attributes.split())[:TITLE_WORDS]
    kept = [word for word in words if word.casefold() not in STOP_WORDS]
    title, leaf = " ".join(kept or words)[:160], row.category.rpartition(">")[2].strip()[:80]
    return _clean(f"{title} ({leaf})" if title and leaf else title or leaf or "a product")
