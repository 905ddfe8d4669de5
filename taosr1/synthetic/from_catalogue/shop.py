"""A catalogue as a shop: what its products are, what can be asked of them, and how well one satisfies a demand."""

from __future__ import annotations

import zlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import median

from taosr1.synthetic.from_catalogue.fields import Field, find_fields, outcome
from taosr1.synthetic.from_catalogue.kinds import Kind, Kinds, find_kinds
from taosr1.synthetic.from_catalogue.wordings import language_of
from taosr1.synthetic.shop import POOL_BUCKETS
from taosr1.task.evidence.demands import Demand
from taosr1.task.evidence.product import Finding, Product, look, price_of
from taosr1.task.evidence.teacher import how_named
from taosr1.task.evidence.text import number_of, words_of
from taosr1.task.judgement import Judgement

SPLIT_FROM = 2000  # products from which on those of dev and test are in no training pool
LEAST_PRICES = 8  # of a kind, so that some are cheap
LOW, MIDDLE = 0.35, 0.6  # quantiles of a kind's prices: up to the first is cheap, from the second on it is not
BELOW, ABOUT = 0.9, 1.1  # of a brand's median price: clearly below it, about the same
SHOWN_WORDS = {"sibling": ("not named", "named in part", "kind named"), "different": ("not named",)}


@dataclass(frozen=True)
class Asked:
    """A demand, and the field that it was drawn from (None: brand and price)."""

    demand: Demand
    field: Field | None = None


