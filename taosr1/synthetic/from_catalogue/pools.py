"""The pools of a catalogue's world, as in the embedded shop: reasoned, labelled, unlabelled, explained, dev, test.

A query is drawn from a product that meets it; the pairs are real products, near and far: of the same kind (meeting all
demands, missing one, nearly meeting one), a sibling kind, an accessory, another kind. The facts come from the fields,
the grade from the rule book, the steps from the evidence teacher's words. A query's text belongs to one pool alone; in
a catalogue of at least `SPLIT_FROM` products, so does every product.

Choices: kinds are drawn by the square root of their size. Two pairs a query, whose grades are drawn apart: what sets
them apart is then the product. The steps are right (the embedded shop's "reasoned" has a noisy teacher).
"""

from __future__ import annotations

import random
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

from taosr1.synthetic.from_catalogue.kinds import Kind
from taosr1.synthetic.from_catalogue.queries import Query, draw_query
from taosr1.synthetic.from_catalogue.shop import Shop, bucket_of
from taosr1.synthetic.shop import EXPLAINED, GRADE_SHARES, KIND_SHARES, NEAR_MISS_SHARE, POOL_BUCKETS, POOL_SIZES
from taosr1.task.evidence.demands import Wanted
from taosr1.task.evidence.teacher import facts_of, steps_of
from taosr1.task.evidence.text import words_of
from taosr1.task.evidence.words import STOP_WORDS
from taosr1.task.judgement import Judgement
from taosr1.task.rules import decide, load_rules

TITLES = "titles"  # no queries at all: words of a title against its own product and another one
POOLS = (*POOL_SIZES, EXPLAINED, TITLES)
PAIRS_PER_QUERY = 2
SAME_TRIES, OTHER_TRIES = 40, 12  # products that are looked at for one pair
DRAWS = 60  # queries that are drawn for one pair of grades before it is given up
GIVEN_UP = 40  # pairs of grades in a row that no query was found for: the pool is used up
NEAR_TRIES = 12  # products that share a word with a query of `title_pairs`, of which the nearest is taken
ADDED_WORD = 0.2  # share of its own products whose query gets a word that they lack
SAME_BRAND = 0.4  # share of irrelevant products of the same brand: nothing else of them fits


def make_pool(shop: Shop, pool: str, size: int, seed: int = 0) -> list[Judgement]:
    """Up to `size` pairs of a pool: the same for the same catalogue and arguments. Fewer are said on stderr.

    Raises: ValueError for an unknown pool or a negative size.
    """
    if pool not in POOLS or size < 0:
        raise ValueError(f"pool is {pool!r} of size {size}, expected one of {', '.join(POOLS)} and a size >= 0")
    if pool == TITLES:
        return title_pairs(shop.rows, size, seed)
    drawn = "labelled" if pool == EXPLAINED else pool
    rows = list(_rows(_Maker(shop, drawn, seed), size, with_cot=pool in ("reasoned", EXPLAINED)))
    if len(rows) < size:
        why = "the catalogue has no more different queries"
        print(f"catalogue: only {len(rows)} of {size} pairs of {pool!r} could be made: {why}", file=sys.stderr)
    return [replace(row, grade=None) for row in rows] if pool == "unlabelled" else rows


def title_pairs(products: Sequence[Judgement], size: int, seed: int = 0) -> list[Judgement]:
    """Words of a title as the query: by turns with its own product, grade 4, and with another one, grade 1 or 2.

    The cheap alternative to a world: it teaches that all words should be there again, and nothing of demands or of
    grade 3. The query has two to five words of the title, in its order.

    Choices: half of the other products are near, the best of `NEAR_TRIES` by the number of the query's words that their
    titles have, because against random titles one common word would tell the grades apart. What has at least half of
    the words, but not all, is a mismatch (2), what has fewer is irrelevant (1). A fifth of the own products lack a word
    too, and get 2: one of another title is added to the query.
    """
    rng, rows = random.Random(f"{seed}/{TITLES}"), []
    worded = [(row, row.title.split(), frozenset(words_of(row.title))) for row in products]
    worded = [one for one in worded if len(one[1]) > 2]
    by_word: dict[str, list[int]] = defaultdict(list)
    for number, (_, _, words) in enumerate(worded):
        for word in sorted(words):
            by_word[word].append(number)
    for _ in range(20 * size if len(worded) > 1 else 0):
        if len(rows) == size:
            break
        row, written, _ = rng.choice(worded)
        places = sorted(rng.sample(range(len(written)), min(rng.randint(2, 5), len(written))))
        chosen = [written[place] for place in places]
        shown, grade, wanted = row, 4, set(words_of(" ".join(chosen)))
        if len(rows) % 2:
            shown, lacking = _other_product(rng, worded, by_word, wanted, near=rng.random() < 0.5)
            grade = 2 if 2 * lacking <= len(wanted) else 1
        elif rng.random() < ADDED_WORD:
            more = rng.choice(rng.choice(worded)[1])
            new = set(words_of(more)) - STOP_WORDS
            if new and new.isdisjoint(words_of(f"{row.title} {row.brand} {row.attributes} {row.description}")):
                chosen.insert(rng.randint(0, len(chosen)), more)
                grade = 2
        if not wanted or shown is None:
            continue
        query, item = " ".join(chosen).casefold(), shown.item_id or f"p{len(rows)}"
        rows.append(
            replace(shown, query=query, grade=grade, query_kind="title", query_id=f"t{len(rows)}", item_id=item)
        )
    return rows


