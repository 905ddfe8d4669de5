"""GRPO's rollouts from a decoder whose label distribution is set by hand, so that difficulty is known beforehand."""

from __future__ import annotations

import copy
import json
import math
from collections import Counter
from dataclasses import fields, replace

import pytest
import torch

from taosr1.fast.prefix_tree import make_tree
from taosr1.judge_model import DTYPES, JudgeModel
from taosr1.learning import rollouts
from taosr1.learning.difficulty import grade_share_cv
from taosr1.learning.distributed_model import DistributedModel
from taosr1.learning.reference import with_stored_logp
from taosr1.learning.rollout_group import Group, RolloutBatch, read_rollout
from taosr1.learning.rollout_metrics import describe_outcomes
from taosr1.learning.rollouts import Sampler, root_weights
from taosr1.model.logprobs import completion_logp
from taosr1.task.judgement import Judgement
from taosr1.task.prompt import encode_reply
from train import grpo

BALANCES = sorted(next(field.metadata["choices"] for field in fields(grpo.Config) if field.name == "balance"))
EVEN = (0.25, 0.25, 0.25, 0.25)
SETTINGS = grpo.Config(
    groups=16, samples=4, difficulty="samples", balance="class", min_groups=4, max_resample=3, max_new_tokens=3,
    micro_batch_tok=200,
)  # fmt: skip


@pytest.fixture
def labeller(make_judge):
    """A judge whose replies are a label drawn with the given probabilities (grades 1-4), then the end."""

    def make(probs=EVEN, order: str = "post-cot") -> JudgeModel:
        judge = make_judge(order, tie_word_embeddings=False)
        model, labels, end = judge.model, list(judge.tokenizer.label_ids), judge.tokenizer.eos_ids[0]
        with torch.no_grad():
            for layer in model.model.layers:  # nothing but the current token's embedding reaches the head
                layer.self_attn.o_proj.weight.zero_()
                layer.mlp.down_proj.weight.zero_()
            width = model.config.hidden_size**0.5  # what the final norm makes of a unit vector
            model.model.embed_tokens.weight.zero_()[:, 0] = 1.0
            model.model.embed_tokens.weight[labels] = torch.eye(model.config.hidden_size)[1]
            model.lm_head.weight.fill_(-20.0 / width)
            model.lm_head.weight[labels, 0] = torch.tensor(probs).log().clamp(min=-20) / width
            model.lm_head.weight[end, 1] = 0.0
        return judge

    return make


def rows_of(*grades: int) -> list[Judgement]:
    return [Judgement(f"query {n}", "title " * (1 + n % 5), grade=grade) for n, grade in enumerate(grades)]


ALL_GRADES = rows_of(*[4] * 20 + [2] * 12 + [1] * 6 + [3] * 2)


class Steps:
    """The rollouts of train/grpo.py for one step after another, without training."""

    def __init__(self, judge: JudgeModel, rows=ALL_GRADES, *, reference=None, **changes) -> None:
        self.config, self.rows = replace(SETTINGS, **changes), rows
        self.sampler = Sampler(judge, rows, self.config)
        self.policy = DistributedModel(judge.model, judge.engine, dtype=DTYPES[self.config.dtype])
        self.reference = reference and DistributedModel(reference, judge.engine)
        self.metrics: dict[str, float] = {}

    def collect(self, step: int, cursor: dict) -> tuple[list[RolloutBatch], list[dict]]:
        """The batches of a step, and what samples.jsonl says of its groups."""
        parts = {"config": self.config, "rows": self.rows, "sampler": self.sampler, "distributed": self.policy}
        drawn = grpo.rollouts(step, cursor, **parts)
        self.metrics = drawn.metrics
        batches = self.policy.deal(drawn.items, self.config.micro_batch_tok)
        stored = with_stored_logp(batches, drawn.items, self.policy, self.reference, self.config.temperature)
        return stored, list(drawn.samples)


