"""Chat templates: Jinja programs from outside, rendered as transformers renders them, and where the reply begins.

A template runs in Jinja's immutable sandbox. It sees what transformers shows it (messages, tools, documents,
add_generation_prompt, enable_thinking, the named special tokens) and one thing less: the clock.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from taosr1.runtime.messages import say_once

# Choice: `strftime_now` is defined, as in transformers, but its day never changes: a prompt must be the same tomorrow.
# It is the date that the templates of Llama 3.1 and 3.2 fall back to where there is no clock.
PINNED_DATE = datetime(2024, 7, 26)
REPLY = "\ue002reply\ue002"  # stands for an assistant's message; no template contains private-use characters
MARK = "\ue003mark\ue003"  # stands for the last message
# What begins or ends a thought: its name in brackets ("<think>", "<|END_THINKING|>") or behind ("<|channel>thought").
_THINKING = r"(?:think|thought|reason|analy[sz]|scratch_?pad|reflect|rationale|monologue|deliberat|ponder)"
TAG = re.compile(
    rf"[<\[◁{{][^<>\[\]◁▷{{}}\s]*{_THINKING}[^<>\[\]◁▷{{}}\s]*[>\]▷}}]|"
    rf"[<\[][^<>\[\]\s]*[>\]]{_THINKING}[a-z]*(?=\s|<|$)",
    re.IGNORECASE,
)
ENDS = re.compile(r"/|(?:^|[\W_])(?:end|stop|no)(?:[\W_]|think|$)", re.IGNORECASE)
ANY_TAG = re.compile(r"[<\[][^<>\[\]\s]+[>\]]")
# How families end what they begin; <think> is ended by </think>.
OTHER_THOUGHTS = {
    "<|START_THINKING|>": "<|END_THINKING|>",
    "<|begin_of_thought|>": "<|end_of_thought|>",
    "[THINK]": "[/THINK]",
    "◁think▷": "◁/think▷",
}
PLAIN_TAG = re.compile(r"<(?!\w*(?:start|begin|open))[\w:]+>", re.IGNORECASE)


@dataclass(frozen=True)
class ChatTemplate:
    """source: the Jinja text. special: the named special tokens, such as bos_token. folder: where it comes from."""

    source: str
    special: dict[str, str]
    folder: Path

    def render(
        self, messages: Sequence[dict[str, Any]], *, add_generation_prompt: bool = True, enable_thinking: bool = False
    ) -> str:
        """What `apply_chat_template` of transformers renders, on the pinned date.

        Raises: ValueError where the template fails or the sandbox refuses it.
        """
        options = {"add_generation_prompt": add_generation_prompt, "enable_thinking": enable_thinking}
        try:
            template = _compiled(self.source)
            return template.render(**{**self.special, **options}, messages=list(messages), tools=None, documents=None)
        except Exception as error:  # a template may fail in any way
            raise ValueError(f"the chat template in {self.folder} failed: {error}") from error

    def prompt(self, messages: Sequence[dict[str, Any]], *, enable_thinking: bool = False) -> str:
        """The rendered messages up to where the text of the model's reply begins: its first token may be the label.

        That is what `render` gives, except for two kinds of template, of which stderr says so once: a thought that is
        left open is closed, empty; and where `add_generation_prompt` changes nothing, the prompt is what the template
        itself writes before an assistant's message.

        Raises: ValueError as `render`, and for a template whose generation prompt leaves another part of the reply's
            header to the model (gpt-oss: the channel), or opens a thought that nobody knows how to close.
        """
        prompt = self.render(messages, enable_thinking=enable_thinking)
        closing = "" if enable_thinking else self._closing(messages, prompt)
        if closing:
            say_once(
                f"the chat template in {self.folder} ends in an open thought ({prompt.rstrip()[-20:]!r}); it is "
                f"closed with {closing!r}, so that the assistant's reply begins with its answer"
            )
            return prompt + closing
        opened = self._before_reply(messages, enable_thinking)
        if opened is None or opened.rstrip() == prompt.rstrip():
            return prompt
        rest, end = opened.removeprefix(prompt), self.special.get("eos_token")
        follows = rest != opened  # else the template writes another text where a reply follows
        if prompt == self.render(messages, add_generation_prompt=False, enable_thinking=enable_thinking):
            if not follows and not (end and prompt.rstrip().endswith(end)):
                return prompt
            say_once(
                f"the chat template in {self.folder} has no generation prompt (add_generation_prompt changes nothing); "
                "the prompt ends where the template begins an assistant's message" + f": {rest!r}" * follows
            )
            return opened
        if follows and "think" not in rest.lower():
            raise ValueError(
                f"the chat template in {self.folder} begins every reply with {rest!r}, which its generation prompt "
                "leaves to the model: a reply could not begin with the label. Add it to the template's generation "
                "prompt (behind `if add_generation_prompt`), or use another model"
            )
        return prompt

    def _closing(self, messages: Sequence[dict[str, Any]], prompt: str) -> str:
        """What closes the thought that is left open behind the last message; "" where none is."""
        plain = self.render(messages, add_generation_prompt=False)
        tail = prompt.removeprefix(plain)
        if tail in ("", prompt):  # no generation prompt, or another text where one follows
            last = messages[-1] if messages else {}
            parts = isinstance(last.get("content"), list)
            marked = {**last, "content": [{"type": "text", "text": MARK}] if parts else MARK}
            tail = self.render([*messages[:-1], marked]).rpartition(MARK)[2]
        try:
            return closing_of_thought(tail)
        except ValueError as problem:
            raise ValueError(f"the chat template in {self.folder} {problem}") from problem

    def _before_reply(self, messages: Sequence[dict[str, Any]], enable_thinking: bool) -> str | None:
        """What the template writes before an assistant's message; None where it does not show one."""
        parts = bool(messages) and isinstance(messages[-1].get("content"), list)
        reply = {"role": "assistant", "content": [{"type": "text", "text": REPLY}] if parts else REPLY}
        try:
            whole = self.render([*messages, reply], add_generation_prompt=False, enable_thinking=enable_thinking)
        except ValueError:
            return None
        before, found, _ = whole.partition(REPLY)
        return before if found else None


