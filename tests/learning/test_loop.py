"""The loop: gradients of sums, schedule, skipped steps, checkpoints before evaluations, and resuming."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import pytest
import torch

from taosr1.learning import loop
from taosr1.learning.batches import Batch, Example, Item, collate
from taosr1.learning.distributed_model import DistributedModel
from taosr1.learning.draw_order import keyed_generator
from taosr1.learning.gradient import accumulate
from taosr1.learning.loop import Stage, StepItems, train
from taosr1.learning.losses import LossSum, dpo_loss, grpo_loss, sft_loss
from taosr1.learning.optimizers import Schedule, make_optimizers
from taosr1.learning.rewards import NonFiniteRewardError
from taosr1.model.logprobs import completion_logp, sequence_logp
from taosr1.runtime.checkpoint import checkpoints, read_best
from taosr1.runtime.progress import report
from taosr1.runtime.run_folder import Run
from taosr1.runtime.signals import Stopped


@dataclass(frozen=True)
class Config:
    name: str = "loop"


def examples(seed: int, count: int = 8) -> list[Example]:
    """Ragged on purpose: replies of 1 to 9 tokens, so that a mean of means would differ from the mean."""
    generator = keyed_generator("examples", seed)
    lengths = torch.randint(1, 10, (count, 2), generator=generator).tolist()
    return [
        Example(*(torch.randint(300, (length,), generator=generator).tolist() for length in pair)) for pair in lengths
    ]


def loss_fn(model, batch) -> LossSum:
    return sft_loss(completion_logp(model, batch.ids, batch.mask), batch.mask)


@dataclass(frozen=True)
class Ready(Item):
    """An item that is a micro-batch of its own, already collated."""

    batch: Batch
    length_tok: int = 2**20

    @staticmethod
    def collate(items: Sequence[Item], device="cpu") -> Batch:
        (item,) = items
        return item.batch


def drive(folder, judge, *, steps: int = 4, batches=None, loss=loss_fn, optimizers=None, schedule=None, **given):
    """`train` on ragged examples that depend on the step and on a cursor that counts the steps.

    batches: (step, cursor) -> micro-batches to take instead. Of `given`, what a stage has goes to the stage.
    """

    def draw(step: int, cursor: dict) -> StepItems:
        if batches:
            return StepItems([Ready(batch) for batch in batches(step, cursor)])
        cursor["calls"] = cursor.get("calls", 0) + 1
        return StepItems(examples(cursor["calls"]))

    of_stage = {name: given.pop(name) for name in ("draw", "prepare", "extra", "summary") if name in given}
    return train(
        judge,
        Run(folder, Config()),
        Stage("test", **{"draw": draw, "loss": loss, **of_stage}),
        schedule=Schedule(steps, **{"micro_batch_tok": 2**20 if batches else 40, **(schedule or {})}),
        optimizers=optimizers or make_optimizers(judge.model, 1e-2),
        **given,
    )


def metrics(folder) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in row.items() if name != "time_s"} for row in rows]


def weights(judge) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in judge.model.parameters()])


# --- One step ---------------------------------------------------------------------------------------------------------
def dpo_of_rows(model, batch) -> LossSum:
    """Rows in pairs, (0, 1), (2, 3), ...; reference log-probs that differ by row."""
    logp = sequence_logp(completion_logp(model, batch.ids, batch.mask), batch.mask)
    reference = -batch.ids.sum(dim=1).float() / 100
    lengths = batch.mask.sum(dim=1)
    pairs = logp[::2], logp[1::2], reference[::2], reference[1::2]
    return dpo_loss(*pairs, beta=0.5, nll_coef=0.1, chosen_length=lengths[::2])


def grpo_of_rows(model, batch, **options) -> LossSum:
    """Advantages of both signs and old and reference log-probs, all made from the row's own ids."""
    logp = completion_logp(model, batch.ids, batch.mask)
    noise = (batch.ids % 7 - 3) / 10.0
    advantages = (batch.ids.sum(dim=1) % 5 - 2).float()
    return grpo_loss(
        logp, logp.detach() + noise, advantages, batch.mask, ref_logp=logp.detach() - noise, kl_beta=0.1, **options
    )


