"""Prompts become right-padded batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor


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
    """Token ids (P, T) int64. In a causal model no real token attends to padding, so any id will do; 0 exists."""
    ids = np.zeros((len(prompts), max(map(len, prompts))), dtype=np.int64)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = prompt
    return torch.from_numpy(ids)
