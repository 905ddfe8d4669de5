"""Soft labels for SFT: the label token is taught as a distribution over the four labels, not as its gold label alone.

The cross-entropy -sum_k q_k log p(label k) is that of four replies to one prompt, of which reply k weighs q_k. So an
example becomes four rows: its own, and three that end in another label. Log-probs and `sft_loss` stay what they are,
and the fast engine computes the prompt once; the plain one computes it four times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from taosr1.learning.batches import Batch, Example, collate, label_token_weights
from taosr1.learning.losses import ordinal_target


@dataclass(frozen=True)
class SoftBatch(Batch):
    """weights (B, T) float32: q_k on each row's label token, 1 on the reply tokens behind the gold label, else 0."""

    weights: torch.Tensor


@dataclass(frozen=True)
class SoftExample(Example):
    """An example whose reply begins with its gold label. labels: the four label tokens; target: the share of each."""

    labels: tuple[int, ...]
    target: tuple[float, ...]

    @property
    def length_tok(self) -> int:
        return len(self.prompt) + len(self.reply) + len(self.labels) - 1

    @staticmethod
    def collate(items: Sequence[SoftExample], device: torch.device | str = "cpu") -> SoftBatch:
        rows, shares = [], []
        for item in items:
            for label, share in zip(item.labels, item.target):
                rows.append(Example(item.prompt, item.reply if label == item.reply[0] else [label]))
                shares.append(share)
        batch = collate(rows, device)
        weights = label_token_weights(batch.mask, torch.tensor(shares, device=batch.mask.device), "label")
        return SoftBatch(batch.ids, batch.mask, weights)


def soften(examples: Sequence[Example], grades: Sequence[int], labels: Sequence[int], tau: float) -> list[SoftExample]:
    """The examples with `ordinal_target` of their grades; labels: the token of each grade, which replies begin with."""
    targets = ordinal_target(torch.tensor(grades), tau).tolist()
    return [
        SoftExample(example.prompt, example.reply, tuple(labels), tuple(target))
        for example, target in zip(examples, targets)
    ]
