"""Groups of prompts that begin with the same tokens: all products of one query share template, rules and query."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

SHORTEST_PREFIX = 16  # tokens; sharing fewer is not worth a second pass
CPU_TOKENS = 1024  # see `tokens_at_once`


@dataclass(frozen=True)
class PrefixGroup:
    """Prompts (their indices) whose first `length` tokens are the same. Each of them has at least one token more."""

    length: int
    rows: list[int]


def group_by_prefix(prompts: Sequence[Sequence[int]]) -> list[PrefixGroup]:
    """Put every prompt into one group. Sorted by their bytes, prompts that begin alike are neighbours.

    A prompt joins the group before it if that saves tokens: n prompts that share l tokens save (n - 1) * l. So a
    template that all prompts share does not join the products of two queries.
    """
    keys = [array("i", prompt).tobytes() for prompt in prompts]  # many times faster to compare than lists of numbers
    groups: list[PrefixGroup] = []
    previous = b""
    for row in sorted(range(len(keys)), key=keys.__getitem__):
        joins = False
        if groups:
            group = groups[-1]
            length = common_prefix(previous, keys[row], min(group.length, len(prompts[row]) - 1))
            joins = length >= SHORTEST_PREFIX and len(group.rows) * length > (len(group.rows) - 1) * group.length
        if joins:
            group.rows.append(row)
            groups[-1] = PrefixGroup(length, group.rows)
        else:
            groups.append(PrefixGroup(len(prompts[row]) - 1, [row]))
        previous = keys[row]
    return groups


def common_prefix(first: bytes, second: bytes, most: int) -> int:
    """How many tokens, up to `most`, two prompts share at their beginning, by bisection. A token is four bytes."""
    low, high = 0, min(most, len(first) // 4, len(second) // 4)
    middle = high  # first of all, as the next product of a query usually shares all that the ones before it share
    while low < high:
        if first[: 4 * middle] == second[: 4 * middle]:
            low = middle
        else:
            high = middle - 1
        middle = (low + high + 1) // 2
    return low


def runs_of_tokens(lengths: Sequence[int], max_tokens: int) -> Iterator[tuple[int, int]]:
    """Yield start and end of runs of neighbours, with rows x longest row <= max_tokens; a longer row goes alone."""
    start = longest = 0
    for row, length in enumerate(lengths):
        if row > start and (row + 1 - start) * max(longest, length) > max_tokens:
            yield start, row
            start, longest = row, 0
        longest = max(longest, length)
    if start < len(lengths):
        yield start, len(lengths)


def tokens_at_once(max_tokens: int, device: torch.device) -> int:
    """The batch budget on this device. Small ones are faster on a CPU: less padding, activations stay in cache."""
    return min(max_tokens, CPU_TOKENS) if device.type == "cpu" else max_tokens
