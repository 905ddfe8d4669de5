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
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from taosr1.runtime.cli import check
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
_FIVE_LINES = (
    "'Query:', 'Item:', 'Category:' (same, related or different), 'Attributes:' (each demand met, near, missed or "
    "unknown) and 'Decision:' (such as 4-Excellent)."
)
FORMATS = {
    "label": "Answer with the grade's digit alone: 1, 2, 3 or 4.",
    "pre-cot": f"Reason in five lines, {_FIVE_LINES}",
    "post-cot": f"Answer with the grade's digit on the first line, then explain it in five lines: {_FIVE_LINES}",
}


@dataclass(frozen=True)
class PromptConfig:
    """How a model is asked. Saved with every checkpoint (prompt.json), so that serving asks as training did.

    style: "brief" is the query, a line break and the product (for the bundled tiny model); "full" adds the
        instructions and names each field (for pre-trained language models).
    fields: the product fields shown, in this order; empty ones are left out.
    max_chars: every field is cut to this many characters before it is tokenised (1 MB of text takes over a second).
    wording_sha256: computed by the function of that name, never given. It is part of `repr`.
    """

    order: str = "post-cot"
    style: str = "full"
    fields: tuple[str, ...] = ITEM_FIELDS
    max_chars: int = 600
    wording_sha256: str = field(init=False, compare=False, default="")

    def __post_init__(self) -> None:
        known_fields = self.fields and set(self.fields) <= set(ITEM_FIELDS)
        problems = [
            (self.order not in ORDERS, f"prompt order is {self.order!r}, expected one of {', '.join(ORDERS)}"),
            (self.style not in STYLES, f"prompt style is {self.style!r}, expected one of {', '.join(STYLES)}"),
            (not known_fields, f"prompt fields are {self.fields!r}, expected some of {', '.join(ITEM_FIELDS)}"),
            (self.max_chars < 1, f"prompt max_chars is {self.max_chars}, expected at least 1"),
        ]
        check(problems)
        object.__setattr__(self, "wording_sha256", wording_sha256(self))  # the dataclass is frozen

    def save(self, folder: str | Path) -> None:
        (Path(folder) / PROMPT_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @staticmethod
    def load(folder: str | Path) -> PromptConfig | None:
        """The configuration stored in a checkpoint folder; None if there is none (a folder of another project).

        Warns on stderr if the model was trained with another wording. Raises: ValueError naming a damaged file.
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
            hashes = f"wording_sha256 {trained}, this code renders {config.wording_sha256}"
            hint = "its grades may be worse. Undo the change in taosr1/task/prompt.py, or train again."
            warning = f"{path}: the model was trained with another wording of the prompt ({hashes}): {hint}"
            print(f"warning: {warning}", file=sys.stderr)
        return config


# --- Prompt -----------------------------------------------------------------------------------------------------------
def _untrusted_texts(judgement: Judgement, names: tuple[str, ...], config: PromptConfig) -> list[str]:
    """The query and the shown fields, cut to `max_chars`."""
    texts = [getattr(judgement, name).strip()[: config.max_chars] for name in ("query", *names)]
    return [" " + text for text in texts]  # the space: a word is the same token wherever it stands


def count_tokens(tokenizer, text: str) -> int:
    """Tokens that an untrusted text takes in a prompt."""
    return len(tokenizer.encode_text(" " + text)) if text else 0


def _user_message(texts: list[str], names: tuple[str, ...], config: PromptConfig) -> str:
    """The user's message around these texts (or placeholders): the query's first, then those of the shown fields."""
    query, *values = texts
    if config.style == "brief":
        return query + "\n" + "".join(values)
    lines = [f"{name.capitalize()}:{value}" for name, value in zip(names, values)]
    return "\n".join([INSTRUCTIONS, FORMATS[config.order], "", f"Query:{query}", "Product", *lines])


class Slot(NamedTuple):
    """A place of a prompt for an untrusted text: the text's number, and whether it is trimmed on a side.

    before: ids of the trusted text before it. without_space: the same less the space that it ends in, None without one.
    """

    text: int
    left: bool
    right: bool
    before: list[int]
    without_space: list[int] | None

    def filled(self, tokenizer, text: str) -> tuple[list[int], list[int]]:
        """Ids of what is before the text, and of the text. A space and the word behind it are one token."""
        text = text.lstrip() if self.left else text
        text = text.rstrip() if self.right else text
        if self.without_space is None or text[:1].isspace():
            return self.before, tokenizer.encode_text(text)
        return self.without_space, tokenizer.encode_text(" " + text)


# What stands for an untrusted text while a template is rendered. Private-use characters, because no template contains
# them and untrusted text never meets this string; the rest is what a filter of the template would change. The wide
# spaces tell the white space of the text from the template's own.
_PLACE = " \u2003\ue000{}\ue001Ab \"'<&>\\\u00e9  x\ue002\u2003 "
# Put into every place, it must be shown as it is: a template that cuts, counts or replaces is found by it.
_WORDS = 10 * (
    'Query: 4 cup tea kettle, not plastic\n\nProduct: "Steel & Co" travel mug - black/red, 1.5 l, under $20 (2-pack)\n'
    "\tUSB-C cable [3 m] <b>new</b> 100% cotton; men's shoes, size 10 & up: #1! A {very} nice gift_set = 25 + 5 * 2\\n"
    "  Brand: Hollin. Category: home, garden, toys, books, phones. Description: the best for you and a child? ~ ^ | `\n"
)
_PLACES = re.compile("( ?\u2003)?" + re.escape(_PLACE.strip()).replace(r"\{\}", r"(\d+)") + "(\u2003 ?)?")


@lru_cache(maxsize=256)
def _template_pieces(tokenizer, turns: tuple[tuple[str, tuple[str, ...]], ...]) -> tuple[tuple[Slot, ...], list[int]]:
    """Where the untrusted texts of these turns belong, in the order of the prompt, and the ids of what follows them.

    turns: the role of each message, and its trusted texts: before, between and after its untrusted ones.
    Raises: ValueError where the template does not show every message once and as it is, but for white space around it.
    """
    numbers = iter(range(sum(len(trusted) - 1 for _, trusted in turns)))
    contents = [trusted[0] + "".join(_PLACE.format(next(numbers)) + t for t in trusted[1:]) for _, trusted in turns]
    as_text = [{"role": role, "content": content} for (role, _), content in zip(turns, contents)]
    as_parts = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in as_text]
    try:
        rendered = _showing(tokenizer, as_text, contents)
    except ValueError as problem:
        try:
            rendered = _showing(tokenizer, as_parts, contents)  # templates of models that see pictures want a list
        except ValueError:
            raise problem from None
    found = list(_PLACES.finditer(rendered))
    edges = [0, *(edge for place in found for edge in place.span()), len(rendered)]
    parts = [rendered[start:end] for start, end in zip(edges[::2], edges[1::2])]
    slots = []
    for number, (place, part, behind) in enumerate(zip(found, parts, parts[1:])):
        left, right = tokenizer.takes_space(part, behind)
        before, without_space = tokenizer.encode_trusted(part, start=number == 0), None
        if part.endswith(" ") and not part.endswith("  ") and not left:
            without_space = tokenizer.encode_trusted(part[:-1], start=number == 0)
        slots.append(Slot(int(place[2]), left or not place[1], right or not place[3], before, without_space))
    return tuple(slots), tokenizer.encode_trusted(parts[-1], start=False)


def _showing(tokenizer, messages: list[dict], contents: list[str]) -> str:
    """The rendered messages. Raises: ValueError where a content is not in it, or not once, or altered."""
    rendered = tokenizer.render_prompt(messages)
    shown = rendered.count("\ue000") / sum(content.count("\ue000") for content in contents)
    if shown != 1:
        raise ValueError(f"the chat template shows the user's message {shown:g} times, expected once")
    altered = [content for content in contents if rendered.count(content.strip()) != 1]
    if altered or len(_PLACES.findall(rendered)) != sum(content.count("\ue000") for content in contents):
        raise ValueError(
            f"the chat template in {tokenizer.folder} alters the message (its case, quotes, spaces or characters): "
            "edit it to show message.content as it is, with no filter but trim"
        )
    filled = tokenizer.render_prompt(_with_words(messages))
    if filled != rendered.replace("\ue001", "\ue001" + _WORDS):
        raise ValueError(
            f"the chat template in {tokenizer.folder} alters the message: {len(_WORDS):,} characters of words are not "
            "shown as a short text is (they are cut, counted, searched or replaced in). Edit the template to show "
            "message.content as it is, with no filter but trim"
        )
    return rendered


def _with_words(value):
    """The messages with the probe in every place of an untrusted text."""
    if isinstance(value, dict):
        return {key: _with_words(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_with_words(inner) for inner in value]
    return value.replace("\ue001", "\ue001" + _WORDS)


def _filled(tokenizer, turns: tuple[tuple[str, tuple[str, ...]], ...], texts: Sequence[str]) -> list[list[int]]:
    """Token ids of the rendered turns, in pieces: trusted text, an untrusted text, trusted text, and so on."""
    slots, behind = _template_pieces(tokenizer, turns)
    return [ids for slot in slots for ids in slot.filled(tokenizer, texts[slot.text])] + [behind]


@lru_cache(maxsize=256)
def _trusted_texts(names: tuple[str, ...], config: PromptConfig) -> tuple[str, ...]:
    """The user's message without its untrusted texts."""
    return tuple(_user_message(["\ue000"] * (len(names) + 1), names, config).split("\ue000"))


def prompt_pieces(tokenizer, judgement: Judgement, config: PromptConfig) -> list[list[int]]:
    """Token ids of the prompt in pieces: those at odd places are untrusted (query and product), the others trusted."""
    names = tuple(name for name in config.fields if getattr(judgement, name).strip())  # empty ones are left out
    return _filled(tokenizer, (("user", _trusted_texts(names, config)),), _untrusted_texts(judgement, names, config))


def encode_prompt(tokenizer, judgement: Judgement, config: PromptConfig) -> list[int]:
    """Token ids of the prompt, up to where the reply begins (the generation prompt of the chat template included)."""
    return [token for ids in prompt_pieces(tokenizer, judgement, config) for token in ids]


def marked_prompt(tokenizer, judgement: Judgement, config: PromptConfig) -> list[tuple[str, bool]]:
    """The prompt as the model reads it, as (text, whether it is untrusted): the texts of `prompt_pieces`.

    Control tokens are spelled out. One that is spelled in an untrusted text is ordinary text to the model.
    """
    seen, texts = [], [""]
    for ids in prompt_pieces(tokenizer, judgement, config):
        seen += ids  # decoded from the beginning: SentencePiece drops the first space of what it decodes
        texts.append(tokenizer.spell(seen))
    pieces = [after[len(before) :] for before, after in zip(texts, texts[1:])]
    return [(text, place % 2 == 1) for place, text in enumerate(pieces) if text]


def encode_messages(tokenizer, messages: Sequence[tuple[str, str]]) -> list[int]:
    """Token ids of (role, text) messages in the chat template, up to where the reply begins.

    Every text is untrusted. Raises: ValueError where the template does not take these roles.
    """
    turns = tuple((role, ("", "")) for role, _ in messages)
    return [token for ids in _filled(tokenizer, turns, [text for _, text in messages]) for token in ids]


def prompt_room(positions: int, reply_tok: int = 0) -> int:
    """The longest prompt, in tokens, that leaves a model of so many positions room for a reply of `reply_tok`."""
    return positions - max(min(256, positions // 4), reply_tok)


def wording_sha256(config: PromptConfig) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a fixed pair's prompt and reply, as `config` renders them.

    It covers the instructions, the layout, the order, and the names of grades and steps, but not the chat template:
    that belongs to the tokenizer, and so does its checksum. Runs and half-finished jobs must not go on under another
    value: put `repr(config)`, which includes it, into their identity.
    """
    sample = Judgement(query="query", **{name: name for name in ITEM_FIELDS})
    message = _user_message(_untrusted_texts(sample, config.fields, config), config.fields, config)
    cot = "\n".join(f"{step}: {grade_name(4)}" for step in COT_STEPS)
    return hashlib.sha256(f"{message}\n{reply_text(config.order, 4, cot)}".encode()).hexdigest()[:16]


# --- Reply ------------------------------------------------------------------------------------------------------------
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