@pytest.mark.parametrize(
    "loss",
    [
        loss_fn, dpo_of_rows, grpo_of_rows,
        partial(grpo_of_rows, normalise="token"), partial(grpo_of_rows, ratio="sequence"),
        partial(grpo_of_rows, normalise="constant", max_length=9),
    ],
    ids=["sft", "dpo", "grpo", "grpo token", "grpo sequence ratio", "grpo constant"],
)  # fmt: skip
def test_one_batch_of_eight_and_four_of_two_are_the_same_step(make_judge, tmp_path, loss):
    rows, after, logged = examples(0), [], []
    for size in (8, 2, 6):
        judge = make_judge()
        parts = [collate(rows[start : start + size]) for start in range(0, 8, size)]
        # Plain gradient descent: Adam's first step divides each gradient by itself, rounding errors included.
        plain = torch.optim.SGD([{"params": list(judge.model.parameters()), "peak_lr": 1.0}], lr=1.0)
        drive(
            tmp_path / str(size),
            judge,
            steps=1,
            batches=lambda step, cursor, parts=parts: parts,
            optimizers=[plain],
            loss=loss,
        )
        after.append(weights(judge))
        logged.append(metrics(tmp_path / str(size))[0])
    assert (after[0] - weights(make_judge())).norm() > 0.1
    for other, row in zip(after[1:], logged[1:]):
        torch.testing.assert_close(other, after[0], rtol=0, atol=1e-6)
        assert row["loss"] == pytest.approx(logged[0]["loss"], rel=1e-6) and row["grad_norm"] == pytest.approx(
            logged[0]["grad_norm"], rel=1e-5
        )


def test_gradients_are_those_of_the_sum_divided_once_by_the_count(make_judge):
    judge = make_judge()
    parts = [collate(examples(0)[start : start + 2]) for start in range(0, 8, 2)]
    found = accumulate(DistributedModel(judge.model), parts, loss_fn)
    gradient = torch.cat([p.grad.flatten() for p in judge.model.parameters()])
    judge.model.zero_grad()
    whole = loss_fn(judge.model, collate(examples(0)))
    (whole.sum / whole.count).backward()
    torch.testing.assert_close(
        gradient, torch.cat([p.grad.flatten() for p in judge.model.parameters()]), rtol=0, atol=1e-6
    )
    assert found["loss"] == pytest.approx(whole.sum.item() / whole.count, rel=1e-6)
    assert found.keys() - {"loss"} == whole.metrics.keys()
    judge.model.zero_grad()  # the wrong twin: a mean of the micro-batches' means
    for part in parts:
        loss = loss_fn(judge.model, part)
        (loss.sum / loss.count / len(parts)).backward()
    twin = torch.cat([p.grad.flatten() for p in judge.model.parameters()])
    assert (twin - gradient).norm() > 0.05 * gradient.norm()


def test_a_step_without_batches_has_no_gradient_and_moves_nothing(make_judge, tmp_path):
    judge = make_judge()
    before = weights(judge)
    drive(tmp_path, judge, steps=2, batches=lambda step, cursor: [])
    assert torch.equal(weights(judge), before)
    assert [(row["loss"], row["grad_norm"], row["skipped"]) for row in metrics(tmp_path)] == [(0.0, 0.0, 0)] * 2


def test_the_gradient_is_clipped_to_clip_norm_and_logged_as_it_was(make_judge, tmp_path):
    judge = make_judge()
    before = weights(judge)
    plain = torch.optim.SGD([{"params": list(judge.model.parameters()), "peak_lr": 1.0}], lr=1.0)
    drive(tmp_path, judge, steps=1, optimizers=[plain], schedule={"clip_norm": 0.01})
    assert float((weights(judge) - before).norm()) == pytest.approx(0.01, rel=1e-3)
    assert metrics(tmp_path)[0]["grad_norm"] > 0.1


@pytest.mark.filterwarnings("ignore:Mismatch dtype")
def test_half_precision_compute_keeps_full_precision_weights(make_judge, tmp_path):
    judge = make_judge()
    drive(tmp_path, judge, steps=2, distributed=DistributedModel(judge.model, dtype=torch.bfloat16))
    assert {p.dtype for p in judge.model.parameters()} == {torch.float32} and all(
        math.isfinite(row["loss"]) for row in metrics(tmp_path)
    )


