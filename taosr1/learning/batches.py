"""Examples become right-padded batches. Masks come from lengths, never from pad ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Protocol, TypeVar

import torch


class Sized(Protocol):
    """Anything with a number of tokens: what `micro_batches` sorts and splits by."""

    @property
    def length_tok(self) -> int: ...


@dataclass(frozen=True)
class Example:
    """A prompt and the reply to learn, as token ids; the reply ends with the end-of-sequence token."""

    prompt: list[int]
    reply: list[int]

    @property
    def length_tok(self) -> int:
        return len(self.prompt) + len(self.reply)


@dataclass(frozen=True)
class Batch:
    """ids (B, T) int64, right padded; mask (B, T) bool, True on reply tokens."""

    ids: torch.Tensor
    mask: torch.Tensor


Item = TypeVar("Item", bound=Sized)


def collate(examples: Sequence[Example], device: torch.device | str = "cpu") -> Batch:
    """Examples as one batch; the pad id is 0, which nothing reads: attention is causal and the mask excludes it."""
    width = max(example.length_tok for example in examples)
    ids = torch.zeros(len(examples), width, dtype=torch.int64)
    mask = torch.zeros(len(examples), width, dtype=torch.bool)
    for row, example in enumerate(examples):
        ids[row, : example.length_tok] = torch.tensor(example.prompt + example.reply)
        mask[row, len(example.prompt) : example.length_tok] = True
    return Batch(ids.to(device), mask.to(device))


def micro_batches(items: Sequence[Item], max_tokens: int) -> list[list[Item]]:
    """One step's items cut into micro-batches of at most `max_tokens` padded tokens, alike in length.

    Sorting by length first is what saves the padding; it changes no gradient, because the loop adds sums. A single item
    longer than the budget makes a micro-batch of its own.
    """
    batches: list[list[Item]] = []
    for item in sorted(items, key=lambda item: item.length_tok):
        if batches and (len(batches[-1]) + 1) * item.length_tok <= max_tokens:
            batches[-1].append(item)
        else:
            batches.append([item])
    return batches


def padded_tok(items: Sequence[Sized]) -> int:
    """What a micro-batch costs: its rows times the longest, padding included."""
    return len(items) * max(item.length_tok for item in items)


class HasReply(Protocol):
    """Anything with a prompt and a reply, as token ids."""

    prompt: list[int]
    reply: list[int]


Sibling = TypeVar("Sibling", bound=HasReply)


@dataclass(frozen=True)
class ReplyGroup:
    """Replies to one prompt. They take the room of that prompt and of all of them, because the prompt is computed once."""

    items: list

    @property
    def length_tok(self) -> int:
        return len(self.items[0].prompt) + sum(len(item.reply) for item in self.items)


def group_batches(groups: Sequence[Sequence[Sibling]], max_tokens: int) -> list[list[Sibling]]:
    """`micro_batches` of groups of replies to one prompt: siblings stay side by side, so that `completion_logp` can share their prompt.

    A group too long for the budget is cut into several runs of siblings.
    """
    runs: list[ReplyGroup] = []
    for group in groups:
        fresh = True
        for item in group:
            if not fresh and ReplyGroup([*runs[-1].items, item]).length_tok <= max_tokens:
                runs[-1].items.append(item)
            else:
                runs.append(ReplyGroup([item]))
            fresh = False
    return [[item for siblings in part for item in siblings.items] for part in micro_batches(runs, max_tokens)]


def packed_tok(items: Sequence[Sibling]) -> int:
    """What a micro-batch of siblings costs: each prompt once, and all replies."""
    return sum(len(item.reply) for item in items) + sum(len(prompt) for prompt in {tuple(item.prompt) for item in items})


def label_token_weights(mask: torch.Tensor, weight: float, position: str) -> torch.Tensor:
    """Token weights (B, T): `weight` on the label token, 1 on the other reply tokens, 0 elsewhere.

    position: "first" (label and post-CoT replies) or "none" (every token weighs 1: pre-CoT, whose label stands inside
    the Decision line).
    """
    weights = mask.float()
    if position == "first" and weight != 1.0:
        rows = torch.arange(len(mask), device=mask.device)
        weights[rows, mask.int().argmax(dim=1)] *= weight
    return weights


def halved(batch: Batch) -> list[Batch]:
    """A micro-batch as two of half as many rows; itself where it has a single row (or, in pairs, a single pair).

    Works for any dataclass of tensors whose first axis is rows; what is no tensor is in both halves. `rows_together` of its class says
    how many neighbours cannot be parted (2: chosen and rejected), 1 without it.
    """
    together, rows = getattr(batch, "rows_together", 1), len(batch.ids)
    middle = (rows // together + 1) // 2 * together
    if middle >= rows:
        return [batch]
    tensors = {field.name: getattr(batch, field.name) for field in fields(batch) if torch.is_tensor(getattr(batch, field.name))}
    cuts = (slice(None, middle), slice(middle, None))
    return [replace(batch, **{name: tensor[cut] for name, tensor in tensors.items()}) for cut in cuts]
