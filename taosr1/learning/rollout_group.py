"""One reply from sampling to training, the group of replies to a prompt, and the batch that several groups become."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from taosr1.learning.batches import Batch, Example, Item, collate
from taosr1.sampling.replies import SampledReply
from taosr1.task.judgement import Judgement
from taosr1.task.prompt import Reply, parse_reply

LOGGED_GROUPS = 20_000  # of a run in samples.jsonl, equally many of every step: about 40 MB at 8 replies of 60 tokens


@dataclass(frozen=True)
class Rollout(SampledReply):
    """One reply, and everything that is known of it: what rewards read, metrics count and training learns from.

    Of SampledReply: source ("model" or "teacher"), text, ids (the end-of-sequence token included), logp, finished.
    parsed: its label (`parsed.grade`) and steps. token_logp: of each token, at the sampling temperature; None for a
        teacher's reply. decoded: False while only its first token is drawn (--difficulty prefill).
    reward_parts: unweighted, by name; reward: their weighted sum. advantage: None unless its group is trained on.
    """

    parsed: Reply = field(default_factory=lambda: Reply(None))
    token_logp: list[float] | None = None
    decoded: bool = True
    reward_parts: dict[str, float] = field(default_factory=dict)
    reward: float | None = None
    advantage: float | None = None

    @property
    def grade(self) -> int | None:
        """Its label; None where it could not be read."""
        return self.parsed.grade


def read_rollout(text: str, order: str, *, source: str = "model", ids: Sequence[int] = (), **known) -> Rollout:
    """A reply from its text, which is parsed; `known` are further fields of `Rollout`."""
    return Rollout(source, text, list(ids), parsed=parse_reply(text, order), **known)


@dataclass(eq=False)  # compared by identity: a row that is drawn twice may get equal replies twice
class Group(Item):
    """One prompt and its replies. `dropped` says why the group is not trained on, "" where it is.

    row: its place in the data; gold: its grade. probs: of grades 1..4. Where the label comes first, the label
        probabilities that serving would compute (temperature 1); where it comes last, the shares of the replies'
        labels, which sum to less than 1 where a reply could not be read.
    """

    row: int
    prompt: list[int]
    gold: int
    replies: list[Rollout] = field(default_factory=list)
    dropped: str = ""
    probs: list[float] = field(default_factory=list)

    @property
    def right(self) -> int:
        """How many of the replies have the gold label: what difficulty counts."""
        return sum(reply.grade == self.gold for reply in self.replies)

    @property
    def decoded(self) -> bool:
        """Whether its replies are complete, and not their first tokens alone."""
        return all(reply.decoded for reply in self.replies)

    @property
    def length_tok(self) -> int:
        return len(self.prompt) + sum(len(reply.ids) for reply in self.replies)

    @property
    def beginning(self) -> list[int]:
        return self.prompt

    def cut(self, max_tokens: int) -> list[Group]:
        """The group in pieces of at most `max_tokens`, each with the prompt, in the order of its replies."""
        pieces: list[Group] = []
        for reply in self.replies:
            longer = pieces and replace(pieces[-1], replies=[*pieces[-1].replies, reply])
            if longer and longer.length_tok <= max_tokens:
                pieces[-1] = longer
            else:
                pieces.append(replace(self, replies=[reply]))
        return pieces

    @staticmethod
    def collate(items: Sequence[Group], device: torch.device | str = "cpu") -> RolloutBatch:
        """Rows in the order of groups and replies. Replies to one prompt stay neighbours, so that they can share it."""
        rows = [(group.prompt, reply) for group in items for reply in group.replies]
        batch = collate([Example(prompt, reply.ids) for prompt, reply in rows], device)
        advantages = torch.tensor([reply.advantage for _, reply in rows], dtype=torch.float32, device=device)
        old_logp = None
        if all(reply.token_logp is not None for _, reply in rows):
            old_logp = torch.zeros(batch.ids.shape)
            for row, (prompt, reply) in enumerate(rows):
                old_logp[row, len(prompt) : len(prompt) + len(reply.ids)] = torch.tensor(reply.token_logp)
            old_logp = old_logp.to(device)
        return RolloutBatch(batch.ids, batch.mask, advantages, old_logp)

    def record(self, row: Judgement) -> dict[str, object]:
        """The group as a line of samples.jsonl; `logps` are of whole replies, at the sampling temperature.

        row: what the prompt is about.
        """
        replies = self.replies if self.decoded else []
        advantages = [reply.advantage for reply in self.replies if reply.advantage is not None]
        record: dict[str, object] = {
            "row": self.row, "query": row.query, "title": row.title, "gold": self.gold, "right": self.right,
            "kept": not self.dropped, "dropped": self.dropped,
            "probs": [round(p, 4) for p in self.probs], "labels": [reply.grade for reply in self.replies],
            "logps": [None if reply.logp is None else round(reply.logp, 4) for reply in replies],
            "reward_parts": [reply.reward_parts for reply in replies],
            "rewards": [reply.reward for reply in replies if reply.reward is not None],
            "advantages": [round(advantage, 4) for advantage in advantages],
            "replies": [reply.text for reply in replies],
        }  # fmt: skip
        if any(reply.source != "model" for reply in self.replies):
            record["sources"] = [reply.source for reply in self.replies]
        return record


def sample_records(groups: Sequence[Group], rows: Sequence[Judgement], draws: int) -> list[dict[str, object]]:
    """The lines of samples.jsonl for one of a run's `draws` of groups: the first ones, `LOGGED_GROUPS` in all draws."""
    most = max(1, LOGGED_GROUPS // max(1, draws))
    return [group.record(rows[group.row]) for group in groups[:most]]


@dataclass(frozen=True)
class RolloutBatch(Batch):
    """Replies to train on: ids, mask, old_logp, ref_logp (B, T); advantages (B,).

    old_logp: of the policy that sampled; None until it is measured. ref_logp: None without a KL term.
    """

    advantages: torch.Tensor
    old_logp: torch.Tensor | None = None
    ref_logp: torch.Tensor | None = None