# --- Optimizers and schedule ------------------------------------------------------------------------------------------
def test_every_parameter_has_one_optimizer_and_only_matrices_of_the_blocks_decay(make_judge):
    judge = make_judge(tie_word_embeddings=False)
    names = {id(p): name for name, p in judge.model.named_parameters()}
    for muon_lr in (0.0, 0.5):
        optimizers = make_optimizers(judge.model, 0.1, weight_decay=0.3, muon_lr=muon_lr)
        groups = [(type(o).__name__, group) for o in optimizers for group in o.param_groups]
        held = [names[id(p)] for _, group in groups for p in group["params"]]
        assert sorted(held) == sorted(names.values())
        for kind, group in groups:
            for p in group["params"]:
                matrix = "_proj" in names[id(p)]
                assert group["weight_decay"] == (0.3 if matrix else 0.0)
                assert (kind, group["peak_lr"]) == (("Muon", 0.5) if matrix and muon_lr else ("AdamW", 0.1))


def test_the_learning_rate_rises_linearly_and_falls_as_a_cosine():
    schedule = Schedule(100, warmup_frac=0.1, final_lr_frac=0.2)
    factors = [schedule.lr_factor(step) for step in range(101)]
    assert factors[:10] == pytest.approx([n / 10 for n in range(1, 11)]) and factors[10] == 1.0
    assert factors[55] == pytest.approx(0.6) and factors[100] == pytest.approx(0.2)
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert {Schedule(9, warmup_frac=0.0, final_lr_frac=1.0).lr_factor(step) for step in range(9)} == {1.0}
    assert Schedule(1).lr_factor(0) == 1.0


def test_every_step_uses_its_factor_of_every_groups_peak(make_judge, tmp_path):
    judge, seen = make_judge(), []
    optimizers = make_optimizers(judge.model, 1e-3, muon_lr=0.05)

    def loss(model, batch):
        seen.append([group["lr"] for optimizer in optimizers for group in optimizer.param_groups])
        return loss_fn(model, batch)

    batch = [collate(examples(0))]
    drive(
        tmp_path,
        judge,
        batches=lambda step, cursor: batch,
        loss=loss,
        optimizers=optimizers,
        schedule={"warmup_frac": 0.5},
    )
    factors = [Schedule(4, warmup_frac=0.5).lr_factor(step) for step in range(4)]
    assert seen == [[factor * 1e-3, factor * 0.05] for factor in factors]
    assert [row["lr_factor"] for row in metrics(tmp_path)] == factors


@pytest.mark.parametrize(
    ("settings", "evaluated", "saved"),
    [
        ({}, [7], [7]),
        ({"eval_every": 3}, [3, 6, 7], [3, 6, 7]),
        ({"save_every": 2}, [7], [2, 4, 6, 7]),
        ({"eval_every": 7}, [7], [7]),
    ],
)
def test_it_evaluates_and_saves_when_asked_and_at_the_end(settings, evaluated, saved):
    schedule = Schedule(7, **settings)
    assert [done for done in range(1, 8) if schedule.evaluates(done)] == evaluated
    assert [done for done in range(1, 8) if schedule.saves(done)] == saved


# --- Steps that go wrong ----------------------------------------------------------------------------------------------
def broken(kind: str, steps: set[int]):
    """A loss that is not finite, or whose gradient is not, in the given calls (counted from 0)."""
    calls = []

    def loss(model, batch) -> LossSum:
        calls.append(batch)
        found = loss_fn(model, batch)
        if len(calls) - 1 not in steps:
            return found
        if kind == "loss":
            return found._replace(sum=found.sum * float("nan"))
        zero = model.model.norm.weight.sum() * 0
        return found._replace(sum=found.sum + zero.sqrt())  # finite, but its slope at 0 is not

    return loss


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_a_step_that_is_not_finite_is_skipped_and_counted(make_judge, tmp_path, kind):
    batch, judge, after = [collate(examples(0))], make_judge(), []
    loss = broken(kind, {1, 2})
    drive(tmp_path, judge, batches=lambda step, cursor: after.append(weights(judge)) or batch, loss=loss)
    assert torch.equal(after[1], after[2]) and torch.equal(after[2], after[3]) and not torch.equal(after[0], after[1])
    assert [row["skipped"] for row in metrics(tmp_path)] == [0, 1, 2, 0]
    assert torch.isfinite(weights(judge)).all() and not torch.equal(weights(judge), after[3])


def test_too_many_skipped_steps_in_a_row_end_the_run_with_advice(make_judge, tmp_path):
    judge = make_judge()
    before, most = weights(judge), Schedule(1).max_skipped
    with pytest.raises(
        FloatingPointError,
        match=rf"step {most - 1}: loss nan, gradient norm nan, {most} in a row; "
        rf"its batch is in .*bad-step-00000{most - 1}-rank-0.json; lower --lr",
    ):
        drive(
            tmp_path,
            judge,
            steps=9,
            batches=lambda step, cursor: [collate(examples(0))],
            loss=broken("loss", set(range(9))),
        )
    assert torch.equal(weights(judge), before) and len(metrics(tmp_path)) == most - 1