@dataclass
class Shop:
    """A catalogue's products, indexed: `looked`, `values` and the kinds' `of_product` are parallel to `rows`."""

    rows: list[Judgement]
    looked: list[Product]
    values: list[dict[str, str]]
    kinds: Kinds
    fields: dict[str, Field]
    language: str
    prices: list[float | None]
    _found: dict[tuple[int, Kind, Asked], Finding | None] = field(default_factory=dict, repr=False)
    _related: dict[Kind, dict[str, list[Kind]]] = field(default_factory=dict, repr=False)

    @staticmethod
    def of(products: Sequence[Judgement]) -> Shop:
        """The shop of a catalogue. Raises: ValueError where no kind of thing has enough products."""
        looked = [Product(row) for row in products]
        values = [_values(product) for product in looked]
        kinds = find_kinds(products, values)
        if not kinds.products:
            where = products[0].source if products else "catalogue"
            raise ValueError(
                f"{where}: no kind of thing is there at least five times, by category or title: give more products, "
                'or a column with their category (--columns "NAME=category")'
            )
        fields = find_fields(looked, values)
        rows = [_with_asked_first(row, found, fields) for row, found in zip(products, values)]
        step = max(1, len(rows) // 2000)
        language = language_of(f"{row.title} {row.description}" for row in rows[::step])
        return Shop(rows, looked, values, kinds, fields, language, [price_of(row.price) for row in products])

    def said(self) -> str:
        """What was found, in one line."""
        kinded = sum(map(bool, self.kinds.of_product))
        source = "titles" if self.kinds.from_titles else "categories"
        sorts = Counter(found.demand for found in self.fields.values())
        asked = ", ".join(f"{count} of {sort}" for sort, count in sorted(sorts.items())) or "none"
        return (
            f"{len(self.kinds.products)} kinds of thing (from {source}) for {kinded:,} of {len(self.rows):,} products; "
            f"fields that queries ask for: {asked}; queries in {self.language!r}"
        )

    # --- Which products a pool has, by kind ---------------------------------------------------------------------------
    def members(self, pool: str) -> dict[Kind, list[int]]:
        """The products of each kind that a pool may use; all of them in a small catalogue."""
        if len(self.rows) < SPLIT_FROM:
            return self.kinds.products
        buckets = set(POOL_BUCKETS[pool])
        found = {
            kind: [number for number in numbers if bucket_of(self.rows[number].title) in buckets]
            for kind, numbers in self.kinds.products.items()
        }
        return {kind: numbers for kind, numbers in found.items() if numbers}

    def related(self, kind: Kind, relation: str) -> list[Kind]:
        """The kinds that have this relation to a wanted one."""
        if kind not in self._related:
            grouped: dict[str, list[Kind]] = defaultdict(list)
            for other in self.kinds.products:
                grouped[self.kinds.relation(kind, other)].append(other)
            self._related[kind] = dict(grouped)
        return self._related[kind].get(relation, [])

    def how_named(self, number: int, kind: Kind, relation: str) -> str:
        """How a product's text names the thing; "" where that contradicts the relation: no pair for anybody."""
        product = self.looked[number]
        shown = how_named(product, kind)
        if relation == "same":
            return shown if shown in ("named in the title", "named in the category", "kind named") else ""
        if relation in SHOWN_WORDS and shown not in SHOWN_WORDS[relation]:
            return ""
        if relation == "different":  # a word of the thing anywhere may be another name of it
            return "" if any(text.holds((word,)) for word in kind for text in product.texts) else shown
        others = set(kind[:-1]) if relation == "sibling" else set()
        hidden = bool(others) and all(any(text.holds((word,)) for text in product.texts) for word in others)
        return "" if hidden else shown

    # --- Outcomes -----------------------------------------------------------------------------------------------------
    def finding(self, number: int, kind: Kind, asked: Asked) -> Finding | None:
        """The outcome of a demand for a product; None where field and text disagree, or say too little to judge."""
        key = (number, kind, asked)  # a price is low for one kind of thing, and not for another
        if key not in self._found:
            self._found[key] = self._look(number, kind, asked)
        return self._found[key]

    def _look(self, number: int, kind: Kind, asked: Asked) -> Finding | None:
        demand, product = asked.demand, self.looked[number]
        if demand.name == "price":
            return self._price(number, kind, demand)
        if asked.field is None:
            return look(product, demand)
        steps = self.steps.get((kind, asked.field.name), [])
        return outcome(product, self.values[number], asked.field, demand, steps)

    def _price(self, number: int, kind: Kind, demand: Demand) -> Finding | None:
        price, shown = self.prices[number], f"{self.prices[number] or 0:g}"
        if price is None:
            return Finding("unknown")
        if demand.amount:
            return look(self.looked[number], demand)
        if demand.words == ("low",):
            prices = self.prices_of[kind]
            low, middle = prices[int(LOW * len(prices))], prices[int(MIDDLE * len(prices))]
            word = "low" if price <= low else "middle" if price <= middle else "high"
            return Finding({"low": "met", "middle": "near", "high": "missed"}[word], f"{shown} {word}")
        brand = demand.words[1:]
        if self.looked[number].brand.words == brand:
            return Finding("missed", "itself")
        usual = median(self.brand_prices[kind, brand])
        below = "met" if price < BELOW * usual else "near" if price <= ABOUT * usual else "missed"
        return Finding(below, f"{shown} beside {usual:g}")

    @cached_property
    def steps(self) -> dict[tuple[Kind, str], list[float]]:
        """The numbers that at least two products of a kind have in a field, in order."""
        counts: dict[tuple[Kind, str], Counter] = defaultdict(Counter)
        numbers = [name for name, found in self.fields.items() if found.sort == "number"]
        for kind, values in zip(self.kinds.of_product, self.values):
            for name in numbers if kind else ():
                number = number_of((words_of(values.get(name, "")) or [""])[0])
                if number:
                    counts[kind, name][number] += 1
        return {key: sorted(value for value, often in found.items() if often > 1) for key, found in counts.items()}

    @cached_property
    def prices_of(self) -> dict[Kind, list[float]]:
        """The prices of each kind that has enough of them, in order."""
        found = {
            kind: sorted(self.prices[number] for number in numbers if self.prices[number])
            for kind, numbers in self.kinds.products.items()
        }
        return {kind: prices for kind, prices in found.items() if len(prices) >= LEAST_PRICES}

    @cached_property
    def brand_prices(self) -> dict[tuple[Kind, tuple[str, ...]], list[float]]:
        """The prices of the brands that have at least three of a kind."""
        found: dict[tuple[Kind, tuple[str, ...]], list[float]] = defaultdict(list)
        for kind, product, price in zip(self.kinds.of_product, self.looked, self.prices):
            if kind and price and product.brand.words:
                found[kind, product.brand.words].append(price)
        return {key: prices for key, prices in found.items() if len(prices) > 2}


def bucket_of(text: str) -> int:
    """The bucket (0..15) of a title or query, as in the embedded shop: each belongs to one pool."""
    return zlib.crc32(" ".join(text.split()).casefold().encode()) % 16


def _values(product: Product) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in product.fields:
        if name and value:
            found.setdefault(name, value)
    return found


def _with_asked_first(row: Judgement, values: dict[str, str], fields: dict[str, Field]) -> Judgement:
    """The product with the attributes first that queries ask for, so that a cut prompt still has them."""
    entries = [entry.strip() for entry in row.attributes.split(";") if entry.strip()]
    asked = [" ".join(words_of(entry.partition(":")[0])) in fields for entry in entries]
    ordered = [entry for entry, first in zip(entries, asked) if first] + [
        entry for entry, first in zip(entries, asked) if not first
    ]
    return Judgement(
        "", row.title, row.brand, "; ".join(ordered), row.category, row.description, row.price, item_id=row.item_id
    )
