"""Replies that are being written, in as few rows as they need: what several samples of a prompt have said alike is computed once.

A judge that was trained knows most of what it says. At temperature 1 the bundled thinker's eight replies to a prompt are 1.4 different
ones, and a sixth of their words would need a row (`examples/guide/speed.md`). So the samples of a prompt begin as one row;
every sample still draws every token with its own number, from its row's logits; and where two draw differently the row forks.
Neither the distribution nor any reply changes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from taosr1.fast.onednn_linear import is_plain
from taosr1.fast.shared_prefix_cache import SharedPrefixCache, compact_order, continue_prefixes, rows_can_fork
from taosr1.model.decoder import DecoderConfig
from taosr1.model.kv_cache import Cache, KVCache


def copies_prompts(config: DecoderConfig, tokens: int) -> bool:
    """Whether each sample gets a copy of its prompt: on the plain path, and where a sliding window ends before so many tokens."""
    return is_plain() or config.sliding_window is not None and config.sliding_window < tokens


class DecodeBatch:
    """Prompts that entered together: the R rows of a cache, and the M >= R replies that are written in them.

    replies: (M,) int64, their rows in the result. last: (M,) int64, their newest tokens. going: (M,) bool, whether they still write.
    row_of: (M,) int64, each reply's row; several may share it where `parts`. representatives: (R,) int64, for each row one of the replies in it,
    a going one if there is one.
    """

    def __init__(self, cache: Cache, replies: Tensor, last: Tensor, going: Tensor, row_of: Tensor) -> None:
        self.cache, self.replies, self.last, self.going, self.row_of = cache, replies, last, going, row_of
        self.parts = isinstance(cache, SharedPrefixCache)
        self.representatives = self._speakers()

    @classmethod
    def of(cls, prompts: KVCache, prompt_of: Tensor, replies: Tensor, first: Tensor, going: Tensor, new_tokens: int) -> DecodeBatch:
        """Replies to the prompts of a cache after their first tokens. prompt_of: (M,) int64, ascending."""
        row_of = torch.arange(len(replies), device=replies.device)
        if copies_prompts(prompts.config, prompts.used + new_tokens):
            return cls(prompts.expand(len(replies) // prompts.rows, capacity=prompts.used + new_tokens), replies, first, going, row_of)
        if rows_can_fork(prompts):
            prompt_of, row_of = _unique_continuations(prompt_of, first)
        return cls(continue_prefixes(prompts, prompt_of, new_tokens), replies, first, going, row_of)

    def _speakers(self) -> Tensor:
        count = len(self.replies)
        replies = torch.arange(count, device=self.replies.device)
        if not self.parts:
            return replies
        going_first = torch.where(self.going, replies, replies + count)
        return torch.full((self.cache.rows,), 2 * count, device=replies.device).scatter_reduce_(0, self.row_of, going_first, "amin") % count

    def alive(self) -> Tensor:
        """Which rows are still written in, (R,) bool."""
        return self.going[self.representatives]

    def left(self) -> Tensor:
        """How many rows are still written in, and how many replies still written: (2,) int64."""
        return torch.stack([self.alive().sum(), self.going.sum()])

    def leave(self) -> DecodeBatch:
        """Drop the replies that have ended, and the rows that nobody writes in."""
        alive, kept = self.alive(), self.going.nonzero()[:, 0]
        rows = compact_order(alive) if self.parts else alive.nonzero()[:, 0]
        self.cache = self.cache.select(rows)
        self.replies, self.last, self.going, row_of = (x[kept] for x in (self.replies, self.last, self.going, self.row_of))
        self.row_of = torch.empty_like(alive, dtype=torch.int64).index_copy_(0, rows, torch.arange(len(rows), device=rows.device))[row_of]
        self.representatives = self._speakers()
        return self

    def part(self) -> bool:
        """Give replies of one row whose newest tokens differ a row for each of them. Returns whether rows or representatives may be others now."""
        if self.cache.rows == len(self.replies):
            return False
        self.representatives = self._speakers()
        away = self.going & (self.last != self.last[self.representatives[self.row_of]])
        if bool(away.any()):
            forked, way_of = _unique_continuations(self.row_of[away], self.last[away])
            self.row_of[away] = self.cache.rows + way_of
            self.cache = self.cache.fork(forked, most=len(self.replies))
            self.representatives = self._speakers()
        return True


def _unique_continuations(row_of: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """In how many ways replies go on: the row (W,) of each way, ascending, and each reply's way (M,). Shapes: row_of, tokens (M,) int64."""
    pairs, way_of = torch.stack([row_of, tokens]).unique(dim=1, return_inverse=True)  # (2, W), sorted
    return pairs[0], way_of
