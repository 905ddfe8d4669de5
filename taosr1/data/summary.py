"""What is in some rows, in a few lines: grades, queries, lengths in tokens, cut texts, columns that a judge sees.

Every training, scoring and evaluation prints it before it begins; `python -m taosr1.data.inspect FILE` prints more.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from taosr1.data.queries import plain
from taosr1.runtime.bad_rows import shorten
from taosr1.runtime.distributed import this_rank
from taosr1.runtime.messages import counted, visible
from taosr1.task.grades import GRADES, grade_name
from taosr1.task.judgement import PRODUCT_TEXT, Judgement
from taosr1.task.prompt import ITEM_FIELDS, PromptConfig, encode_prompt, prompt_room

MEASURED_ROWS = 1000  # rows that are tokenised for the lengths, evenly spread


def say_data(rows: Sequence[Judgement], judge: Any, name: str = "--data") -> None:
    """Print the summary of rows for a judge (anything with a `model`, a `tokenizer` and a `prompt`) to stderr, once.

    name: the flag or file that the rows come from.
    """
    if this_rank().is_rank_zero:
        positions = judge.model.config.max_position_embeddings
        print("\n".join(describe(rows, name, judge.tokenizer, judge.prompt, positions)), file=sys.stderr)


def describe(rows: Sequence[Judgement], name: str, tokenizer: Any, prompt: PromptConfig, positions: int) -> list[str]:
    """The lines of `say_data`."""
    if not rows:
        return [f"{name}: no rows"]
    indent = "  "
    return [
        f"{name}: {counted(len(rows), 'row')} of {counted(len({plain(row.query) for row in rows}), 'query')}; "
        + grade_shares(rows),
        *(indent + example for example in filter(None, [grade_examples(rows)])),
        indent + prompt_lengths(rows, tokenizer, prompt, positions),
        indent + seen_columns(rows, prompt),
    ]


def grade_shares(rows: Sequence[Judgement]) -> str:
    """ "grades 4-Excellent 50.0 %, ..., no grade 2.0 %"."""
    counts = Counter(row.grade for row in rows)
    if set(counts) == {None}:
        return "no grades"
    shares = [f"{grade_name(grade)} {100 * counts[grade] / len(rows):.1f} %" for grade in GRADES[::-1]]
    shares += [f"no grade {100 * counts[None] / len(rows):.1f} %"] if counts[None] else []
    return "grades " + ", ".join(shares)


def grade_examples(rows: Sequence[Judgement]) -> str:
    """A row of the highest and one of the lowest grade, which shows a scale that was read the wrong way round.

    "" where there are no two grades. The texts are untrusted: what a terminal would obey is escaped.
    """
    graded = sorted({row.grade for row in rows if row.grade}, reverse=True)
    examples = []
    for grade in (graded[0], graded[-1]) if len(graded) > 1 else ():
        row = next(row for row in rows if row.grade == grade)
        product = row.title or next(filter(None, (getattr(row, name) for name in PRODUCT_TEXT)), "")
        examples.append(f"{grade_name(grade)}, such as: {on_one_line(row.query)} | {on_one_line(product)}")
    return "; ".join(examples)


def on_one_line(text: str) -> str:
    """The beginning of a text, with the characters escaped that are not shown as they are."""
    return visible(shorten(" ".join(text.split())))


def prompt_lengths(rows: Sequence[Judgement], tokenizer: Any, prompt: PromptConfig, positions: int) -> str:
    """Median and longest prompt of at most `MEASURED_ROWS` rows, and how many rows of all have a text that is cut."""
    step = max(1, len(rows) // MEASURED_ROWS)
    measured = rows[::step][:MEASURED_ROWS]
    lengths = np.array([len(encode_prompt(tokenizer, row, prompt)) for row in measured])
    names = ("query", *(name for name in prompt.fields if name in ITEM_FIELDS))
    cut = sum(any(len(getattr(row, name).strip()) > prompt.max_chars for name in names) for row in rows)
    room = prompt_room(positions)
    shortened = int((lengths > room).sum())
    looked_at = "" if step == 1 else f" of {len(measured):,} looked at"
    median, longest = int(np.median(lengths)), min(int(lengths.max()), room)
    text = f"prompts of {median} tokens (median), {longest} the longest{looked_at}; "
    text += f"{counted(cut, 'row')} with a text cut to {prompt.max_chars} characters" if cut else "no text is cut"
    if prompt.max_prompt_tok:
        whole = replace(prompt, max_prompt_tok=0)
        over = sum(len(encode_prompt(tokenizer, row, whole)) > prompt.max_prompt_tok for row in measured)
        text += f", {over:,}{looked_at} are cut to the budget of {prompt.max_prompt_tok} tokens"
    if shortened:
        text += f", {shortened:,}{looked_at} are shortened to fit {positions} positions"
    return text


def seen_columns(rows: Sequence[Judgement], prompt: PromptConfig) -> str:
    """Which columns of these rows the judge's prompt shows, and which it does not."""
    filled = {name: sum(bool(getattr(row, name).strip()) for row in rows) for name in ITEM_FIELDS}
    seen = ["query", *(name for name in prompt.fields if filled.get(name, True))]
    unseen = [f"{name} (in {100 * filled[name] / len(rows):.0f} % of the rows)" for name in ITEM_FIELDS
              if filled[name] and name not in prompt.fields]  # fmt: skip
    absent = [name for name in prompt.columns if not filled[name]]
    text = f"the judge sees {', '.join(seen)}"
    shown_otherwise = " but in its evidence" if "evidence" in prompt.fields else ""
    text += f"; it does not see {', '.join(unseen)}{shown_otherwise}" if unseen else ""
    return text + (f"; it could also read {', '.join(absent)}, which these rows do not have" if absent else "")
