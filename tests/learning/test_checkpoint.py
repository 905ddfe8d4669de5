"""Checkpoints are complete or absent, and bring back weights, optimizers, cursor and RNG bit for bit."""

from __future__ import annotations

import json
import os
from functools import partial

import pytest
import torch

from taosr1.learning import checkpoint_weights
from taosr1.learning.checkpoint_weights import read_weights, write_weights
from taosr1.learning.optimizers import make_optimizers
from taosr1.model.io.model_folder import model_folder
from taosr1.model.io.weights import load_pretrained
from taosr1.runtime import checkpoint, files
from taosr1.runtime.checkpoint import (
    checkpoints,
    load_checkpoint,
    prune,
    read_best,
    rewind,
    save_checkpoint,
)
from taosr1.runtime.files import new_folder, remove_leftovers, write_checksummed, write_json
from taosr1.task.prompt import PromptConfig

FILES = [
    "config.json", "generation_config.json", "manifest.json", "model.safetensors", "optimizer.safetensors",
    "prompt.json", "state.json", "tokenizer.json", "tokenizer_config.json",
]  # fmt: skip


def step(judge, optimizers, seed: int) -> None:
    """One optimizer step on random ids."""
    ids = torch.randint(judge.model.config.vocab_size, (3, 9), generator=torch.Generator().manual_seed(seed))
    logits = judge.model(ids)
    torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    for optimizer in optimizers:
        optimizer.step()
    judge.model.zero_grad()


def save(folder, judge, optimizers, number: int = 3, cursor: dict | None = None):
    write = partial(write_weights, judge.model, judge.tokenizer, judge.prompt)
    return save_checkpoint(folder, number, optimizers, cursor or {}, 0, write)


def load(path, judge, optimizers) -> tuple[int, dict, int]:
    return load_checkpoint(path, optimizers, partial(read_weights, judge.model))


def state(judge, optimizers) -> list[torch.Tensor]:
    tensors = [value for _, value in sorted(judge.model.state_dict().items())]
    for optimizer in optimizers:
        for _, values in sorted(optimizer.state_dict()["state"].items()):
            tensors += [torch.as_tensor(value) for _, value in sorted(values.items())]
    return [tensor.clone() for tensor in tensors]


def assert_equal_bits(got: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    assert len(got) == len(expected)
    assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(got, expected))


@pytest.mark.parametrize("muon_lr", [0.0, 0.02])
def test_weights_optimizers_cursor_and_rng_come_back_bit_for_bit(make_judge, tmp_path, muon_lr):
    judge = make_judge()
    optimizers = make_optimizers(judge.model, 1e-3, muon_lr=muon_lr)
    for seed in range(3):
        step(judge, optimizers, seed)
    torch.manual_seed(11)
    path = save(tmp_path, judge, optimizers, cursor={"drawn": {"4": 7}, "survival": {"4": 0.1 + 0.2}})
    saved, drawn = state(judge, optimizers), torch.rand(3)
    for seed in range(3, 5):
        step(judge, optimizers, seed)
    unbroken = state(judge, optimizers)

    other = make_judge(seed=1)
    others = make_optimizers(other.model, 1e-3, muon_lr=muon_lr)
    assert load(path, other, others) == (3, {"drawn": {"4": 7}, "survival": {"4": 0.1 + 0.2}}, 0)
    assert_equal_bits(state(other, others), saved)
    assert torch.equal(torch.rand(3), drawn)
    for seed in range(3, 5):
        step(other, others, seed)
    assert_equal_bits(state(other, others), unbroken)


def test_a_checkpoint_before_the_first_step_is_one_too(make_judge, tmp_path):
    judge = make_judge()
    path = save(tmp_path, judge, make_optimizers(judge.model, 1e-3), number=0)
    assert path.name == "step-000000" and load(path, judge, make_optimizers(judge.model, 1e-3)) == (0, {}, 0)


def test_a_checkpoint_is_a_model_folder_with_exactly_these_files(make_judge, tmp_path):
    judge = make_judge("pre-cot")
    path = save(tmp_path / "checkpoints", judge, make_optimizers(judge.model, 1e-3))
    assert sorted(os.listdir(path)) == FILES and os.listdir(path.parent) == ["step-000003"]
    model, tokenizer = load_pretrained(path)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), judge.model.parameters()))
    assert PromptConfig.load(path) == judge.prompt and tokenizer.label_ids == judge.tokenizer.label_ids
    assert model_folder(tmp_path) == str(path)


@pytest.mark.parametrize("failing", ["save_pretrained", "save_file", "fsync", "os.replace"])
def test_a_save_that_fails_anywhere_leaves_nothing_and_can_be_repeated(make_judge, tmp_path, monkeypatch, failing):
    judge = make_judge()
    optimizers = make_optimizers(judge.model, 1e-3)
    owner, name = {
        "save_pretrained": (checkpoint_weights, "save_pretrained"), "save_file": (checkpoint, "save_file"),
        "fsync": (files, "fsync"), "os.replace": (os, "replace"),
    }[failing]  # fmt: skip
    work, calls = getattr(owner, name), []

    def fail(*arguments, **given):
        if failing == "os.replace" and arguments[1] != tmp_path / "step-000003":
            return work(*arguments, **given)  # only the last rename, which makes the checkpoint, is to fail
        calls.append(arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, judge, optimizers)
    assert calls and os.listdir(tmp_path) == []
    assert save(tmp_path, judge, optimizers).name == "step-000003"


def test_a_process_killed_in_the_middle_leaves_only_what_remove_leftovers_removes(make_judge, tmp_path, monkeypatch):
    judge = make_judge()
    folder = new_folder(tmp_path / "step-000003")
    aside = folder.__enter__()  # and never leaves it
    (aside / "state.json").write_text("{}", encoding="utf-8")
    assert checkpoints(tmp_path) == [] and len(os.listdir(tmp_path)) == 1
    remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == []
    save(tmp_path, judge, make_optimizers(judge.model, 1e-3))


