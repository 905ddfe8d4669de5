"""Rows behind prefixes, as the tests of every cache and layout draw them, and what each of them must equal: its whole row computed alone."""

from __future__ import annotations

import torch

from taosr1.model.kv_cache import KVCache

PREFIXES, PREFIX_OF = (5, 2, 7), [0, 0, 1, 2, 2, 2]


def draw(rows: int, length: int, seed: int) -> torch.Tensor:
    return torch.randint(97, (rows, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def prefilled(model) -> tuple[KVCache, list[list[int]]]:
    ids = draw(len(PREFIXES), max(PREFIXES), 0)
    cache = KVCache(model.config, len(PREFIXES), max(PREFIXES), dtype=model.model.embed_tokens.weight.dtype)
    model(ids, cache=cache)
    cache.lengths.copy_(torch.tensor(PREFIXES))
    return cache, [row[:length] for row, length in zip(ids.tolist(), PREFIXES)]


@torch.no_grad()
def alone(model, prefix: list[int], own: list[int]) -> torch.Tensor:
    """Logits at the tokens behind the prefix, the whole row computed by itself."""
    return model(torch.tensor([prefix + own]))[0, len(prefix) :]
