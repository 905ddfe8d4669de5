"""Which rows a training learns from, which pick its best checkpoint, and which measure it at the end.

Data of one's own are never judged on the embedded shop: without `--dev`, about a fifth of the queries is set aside.
"""

from __future__ import annotations

import glob
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from taosr1.data.gold import LABELLED_BY
from taosr1.data.queries import plain, say_overlap, split_of
from taosr1.data.rows import split_spec
from taosr1.data.sources import is_made, load_rows, same_world
from taosr1.data.summary import grade_shares
from taosr1.runtime.files import read_json
from taosr1.runtime.messages import counted
from taosr1.task.judgement import Judgement

AUTO = "auto"  # of --dev and --test
AUTO_HELP = "auto: the dev pool where --data is pools of one shop, else a fifth of the queries of --data"
DEV_FRAC = 0.2
T = TypeVar("T")


class Rows(NamedTuple):
    """Graded rows by what they are for."""

    data: list[Judgement]
    dev: list[Judgement]
    test: list[Judgement]


def resolved(config: T) -> T:
    """The config with what "auto" means where --data is pools (the embedded shop's, a catalogue's): what a run stores.

    config: a dataclass with `data`, `dev` and perhaps `test`.
    """
    if config.dev == "":
        config = replace(config, dev=AUTO)
    changes = {}
    if same_world(config.data, "dev"):
        changes = {name: same_world(config.data, name) for name in ("dev", "test") if getattr(config, name, "") == AUTO}
    elif getattr(config, "test", "") == AUTO:
        changes = {"test": ""}
    return replace(config, **changes) if changes else config


def resolved_of_pairs(config: T) -> T:
    """`resolved` for preference pairs, which hold no graded rows.

    Those mined from pools (FILE.counts.json of train/mine_pairs.py says so) take the dev pool of the same shop. Others
    train without evaluation, with a note: no rows can be set aside, and the embedded shop must not judge them.
    """
    if config.dev not in ("", AUTO):
        return config
    counts = Path(f"{config.data}.counts.json")
    mined_from = str(read_json(counts).get("config", {}).get("data", "")) if counts.is_file() else ""
    if not (mined_from and same_world(mined_from, "dev")):
        hint = "--dev FILE would pick the best one: graded rows that the pairs were not mined from"
        print(f"no --dev: pairs hold no graded rows, so the last checkpoint is the result; {hint}", file=sys.stderr)
        return replace(config, dev="")
    return replace(config, dev=same_world(mined_from, "dev"))


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
    else:
        dev = load_dev(config.data if config.dev == AUTO else config.dev, config)
    test: list[Judgement] = []
    if getattr(config, "test", ""):
        test = load_rows(config.test, config, seed=config.seed, split=config.dev_split, need_gold=True, flag="--test")
        say_overlap(data, test, "--test", "the comparison at the end is on what was trained on")
        say_overlap(dev, test, "--test", "the comparison is on what picked the best checkpoint", "--dev")
    say_overlap(data, dev, "--dev", "the best checkpoint is picked by what it was trained on")
    return Rows(data, dev, test)


def load_dev(spec: str, config: Any) -> list[Judgement]:
    """The first `dev_rows` rows of --dev, all of them with a gold grade; none where there is no --dev."""
    if not spec:
        return []
    limits = {"split": config.dev_split, "limit": config.dev_rows}
    flag = "--data" if spec == config.data and config.dev == AUTO else "--dev"
    return load_rows(spec, config, seed=config.seed, need_gold=True, flag=flag, **limits)


def say_trained_on(model: str, spec: str, split: str) -> None:
    """Warn where the rows of a run's own --data, or of a run that it started from, are to be measured.

    model: as `--model`; only a run folder says what it was trained on.
    """
    measured, seen = _files(spec), set()
    while (Path(model) / "config.json").is_file() and (Path(model) / "checkpoints").is_dir() and model not in seen:
        seen.add(model)
        stored = read_json(Path(model) / "config.json")
        trained, its_split = str(stored.get("data", "")), str(stored.get("split", ""))
        if measured & _files(trained) and (not split or not its_split or plain(split) == plain(its_split)):
            hint = "measure on rows that it has not seen"
            print(f"warning: --model {model} was trained on rows of --data {spec}: {hint}", file=sys.stderr)
        model = str(stored.get("model", ""))


