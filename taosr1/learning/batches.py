"""A step's items become right-padded batches. Masks come from lengths, never from pad ids."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch


@dataclass(frozen=True)
class Batch:
    """ids (B, T) int64, right padded; mask (B, T) bool, True on reply tokens."""

    ids: torch.Tensor
    mask: torch.Tensor


class Item(ABC):
    """Something to learn from, of which a step has many: an example, a pair, a group of replies to one prompt."""

    @property
    @abstractmethod
    def length_tok(self) -> int:
        """Tokens that it takes in a batch; a prompt that its replies share counts once."""

    @property
    def beginning(self) -> Sequence[int]:
        """Tokens that its rows begin with: its prompt. Items whose rows share nothing have none."""
        return ()

    def cut(self, max_tokens: int) -> list[Item]:
        """Itself, or pieces of at most `max_tokens` where it can be cut and is longer."""
        return [self]

    @staticmethod
    @abstractmethod
    def collate(items: Sequence, device: torch.device | str = "cpu") -> Batch:
        """Several items of this kind as one batch: a dataclass of tensors whose first axis is rows."""


ItemT = TypeVar("ItemT", bound=Item)


@dataclass(frozen=True)
class Example(Item):
    """A prompt and the reply to learn, as token ids; the reply ends with the end-of-sequence token."""

    prompt: list[int]
    reply: list[int]

    @property
    def length_tok(self) -> int:
        return len(self.prompt) + len(self.reply)

    @property
    def beginning(self) -> list[int]:
        return self.prompt

    @staticmethod
    def collate(items: Sequence[Example], device: torch.device | str = "cpu") -> Batch:
        return collate(items, device)


def collate(examples: Sequence[Example], device: torch.device | str = "cpu") -> Batch:
    """Examples as one batch. The pad id is 0, which has no effect: attention is causal and the mask excludes it."""
    width = max(example.length_tok for example in examples)
    ids = torch.zeros(len(examples), width, dtype=torch.int64)
    mask = torch.zeros(len(examples), width, dtype=torch.bool)
    for row, example in enumerate(examples):
        ids[row, : example.length_tok] = torch.tensor(example.prompt + example.reply)
        mask[row, len(example.prompt) : example.length_tok] = True
    return Batch(ids.to(device), mask.to(device))


def micro_batches(items: Sequence[ItemT], max_tokens: int, *, shared_tok: int = 0) -> list[list[ItemT]]:
    """One step's items as micro-batches of at most `max_tokens` padded tokens, each of items of similar length.

    Sorting by length first is what saves the padding; it changes no gradient, because the loop adds sums. A single item
    longer than the budget, which cannot be cut, makes a micro-batch of its own.
    shared_tok: tokens that every item begins with, where a micro-batch takes them once.
    """
    pieces = [piece for item in items for piece in item.cut(max_tokens)]
    batches: list[list[ItemT]] = []
    for piece in sorted(pieces, key=lambda piece: piece.length_tok):
        if batches and shared_tok + (len(batches[-1]) + 1) * (piece.length_tok - shared_tok) <= max_tokens:
            batches[-1].append(piece)
        else:
            batches.append([piece])
    return batches


def padded_tok(items: Sequence[Item], shared_tok: int = 0) -> int:
    """What a micro-batch costs: the number of its items times the longest, padding included, shared tokens once."""
    return shared_tok + len(items) * (max(item.length_tok for item in items) - shared_tok)


def common_tok(items: Sequence[Item]) -> int:
    """How many tokens all items begin with."""
    if not items:
        return 0
    first, last = min(item.beginning for item in items), max(item.beginning for item in items)
    return len(os.path.commonprefix([first, last]))


def label_token_weights(mask: torch.Tensor, weight: float | torch.Tensor, order: str) -> torch.Tensor:
    """Token weights (B, T): `weight` (B,) or one on the label token, 1 on the other reply tokens, 0 elsewhere.

    order: of the reply. The label token is the first one, unless the order is pre-cot: there every token weighs 1,
        because the label is part of the Decision line.
    """
    weights = mask.float()
    if order != "pre-cot":
        rows = torch.arange(len(mask), device=mask.device)
        weights[rows, mask.int().argmax(dim=1)] *= weight
    return weights


def halved(batch: Batch) -> list[Batch]:
    """A micro-batch as two of half as many rows; itself where it has a single row (or, in pairs, a single pair).

    Works for any dataclass of tensors whose first axis is rows; what is no tensor is in both halves. `rows_together` of
    its class says how many neighbours must stay together (2: chosen and rejected), 1 without it.
    """
    together, rows = getattr(batch, "rows_together", 1), len(batch.ids)
    middle = (rows // together + 1) // 2 * together
    if middle >= rows:
        return [batch]
    tensors = {field.name: getattr(batch, field.name) for field in fields(batch)}
    tensors = {name: value for name, value in tensors.items() if torch.is_tensor(value)}
    cuts = (slice(None, middle), slice(middle, None))
    return [replace(batch, **{name: tensor[cut] for name, tensor in tensors.items()}) for cut in cuts]