def test_every_file_is_forced_to_disk_before_the_folder_gets_its_name(make_judge, tmp_path, monkeypatch):
    judge, forced, fsync = make_judge(), [], files.fsync

    def record(path):
        forced.append((path.name, (tmp_path / "step-000003").exists()))
        fsync(path)

    monkeypatch.setattr(files, "fsync", record)
    save(tmp_path, judge, make_optimizers(judge.model, 1e-3))
    before = [name for name, named in forced if not named]
    assert set(before) >= {*FILES, ".writing-step-000003"} - {"manifest.json"}
    assert ".manifest.json." in "".join(before)  # written aside itself
    assert forced[-1] == (tmp_path.name, True)


def test_an_existing_checkpoint_is_never_written_over(make_judge, tmp_path):
    judge = make_judge()
    optimizers = make_optimizers(judge.model, 1e-3)
    before = (save(tmp_path, judge, optimizers) / "state.json").stat().st_mtime_ns
    with pytest.raises(FileExistsError, match="step-000003 already exists"):
        save(tmp_path, judge, optimizers, cursor={"x": 1})
    assert (tmp_path / "step-000003" / "state.json").stat().st_mtime_ns == before


def test_a_checkpoint_of_another_model_or_optimizer_is_refused_by_name(make_judge, tmp_path):
    judge = make_judge()
    path = save(tmp_path, judge, make_optimizers(judge.model, 1e-3))
    wider = make_judge(intermediate_size=32)
    with pytest.raises(ValueError, match="step-000003: holds a model of another shape"):
        load(path, wider, make_optimizers(wider.model, 1e-3))
    message = r"state\.json: holds optimizers over \[\[\d+, \d+\]\] parameters, this run has \[\[\d+\], \[\d+\]\]"
    with pytest.raises(ValueError, match=message):
        load(path, judge, make_optimizers(judge.model, 1e-3, muon_lr=0.1))


def test_moments_come_from_the_checkpoint_but_learning_rates_from_the_run(make_judge, tmp_path):
    judge = make_judge()
    optimizers = make_optimizers(judge.model, 1e-3)
    step(judge, optimizers, 0)
    path = save(tmp_path, judge, optimizers)
    (other,) = make_optimizers(judge.model, 7e-5, weight_decay=0.3)
    load(path, judge, [other])
    assert {group["peak_lr"] for group in other.param_groups} == {7e-5} and other.param_groups[1]["weight_decay"] == 0.3
    assert len(other.state) == len(list(judge.model.parameters()))


def test_small_json_files_are_replaced_completely(tmp_path, monkeypatch):
    write_json(tmp_path / "a.json", {"x": 1})

    def fail(*_):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(files, "fsync", fail)
        with pytest.raises(OSError, match="disk full"):
            write_json(tmp_path / "a.json", {"x": 2})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"x": 1}
    write_json(tmp_path / "a.json", {"x": 3})
    assert os.listdir(tmp_path) == ["a.json"]
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"x": 3}


# --- Which checkpoints stay -------------------------------------------------------------------------------------------
def pretend(folder, *steps: int, best: int | None = None, evaluated_through: int = 0) -> None:
    for number in steps:
        (folder / f"step-{number:06d}").mkdir(parents=True)
        write_checksummed(folder / f"step-{number:06d}" / "manifest.json", {"files": {}})
    if best is not None:
        write_checksummed(folder / "best.json", {"step": best, "evaluated_through": evaluated_through})


def steps_in(folder) -> list[int]:
    return [number for number, _ in checkpoints(folder)]


def test_prune_keeps_the_newest_and_the_best(tmp_path):
    pretend(tmp_path, 10, 20, 30, 40, 1_000_000, best=20)
    prune(tmp_path, 2)
    assert steps_in(tmp_path) == [20, 40, 1_000_000]
    prune(tmp_path, 5)
    assert steps_in(tmp_path) == [20, 40, 1_000_000]


def test_incomplete_and_foreign_folders_are_no_checkpoints(tmp_path):
    pretend(tmp_path, 10)
    for name in ("step-12", "step-00000x", ".writing-step-000030", ".deleting-step-000040", "damaged-step-000050"):
        (tmp_path / name).mkdir()
    assert steps_in(tmp_path) == [10] and checkpoints(tmp_path / "gone") == [] and read_best(tmp_path) == {}


def test_rewind_forgets_later_checkpoints_and_a_best_that_was_chosen_later(tmp_path):
    pretend(tmp_path, 10, 20, 30, best=10, evaluated_through=20)
    rewind(tmp_path, 20)
    assert steps_in(tmp_path) == [10, 20] and read_best(tmp_path)["step"] == 10
    rewind(tmp_path, 10)
    assert steps_in(tmp_path) == [10] and read_best(tmp_path) == {}


def test_the_best_before_a_rewind_is_the_best_again_and_is_kept(tmp_path):
    pretend(tmp_path, 2, 4, 6, 8)
    write_checksummed(tmp_path / "best.json", {"step": 8, "dev_macro_f1": 0.95, "evaluated_through": 8})
    scores = {2: 0.1, 4: 0.9, 6: 0.2, 8: 0.95}
    rows = []
    for step, score in scores.items():
        rows += [{"step": step, "loss": 1.0}, {"step": step, "dev_macro_f1": score}]
    rewind(tmp_path, 6, rows)
    assert read_best(tmp_path) == {"step": 4, "dev_macro_f1": 0.9, "evaluated_through": 6}
    prune(tmp_path, 1)
    assert steps_in(tmp_path) == [4, 6]
