"""How a model is asked: the instructions, the fields and the form of a prompt, stored beside its weights (prompt.json).

`PromptConfig` is the configuration, `user_message` the wording, and `wording_sha256` identifies both with the reply.
"""

from __future__ import annotations

import hashlib
import json
import sys
import unicodedata
from dataclasses import asdict, dataclass, field
from pathlib import Path

from taosr1.runtime.cli import check
from taosr1.task.evidence.line import evidence_line
from taosr1.task.grades import grade_name
from taosr1.task.judgement import COT_STEPS, Judgement
from taosr1.task.reply import reply_text

ORDERS = ("label", "pre-cot", "post-cot")
STYLES = ("brief", "full")
ITEM_FIELDS = ("title", "brand", "price", "category", "attributes", "description")
EVIDENCE = "evidence"  # a computed field: what the query's words find in the product (`taosr1.task.evidence.line`)
PROMPT_FIELDS = (*ITEM_FIELDS, EVIDENCE)
PROMPT_FILE = "prompt.json"
MAX_INSTRUCTIONS_CHARS = 8000

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
# What a setting is where it is not given. They came later: unset, they are neither in prompt.json nor in `repr`.
_LATER = {"max_prompt_tok": 0, "instructions": ""}


@dataclass(frozen=True)
class PromptConfig:
    """How a model is asked. Saved with every checkpoint (prompt.json), so that serving asks as training did.

    style: "brief" is the query, a line break and the product (for the bundled tiny model); "full" adds the
        instructions and names each field (for pre-trained language models).
    fields: the product fields shown, in this order, and `evidence`, which is computed; empty ones are left out.
    max_chars: every field is cut to this many characters before it is tokenised (1 MB of text takes over a second).
    max_prompt_tok: most tokens of a prompt, the chat template's included; 0: no budget (`prompt.within_budget`).
    instructions: the text in place of `INSTRUCTIONS`; "": those. Stored as text, so that a run's folder stays whole.
    wording_sha256: computed by the function of that name, never given. It is part of `repr`.
    """

    order: str = "post-cot"
    style: str = "full"
    fields: tuple[str, ...] = ITEM_FIELDS
    max_chars: int = 600
    max_prompt_tok: int = 0
    instructions: str = ""
    wording_sha256: str = field(init=False, compare=False, default="")

    def __post_init__(self) -> None:
        known_fields = self.fields and set(self.fields) <= set(PROMPT_FIELDS)
        known = ", ".join(PROMPT_FIELDS)
        twice = ", ".join(dict.fromkeys(name for name in self.fields if self.fields.count(name) > 1))
        problems = [
            (self.order not in ORDERS, f"prompt order is {self.order!r}, expected one of {', '.join(ORDERS)}"),
            (self.style not in STYLES, f"prompt style is {self.style!r}, expected one of {', '.join(STYLES)}"),
            (not known_fields, f"prompt fields are {self.fields!r}, expected some of {known}"),
            (bool(twice), f"prompt fields name {twice} twice, expected once"),
            (self.max_chars < 1, f"prompt max_chars is {self.max_chars}, expected at least 1"),
            (self.max_prompt_tok < 0, f"prompt max_prompt_tok is {self.max_prompt_tok}, expected at least 0"),
            *_instructions_problems(self),
        ]
        check(problems)
        object.__setattr__(self, "wording_sha256", wording_sha256(self))  # the dataclass is frozen

    @property
    def columns(self) -> tuple[str, ...]:
        """The product columns that are read: the shown ones, and for the evidence all others too."""
        shown = tuple(name for name in self.fields if name != EVIDENCE)
        return shown + tuple(name for name in ITEM_FIELDS if EVIDENCE in self.fields and name not in shown)

    def __repr__(self) -> str:
        """Settings that change what is shown, and the hash of the wording, which stands for the long texts.

        Jobs, runs and models are identified by it, so it is as it was before the later settings where these are unset.
        """
        names = ["order", "style", "fields", "max_chars", *(["max_prompt_tok"] if self.max_prompt_tok else [])]
        shown = [f"{name}={getattr(self, name)!r}" for name in (*names, "wording_sha256")]
        return f"PromptConfig({', '.join(shown)})"

    def save(self, folder: str | Path) -> None:
        stored = {name: value for name, value in asdict(self).items() if value != _LATER.get(name)}
        (Path(folder) / PROMPT_FILE).write_text(json.dumps(stored, indent=2) + "\n", encoding="utf-8")

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
            hint = "its grades may be worse. Undo the change in taosr1/task/prompt_config.py, or train again."
            warning = f"{path}: the model was trained with another wording of the prompt ({hashes}): {hint}"
            print(f"warning: {warning}", file=sys.stderr)
        return config


def _instructions_problems(config: PromptConfig) -> list[tuple[bool, str]]:
    text = config.instructions
    unusable = next((character for character in text if unicodedata.category(character) in ("Co", "Cs")), "")
    return [
        (bool(text) and not text.strip(), "the instructions are empty, expected a text"),
        (len(text) > MAX_INSTRUCTIONS_CHARS,
         f"the instructions have {len(text):,} characters, expected at most {MAX_INSTRUCTIONS_CHARS:,}"),
        (bool(unusable), f"the instructions hold the character {unusable!r}, which is reserved: leave it out"),
        (bool(text) and config.style == "brief",
         "the brief prompt has no instructions: --instructions needs --style full"),
    ]  # fmt: skip


# --- The wording ------------------------------------------------------------------------------------------------------
def field_text(judgement: Judgement, name: str) -> str:
    """The text of a field that a prompt can show: a column of the row, or its evidence."""
    return evidence_line(judgement) if name == EVIDENCE else getattr(judgement, name).strip()


def untrusted_texts(judgement: Judgement, config: PromptConfig) -> dict[str, str]:
    """The untrusted texts of a prompt by name: the query, and the shown fields that are not empty.

    Each is cut to `max_chars` and has a space before it: a word is the same token wherever it stands.
    """
    texts = {name: field_text(judgement, name) for name in ("query", *config.fields)}
    return {name: " " + text[: config.max_chars] for name, text in texts.items() if text or name == "query"}


def user_message(texts: dict[str, str], config: PromptConfig) -> str:
    """The user's message around these texts (or placeholders): the query's, then those of the shown fields."""
    query, *values = texts.values()
    if config.style == "brief":
        return query + "\n" + "".join(values)
    lines = [f"{name.capitalize()}:{value}" for name, value in [*texts.items()][1:]]
    told = [config.instructions or INSTRUCTIONS, FORMATS[config.order]]
    return "\n".join([*told, "", f"Query:{query}", "Product", *lines])


def wording_sha256(config: PromptConfig) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a fixed pair's prompt and reply, as `config` renders them.

    It covers the instructions, the layout, the order, and the names of grades and steps, but not the chat template:
    that belongs to the tokenizer, and so does its checksum. Runs and half-finished jobs must not go on under another
    value: put `repr(config)`, which includes it, into their identity. Every score carries it: the rubric's version.
    """
    sample = Judgement(query="query", **{name: name for name in ITEM_FIELDS})
    message = user_message(untrusted_texts(sample, config), config)
    cot = "\n".join(f"{step}: {grade_name(4)}" for step in COT_STEPS)
    return hashlib.sha256(f"{message}\n{reply_text(config.order, 4, cot)}".encode()).hexdigest()[:16]
