"""`--data`: a file of judgements, or a pool of the embedded world ("world:labelled")."""

from __future__ import annotations

from pathlib import Path

from taosr1.task.judgements import Judgement, check_cot, read_judgements
from taosr1.task.world import EXPLAINED, POOL_SIZES, read_pool

WORLD = "world:"


def load_rows(
    spec: str,
    *,
    seed: int = 0,
    split: str = "",
    limit: int = 0,
    max_bad_rows: int = 0,
    need_grade: bool = False,
    need_cot: bool = False,
) -> list[Judgement]:
    """The judgements behind `--data`: one source, or several separated by commas. `limit` > 0 keeps the first rows;
    "world:labelled*500" draws a pool of that size. Each source has its own `max_bad_rows`, and ids are compared inside one source only: the
    pseudo-labels of a pool may stand beside its own grades.

    Raises: FileNotFoundError, and ValueError naming file, line and field, as `read_judgements`; ValueError where a pool
    of the world lacks what is needed.
    """
    if limit < 0:
        raise ValueError(f"{spec}: {limit} rows asked for, expected 0 (all) or more")
    if "," in spec and not Path(spec).exists():  # a file may have a comma in its name
        parts = [part.strip() for part in spec.split(",")]
        settings = {"seed": seed, "split": split, "max_bad_rows": max_bad_rows, "need_grade": need_grade, "need_cot": need_cot}
        rows = [row for part in parts for row in load_rows(part, **settings)]
        return rows[:limit] if limit else rows
    if not spec.startswith(WORLD):
        rows = read_judgements(spec, max_bad_rows=max_bad_rows, need_grade=need_grade, need_cot=need_cot, split=split or None)
        return rows[:limit] if limit else rows
    pool, _, size = spec[len(WORLD) :].partition("*")
    pools = (*POOL_SIZES, EXPLAINED)
    if pool not in pools or (size and not size.isdigit()):
        raise ValueError(f"{spec}: no such pool of the embedded world, expected world:NAME or world:NAME*SIZE, NAME one of {', '.join(pools)}")
    rows = read_pool(pool, int(size) if size else None, seed)
    rows = rows[:limit] if limit else rows
    if not rows:
        raise ValueError(f"{spec}: no rows")
    if need_grade and rows[0].grade is None:
        raise ValueError(f"{spec}: its pairs have no grade; use world:labelled or world:reasoned, or grade them with train/label_pool.py")
    if need_cot:
        try:
            check_cot(rows[0].cot)
        except ValueError as error:
            raise ValueError(f"{spec}: {error}; use world:reasoned or world:explained, or write them with train/label_pool.py") from error
    return rows
