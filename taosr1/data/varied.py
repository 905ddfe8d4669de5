"""More rows from graded ones by words alone: a query with a demand less, and one with a brand more.

"varied:rows.jsonl" are the rows of a file and, behind each, up to two variants of it. A cheap alternative to a world of
one's own (`taosr1/data/catalogue.py`), and far weaker: the variants hold no other products and few other queries.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from taosr1.data.gold import LABELLED_BY
from taosr1.data.queries import plain
from taosr1.task.evidence import Vocabulary
from taosr1.task.evidence.demands import ANYTHING, read_query
from taosr1.task.evidence.product import Product
from taosr1.task.evidence.text import words_of
from taosr1.task.evidence.words import NEGATIONS
from taosr1.task.judgement import Judgement

VARIED = "varied:"
BY_RULES = "rule of variation"  # in `labelled_by`: nothing is measured or chosen by such grades


def with_variants(rows: Sequence[Judgement], seed: int = 0) -> list[Judgement]:
    """The rows, and behind each its variants, marked as pseudo-labels.

    Choices, each as the rule book has it: a product that satisfies everything (4) or fits nothing (1) does so with a
    demand less, too; of the products that satisfy a query (4), those of one of their brands still do (4) once that
    brand is asked for, and the others are a mismatch (2). Grades 2 and 3 are left alone: what the product lacks may be
    the word that is dropped. Only words of a known demand are dropped, and no word of a query with a negation.
    """
    vocabulary = Vocabulary.of(rows)
    brands: dict[str, set[str]] = defaultdict(set)  # of the products that satisfy each query
    for row in rows:
        if row.grade == 4 and row.brand.strip():
            brands[plain(row.query)].add(row.brand)
    found: list[Judgement] = []
    for row in rows:
        rng = random.Random(f"{seed}/{plain(row.query)}")  # one variant of a query for all its products
        found.append(row)
        shorter = _without_a_demand(row, vocabulary, rng)
        if shorter and row.grade in (1, 4):
            found.append(_variant(row, shorter, row.grade))
        own = sorted(brands[plain(row.query)])
        brand = rng.choice(own) if len(own) > 1 else ""
        if brand and row.grade == 4 and not _names_brand(row, vocabulary):
            query = f"{brand.casefold() if row.query.islower() else brand} {row.query}"
            if row.brand == brand or _is_of_another(row, brand):
                found.append(_variant(row, query, 4 if row.brand == brand else 2))
    return found


def _variant(row: Judgement, query: str, grade: int) -> Judgement:
    return replace(
        row, query=query, grade=grade, cot="", query_id="", item_id="", extra={**row.extra, LABELLED_BY: BY_RULES}
    )


def _without_a_demand(row: Judgement, vocabulary: Vocabulary, rng: random.Random) -> str:
    """The query without the words of one demand, "" where none can be dropped."""
    wanted, written = read_query(row.query, vocabulary), row.query.split()
    each = [tuple(words_of(word)) for word in written]
    if wanted.thing == [ANYTHING] or any(word in NEGATIONS for words in each for word in words):
        return ""
    options = []
    for demand in wanted.demands:
        places = [place for place, words in enumerate(each) if words and set(words) <= set(demand.words)]
        # Only words beside the thing: "for women" without "women" is no query.
        if demand.name in ("brand", "colour", "material") and len(places) == len(demand.words) < len(written):
            if not places[0] or each[places[0] - 1][-1:] not in (("in",), ("by",), ("of",), ("from",)):
                options.append(" ".join(word for place, word in enumerate(written) if place not in places))
    return rng.choice(options) if options else ""


def _names_brand(row: Judgement, vocabulary: Vocabulary) -> bool:
    return any(demand.name == "brand" for demand in read_query(row.query, vocabulary, row.brand).demands)


def _is_of_another(row: Judgement, brand: str) -> bool:
    """Whether a product is of another brand, and no text of it names this one."""
    words = tuple(words_of(brand))
    product = Product(row)
    return bool(words and product.brand.words) and not any(text.holds(words) for text in product.texts)
