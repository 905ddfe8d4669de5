"""`--data`: a file of judgements, or a pool of the embedded shop ("synthetic:labelled")."""

from __future__ import annotations

from pathlib import Path

from taosr1.data.judgements import Judgement, check_cot, read_judgements
from taosr1.synthetic.shop import EXPLAINED, POOL_SIZES, read_pool

SYNTHETIC = "synthetic:"
OLD_SPELLING = "world:"  # until version 0.1; commands and stored settings of that time keep working


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
    "synthetic:labelled*500" draws a pool of that size. Each source has its own `max_bad_rows`, and ids are compared inside one source only: the
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
    if spec.startswith(OLD_SPELLING):
        spec = SYNTHETIC + spec.removeprefix(OLD_SPELLING)
    if not spec.startswith(SYNTHETIC):
        rows = read_judgements(spec, max_bad_rows=max_bad_rows, need_grade=need_grade, need_cot=need_cot, split=split or None)
        return rows[:limit] if limit else rows
    pool, _, size = spec[len(SYNTHETIC) :].partition("*")
    pools = (*POOL_SIZES, EXPLAINED)
    if pool not in pools or (size and not size.isdigit()):
        raise ValueError(f"{spec}: no such pool of the embedded shop, expected synthetic:NAME or synthetic:NAME*SIZE, NAME one of {', '.join(pools)}")
    rows = read_pool(pool, int(size) if size else None, seed)
    rows = rows[:limit] if limit else rows
    if not rows:
        raise ValueError(f"{spec}: no rows")
    if need_grade and rows[0].grade is None:
        raise ValueError(f"{spec}: its pairs have no grade; use synthetic:labelled or synthetic:reasoned, or grade them with train/label_pool.py")
    if need_cot:
        try:
            check_cot(rows[0].cot)
        except ValueError as error:
            raise ValueError(f"{spec}: {error}; use synthetic:reasoned or synthetic:explained, or write them with train/label_pool.py") from error
    return rows