# --- Difficulty -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("difficulty", ["samples", "prefill"])
@pytest.mark.parametrize("gamma", [0, 2])
def test_groups_are_kept_where_some_but_not_too_many_replies_are_right(labeller, difficulty, gamma):
    _, records = Steps(labeller(), difficulty=difficulty, gamma=gamma, balance="none", groups=40).collect(0, {})
    reasons = Counter()
    for record in records:
        right = record["right"]
        reason = (
            "all wrong" if right == 0 else "all right" if right == 4 else "too easy" if right >= (gamma or 4) else ""
        )
        assert (record["dropped"], record["kept"]) == (reason, not reason)
        if record["replies"]:
            assert right == sum(text == str(record["gold"]) for text in record["replies"])
        reasons[reason] += 1
    assert reasons[""] > 5 and reasons["all wrong"] > 2 and (gamma == 0 or reasons["too easy"] > 2)


def test_prefill_decodes_kept_groups_alone_and_keeps_as_many_as_sampling(labeller):
    kept, decoded = {}, {}
    for difficulty in ("samples", "prefill"):
        sampler = Steps(labeller((0.5, 0.2, 0.2, 0.1)), difficulty=difficulty, balance="none", groups=400)
        _, records = sampler.collect(0, {})
        kept[difficulty], decoded[difficulty] = sampler.metrics["kept_frac"], sampler.metrics["decoded_tok"]
        for record in records:
            assert len(record["replies"]) == (4 if record["kept"] or difficulty == "samples" else 0)
            assert len(record["labels"]) == 4 and record["right"] == record["labels"].count(
                record["gold"]
            )  # drawn for dropped groups too
    assert kept["prefill"] == pytest.approx(kept["samples"], abs=0.12)  # three standard deviations
    assert decoded["prefill"] == pytest.approx(decoded["samples"] * kept["prefill"], rel=0.01)


def test_prefill_and_samples_give_kept_groups_the_same_right_counts(labeller):
    """Drawing the labels anew for kept groups would give Binomial(G, p) again, with all-right and all-wrong groups."""
    shares = {}
    for difficulty in ("samples", "prefill"):
        sampler = Steps(
            labeller((0.2, 0.2, 0.2, 0.4)),
            rows_of(4),
            difficulty=difficulty,
            balance="none",
            groups=1500,
            max_new_tokens=2,
        )
        _, records = sampler.collect(0, {})
        counts = Counter(sum(text == "4" for text in record["replies"]) for record in records if record["kept"])
        shares[difficulty] = [counts[right] / sum(counts.values()) for right in range(5)]
    assert shares["prefill"][0] == shares["prefill"][4] == 0
    assert shares["prefill"] == pytest.approx(shares["samples"], abs=0.06)


@pytest.mark.parametrize("difficulty", ["samples", "prefill"])
def test_a_label_that_is_followed_by_more_is_not_right_under_either_difficulty(labeller, difficulty, monkeypatch):
    """Every reply begins with a label and goes on as "411", which no parser reads as one."""
    monkeypatch.setattr(JudgeModel, "reply_text", lambda *_: "411")
    _, records = Steps(labeller(), difficulty=difficulty, max_resample=1).collect(0, {})
    assert not any(record["kept"] for record in records) and {
        label for record in records if record["replies"] for label in record["labels"]
    } == {None}


def test_root_balance_weighs_grades_by_the_root_of_their_frequency():
    """Rows: sixteen 4s, four 2s; so 4s weigh sqrt(16) = 4 and 2s sqrt(4) = 2. Kept: three groups of 4 and one of 2,
    mean weight 1: 4 groups in all, 2/3 of the weight to the three and 1/3 to the one: 8/9 and 4/3. A weight of the
    frequency itself would be 16/15, 4/5."""
    assert root_weights([4, 4, 4, 2], [4] * 16 + [2] * 4) == pytest.approx([8 / 9] * 3 + [4 / 3])


