"""Stage 1 through its command line: what it writes, how it goes on, and what it says to wrong use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from taosr1.data.judgements import write_judgements
from taosr1.judge_model import load_judge
from taosr1.learning.batches import Example, collate
from taosr1.model.tokenizer import Tokenizer
from taosr1.synthetic.shop import read_pool
from taosr1.task.judgement import Judgement
from train.sft import Config
from train.sft import main as sft

QUICK = [
    "--data",
    "synthetic:reasoned*60",
    "--dev",
    "synthetic:dev*12",
    "--batch-size",
    "8",
    "--micro-batch-tok",
    "300",
    "--max-new-tokens",
    "20",
]


def flags(model: str, out: Path, *more: str) -> list[str]:
    return ["--model", model, "--out", str(out), *QUICK, *more]


def test_three_steps_write_exactly_these_files(base, tmp_path, look):
    last = sft(flags(base, tmp_path / "run", "--steps", "3"))
    assert look.files(tmp_path / "run") == {
        "config.json",
        "identity.json",
        "env.json",
        "metrics.jsonl",
        "checkpoints/best.json",
    } | {f"checkpoints/step-000003/{name}" for name in look.checkpoint}
    config = json.loads((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))
    assert config["steps"] == 3 and config["model"] == base and config.keys() == vars(Config()).keys()
    rows = look.metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == [1, 2, 3, 3] and rows[2]["loss"] < rows[0]["loss"]
    assert {name for name in last if "/" not in name} == {"dev_macro_f1", "dev_unparsed_frac"}
    assert rows[3] == {"step": 3, **last}


def test_every_row_is_seen_before_any_is_seen_again(base, tmp_path, monkeypatch):
    seen: list[Example] = []

    def spy(items, device="cpu"):
        seen.extend(items)
        return collate(items, device)

    monkeypatch.setattr(Example, "collate", staticmethod(spy))
    rows = [row for row in read_pool("reasoned", 60) if row.grade == 4]
    write_judgements(tmp_path / "rows.jsonl", rows)
    steps = len(rows) // 8 + 1
    sft(
        flags(
            base,
            tmp_path / "run",
            "--data",
            str(tmp_path / "rows.jsonl"),
            "--cots",
            "all",
            "--steps",
            str(steps),
            "--dev",
            "synthetic:dev*2",
        )
    )
    counts = Counter(tuple(example.prompt + example.reply) for example in seen)
    assert sum(counts.values()) == 8 * steps and len(counts) == len(rows) and max(counts.values()) == 2


@pytest.mark.parametrize("order", ["label", "pre-cot", "post-cot", "post-cot --soft-labels 0.5"])
def test_a_resumed_run_equals_the_unbroken_one_bit_for_bit(base, tmp_path, look, stopped_after, order):
    more = ["--order", *order.split(), "--steps", "6", "--eval-every", "2", "--optimizer", "muon", "--keep-last", "1"]
    sft(flags(base, tmp_path / "whole", *more))
    stopped_after(2, sft, flags(base, tmp_path / "parts", *more))
    sft(flags(base, tmp_path / "parts", *more))
    look.same(tmp_path / "whole", tmp_path / "parts")
    sft(flags(base, tmp_path / "parts", *more))  # a finished run stays as it is
    look.same(tmp_path / "whole", tmp_path / "parts")


def test_fresh_tiny_weights_resume_too(tmp_path, look, stopped_after):
    more = ["--steps", "2", "--eval-every", "1", "--dev", "synthetic:dev*4", "--batch-size", "4"]
    sft(flags("tiny", tmp_path / "whole", *more))
    stopped_after(1, sft, flags("tiny", tmp_path / "parts", *more))
    sft(flags("tiny", tmp_path / "parts", *more))
    look.same(tmp_path / "whole", tmp_path / "parts")


def test_the_size_of_micro_batches_changes_no_result(base, tmp_path):
    weights = []
    for budget in ("100", "10000"):
        sft(
            flags(
                base,
                tmp_path / budget,
                "--steps",
                "1",
                "--micro-batch-tok",
                budget,
                "--optimizer",
                "adamw",
                "--lr",
                "1e-4",
            )
        )
        model = load_judge(str(tmp_path / budget)).model
        weights.append(torch.cat([parameter.flatten() for parameter in model.parameters()]))
    torch.testing.assert_close(*weights, rtol=0, atol=2e-6)


def test_a_judge_can_be_taught_another_order_and_a_stage_continues_by_path_alone(base, tmp_path):
    sft(flags(base, tmp_path / "thinker", "--steps", "1", "--order", "pre-cot"))
    sft(
        flags(
            str(tmp_path / "thinker"),
            tmp_path / "student",
            "--steps",
            "1",
            "--order",
            "post-cot",
            "--label-weight",
            "4",
        )
    )
    assert load_judge(str(tmp_path / "thinker")).prompt.order == "pre-cot"
    assert load_judge(str(tmp_path / "student")).prompt == replace(load_judge(base).prompt, order="post-cot")


@pytest.mark.filterwarnings("ignore:Mismatch dtype")
def test_label_order_needs_no_reasons_and_other_precisions_compute(base, tmp_path, look):
    data = tmp_path / "rows.csv"
    data.write_text(
        "query,title,grade\n" + "".join(f"mug {n},steel mug {n},{n % 4 + 1}\n" for n in range(12)), encoding="utf-8"
    )
    sft(
        flags(
            base,
            tmp_path / "run",
            "--steps",
            "2",
            "--order",
            "label",
            "--data",
            str(data),
            "--dev",
            str(data),
            "--dtype",
            "bfloat16",
        )
    )
    assert all(torch.isfinite(torch.tensor(row["loss"])) for row in look.metrics(tmp_path / "run")[:2])


def test_soft_labels_are_what_the_judge_says_in_the_end_and_nothing_but_labels(base, tmp_path):
    """tau 1.4427 halves a share per grade: gold 3 is 1 2 4 2 ninths, gold 1 is 8 4 2 1 of 15."""
    rows = [Judgement("mug", title="steel mug", grade=3), Judgement("lamp", title="oak shelf", grade=1)]
    write_judgements(tmp_path / "rows.jsonl", rows)
    data, out = str(tmp_path / "rows.jsonl"), tmp_path / "run"
    sft(["--model", base, "--out", str(out), "--data", data, "--dev", data, "--order", "label", "--steps", "60",
         "--batch-size", "2", "--lr", "0.01", "--optimizer", "adamw", "--eval-every", "0",
         "--soft-labels", "1.4427", "--label-weight", "2"])  # fmt: skip
    judge = load_judge(str(out))
    found = judge.engine.label_probabilities(judge.model, judge.tokenizer, judge.prompts(rows))
    expected = torch.tensor([[1 / 9, 2 / 9, 4 / 9, 2 / 9], [8 / 15, 4 / 15, 2 / 15, 1 / 15]])
    torch.testing.assert_close(found.probs, expected, rtol=0, atol=0.03)
    assert found.label_mass.min() > 0.97


@pytest.mark.parametrize("order", ["label", "post-cot"])
def test_labels_that_are_hardly_soft_train_as_hard_ones_do(base, tmp_path, look, order):
    more = ["--order", order, "--steps", "2", "--optimizer", "adamw", "--lr", "1e-4", "--label-weight", "3"]
    for tau in ("0", "0.001"):
        sft(flags(base, tmp_path / tau, *more, "--soft-labels", tau))
    hard, soft = (look.metrics(tmp_path / tau) for tau in ("0", "0.001"))
    for one, other in zip(hard, soft, strict=True):
        assert one == pytest.approx(other, rel=1e-4, nan_ok=True)


# --- Wrong use --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--steps", "0"], "--steps is 0, expected at least 1"),
        (["--lr", "0"], "--lr is 0.0, expected more than 0"),
        (["--lr", "nan"], "--lr is 'nan', expected a finite number"),
        (["--keep-last", "0"], "--keep-last is 0, expected at least 1"),
        (
            ["--eval-every", "-1", "--grade-power", "2"],
            "--eval-every is -1, expected at least 0; --grade-power is 2.0, expected 0 to 1",
        ),
        (["--dev-rows", "-5"], "--dev-rows is -5, expected at least 0"),
        (["--soft-labels", "0.5"], "--soft-labels needs the label first: --order label or post-cot"),
        (["--soft-labels", "-1"], "--soft-labels is -1.0, expected at least 0"),
        (["--order", "cot"], "invalid choice: 'cot'"),
        (["--data", "gone.jsonl"], "no file at gone.jsonl: check --data"),
        (
            ["--data", "synthetic:labelled*9"],
            "use synthetic:reasoned or synthetic:explained, or write them with train/label_pool.py",
        ),
        (["--data", "synthetic:unlabelled*9", "--order", "label"], "its pairs have no grade"),
        (["--model", "runs/gone"], "--model runs/gone: no such run here"),
        (["--device", "tpu"], "--device tpu: not usable here"),
        (["--resume", "gone"], "--resume gone: no complete checkpoint there"),
    ],
)
def test_wrong_use_says_what_to_change_and_leaves_nothing_behind(base, tmp_path, refused, more, message):
    assert message in refused(sft, *flags(base, tmp_path / "run", *more))
    assert not (tmp_path / "run").exists()


def test_wrong_rows_are_named_by_file_line_and_field(base, tmp_path, refused):
    data = tmp_path / "rows.jsonl"
    for text, message in (
        ('{"query": "a", "title": "b", "grade": 7}\n', f"{data}:1: field 'grade' is 7, expected 1-4"),
        ('{"query": "a", "title": "b", "grade": 4}\n', f"{data}:1: field 'cot' is missing"),
        ("", f"{data}: no rows in this file"),
        ('{"query": "a", "ti', f"{data}:1: not JSON"),
    ):
        data.write_text(text, encoding="utf-8")
        assert message in refused(sft, *flags(base, tmp_path / "run", "--data", str(data)))


def test_a_tokenizer_that_does_not_fit_is_refused(base, tmp_path, refused):
    folder = tmp_path / "model"
    Tokenizer(base).save(folder)
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((Path(base) / name).read_bytes())
    spec = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    spec["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": False}
    (folder / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    message = refused(sft, *flags(str(folder), tmp_path / "run"))
    assert "does not fit: the four labels must be four distinct single tokens at the start of a reply" in message


def test_a_folder_that_is_not_empty_or_holds_another_run_is_refused(base, tmp_path, refused):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("keep", encoding="utf-8")
    assert "holds no taosr1 run; choose another one" in refused(sft, *flags(base, tmp_path / "notes"))
    assert "holds no taosr1 run; choose another one" in refused(
        sft, *flags(base, Path(base))
    )  # the model it starts from
    sft(flags(base, tmp_path / "run", "--steps", "1"))
    message = refused(sft, *flags(base, tmp_path / "run", "--steps", "1", "--batch-size", "9", "--seed", "3"))
    assert "batch_size was 8 and is now 9; seed was 0 and is now 3" in message and "choose another --out" in message
    assert "not empty; choose another one" in refused(sft, *flags(base, tmp_path / "run", "--resume", "none"))


def test_a_checkpoint_of_a_model_of_another_shape_is_not_continued(base, thinker, tmp_path, refused):
    checkpoint = next(Path(thinker).glob("checkpoints/step-*"))
    assert "holds a model of another shape" in refused(
        sft, *flags("tiny", tmp_path / "run", "--resume", str(checkpoint), "--accept-changed", "tokenizer,label_map")
    )


def test_a_checkpoint_of_another_tokenizer_is_not_continued_unless_one_says_so(base, thinker, tmp_path, refused):
    checkpoint = next(Path(thinker).glob("checkpoints/step-*"))
    message = refused(sft, *flags("tiny", tmp_path / "run", "--resume", str(checkpoint)))
    assert "tokenizer was 'sha256" in message and "--accept-changed tokenizer" in message


def test_settings_come_from_a_file_with_flags_on_top(base, tmp_path):
    write_judgements(tmp_path / "rows.jsonl", read_pool("reasoned", 30))
    settings = {
        "model": base,
        "data": str(tmp_path / "rows.jsonl"),
        "dev": "synthetic:dev*4",
        "steps": 9,
        "batch_size": 2,
        "out": str(tmp_path / "run"),
    }
    (tmp_path / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    sft(["--config", str(tmp_path / "settings.json"), "--steps", "1"])
    stored = json.loads((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))
    assert stored["steps"] == 1 and stored["batch_size"] == 2
    sft(["--config", str(tmp_path / "run" / "config.json")])  # what a run stored is itself a settings file


def test_shards_without_torchrun_are_refused_before_anything_is_made(base, tmp_path, refused):
    message = refused(sft, *flags(base, tmp_path / "run", "--fsdp", "--optimizer", "adamw"))
    assert (
        "start it with torchrun --standalone --nproc_per_node=N SCRIPT --fsdp" in message
        and not (tmp_path / "run").exists()
    )


def test_an_environment_that_makes_no_sense_ends_with_its_message():
    environment = {**os.environ, "RANK": "3", "WORLD_SIZE": "2"}
    root = Path(__file__).resolve().parents[2]
    answer = subprocess.run(
        [sys.executable, "train/sft.py", "--help"],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    found = "RANK='3', WORLD_SIZE='2', LOCAL_RANK='0' in the environment"
    assert answer.returncode == 1
    assert answer.stderr == f"error: {found}, expected numbers, 0 <= RANK < WORLD_SIZE: torchrun sets them\n"
