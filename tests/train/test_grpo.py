"""Stage 3 through its command line, with a judge whose replies are right and wrong by turns."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import train.grpo
import train.sft
from taosr1.data.judgements import write_judgements
from taosr1.judge_model import BUNDLED, JudgeModel, load_judge
from taosr1.learning import rollouts
from taosr1.learning.distributed_model import DistributedModel
from taosr1.learning.gradient import accumulate
from taosr1.model.logprobs import completion_logp
from taosr1.synthetic.shop import read_pool
from taosr1.task.grades import GRADES
from train.grpo import SFT_ROWS, THINKER, SftTermBatch
from train.grpo import main as grpo

QUICK = ["--data", "synthetic:labelled*60", "--dev", "synthetic:dev*12", "--groups", "8", "--samples", "4",
         "--min-groups", "3", "--max-new-tokens", "64", "--max-resample", "2", "--lr", "1e-3"]  # fmt: skip


def flags(model: str, out: Path, *more: str) -> list[str]:
    return ["--model", model, "--out", str(out), *QUICK, *more]


def test_three_steps_write_exactly_these_files(post, tmp_path, look):
    last = grpo(flags(post, tmp_path / "run", "--steps", "3", "--test", "synthetic:test*20"))
    assert look.files(tmp_path / "run") == {
        "config.json",
        "identity.json",
        "env.json",
        "metrics.jsonl",
        "samples.jsonl",
        "test.json",
        "checkpoints/best.json",
    } | {f"checkpoints/step-000003/{name}" for name in look.checkpoint}
    rows = look.metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == [1, 2, 3, 3]
    assert rows[0].keys() >= {
        "loss",
        "reward",
        "reward_balanced",
        "kept_frac",
        "kept_groups",
        "kept_cv",
        "resamples",
        "decoded_tok",
        "kl",
        "entropy",
    }
    assert (
        rows[0]["kl"] == pytest.approx(0, abs=1e-6) and rows[2]["kl"] > 1e-6
    )  # measured against the start, which stays as it was
    test = json.loads((tmp_path / "run" / "test.json").read_text(encoding="utf-8"))
    scores = {"dev_macro_f1", "dev_unparsed_frac", "dev_ece", "dev_brier", "dev_label_mass"}
    assert {name for name in last if "/" not in name} == scores | test.keys() and test.items() <= last.items()
    replied = [row["unreadable_frac"] + sum(row[f"reply_share/{grade}"] for grade in GRADES) for row in rows[:3]]
    assert replied == pytest.approx([1, 1, 1])
    of_grades = [value for name, value in rows[0].items() if name.startswith("right_frac/")]
    assert sum(of_grades) / len(of_grades) == pytest.approx(rows[0]["reward_balanced"])
    assert test["test_low_start"] <= test["test_macro_f1_start"] <= test["test_high_start"]


def test_every_group_of_every_step_is_in_samples_jsonl(post, tmp_path, look):
    """And each line can be read by itself: what was asked, what was answered, what it earned."""
    grpo(flags(post, tmp_path / "run", "--steps", "2", "--test", "", "--rewards", "label=1,format=0.1"))
    groups, rows = look.json_lines(tmp_path / "run" / "samples.jsonl"), look.metrics(tmp_path / "run")[:2]
    for row in rows:
        of_step = [group for group in groups if group["step"] == row["step"]]
        assert sum(group["kept"] for group in of_step) == row["kept_groups"] and row["kept_frac"] == row[
            "kept_groups"
        ] / len(of_step)
    assert {group["step"] for group in groups} == {1, 2} and any(group["kept"] for group in groups)
    assert all(
        len(group["replies"]) == 4 and group["reward_parts"][0].keys() == {"label", "format"} for group in groups
    )
    pool = read_pool("labelled", 60)
    for group in groups:
        row = pool[group["row"]]
        assert (group["query"], group["title"], group["gold"]) == (row.query, row.title, row.grade)
    assert all(row["samples_left_out"] == 0 for row in rows)


def test_samples_jsonl_is_bounded_by_the_number_of_steps_and_what_is_left_out_is_counted(
    post, tmp_path, look, monkeypatch
):
    monkeypatch.setattr("taosr1.learning.rollout_group.LOGGED_GROUPS", 11)  # of 3 steps: 3 each
    grpo(flags(post, tmp_path / "run", "--steps", "3", "--test", "", "--min-groups", "0"))
    groups, rows = look.json_lines(tmp_path / "run" / "samples.jsonl"), look.metrics(tmp_path / "run")
    assert [group["step"] for group in groups] == [1] * 3 + [2] * 3 + [3] * 3
    assert [row["samples_left_out"] for row in rows if "loss" in row] == [5] * 3


@pytest.mark.parametrize(("judge", "tokens"), [("thinker", 6), ("thinker", 15), ("post", 2)])
def test_replies_that_are_cut_lead_to_the_flag_that_lets_them_end(request, tmp_path, capsys, judge, tokens):
    model = request.getfixturevalue(judge)
    grpo(flags(model, tmp_path / "run", "--steps", "1", "--test", "", "--max-new-tokens", str(tokens)))
    said = capsys.readouterr()
    assert f"replies were cut at --max-new-tokens {tokens}: raise it" in said.err
    assert "of the replies were cut before they ended" in said.out
    assert f"Raise --max-new-tokens (now {tokens})" in said.out and "--temperature" not in said.out


@pytest.mark.parametrize(
    ("judge", "more"),
    [
        ("thinker", ["--max-new-tokens", "72"]),
        (
            "post",
            ["--difficulty", "prefill", "--updates", "2", "--label-weight", "4", "--kl-beta", "0", "--sft-coef", "0.1"],
        ),
    ],
)
def test_a_resumed_run_equals_the_unbroken_one_bit_for_bit(request, tmp_path, look, stopped_after, judge, more):
    model = request.getfixturevalue(judge)
    more = [*more, "--steps", "4", "--eval-every", "2", "--keep-last", "1", "--test", "synthetic:test*10"]
    grpo(flags(model, tmp_path / "whole", *more))
    stopped_after(1, grpo, flags(model, tmp_path / "parts", *more))
    grpo(flags(model, tmp_path / "parts", *more))
    look.same(tmp_path / "whole", tmp_path / "parts")
    rows = [row for row in look.metrics(tmp_path / "parts") if "loss" in row]
    assert any(row["kept_groups"] and row["grad_norm"] > 0 for row in rows[:2]) and any(
        row["grad_norm"] > 0 for row in rows[2:]
    )


def test_prefill_decodes_fewer_tokens_than_samples_for_as_many_groups(post, tmp_path, look):
    for difficulty in ("samples", "prefill"):
        grpo(
            flags(
                post,
                tmp_path / difficulty,
                "--steps",
                "1",
                "--test",
                "",
                "--difficulty",
                difficulty,
                "--groups",
                "24",
                "--max-resample",
                "1",
            )
        )
    sampled, drawn = (look.metrics(tmp_path / difficulty)[0] for difficulty in ("samples", "prefill"))
    assert 0 < drawn["decoded_tok"] < sampled["decoded_tok"] and drawn["all_wrong_frac"] + drawn["all_right_frac"] > 0


@pytest.mark.parametrize("difficulty", ["samples", "prefill"])
def test_the_plain_program_gives_the_same_numbers_to_rounding(post, tmp_path, look, difficulty):
    for out, more in (("fast", []), ("plain", ["--plain"])):
        grpo(flags(post, tmp_path / out, "--steps", "1", "--test", "", "--difficulty", difficulty, *more))
    fast, plain = (look.metrics(tmp_path / out)[0] for out in ("fast", "plain"))
    for name in fast.keys() - {"time_s"}:
        assert fast[name] == pytest.approx(plain[name], rel=1e-3, abs=1e-4), name


def test_natural_shares_and_other_losses_run(post, tmp_path, look):
    more = [
        "--steps",
        "1",
        "--test",
        "",
        "--balance",
        "none",
        "--ratio",
        "sequence",
        "--normalise",
        "constant",
        "--adv-std",
        "none",
        "--gamma",
        "3",
    ]
    grpo(flags(post, tmp_path / "run", *more))
    groups = look.json_lines(tmp_path / "run" / "samples.jsonl")
    assert len(groups) % 8 == 0 and all(group["right"] < 3 for group in groups if group["kept"])


def test_every_setting_of_the_loss_and_of_the_rollouts_arrives(post, tmp_path, monkeypatch, look):
    losses, advantages = [], []
    real_loss, real_advantages = train.grpo.grpo_loss, rollouts.group_advantages

    def loss(*given, **named):
        losses.append((given, named))
        return real_loss(*given, **named)

    def group_advantages(*given, **named):
        advantages.append(named)
        return real_advantages(*given, **named)

    monkeypatch.setattr(train.grpo, "grpo_loss", loss)
    monkeypatch.setattr(rollouts, "group_advantages", group_advantages)
    more = ["--kl-beta", "0.3", "--kl-estimator", "k2", "--clip-low", "0.11", "--clip-high", "0.22",
            "--ratio", "sequence", "--normalise", "constant", "--label-weight", "4", "--temperature", "1.3",
            "--adv-std", "batch", "--adv-clamp", "1.5", "--gamma", "3", "--updates", "2", "--final-lr-frac", "0.4",
            "--balance", "none"]  # fmt: skip
    temperatures = spy_on_temperatures(monkeypatch)
    grpo(flags(post, tmp_path / "run", "--steps", "4", "--eval-every", "4", "--test", "", *more))
    given, named = losses[0]
    expected = {"kl_beta": 0.3, "kl_estimator": "k2", "clip_low": 0.11, "clip_high": 0.22, "ratio": "sequence",
                "normalise": "constant", "max_length": 64}  # fmt: skip
    assert {name: named[name] for name in expected} == expected
    first = given[3].int().argmax(dim=1, keepdim=True)
    assert (named["weights"].gather(1, first) == 4).all() and given[1] is not None
    assert named["ref_logp"] is not None and named["entropy"] is not None
    assert advantages[0] == {"scale": "batch", "clamp": 1.5}
    assert temperatures == {"generate": {1.3}, "completion_logp": {1.3}}
    # Two updates on each batch of rollouts: sampled before steps 1 and 3 only. The rate ends at 0.4 of its peak.
    groups = look.json_lines(tmp_path / "run" / "samples.jsonl")
    assert {group["step"] for group in groups} == {1, 3} and all(
        group["right"] < 3 for group in groups if group["kept"]
    )
    rates = [row["lr_factor"] for row in look.metrics(tmp_path / "run") if "loss" in row]
    assert rates[0] == 1.0 and 0.4 < rates[-1] < 0.7


def spy_on_temperatures(monkeypatch) -> dict[str, set[float]]:
    """The temperatures that the functions of the judge's engine are called with during training."""
    found: dict[str, set[float]] = {"generate": set(), "completion_logp": set()}
    load = train.grpo.load_trainee

    def spied(judge: JudgeModel, name: str) -> JudgeModel:
        function = getattr(judge.engine, name)

        def call(*given, **named):
            if named["temperature"]:  # 0: an evaluation
                found[name].add(named["temperature"])
            return function(*given, **named)

        return replace(judge, engine=replace(judge.engine, **{name: call}))

    monkeypatch.setattr(
        train.grpo,
        "load_trainee",
        lambda *given, **named: spied(spied(load(*given, **named), "generate"), "completion_logp"),
    )
    return found


