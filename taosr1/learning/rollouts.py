"""GRPO's data: sample groups, reward them, keep the ones that teach, equally many of every grade.

`Sampler.collect` is one step's worth: it draws prompts, samples, filters by difficulty, refills up to a cap, balances
by grade, and returns micro-batches with advantages and stored log-probs beside a record of every group, kept or not.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

import torch

from taosr1.data.judgements import Judgement
from taosr1.judge import Judge
from taosr1.learning.batches import Batch, Example, ReplyGroup, collate, group_batches, label_token_weights, packed_tok
from taosr1.learning.distributed_model import DistributedModel
from taosr1.learning.loop import compute_in
from taosr1.learning.losses import group_advantages
from taosr1.learning.rewards import NonFiniteRewardError, reward_parts, total_reward
from taosr1.learning.rollout_group import Group, Rollout, RolloutBatch, RolloutSettings
from taosr1.learning.difficulty import balance_by_grade, drop_reason, grade_share_cv, keep_groups
from taosr1.learning.draw_order import balanced_order, keyed_generator, shuffled_order
from taosr1.model.decoder import Decoder
from taosr1.model.lora import adapters_off
from taosr1.runtime.distributed import gather, share
from taosr1.sampling.choose_token import draw_uniform
from taosr1.task.grades import GRADES
from taosr1.task.prompt import parse_reply

LOWEST_SURVIVAL = 0.1  # a grade is drawn at most ten times as often as its groups would need if all survived
SURVIVAL_MEMORY = 0.8  # weight of the past in the running share of surviving groups


class Sampler:
    """Draws prompts from graded rows and turns them into rollouts of the judge's current weights.

    Of several ranks each answers its share of the prompts, and then tells all others: from there on every rank knows all groups and
    decides alike, so what is kept, how it is weighed and who computes which micro-batch needs no word more.

    `metrics` describes the last `collect`, `outcomes` counts what became of all groups since step 0. All state that a resume needs is in
    the cursor handed to `collect`.
    """

    def __init__(
        self, judge: Judge, rows: Sequence[Judgement], settings: RolloutSettings, weights: dict[str, float], reference: DistributedModel | None, team: DistributedModel | None = None
    ) -> None:
        """reference: what the KL term measures against; team: the ranks around the judge's model, None where it is alone."""
        self.team = team or DistributedModel(judge.model, judge.engine)
        self.judge, self.rows, self.settings, self.weights, self.reference = judge, rows, settings, weights, reference
        self.prompts = judge.prompts(list(rows))
        self.rows_of = {grade: [i for i, row in enumerate(rows) if row.grade == grade] for grade in GRADES}
        self.rows_of = {grade: members for grade, members in self.rows_of.items() if members}
        self.grades = [row.grade for row in rows]
        self.device = next(judge.model.parameters()).device
        self.metrics: dict[str, float] = {}
        self.outcomes: dict[str, int] = {}
        self.replies = self.reply_weight = 0  # of all ranks' micro-batches of the last `collect`: how many, and their token weights

    def collect(self, step: int, cursor: dict) -> tuple[list[RolloutBatch | None], list[dict]]:
        """One step's micro-batches, this rank's share, and a record of every group that was sampled for it.

        No group may survive: then there are no batches and the step has no gradient (`kept_frac` says so).
        Raises: NonFiniteRewardError, on every rank.
        """
        settings, sampled, self.metrics, self.replies = self.settings, [], {}, 0
        self.judge.model.eval()
        model = self.team.for_sampling(settings.compute_dtype)
        for attempt in range(settings.max_resample):
            generator = keyed_generator(settings.seed, "rollout", step, attempt)
            sampled += self._sample(model, self._draw_rows(cursor), generator, cursor)
            alive = [group for group in sampled if not group.dropped]
            kept = self._balanced(alive, keyed_generator(settings.seed, "balance", step))
            if len(kept) >= settings.min_groups:
                break
        del model  # it makes room for the gradients
        chosen = set(map(id, kept))
        for group in alive:
            group.dropped = "" if id(group) in chosen else "balance"
        self.outcomes = cursor.setdefault("outcomes", {})
        happened = [group.dropped or "trained on" for group in sampled] + ["steps"]
        happened += ["steps short of groups"] * (len(kept) < settings.min_groups) + ["steps without a group"] * (not kept)
        for fate in happened:
            self.outcomes[fate] = self.outcomes.get(fate, 0) + 1
        rollouts = self._with_advantages(kept)
        self.metrics = self._measure(sampled, kept, attempt + 1)
        of_groups = [rollouts[start : start + settings.samples] for start in range(0, len(rollouts), settings.samples)]
        budget = self.team.budget([ReplyGroup(group) for group in of_groups], settings.micro_batch_tok)
        parts = group_batches(of_groups, budget)
        labels = 0 if self.judge.prompt.order == "pre-cot" else len(rollouts)
        self.replies, self.reply_weight = len(rollouts), sum(len(rollout.reply) for rollout in rollouts) + labels * (settings.label_weight - 1)
        return [self._batch(part) for part in self.team.share(parts, packed_tok)], [group.record() for group in sampled]

    def _draw_rows(self, cursor: dict) -> list[int]:
        """The next prompts. Class balance asks for more of the grades whose groups rarely survive."""
        settings = self.settings
        drawn = cursor.setdefault("drawn", {})
        if settings.balance == "none":
            start = drawn.get("all", 0)
            drawn["all"] = start + settings.groups
            return shuffled_order(len(self.rows), settings.seed, start, settings.groups)
        if settings.balance == "root":
            start = drawn.get("root", 0)
            drawn["root"] = start + settings.groups
            return balanced_order(self.grades, settings.seed, start, settings.groups, power=0.5)
        survival = cursor.setdefault("survival", {})
        need = {grade: 1 / max(survival.get(str(grade), 0.5), LOWEST_SURVIVAL) for grade in self.rows_of}
        chosen: list[int] = []
        for grade, members in self.rows_of.items():
            count = max(1, round(settings.groups * need[grade] / sum(need.values())))
            start = drawn.get(str(grade), 0)
            drawn[str(grade)] = start + count
            chosen += [members[i] for i in shuffled_order(len(members), settings.seed, start, count, stream=grade)]
        return chosen

    def _sample(self, model: Decoder, rows: list[int], generator: torch.Generator, cursor: dict) -> list[Group]:
        """Sample the rows' groups, reward them and mark the ones that difficulty drops."""
        settings = self.settings
        groups = [Group(row, self.prompts[row], self.rows[row].grade, "") for row in rows]
        prefilled = settings.difficulty == "prefill"
        uniform = torch.rand(len(groups), settings.samples, generator=generator) if prefilled else None
        if self.judge.prompt.order != "pre-cot":
            self._each(groups, lambda mine, places: self._look(model, mine, None if uniform is None else uniform[places]))
        if prefilled:
            self._drop_by_difficulty(groups)
        decoded = [group for group in groups if not group.dropped]
        if decoded:
            uniform = draw_uniform([group.prompt for group in decoded], settings.samples, settings.max_new_tokens, generator)
            uniform = uniform.view(len(decoded), settings.samples, -1)
            self._each(decoded, lambda mine, places: self._reply(model, mine, uniform[places].flatten(0, 1)))
            self._check_rewards(decoded)
            # After `prefill` this drops nothing more, unless a reply began with a label and then could not be read.
            self._drop_by_difficulty(decoded)
        self._remember_survival(groups, cursor)
        return groups

    def _each(self, groups: list[Group], work: Callable[[list[Group], list[int]], None]) -> None:
        """Every rank works on its share of the groups (which, and at which places), and then all ranks know what all found."""
        places = share(range(len(groups)), self.team.ranks, lambda place: len(groups[place].prompt))
        work([groups[place] for place in places], places)
        if self.team.ranks.world > 1:
            for of_rank in gather({place: vars(groups[place]) for place in places}):
                for place, found in of_rank.items():
                    vars(groups[place]).update(found)

    def _look(self, model: Decoder, groups: list[Group], uniform: torch.Tensor | None) -> None:
        """Label probabilities from one prefill, and with `uniform` (P, G) labels drawn from it."""
        tokenizer, prompts = self.judge.tokenizer, [group.prompt for group in groups]
        found = self.judge.engine.label_probabilities(model, tokenizer, prompts, uniform=uniform, temperature=self.settings.temperature)
        grade_of = dict(zip(tokenizer.label_ids, GRADES))
        for place, (group, probs) in enumerate(zip(groups, found.probs.tolist())):
            group.probs = probs
            if found.first_tokens is not None:
                group.first_tokens = found.first_tokens[place].tolist()
                group.labels = [grade_of.get(token) for token in group.first_tokens]

    def _check_rewards(self, groups: list[Group]) -> None:
        bad = [group for group in groups if group.trouble]
        if bad:
            raise NonFiniteRewardError(bad[0].trouble, [group.record() for group in bad])

    def _drop_by_difficulty(self, groups: list[Group]) -> None:
        kept = keep_groups([group.right for group in groups], self.settings.samples, self.settings.gamma).tolist()
        for group, keep in zip(groups, kept):
            group.dropped = "" if keep else drop_reason(group.right, self.settings.samples, self.settings.gamma)

    def _reply(self, model: Decoder, groups: list[Group], uniform: torch.Tensor) -> None:
        """Decode G replies for every group, drawn with `uniform` (P * G, N), and reward each of them."""
        settings, judge = self.settings, self.judge
        first_tokens = torch.tensor([group.first_tokens for group in groups]) if groups and groups[0].first_tokens else None
        rollouts = judge.engine.generate(
            model, [group.prompt for group in groups], samples=settings.samples, max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature, stop_ids=judge.tokenizer.eos_ids, uniform=uniform, first_tokens=first_tokens,
        )  # fmt: skip
        replies, logp, finished = rollouts.replies(), rollouts.logp.tolist(), rollouts.finished.tolist()
        for index, group in enumerate(groups):
            judgement, group.labels = self.rows[group.row], []
            for row in range(index * settings.samples, (index + 1) * settings.samples):
                text = judge.reply_text(replies[row])
                reply = parse_reply(text, judge.prompt.order)
                parts = reward_parts(reply, judgement, self.weights)
                group.replies.append(replies[row])
                group.finished.append(finished[row])
                group.texts.append(text)
                group.labels.append(reply.grade)
                group.logp.append(logp[row][: len(replies[row])])
                group.parts.append(parts)
                try:
                    group.rewards.append(total_reward(parts, self.weights, row=group.row))
                except FloatingPointError as error:  # told to all ranks first, so that all skip the step
                    group.trouble = str(error)
            if judge.prompt.order == "pre-cot":
                group.probs = [group.labels.count(grade) / settings.samples for grade in GRADES]

    def _remember_survival(self, groups: list[Group], cursor: dict) -> None:
        survival = cursor.setdefault("survival", {})
        for grade in self.rows_of:
            outcomes = [not group.dropped for group in groups if group.gold == grade]
            if outcomes:
                past = survival.get(str(grade), 0.5)
                survival[str(grade)] = SURVIVAL_MEMORY * past + (1 - SURVIVAL_MEMORY) * sum(outcomes) / len(outcomes)

    def _balanced(self, groups: list[Group], generator: torch.Generator) -> list[Group]:
        if self.settings.balance != "class":
            return groups
        return [groups[i] for i in balance_by_grade([group.gold for group in groups], generator)]

    def _with_advantages(self, groups: list[Group]) -> list[Rollout]:
        if not groups:
            return []
        rewards = torch.tensor([group.rewards for group in groups], dtype=torch.float64).flatten()
        advantages = group_advantages(rewards, self.settings.samples, scale=self.settings.adv_std, clamp=self.settings.adv_clamp)
        for group, values in zip(groups, advantages.view(len(groups), -1).tolist()):
            group.advantages = values
        if self.settings.balance == "root":
            self._weigh_by_grade(groups)
        return [
            Rollout(group.prompt, reply, logp, advantage)
            for group in groups
            for reply, logp, advantage in zip(group.replies, group.logp, group.advantages)
        ]

    def _weigh_by_grade(self, groups: list[Group]) -> None:
        """Scale advantages so that grades weigh as the root of their frequency in the data; the mean weight is 1."""
        count = {grade: sum(group.gold == grade for group in groups) for grade in self.rows_of}
        wanted = {grade: math.sqrt(len(self.rows_of[grade])) for grade in self.rows_of if count[grade]}
        for group in groups:
            weight = len(groups) * wanted[group.gold] / (sum(wanted.values()) * count[group.gold])
            group.advantages = [weight * advantage for advantage in group.advantages]

    @torch.no_grad()
    def _batch(self, rollouts: list[Rollout] | None) -> RolloutBatch | None:
        """Rollouts as tensors, with the reference's log-probs where there is a KL term. None stays None, but joins in every pass.

        Where training computes in a half type, with norms and the residual stream in float32, the log-probs of the sampler, which has either all in that type or all in
        float32, are measured again as training does it: else the ratio would start off 1 and the clip would act on rounding errors.
        """
        measures_old = self.settings.compute_dtype != torch.float32
        if rollouts is None:
            for team in (self.team if measures_old else None, self.reference):
                if team is not None:
                    team.idle()
            return None
        batch = collate([Example(rollout.prompt, rollout.reply) for rollout in rollouts], self.device)
        if not measures_old:
            old_logp = torch.zeros(batch.ids.shape)
            for row, rollout in enumerate(rollouts):
                old_logp[row, len(rollout.prompt) : len(rollout.prompt) + len(rollout.reply)] = torch.tensor(rollout.logp)
        else:
            old_logp = self._measured(self.team, batch)
        ref_logp = None
        if self.reference is not None:
            with adapters_off(self.reference.model):  # the trained model itself, where it has adapters
                ref_logp = self._measured(self.reference, batch)
        position = "none" if self.judge.prompt.order == "pre-cot" else "first"
        weights = label_token_weights(batch.mask, self.settings.label_weight, position)
        advantages = torch.tensor([rollout.advantage for rollout in rollouts], dtype=torch.float32, device=self.device)
        return RolloutBatch(batch.ids, batch.mask, old_logp.to(self.device), ref_logp, weights, advantages)

    @torch.no_grad()
    def _measured(self, team: DistributedModel, batch: Batch) -> torch.Tensor:
        """Log-probs (B, T) of the replies under a team's model, computed as training computes them."""
        with compute_in(team.model, self.settings.compute_dtype):
            return team.run(lambda model: self.judge.engine.completion_logp(model, batch.ids, batch.mask, temperature=self.settings.temperature))

    def _measure(self, sampled: list[Group], kept: list[Group], attempts: int) -> dict[str, float]:
        """What a person wants to watch. Class-balanced reward, because plain reward rises while rare grades vanish.

        Rewards, parts and lengths are those of decoded groups: with --difficulty prefill, of groups that were kept. survived_cv is of
        the groups that difficulty let through, kept_cv of those that are left after class balance too.
        """
        size, decoded = self.settings.samples, [group for group in sampled if group.replies]
        right_of = {grade: [group.right / size for group in sampled if group.gold == grade] for grade in self.rows_of}
        right_of = {grade: values for grade, values in right_of.items() if values}
        lengths = [len(reply) for group in decoded for reply in group.replies]
        rewards = [reward for group in decoded for reward in group.rewards]
        finished = [ended for group in decoded for ended in group.finished]
        parts = {name: [values[name] for group in decoded for values in group.parts] for name in self.weights}
        return {
            "reward": _mean(rewards),
            "reward_std": statistics.stdev(rewards) if len(rewards) > 1 else 0.0,
            **{f"rewards/{name}/mean": _mean(values) for name, values in parts.items()},
            "frac_reward_zero_std": _mean([len(set(group.rewards)) == 1 for group in decoded]),
            "reward_balanced": _mean([_mean(values) for values in right_of.values()]),
            "kept_frac": len(kept) / len(sampled),
            "all_right_frac": sum(group.right == size for group in sampled) / len(sampled),
            "all_wrong_frac": sum(group.right == 0 for group in sampled) / len(sampled),
            "kept_groups": len(kept),
            "survived_cv": grade_share_cv([group.gold for group in sampled if group.dropped in ("", "balance")]),
            "kept_cv": grade_share_cv([group.gold for group in kept]),
            "resamples": attempts - 1,
            "decoded_tok": sum(lengths),
            "completions/mean_length": _mean(lengths),
            "completions/clipped_ratio": 1 - _mean(finished) if finished else 0.0,
        }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))