def _other_product(
    rng: random.Random, worded: Sequence[tuple], by_word: dict[str, list[int]], wanted: set[str], near: bool
) -> tuple[Judgement | None, int]:
    """A product whose title lacks wanted words, and how many; a near one lacks as few as can be found."""
    numbers = [rng.randrange(len(worded))]
    if near and wanted:
        numbers = [rng.choice(by_word[word]) for word in rng.choices(sorted(wanted), k=NEAR_TRIES) if word in by_word]
    lacking = [(len(wanted - worded[number][2]), number) for number in numbers]
    found = min((one for one in lacking if one[0]), default=None)
    return (worded[found[1]][0], found[0]) if found else (None, 0)


def _rows(maker: _Maker, size: int, with_cot: bool) -> Iterator[Judgement]:
    deck = [kind for kind, share in KIND_SHARES.items() for _ in range(round(20 * share))]
    made, given_up, queries = 0, 0, 0
    while made < size and given_up < GIVEN_UP:
        if queries % len(deck) == 0:
            maker.rng.shuffle(deck)
        kind = deck[queries % len(deck)]
        queries += 1
        grades = maker.rng.choices(list(GRADE_SHARES), list(GRADE_SHARES.values()), k=PAIRS_PER_QUERY)
        found = maker.pairs(kind, grades[: size - made])
        given_up = 0 if found else given_up + 1
        for query, number, relation, shown in found:
            row = maker.row(query, number, relation, shown, f"{maker.pool}-q{queries}", with_cot)
            made += 1
            yield row


class _Maker:
    """Draws the pairs of one pool."""

    def __init__(self, shop: Shop, pool: str, seed: int) -> None:
        self.shop, self.pool, self.rules = shop, pool, load_rules()
        self.rng = random.Random(f"{seed}/{pool}")
        self.members = shop.members(pool)
        self.kinds = list(self.members)
        self.weights = [len(numbers) ** 0.5 for numbers in self.members.values()]
        self.by_brand: dict[str, list[int]] = {}
        for numbers in self.members.values():
            for number in numbers:
                self.by_brand.setdefault(shop.rows[number].brand, []).append(number)
        self.texts: set[str] = set()

    def pairs(self, kind: str, grades: Sequence[int]) -> list[tuple[Query, int, str, str]]:
        """(query, product, relation, how it is named) for every grade, of one new query; [] if none was found."""
        for _ in range(DRAWS):
            (thing,) = self.rng.choices(self.kinds, self.weights)
            number = self.rng.choice(self.members[thing])
            query = draw_query(self.rng, self.shop, number, kind, self.pool in ("dev", "test"))
            if query is None or query.text in self.texts or bucket_of(query.text) not in POOL_BUCKETS[self.pool]:
                continue
            taken: set[int] = set()
            found = [self._product(query, number, grade, taken) for grade in grades]
            if None not in found:
                self.texts.add(query.text)
                return [(query, *one) for one in found]
        return []

    def _product(self, query: Query, seed: int, grade: int, taken: set[int]) -> tuple[int, str, str] | None:
        """A product that gets this grade for the query, with the relation of its kind and how it names the thing."""
        for number, relation in self._candidates(query, seed, grade):
            if number in taken:
                continue
            shown = self.shop.how_named(number, query.thing, relation)
            if shown and self._grade(query, number, relation) == grade:
                taken.add(number)
                return number, relation, shown
        return None

    def _candidates(self, query: Query, seed: int, grade: int) -> Iterator[tuple[int, str]]:
        rng, same = self.rng, self.members[query.thing]
        if grade == 4:
            yield seed, "same"
        if grade > 2 or grade == 2 and query.asked and rng.random() < NEAR_MISS_SHARE:
            yield from ((number, "same") for number in rng.sample(same, min(SAME_TRIES, len(same))))
        elif grade == 2:
            for relation in ("sibling", "accessory") if rng.random() < 0.6 else ("accessory", "sibling"):
                yield from ((number, relation) for number in self._of(self.shop.related(query.thing, relation)))
        else:
            if rng.random() < SAME_BRAND:
                others = self.by_brand[self.shop.rows[seed].brand]
                for number in rng.sample(others, min(OTHER_TRIES, len(others))):
                    if self.shop.kinds.relation(query.thing, self.shop.kinds.of_product[number]) == "different":
                        yield number, "different"
            yield from ((number, "different") for number in self._of(self.shop.related(query.thing, "different")))

    def _of(self, kinds: Sequence[Kind]) -> Iterator[int]:
        """Products of some kinds."""
        kinds = [kind for kind in kinds if kind in self.members]
        for _ in range(OTHER_TRIES if kinds else 0):
            yield self.rng.choice(self.members[self.rng.choice(kinds)])

    def _findings(self, query: Query, number: int) -> list | None:
        found = [self.shop.finding(number, query.thing, one) for one in query.asked]
        return None if None in found else found

    def _grade(self, query: Query, number: int, relation: str) -> int | None:
        if relation == "different":  # whatever else it has
            return 1
        findings = self._findings(query, number)
        if findings is None:
            return 2 if relation in ("sibling", "accessory") else None
        return decide(facts_of(relation, [one.demand for one in query.asked], findings), self.rules)[0]

    def row(self, query: Query, number: int, relation: str, shown: str, query_id: str, with_cot: bool) -> Judgement:
        """The pair as a judgement."""
        grade = self._grade(query, number, relation)
        product = self.shop.rows[number]
        item_id = product.item_id or f"p{number}"
        row = replace(product, query=query.text, grade=grade, query_kind=query.kind, query_id=query_id, item_id=item_id)
        if not with_cot:
            return row
        findings = self._findings(query, number)
        asked = query.asked if findings is not None else ()  # a product of another kind whose fields say nothing clear
        wanted = Wanted(list(query.thing), [one.demand for one in asked])
        explained = steps_of(row, wanted, findings or [], relation, shown, self.rules)
        assert explained.agrees(grade), (row, explained)
        return replace(row, cot=explained.cot)
