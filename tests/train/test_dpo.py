"""Stage 2b through its command line, on pairs that were really mined."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

import train.dpo
from taosr1.judge_model import load_judge
from taosr1.learning.batches import collate, label_token_weights, micro_batches
from taosr1.learning.distributed_model import DistributedModel
from taosr1.learning.draw_order import shuffled_order
from taosr1.learning.losses import dpo_loss
from taosr1.model.logprobs import completion_logp, sequence_logp
from taosr1.task.judgement import Judgement
from train.dpo import PreferencePair, ReplyLogp, read_pairs, with_reference
from train.dpo import main as dpo

QUICK = [
    "--dev",
    "synthetic:dev*12",
    "--batch-size",
    "8",
    "--micro-batch-tok",
    "600",
    "--max-new-tokens",
    "20",
    "--lr",
    "1e-3",
]


def flags(model: str, data: str, out: Path, *more: str) -> list[str]:
    return ["--model", model, "--data", data, "--out", str(out), *QUICK, *more]


def test_three_steps_write_exactly_these_files_and_prefer_the_chosen(post, pairs, tmp_path, look):
    last = dpo(flags(post, pairs, tmp_path / "run", "--steps", "3"))
    assert look.files(tmp_path / "run") == {
        "config.json",
        "identity.json",
        "env.json",
        "metrics.jsonl",
        "checkpoints/best.json",
    } | {f"checkpoints/step-000003/{name}" for name in look.checkpoint}
    rows = look.metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == [1, 2, 3, 3]
    assert {name for name in last if "/" not in name} == {
        "dev_label_mass",
        "dev_macro_f1",
        "dev_unparsed_frac",
        "dev_ece",
        "dev_brier",
    }
    assert rows[0].keys() >= {
        "rewards/chosen",
        "rewards/rejected",
        "rewards/margins",
        "rewards/accuracies",
        "nll",
        "rewards/label_margins",
    }
    assert load_judge(str(tmp_path / "run")).prompt.order == "post-cot"


def test_the_first_step_stands_at_the_reference(post, pairs, tmp_path, look):
    every_pair = str(
        len(Path(pairs).read_text().splitlines())
    )  # both steps see the same pairs: what the first gained shows in the second
    dpo(
        flags(
            post,
            pairs,
            tmp_path / "run",
            "--steps",
            "2",
            "--nll-coef",
            "0",
            "--label-weight",
            "2",
            "--batch-size",
            every_pair,
            "--lr",
            "2e-4",
        )
    )
    first, second = look.metrics(tmp_path / "run")[:2]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5) and first["rewards/margins"] == pytest.approx(
        0, abs=1e-5
    )
    assert first["rewards/label_margins"] == pytest.approx(0, abs=1e-5)
    assert second["rewards/margins"] > 1e-3 and second["rewards/label_margins"] > 1e-4
    assert second["loss"] < first["loss"] - 1e-3


def test_half_precision_measures_the_reference_as_it_trains(post, pairs, tmp_path, look):
    """By another kernel, or in float32, the first margin would be noise and half of the pairs 'preferred'."""
    dpo(
        flags(
            post,
            pairs,
            tmp_path / "run",
            "--steps",
            "1",
            "--nll-coef",
            "0",
            "--dtype",
            "bfloat16",
            "--micro-batch-tok",
            "100000",
        )
    )
    first = look.metrics(tmp_path / "run")[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-4) and first["rewards/margins"] == pytest.approx(
        0, abs=5e-4
    )


def test_the_label_weight_enters_the_log_prob_and_the_length(post, pairs, tmp_path, monkeypatch):
    """What dpo_loss gets: sums of weighted log-probs, the reference's likewise, weighted lengths, and every flag."""
    calls = []
    monkeypatch.setattr(
        train.dpo, "dpo_loss", lambda *given, **named: calls.append((given, named)) or dpo_loss(*given, **named)
    )
    more = [
        "--label-weight",
        "5",
        "--beta",
        "0.3",
        "--loss-type",
        "robust",
        "--label-smoothing",
        "0.2",
        "--nll-coef",
        "0.7",
    ]
    dpo(flags(post, pairs, tmp_path / "run", "--steps", "1", "--micro-batch-tok", "100000", *more))
    (given, named), judge = calls[0], load_judge(post)
    known = read_pairs(pairs, judge)
    known = [pair for part in micro_batches(known, 10**9) for pair in part]  # by length, as the reference was measured
    drawn = [known[row] for row in shuffled_order(len(known), 0, 0, 8)]
    for side, policy, reference in (("chosen", given[0], given[2]), ("rejected", given[1], given[3])):
        examples = [getattr(pair, side) for pair in drawn]
        assert sorted(named[f"{side}_length"].tolist()) == sorted(len(example.reply) + 4 for example in examples)
        batch = collate(examples)
        with torch.no_grad():
            logp = completion_logp(judge.model, batch.ids, batch.mask)
        weights = label_token_weights(batch.mask, 5.0, judge.prompt.order)
        expected = sequence_logp(logp, batch.mask, weights=weights).sort().values
        for value in (policy, reference):
            torch.testing.assert_close(value.detach().sort().values, expected, rtol=1e-4, atol=1e-3)
    assert (named["beta"], named["loss_type"], named["label_smoothing"], named["nll_coef"]) == (0.3, "robust", 0.2, 0.7)


def test_a_resumed_run_equals_the_unbroken_one_bit_for_bit(post, pairs, tmp_path, look, stopped_after):
    more = ["--steps", "6", "--eval-every", "2", "--keep-last", "1"]
    dpo(flags(post, pairs, tmp_path / "whole", *more))
    stopped_after(1, dpo, flags(post, pairs, tmp_path / "parts", *more))
    stopped_after(1, dpo, flags(post, pairs, tmp_path / "parts", *more))  # and once more
    dpo(flags(post, pairs, tmp_path / "parts", *more))
    look.same(tmp_path / "whole", tmp_path / "parts")


