"""The flags that say how a model is asked, and the `PromptConfig` that follows from them and from what a run stores."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from taosr1.runtime.cli import check, flag_of, option
from taosr1.task.prompt_config import MAX_INSTRUCTIONS_CHARS, PROMPT_FIELDS, STYLES, PromptConfig


@dataclass(frozen=True)
class AskFlags:
    """Flags that a script's config inherits. What is not given stays as the run stores it; a folder that taosr1 did not
    write is asked with the full prompt. examples/guide/prompts.md says what each costs."""

    style: str | None = option(
        None, "prompt: brief (query and product) or full (instructions, named fields); none: as the model's run", STYLES
    )
    fields: str | None = option(
        None, f"what a prompt shows beside the query, of {','.join(PROMPT_FIELDS)}; none: as the model's run"
    )
    max_prompt_tok: int | None = option(
        None, "budget of tokens for a prompt, shared fairly by its texts (0: none); none: as the model's run"
    )
    instructions: str | None = option(
        None, "UTF-8 file with a text in place of our instructions (default: ours); none: as the model's run"
    )


@dataclass(frozen=True)
class PromptFlags(AskFlags):
    """The same with `--max-chars`, which has another meaning in infer/serve.py."""

    max_chars: int | None = option(
        None, "characters of every text that a prompt shows, at most; none: as the model's run (600)"
    )


def given(flags: AskFlags) -> list[str]:
    """The flags that were given, as they are typed."""
    return [flag_of(item.name) for item in fields(PromptFlags) if getattr(flags, item.name, None) is not None]


def prompt_problems(flags: AskFlags) -> list[tuple[bool, str]]:
    """Problems for `taosr1.runtime.cli.check`."""
    names = _names(flags.fields or "")
    unknown = [name for name in names if name not in PROMPT_FIELDS]
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    known, max_chars = ", ".join(PROMPT_FIELDS), getattr(flags, "max_chars", None)
    return [
        (flags.fields is not None and not names, f"--fields is empty, expected some of {known}"),
        (bool(unknown), f"--fields names {', '.join(map(repr, unknown))}, expected some of {known}"),
        (bool(twice), f"--fields names {', '.join(twice)} twice, expected once"),
        (flags.max_prompt_tok is not None and flags.max_prompt_tok < 0,
         f"--max-prompt-tok is {flags.max_prompt_tok}, expected at least 0"),
        (max_chars is not None and max_chars < 1, f"--max-chars is {max_chars}, expected at least 1"),
        (flags.instructions is not None and flags.style == "brief",
         "--instructions needs --style full: the brief prompt has no instructions"),
    ]  # fmt: skip


def prompt_asked(
    spec: str, stored: PromptConfig | None, flags: AskFlags | None = None, *, usual: PromptConfig | None = None,
    order: str | None = None,
) -> PromptConfig:  # fmt: skip
    """How the model behind `--model` is asked.

    spec: for messages. stored: what its folder says (prompt.json), None for a folder that taosr1 did not write, which
    may be asked in any way; usual: for that one, where no flag is given. order: of the reply, given by the stage that
    teaches it (train/sft.py): that one may also change the rest of the prompt, and says so on stderr.
    Raises: ValueError for flags that contradict what the model was trained with, and for an unusable --instructions.
    """
    prompt = stored or usual or PromptConfig()
    prompt = replace(prompt, order=order) if order else prompt
    asked = replace(prompt, **_given(flags)) if flags else prompt
    if stored is None or asked == prompt:
        return asked
    changed = [item.name for item in fields(asked) if item.compare and differs(item.name, asked, prompt)]
    told = ", ".join(f"{flag_of(name)} {_shown(getattr(prompt, name))}" for name in changed)
    if not order:
        given = ", ".join(map(flag_of, changed))
        raise ValueError(
            f"--model {spec} was trained with {told}: leave {given} out, or teach it another prompt first "
            f"(train/sft.py --model {spec} {flag_of(changed[0])} ...)"
        )
    print(f"note: --model {spec} was trained with {told}; this stage teaches it another prompt", file=sys.stderr)
    return asked


def differs(name: str, one: PromptConfig, other: PromptConfig) -> bool:
    """Whether two configurations have another value of a setting."""
    return getattr(one, name) != getattr(other, name)


def _given(flags: AskFlags) -> dict[str, Any]:
    """The settings of `PromptConfig` that the flags give."""
    found = {name: getattr(flags, name, None) for name in ("style", "max_chars", "max_prompt_tok")}
    found["fields"] = tuple(_names(flags.fields)) if flags.fields else None
    found["instructions"] = read_instructions(flags.instructions) if flags.instructions is not None else None
    return {name: value for name, value in found.items() if value is not None}


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _shown(value: object) -> str:
    """A setting as its flag has it; of a long text the beginning."""
    text = ",".join(value) if isinstance(value, tuple) else str(value)
    text = " ".join(text.split())
    return repr(text[:40] + "...") if len(text) > 40 and not isinstance(value, tuple) else text or "unset"


def read_instructions(path: str) -> str:
    """The text of an --instructions file, without the white space around it. "" is how the usual ones are named.

    Raises: ValueError and FileNotFoundError, in one line, for what is no such text.
    """
    if not path:
        raise ValueError("--instructions is empty, expected a file")
    if not Path(path).is_file():
        raise FileNotFoundError(f"--instructions {path}: no such file")
    try:
        with open(path, encoding="utf-8-sig") as file:
            text = file.read(MAX_INSTRUCTIONS_CHARS + 2).strip()  # not the whole of a file that is no such text
    except UnicodeDecodeError as error:
        raise ValueError(f"--instructions {path}: not UTF-8 text ({error})") from error
    check([
        (not text, f"--instructions {path}: the file is empty, expected a text"),
        (len(text) > MAX_INSTRUCTIONS_CHARS,
         f"--instructions {path}: more than {MAX_INSTRUCTIONS_CHARS:,} characters, expected at most as many"),
    ])  # fmt: skip
    return text
