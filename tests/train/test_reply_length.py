"""`--max-new-tokens` is bounded by the model's positions, in every script that has it, before anything is allocated."""

from __future__ import annotations

import dataclasses
import importlib
import resource
from pathlib import Path

import pytest

from infer import compare
from taosr1.judge_model import BUNDLED, load_judge
from taosr1.task.judgement import Judgement

ROOT = Path(__file__).resolve().parents[2]
FLAGS = {
    "train.sft": ["--data", "synthetic:reasoned*8", "--dev", "synthetic:dev*4"],
    "train.dpo": ["--dev", "synthetic:dev*4"],
    "train.grpo": ["--data", "synthetic:labelled*8", "--dev", "synthetic:dev*4"],
    "train.mine_pairs": ["--data", "synthetic:labelled*8"],
    "train.label_pool": ["--data", "synthetic:unlabelled*8"],
    "infer.evaluate": ["--data", "synthetic:test*4"],
    "infer.explain": ["boots", "suede boots"],
    "infer.sample": ["--data", "synthetic:dev*4"],
}  # fmt: skip


def test_every_script_with_the_flag_is_tried_below():
    paths = [path for folder in ("train", "infer") for path in sorted((ROOT / folder).glob("*.py"))]
    scripts = [f"{path.parent.name}.{path.stem}" for path in paths]
    configs = {name: getattr(importlib.import_module(name), "Config", None) for name in scripts}
    having = {
        name for name, config in configs.items()
        if config and "max_new_tokens" in {field.name for field in dataclasses.fields(config)}
    }  # fmt: skip
    elsewhere = {"infer.serve", "infer.compare"}  # tried in tests/server/test_security.py, and below
    assert having - elsewhere == FLAGS.keys()


@pytest.mark.parametrize("tokens", [513, 100_000, 100_000_000])
@pytest.mark.parametrize("script", FLAGS)
def test_a_longer_reply_than_the_model_has_room_for_is_refused_with_the_number_that_fits(
    script, tokens, tmp_path, refused
):
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    more = ["--model", BUNDLED, "--max-new-tokens", tokens, "--out", tmp_path / "out.jsonl"]
    said = refused(importlib.import_module(script).main, *FLAGS[script], *more)
    assert f"--max-new-tokens is {tokens}, but --model bundled" in said and " has 1024 positions" in said
    assert said.endswith("half of them for the prompt: give at most 512")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used < 500_000  # KiB
    assert not (tmp_path / "out.jsonl").exists()


def test_a_comparison_refuses_it_too_and_names_the_judge(refused):
    judges = ["bundled-student", "bundled-thinker"]
    said = refused(compare.main, *judges, "--data", "synthetic:test*4", "--max-new-tokens", 513)
    assert said.startswith("A, bundled-student: --max-new-tokens is 513, but --model bundled-student has 1024 ")
    assert said.endswith("give at most 512")


@pytest.mark.parametrize("plain", [True, False])
def test_the_longest_reply_that_is_allowed_fits_behind_the_longest_prompt(plain):
    judge = load_judge(BUNDLED, plain=plain, max_new_tokens=512)
    row = Judgement("杯" * 900, "茶杯" * 900, price="杯" * 400)
    prompt = judge.prompts([row])[0]
    assert 300 < len(prompt) <= 512 < len(load_judge(BUNDLED).prompts([row])[0])
    found = judge.engine.generate(judge.model, [prompt], max_new_tokens=512, temperature=0, stop_ids=())
    assert int(found.lengths[0]) == 512


@pytest.mark.parametrize("plain", [True, False])
def test_a_call_of_the_sampler_is_refused_too_where_no_prompt_could_fit(plain):
    judge = load_judge(BUNDLED, plain=plain)
    with pytest.raises(ValueError, match="positions asked for, but the model has max_position_embeddings=1024"):
        judge.engine.generate(judge.model, [[5, 6]], max_new_tokens=100_000_000, temperature=0, stop_ids=())