def test_root_balance_is_what_trained_advantages_carry(labeller):
    batches, records = Steps(labeller(), balance="root", adv_std="none", groups=40).collect(0, {})
    plain, weighed = Steps(labeller(), balance="none", adv_std="none", groups=40), {}
    for record in records:
        if record["kept"]:
            share = record["right"] / 4
            weighed.setdefault(record["gold"], set()).add(round(max(record["advantages"]) / (1 - share), 2))
    assert (
        all(len(values) == 1 for values in weighed.values()) and len({min(values) for values in weighed.values()}) > 1
    )
    _, records = plain.collect(0, {})
    for record in records:
        if record["kept"]:
            assert max(record["advantages"]) == pytest.approx(1 - record["right"] / 4, abs=1e-3)


@pytest.mark.parametrize(
    ("setting", "expected"), [({"adv_std": "none"}, 0.75), ({"adv_std": "group"}, 1.5), ({"adv_clamp": 0.5}, 0.5)]
)
def test_the_kind_of_advantage_reaches_the_batches(labeller, setting, expected):
    """One right reply of four: 3/4 without a std, 0.75 / 0.5001 with the group's, and at most the clamp."""
    _, records = Steps(labeller(), balance="none", groups=40, **setting).collect(0, {})
    found = [max(record["advantages"]) for record in records if record["kept"] and record["right"] == 1]
    assert found and found == pytest.approx([expected] * len(found), abs=1e-3)


def test_plain_reinforce_trains_on_every_reply_with_its_reward_less_the_mean_of_its_group(labeller):
    """No filter, std or balance: 16 groups of 4 replies, all of them in the batches, equal ones with advantage 0."""
    judge = labeller((0.02, 0.02, 0.06, 0.9))
    sampler = Steps(judge, difficulty="none", balance="none", adv_std="none", max_resample=1)
    batches, records = sampler.collect(0, {})
    assert sum(len(batch.ids) for batch in batches) == 4 * len(records) == 64 and sampler.metrics["kept_frac"] == 1
    found = {round(value, 4) for record in records for value in record["advantages"]}
    for record in records:
        mean = record["right"] / 4
        expected = [(text == str(record["gold"])) - mean for text in record["replies"]]
        assert record["kept"] and record["advantages"] == pytest.approx(expected, abs=1e-6)
    assert 0 in found and len(found) > 2


def test_the_imbalance_that_survived_and_the_one_that_is_left_are_both_told(labeller):
    sampler = Steps(labeller(), balance="class", groups=60)
    _, records = sampler.collect(0, {})
    survived = [record["gold"] for record in records if record["kept"] or record["dropped"] == "balance"]
    assert (
        sampler.metrics["survived_cv"] == pytest.approx(grade_share_cv(survived)) and sampler.metrics["survived_cv"] > 0
    )
    assert sampler.metrics["kept_cv"] == 0


def test_a_pool_that_is_all_right_or_all_wrong_ends_at_the_cap_without_a_gradient(labeller):
    certain = labeller((1e-9, 1e-9, 1e-9, 1.0))
    for rows, reason in ((rows_of(4, 4, 4), "all right"), (rows_of(1, 2, 3), "all wrong")):
        for difficulty in ("samples", "prefill"):
            sampler = Steps(certain, rows, difficulty=difficulty, max_resample=4, groups=6)
            batches, records = sampler.collect(0, {})
            assert batches == [] and {record["dropped"] for record in records} == {reason}
            assert sampler.metrics["resamples"] == 3 and 4 * 3 <= len(records) <= 4 * 8
            assert sampler.metrics["kept_frac"] == sampler.metrics["kept_groups"] == sampler.metrics["kept_cv"] == 0
            assert sampler.metrics["all_right_frac"] == (reason == "all right") and sampler.metrics[
                "all_wrong_frac"
            ] == (reason == "all wrong")