def test_without_a_kl_term_no_second_model_is_kept(post, tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("a copy of the model was made")

    monkeypatch.setattr("taosr1.learning.reference.copy", SimpleNamespace(deepcopy=refuse))
    last = grpo(flags(post, tmp_path / "run", "--steps", "1", "--kl-beta", "0", "--test", "synthetic:test*8"))
    assert "test_macro_f1_start" in last  # the start is read again for the comparison
    with pytest.raises(AssertionError, match="copy"):
        grpo(flags(post, tmp_path / "other", "--steps", "1", "--kl-beta", "0.1", "--test", ""))


@pytest.mark.parametrize(("normalise", "more"), [("sequence", []), ("token", ["--label-weight", "3"])])
def test_the_sft_term_is_its_coefficient_times_the_mean_cross_entropy(post, tmp_path, monkeypatch, normalise, more):
    """The step's gradient is GRPO's mean gradient plus 0.5 x that of the examples' mean cross-entropy per token."""
    gradients, anchors, real = [], [], train.grpo.train

    def spy(judge, run, stage, *, distributed, schedule, **named):
        def draw(step, cursor):
            drawn = stage.draw(step, cursor)
            deal = partial(distributed.deal, max_tokens=schedule.micro_batch_tok)
            batches, beside = stage.prepare(deal(drawn.items), drawn.items), deal(stage.extra(step, drawn.items))
            anchors.extend(beside)
            gradients.extend(gradient_of(distributed, parts, stage.loss) for parts in (batches + beside, batches))
            return drawn

        return real(judge, run, replace(stage, draw=draw), distributed=distributed, schedule=schedule, **named)

    monkeypatch.setattr(train.grpo, "train", spy)
    grpo(flags(post, tmp_path / "run", "--steps", "1", "--test", "", "--sft-coef", "0.5", "--sft-data",
               "synthetic:reasoned*50", "--micro-batch-tok", "900", "--kl-beta", "0",
               "--normalise", normalise, *more))  # fmt: skip
    (whole, grpo_alone), judge = gradients, load_judge(post)
    assert len(anchors) > 1 and sum(len(batch.ids) for batch in anchors) == SFT_ROWS
    assert all(isinstance(batch, SftTermBatch) for batch in anchors)
    for parameter in judge.model.parameters():
        parameter.grad = None
    total = sum(-completion_logp(judge.model, batch.ids, batch.mask).sum() for batch in anchors)
    (total / sum(int(batch.mask.sum()) for batch in anchors)).backward()
    expected = grpo_alone + 0.5 * torch.cat([p.grad.flatten() for p in judge.model.parameters()])
    torch.testing.assert_close(whole, expected, rtol=1e-4, atol=1e-6)
    assert (whole - grpo_alone).norm() > 0.01 * whole.norm()


def gradient_of(distributed: DistributedModel, batches, loss) -> torch.Tensor:
    accumulate(distributed, batches, loss)
    found = torch.cat([p.grad.flatten() for p in distributed.model.parameters()])
    distributed.model.zero_grad(set_to_none=True)
    return found


def test_a_pool_without_a_teaching_group_moves_nothing_and_says_so(base, tmp_path, look, capsys):
    """The fresh judge is never right: every group is dropped, the cap ends the search, and the weights stay."""
    grpo(flags(base, tmp_path / "run", "--steps", "2", "--test", "", "--max-new-tokens", "3"))
    said = capsys.readouterr().out
    assert (
        "all wrong; of 2 batches of rollouts 2 held fewer than --min-groups groups to train on, 2 none at all" in said
    )
    assert "Nothing was learned" in said and "train/sft.py comes first" in said
    grpo(
        flags(base, tmp_path / "run", "--steps", "2", "--test", "", "--max-new-tokens", "3")
    )  # finished: nothing is sampled, nothing said
    assert "sampled groups" not in capsys.readouterr().out
    rows = look.metrics(tmp_path / "run")[:2]
    assert [(row["kept_groups"], row["resamples"], row["loss"], row["grad_norm"], row["skipped"]) for row in rows] == [
        (0, 1, 0, 0, 0)
    ] * 2
    before, after = load_judge(base).model.state_dict(), load_judge(str(tmp_path / "run")).model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_bundled_thinker_stands_in_for_a_stage_that_has_no_output_or_was_stopped(
    base, tmp_path, monkeypatch, capsys, stopped_after
):
    monkeypatch.chdir(tmp_path)
    command = [*QUICK, "--steps", "1", "--test", "", "--max-new-tokens", "4"]
    sft = ["--model", base, "--data", "synthetic:reasoned*40", "--dev", "synthetic:dev*4", "--steps", "2",
           "--eval-every", "1", "--batch-size", "4", "--max-new-tokens", "4"]  # fmt: skip
    stopped_after(1, train.sft.main, sft)
    grpo([*command, "--out", "first"])
    assert f"{THINKER} does not exist or is not finished yet: --model bundled stands in" in capsys.readouterr().out
    train.sft.main(sft)
    grpo([*command, "--out", "second"])
    assert "bundled" not in capsys.readouterr().out  # what is there is used
    # A run that began with the bundled thinker does not go on with another start: its KL term would measure from there.
    assert json.loads(Path("first/config.json").read_text(encoding="utf-8"))["model"] == BUNDLED
    with pytest.raises(ValueError, match="model was 'bundled' and is now 'runs/thinker-sft'"):
        grpo([*command, "--out", "first"])


def test_a_pool_of_one_grade_is_told_and_the_fate_of_every_group_counted(post, tmp_path, look, capsys):
    path = tmp_path / "fours.jsonl"
    write_judgements(path, [row for row in read_pool("labelled", 60) if row.grade == 4])
    grpo(flags(post, tmp_path / "run", "--steps", "4", "--eval-every", "2", "--test", "", "--data", str(path)))
    said = capsys.readouterr().out
    groups = look.json_lines(tmp_path / "run" / "samples.jsonl")
    assert "every row of --data has grade 4" in said and f"of {len(groups)} sampled groups: " in said
    assert f"{sum(group['kept'] for group in groups)} trained on" in said and "Nothing was learned" not in said


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--samples", "1"], "--samples is 1, expected at least 2: a group of one has no advantage"),
        (["--gamma", "1"], "--gamma is 1, expected 0 or 2 to --samples"),
        (["--gamma", "5"], "--gamma is 5, expected 0 or 2 to --samples"),
        (["--gamma", "2", "--difficulty", "none"], "--gamma is 2, but --difficulty none keeps every group"),
        (["--temperature", "0"], "--temperature is 0.0, expected more than 0"),
        (["--max-resample", "0"], "--max-resample is 0, expected at least 1"),
        (
            ["--updates", "4", "--eval-every", "8", "--steps", "6"],
            "--updates is 4, expected a divisor of --eval-every 8, --save-every 0 and --steps 6",
        ),
        (["--rewards", "speed=1"], "reward 'speed=1': expected NAME=NUMBER"),
        (
            ["--clip-low", "1.5", "--lr", "0"],
            "--clip-low is 1.5, expected at most 1; --lr is 0.0, expected more than 0",
        ),
        (["--data", "synthetic:unlabelled*5"], "its pairs have no grade"),
        (["--test", "gone.jsonl"], "no file at gone.jsonl"),
        (["--sft-coef", "-1"], "--sft-coef is -1.0, expected at least 0"),
        (["--sft-coef", "0.1", "--sft-data", "gone.jsonl"], "no file at gone.jsonl"),
        (["--sft-coef", "0.1", "--sft-data", "synthetic:labelled*9"], "field 'cot' is missing"),
        (["--rewards", "label=1,steps=0.5"], "use synthetic:reasoned or synthetic:explained"),
        (["--model", "runs/gone"], "--model runs/gone: no such run here"),
    ],
)
def test_wrong_use_says_what_to_change_and_leaves_nothing_behind(post, tmp_path, refused, more, message):
    assert message in refused(grpo, *flags(post, tmp_path / "run", *more))
    assert not (tmp_path / "run").exists()


def test_a_judge_that_thinks_first_has_no_difficulty_by_prefill(thinker, tmp_path, refused):
    message = refused(grpo, *flags(thinker, tmp_path / "run", "--difficulty", "prefill"))
    assert "--difficulty prefill needs label-first replies" in message and "use --difficulty samples" in message
    assert not (tmp_path / "run").exists()


def test_rewards_that_are_no_numbers_count_for_every_update_of_their_batch(post, tmp_path, monkeypatch):
    monkeypatch.setattr("taosr1.learning.rollouts.reward_parts", lambda *_: {"label": float("nan")})
    with pytest.raises(
        FloatingPointError, match="reward 'label' is nan, expected a finite number, 4 in a row; its batch is in"
    ):
        grpo(
            flags(
                post,
                tmp_path / "run",
                "--steps",
                "8",
                "--updates",
                "2",
                "--eval-every",
                "8",
                "--max-skipped",
                "4",
                "--test",
                "",
            )
        )
    dumped = json.loads((tmp_path / "run" / "bad-step-000003-rank-0.json").read_text(encoding="utf-8"))
    assert dumped["records"] and dumped["records"][0]["reward_parts"]
