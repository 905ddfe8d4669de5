"""Shows what a file of judgements would be read as, before anything is trained or scored with it.

    python -m taosr1.data.inspect rows.csv
    python -m taosr1.data.inspect train.csv --other test.csv --model runs/mine
    python -m taosr1.data.inspect wands.tsv --grades wands --columns "product_class=category"

Prints the columns that are read and those that are not, grades, queries, lengths in tokens for a judge, bad rows by
kind, duplicates and contradictions, overlap with another file and between the values of a `split` column, what the
judge sees, and one prompt as text. Bad rows are counted, never a reason to stop.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from taosr1.data.flags import ReadFlags
from taosr1.data.gold import GOLD_GRADE, LABELLED_BY, PRED_GRADE
from taosr1.data.queries import pair_key, plain, query_keys, say_overlap, split_of
from taosr1.data.scales import GradesError
from taosr1.data.sources import load_rows
from taosr1.data.summary import describe
from taosr1.model.io.model_folder import model_folder
from taosr1.model.io.weights import load_pretrained
from taosr1.runtime.bad_rows import shorten
from taosr1.runtime.cli import check, option, parse_config
from taosr1.runtime.messages import counted, visible
from taosr1.runtime.signals import run_main
from taosr1.task.judgement import COLUMNS, Judgement
from taosr1.task.prompt import ITEM_FIELDS, PromptConfig, check_prompt, encode_prompt
from taosr1.task.prompt_flags import AskFlags, PromptFlags, prompt_asked, prompt_problems

STUDENT = "bundled-student"
BUNDLED = {"bundled": "thinker", "bundled-thinker": "thinker", STUDENT: "student"}  # as `--model` of every script
ALL = 10**12  # bad rows that are skipped
SHOWN_NAMES = 20


@dataclass(frozen=True)
class Config(ReadFlags, PromptFlags):
    data: str = option("", "file to look at, several separated by commas, or a pool", positional=True)
    other: str = option("", "another file, whose queries and pairs should not be in this one")
    model: str = option(STUDENT, "the judge whose prompt and tokens are shown: a run folder or Hugging Face folder")
    split: str = option("", "look only at the rows whose 'split' column says this")
    seed: int = option(0, "seed of the embedded shop")

    def __post_init__(self) -> None:
        check([
            (not self.data, "expected a file: python -m taosr1.data.inspect rows.csv"),
            *prompt_problems(self),
        ])  # fmt: skip


class View(NamedTuple):
    """How a judge is asked, without its weights."""

    model: Any
    tokenizer: Any
    prompt: PromptConfig


def load_view(spec: str, asked: AskFlags | None = None) -> View:
    """The tokenizer, prompt and config behind `--model`; of the weights only the headers are read.

    asked: the flags of a prompt, which any run may be looked at with.
    """
    folder = model_folder(Path(__file__).parents[1] / "bundled" / BUNDLED[spec] if spec in BUNDLED else spec)
    model, tokenizer = load_pretrained(folder, device="meta")
    prompt = prompt_asked(spec, None, asked, usual=PromptConfig.load(folder))
    check_prompt(tokenizer, prompt, model.config.max_position_embeddings)
    return View(model, tokenizer, prompt)


def readable_rows(spec: str, config: Config) -> list[Judgement]:
    """Every row that can be read; what is wrong with the others, or with the column of grades, is printed."""
    read = replace(config, max_bad_rows=ALL)
    try:
        return load_rows(spec, read, seed=config.seed, split=config.split)
    except GradesError as problem:
        print(f"GRADES CANNOT BE READ: {problem}", file=sys.stderr)
        return load_rows(spec, read, seed=config.seed, split=config.split, need_grade=False)


def columns_of(rows: Sequence[Judgement]) -> list[str]:
    """Which columns are read and how many rows have something in them, and the names of the others."""
    filled = {name: sum(getattr(row, name) not in ("", None) for row in rows) for name in COLUMNS}
    read = [f"{name} {100 * count / len(rows):.0f} %" for name, count in filled.items() if count]
    others = Counter(name for row in rows for name in row.extra)
    lines = ["columns read, and how many rows have them: " + ", ".join(read)]
    if others:
        names = [shorten(name) for name in list(others)[:SHOWN_NAMES]]
        lines.append(f"columns kept, but not read: {', '.join(names)}" + ", ..." * (len(others) > SHOWN_NAMES))
    marks = {PRED_GRADE: "predictions of a judge", LABELLED_BY: "pseudo-labels", GOLD_GRADE: "gold grades beside them"}
    lines += [f"column {name!r}: {what} (taosr1/data/gold.py)" for name, what in marks.items() if name in others]
    return lines


def queries_of(rows: Sequence[Judgement]) -> list[str]:
    """Rows a query, repeated rows, kinds of query, and how many queries have one grade only."""
    sizes, grades = Counter(query_keys(rows)), defaultdict(set)
    for key, row in zip(query_keys(rows), rows):
        grades[key].add(row.grade)
    ordered = sorted(sizes.values())
    lines = [f"rows a query: {ordered[len(ordered) // 2]} (median), {ordered[-1]} the most"]
    texts = Counter((plain(row.query), *(plain(getattr(row, name)) for name in ITEM_FIELDS), row.grade) for row in rows)
    repeats = sum(texts.values()) - len(texts)
    if repeats:
        lines.append(f"{counted(repeats, 'row')} with the texts and the grade of an earlier row")
    kinds = Counter(row.query_kind or "(none)" for row in rows)
    shown = [f"{shorten(kind)} {count}" for kind, count in kinds.most_common(SHOWN_NAMES)]
    lines.append(f"query kinds: {', '.join(shown)}" if set(kinds) != {"(none)"} else "query kinds: none given")
    if any(row.grade for row in rows):
        same = sum(len(found) == 1 for found in grades.values())
        lines.append(f"queries whose rows all have one grade: {same} of {len(sizes)} (they have no ranking to measure)")
    return lines


def splits_of(rows: Sequence[Judgement]) -> list[str]:
    """The values of the `split` column, and which of them share pairs or queries."""
    parts: dict[str, list[Judgement]] = defaultdict(list)
    for row in rows:
        if split := split_of(row):
            parts[split].append(row)
    lines = [f"split: {', '.join(f'{shorten(name)} {len(part)}' for name, part in parts.items())}"] if parts else []
    names = list(parts)[:SHOWN_NAMES]
    pairs = {name: set(map(pair_key, parts[name])) for name in names}
    queries = {name: {plain(row.query) for row in parts[name]} for name in names}
    for number, name in enumerate(names):
        for other in names[number + 1 :]:
            shared = len(pairs[name] & pairs[other]), len(queries[name] & queries[other])
            if any(shared):
                found = f"{counted(shared[0], 'pair')} and {counted(shared[1], 'query')}"
                lines.append(f"warning: splits {name!r} and {other!r} share {found}: a measurement would be too good")
    return lines


def example_of(row: Judgement, view: View) -> str:
    """One row's prompt as the judge gets it; characters that a terminal would obey are escaped."""
    text = view.tokenizer.decode(encode_prompt(view.tokenizer, row, view.prompt))
    return "\n".join(map(visible, text.split("\n")))


def main(argv: list[str] | None = None) -> list[Judgement]:
    """Returns the rows that can be read."""
    config = parse_config(Config, __doc__, argv)
    view = load_view(config.model, config)
    with contextlib.redirect_stderr(sys.stdout):  # what readers say of bad rows and duplicates is the point here
        rows = readable_rows(config.data, config)
        positions = view.model.config.max_position_embeddings
        print("\n".join(describe(rows, config.data, view.tokenizer, view.prompt, positions)))
        print("\n".join([*columns_of(rows), *queries_of(rows), *splits_of(rows)]))
        if config.other:
            other = readable_rows(config.other, config)
            again, shared = say_overlap(rows, other, config.other, "a measurement would be too good", config.data)
            if not (again or shared):
                print(f"{config.other}: {counted(len(other), 'row')}, no pair and no query of {config.data}")
    shown = f"of the first row, for {config.model} (fields {', '.join(view.prompt.fields)})"
    print(f"\nthe prompt {shown}:\n{example_of(rows[0], view)}")
    return rows


if __name__ == "__main__":
    run_main(main)
