"""`--data`: a file of judgements, or a pool of the synthetic shop ("synthetic:labelled")."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from taosr1.data.flags import AS_FOUND, ReadFlags
from taosr1.data.judgements import judgement_to_dict, read_judgements, read_parsed
from taosr1.data.queries import say_between_files
from taosr1.data.rows import split_spec
from taosr1.synthetic.shop import EXPLAINED, POOL_SIZES, read_pool
from taosr1.task.judgement import Judgement

T = TypeVar("T")
SYNTHETIC = "synthetic:"
OLD_SPELLING = "world:"  # until version 0.1; commands and stored settings of that time keep working


def load_rows(
    spec: str, read: ReadFlags = AS_FOUND, *, seed: int = 0, split: str = "", limit: int = 0, flag: str = "--data",
    **needs: bool | None,
) -> list[Judgement]:  # fmt: skip
    """The judgements of `--data`: one source, or several separated by commas. `limit` > 0 keeps the first rows.

    A source is a file, a pattern ("part-*.csv"), or a pool: "synthetic:labelled*500" draws one of that size.
    `read.max_bad_rows` applies to each file, and ids are compared inside one file only: the pseudo-labels of a pool may
    stand beside its own grades, and a query_id that means another query in another file is said. `needs` are
    `need_grade`, `need_gold` and `need_cot` of `read_judgements`. `flag` is the option that errors name.

    Raises: as `read_judgements`; ValueError for a pool that does not exist or lacks what is needed.
    """
    if limit < 0:
        raise ValueError(f"{spec}: {limit} rows asked for, expected 0 (all) or more")

    def from_files(part: str) -> list[Judgement]:
        return read_judgements(part, read, split=split, flag=flag, **needs)

    def from_pool(name: str) -> list[Judgement]:
        return _load_pool(name, seed=seed, **needs)

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
        return [(judgement_to_dict(row), row) for row in _load_pool(name, seed=seed, **needs)]

    return _from_sources(spec, from_files, from_pool, split, flag)[: limit or None]


def _from_sources(
    spec: str, from_files: Callable[[str], list[T]], from_pool: Callable[[str], list[T]], split: str, flag: str
) -> list[T]:
    """What the sources of a spec hold, one behind the other. A split chooses among the rows of the files.

    Raises: ValueError for a split of pools alone.
    """
    parts = split_spec(spec)
    if not any(map(is_pool, parts)):
        return from_files(spec)
    if split and all(map(is_pool, parts)):
        raise ValueError(f"{flag} {spec}: the embedded shop has no splits, so none is {split!r}: leave it out")
    return [row for part in parts for row in (from_pool(part.partition(":")[2]) if is_pool(part) else from_files(part))]


def is_pool(source: str) -> bool:
    """Whether a source is a pool of the synthetic shop rather than a file."""
    return source.startswith((SYNTHETIC, OLD_SPELLING))


def _load_pool(
    name: str, *, seed: int, need_grade: bool | None = None, need_gold: bool = False, need_cot: bool = False
) -> list[Judgement]:
    """`load_rows` for a pool of the synthetic shop: "labelled", or "labelled*500" for another size."""
    spec, pools = SYNTHETIC + name, (*POOL_SIZES, EXPLAINED)
    pool, _, size = name.partition("*")
    if pool not in pools or (size and not size.isdigit()):
        expected = f"expected synthetic:NAME or synthetic:NAME*SIZE, NAME one of {', '.join(pools)}"
        raise ValueError(f"{spec}: no such pool of the synthetic shop, {expected}")
    rows = read_pool(pool, int(size) if size else None, seed)
    if not rows:
        raise ValueError(f"{spec}: no rows")
    if (need_grade or need_gold) and rows[0].grade is None:
        hint = "use synthetic:labelled or synthetic:reasoned, or grade them with train/label_pool.py"
        raise ValueError(f"{spec}: its pairs have no grade; {hint}")
    if need_cot and not rows[0].cot:
        hint = "use synthetic:reasoned or synthetic:explained, or write them with train/label_pool.py"
        raise ValueError(f"{spec}: field 'cot' is missing; {hint}")
    return rows
