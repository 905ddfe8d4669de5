"""GRPO's rollouts: which prompts are drawn, their replies and rewards, which groups are kept, and their advantages.

Of several ranks each answers its share of the prompts, and then all ranks get all groups: from there on every rank
decides alike, so that nothing more has to be sent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from taosr1.judge_model import JudgeModel
from taosr1.learning.difficulty import balance_by_grade, drop_reason
from taosr1.learning.draw_order import balanced_order, rows_by_grade, shuffled_order
from taosr1.learning.losses import group_advantages
from taosr1.learning.rewards import NonFiniteRewardError, reward_parts, total_reward
from taosr1.learning.rollout_group import Group, Rollout, read_rollout
from taosr1.model.decoder import Decoder
from taosr1.runtime.distributed import divide_work
from taosr1.sampling.choose_token import draw_uniform
from taosr1.task.grades import GRADES
from taosr1.task.judgement import Judgement
from taosr1.task.prompt import Reply

LOWEST_SURVIVAL = 0.1  # a grade is drawn at most ten times as often as its groups would need if all survived
SURVIVAL_MEMORY = 0.8  # weight of the past in the running share of surviving groups


class Sampler:
    """Draws rows of the data and samples replies to them. What a resume needs of it is in the cursor.

    settings: the config of train/grpo.py, whose flags explain them.
    """

    def __init__(self, judge: JudgeModel, rows: Sequence[Judgement], settings) -> None:
        self.judge, self.settings = judge, settings
        self.prompts, self.grades = judge.prompts(list(rows)), [row.grade for row in rows]

    def draw_rows(self, cursor: dict) -> list[int]:
        """The next rows; moves the cursor on.

        Class balance draws more of the grades whose groups rarely survive (`remember_survival`).
        """
        settings, drawn = self.settings, cursor.setdefault("drawn", {})

        def advance(stream: str, count: int) -> tuple[int, int]:
            start = drawn.get(stream, 0)
            drawn[stream] = start + count
            return start, count

        if settings.balance == "none":
            return shuffled_order(len(self.grades), settings.seed, *advance("all", settings.groups))
        if settings.balance == "root":
            return balanced_order(self.grades, settings.seed, *advance("root", settings.groups), power=0.5)
        survival, rows_of = cursor.setdefault("survival", {}), sorted(rows_by_grade(self.grades).items())
        need = {grade: 1 / max(survival.get(str(grade), 0.5), LOWEST_SURVIVAL) for grade, _ in rows_of}
        chosen: list[int] = []
        for grade, rows in rows_of:
            count = max(1, round(settings.groups * need[grade] / sum(need.values())))
            order = shuffled_order(len(rows), settings.seed, *advance(str(grade), count), stream=grade)
            chosen += [rows[place] for place in order]
        return chosen

    def sample(self, model: Decoder, rows: Sequence[int], generator: torch.Generator) -> list[Group]:
        """A group of G replies for every row; with --difficulty prefill only their first tokens, the labels."""
        groups = [Group(row, self.prompts[row], self.grades[row]) for row in rows]
        uniform = None
        if self.settings.difficulty == "prefill":
            uniform = torch.rand(len(groups), self.settings.samples, generator=generator)
        if self.judge.prompt.order != "pre-cot":
            self._prefill(model, groups, uniform)
        if uniform is None:
            self._decode(model, groups, generator)
        return groups

    def complete(self, model: Decoder, groups: Sequence[Group], generator: torch.Generator) -> None:
        """Decode the replies of kept groups that are no more than first tokens yet.

        What begins with a label may still be unreadable, and then is wrong: those groups are judged by the whole reply.
        """
        unfinished = [group for group in groups if not group.dropped and not group.decoded]
        if unfinished:
            self._decode(model, unfinished, generator)
            drop_by_difficulty(unfinished, self.settings.gamma)

    def _prefill(self, model: Decoder, groups: Sequence[Group], uniform: torch.Tensor | None) -> None:
        """Label probabilities from one prefill and, with `uniform` (P, G), first tokens drawn from it."""
        judge, temperature = self.judge, self.settings.temperature
        grade_of = dict(zip(judge.tokenizer.label_ids, GRADES))

        def work(places: list[int]) -> list[tuple[list[float], list[int]]]:
            prompts, draws = [groups[place].prompt for place in places], None if uniform is None else uniform[places]
            found = judge.engine.label_probabilities(
                model, judge.tokenizer, prompts, uniform=draws, temperature=temperature
            )
            tokens = [[]] * len(places) if uniform is None else found.first_tokens.tolist()
            return list(zip(found.probs.tolist(), tokens))

        for group, (probs, tokens) in zip(groups, divide_work(_costs(groups), work)):
            group.probs = probs
            group.replies = [
                Rollout("model", "", [token], finished=False, parsed=Reply(grade_of.get(token)), decoded=False)
                for token in tokens
            ]

    def _decode(self, model: Decoder, groups: Sequence[Group], generator: torch.Generator) -> None:
        """G replies for every group, which begin with the tokens that it has already; complete replies stay."""
        settings, judge, prompts = self.settings, self.judge, [group.prompt for group in groups]
        # Every rank draws the numbers for all groups, so that replies do not depend on how many ranks there are.
        uniform = draw_uniform(prompts, settings.samples, settings.max_new_tokens, generator)
        uniform = uniform.view(len(groups), settings.samples, -1)  # (P, G, N)

        def work(places: list[int]) -> list[list[Rollout]]:
            drawn = [reply.ids[0] for place in places for reply in groups[place].replies]
            sampled = judge.engine.generate(
                model, [prompts[place] for place in places], samples=settings.samples, temperature=settings.temperature,
                max_new_tokens=settings.max_new_tokens, stop_ids=judge.tokenizer.eos_ids,
                uniform=uniform[places].flatten(0, 1), first_tokens=torch.tensor(drawn) if drawn else None,
            )  # fmt: skip
            columns = sampled.replies(), sampled.logp.tolist(), sampled.finished.tolist()
            replies = [self._read(ids, logp[: len(ids)], finished) for ids, logp, finished in zip(*columns)]
            return [replies[start : start + settings.samples] for start in range(0, len(replies), settings.samples)]

        for group, replies in zip(groups, divide_work(_costs(groups), work)):
            complete = {place: reply for place, reply in enumerate(group.replies) if reply.decoded}
            group.replies = [complete.get(place, reply) for place, reply in enumerate(replies)]
            if judge.prompt.order == "pre-cot":
                labels = [reply.grade for reply in group.replies]
                group.probs = [labels.count(grade) / len(labels) for grade in GRADES]

    def _read(self, ids: list[int], logp: list[float], finished: bool) -> Rollout:
        text, order = self.judge.reply_text(ids), self.judge.prompt.order
        return read_rollout(text, order, ids=ids, logp=sum(logp), token_logp=logp, finished=finished)


def _costs(groups: Sequence[Group]) -> list[int]:
    return [len(group.prompt) for group in groups]


# ---- Difficulty, rewards, balance, advantages ------------------------------------------------------------------------


def drop_by_difficulty(groups: Sequence[Group], gamma: int) -> None:
    """Mark the groups that are too hard or too easy; kept are those with 0 < right < gamma (0: gamma = G)."""
    for group in groups:
        group.dropped = drop_reason(group.right, len(group.replies), gamma or None)


def add_rewards(groups: Sequence[Group], rows: Sequence[Judgement], weights: Mapping[str, float]) -> None:
    """Give every decoded reply its reward: the weighted sum of its parts (`rewards.py`).

    Raises: NonFiniteRewardError, on every rank, with the records of the groups that have such a reward.
    """
    decoded = [group for group in groups if group.decoded]

    def work(places: list[int]) -> list[list[dict[str, float]]]:
        mine = [decoded[place] for place in places]
        return [[reward_parts(reply, rows[group.row], weights) for reply in group.replies] for group in mine]

    errors = []
    for group, parts in zip(decoded, divide_work(_costs(decoded), work)):
        group.replies = [replace(reply, reward_parts=found) for reply, found in zip(group.replies, parts)]
        try:
            rewards = [total_reward(found, weights, row=group.row) for found in parts]
            group.replies = [replace(reply, reward=reward) for reply, reward in zip(group.replies, rewards)]
        except NonFiniteRewardError as error:
            errors.append((error, group))
    if errors:
        raise NonFiniteRewardError(str(errors[0][0]), [group.record(rows[group.row]) for _, group in errors])


def remember_survival(groups: Sequence[Group], cursor: dict) -> None:
    """Keep in the cursor, for every sampled grade, a running share of the groups that difficulty did not drop."""
    survival = cursor.setdefault("survival", {})
    for grade in GRADES:
        survived = [not group.dropped for group in groups if group.gold == grade]
        if survived:
            past = survival.get(str(grade), 0.5)
            survival[str(grade)] = SURVIVAL_MEMORY * past + (1 - SURVIVAL_MEMORY) * sum(survived) / len(survived)


def balanced(groups: Sequence[Group], balance: str, generator: torch.Generator) -> list[Group]:
    """The groups to train on, of those that difficulty keeps; with balance "class" equally many of every grade.

    The others of these are marked as dropped by balance, until it is called again with more groups.
    """
    alive = [group for group in groups if group.dropped in ("", "balance")]
    kept = alive
    if balance == "class":
        kept = [alive[place] for place in balance_by_grade([group.gold for group in alive], generator)]
    chosen = set(map(id, kept))
    for group in alive:
        group.dropped = "" if id(group) in chosen else "balance"
    return kept


def add_advantages(groups: Sequence[Group], grades: Sequence[int], settings) -> None:
    """Give the replies of kept groups their advantages; grades: of all rows, for the weights of balance "root"."""
    if not groups:
        return
    rewards = torch.tensor([[reply.reward for reply in group.replies] for group in groups], dtype=torch.float64)
    scale, clamp = settings.adv_std, settings.adv_clamp or None
    advantages = group_advantages(rewards.flatten(), settings.samples, scale=scale, clamp=clamp).view_as(rewards)
    weights = [1.0] * len(groups)
    if settings.balance == "root":
        weights = root_weights([group.gold for group in groups], grades)
    for group, values, weight in zip(groups, advantages.tolist(), weights):
        group.replies = [replace(reply, advantage=weight * value) for reply, value in zip(group.replies, values)]


def root_weights(kept: Sequence[int], grades: Sequence[int]) -> list[float]:
    """A weight for every kept group, by its grade: grades weigh as the root of their frequency in the data, mean 1."""
    count, frequency = ({g: len(rows) for g, rows in rows_by_grade(of).items()} for of in (kept, grades))
    wanted = {grade: math.sqrt(frequency[grade]) for grade in sorted(count)}
    return [len(kept) * wanted[grade] / (sum(wanted.values()) * count[grade]) for grade in kept]
