"""What one step of `training_step.py` is made of: prompts as ESCI has them, replies, pairs, groups, and their work."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save_file

from examples.benchmarks import common
from examples.benchmarks.steps import random_words
from taosr1.data.sources import load_rows
from taosr1.learning.batches import Example, Item, common_tok
from taosr1.learning.rollout_group import Group, read_rollout
from taosr1.model.config import DecoderConfig
from taosr1.model.tokenizer import Tokenizer
from taosr1.task.judgement import Judgement
from taosr1.task.prompt import encode_prompt
from taosr1.task.prompt_config import PromptConfig
from taosr1.task.reply import encode_reply
from train.dpo import PreferencePair

FIELDS = {"short": ("title", "brand"), "full": ("title", "brand", "category", "attributes", "description")}
REPLIES = {"label": "label", "cot": "post-cot"}  # and the order that the prompt asks for
ROWS_OF = {"sft": 1, "dpo": 2, "grpo": 8, "rollouts": 8}  # rows that belong to a prompt
# Tokens (SmolLM2's) of 400 train rows of ESCI, fields cut to 600 characters: percentiles 5, 25, 50, 75 and 95.
QUANTILES = {
    "query": (2, 4, 5, 6, 10), "title": (15, 22, 30, 45, 59), "brand": (1, 2, 3, 4, 6),
    "category": (7, 15, 20, 24, 33), "attributes": (28, 86, 134, 151, 174), "description": (0, 0, 0, 129, 182),
}  # fmt: skip
COT_QUANTILES = (47, 58, 69, 79, 96)  # of 400 post-cot replies of `train/teacher.py evidence`, label and end included


class Words:
    """Random words, so many as a text's percentiles say."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.ids = random_words(tokenizer, 1, 100_000, seed=0)[0]
        self.generator = torch.Generator().manual_seed(0)

    def draw(self, quantiles: Sequence[int]) -> list[int]:
        length = at_share(quantiles, float(torch.rand((), generator=self.generator)))
        start = int(torch.randint(len(self.ids) - 1000, (), generator=self.generator))
        return self.ids[start : start + length]


def at_share(quantiles: Sequence[int], share: float) -> int:
    """The value that this share of rows is below, between the known percentiles in a straight line."""
    known, share = (0.05, 0.25, 0.5, 0.75, 0.95), min(max(share, 0.05), 0.95)
    place = next(index for index in range(4) if share <= known[index + 1])
    low, high = quantiles[place : place + 2]
    return round(low + (high - low) * (share - known[place]) / (known[place + 1] - known[place]))