def test_a_pool_of_one_grade_is_trained_on_and_its_imbalance_is_told(labeller):
    sampler = Steps(labeller(), rows_of(4, 4, 4, 4, 4), min_groups=6)
    batches, records = sampler.collect(0, {})
    assert (
        batches
        and all(record["gold"] == 4 for record in records)
        and sampler.metrics["kept_cv"] == pytest.approx(3**0.5)
    )


def test_it_refills_only_while_too_few_groups_are_kept(labeller):
    easy = Steps(labeller(), min_groups=4)
    easy.collect(0, {})
    assert easy.metrics["resamples"] == 0
    hard = Steps(labeller((0.94, 0.02, 0.02, 0.02)), groups=4, min_groups=16, max_resample=5)
    hard.collect(0, {})
    assert hard.metrics["resamples"] == 4


# --- Balance ----------------------------------------------------------------------------------------------------------
def test_class_balance_keeps_equally_many_groups_of_every_grade(labeller):
    sampler = Steps(labeller(), groups=32)
    _, records = sampler.collect(0, {})
    kept = Counter(record["gold"] for record in records if record["kept"])
    assert set(kept) == {1, 2, 3, 4} and len(set(kept.values())) == 1 and sampler.metrics["kept_cv"] == 0
    assert sampler.metrics["kept_groups"] == sum(kept.values()) and sampler.metrics["kept_frac"] == sum(
        kept.values()
    ) / len(records)
    alive = Counter(record["gold"] for record in records if record["dropped"] in ("", "balance"))
    assert sum(alive.values()) > sum(kept.values()) and min(alive.values()) == kept[1]


def test_without_balance_every_surviving_group_is_kept_in_natural_shares(labeller):
    _, records = Steps(labeller(), balance="none", groups=40).collect(0, {})
    assert Counter(record["gold"] for record in records) == Counter(row.grade for row in ALL_GRADES)  # every row once
    assert {record["dropped"] for record in records} <= {"", "all wrong", "all right"}


def test_grades_whose_groups_rarely_survive_are_drawn_more_often(labeller):
    sampler, cursor = Steps(labeller((0.01, 0.33, 0.33, 0.33)), groups=20, max_resample=1), {}
    for step in range(12):
        _, records = sampler.collect(step, cursor)
    drawn = Counter(record["gold"] for record in records)
    assert (
        cursor["survival"]["1"] < 0.2 < 0.5 < cursor["survival"]["4"]
        and drawn[1] > 2 * drawn[4]
        and sum(drawn.values()) <= 24
    )


@pytest.mark.parametrize("balance", ["class", "none"])
def test_every_row_of_a_grade_is_drawn_before_any_is_drawn_again(labeller, balance):
    sampler, cursor, drawn = (
        Steps(labeller(), rows_of(*[4] * 9 + [1] * 5), balance=balance, groups=7, max_resample=1),
        {},
        {1: [], 4: []},
    )
    for step in range(6):
        for record in sampler.collect(step, cursor)[1]:
            drawn[record["gold"]].append(record["row"])
    for grade, rows in ((4, set(range(9))), (1, set(range(9, 14)))):
        assert set(drawn[grade][: len(rows)]) == rows and len(drawn[grade]) > len(rows)


@pytest.mark.parametrize("balance", sorted(set(BALANCES) - {"class"}))
def test_only_class_balance_drops_groups_that_survived(labeller, balance):
    sampler = Steps(labeller(), balance=balance, groups=32)
    _, records = sampler.collect(0, {})
    alive = [record for record in records if 0 < record["right"] < 4]
    assert all(record["kept"] and record["advantages"] for record in alive) and sampler.metrics["kept_groups"] == len(
        alive
    )


def test_a_row_drawn_twice_makes_two_groups_of_which_balance_may_drop_one(labeller):
    """Two groups of one row can be equal in every field; only one of them is trained on."""
    sampler = Steps(labeller((0.45, 0.45, 0.05, 0.05)), rows_of(1, 2, 3), samples=2, groups=60, max_resample=1)
    _, records = sampler.collect(0, {})
    assert sum(record["dropped"] == "balance" for record in records) > 5
    assert sum(record["kept"] for record in records) == sampler.metrics["kept_groups"]


