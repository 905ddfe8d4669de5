"""The prompt and the reply: a judgement becomes token ids, a reply becomes a grade and five steps.

Three orders of the reply: `label` ("4"), `pre-cot` (the chain of thought, whose Decision line is the label) and
`post-cot` ("4", then the chain of thought: the first generated token is the label, so serving needs one prefill).

Query and product text is untrusted. The chat template is rendered around placeholders, its pieces and the untrusted
texts are encoded separately, and only ids are joined: no product title can become a control token.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

from taosr1.task.grades import LABELS, grade_name
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
    "pre-cot": "Reason in five lines, 'Query:', 'Item:', 'Category:' (same, related or different), 'Attributes:' (each demand met, near, "
    "missed or unknown) and 'Decision:' (such as 4-Excellent).",
    "post-cot": "Answer with the grade's digit on the first line, then explain it in five lines: 'Query:', 'Item:', 'Category:' (same, related "
    "or different), 'Attributes:' (each demand met, near, missed or unknown) and 'Decision:' (such as 4-Excellent).",
}


@dataclass(frozen=True)
class PromptConfig:
    """How a model is asked. It travels with the checkpoint (prompt.json), so that serving asks as training did.

    style: "brief" is the query, a line break and the product (what the bundled tiny model reads); "full" adds the
    instructions and names each field (for pre-trained language models).
    fields: the product fields shown, in this order; empty ones are left out.
    max_chars: every field is cut to this many characters before it is tokenised (1 MB of text takes over a second).
    """

    order: str = "post-cot"
    style: str = "full"
    fields: tuple[str, ...] = ITEM_FIELDS
    max_chars: int = 600

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

    def save(self, folder: str | Path) -> None:
        (Path(folder) / PROMPT_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @staticmethod
    def load(folder: str | Path) -> PromptConfig | None:
        """The configuration stored beside a checkpoint, or None for a folder that never met taosr1."""
        path = Path(folder) / PROMPT_FILE
        if not path.exists():
            return None
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            return PromptConfig(**{**stored, "fields": tuple(stored["fields"])})
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(f"{path}: not a prompt configuration ({error})") from error


# --- Prompt -----------------------------------------------------------------------------------------------------------
def item_texts(judgement: Judgement, config: PromptConfig) -> list[tuple[str, str]]:
    """(field, text) of the product fields that are shown: not empty, cut to `max_chars`."""
    shown = ((name, getattr(judgement, name).strip()[: config.max_chars]) for name in config.fields)
    return [(name, text) for name, text in shown if text]


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
    """Ids of the trusted text before, between and after the untrusted ones; the same for every row with these fields."""
    rendered = tokenizer.render_prompt([{"role": "user", "content": _user_message(names, config)}])
    parts = re.split("\ue000\\d+\ue001", rendered)
    if len(parts) != len(names) + 2:
        raise ValueError(f"the chat template shows the user's message {(len(parts) - 1) / (len(names) + 1):g} times, expected once")
    return tuple(tuple(tokenizer.encode_trusted(part, start=index == 0)) for index, part in enumerate(parts))


def encode_prompt(tokenizer, judgement: Judgement, config: PromptConfig) -> list[int]:
    """Token ids of the prompt, up to where the reply begins (the generation prompt of the chat template included)."""
    shown = item_texts(judgement, config)
    pieces = _template_pieces(tokenizer, tuple(name for name, _ in shown), config)
    texts = [judgement.query.strip()[: config.max_chars]] + [text for _, text in shown]
    ids = list(pieces[0])
    for text, piece in zip(texts, pieces[1:]):
        ids += tokenizer.encode_text(" " + text)  # the space: a word is the same token wherever it stands
        ids += piece
    return ids


# --- Reply ------------------------------------------------------------------------------------------------------------
def reply_text(order: str, grade: int, cot: str = "") -> str:
    """The reply a model should give.

    Raises: ValueError where the order needs a chain of thought and there is none.
    """
    if order == "label":
        return LABELS[grade - 1]
    if not cot:
        raise ValueError(f"order {order!r} needs a chain of thought for every row (column 'cot'); --order label does not")
    return cot if order == "pre-cot" else f"{LABELS[grade - 1]}\n{cot}"


def encode_reply(tokenizer, text: str) -> list[int]:
    """Token ids of a reply with the end-of-sequence token; reply text can never hold a control token of its own.

    Raises: ValueError for a text too long to be a reply, before it is tokenised: unlike a title it cannot be cut.
    """
    if len(text) > MAX_REPLY_CHARS:
        raise ValueError(f"a reply of {len(text)} characters ({text[:40]!r}...), expected at most {MAX_REPLY_CHARS}: shorten its chain of thought")
    return tokenizer.encode_text(text) + [tokenizer.eos_ids[0]]


@dataclass(frozen=True)
class Reply:
    """What a reply says. `grade` is the label (None: unparsable), `decision` the grade its Decision line names."""

    grade: int | None
    query: str = ""
    item: str = ""
    category: str = ""
    attributes: str = ""
    decision: int | None = None
    well_formed: bool = False  # exactly the lines this order asks for, in order, as `check_cot` wants them


_DECISION = {grade_name(grade): grade for grade in (1, 2, 3, 4)}


def parse_reply(text: str, order: str) -> Reply:
    """Read a reply. Never raises on what a model wrote: what cannot be read is None or "" and not well formed."""
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
    return Reply(grade, steps.get("Query", ""), steps.get("Item", ""), steps.get("Category", ""), steps.get("Attributes", ""), decision, well_formed)


def label_of_cot(cot: str) -> int | None:
    """The grade a chain of thought decides for."""
    return parse_reply(cot, "pre-cot").grade
