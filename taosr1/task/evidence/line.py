"""The evidence of a pair in one line for a prompt: which words of the query the product has, and what it demands.

    in title: gas grill; elsewhere: portable; missing: small; colour red: missed; not lid: unknown

It is made of the pair alone: no grade, no words of other rows. A small model that cannot compare the texts by itself
reads here what a program found. The line holds words of the query, so it is untrusted text like the query itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from taosr1.task.evidence.demands import ANYTHING, Demand, Wanted, category_words, read_query
from taosr1.task.evidence.product import Product, how_named, look
from taosr1.task.evidence.vocabulary import Vocabulary
from taosr1.task.judgement import Judgement

MAX_QUERY_CHARS = 200  # that are looked at; nobody types more
MAX_FIELD_CHARS = 600  # the same of a field of the product: what a prompt shows of it unless --max-chars says more
MAX_WORDS, MAX_DEMANDS = 10, 5  # of a query, in its order
MAX_WORD_CHARS, MAX_LINE_CHARS = 24, 240
_NOTHING_KNOWN = Vocabulary()


def evidence_line(row: Judgement) -> str:
    """The line, "" for a query without words.

    A demand (`taosr1.task.evidence.demands`) is said with its outcome, met, near, missed or unknown; one that the query
    excludes begins with "not", and is met where the product denies it. The other words are those of the thing: in the
    title, only in another field, or missing. Where the title names the thing as what an accessory fits ("cover for gas
    grill"), it says "in title as accessory".
    """
    wanted = _wanted(row.query[:MAX_QUERY_CHARS], row.brand[:MAX_QUERY_CHARS])
    product, thing = Product(_cut(row)), category_words(wanted)
    places: dict[str, list[str]] = {"in title": [], "elsewhere": [], "missing": []}
    for word in thing[:MAX_WORDS] if list(thing) != [ANYTHING] else ():
        places[_place(product, word)].append(word[:MAX_WORD_CHARS])
    if how_named(product, thing) == "accessory":
        places = {"in title as accessory": places.pop("in title"), **places}
    said = [f"{place}: {' '.join(words)}" for place, words in places.items() if words]
    said += [f"{_shown(demand)}: {look(product, demand).outcome}" for demand in wanted.demands[:MAX_DEMANDS]]
    return "; ".join(said)[:MAX_LINE_CHARS]


def _cut(row: Judgement) -> Judgement:
    """The row with the beginnings of its texts, so that a long one costs no more time."""
    names = ("title", "brand", "category", "attributes", "description", "price")
    return replace(row, **{name: getattr(row, name)[:MAX_FIELD_CHARS] for name in names})


@lru_cache(maxsize=4096)  # a query has many products, and most of them no brand that it names
def _wanted(query: str, brand: str) -> Wanted:
    return read_query(query, _NOTHING_KNOWN, brand)


def _place(product: Product, word: str) -> str:
    if product.title.holds((word,)):
        return "in title"
    others = (product.brand, product.category)
    found = any(text.holds((word,)) for text in others) or product.attributes.holds((word,))
    return "elsewhere" if found or product.description.holds((word,)) else "missing"


def _shown(demand: Demand) -> str:
    """ "colour red", "not lid" (of what is excluded, which sort it is says little)."""
    words = _short(demand.words)
    if demand.excluded:
        return f"not {words}"
    return f"price at most {words}" if demand.amount and demand.name == "price" else f"{demand.name} {words}"


def _short(words: Sequence[str]) -> str:
    return " ".join(word[:MAX_WORD_CHARS] for word in words[:4])
