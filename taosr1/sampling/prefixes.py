"""Which prompts begin alike, so that what they share is computed once: all products of one query share template, rules and query."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SHORTEST_PREFIX = 16  # tokens; to share fewer is not worth a second pass


@dataclass(frozen=True)
class PrefixGroup:
    """Prompts (their numbers) whose first `length` tokens are the same. Each of them has at least one token more."""

    length: int
    rows: list[int]


def group_by_prefix(prompts: Sequence[Sequence[int]]) -> list[PrefixGroup]:
    """Every prompt in one group. In alphabetical order of their tokens, prompts that begin alike are neighbours.

    A prompt joins the group before it where that saves tokens: n prompts that share l tokens save (n - 1) * l. So a template that all
    prompts share does not tie one query's products to the next one's.
    """
    keys = [tuple(prompt) for prompt in prompts]
    groups: list[PrefixGroup] = []
    previous: tuple[int, ...] = ()
    for row in sorted(range(len(keys)), key=keys.__getitem__):
        prompt, joins = keys[row], False
        if groups:
            group = groups[-1]
            length = min(group.length, len(prompt) - 1, common_prefix(previous, prompt))
            joins = length >= SHORTEST_PREFIX and len(group.rows) * length > (len(group.rows) - 1) * group.length
        if joins:
            group.rows.append(row)
            groups[-1] = PrefixGroup(length, group.rows)
        else:
            groups.append(PrefixGroup(len(prompt) - 1, [row]))
        previous = prompt
    return groups


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two prompts share at their beginning, found by halving: comparing slices is quick."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[:middle] == second[:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def batch_by_length(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Yields row indices grouped so that rows x longest row <= max_tokens, longest first; a longer row goes alone."""
    rows: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):  # stable: the split depends on lengths only
        if rows and (len(rows) + 1) * lengths[rows[0]] > max_tokens:
            yield rows
            rows = []
        rows.append(row)
    if rows:
        yield rows


def pad_right(prompts: Sequence[Sequence[int]]) -> Tensor:
    """(P, T) int64. Under causal attention no real position can see a pad, so any id will do; 0 always exists."""
    ids = torch.zeros(len(prompts), max(map(len, prompts)), dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt)
    return ids