# --- Checkpoints and evaluations --------------------------------------------------------------------------------------
def scores(folder, *values: float):
    """An evaluation that gives these scores in turn, and the steps whose checkpoints were the newest meanwhile."""
    asked: list[int] = []

    def evaluate(judge) -> dict[str, float]:
        asked.append(newest(folder))
        return {"dev_macro_f1": values[len(asked) - 1]}

    return evaluate, asked


def newest(folder) -> int:
    return checkpoints(folder / "checkpoints")[-1][0]


def test_the_best_checkpoint_is_named_and_kept_beside_the_newest(make_judge, tmp_path):
    evaluate, asked = scores(tmp_path, 0.1, 0.5, 0.5, 0.3, 0.2)
    last = drive(tmp_path, make_judge(), steps=5, evaluate=evaluate, schedule={"eval_every": 1, "keep_last": 1})
    assert asked == [1, 2, 3, 4, 5] and last == {"dev_macro_f1": 0.2}
    assert read_best(tmp_path / "checkpoints") == {"step": 2, "dev_macro_f1": 0.5, "evaluated_through": 5}
    assert [step for step, _ in checkpoints(tmp_path / "checkpoints")] == [2, 5]
    assert [row for row in metrics(tmp_path) if "dev_macro_f1" in row][1] == {"step": 2, "dev_macro_f1": 0.5}


def test_what_a_stage_wants_logged_stands_beside_the_loss(make_judge, tmp_path):
    def draw(step, cursor):
        return StepItems(examples(0), {"reward": 0.25}, [{"row": 7}])

    drive(tmp_path, make_judge(), steps=1, draw=draw)
    (row,) = metrics(tmp_path)
    assert row.keys() >= {"step", "loss", "reward", "grad_norm", "lr_factor", "skipped"} and row["reward"] == 0.25
    assert json.loads((tmp_path / "samples.jsonl").read_text(encoding="utf-8")) == {"step": 1, "row": 7}


def test_updates_share_the_items_that_were_drawn_and_what_was_measured_of_them(make_judge, tmp_path):
    """Two steps a draw: drawn and prepared before steps 0, 2 and 4; what is extra is drawn anew in every step."""
    drawn, prepared, beside, seen = [], [], [], []

    def draw(step, cursor):
        drawn.append(step)
        return StepItems(examples(step), {"reward": float(step)}, [{"row": step}])

    def prepare(batches, items):
        prepared.append(len(items))
        return batches

    def further(step, items):
        beside.append((step, len(items)))
        return [Example([1, 2], [3 + step])]

    def loss(model, batch):
        seen.append(batch.ids.tolist())
        return loss_fn(model, batch)

    stage = {"draw": draw, "prepare": prepare, "extra": further, "summary": lambda cursor: "all done"}
    drive(tmp_path, make_judge(), steps=6, loss=loss, schedule={"updates": 2, "micro_batch_tok": 2**20}, **stage)
    assert drawn == [0, 2, 4] and prepared == [8, 8, 8] and beside == [(step, 8) for step in range(6)]
    assert seen[0] == seen[2] != seen[4] and [batch for batch in seen[1::2]] == [
        [[1, 2, 3 + step]] for step in range(6)
    ]
    assert [row["reward"] for row in metrics(tmp_path)] == [0, 0, 2, 2, 4, 4]
    assert len((tmp_path / "samples.jsonl").read_text(encoding="utf-8").splitlines()) == 3


def test_a_summary_of_the_cursor_is_printed_once_where_a_step_was_made(make_judge, tmp_path, capsys):
    for expected in ("3 calls\n", ""):  # the second time nothing is left to do
        drive(tmp_path, make_judge(), steps=3, summary=lambda cursor: f"{cursor['calls']} calls")
        assert [
            line for line in capsys.readouterr().out.splitlines(keepends=True) if "calls" in line
        ] == expected.splitlines(keepends=True)


def test_an_evaluation_judges_with_the_weights_of_its_step(make_judge, tmp_path):
    judge, seen = make_judge(), []

    def evaluate(contender):
        seen.append(contender.model is judge.model and contender.tokenizer is judge.tokenizer)
        return {"dev_macro_f1": 0.5}

    drive(tmp_path, judge, steps=2, evaluate=evaluate, schedule={"eval_every": 1})
    assert seen == [True, True]


