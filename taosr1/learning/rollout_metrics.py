"""What is logged of a step's rollouts, and what is told about all groups at the end of a run."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from taosr1.learning.difficulty import grade_share_cv
from taosr1.learning.rollout_group import Group, Rollout
from taosr1.task.grades import GRADES


def rollout_metrics(
    sampled: Sequence[Group], kept: Sequence[Group], attempts: int, reward_names: Iterable[str]
) -> dict[str, float]:
    """Metrics of a step; `sampled` are the groups of all its attempts, `kept` those that are trained on.

    reward_balanced is the mean over grades of the share of right replies: the plain mean rises while rare grades are
    lost. survived_cv is of the groups that difficulty kept, kept_cv of those that are left after class balance too.
    Rewards, their parts and lengths are those of decoded groups: with --difficulty prefill, of kept ones. A teacher's
    replies count in none of them.
    """
    shares = [_mean([reply.grade == group.gold for reply in _own(group)]) for group in sampled]
    right_of = {grade: [x for x, group in zip(shares, sampled) if group.gold == grade] for grade in GRADES}
    decoded = [_own(group) for group in sampled if group.decoded]
    own = [reply for replies in decoded for reply in replies]
    lengths, rewards = [len(reply.ids) for reply in own], [reply.reward for reply in own]
    parts = {name: [reply.reward_parts[name] for reply in own] for name in reward_names}
    return {
        "reward": _mean(rewards),
        "reward_std": statistics.stdev(rewards) if len(rewards) > 1 else 0.0,
        **{f"rewards/{name}/mean": _mean(values) for name, values in parts.items()},
        "frac_reward_zero_std": _mean([len({reply.reward for reply in replies}) == 1 for replies in decoded]),
        "reward_balanced": _mean([_mean(of_grade) for of_grade in right_of.values() if of_grade]),
        "kept_frac": len(kept) / len(sampled),
        "all_right_frac": _mean([share == 1 for share in shares]),
        "all_wrong_frac": _mean([share == 0 for share in shares]),
        "kept_groups": len(kept),
        "survived_cv": grade_share_cv([group.gold for group in sampled if group.dropped in ("", "balance")]),
        "kept_cv": grade_share_cv([group.gold for group in kept]),
        "resamples": attempts - 1,
        "decoded_tok": sum(lengths),
        "completions/mean_length": _mean(lengths),
        "completions/clipped_ratio": 1 - _mean([reply.finished for reply in own]) if own else 0.0,
    }


def _own(group: Group) -> list[Rollout]:
    return [reply for reply in group.replies if reply.source == "model"]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))


def count_outcomes(cursor: dict, sampled: Sequence[Group], kept: Sequence[Group], min_groups: int) -> None:
    """Add a step's groups to the counts in the cursor, by why they were dropped."""
    happened = [group.dropped or "trained on" for group in sampled] + ["steps"]
    happened += ["steps short of groups"] * (len(kept) < min_groups) + ["steps without a group"] * (not kept)
    outcomes = cursor.setdefault("outcomes", {})
    for outcome in happened:
        outcomes[outcome] = outcomes.get(outcome, 0) + 1


def describe_outcomes(cursor: dict) -> str:
    """What became of a run's groups, with advice where nothing was learned; "" where none was sampled."""
    outcomes = cursor.get("outcomes", {})
    if not outcomes:
        return ""
    groups = {name: count for name, count in outcomes.items() if not name.startswith("steps")}
    shown = ", ".join(f"{count} {name}" for name, count in sorted(groups.items(), key=lambda item: -item[1]))
    text = f"of {sum(groups.values())} sampled groups: {shown}"
    if outcomes.get("steps short of groups"):
        short, none = outcomes["steps short of groups"], outcomes.get("steps without a group", 0)
        text += f"; of {outcomes['steps']} batches of rollouts {short} held fewer than --min-groups groups to train on"
        text += f", {none} none at all"
    if outcomes.get("trained on"):
        return text
    advice = {
        "all right": "the model already knows these rows: give it others, or raise --temperature or --samples",
        "all wrong": "the model is never right here: train/sft.py comes first, or raise --temperature or --samples",
        "too easy": "--gamma drops what the model is mostly right on: raise it",
        "balance": "--balance class finds no grade that survives together with others: try --balance root",
    }
    return f"{text}. Nothing was learned: {advice[max(groups, key=groups.get)]}"
