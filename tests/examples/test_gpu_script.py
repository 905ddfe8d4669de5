"""The script for a GPU: its commands are accepted, what takes too long is ended, what is done is kept."""

from __future__ import annotations

import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from examples import finetune_qwen3, gpu_real_judgements
from examples.gpu_real_judgements import SHARES, Config, command_of, main, run_part
from taosr1.data.judgements import write_judgements
from taosr1.runtime.files import read_json, write_json
from taosr1.synthetic.shop import read_pool

ROOT = Path(__file__).resolve().parents[2]
GONE = "import time; print('at work', flush=True); time.sleep(60)"


def accepted(words: list[str]) -> None:
    """The script's own parser and checks take these flags."""
    script = runpy.run_path(str(ROOT / words[0]))
    parse = runpy.run_path(str(ROOT / "taosr1/runtime/cli.py"))["parse_config"]
    parse(script["StepConfig" if "_step" in words[0] else "Config"], "", words[1:])


@pytest.mark.parametrize("small", [True, False], ids=["check", "whole"])
@pytest.mark.parametrize("part", SHARES)
def test_every_part_is_a_command_that_its_script_takes(part, small, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    config = Config(data="esci.jsonl", model=str(tmp_path), check=small, device="cpu")
    accepted(command_of(part, config, tmp_path))


@pytest.mark.parametrize("order", ["label", "pre-cot"])
def test_every_step_of_the_whole_path_is_a_command_that_its_script_takes(order, tmp_path):
    config = finetune_qwen3.Config(data="esci.jsonl", model="smollm2", order=order, scale=0.1, lora_rank=0)
    plan = finetune_qwen3.plan(config, tmp_path, "smollm2")
    for _, _, words in plan:
        if words[0] != "train/teacher.py":  # has subcommands
            accepted(words)
    made = {name: words for name, _, words in plan}
    judges = {made[name][made[name].index("--model") + 1] for name in ("evaluate", "score", "merge")}
    assert judges == {str(tmp_path / ("grpo" if order == "label" else "student"))}
    assert made["sft"][made["sft"].index("--steps") + 1] == "60"


@pytest.mark.long
def test_a_thinker_and_its_student_go_the_whole_path_in_small_form(tmp_path):
    """The commands of `--check --order pre-cot`, run in this process: each would load torch for itself."""
    rows = [replace(row, cot="", extra={"split": "train"}) for row in read_pool("labelled", 60)]
    rows += [replace(row, cot="", extra={"split": "test"}) for row in read_pool("test", 8)]
    write_judgements(tmp_path / "rows.jsonl", rows)
    config = finetune_qwen3.Config(
        data=str(tmp_path / "rows.jsonl"), model="bundled", order="pre-cot", lora_rank=0, device="cpu", check=True
    )
    finetune_qwen3.hold_out(config, tmp_path)
    for name, result, words in finetune_qwen3.plan(config, tmp_path, "bundled"):
        runpy.run_path(str(ROOT / words[0]))["main"](words[1:])
        assert (tmp_path / result).exists(), name
    assert read_json(tmp_path / "report.json")


def test_a_part_that_takes_too_long_is_ended_and_what_it_wrote_counts(tmp_path):
    write_json(tmp_path / "slow.json", {"rows": [1]})
    row = run_part("slow", ["-c", GONE], tmp_path, 0.5)
    assert row["status"] == "cut off after 0 s" and row["found"] == {"rows": [1]} and row["seconds"] < 15
    assert run_part("wrong", ["-c", "raise SystemExit(3)"], tmp_path, 30)["status"] == "failed, exit status 3"


def test_a_part_that_is_done_is_not_repeated_and_results_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_real_judgements, "command_of", lambda name, *_: ["-c", f"print({name!r})"])
    flags = ["--data", "esci.jsonl", "--device", "cpu", "--out", str(tmp_path)]
    first = main([*flags, "--parts", "label,thinker"])
    assert [row["status"] for row in first] == ["done", "done"]
    again = main([*flags, "--parts", "label,thinker,qwen3"])
    assert again[:2] == first and again[2]["part"] == "qwen3"
    assert read_json(tmp_path / "results.json")["parts"] == again


def test_without_a_gpu_the_way_to_a_small_form_is_named(tmp_path):
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match="without a GPU, --device cpu --check"):
        main(["--data", "esci.jsonl", "--out", str(tmp_path)])
