"""`--data`: a file of judgements, or a pool of the synthetic shop ("synthetic:labelled")."""

from __future__ import annotations

from pathlib import Path

from taosr1.data.flags import AS_FOUND, ReadFlags
from taosr1.data.judgements import read_judgements
from taosr1.data.queries import say_shared_ids
from taosr1.synthetic.shop import EXPLAINED, POOL_SIZES, read_pool
from taosr1.task.judgement import Judgement

SYNTHETIC = "synthetic:"
OLD_SPELLING = "world:"  # until version 0.1; commands and stored settings of that time keep working


def load_rows(
    spec: str, read: ReadFlags = AS_FOUND, *, seed: int = 0, split: str = "", limit: int = 0, **needs: bool | None
) -> list[Judgement]:
    """The judgements of `--data`: one source, or several separated by commas. `limit` > 0 keeps the first rows.

    "synthetic:labelled*500" draws a pool of that size. `read.max_bad_rows` applies to each source, and ids are compared
    inside one source only: the pseudo-labels of a pool may stand beside its own grades. `needs` are `need_grade`,
    `need_gold` and `need_cot` of `read_judgements`.

    Raises: as `read_judgements`; ValueError for a pool that does not exist or lacks what is needed.
    """
    if limit < 0:
        raise ValueError(f"{spec}: {limit} rows asked for, expected 0 (all) or more")
    if "," in spec and not Path(spec).exists():  # a file may have a comma in its name
        settings = {"seed": seed, "split": split, **needs}
        sources = [(name.strip(), load_rows(name.strip(), read, **settings)) for name in spec.split(",")]
        say_shared_ids(sources)
        rows = [row for _, found in sources for row in found]
    elif spec.startswith((SYNTHETIC, OLD_SPELLING)):
        rows = _load_pool(spec.partition(":")[2], seed=seed, **needs)
    else:
        rows = read_judgements(spec, read, split=split, **needs)
    return rows[:limit] if limit else rows


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