def test_the_stored_reference_is_the_starting_models_log_prob_of_each_reply(post, pairs):
    judge = load_judge(post)

    def of_replies(logp, batch):
        first = logp.gather(1, batch.mask.int().argmax(dim=1, keepdim=True))[:, 0]
        return ReplyLogp(sequence_logp(logp, batch.mask), first, batch.mask.sum(dim=1))

    known = read_pairs(pairs, judge)
    done = with_reference(DistributedModel(judge.model, judge.engine), known, 400, of_replies)
    assert sorted(map(id, [pair.chosen for pair in done])) == sorted(map(id, [pair.chosen for pair in known]))
    for pair in done[:: max(1, len(done) // 6)]:
        batch = PreferencePair.collate([pair])
        with torch.no_grad():
            logp = completion_logp(judge.model, batch.ids, batch.mask)
        replies, labels, _ = (values.tolist() for values in of_replies(logp, batch))
        assert [pair.ref_chosen, pair.ref_rejected] == pytest.approx(replies, abs=1e-3)
        assert [pair.ref_chosen_label, pair.ref_rejected_label] == pytest.approx(labels, abs=1e-4)
        assert batch.ref_label.tolist() == pytest.approx(labels, abs=1e-4)


@pytest.mark.parametrize("loss_type", ["ipo", "hinge", "robust"])
def test_other_losses_run(post, pairs, tmp_path, look, loss_type):
    dpo(flags(post, pairs, tmp_path / "run", "--steps", "1", "--loss-type", loss_type))
    assert math.isfinite(look.metrics(tmp_path / "run")[0]["loss"])


def test_a_judge_that_thinks_first_has_no_label_token_to_weight(thinker, pairs, tmp_path, look):
    for weight in ("1", "5"):
        dpo(flags(thinker, pairs, tmp_path / weight, "--steps", "1", "--label-weight", weight))
    assert look.metrics(tmp_path / "1")[0]["loss"] == look.metrics(tmp_path / "5")[0]["loss"]
    assert "rewards/label_margins" not in look.metrics(tmp_path / "1")[0]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--beta", "0"], "--beta is 0.0, expected more than 0"),
        (["--label-smoothing", "0.5"], "--label-smoothing is 0.5, expected 0 or more and below 0.5"),
        (["--label-smoothing", "0.1", "--loss-type", "ipo"], "--loss-type ipo takes no --label-smoothing"),
        (["--nll-coef", "-1"], "--nll-coef is -1.0, expected at least 0"),
        (["--data", "gone.jsonl"], "no file at gone.jsonl: check --data"),
        (["--model", "runs/gone"], "--model runs/gone: no such run here"),
        (["--dev", "synthetic:unlabelled*3"], "its pairs have no grade"),
    ],
)
def test_wrong_use_says_what_to_change_and_leaves_nothing_behind(post, pairs, tmp_path, refused, more, message):
    assert message in refused(dpo, *flags(post, pairs, tmp_path / "run", *more))
    assert not (tmp_path / "run").exists()


def test_pairs_without_ids_or_of_another_tokenizer_are_named_by_line(post, pairs, tmp_path, refused, look):
    good, path = look.json_lines(pairs)[0], tmp_path / "pairs.jsonl"
    for change, field in (
        ({"chosen_ids": None}, "chosen_ids"),
        ({"rejected_ids": []}, "rejected_ids"),
        ({"prompt_ids": [1, 99999]}, "prompt_ids"),
        ({"prompt_ids": [1, -1]}, "prompt_ids"),
        ({"chosen_ids": [1, True]}, "chosen_ids"),
        ({"chosen_ids": "4"}, "chosen_ids"),
    ):
        path.write_text(json.dumps(good) + "\n" + json.dumps(good | change) + "\n", encoding="utf-8")
        assert f"{path}:2: field '{field}' must be token ids below" in refused(
            dpo, *flags(post, str(path), tmp_path / "run")
        )
    path.write_text("", encoding="utf-8")
    assert f"{path}: no pairs in this file" in refused(dpo, *flags(post, str(path), tmp_path / "run"))


TRL_ROWS = {
    "strings": lambda title, chosen, rejected: {"prompt": title, "chosen": chosen, "rejected": rejected},
    "messages": lambda title, chosen, rejected: {
        "prompt": [{"role": "user", "content": title}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    },
    "whole conversations": lambda title, chosen, rejected: {
        name: [{"role": "user", "content": title}, {"role": "assistant", "content": reply}]
        for name, reply in (("chosen", chosen), ("rejected", rejected))
    },
}


@pytest.mark.parametrize("kind", TRL_ROWS)
def test_text_rows_of_trl_train_a_judge_to_prefer_the_chosen(kind, post, tmp_path, look):
    rows = [TRL_ROWS[kind](f" mug\n steel mug {number}", "4", "1") for number in range(8)]
    path = tmp_path / "trl.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    dpo(flags(post, str(path), tmp_path / "run", "--steps", "3", "--nll-coef", "0"))
    first, *_, last = [row for row in look.metrics(tmp_path / "run") if "rewards/margins" in row]
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-5) and last["rewards/margins"] > 1e-3
    judge = load_judge(post)  # the user's message as written is what this brief prompt shows of a row
    [pair, *_] = read_pairs(str(path), judge)
    assert pair.chosen.prompt == judge.prompts([Judgement("mug", "steel mug 0")])[0]
