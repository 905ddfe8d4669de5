"""Replies that are being decoded, in as few rows as possible: what samples of a prompt share is computed once.

A trained judge repeats itself. At temperature 1 the bundled thinker's eight replies to a prompt are 1.4 different ones,
and a sixth of their tokens would need a row (`examples/guide/speed.md`). So the samples of a prompt begin as one row;
every sample still draws every token with its own number, from its row's logits; and where two draw different tokens the
row is forked. Neither the distribution nor any reply changes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from taosr1.fast.kv_cache import Cache, FastKVCache
from taosr1.fast.shared_prefix_cache import SharedPrefixCache, compact_order, continue_prefixes, rows_can_fork
from taosr1.model.config import DecoderConfig


def copies_prompts(config: DecoderConfig, tokens: int) -> bool:
    """Whether each sample gets a copy of its prompt: only if a sliding window ends before so many tokens."""
    return config.sliding_window is not None and config.sliding_window < tokens


class DecodeBatch:
    """Prompts that entered together: the R rows of a cache, and the M >= R replies that are decoded in them.

    replies: (M,) int64, their rows in the result. last: (M,) int64, their newest tokens. active: (M,) bool, False once
    a reply is finished. row_of: (M,) int64, each reply's row; several share one only if `can_fork`. representatives:
    (R,) int64, one reply of each row, an active one if there is one.
    """

    def __init__(self, cache: Cache, replies: Tensor, last: Tensor, active: Tensor, row_of: Tensor) -> None:
        self.cache, self.replies, self.last, self.active, self.row_of = cache, replies, last, active, row_of
        self.can_fork = isinstance(cache, SharedPrefixCache)
        self.representatives = self._representatives()

    @classmethod
    def start(
        cls, prompts: FastKVCache, prompt_of: Tensor, replies: Tensor, first: Tensor, active: Tensor, new_tokens: int
    ) -> DecodeBatch:
        """Replies to the prompts of a cache after their first tokens. prompt_of: (M,) int64, ascending."""
        row_of = torch.arange(len(replies), device=replies.device)
        if copies_prompts(prompts.config, prompts.used + new_tokens):
            copies = prompts.expand(len(replies) // prompts.rows, capacity=prompts.used + new_tokens)
            return cls(copies, replies, first, active, row_of)
        if rows_can_fork(prompts):
            prompt_of, row_of = _unique_continuations(prompt_of, first)
        return cls(continue_prefixes(prompts, prompt_of, new_tokens), replies, first, active, row_of)

    def _representatives(self) -> Tensor:
        count = len(self.replies)
        replies = torch.arange(count, device=self.replies.device)
        if not self.can_fork:
            return replies
        active_first = torch.where(self.active, replies, replies + count)
        none = torch.full((self.cache.rows,), 2 * count, device=replies.device)
        return none.scatter_reduce_(0, self.row_of, active_first, "amin") % count

    def active_rows(self) -> Tensor:
        """Which rows have an active reply, (R,) bool."""
        return self.active[self.representatives]

    def counts(self) -> Tensor:
        """How many rows and how many replies are active: (2,) int64."""
        return torch.stack([self.active_rows().sum(), self.active.sum()])

    def drop_finished(self) -> DecodeBatch:
        """Remove the finished replies, and the rows that have no active one."""
        active_rows, kept = self.active_rows(), self.active.nonzero()[:, 0]
        rows = compact_order(active_rows) if self.can_fork else active_rows.nonzero()[:, 0]
        self.cache = self.cache.select(rows)
        fields = (self.replies, self.last, self.active, self.row_of)
        self.replies, self.last, self.active, row_of = (x[kept] for x in fields)
        new_row = torch.empty_like(active_rows, dtype=torch.int64)
        new_row.index_copy_(0, rows, torch.arange(len(rows), device=rows.device))
        self.row_of = new_row[row_of]
        self.representatives = self._representatives()
        return self

    def split_diverged(self) -> bool:
        """Give replies of one row whose newest tokens differ a row for each token.

        Returns: whether rows or representatives may have changed.
        """
        if self.cache.rows == len(self.replies):
            return False
        self.representatives = self._representatives()
        diverged = self.active & (self.last != self.last[self.representatives[self.row_of]])
        if bool(diverged.any()):
            forked, new_row = _unique_continuations(self.row_of[diverged], self.last[diverged])
            self.row_of[diverged] = self.cache.rows + new_row
            self.cache = self.cache.fork(forked, most=len(self.replies))
            self.representatives = self._representatives()
        return True


def _unique_continuations(row_of: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct pairs of row and next token: the row (W,) of each, ascending, and each reply's pair (M,).

    Shapes: row_of, tokens (M,) int64.
    """
    pairs, pair_of = torch.stack([row_of, tokens]).unique(dim=1, return_inverse=True)  # (2, W), sorted
    return pairs[0], pair_of
