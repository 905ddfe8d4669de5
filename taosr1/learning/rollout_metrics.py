"""What is logged of a step's rollouts, and what is told about all groups at the end of a run."""

from __future__ import annotations

import statistics
import sys
from collections import Counter
from collections.abc import Iterable, Sequence

from taosr1.learning.difficulty import grade_share_cv
from taosr1.learning.rollout_group import Group, Rollout
from taosr1.runtime.distributed import this_rank
from taosr1.task.grades import GRADES


def rollout_metrics(
    sampled: Sequence[Group], kept: Sequence[Group], attempts: int, reward_names: Iterable[str]
) -> dict[str, float]:
    """Metrics of a step; `sampled` are the groups of all its attempts, `kept` those that are trained on.

    reward_balanced is the mean over grades of the share of right replies: the plain mean rises while rare grades are
    lost; right_frac/K is that share for gold grade K. reply_share/K: replies that give grade K, unreadable_frac: that
    give none. survived_cv is of the groups that difficulty kept, kept_cv of those left after class balance too.
    Rewards, their parts and lengths are those of decoded groups: with --difficulty prefill, of kept ones. A teacher's
    replies count in none of them.
    """
    shares = [_mean([reply.grade == group.gold for reply in _own(group)]) for group in sampled]
    right_of = {grade: [x for x, group in zip(shares, sampled) if group.gold == grade] for grade in GRADES}
    given = [reply.grade for group in sampled for reply in _own(group)]
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
        "too_easy_frac": _mean([group.dropped == "too easy" for group in sampled]),
        "unreadable_frac": _mean([grade is None for grade in given]),
        **{f"reply_share/{grade}": _mean([found == grade for found in given]) for grade in GRADES},
        **{f"right_frac/{grade}": _mean(of_grade) for grade, of_grade in right_of.items() if of_grade},
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


# ---- What is told at the end (taosr1/evaluation/diagnoses.py: why nothing was learned, and what to change) -----------


def count_outcomes(cursor: dict, sampled: Sequence[Group], kept: Sequence[Group], settings) -> None:
    """Add a step's groups to the counts in the cursor, by why they were dropped.

    settings: the config of train/grpo.py. A note is printed after the first step where most of its replies were cut:
    the run need not end before that is known.
    """
    own = [reply for group in sampled if group.decoded for reply in _own(group)]
    cut = sum(not reply.finished for reply in own)
    if "outcomes" not in cursor and cut > len(own) / 2 and this_rank().is_rank_zero:
        limit = f"--max-new-tokens {settings.max_new_tokens}"
        print(f"note: {cut} of the first {len(own)} replies were cut at {limit}: raise it", file=sys.stderr)
    happened = [group.dropped or "trained on" for group in sampled] + ["steps"]
    happened += ["steps short of groups"] * (len(kept) < settings.min_groups) + ["steps without a group"] * (not kept)
    counts = cursor.setdefault("outcomes", {})
    for name, count in Counter(happened).items():
        counts[name] = counts.get(name, 0) + count


def describe_outcomes(cursor: dict) -> str:
    """What became of a run's groups; "" where none was sampled."""
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
    return text if outcomes.get("trained on") else f"{text}. Nothing was learned"