# --- What is trained on -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("difficulty", ["samples", "prefill"])
def test_batches_hold_every_kept_reply_with_its_own_log_probs_and_advantages_of_its_group(
    make_judge, labeller, difficulty
):
    judge = labeller()
    reference = make_judge(seed=4, tie_word_embeddings=False).model
    sampler = Steps(judge, difficulty=difficulty, reference=reference, temperature=0.8)
    batches, records = sampler.collect(0, {})
    assert len(batches) > 1 and sum(len(batch.ids) for batch in batches) == 4 * sampler.metrics["kept_groups"]
    for batch in batches:
        tree = make_tree(batch.ids, batch.mask, judge.model.config)  # what rows share counts once in the budget
        assert tree.ids.numel() <= min(200, batch.ids.numel() / 2)
        with torch.no_grad():
            scores = [
                completion_logp(model, batch.ids, batch.mask, temperature=0.8) for model in (judge.model, reference)
            ]
        torch.testing.assert_close(batch.old_logp, scores[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(batch.ref_logp, scores[1], rtol=0, atol=1e-5)
        first = batch.mask.int().argmax(dim=1)
        assert torch.isin(batch.ids.gather(1, first[:, None])[:, 0], torch.tensor(judge.tokenizer.label_ids)).all()
        last = batch.mask.shape[1] - 1 - batch.mask.flip(1).int().argmax(dim=1)
        assert (batch.ids.gather(1, last[:, None])[:, 0] == judge.tokenizer.eos_ids[0]).all()  # the sampled end counts
    for record in records:
        if record["kept"]:
            assert sum(record["advantages"]) == pytest.approx(0, abs=1e-3) and len(record["advantages"]) == 4
            right = [text == str(record["gold"]) for text in record["replies"]]
            assert [advantage > 0 for advantage in record["advantages"]] == right
        else:
            assert record["advantages"] == []


def test_the_ratio_starts_at_one_in_half_precision_too(make_judge):
    """The sampler's float32 log-probs are another measurement: with them the ratio would start off 1."""
    judge = make_judge(tie_word_embeddings=False)
    steps = Steps(judge, rows_of(1, 2, 3, 4), dtype="bfloat16")
    tokens = [[5, 9, 40], [7, 8, 30], [5, 5, 5]]
    replies = [read_rollout("4", "label", ids=ids, token_logp=[-1.0] * 3, advantage=1.0) for ids in tokens]
    group = Group(0, steps.sampler.prompts[0], 1, replies)
    policy = steps.policy
    (batch,) = with_stored_logp(policy.deal([group], 200), [group], policy, None, 1.0)
    with policy.compute_dtype():  # with a graph, as in training: another kernel would be another number
        assert torch.equal(batch.old_logp, judge.engine.completion_logp(judge.model, batch.ids, batch.mask).detach())
    in_float32 = completion_logp(judge.model, batch.ids, batch.mask)
    assert 1e-5 < (batch.old_logp - in_float32).abs().max() < 0.2


def test_no_reference_means_no_ref_logp_and_old_log_probs_are_the_samplers(labeller):
    batches, _ = Steps(labeller(order="label")).collect(0, {})
    assert batches and all(batch.ref_logp is None for batch in batches)
    replies = [read_rollout("4", "label", ids=[7, 8], token_logp=[-1.0, -2.0], advantage=0.5)]
    batch = Group.collate([Group(0, [5, 6], 4, replies)])
    assert batch.old_logp.tolist() == [[0, 0, -1, -2]] and batch.advantages.tolist() == [0.5]


def test_every_group_is_recorded_with_its_replies_rewards_and_fate(labeller):
    _, records = Steps(labeller(), rewards="label=1,ordinal=0.5").collect(0, {})
    assert json.loads(json.dumps(records)) == records
    for record in records:
        assert record.keys() == {
            "row", "query", "title", "gold", "right", "kept", "dropped", "probs", "labels", "logps",
            "reward_parts", "rewards", "advantages", "replies",
        }  # fmt: skip
        assert record["gold"] == ALL_GRADES[record["row"]].grade
        assert record["labels"] == [int(text) for text in record["replies"]] and record["probs"] == pytest.approx(
            EVEN, abs=1e-3
        )
        assert record["logps"] == pytest.approx(
            [math.log(0.25)] * 4, abs=0.01
        )  # the end of sequence is all but certain
        for text, parts, reward in zip(record["replies"], record["reward_parts"], record["rewards"]):
            assert parts == {
                "label": float(int(text) == record["gold"]),
                "ordinal": 1 - abs(int(text) - record["gold"]) / 3,
            }
            assert reward == pytest.approx(parts["label"] + 0.5 * parts["ordinal"])


def test_a_judge_that_thinks_first_is_recorded_with_the_shares_of_its_labels(make_judge, monkeypatch):
    """Two of four replies decide for 4, one for 2, one cannot be read: 0, 1/4, 0, 1/2."""
    judge = make_judge("pre-cot")
    decisions = iter(["Decision: 4-Excellent", "Decision: 2-Mismatch", "garbage", "Decision: 4-Excellent"] * 16)
    monkeypatch.setattr(JudgeModel, "reply_text", lambda *_: next(decisions))
    sampler = Steps(judge, max_resample=1)
    _, records = sampler.collect(0, {})
    for record in records:
        assert record["probs"] == [0.0, 0.25, 0.0, 0.5] and record["labels"] == [4, 2, None, 4]


def test_rewards_and_lengths_are_logged_under_trl_s_names(labeller):
    """With all replies right their reward is 1.5 with no spread; with labels alike likely the parts' means add up."""
    sampler = Steps(labeller((0.0, 0.0, 0.0, 1.0)), rows_of(*[4] * 40), rewards="label=1,ordinal=0.5")
    sampler.collect(0, {})
    assert sampler.metrics["reward"] == pytest.approx(1.5) and sampler.metrics["reward_std"] == 0.0
    assert sampler.metrics["frac_reward_zero_std"] == 1.0 and sampler.metrics["completions/clipped_ratio"] == 0.0
    sampler = Steps(labeller(), rewards="label=1,ordinal=0.5", max_new_tokens=1, max_resample=1)
    _, records = sampler.collect(0, {})
    metrics, rewards = sampler.metrics, torch.tensor([record["rewards"] for record in records])
    assert metrics["rewards/label/mean"] + 0.5 * metrics["rewards/ordinal/mean"] == pytest.approx(metrics["reward"])
    assert 0 < metrics["rewards/label/mean"] < metrics["rewards/ordinal/mean"] < 1
    assert metrics["reward_std"] == pytest.approx(rewards.std().item(), rel=1e-5)
    assert metrics["frac_reward_zero_std"] == pytest.approx((rewards == rewards[:, :1]).all(1).float().mean().item())
    assert metrics["completions/clipped_ratio"] == 1.0  # one token is the label, and no room for the end


def test_the_outcomes_of_groups_outlive_an_interruption_and_are_told_in_words(labeller):
    """They are kept in the cursor, which checkpoints save."""
    cursor: dict = {}
    Steps(labeller(), max_resample=1).collect(0, cursor)
    cursor = json.loads(json.dumps(cursor))
    Steps(labeller(), max_resample=1).collect(1, cursor)
    outcomes = cursor["outcomes"]
    assert outcomes["steps"] == 2 and "steps without a group" not in outcomes
    assert sum(count for name, count in outcomes.items() if name != "steps") >= 30  # both times about 16
    assert describe_outcomes(cursor).startswith(f"of {sum(outcomes.values()) - 2} sampled groups: ")
    assert describe_outcomes({}) == ""


def test_a_reward_that_is_no_number_names_the_row_of_the_data(labeller, monkeypatch):
    def reward(reply, gold, _):
        return {"label": math.nan if gold is ALL_GRADES[25] else 1.0}

    monkeypatch.setattr(rollouts, "reward_parts", reward)
    with pytest.raises(FloatingPointError, match="row 25: reward 'label' is nan") as caught:
        Steps(labeller(), balance="none", groups=40).collect(0, {})
    assert [record["row"] for record in caught.value.records] == [25]  # for samples.jsonl


def test_the_balanced_reward_weighs_every_grade_alike(labeller):
    sampler = Steps(labeller((0.0001, 0.0001, 0.0001, 1.0)), balance="none", groups=40)
    sampler.collect(0, {})
    assert sampler.metrics["reward"] == pytest.approx(0.5, abs=0.03)  # half of the rows are grade 4
    assert sampler.metrics["reward_balanced"] == pytest.approx(0.25, abs=0.03)  # but it is one grade of four


@pytest.mark.parametrize("difficulty", ["samples", "prefill"])
def test_a_teachers_reply_in_an_all_wrong_group_is_one_change_and_counts_as_the_teachers(
    labeller, monkeypatch, difficulty
):
    """However difficulty is measured: the group is kept, its other replies are decoded, metrics are the model's own."""
    judge, drop = labeller((0.4, 0.4, 0.1, 0.1)), grpo.drop_by_difficulty

    def with_teacher(groups, gamma):
        for group in groups:
            if group.right == 0:
                text = str(group.gold)
                ids = encode_reply(judge.tokenizer, text)
                group.replies[-1] = read_rollout(text, "label", source="teacher", ids=ids)
        drop(groups, gamma)

    plain = Steps(judge, rows_of(*[4] * 20), difficulty=difficulty, balance="none", groups=20, max_resample=1)
    plain.collect(0, {})
    monkeypatch.setattr(grpo, "drop_by_difficulty", with_teacher)
    steps = Steps(judge, rows_of(*[4] * 20), difficulty=difficulty, balance="none", groups=20, max_resample=1)
    batches, records = steps.collect(0, {})
    taught = [record for record in records if "sources" in record]
    assert len(taught) > 5 and all(record["kept"] and record["right"] == 1 for record in taught)
    for record in taught:
        assert record["sources"] == ["model"] * 3 + ["teacher"] and record["rewards"] == [0, 0, 0, 1]
        assert record["logps"][3] is None and len(record["replies"]) == 4 and record["advantages"][3] > 0
    for name in ("reward_balanced", "all_wrong_frac"):  # what the teacher says is no success of the model's
        assert steps.metrics[name] == pytest.approx(plain.metrics[name])
    assert steps.metrics["kept_groups"] > plain.metrics["kept_groups"]
    for batch in batches:  # the teacher's tokens have log-probs too, measured by the policy
        torch.testing.assert_close(batch.old_logp, completion_logp(judge.model, batch.ids, batch.mask).detach())


# --- Going on ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("balance", BALANCES)
def test_a_step_depends_on_seed_step_cursor_and_weights_alone(labeller, balance):
    judge, cursor = labeller(), {}
    before = torch.get_rng_state()
    first = Steps(judge, balance=balance)
    first.collect(0, cursor)
    stored = json.loads(json.dumps(cursor))
    unbroken = first.collect(1, cursor)
    resumed = Steps(judge, balance=balance).collect(1, stored)
    assert resumed[1] == unbroken[1] and stored == cursor
    assert all(
        torch.equal(a.ids, b.ids) and torch.equal(a.old_logp, b.old_logp) for a, b in zip(resumed[0], unbroken[0])
    )
    assert torch.equal(torch.get_rng_state(), before)
    other = Steps(judge, balance=balance, seed=1).collect(1, copy.deepcopy(stored))
    assert other[1] != unbroken[1] and Steps(judge, balance=balance).collect(2, stored)[1] != unbroken[1]
