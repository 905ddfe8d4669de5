"""Sampled replies as tensors: what `generate` returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rollouts:
    """Sampled replies of P prompts x G samples: R = P * G rows, N = the longest reply allowed.

    tokens: (R, N) int64; a row's first `lengths` entries are the reply, its stop token included; the rest is padding.
    lengths: (R,) int64, at least 1.
    logp: (R, N) float32, log-prob of each token at the sampling temperature, 0 beyond the reply.
    finished: (R,) bool, False where the reply was cut at N tokens.
    """

    tokens: Tensor
    lengths: Tensor
    logp: Tensor
    finished: Tensor

    @classmethod
    def empty(cls, rows: int, max_new_tokens: int, stop_ids: Sequence[int], device: torch.device | str) -> Rollouts:
        """Rows without a token yet, padded with the first stop id, or 0 without one."""
        return cls(
            torch.full((rows, max_new_tokens), next(iter(stop_ids), 0), dtype=torch.int64, device=device),
            torch.zeros(rows, dtype=torch.int64, device=device),
            torch.zeros(rows, max_new_tokens, device=device),
            torch.zeros(rows, dtype=torch.bool, device=device),
        )

    def settled_tok(self) -> int:
        """Of the R * N tokens that there may be, those that are drawn, or that no reply will have any more."""
        return int(torch.where(self.finished, self.tokens.shape[1], self.lengths).sum())

    def replies(self) -> list[list[int]]:
        """The replies as plain lists of ids, stop token included if there is one."""
        return [row[:n] for row, n in zip(self.tokens.tolist(), self.lengths.tolist())]

    def checked(self) -> Rollouts:
        """The same on the CPU. Raises: ValueError for log-probs that are not numbers."""
        if bool(self.logp.isnan().any()):
            raise ValueError("the logits are not finite: the weights hold NaN, or --dtype overflows")
        return Rollouts(self.tokens.cpu(), self.lengths.cpu(), self.logp.cpu(), self.finished.cpu())