def _files(spec: str) -> set[Path]:
    parts = (part for part in split_spec(spec) if part and not is_made(part))
    return {Path(file).resolve() for part in parts for file in glob.glob(part, recursive=True) or [part]}


def _say_other_splits(rows: Sequence[Judgement], config: Any) -> None:
    """Warn where --data is read whole although its `split` column says that some of it is for measuring."""
    found = Counter(filter(None, map(split_of, rows)))
    if not config.split and len(found) > 1:
        names = ", ".join(f"{name} ({count})" for name, count in sorted(found.items())[:8])
        hint = "choose with --split and --dev-split"
        print(
            f"warning: --data has a column 'split' with {names}, and all rows are trained on: {hint}", file=sys.stderr
        )


def set_aside(rows: Sequence[Judgement], config: Any) -> tuple[list[Judgement], list[Judgement]]:
    """`split_by_query` of the rows that are one's own and graded by people; the others all stay in training.

    Raises: ValueError where no query can be set aside.
    """
    usable = [row for row in rows if row.source and not row.extra.get(LABELLED_BY)]
    most = config.dev_rows / max(len(usable), 1) if config.dev_rows else 1.0
    kept, dev = split_by_query(usable, config.seed, min(DEV_FRAC, most))
    if not dev or not (kept or len(usable) < len(rows)):
        found = counted(len({plain(row.query) for row in usable}), "query")
        why = (
            f"{found} with grades of people" if len(usable) < len(rows) else f"one query in {counted(len(rows), 'row')}"
        )
        other = f", such as --dev {config.data} --dev-split NAME" if config.split and any(map(split_of, rows)) else ""
        raise ValueError(f"--dev is missing, and --data cannot be divided by query ({why}): give --dev FILE{other}")
    held, queries = {id(row) for row in dev}, {plain(row.query) for row in dev}
    print(
        f"no --dev: {counted(len(dev), 'row')} of {counted(len(queries), 'query')} of --data are set aside for it "
        f"({grade_shares(dev)}), by query and --seed {config.seed}; they pick the best checkpoint, nothing is learned "
        "from them",
        file=sys.stderr,
    )
    rest = [row for row in rows if id(row) not in held]
    data = [row for row in rest if plain(row.query) not in queries]
    if len(data) < len(rest):
        left_out = f"{counted(len(rest) - len(data), 'row')} of the same queries"
        print(f"{left_out} (pseudo-labels, or of the embedded shop) left out of training", file=sys.stderr)
    return data, dev


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
    order = sorted(groups, key=lambda query: blake2b(f"{seed}/{query}".encode(), digest_size=8).digest())
    grades = {query: {rows[number].grade for number in numbers} for query, numbers in groups.items()}
    left = Counter(grade for found in grades.values() for grade in found)  # queries of each grade that stay in training
    wanted, held, count = frac * len(rows), set(), 0

    def take(queries: Iterable[str], most: float) -> bool:
        """Set the first query aside that leaves training each of its grades and the second part at most `most` rows."""
        nonlocal count
        for query in queries:
            if query not in held and count + len(groups[query]) <= most and all(left[g] > 1 for g in grades[query]):
                held.add(query)
                count += len(groups[query])
                left.subtract(grades[query])
                return True
        return False

    for grade in sorted(left, key=lambda grade: (left[grade], grade)):
        if not any(grade in grades[query] for query in held):
            take((query for query in order if grade in grades[query]), 2 * wanted)
    for query in order:
        if count < wanted:
            take([query], 1.5 * wanted)
    if not held and len(order) > 1:  # every query has a grade of its own, or is large: the smallest
        held.add(min(order, key=lambda query: len(groups[query])))
    parts: tuple[list[Judgement], list[Judgement]] = ([], [])
    for row in rows:
        parts[plain(row.query) in held].append(row)
    return parts
