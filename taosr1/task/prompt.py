"""The prompt: encodes a judgement as token ids. `prompt_config.py` has its wording, `reply.py` what is answered to it.

Query and product text is untrusted. The chat template is rendered around placeholders, its pieces and the untrusted
texts are encoded separately, and only ids are joined: no product title can become a control token.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from taosr1.task.judgement import Judgement
from taosr1.task.prompt_budget import LEAST_TEXT_TOK, cut_to_room
from taosr1.task.prompt_config import (
    FORMATS,
    INSTRUCTIONS,
    ITEM_FIELDS,
    ORDERS,
    PROMPT_FILE,
    STYLES,
    PromptConfig,
    untrusted_texts,
    user_message,
    wording_sha256,
)
from taosr1.task.reply import Reply, encode_reply, label_of_cot, parse_reply, reply_text

__all__ = [
    "FORMATS", "INSTRUCTIONS", "ITEM_FIELDS", "ORDERS", "PROMPT_FILE", "STYLES", "PromptConfig", "Reply", "Slot",
    "check_prompt", "count_tokens", "encode_messages", "encode_prompt", "encode_reply", "label_of_cot", "marked_prompt",
    "parse_reply", "prompt_pieces", "prompt_room", "reply_text", "wording_sha256",
]  # fmt: skip

# --- Prompt -----------------------------------------------------------------------------------------------------------
def count_tokens(tokenizer, text: str) -> int:
    """Tokens that an untrusted text takes in a prompt."""
    return len(tokenizer.encode_text(" " + text)) if text else 0


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
    """The user's message without its untrusted texts. names: of these texts."""
    return tuple(user_message(dict.fromkeys(names, "\ue000"), config).split("\ue000"))


def prompt_pieces(tokenizer, judgement: Judgement, config: PromptConfig) -> list[list[int]]:
    """Token ids of the prompt in pieces: those at odd places are untrusted (query and product), the others trusted."""
    texts = untrusted_texts(judgement, config)
    pieces = _filled(tokenizer, (("user", _trusted_texts(tuple(texts), config)),), list(texts.values()))
    if not config.max_prompt_tok:
        return pieces
    room = config.max_prompt_tok - sum(map(len, pieces[::2]))
    cut = cut_to_room(tokenizer, pieces[1::2], room)
    return [cut[place // 2] if place % 2 else piece for place, piece in enumerate(pieces)]


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


def check_prompt(tokenizer, config: PromptConfig, positions: int) -> None:
    """Whether a model of so many positions, with this tokenizer, can be asked so.

    Raises: ValueError for a budget that is too small for the trusted text, a query and a title, or too large for the
        model; and for instructions that spell a control token: as trusted text it would be one.
    """
    spelled = [token for token in tokenizer.control_text() if token.strip() and token in config.instructions]
    if spelled:
        problem = f"the instructions hold {spelled[0]!r}, which this tokenizer reads as a control token"
        raise ValueError(f"{problem}: leave it out of --instructions")
    if not config.max_prompt_tok:
        return
    slots, behind = _template_pieces(tokenizer, (("user", _trusted_texts(("query", *config.fields), config)),))
    trusted = sum(len(slot.before) for slot in slots) + len(behind)
    needed, room = trusted + LEAST_TEXT_TOK, prompt_room(positions)
    if config.max_prompt_tok < needed:
        parts = "the chat template, the names of fields" + " and the instructions" * (config.style == "full")
        ways = f"give at least {needed}" + ", fewer --fields or --style brief" * (config.style == "full")
        raise ValueError(
            f"--max-prompt-tok is {config.max_prompt_tok}, but {parts} take {trusted} tokens, and a query with a title "
            f"needs {LEAST_TEXT_TOK}: {ways}"
        )
    if config.max_prompt_tok > room:
        raise ValueError(f"--max-prompt-tok is {config.max_prompt_tok}, but this model has room for {room}: give less")
