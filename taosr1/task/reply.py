"""The reply: what a model should answer to a prompt, and how what it answers is read: a grade and five steps.

A reply has one of three orders: `label` ("4"), `pre-cot` (the chain of thought, whose Decision line is the label) and
`post-cot` ("4", then the chain of thought: the first generated token is the label, so serving needs one prefill).
"""

from __future__ import annotations

from dataclasses import dataclass

from taosr1.task.grades import GRADES, LABELS, grade_name
from taosr1.task.judgement import COT_STEPS, MAX_COT_CHARS, is_cot_line

MAX_REPLY_CHARS = MAX_COT_CHARS + len("4\n")


def reply_text(order: str, grade: int, cot: str = "") -> str:
    """The reply a model should give. Raises: ValueError where the order needs a chain of thought, and there is none."""
    if order == "label":
        return LABELS[grade - 1]
    if not cot:
        needed = "needs a chain of thought for every row (column 'cot'); train/sft.py --order label does not"
        raise ValueError(f"order {order!r} {needed}")
    return cot if order == "pre-cot" else f"{LABELS[grade - 1]}\n{cot}"


def encode_reply(tokenizer, text: str) -> list[int]:
    """Token ids of a reply with the end-of-sequence token; reply text can never hold a control token of its own.

    Raises: ValueError for a text too long to be a reply, before it is tokenised: unlike a title it cannot be cut.
    """
    if len(text) > MAX_REPLY_CHARS:
        limit = f"expected at most {MAX_REPLY_CHARS}: shorten its chain of thought"
        raise ValueError(f"a reply of {len(text)} characters ({text[:40]!r}...), {limit}")
    return tokenizer.encode_text(text) + [tokenizer.eos_ids[0]]


@dataclass(frozen=True)
class Reply:
    """The parts of a reply. `grade` is the label (None: unparsable), `decision` the grade its Decision line names."""

    grade: int | None
    query: str = ""
    item: str = ""
    category: str = ""
    attributes: str = ""
    decision: int | None = None
    well_formed: bool = False  # exactly the lines of this order, each as `check_cot` requires


_DECISION = {grade_name(grade): grade for grade in GRADES}


def parse_reply(text: str, order: str) -> Reply:
    """Read a reply. Never raises for a model's text: what cannot be read is None or "", and not well formed."""
    lines = text.rstrip("\n").split("\n")
    label = None
    if order != "pre-cot":
        first, lines = lines[0], lines[1:]
        label = int(first) if first in LABELS else None
    if order == "label":
        return Reply(label, well_formed=label is not None and not lines)
    steps: dict[str, str] = {}
    for line in lines:
        name, _, rest = line.partition(":")
        if name in COT_STEPS and name not in steps:
            steps[name] = rest.strip()
    decision = _DECISION.get(steps.get("Decision", ""))
    grade = label if order == "post-cot" else decision
    in_order = len(lines) == len(COT_STEPS) and all(map(is_cot_line, lines, COT_STEPS))
    texts = [steps.get(name, "") for name in COT_STEPS[:-1]]
    return Reply(grade, *texts, decision, well_formed=in_order and None not in (grade, decision))


def label_of_cot(cot: str) -> int | None:
    """The grade a chain of thought decides for."""
    return parse_reply(cot, "pre-cot").grade
