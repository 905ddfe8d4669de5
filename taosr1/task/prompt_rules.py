"""Rules in a prompt: those of the rule book that are retrieved for a pair, as the lines that a prompt shows."""

from __future__ import annotations

import json
from functools import lru_cache

from taosr1.runtime.jsonl import parse_json, read_jsonl
from taosr1.task.judgement import Judgement
from taosr1.task.rules import Rule, load_rules, retrieve, rules_in

MOST_RULES = 20
MAX_BOOK_CHARS = 200_000  # the bundled book has 27,000
_READ_CHARS = 600  # of each text that rules are retrieved by: a long one costs no more time
READ_FOR_RULES = ("title", "category")  # product columns


@lru_cache(maxsize=8)
def rule_book(text: str) -> tuple[Rule, ...]:
    """The rules of a stored rule book (`read_book`), "" for ours. Raises: ValueError naming the line."""
    if not text:
        return tuple(load_rules())
    rows = ((number, parse_json(line, [])) for number, line in enumerate(text.split("\n"), start=1))
    return tuple(rules_in(rows, "rule book"))


def rule_line(rule: Rule) -> str:
    """A rule as a prompt shows it, after a line break."""
    return "\n- " + " ".join(rule.text.split())


def rule_lines(judgement: Judgement, text: str, k: int) -> str:
    """The k rules of a rule book's text that are retrieved for a pair, a line each; "" for k = 0.

    Choice: in the book's order, not the best first, and before the query: pairs that have rules in common then begin
    alike (on ESCI, 3 rules a prompt: 84 tokens a pair that no other prompt has begun with; 90 with the best first, 112
    between query and product, 144 at the end).
    """
    if not k:
        return ""
    rules = rule_book(text)
    shown = (value[:_READ_CHARS] for value in (judgement.query, judgement.title, judgement.category))
    found = {rule.id for rule in retrieve(*shown, rules, k)}
    return "".join(rule_line(rule) for rule in rules if rule.id in found)


def book_wording(text: str) -> str:
    """Everything of a rule book that a prompt depends on: which rules are retrieved, and what they say."""
    about = [(", ".join(rule.applies_to), rule.example["query"], rule.example["title"]) for rule in rule_book(text)]
    return "\n".join(f"{' | '.join(said)}{rule_line(rule)}" for said, rule in zip(about, rule_book(text)))


def longest_rules_tok(tokenizer, text: str, k: int) -> int:
    """Tokens of the k longest rules: no prompt has more of them."""
    return sum(sorted(len(tokenizer.encode_text(rule_line(rule))) for rule in rule_book(text))[-k:]) if k else 0


def read_book(path: str) -> str:
    """The text of a --rules file as it is stored with a run: its rules, one JSON object a line.

    Raises: ValueError and FileNotFoundError, in one line that names the file, its line and field.
    """
    if not path:
        raise ValueError("--rules is empty, expected a file")
    rows, size = [], 0
    for number, row in read_jsonl(path, flag="--rules"):
        rows.append((number, row))
        size += len(json.dumps(row, ensure_ascii=False))
        if size > MAX_BOOK_CHARS:
            raise ValueError(f"--rules {path}: more than {MAX_BOOK_CHARS:,} characters, expected a shorter rule book")
    rules_in(rows, f"--rules {path}")
    return "\n".join(json.dumps(row, ensure_ascii=False) for _, row in rows)


def rules_problems(k: int, text: str, style: str) -> list[tuple[bool, str]]:
    """Problems for `taosr1.runtime.cli.check`. Raises: ValueError for a text that is no rule book."""
    rules = len(rule_book(text)) if k else 0
    return [
        (not 0 <= k <= MOST_RULES, f"--prompt-rules is {k}, expected 0 to {MOST_RULES}"),
        (0 < rules < k <= MOST_RULES, f"--prompt-rules is {k}, but the rule book has {rules} rules: give at most that"),
        (bool(text) and not k, "--rules needs --prompt-rules K: how many of its rules a prompt shows"),
        (bool(k) and style == "brief", "the brief prompt has no rules: --prompt-rules needs --style full"),
    ]  # fmt: skip