def test_no_evaluation_can_lose_a_finished_step_and_a_lost_evaluation_is_made_up_for(make_judge, tmp_path):
    def fails(judge):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        drive(tmp_path, make_judge(), evaluate=fails, schedule={"eval_every": 2})
    assert [step for step, _ in checkpoints(tmp_path / "checkpoints")] == [2]
    evaluate, asked = scores(tmp_path, 0.1, 0.2)
    drive(tmp_path, make_judge(), evaluate=evaluate, schedule={"eval_every": 2})
    assert asked == [2, 4] and [row["step"] for row in metrics(tmp_path)] == [1, 2, 2, 3, 4, 4]


@pytest.mark.parametrize(("stopped_in", "stopped_at"), [("save", 2), ("evaluate", 4), ("save", 6)])
def test_a_resumed_run_equals_the_unbroken_one_bit_for_bit(make_judge, tmp_path, monkeypatch, stopped_in, stopped_at):
    def go(folder, judge, stopping: bool = False):
        def evaluate(judge):
            if stopping and stopped_in == "evaluate" and newest(folder) == stopped_at:
                raise KeyboardInterrupt
            return {"dev_macro_f1": -abs(newest(folder) - 3.5)}

        optimizers = make_optimizers(judge.model, 1e-2, muon_lr=0.02)
        given = {"optimizers": optimizers, "evaluate": evaluate, "schedule": {"eval_every": 2, "keep_last": 1}}
        drive(folder, judge, steps=6, **given)

    whole, parts = make_judge(), make_judge()
    go(tmp_path / "whole", whole)
    save = loop.save_checkpoint

    def stopping_save(folder, step, *rest, **named):
        save(folder, step, *rest, **named)
        if step == stopped_at and stopped_in == "save":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", stopping_save)
        with pytest.raises(KeyboardInterrupt):
            go(tmp_path / "parts", parts, stopping=True)
    resumed = make_judge(seed=5)  # whatever the process begins with, the checkpoint decides
    go(tmp_path / "parts", resumed)
    assert torch.equal(weights(resumed), weights(whole))
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    parts_of_a_checkpoint = ("model.safetensors", "optimizer.safetensors", "state.json")
    for name in ("best.json", *(f"step-{step:06d}/{file}" for step in (4, 6) for file in parts_of_a_checkpoint)):
        path = os.path.join("checkpoints", name)
        assert (tmp_path / "parts" / path).read_bytes() == (tmp_path / "whole" / path).read_bytes(), name
    assert sorted(os.listdir(tmp_path / "parts" / "checkpoints")) == sorted(
        os.listdir(tmp_path / "whole" / "checkpoints")
    )


def test_a_finished_run_has_nothing_left_to_do(make_judge, tmp_path):
    drive(tmp_path, make_judge(), steps=2)
    judge = make_judge(seed=3)
    drive(tmp_path, judge, steps=2, batches=lambda step, cursor: pytest.fail("a step after the last"))
    assert len(metrics(tmp_path)) == 2


# --- Being asked to stop ----------------------------------------------------------------------------------------------
def asks(number: int, at: int):
    """A loss during whose `at`-th call (from 0) this process gets a signal, as from a scheduler or a keyboard."""
    calls = []

    def loss(model, batch) -> LossSum:
        calls.append(batch)
        if len(calls) - 1 == at:
            os.kill(os.getpid(), number)
        return loss_fn(model, batch)

    return loss


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_lets_the_step_end_saves_it_and_says_what_to_exit_with(make_judge, tmp_path, number, code):
    before = signal.getsignal(number)
    batch = [collate(examples(0))]
    with pytest.raises(
        Stopped, match="stopped after step 2 of 6, which is saved; the same command continues"
    ) as caught:
        drive(
            tmp_path / "parts",
            make_judge(),
            steps=6,
            batches=lambda step, cursor: batch,
            loss=asks(number, 1),
            schedule={"save_every": 4},
        )
    assert caught.value.code == code and signal.getsignal(number) is before
    assert [step for step, _ in checkpoints(tmp_path / "parts" / "checkpoints")] == [2]
    resumed, whole = make_judge(seed=4), make_judge()
    drive(tmp_path / "parts", resumed, steps=6, batches=lambda step, cursor: batch, schedule={"save_every": 4})
    drive(tmp_path / "whole", whole, steps=6, batches=lambda step, cursor: batch, schedule={"save_every": 4})
    assert torch.equal(weights(resumed), weights(whole)) and metrics(tmp_path / "parts") == metrics(tmp_path / "whole")


