"""The SFT term of GRPO (--sft-coef): the cross-entropy of explained pairs, learned on beside the rewards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from taosr1.judge import Judge
from taosr1.learning.batches import Batch, Example, collate
from taosr1.learning.draw_order import balanced_order
from taosr1.learning.examples import examples_of
from taosr1.learning.losses import LossSum, sft_loss
from taosr1.learning.rollout_group import Group
from taosr1.task.judgement import Judgement

SFT_ROWS = 32  # examples of the SFT term in a step


@dataclass(frozen=True)
class SftTermExample(Example):
    """scale: what the summed cross-entropy is multiplied by, the same for all examples of a step."""

    scale: float

    @staticmethod
    def collate(items: Sequence[SftTermExample], device="cpu") -> SftTermBatch:
        batch = collate(items, device)
        return SftTermBatch(batch.ids, batch.mask, items[0].scale)


@dataclass(frozen=True)
class SftTermBatch(Batch):
    scale: float


class SftTerm:
    """Draws the examples of every step from graded rows; no rows: there is no such term. settings: of train/grpo.py."""

    def __init__(self, judge: Judge, rows: Sequence[Judgement], settings) -> None:
        self.examples, self.grades = examples_of(judge, rows, "--sft-data"), [row.grade for row in rows]
        self.settings = settings
        self.label_weight = 1.0 if judge.prompt.order == "pre-cot" else settings.label_weight

    def draw(self, step: int, groups: Sequence[Group]) -> list[SftTermExample]:
        """SFT_ROWS examples, drawn by the root of their grades' frequency; none where no group is trained on.

        The loop divides all sums of a step by what GRPO counts: replies or, with normalise "token", token weights. So
        the scale multiplies by that count, and what remains is --sft-coef times the mean cross-entropy per token.
        """
        replies = [reply for group in groups for reply in group.replies]
        if not (self.examples and replies):
            return []
        counted, settings = len(replies), self.settings
        if settings.normalise == "token":
            counted = sum(len(reply.ids) for reply in replies) + len(replies) * (self.label_weight - 1)
        order = balanced_order(self.grades, settings.seed, step * SFT_ROWS, SFT_ROWS, power=0.5)
        drawn = [self.examples[row] for row in order]
        scale = settings.sft_coef * counted / sum(len(example.reply) for example in drawn)
        return [SftTermExample(example.prompt, example.reply, scale) for example in drawn]


def sft_term_loss(logp: Tensor, batch: SftTermBatch) -> LossSum:
    """The scaled sum. It counts nothing, so that the step is divided by what GRPO counts."""
    return LossSum(batch.scale * sft_loss(logp, batch.mask).sum, 0.0, {})
