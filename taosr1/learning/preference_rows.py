"""Preference pairs in files: rows of train/mine_pairs.py, which hold token ids, and TRL's rows, which hold text.

Ids mean nothing without their tokenizer: those of a mined row are decoded and compared with the text beside them.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from typing import Any

from taosr1.data.flags import AS_FOUND, ReadFlags
from taosr1.data.flatten import is_blank
from taosr1.data.rows import data_files, read_rows
from taosr1.judge_model import JudgeModel
from taosr1.learning.batches import Example
from taosr1.model.tokenizer import Tokenizer
from taosr1.runtime.bad_rows import BadRows
from taosr1.runtime.jsonl import clean_text
from taosr1.runtime.messages import say_once
from taosr1.task.prompt import encode_messages, encode_reply

NAMES = ("prompt", "chosen", "rejected")
ROLES = ("system", "user", "assistant")
Messages = list[tuple[str, str]]  # role and text
# How rendered prompts of some families begin.
RENDERED = re.compile(
    r"\s*(<\|(?:im_start|user|system|start_header_id|begin_of_text|start)\|>|<start_of_turn>|<bos>|(?:<s>)?\s*\[INST\])"
)


class OtherTokenizer(ValueError):
    """The ids of a row are not those of its text."""


def read_preferences(spec: str, judge: JudgeModel, read: ReadFlags = AS_FOUND) -> list[tuple[Example, Example]]:
    """The chosen and the rejected example of every row, in files of any format that `data.rows` reads.

    Rows with `prompt_ids`, `chosen_ids` and `rejected_ids` are mined ones. Any other row is TRL's: `prompt`, `chosen`,
    `rejected` as strings or lists of messages; without `prompt`, `chosen` and `rejected` are whole conversations that
    share their beginning. Other columns are not used.

    Raises: ValueError naming file, line and field of a row that cannot be read (--max-bad-rows skips such rows), or
        whose ids are of another tokenizer.
    Choice: TRL joins strings without a chat template. Here a prompt that is a string is the user's message in the
        model's chat template, because that is how the trained judge is asked. All texts are untrusted: none can hold a
        control token.
    """
    pairs, text_rows, unused, allowed = [], 0, Counter(), read.max_bad_rows
    for path in data_files(spec):
        bad_rows = BadRows(path, allowed)
        for line, row in read_rows(path, bad_rows, read):
            is_mined = any(f"{name}_ids" in row for name in NAMES)
            try:
                pairs.append(_pair(*(_mined if is_mined else _of_text)(row, judge), judge))
                if not is_mined:
                    text_rows += 1
                    unused.update(name for name, value in row.items() if name not in NAMES and value is not None)
            except OtherTokenizer as problem:
                raise ValueError(f"{path}:{line}: {problem}") from problem
            except ValueError as problem:
                bad_rows.add(line, problem)
        allowed -= bad_rows.skipped
    if not pairs:
        raise ValueError(f"{spec}: no pairs in this file: check --data")
    if text_rows:
        how = "each prompt is shown to the model as written, as the user's message of its chat template"
        print(f"note: {spec}: {text_rows} of {len(pairs)} pairs are text without ids: {how}", file=sys.stderr)
    if unused:
        print(f"note: {spec}: not used: the columns {', '.join(sorted(map(str, unused)))}", file=sys.stderr)
    return pairs


def _pair(prompt: list[int], chosen: list[int], rejected: list[int], judge: JudgeModel) -> tuple[Example, Example]:
    positions = judge.model.config.max_position_embeddings
    for name, reply in (("chosen", chosen), ("rejected", rejected)):
        if len(prompt) + len(reply) > positions:
            tokens = f"takes {len(prompt)} + {len(reply)} tokens with its prompt"
            raise ValueError(f"field {name!r} {tokens}, but the model has {positions} positions: shorten it")
    return Example(prompt, chosen), Example(prompt, rejected)


def _mined(row: dict, judge: JudgeModel) -> list[list[int]]:
    """The ids of a mined row.

    Raises: ValueError where they are missing, spell another text than the row's, or are no prompt of this model with
        two replies, of which the chosen one is complete; only the rejected one may have been cut.
    """
    tokenizer, vocab_size, found = judge.tokenizer, judge.model.config.vocab_size, []
    for name in NAMES:
        ids, text = row.get(f"{name}_ids"), row.get(name)
        if not (isinstance(ids, list) and ids and all(type(i) is int and 0 <= i < vocab_size for i in ids)):
            expected = f"token ids below {vocab_size}"
            made_by = "pairs of train/mine_pairs.py, mined with this model's tokenizer"
            raise ValueError(f"field '{name}_ids' must be {expected} ({made_by})")
        if not isinstance(text, str):
            raise ValueError(f"field {name!r} is {text!r:.60}, expected the text of '{name}_ids'")
        spelled = clean_text(tokenizer.decode(ids))
        # A teacher's reply is stored as written; not every tokenizer gives it back exactly.
        if spelled != text and (name == "prompt" or ids != encode_reply(tokenizer, text)):
            raise OtherTokenizer(
                f"field '{name}_ids' spells {spelled[:40]!r} with this model's tokenizer, but field {name!r} is "
                f"{text[:40]!r}: the ids are of another tokenizer; mine the pairs again with this --model "
                "(train/mine_pairs.py)"
            )
        found.append(ids)
    _check_prompt(found[0], row["prompt"], tokenizer)
    for name, ids in zip(NAMES[1:], found[1:]):
        is_complete = ids[-1] in tokenizer.eos_ids
        said = ids[:-1] if is_complete else ids
        if not is_complete and name == "chosen":
            raise ValueError("field 'chosen_ids' does not end in the model's end token: it would teach not to stop")
        if not set(said).isdisjoint(tokenizer.eos_ids) or said[-1:] == [tokenizer.pad_id]:
            raise ValueError(f"field '{name}_ids' goes on behind its end, or is padded: cut it behind the end token")
    if is_blank(row["chosen"]):
        raise ValueError("field 'chosen' is empty")
    if row["chosen"] == row["rejected"]:
        raise ValueError("field 'rejected' is the same reply as 'chosen': nothing is preferred")
    return found


def _check_prompt(ids: list[int], text: str, tokenizer: Tokenizer) -> None:
    """Raises: OtherTokenizer where the prompt is not one user's message in the model's chat template."""
    frame = encode_messages(tokenizer, [("user", "kettle")])
    before, _, behind = clean_text(tokenizer.decode(frame)).rpartition("kettle")
    control = tokenizer.control_ids
    if [i for i in ids if i in control] == [i for i in frame if i in control] and (
        text.startswith(before.rstrip()) and text.endswith(behind.lstrip())
    ):
        return
    raise OtherTokenizer(
        f"field 'prompt_ids' is not a user's message in this model's chat template ({before[-40:]!r}, the message, "
        f"{behind[:40]!r}): mine the pairs again with this --model (train/mine_pairs.py)"
    )


def _of_text(row: dict, judge: JudgeModel) -> list[list[int]]:
    """The ids of a row of TRL's."""
    missing = [name for name in NAMES[1:] if row.get(name) is None]
    if missing:
        expected = "expected the text of a reply, or mined pairs with prompt_ids, chosen_ids and rejected_ids"
        raise ValueError(f"field {missing[0]!r} is missing, {expected}")
    if row.get("prompt") is None:
        prompt, chosen, rejected = _split(row)
    else:
        prompt = _prompt(row["prompt"], judge)
        chosen, rejected = (_reply(row[name], name, prompt) for name in NAMES[1:])
    if chosen == rejected:
        raise ValueError("field 'rejected' is the same reply as 'chosen': nothing is preferred")
    try:
        ids = [encode_messages(judge.tokenizer, prompt)]
    except ValueError as problem:
        raise ValueError(f"field 'prompt': {problem}") from problem
    for name, text in (("chosen", chosen), ("rejected", rejected)):
        try:
            ids.append(encode_reply(judge.tokenizer, text))
        except ValueError as problem:
            raise ValueError(f"field {name!r}: {problem}") from problem
    return ids


