"""What GRPO's rollouts are made of: a prompt with its G replies, one reply to train on, a micro-batch, and what became of them all."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class RolloutSettings:
    """How rollouts are made; each is a flag of train/grpo.py and explained there."""

    groups: int
    samples: int
    gamma: int | None
    difficulty: str
    balance: str
    min_groups: int
    max_resample: int
    temperature: float
    max_new_tokens: int
    adv_std: str
    adv_clamp: float | None
    compute_dtype: torch.dtype
    label_weight: float
    micro_batch_tok: int
    seed: int


@dataclass(eq=False)  # a group is itself: a row that is drawn twice may be answered alike twice
class Group:
    """One prompt and its G replies. `dropped` says why it is not trained on, "" where it is.

    probs: of grades 1..4. Where the label comes first, the label probabilities that serving would see (temperature 1); where it comes
        last, the shares of the G labels: they sum to less than 1 where a reply could not be read.
    """

    row: int
    prompt: list[int]
    gold: int
    dropped: str
    probs: list[float] = field(default_factory=list)
    first_tokens: list[int] = field(default_factory=list)  # where difficulty was measured by prefill: they begin the replies
    replies: list[list[int]] = field(default_factory=list)
    finished: list[bool] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    labels: list[int | None] = field(default_factory=list)
    logp: list[list[float]] = field(default_factory=list)
    parts: list[dict[str, float]] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    trouble: str = ""  # why a reward is no number
    advantages: list[float] = field(default_factory=list)

    @property
    def right(self) -> int:
        """How many of the G labels are the gold grade: what difficulty counts."""
        return self.labels.count(self.gold)

    def record(self) -> dict[str, object]:
        """The group as a line of samples.jsonl; `logps` are of whole replies, at the sampling temperature."""
        return {
            "row": self.row, "gold": self.gold, "right": self.right, "kept": not self.dropped, "dropped": self.dropped,
            "probs": [round(p, 4) for p in self.probs], "labels": self.labels, "logps": [round(sum(logp), 4) for logp in self.logp],
            "reward_parts": self.parts, "rewards": self.rewards, "advantages": [round(a, 4) for a in self.advantages], "replies": self.texts,
        }  # fmt: skip


@dataclass(frozen=True)
class Rollout:
    """One reply to train on."""

    prompt: list[int]
    reply: list[int]
    logp: list[float]
    advantage: float


@dataclass(frozen=True)
class RolloutBatch:
    """ids, mask, old_logp, ref_logp, weights (B, T); advantages (B,). ref_logp is None without a KL term."""

    ids: torch.Tensor
    mask: torch.Tensor
    old_logp: torch.Tensor
    ref_logp: torch.Tensor | None
    weights: torch.Tensor
    advantages: torch.Tensor


def describe_outcomes(outcomes: dict[str, int]) -> str:
    """What became of a run's groups, for the person who started it, with advice where nothing was learned; "" for no step."""
    if not outcomes:
        return ""
    groups = {name: count for name, count in outcomes.items() if not name.startswith("steps")}
    shown = ", ".join(f"{count} {name}" for name, count in sorted(groups.items(), key=lambda item: -item[1]))
    text = f"of {sum(groups.values())} sampled groups: {shown}"
    if outcomes.get("steps short of groups"):
        text += f"; of {outcomes['steps']} batches of rollouts {outcomes['steps short of groups']} held fewer than --min-groups groups to train on"
        text += f", {outcomes.get('steps without a group', 0)} none at all"
    if outcomes.get("trained on"):
        return text
    advice = {
        "all right": "the model already knows these rows: give it others, or raise --temperature or --samples",
        "all wrong": "the model is never right here: train/sft.py comes first, or raise --temperature or --samples",
        "too easy": "--gamma drops what the model is mostly right on: raise it",
        "balance": "--balance class finds no grade that survives together with others: try --balance root",
    }
    return f"{text}. Nothing was learned: {advice[max(groups, key=groups.get)]}"