def test_a_stop_waits_for_a_step_after_which_a_checkpoint_may_lie(make_judge, tmp_path):
    with pytest.raises(Stopped, match="after step 4 of 9"):
        drive(
            tmp_path,
            make_judge(),
            steps=9,
            batches=lambda step, cursor: [collate(examples(0))],
            loss=asks(signal.SIGTERM, 2),
            schedule={"updates": 4},
        )


def test_a_second_ctrl_c_does_not_wait(make_judge, tmp_path):
    def twice(model, batch):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        return loss_fn(model, batch)

    with pytest.raises(KeyboardInterrupt):
        drive(tmp_path, make_judge(), batches=lambda step, cursor: [collate(examples(0))], loss=twice)
    assert checkpoints(tmp_path / "checkpoints") == []


def test_a_stop_during_an_evaluation_ends_after_it(make_judge, tmp_path):
    def evaluate(judge):
        os.kill(os.getpid(), signal.SIGTERM)
        return {"dev_macro_f1": 0.5}

    with pytest.raises(Stopped, match="after step 2"):
        drive(tmp_path, make_judge(), evaluate=evaluate, schedule={"eval_every": 2})
    assert read_best(tmp_path / "checkpoints")["evaluated_through"] == 2


# --- Numbers and memory -----------------------------------------------------------------------------------------------
def test_the_batch_of_the_last_skipped_step_is_written_down_to_be_looked_at(make_judge, tmp_path):
    judge, batch = make_judge(), collate(examples(0))
    with pytest.raises(FloatingPointError, match="2 in a row; its batch is in .*bad-step-000003-rank-0.json"):
        drive(
            tmp_path,
            judge,
            steps=9,
            batches=lambda step, cursor: [batch],
            loss=broken("loss", {0, 2, 3}),
            schedule={"max_skipped": 2},
        )
    dumped = json.loads((tmp_path / "bad-step-000003-rank-0.json").read_text(encoding="utf-8"))
    assert dumped["step"] == 3 and "loss nan" in dumped["error"]
    (part,) = dumped["micro_batches"]
    assert part["ids"] == batch.ids.tolist() and part["mask"] == batch.mask.tolist()
    assert part["texts"][0] == judge.tokenizer.decode(batch.ids[0])


def test_a_reward_that_is_not_finite_skips_its_step_and_too_many_end_the_run_with_their_records(make_judge, tmp_path):
    judge, seen = make_judge(), []

    def step_batches(step, cursor):
        seen.append(weights(judge))
        if step in (1, 3, 4):
            raise NonFiniteRewardError("row 7: reward 'label' is nan", [{"row": 7}])
        return [collate(examples(0))]

    with pytest.raises(FloatingPointError, match="step 4: row 7: reward 'label' is nan, 2 in a row"):
        drive(tmp_path, judge, steps=9, batches=step_batches, schedule={"max_skipped": 2})
    assert torch.equal(seen[1], seen[2]) and not torch.equal(seen[2], seen[3])
    assert [row["skipped"] for row in metrics(tmp_path)] == [0, 1, 0, 1]
    assert json.loads((tmp_path / "bad-step-000004-rank-0.json").read_text(encoding="utf-8"))["records"] == [{"row": 7}]


def test_how_many_steps_in_a_row_were_skipped_survives_an_interruption(make_judge, tmp_path):
    def go(steps: set[int]):
        drive(
            tmp_path,
            make_judge(),
            steps=9,
            batches=lambda step, cursor: [collate(examples(0))],
            loss=broken("loss", steps),
            schedule={"save_every": 2},
        )

    with pytest.raises(FloatingPointError, match="step 5: .* 5 in a row"):
        go({1, 2, 3, 4, 5})
    with pytest.raises(FloatingPointError, match="step 5: .* 5 in a row"):
        go({0, 1})  # continues after step 4, of which three were skipped in a row


def too_large(rows: int, part: str):
    """A loss that does not fit into memory with more than `rows` rows, in the forward or the backward pass."""

    class Full(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    def loss(model, batch) -> LossSum:
        found = loss_fn(model, batch)
        if len(batch.ids) <= rows:
            return found
        if part == "forward":
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: "
                "you tried to allocate 1 bytes"
            )
        return found._replace(sum=found.sum + 0 * Full.apply(model.model.layers[0].mlp.gate_proj.weight).sum())

    return loss