def _prompt(value: Any, judge: JudgeModel) -> Messages:
    """The messages of a prompt, the last one the user's."""
    if isinstance(value, str):
        if is_blank(value):
            raise ValueError("field 'prompt' is empty")
        rendered = next((text for text in judge.tokenizer.control_text() if value.lstrip().startswith(text)), None)
        if rendered:
            raise ValueError(
                f"field 'prompt' begins with the control token {rendered!r}, as a rendered chat template does: give "
                "the user's message alone, or a list of messages"
            )
        if other := RENDERED.match(value):
            say_once(
                f"prompts begin with {other[1]!r}, as the rendered chat template of another model does; it is shown as "
                "text: give the user's message alone, or a list of messages"
            )
        return [("user", value)]
    messages = _messages(value, "prompt")
    if messages[-1][0] != "user":
        raise ValueError(f"field 'prompt' ends with a message of role {messages[-1][0]!r}, expected 'user'")
    return messages


def _reply(value: Any, name: str, prompt: Messages) -> str:
    """The text of a reply: a string, an assistant's message, or a whole conversation that begins with the prompt."""
    if isinstance(value, str):
        if is_blank(value):
            raise ValueError(f"field {name!r} is empty")
        return value
    messages = _messages(value, name)
    if len(messages) > 1 and messages[:-1] == prompt:
        messages = messages[-1:]
    if len(messages) != 1 or messages[0][0] != "assistant":
        roles = ", ".join(role for role, _ in messages)
        raise ValueError(f"field {name!r} holds messages of {roles}, expected one of role 'assistant'")
    return messages[0][1]


