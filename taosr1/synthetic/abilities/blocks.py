"""Test sets of single abilities: minimal pairs of the synthetic shop, whose grades turn on one ability alone.

A block is two queries and two products, so four rows. The queries differ in one demand, the products in one property,
and the two rows of each query have different grades, as have the two rows of each product. So a judge that looks at the
query alone, or at the product alone, is right in at most half of the rows and in at most a quarter of the pairs,
whatever it has learned; one that guesses between the two grades of a pair is, too. Counts of words that a query shares
with a title say no more: in a block they depend on the query alone, or on the product alone.

Products are of the test pool's buckets and queries of held-out templates, so no training pool has either. The category
path is left empty: it would spell the type.

Not tested, because no block of it exists: accessories (no query wants one, so the product alone would tell), values
that the title repeats from the query (counting words would do), and the phrases for steel and for white.

Source: the paper measures abilities on test sets of their own (arXiv 2508.12365); its sets are private.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import count, cycle, islice

from taosr1.synthetic.abilities.drafts import ABILITIES, Draft
from taosr1.synthetic.catalogue import GROUP_OF, TYPES
from taosr1.synthetic.facts import Item, Query, cot_of, facts_of
from taosr1.synthetic.shop import price_of, title_of
from taosr1.task.judgement import Judgement
from taosr1.task.rules import decide, load_rules

EVERY_ABILITY = "abilities"  # the pool with blocks of all of them by turns
ABILITY_POOLS = (EVERY_ABILITY, *(f"ability-{name}" for name in ABILITIES))
ROWS = 400  # of each ability, where a source names no other number


@dataclass(frozen=True)
class Block:
    """Two queries and two products with their four grades, `grades[query][item]`."""

    queries: tuple[Query, Query]
    items: tuple[Item, Item]
    grades: tuple[tuple[int, int], tuple[int, int]]

    @property
    def texts(self) -> set[tuple[str, str]]:
        """The four pairs of query and title."""
        return {(query.text, item.title) for query in self.queries for item in self.items}


def _finished(rng: random.Random, draft: Draft) -> Block | None:
    """The block with titles, prices and grades; None where it is no block."""
    if draft.items is None:
        return None
    rules = load_rules()
    grades = tuple(tuple(decide(facts_of(query, item), rules)[0] for item in draft.items) for query in draft.queries)
    (a, b), (c, d) = grades
    if a == b or c == d or a == c or b == d:
        return None
    wording, items = rng.random(), []
    for item in draft.items:  # the same draws for both: the titles differ in the one property
        name = TYPES[GROUP_OF[item.type]][item.type][0][draft.word]
        titled, priced = random.Random(wording), random.Random(wording)
        items.append(replace(item, title=title_of(titled, item, name), price=price_of(priced, item)))
    block = Block(draft.queries, tuple(items), grades)
    return block if _overlap_says_nothing(block) else None


def _overlap_says_nothing(block: Block) -> bool:
    """Whether the words that query and title share, in number and in share, follow from one of the two alone."""

    def overlap(query: Query, item: Item) -> tuple[float, ...]:
        asked, title = _words(query.text), _words(item.title)
        shared = len(asked & title)
        return shared, shared / len(asked), shared / len(asked | title)

    (a, b), (c, d) = [[overlap(query, item) for item in block.items] for query in block.queries]
    return (a == b and c == d) or (a == c and b == d)


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def blocks(ability: str, seed: int = 0) -> Iterator[Block]:
    """Blocks of one ability without end, no row twice: the same for the same seed, on every machine.

    Raises: ValueError for an unknown ability.
    """
    if ability not in ABILITIES:
        raise ValueError(f"ability is {ability!r}, expected one of {', '.join(ABILITIES)}")
    rng, seen = random.Random(f"{seed}/ability-{ability}"), set()
    for propose in cycle(ABILITIES[ability]):
        block = None
        while block is None or not seen.isdisjoint(block.texts):
            draft = propose(rng)
            block = draft and _finished(rng, draft)
        seen |= block.texts
        yield block


def _rows_of(ability: str, seed: int) -> Iterator[list[Judgement]]:
    """The four rows of each block: those of a query share its query_id, those of a product its item_id."""
    for number, block in zip(count(), blocks(ability, seed)):
        name, rows = f"{ability}-{number}", []
        for q, query in enumerate(block.queries):
            for i, item in enumerate(block.items):
                grade = block.grades[q][i]
                rows.append(Judgement(
                    query.text, item.title, item.brand, price=item.price, grade=grade, query_kind=ability,
                    query_id=f"{name}-q{q}", item_id=f"{name}-p{i}", extra={"block": name},
                    cot=cot_of(query, item, facts_of(query, item), grade),
                ))  # fmt: skip
        yield rows


@lru_cache(maxsize=32)
def _ability_rows(pool: str, size: int, seed: int) -> tuple[Judgement, ...]:
    names = ABILITIES if pool == EVERY_ABILITY else (pool.removeprefix("ability-"),)
    sources = [_rows_of(name, seed) for name in names]
    by_turns = (row for turn in zip(*sources) for rows in turn for row in rows)
    return tuple(islice(by_turns, size))


def read_abilities(pool: str, size: int | None = None, seed: int = 0) -> list[Judgement]:
    """The rows of a pool of `ABILITY_POOLS`, each with its true chain of thought; "abilities": blocks of all by turns.

    A smaller pool is the beginning of a larger one; whole blocks need a multiple of four rows, of "abilities" of forty.
    Raises: ValueError for an unknown pool or a negative size.
    """
    if pool not in ABILITY_POOLS or (size or 0) < 0:
        names = ", ".join(ABILITY_POOLS)
        raise ValueError(f"ability pool is {pool!r} of size {size}, expected one of {names} and a size >= 0")
    usual = ROWS * (len(ABILITIES) if pool == EVERY_ABILITY else 1)
    return list(_ability_rows(pool, usual if size is None else size, seed))