def make_items(model: str, data: str, stage: str, prompts: str, replies: str, rows: int) -> list[Item]:
    """The examples, pairs or groups of the step that is repeated, of so many rows in all.

    model: a folder, for its tokenizer. data: judgements to take the prompts' texts from, or "".
    """
    tokenizer = Tokenizer(model)
    words, each = Words(tokenizer), ROWS_OF[stage]
    cut = {} if data else {"max_chars": 10_000}  # the lengths that are drawn are those of fields that were cut
    prompt = PromptConfig(REPLIES[replies], "full", FIELDS[prompts], **cut)
    items: list[Item] = []
    for number, row in enumerate(judgements(tokenizer, words, rows // each, data)):
        ids, grades = encode_prompt(tokenizer, row, prompt), [1 + (number + reply) % 4 for reply in range(each)]
        examples = [Example(ids, reply_of(tokenizer, grade, words, replies)) for grade in grades]
        if stage == "sft":
            items += examples
        elif stage == "dpo":
            items.append(PreferencePair(*examples, -1.0, -2.0))
        else:
            of_group = [
                read_rollout(str(grade), "label", ids=example.reply, advantage=2.5 - grade)
                for grade, example in zip(grades, examples)
            ]
            items.append(Group(number, ids, 4, of_group))
    return items


def judgements(tokenizer: Tokenizer, words: Words, count: int, data: str) -> list[Judgement]:
    if data:
        rows = load_rows(data)
        order = torch.randperm(len(rows), generator=words.generator)
        return [rows[place] for place in order[:count].tolist()]
    return [
        Judgement(**{name: tokenizer.decode(words.draw(known)).strip() for name, known in QUANTILES.items()})
        for _ in range(count)
    ]


def reply_of(tokenizer: Tokenizer, grade: int, words: Words, replies: str) -> list[int]:
    """The grade's digit and the end token; with "cot" random words between them, as many as explanations have."""
    ids = encode_reply(tokenizer, str(grade))
    return [*ids[:-1], *words.draw(COT_QUANTILES)[len(ids) :], *ids[-1:]] if replies == "cot" else ids


def rows_in(items: Sequence[Item]) -> Iterator[Example]:
    for item in items:
        if isinstance(item, Group):
            yield from (Example(item.prompt, reply.ids) for reply in item.replies)
        else:
            yield from (item.chosen, item.rejected) if isinstance(item, PreferencePair) else (item,)


def few_of(items: Sequence[Item]) -> list[Item]:
    """Four rows of the items, of two prompts at least."""
    if isinstance(items[0], Group):
        return [replace(group, replies=group.replies[: 4 // len(items[:2])]) for group in items[:2]]
    return list(items[: 4 // len(list(rows_in(items[:1])))])


def their_parts(items: Sequence[Item], max_tokens: int) -> list[list[Item]]:
    """Micro-batches of at most so many padded tokens. A pair is two whole rows, a group may be cut between its rows."""
    pieces = [piece for item in items for piece in (one_by_one(item) if isinstance(item, Group) else [item])]
    sizes = [[row.length_tok for row in rows_in([piece])] for piece in pieces]
    parts: list[list[Item]] = []
    for number in sorted(range(len(pieces)), key=lambda number: max(sizes[number])):
        if parts and (len(parts[-1]) + 1) * len(sizes[number]) * max(sizes[number]) <= max_tokens:
            parts[-1].append(pieces[number])
        else:
            parts.append([pieces[number]])
    return parts


def one_by_one(group: Group) -> list[Group]:
    return [replace(group, replies=[reply]) for reply in group.replies]


def describe(items: Sequence[Item]) -> str:
    lengths, replies = [len(item.beginning) for item in items], [len(row.reply) for row in rows_in(items)]
    tokens = f"{min(lengths)} to {max(lengths)} tokens, mean {sum(lengths) / len(lengths):.0f}"
    of_replies = f"{len(replies)} replies of {min(replies)} to {max(replies)}"
    return f"{len(items)} prompts of {tokens}; all share {common_tok(items)}; {of_replies}"


def training_flops(config: DecoderConfig, items: Sequence[Item], *, trains_all: bool) -> float:
    """Useful work of a step: what all prompts share, a prompt of several replies, and equal replies count once."""
    shared = common_tok(items)
    forward = common.useful_flops(config, 0, shared, 0)
    for item in items:
        forward += common.useful_flops(config, shared, len(item.beginning) - shared, 1)
        for length in map(len, {tuple(row.reply) for row in rows_in([item])}):  # the last token predicts nothing
            forward += common.useful_flops(config, len(item.beginning), length - 1, length - 1)
    return (3 if trains_all else 2) * forward


def first_layers(model: str, layers: int, folder: Path) -> str:
    """A copy in `folder` of a model's folder with its first layers alone; returns it."""
    source = Path(model)
    for path in source.iterdir():
        if path.name not in ("config.json", "model.safetensors"):
            (folder / path.name).symlink_to(path.resolve())
    config = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": layers}))
    with safetensors.safe_open(source / "model.safetensors", "pt") as file:
        kept = [name for name in file.keys() if ".layers." not in name or int(name.split(".")[2]) < layers]
        save_file({name: file.get_tensor(name) for name in kept}, folder / "model.safetensors", {"format": "pt"})
    return str(folder)