def _split(row: dict) -> tuple[Messages, str, str]:
    """Prompt, chosen and rejected reply of two conversations that share all but their last message."""
    for name in NAMES[1:]:
        if not isinstance(row[name], list):
            raise ValueError(
                f"field 'prompt' is missing and field {name!r} is no list of messages, which would hold the prompt, too"
            )
    chosen, rejected = (_messages(row[name], name) for name in NAMES[1:])
    if chosen[:-1] != rejected[:-1] or len(chosen) < 2:
        raise ValueError(
            "field 'prompt' is missing, and 'chosen' and 'rejected' are not two conversations that differ in their "
            "last message alone"
        )
    if chosen[-2][0] != "user":
        raise ValueError(f"field 'chosen' has a message of role {chosen[-2][0]!r} before its last, expected 'user'")
    return chosen[:-1], _reply(row["chosen"], "chosen", chosen[:-1]), _reply(row["rejected"], "rejected", chosen[:-1])


def _messages(value: Any, name: str) -> Messages:
    if not isinstance(value, list) or not value:
        kind = "an empty list" if value == [] else f"{value!r:.60}"
        raise ValueError(f"field {name!r} is {kind}, expected text or a list of messages")
    found = []
    for number, message in enumerate(value, start=1):
        role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        where = f"field {name!r}, message {number}"
        if role not in ROLES:
            raise ValueError(f"{where}: role is {role!r:.40}, expected one of {', '.join(ROLES)}")
        if message.get("tool_calls"):
            raise ValueError(f"{where}: holds 'tool_calls', expected text alone")
        text = _joined(content)
        if text is None or is_blank(text):
            raise ValueError(f"{where}: content is {content!r:.60}, expected text")
        found.append((role, text))
    return found


def _joined(content: Any) -> str | None:
    """The text of a message; of a list of parts where all are text. None for anything else, such as a picture."""
    if isinstance(content, list):
        texts = [p.get("text") if isinstance(p, dict) and p.get("type") == "text" else None for p in content]
        return None if any(not isinstance(text, str) for text in texts) else "".join(texts)
    return content if isinstance(content, str) else None
