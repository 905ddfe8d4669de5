"""The prompt and the reply: encodes a judgement as token ids, and reads a reply as a grade and five steps.

A reply has one of three orders: `label` ("4"), `pre-cot` (the chain of thought, whose Decision line is the label) and
`post-cot` ("4", then the chain of thought: the first generated token is the label, so serving needs one prefill).

Query and product text is untrusted. The chat template is rendered around placeholders, its pieces and the untrusted
texts are encoded separately, and only ids are joined: no product title can become a control token.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path

from taosr1.task.grades import GRADES, LABELS, grade_name
from taosr1.task.judgement import COT_STEPS, MAX_COT_CHARS, Judgement, is_cot_line

ORDERS = ("label", "pre-cot", "post-cot")
STYLES = ("brief", "full")
ITEM_FIELDS = ("title", "brand", "price", "category", "attributes", "description")
PROMPT_FILE = "prompt.json"
MAX_REPLY_CHARS = MAX_COT_CHARS + len("4\n")

INSTRUCTIONS = """You judge how well a product answers a shopping query.
4-Excellent: the category and every demand are met.
3-Related: a substitute, or a demand only nearly met.
2-Mismatch: a related product that misses a hard demand, or an accessory.
1-Irrelevant: nothing to do with the query."""
FORMATS = {
    "label": "Answer with the grade's digit alone: 1, 2, 3 or 4.",
    "pre-cot": "Reason in five lines, 'Query:', 'Item:', 'Category:' (same, related or different), 'Attributes:' (each "
    "demand met, near, missed or unknown) and 'Decision:' (such as 4-Excellent).",
    "post-cot": "Answer with the grade's digit on the first line, then explain it in five lines: 'Query:', 'Item:', "
    "'Category:' (same, related or different), 'Attributes:' (each demand met, near, missed or unknown) and "
    "'Decision:' (such as 4-Excellent).",
}


@dataclass(frozen=True)
class PromptConfig:
    """How a model is asked. Saved with every checkpoint (prompt.json), so that serving asks as training did.

    style: "brief" is the query, a line break and the product (for the bundled tiny model); "full" adds the
        instructions and names each field (for pre-trained language models).
    fields: the product fields shown, in this order; empty ones are left out.
    max_chars: every field is cut to this many characters before it is tokenised (1 MB of text takes over a second).
    wording_sha256: identifies the wording that this code renders for these settings, see the function of that name.
        Computed, never given. It is part of `repr`, so every identity made from a PromptConfig includes it.
    """

    order: str = "post-cot"
    style: str = "full"
    fields: tuple[str, ...] = ITEM_FIELDS
    max_chars: int = 600
    wording_sha256: str = field(init=False, compare=False, default="")

    def __post_init__(self) -> None:
        problems = []
        if self.order not in ORDERS:
            problems.append(f"order is {self.order!r}, expected one of {', '.join(ORDERS)}")
        if self.style not in STYLES:
            problems.append(f"style is {self.style!r}, expected one of {', '.join(STYLES)}")
        unknown = [name for name in self.fields if name not in ITEM_FIELDS]
        if unknown or not self.fields:
            problems.append(f"fields are {self.fields!r}, expected some of {', '.join(ITEM_FIELDS)}")
        if self.max_chars < 1:
            problems.append(f"max_chars is {self.max_chars}, expected at least 1")
        if problems:
            raise ValueError("prompt: " + "; ".join(problems))
        object.__setattr__(self, "wording_sha256", wording_sha256(self))  # the dataclass is frozen

    def save(self, folder: str | Path) -> None:
        (Path(folder) / PROMPT_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @staticmethod
    def load(folder: str | Path) -> PromptConfig | None:
        """The configuration stored in a checkpoint folder; None if there is none (a folder of another project).

        Prints a warning on stderr if the model was trained with another wording than this code renders.
        Raises: ValueError naming the file if it is damaged.
        """
        path = Path(folder) / PROMPT_FILE
        if not path.exists():
            return None
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            trained = stored.pop("wording_sha256", None)  # absent until version 0.1
            config = PromptConfig(**{**stored, "fields": tuple(stored["fields"])})
        except (AttributeError, TypeError, KeyError, ValueError) as error:
            raise ValueError(f"{path}: not a prompt configuration ({error})") from error
        if trained not in (None, config.wording_sha256):
            print(
                f"warning: {path}: the model was trained with another wording of the prompt (wording_sha256 {trained}, "
                f"this code renders {config.wording_sha256}): its grades may be worse. Undo the change in "
                "taosr1/task/prompt.py, or train again.",
                file=sys.stderr,
            )
        return config


# --- Prompt -----------------------------------------------------------------------------------------------------------
def _shown_fields(judgement: Judgement, config: PromptConfig) -> tuple[str, ...]:
    """Names of the product fields that the prompt shows: the configured ones that are not empty."""
    return tuple(name for name in config.fields if getattr(judgement, name).strip())


def _untrusted_texts(judgement: Judgement, names: tuple[str, ...], config: PromptConfig) -> list[str]:
    """The texts that fill the placeholders: the query and the shown fields, cut to `max_chars`."""
    texts = [getattr(judgement, name).strip()[: config.max_chars] for name in ("query", *names)]
    return [" " + text for text in texts]  # the space: a word is the same token wherever it stands


def _user_message(names: tuple[str, ...], config: PromptConfig) -> str:
    """The user's message with one placeholder per untrusted text: the query first, then the shown fields."""
    slots = [_slot(index) for index in range(len(names) + 1)]
    if config.style == "brief":
        return slots[0] + "\n" + "".join(slots[1:])
    lines = [f"{name.capitalize()}:{slot}" for name, slot in zip(names, slots[1:])]
    return "\n".join([INSTRUCTIONS, FORMATS[config.order], "", f"Query:{slots[0]}", "Product", *lines])


