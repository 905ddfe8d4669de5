"""Which rows a training learns from, which pick its best checkpoint, and which measure it at the end.

Data of one's own are never judged on the embedded shop: without `--dev`, about a fifth of the queries is set aside.
"""

from __future__ import annotations

import random
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

from taosr1.data.gold import LABELLED_BY
from taosr1.data.queries import plain, say_overlap
from taosr1.data.sources import is_synthetic, load_rows, sources_of
from taosr1.data.summary import counted, grade_shares
from taosr1.task.judgement import Judgement

AUTO = "auto"  # of --dev and --test
AUTO_DEV = "auto: synthetic:dev for the embedded shop's own data, else a fifth of the queries of --data"
DEV_FRAC = 0.2
T = TypeVar("T")


class Rows(NamedTuple):
    """Graded rows by what they are for."""

    data: list[Judgement]
    dev: list[Judgement]
    test: list[Judgement]


def resolved(config: T) -> T:
    """The config with what "auto" means where --data is the embedded shop's: that is what a run stores.

    config: a dataclass with `data`, `dev` and perhaps `test`.
    """
    changes = {}
    if all(map(is_synthetic, sources_of(config.data))):
        changes = {name: f"synthetic:{name}" for name in ("dev", "test") if getattr(config, name, "") == AUTO}
    elif getattr(config, "test", "") == AUTO:
        changes = {"test": ""}
    return replace(config, **changes) if changes else config


def load_splits(config: Any, *, need_cot: bool = False) -> Rows:
    """The rows of --data, --dev and --test of a training script; warns where they overlap.

    config: as `resolved` returns it, with the reading flags and `data`, `dev`, `split`, `dev_split`, `dev_rows`,
    `seed`, and `test` where the script has one.
    Raises: as `load_rows`; ValueError where --dev is missing and cannot be made of --data.
    """
    settings = {"seed": config.seed, "need_cot": need_cot}
    data = load_rows(config.data, config, split=config.split, need_grade=True, **settings)
    _say_other_splits(data, config)
    if config.dev == AUTO and not config.dev_split:
        data, dev = set_aside(data, config)
        dev = dev[: config.dev_rows or None]
    else:
        spec = config.data if config.dev == AUTO else config.dev
        dev = load_dev(spec, config)
    test: list[Judgement] = []
    if getattr(config, "test", ""):
        test = load_rows(config.test, config, seed=config.seed, split=config.dev_split, need_gold=True)
        say_overlap(data, test, "--test", "the comparison at the end is on what was trained on")
    say_overlap(data, dev, "--dev", "the best checkpoint is picked by what it was trained on")
    return Rows(data, dev, test)


def load_dev(spec: str, config: Any) -> list[Judgement]:
    """The first `dev_rows` rows of --dev, all of them with a gold grade."""
    limits = {"split": config.dev_split, "limit": config.dev_rows}
    return load_rows(spec, config, seed=config.seed, need_gold=True, **limits)


def _say_other_splits(rows: Sequence[Judgement], config: Any) -> None:
    """Warn where --data is read whole although its `split` column says that some of it is for measuring."""
    found = Counter(str(row.extra["split"]) for row in rows if row.extra.get("split") not in (None, ""))
    if not config.split and len(found) > 1:
        names = ", ".join(f"{name} ({count})" for name, count in sorted(found.items())[:8])
        hint = "choose with --split and --dev-split"
        print(f"warning: --data has a column 'split' with {names}, and all rows are trained on: {hint}", file=sys.stderr)


def set_aside(rows: Sequence[Judgement], config: Any) -> tuple[list[Judgement], list[Judgement]]:
    """`split_by_query` of the rows that are one's own and graded by people; the others all stay in training.

    Raises: ValueError where no query can be set aside.
    """
    shop = {id(row) for row in rows if row.extra.get(SHOP)}
    usable = [row for row in rows if not row.extra.get(LABELLED_BY) and id(row) not in shop]
    kept, dev = split_by_query(usable, config.seed)
    if not dev or not (kept or len(usable) < len(rows)):
        found = counted(len({plain(row.query) for row in usable}), "query")
        why = f"{found} with grades of people" if len(usable) < len(rows) else f"one query in {counted(len(rows), 'row')}"
        splits = {str(row.extra.get("split")) for row in rows if row.extra.get("split")}
        other = f", such as --dev {config.data} --dev-split NAME" if config.split and splits else ""
        raise ValueError(f"--dev is missing, and --data cannot be divided by query ({why}): give --dev FILE{other}")
    held = {id(row) for row in dev}
    text = f"{counted(len(dev), 'row')} of {counted(len({plain(row.query) for row in dev}), 'query')}"
    print(
        f"no --dev: {text} of --data are set aside for it ({grade_shares(dev)}), by query and --seed {config.seed}; "
        "they pick the best checkpoint and are not trained on",
        file=sys.stderr,
    )
    return [row for row in rows if id(row) not in held], dev


def split_by_query(
    rows: Sequence[Judgement], seed: int, frac: float = DEV_FRAC
) -> tuple[list[Judgement], list[Judgement]]:
    """Rows in two parts without a query in both; the second has about `frac` of the rows, each part in the old order.

    Queries are drawn in an order of the seed and their text alone, so that neither the order of the rows nor other rows
    change it. First one query for every grade that at least two queries have, the rarest grade first; then
    further ones while they fit. Of a single query nothing is set aside.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        groups[plain(row.query)].append(number)
    order = sorted(groups, key=lambda query: random.Random(f"{seed}/{query}").random())
    grades = {query: {rows[number].grade for number in numbers} for query, numbers in groups.items()}
    spread = Counter(grade for found in grades.values() for grade in found)
    wanted, held, count = frac * len(rows), set(), 0

    def fits(query: str) -> bool:
        """Whether the query leaves training a query of each of its grades (where there is more than one query)."""
        left = Counter(grade for other in order if other not in held for grade in grades[other])
        return len(held) + 1 < len(order) and all(left[grade] > 1 or spread[grade] < 2 for grade in grades[query])

    for grade in sorted(spread, key=lambda grade: (spread[grade], grade)):
        if spread[grade] > 1 and not any(grade in grades[query] for query in held):
            small_first = sorted((query for query in order if grade in grades[query]), key=lambda q: len(groups[q]) > wanted)
            query = next(filter(fits, small_first), None)
            if query is not None:
                held.add(query)
    return _fill(rows, groups, order, held, wanted, fits)
