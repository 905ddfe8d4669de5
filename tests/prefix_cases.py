"""Rows that continue prefixes, for the tests of every cache and layout, and their twin: each row computed in full."""

from __future__ import annotations

import torch

from taosr1.fast.kv_cache import FastKVCache
from taosr1.model.decoder import Decoder

PREFIXES, PREFIX_OF = (5, 2, 7), [0, 0, 1, 2, 2, 2]


def draw(rows: int, length: int, seed: int) -> torch.Tensor:
    return torch.randint(97, (rows, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def prefilled(fast: Decoder) -> tuple[FastKVCache, list[list[int]]]:
    """A cache with the three prefixes, and their tokens."""
    ids = draw(len(PREFIXES), max(PREFIXES), 0)
    cache = FastKVCache(fast.config, len(PREFIXES), max(PREFIXES), dtype=fast.model.embed_tokens.weight.dtype)
    fast(ids, cache=cache)
    cache.lengths.copy_(torch.tensor(PREFIXES))
    return cache, [row[:length] for row, length in zip(ids.tolist(), PREFIXES)]


@torch.no_grad()
def alone(plain: Decoder, prefix: list[int], own: list[int]) -> torch.Tensor:
    """Logits at the tokens after the prefix, the whole row computed by itself."""
    return plain(torch.tensor([prefix + own]))[0, len(prefix) :]