def _slot(index: int) -> str:
    # Private-use characters: no template contains them, and untrusted text never meets this string.
    return f"\ue000{index}\ue001"


@lru_cache(maxsize=256)
def _template_pieces(tokenizer, names: tuple[str, ...], config: PromptConfig) -> tuple[tuple[int, ...], ...]:
    """Ids of the trusted text before, between and after the untrusted texts; equal for all rows with these fields."""
    rendered = tokenizer.render_prompt([{"role": "user", "content": _user_message(names, config)}])
    parts = re.split("\ue000\\d+\ue001", rendered)
    if len(parts) != len(names) + 2:
        shown = (len(parts) - 1) / (len(names) + 1)
        raise ValueError(f"the chat template shows the user's message {shown:g} times, expected once")
    return tuple(tuple(tokenizer.encode_trusted(part, start=index == 0)) for index, part in enumerate(parts))


def encode_prompt(tokenizer, judgement: Judgement, config: PromptConfig) -> list[int]:
    """Token ids of the prompt, up to where the reply begins (the generation prompt of the chat template included)."""
    names = _shown_fields(judgement, config)
    pieces = _template_pieces(tokenizer, names, config)
    ids = list(pieces[0])
    for text, piece in zip(_untrusted_texts(judgement, names, config), pieces[1:]):
        ids += tokenizer.encode_text(text)
        ids += piece
    return ids


def wording_sha256(config: PromptConfig) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a fixed pair's prompt and reply, as `config` renders them.

    Any change of the instruction's wording, the layout, the order or the names of grades and steps changes it. A run
    must not resume, and a half-finished job must not continue, under another value: put `repr(config)`, which includes
    it, into their identity. The chat template is not covered: it belongs to the tokenizer, and so does its checksum.
    """
    sample = Judgement(query="query", **{name: name for name in ITEM_FIELDS})
    message = _user_message(config.fields, config)
    for index, text in enumerate(_untrusted_texts(sample, config.fields, config)):
        message = message.replace(_slot(index), text)
    cot = "\n".join(f"{step}: {grade_name(4)}" for step in COT_STEPS)
    return hashlib.sha256(f"{message}\n{reply_text(config.order, 4, cot)}".encode()).hexdigest()[:16]


# --- Reply ------------------------------------------------------------------------------------------------------------
def reply_text(order: str, grade: int, cot: str = "") -> str:
    """The reply a model should give.

    Raises: ValueError where the order needs a chain of thought and there is none.
    """
    if order == "label":
        return LABELS[grade - 1]
    if not cot:
        raise ValueError(
            f"order {order!r} needs a chain of thought for every row (column 'cot'); --order label does not"
        )
    return cot if order == "pre-cot" else f"{LABELS[grade - 1]}\n{cot}"


def encode_reply(tokenizer, text: str) -> list[int]:
    """Token ids of a reply with the end-of-sequence token; reply text can never hold a control token of its own.

    Raises: ValueError for a text too long to be a reply, before it is tokenised: unlike a title it cannot be cut.
    """
    if len(text) > MAX_REPLY_CHARS:
        raise ValueError(
            f"a reply of {len(text)} characters ({text[:40]!r}...), expected at most {MAX_REPLY_CHARS}: "
            "shorten its chain of thought"
        )
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
    well_formed = in_order and None not in (grade, decision)
    texts = [steps.get(name, "") for name in COT_STEPS[:-1]]
    return Reply(grade, *texts, decision=decision, well_formed=well_formed)


def label_of_cot(cot: str) -> int | None:
    """The grade a chain of thought decides for."""
    return parse_reply(cot, "pre-cot").grade
