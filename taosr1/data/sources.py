"""`--data`: a file of judgements, or a pool: of the synthetic shop ("synthetic:labelled") or of one's own catalogue."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from taosr1.data.catalogue import read_catalogue_pool
from taosr1.data.flags import AS_FOUND, ReadFlags
from taosr1.data.judgements import judgement_to_dict, read_judgements, read_parsed
from taosr1.data.queries import say_between_files
from taosr1.data.rows import split_spec
from taosr1.data.varied import VARIED, with_variants
from taosr1.synthetic.abilities.blocks import ABILITY_POOLS, read_abilities
from taosr1.synthetic.shop import EXPLAINED, POOL_SIZES, read_pool
from taosr1.task.judgement import Judgement

T = TypeVar("T")
SYNTHETIC = "synthetic:"
CATALOGUE = "catalogue:"  # a world made from a file of products: "catalogue:products.jsonl:labelled"
OLD_SPELLING = "world:"  # until version 0.1; commands and stored settings of that time keep working
_SHOP = (SYNTHETIC[:-1], OLD_SPELLING[:-1])


def load_rows(
    spec: str, read: ReadFlags = AS_FOUND, *, seed: int = 0, split: str = "", limit: int = 0, flag: str = "--data",
    **needs: bool | None,
) -> list[Judgement]:  # fmt: skip
    """The judgements of `--data`: one source, or several separated by commas. `limit` > 0 keeps the first rows.

    A source is a file, a pattern ("part-*.csv"), or a pool: "synthetic:labelled*500" draws one of that size, and
    "catalogue:products.jsonl:labelled*500" does so in a world that is made from this file of products.
    "synthetic:ability-negation" is a test set of one ability, "synthetic:abilities" all of them.
    "varied:rows.jsonl" is a file with variants of its rows (`taosr1/data/varied.py`).
    `read.max_bad_rows` applies to each file, and ids are compared inside one file only: the pseudo-labels of a pool may
    stand beside its own grades, and a query_id that means another query in another file is said. `needs` are
    `need_grade`, `need_gold` and `need_cot` of `read_judgements`. `flag` is the option that errors name.

    Raises: as `read_judgements`; ValueError for a pool that does not exist or lacks what is needed.
    """
    if limit < 0:
        raise ValueError(f"{spec}: {limit} rows asked for, expected 0 (all) or more")

    def from_files(part: str) -> list[Judgement]:
        if part.startswith(VARIED):
            return _load_varied(part, read, seed=seed, split=split, flag=flag, **needs)
        return read_judgements(part, read, split=split, flag=flag, **needs)

    def from_pool(name: str) -> list[Judgement]:
        return _load_pool(name, read, seed=seed, **needs)

    rows = _from_sources(spec, from_files, from_pool, split, flag)
    say_between_files(rows)
    return rows[:limit] if limit else rows


def load_pairs(
    spec: str, read: ReadFlags = AS_FOUND, *, seed: int = 0, split: str = "", limit: int = 0, flag: str = "--data",
    **needs: bool | None,
) -> list[tuple[dict, Judgement]]:  # fmt: skip
    """`load_rows` with every row twice: as it is in its file, under its own column names, and as a judgement."""

    def from_files(part: str) -> list[tuple[dict, Judgement]]:
        limits = {"limit": limit, "split": split, "flag": flag}
        return [(row, judgement) for judgement, row in read_parsed(part, lambda raw, _: raw, read, **limits, **needs)]

    def from_pool(name: str) -> list[tuple[dict, Judgement]]:
        return [(judgement_to_dict(row), row) for row in _load_pool(name, read, seed=seed, **needs)]

    return _from_sources(spec, from_files, from_pool, split, flag)[: limit or None]


def _from_sources(
    spec: str, from_files: Callable[[str], list[T]], from_pool: Callable[[str], list[T]], split: str, flag: str
) -> list[T]:
    """What the sources of a spec hold, one behind the other. A split chooses among the rows of the files.

    Raises: ValueError for a split of pools alone.
    """
    parts = split_spec(spec)
    if not any(map(is_made, parts)) and not any(part.startswith(VARIED) for part in parts):
        return from_files(spec)
    if split and all(map(is_made, parts)):
        raise ValueError(f"{flag} {spec}: pools have no splits, so none is {split!r}: leave it out")
    return [row for part in parts for row in (from_pool(part) if is_made(part) else from_files(part))]


def is_pool(source: str) -> bool:
    """Whether a source is a pool of the synthetic shop rather than a file."""
    return source.startswith((SYNTHETIC, OLD_SPELLING))


def is_made(source: str) -> bool:
    """Whether a source is a pool, of the synthetic shop or of a catalogue, rather than a file of judgements."""
    return is_pool(source) or source.startswith(CATALOGUE)


def same_world(spec: str, pool: str) -> str:
    """The source of another pool of the world that all sources of a spec are pools of; "" where some are files."""
    parts = split_spec(spec)
    if not all(map(is_made, parts)):
        return ""
    own = next((part for part in parts if part.startswith(CATALOGUE)), "")
    return f"{own.rpartition(':')[0]}:{pool}" if own else SYNTHETIC + pool


def _load_varied(source: str, read: ReadFlags, *, seed: int, need_gold: bool = False, **needs) -> list[Judgement]:
    """`load_rows` for "varied:FILE". Raises: ValueError where gold is needed: the grades of variants are none."""
    if need_gold:
        raise ValueError(f"{source}: variants are graded by a rule, which is no gold grade: measure on the file itself")
    return with_variants(read_judgements(source.removeprefix(VARIED), read, **needs), seed)


def _load_pool(
    source: str, read: ReadFlags, *, seed: int, need_grade: bool | None = None, need_gold: bool = False,
    need_cot: bool = False,
) -> list[Judgement]:  # fmt: skip
    """`load_rows` for a pool: "synthetic:labelled", or "synthetic:labelled*500" for another size."""
    world, _, name = source.rpartition(":")
    pool, _, size = name.partition("*")
    count = int(size) if size.isdigit() else None
    if source.startswith(CATALOGUE) and world != CATALOGUE[:-1] and (count is not None or not size):
        rows, spec = read_catalogue_pool(world.removeprefix(CATALOGUE), pool, count, seed, read), source
    elif source.startswith(CATALOGUE):
        expected = "expected catalogue:FILE:NAME or catalogue:FILE:NAME*SIZE, such as catalogue:products.csv:labelled"
        raise ValueError(f"{source}: names no file and pool, {expected}")
    else:
        spec = SYNTHETIC + source.partition(":")[2]
        pools, tests = (*POOL_SIZES, EXPLAINED), ABILITY_POOLS
        if pool not in pools + tests or (size and count is None) or world not in _SHOP:
            expected = f"expected synthetic:NAME or synthetic:NAME*SIZE, NAME one of {', '.join(pools + tests)}"
            raise ValueError(f"{spec}: no such pool of the synthetic shop, {expected}")
        rows = read_abilities(pool, count, seed) if pool in tests else read_pool(pool, count, seed)
    world = spec.rpartition(":")[0]
    if not rows:
        raise ValueError(f"{spec}: no rows")
    if (need_grade or need_gold) and rows[0].grade is None:
        hint = f"use {world}:labelled or {world}:reasoned, or grade them with train/label_pool.py"
        raise ValueError(f"{spec}: its pairs have no grade; {hint}")
    if need_cot and not rows[0].cot:
        hint = f"use {world}:reasoned or {world}:explained, or write them with train/label_pool.py"
        raise ValueError(f"{spec}: field 'cot' is missing; {hint}")
    return rows