def closing_of_thought(prompt: str) -> str:
    """What closes the thought that the end of a prompt opens; "" where it opens none, or closes it itself. An empty
    thought of Qwen3 is "<think>\\n\\n</think>\\n\\n".

    Raises: ValueError for a tag that looks like a thought's and belongs to no family that is known.
    """
    found = [*TAG.finditer(prompt)][-1:]
    if not found or ENDS.search(found[0][0][1:-1]):
        return ""
    tag, behind = found[0][0], prompt[found[0].end() :]
    if tag[-1].isalpha() and any("message" not in other for other in ANY_TAG.findall(behind)):
        return ""  # <|channel>thought\n<channel|>
    close = OTHER_THOUGHTS.get(tag) or ("</" + tag[1:] if PLAIN_TAG.fullmatch(tag) else "")
    if not close:
        raise ValueError(
            f"begins every reply with a thought ({tag!r}), and how this family closes one is not known: a reply could "
            "not begin with the label. Close it in the template's generation prompt, or use another model"
        )
    return ("\n" if prompt != prompt.rstrip() else "\n\n") + close + "\n\n"


@lru_cache(maxsize=16)
def _compiled(source: str) -> Any:
    return _sandbox().from_string(source)


@lru_cache(maxsize=1)
def _sandbox() -> Any:
    """The Jinja environment of transformers: its filters, functions and tags, with the pinned date."""
    from jinja2 import nodes
    from jinja2.exceptions import TemplateError
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class GenerationTag(Extension):
        """`{% generation %}` marks for trainers what an assistant wrote; the text inside is rendered like any other."""

        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(
        value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None,
        sort_keys: bool = False,
    ) -> str:  # fmt: skip
        # Jinja's own escapes HTML characters.
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = tojson
    environment.globals |= {"raise_exception": raise_exception, "strftime_now": PINNED_DATE.strftime}
    return environment