@pytest.mark.parametrize("part", ["forward", "backward"])
def test_a_micro_batch_that_does_not_fit_is_halved_once_and_the_step_is_the_same(make_judge, part, capsys):
    judge, parts = make_judge(), [collate(examples(0)[:2]), collate(examples(0)[2:])]
    expected = accumulate(DistributedModel(judge.model), parts, loss_fn)
    gradients = [parameter.grad.clone() for parameter in judge.model.parameters()]
    judge.model.zero_grad()
    found = accumulate(DistributedModel(judge.model), parts, too_large(4, part))
    assert (
        "out of memory in a micro-batch: the step is repeated once, with it halved; a smaller --micro-batch-tok"
        in capsys.readouterr().err
    )
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    for parameter, gradient in zip(judge.model.parameters(), gradients):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-5, atol=1e-7)
    with pytest.raises(
        MemoryError,
        match="out of memory in micro-batch 1; try a smaller --micro-batch-tok, "
        "--activation-checkpointing or --lora-rank",
    ):
        accumulate(DistributedModel(judge.model), parts, too_large(2, part))


def test_an_error_that_is_not_about_memory_is_not_tried_again(make_judge):
    calls = []

    def loss(model, batch):
        calls.append(batch)
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        accumulate(DistributedModel(make_judge().model), [collate(examples(0))], loss)
    assert len(calls) == 1


def test_a_run_that_branches_off_does_not_take_the_others_checkpoint_for_its_best(make_judge, tmp_path):
    evaluate, _ = scores(tmp_path / "old", 0.9)
    drive(tmp_path / "old", make_judge(), steps=2, evaluate=evaluate, schedule={"eval_every": 2})
    path = str(checkpoints(tmp_path / "old" / "checkpoints")[-1][1])
    evaluate, asked = scores(tmp_path / "new", 0.5)
    judge, stage = make_judge(seed=1), Stage("test", lambda step, cursor: StepItems(examples(0)), loss_fn)
    train(
        judge, Run(tmp_path / "new", Config(), path), stage,
        schedule=Schedule(4, eval_every=4), optimizers=make_optimizers(judge.model, 1e-2), evaluate=evaluate,
    )  # fmt: skip
    assert asked == [4] and read_best(tmp_path / "new" / "checkpoints") == {
        "step": 4,
        "dev_macro_f1": 0.5,
        "evaluated_through": 4,
    }


def test_a_signal_that_comes_when_all_steps_are_done_is_not_lost(make_judge, tmp_path):
    def evaluate(judge):
        return {"dev_macro_f1": 0.5}

    drive(tmp_path, make_judge(), steps=2, evaluate=evaluate)
    (tmp_path / "checkpoints" / "best.json").unlink()

    def asked_to_stop(judge):
        os.kill(os.getpid(), signal.SIGTERM)
        return {"dev_macro_f1": 0.5}

    with pytest.raises(Stopped, match="stopped after its last step, 2, which is saved"):
        drive(tmp_path, make_judge(), steps=2, evaluate=asked_to_stop)


# --- Being asked in the middle of a step ------------------------------------------------------------------------------
@pytest.mark.parametrize("at", [9, 10, 11])  # of four micro-batches a step: the second, third and fourth of step 3
def test_a_step_that_is_under_way_is_given_up_and_a_resumed_run_equals_the_unbroken_one(
    make_judge, tmp_path, at, capsys
):
    def go(folder, judge, loss=loss_fn):
        evaluate, _ = scores(folder, *[0.5] * 3)
        schedule = {"eval_every": 4, "keep_last": 9, "micro_batch_tok": 20}
        drive(folder, judge, steps=8, loss=loss, evaluate=evaluate, schedule=schedule)

    assert len(list(DistributedModel(make_judge().model).deal(examples(3), 20))) > 4
    with pytest.raises(Stopped, match="stopped after step [12] of 8, which is saved; the same command continues"):
        go(tmp_path / "parts", make_judge(), asks(signal.SIGTERM, at))
    step = newest(tmp_path / "parts")
    assert f"stopping: what is under way is given up; step {step} is saved first" in capsys.readouterr().err
    resumed, whole = make_judge(seed=4), make_judge()
    go(tmp_path / "parts", resumed)
    go(tmp_path / "whole", whole)
    assert torch.equal(weights(resumed), weights(whole)) and metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    for name in ("model.safetensors", "optimizer.safetensors", "state.json"):
        files = [tmp_path / run / "checkpoints" / "step-000008" / name for run in ("parts", "whole")]
        assert files[0].read_bytes() == files[1].read_bytes(), name


