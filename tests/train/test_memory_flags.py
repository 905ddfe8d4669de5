"""--lora-rank and --activation-checkpointing through all three stages, from a base to one merged folder."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch

from infer.merge import main as merge
from taosr1.evaluation.metrics import macro_f1
from taosr1.evaluation.predict import predict
from taosr1.judge_model import load_judge
from taosr1.synthetic.shop import read_pool
from train.dpo import main as dpo
from train.grpo import main as grpo
from train.sft import main as sft

LORA = ["--lora-rank", "4", "--lora-alpha", "8"]
ADAPTER_CHECKPOINT = {"adapter_config.json", "adapter_model.safetensors", "generation_config.json", "manifest.json",
                      "optimizer.safetensors", "prompt.json", "state.json", "tokenizer.json",
                      "tokenizer_config.json"}  # fmt: skip
SFT = [
    "--order",
    "post-cot",
    "--data",
    "synthetic:reasoned*60",
    "--dev",
    "synthetic:dev*8",
    "--batch-size",
    "8",
    "--lr",
    "1e-2",
]
DPO = ["--dev", "synthetic:dev*8", "--batch-size", "8", "--lr", "1e-3"]
GRPO = [
    "--data",
    "synthetic:labelled*60",
    "--dev",
    "synthetic:dev*8",
    "--groups",
    "8",
    "--samples",
    "4",
    "--max-new-tokens",
    "64",
    "--lr",
    "5e-3",
]


@pytest.fixture
def one_copy(monkeypatch):
    """Whoever copies a model fails."""

    deepcopy = copy.deepcopy

    def refuse(thing, *arguments):
        assert not isinstance(thing, torch.nn.Module), f"a second copy of {type(thing).__name__}"
        return deepcopy(thing, *arguments)

    monkeypatch.setattr(copy, "deepcopy", refuse)


def test_adapters_alone_are_trained_stored_and_resumed_in_every_stage(post, pairs, tmp_path, look, stopped_after):
    before = (Path(post) / "checkpoints").glob("*/model.safetensors")
    before = {path: path.read_bytes() for path in before}
    stages = {
        "sft": (sft, [*SFT, "--lora-dropout", "0.2"]),
        "dpo": (dpo, ["--data", pairs, *DPO]),
        "grpo": (grpo, [*GRPO, "--test", ""]),
    }
    for name, (main, flags) in stages.items():
        whole, parts = tmp_path / name, tmp_path / f"{name}-parts"
        flags = ["--model", post, *flags, *LORA, "--steps", "4", "--eval-every", "2", "--keep-last", "9"]
        main([*flags, "--out", str(whole)])
        stopped_after(1, main, [*flags, "--out", str(parts)])
        main([*flags, "--out", str(parts)])
        look.same(whole, parts)
        assert look.files(whole / "checkpoints/step-000004") == ADAPTER_CHECKPOINT
        adapter = json.loads((whole / "checkpoints/step-000004/adapter_config.json").read_text())
        assert adapter["r"] == 4 and adapter["lora_dropout"] == (0.2 if name == "sft" else 0.0)
        assert Path(adapter["base_model_name_or_path"]) == next(iter(before)).parent
    assert all(path.read_bytes() == data for path, data in before.items())


def test_grpo_with_adapters_measures_against_them_switched_off_and_holds_one_copy(post, tmp_path, look, one_copy):
    last = grpo(
        [
            "--model",
            post,
            *GRPO,
            *LORA,
            "--steps",
            "3",
            "--test",
            "synthetic:test*40",
            "--kl-beta",
            "0.05",
            "--out",
            str(tmp_path / "run"),
        ]
    )
    rows = look.metrics(tmp_path / "run")
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-6) and rows[2]["kl"] > 1e-6
    test_rows = read_pool("test", 40)
    grades = [prediction.grade for prediction in predict(load_judge(post), test_rows)]
    assert last["test_macro_f1_start"] == macro_f1([row.grade for row in test_rows], grades)  # the start is the base
    result = [prediction.grade for prediction in predict(load_judge(str(tmp_path / "run")), test_rows)]
    assert last["test_macro_f1_result"] == macro_f1([row.grade for row in test_rows], result)


def test_stages_chain_adapters_on_adapters_down_to_one_merged_folder(post, tmp_path, capsys):
    sft(["--model", post, *SFT, *LORA, "--steps", "3", "--out", str(tmp_path / "sft")])
    grpo(
        [
            "--model",
            str(tmp_path / "sft"),
            *GRPO,
            *LORA,
            "--steps",
            "2",
            "--test",
            "",
            "--dtype",
            "bfloat16",
            "--out",
            str(tmp_path / "grpo"),
        ]
    )
    judge = load_judge(str(tmp_path / "grpo"))
    merge(["--model", str(tmp_path / "grpo"), "--out", str(tmp_path / "merged")])
    assert "the complete model of" in capsys.readouterr().out
    merged = load_judge(str(tmp_path / "merged"))
    ids = torch.tensor([[5, 9, 40, 7]])
    assert torch.equal(merged.model(ids), judge.model(ids)) and merged.prompt == judge.prompt
    assert {path.name for path in (tmp_path / "merged").iterdir()} >= {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "prompt.json",
    }
    with pytest.raises(FileExistsError, match="choose another folder"):
        merge(["--model", str(tmp_path / "grpo"), "--out", str(tmp_path / "merged")])


def test_activation_checkpointing_changes_no_number(post, pairs, tmp_path, look):
    for name, main, flags in (
        ("sft", sft, SFT),
        ("dpo", dpo, ["--data", pairs, *DPO]),
        ("grpo", grpo, [*GRPO, "--test", ""]),
    ):
        flags = ["--model", post, *flags, "--steps", "2"]
        main([*flags, "--out", str(tmp_path / name)])
        main([*flags, "--out", str(tmp_path / f"{name}-again"), "--activation-checkpointing"])
        look.same(tmp_path / name, tmp_path / f"{name}-again")


def test_bad_lora_flags_end_with_a_message_that_names_them(post, tmp_path, refused):
    out = ["--out", tmp_path / "run"]
    assert "--lora-rank: --model tiny is fresh weights" in refused(sft, *out, "--lora-rank", "4")
    assert "rank is -2" in refused(sft, *out, "--lora-rank", "-2")
    assert "--optimizer muon moves whole matrices" in refused(
        sft, "--model", post, *out, "--lora-rank", "2", "--optimizer", "muon"
    )
    assert "dropout is 1.5" in refused(sft, "--model", post, *out, "--lora-rank", "2", "--lora-dropout", "1.5")
    assert "targets are q_prj" in refused(grpo, "--model", post, *out, "--lora-rank", "2", "--lora-targets", "q_prj")
    assert not (tmp_path / "run").exists()
    assert "--model is missing" in refused(merge, "--out", tmp_path / "merged")


def test_a_run_with_adapters_is_not_continued_without_them(post, tmp_path, refused):
    flags = ["--model", post, *SFT, "--steps", "2", "--out", tmp_path / "run"]
    sft([str(word) for word in (*flags, *LORA)])
    assert "lora_rank was 4 and is now 0" in refused(sft, *flags)


def test_adapters_are_not_continued_at_another_scale_on_another_base_or_from_whole_weights(
    post, thinker, tmp_path, refused
):
    start = ["--steps", "2", *SFT]
    sft(["--model", post, *start, *LORA, "--out", str(tmp_path / "run")])
    sft(["--model", post, *start, "--out", str(tmp_path / "whole")])
    step = tmp_path / "run/checkpoints/step-000002"
    again = [*start, "--steps", "3", "--resume", step, "--out"]
    assert "alpha=64.0" in refused(
        sft, "--model", post, *again, tmp_path / "a", "--lora-rank", "4", "--lora-alpha", "64"
    )
    message = refused(sft, "--model", thinker, *again, tmp_path / "b", *LORA)
    assert "holds adapters for" in message and "--model is now" in message
    again[again.index(step)] = tmp_path / "whole/checkpoints/step-000002"
    assert "holds all weights, but this run trains adapters" in refused(
        sft, "--model", post, *again, tmp_path / "c", *LORA
    )
