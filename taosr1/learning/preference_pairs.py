"""DPO's data: pairs of replies with what the reference policy gives them, and the batch that several pairs become."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from taosr1.learning.batches import Batch, Example, Item, collate, micro_batches, padded_tok
from taosr1.learning.distributed_model import DistributedModel
from taosr1.learning.reference import reference_logp
from taosr1.runtime.distributed import gather
from taosr1.runtime.jsonl import read_jsonl


@dataclass(frozen=True)
class PreferencePair(Item):
    """Two replies to one prompt, and the reference's log-probs: of the replies, and of their first tokens."""

    chosen: Example
    rejected: Example
    ref_chosen: float = 0.0
    ref_rejected: float = 0.0
    ref_chosen_label: float = 0.0
    ref_rejected_label: float = 0.0

    @property
    def length_tok(self) -> int:
        return len(self.chosen.prompt) + len(self.chosen.reply) + len(self.rejected.reply)

    @staticmethod
    def collate(items: Sequence[PreferencePair], device: torch.device | str = "cpu") -> PairBatch:
        batch = collate([example for pair in items for example in (pair.chosen, pair.rejected)], device)
        replies = torch.tensor([logp for pair in items for logp in (pair.ref_chosen, pair.ref_rejected)])
        labels = torch.tensor([logp for pair in items for logp in (pair.ref_chosen_label, pair.ref_rejected_label)])
        return PairBatch(batch.ids, batch.mask, replies.to(device), labels.to(device))


@dataclass(frozen=True)
class PairBatch(Batch):
    """B pairs as 2B rows, chosen and rejected alternating, so that neighbours share their prompt: ids, mask (2B, T);
    ref_logp (2B,) of the reply, ref_label (2B,) of its first token."""

    ref_logp: Tensor
    ref_label: Tensor
    rows_together: ClassVar[int] = 2  # a batch is halved between pairs


class ReplyLogp(NamedTuple):
    """Of the rows of a PairBatch, (2B,) each: log-prob of the reply, of its first token, and its length."""

    reply: Tensor
    label: Tensor
    length: Tensor


def read_pairs(path: str, vocab_size: int) -> list[PreferencePair]:
    """The sampled token ids of a pairs file.

    Raises: ValueError naming file and line where ids are missing or belong to another tokenizer.
    """
    pairs = []
    for line, row in read_jsonl(path):
        ids = {name: row.get(f"{name}_ids") for name in ("prompt", "chosen", "rejected")}
        for name, value in ids.items():
            if not (isinstance(value, list) and value and all(type(i) is int and 0 <= i < vocab_size for i in value)):
                expected = f"token ids below {vocab_size}"
                made_by = "pairs of train/mine_pairs.py, mined with this model's tokenizer"
                raise ValueError(f"{path}:{line}: field '{name}_ids' must be {expected} ({made_by})")
        pairs.append(PreferencePair(Example(ids["prompt"], ids["chosen"]), Example(ids["prompt"], ids["rejected"])))
    if not pairs:
        raise ValueError(f"{path}: no pairs in this file: check --data")
    return pairs


def with_reference(
    reference: DistributedModel,
    pairs: Sequence[PreferencePair],
    max_tokens: int,
    of_replies: Callable[[Tensor, PairBatch], ReplyLogp],
) -> list[PreferencePair]:
    """The pairs with the reference's log-probs: each rank measures micro-batches of them, then every rank gets all."""
    parts = micro_batches(pairs, max_tokens)
    measured = {}
    for number in reference.share(range(len(parts)), lambda number: padded_tok(parts[number])):
        batch = None if number is None else PreferencePair.collate(parts[number], reference.device)
        logp = reference_logp(reference, batch)
        if batch is not None:
            found = of_replies(logp, batch)
            measured[number] = torch.cat((found.reply.view(-1, 2), found.label.view(-1, 2)), dim=1).tolist()
    measured = {number: values for of_rank in gather(measured) for number, values in of_rank.items()}
    return [
        PreferencePair(pair.chosen, pair.rejected, *values)
        for number, part in enumerate(parts)
        for pair, values in zip(part, measured[number])
    ]