def test_rollouts_and_an_evaluation_are_given_up_too_and_the_cursor_is_that_before_the_step(
    make_judge, tmp_path, capsys
):
    """The draw of step 3 has moved the cursor when the signal comes; a lost evaluation is made by the next start."""
    answers = []

    def draw(step, cursor):
        cursor["calls"] = cursor.get("calls", 0) + 1
        for done in range(4):
            if step == 2 and done == 2 and not answers:
                os.kill(os.getpid(), signal.SIGTERM)
            report("replies", done, 4)
        return StepItems(examples(cursor["calls"]))

    def evaluate(judge):
        answers.append(newest(tmp_path))
        if len(answers) == 1:
            os.kill(os.getpid(), signal.SIGINT)
            report("rows scored", 1, 2)
        return {"dev_macro_f1": 0.5}

    with pytest.raises(Stopped, match="stopped after step 2 of 4, which is saved") as caught:
        drive(tmp_path, make_judge(), draw=draw, evaluate=evaluate)
    assert caught.value.code == 143 and json.loads(
        (tmp_path / "checkpoints/step-000002/state.json").read_text(encoding="utf-8")
    )["cursor"] == {"calls": 2}
    answers.append(0)  # the second start is not asked to stop
    drive(tmp_path, make_judge(), draw=draw, evaluate=evaluate)
    assert [row["step"] for row in metrics(tmp_path)] == [1, 2, 3, 4, 4]
    (tmp_path / "checkpoints" / "best.json").unlink()
    answers.clear()
    with pytest.raises(Stopped, match="stopped after step 4 of 4, which is saved") as caught:
        drive(tmp_path, make_judge(), draw=draw, evaluate=evaluate)
    assert caught.value.code == 130 and not (tmp_path / "checkpoints" / "best.json").exists()
    drive(tmp_path, make_judge(), draw=draw, evaluate=evaluate)
    assert read_best(tmp_path / "checkpoints")["evaluated_through"] == 4


def test_an_evaluation_is_given_up_also_where_several_updates_share_their_items(make_judge, tmp_path, capsys):
    def evaluate(judge):
        os.kill(os.getpid(), signal.SIGTERM)
        report("rows scored", 1, 2)
        pytest.fail("it went on")

    with pytest.raises(Stopped, match="stopped after step 2 of 4, which is saved"):
        drive(tmp_path, make_judge(), evaluate=evaluate, schedule={"updates": 2, "eval_every": 2})
    assert "what is under way is given up; step 2 is saved\n" in capsys.readouterr().err


def test_a_stop_before_the_first_step_is_finished_has_nothing_to_save(make_judge, tmp_path):
    with pytest.raises(Stopped, match="stopped before its first step was finished: nothing is saved"):
        drive(tmp_path, make_judge(), loss=asks(signal.SIGTERM, 0), schedule={"micro_batch_tok": 20})
    assert checkpoints(tmp_path / "checkpoints") == []


def test_a_stop_between_updates_on_the_same_items_says_how_long_it_will_take(make_judge, tmp_path, capsys):
    with pytest.raises(Stopped, match="after step 4 of 8"):
        loss, schedule = asks(signal.SIGTERM, 2), {"updates": 4}
        drive(tmp_path, make_judge(), steps=8, batches=lambda *_: [collate(examples(0))], loss=loss, schedule=schedule)
    assert "stopping after step 4 (in about 1 s); its checkpoint is written first" in capsys.readouterr().err


def test_checkpoints_are_written_by_the_clock_too_but_not_for_more_than_a_tenth_of_the_time(
    make_judge, tmp_path, monkeypatch
):
    now, save_s, saved = [0.0], [2.0], []
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    save = loop.save_checkpoint

    def slow_save(folder, step, *rest, **named):
        now[0] += save_s[0]
        saved.append(step)
        return save(folder, step, *rest, **named)

    def draw(step, cursor):
        now[0] += 25.0  # seconds that a step takes
        return StepItems(examples(step))

    monkeypatch.setattr(loop, "save_checkpoint", slow_save)
    drive(tmp_path / "a", make_judge(), steps=9, draw=draw, schedule={"save_minutes": 1.0})
    assert saved == [3, 6, 9]
    save_s[0] = 10.0
    drive(tmp_path / "b", make_judge(), steps=9, draw=draw, schedule={"save_minutes": 1.0})
    assert saved[3:] == [3, 7, 9]
    drive(tmp_path / "c", make_judge(), steps=9, draw=draw)
    assert saved[6:] == [9]
