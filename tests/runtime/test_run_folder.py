"""Run folders: which ones are refused, what is written before step 0, and what a continued run forgets."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import partial

import pytest

from taosr1.runtime import run_folder as run_module
from taosr1.runtime.files import DamagedError, write_checksummed
from taosr1.runtime.run_folder import Run, is_unfinished

FRESH = [".lock", "checkpoints", "config.json", "env.json", "identity.json"]  # a run folder before step 0


@dataclass(frozen=True)
class Config:
    steps: int = 10
    lr: float = 1e-3
    data: str = "synthetic:dev"
    out: str = ""
    resume: str = "auto"
    device: str = "cpu"
    keep_last: int = 2
    accept_changed: str = ""


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def pretend_checkpoint(folder, step: int) -> str:
    path = folder / "checkpoints" / f"step-{step:06d}"
    path.mkdir(parents=True)
    write_checksummed(path / "manifest.json", {"files": {}})
    return str(path)


def test_a_new_run_writes_its_settings_and_surroundings_before_step_0(tmp_path):
    run = Run(tmp_path / "a" / "run", Config())
    assert run.start is None and sorted(os.listdir(run.folder)) == FRESH
    assert json.loads((run.folder / "config.json").read_text(encoding="utf-8")) == vars(Config())
    environment = json.loads((run.folder / "env.json").read_text(encoding="utf-8"))
    assert environment.keys() == {"taosr1", "commit", "python", "torch", "machine", "threads", "ranks", "cuda"}


def test_an_empty_folder_is_as_good_as_none(tmp_path):
    assert Run(tmp_path, Config(), "none").start is None


def test_lines_are_appended_with_their_step(tmp_path):
    run = Run(tmp_path, Config())
    run.log(1, loss=0.5)
    run.log(2, loss=float("nan"), note="größer")
    run.log_samples(2, [{"text": "a\u2028b"}, {"text": "杯"}])
    assert [row["step"] for row in lines(tmp_path / "metrics.jsonl")] == [1, 2]
    assert lines(tmp_path / "samples.jsonl") == [{"step": 2, "text": "a\u2028b"}, {"step": 2, "text": "杯"}]


def test_auto_continues_from_the_newest_complete_checkpoint(tmp_path):
    Run(tmp_path, Config())
    assert Run(tmp_path, Config()).start is None  # interrupted before its first checkpoint: from the start
    for step in (4, 8):
        pretend_checkpoint(tmp_path, step)
    (tmp_path / "checkpoints" / ".writing-step-000010").mkdir()
    run = Run(tmp_path, Config())
    assert run.start == (8, tmp_path / "checkpoints" / "step-000008")
    assert sorted(os.listdir(run.checkpoints)) == ["step-000004", "step-000008"]


def test_what_was_logged_after_the_checkpoint_is_dropped_with_an_incomplete_last_line(tmp_path):
    run = Run(tmp_path, Config())
    for step in (3, 4, 5):
        run.log(step, loss=step)
        run.log_samples(step, [{"text": "line\u2028separator\x85and\u2029more"}] * 2)
    pretend_checkpoint(tmp_path, 4)
    kept = {name: lines(tmp_path / name) for name in ("metrics.jsonl", "samples.jsonl")}
    run.close()
    with open(tmp_path / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 4, "lo')
    Run(tmp_path, Config()).log(5, loss=7)
    assert lines(tmp_path / "metrics.jsonl") == kept["metrics.jsonl"][:2] + [{"step": 5, "loss": 7}]
    assert lines(tmp_path / "samples.jsonl") == kept["samples.jsonl"][:4]


def test_a_run_without_a_checkpoint_starts_its_logs_anew(tmp_path):
    Run(tmp_path, Config()).log(1, loss=1)
    Run(tmp_path, Config())
    assert (tmp_path / "metrics.jsonl").read_text(encoding="utf-8") == ""


def test_a_named_checkpoint_is_continued_and_later_ones_of_this_folder_are_forgotten(tmp_path):
    run = Run(tmp_path, Config())
    paths = [pretend_checkpoint(tmp_path, step) for step in (2, 4, 6)]
    for step in range(1, 7):
        run.log(step, loss=step)
    write_checksummed(run.checkpoints / "best.json", {"step": 6, "evaluated_through": 6})
    run.close()
    run = Run(tmp_path, Config(), paths[1])
    assert run.start[0] == 4 and sorted(os.listdir(run.checkpoints)) == ["step-000002", "step-000004"]
    assert [row["step"] for row in lines(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]


def test_a_checkpoint_of_another_run_is_continued_in_a_folder_of_its_own(tmp_path):
    path = pretend_checkpoint(tmp_path / "old", 4)
    run = Run(tmp_path / "new", Config(lr=5.0), path)
    assert run.start[0] == 4 and os.listdir(run.checkpoints) == [] and os.path.isdir(path)


@pytest.mark.parametrize("name", ["gone", "checkpoints", "checkpoints/step-000004", "checkpoints/step-000009"])
def test_a_path_that_is_no_complete_checkpoint_is_refused_and_leaves_no_folder_behind(tmp_path, name):
    (tmp_path / "old" / "checkpoints" / "step-000009").mkdir(parents=True)  # without a manifest
    message = "no complete checkpoint there; expected auto, none or RUN/checkpoints/step-NNNNNN"
    with pytest.raises((FileNotFoundError, DamagedError), match=f"{message}|step-000009/manifest.json is missing"):
        Run(tmp_path / "new", Config(), str(tmp_path / "old" / name))
    assert not (tmp_path / "new").exists()


def test_a_folder_that_holds_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    message = f"--out {tmp_path}: the folder is not empty and holds no taosr1 run; choose another one"
    with pytest.raises(FileExistsError, match=message):
        Run(tmp_path, Config())
    assert os.listdir(tmp_path) == ["notes.txt"]
    with pytest.raises(FileExistsError, match="is a file, expected a folder"):
        Run(tmp_path / "notes.txt", Config())


def test_a_model_folder_is_no_run_folder(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}', encoding="utf-8")
    with pytest.raises(FileExistsError, match="holds no taosr1 run"):
        Run(tmp_path, Config())


def test_none_insists_on_an_empty_folder(tmp_path):
    Run(tmp_path, Config(), "none")
    message = "the folder is not empty; choose another one or continue it with --resume auto"
    with pytest.raises(FileExistsError, match=message):
        Run(tmp_path, Config(), "none")


def test_other_settings_are_refused_and_each_is_named(tmp_path):
    Run(tmp_path, Config())
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(ValueError) as caught:
        Run(tmp_path, Config(lr=2e-3, data="rows.jsonl", steps=99))
    message = str(caught.value)
    assert "data was 'synthetic:dev' and is now 'rows.jsonl'; lr was 0.001 and is now 0.002" in message
    assert "choose another --out" in message
    assert "steps" not in message and (tmp_path / "config.json").read_bytes() == before


def test_a_setting_that_is_new_or_gone_counts_as_changed(tmp_path):
    @dataclass(frozen=True)
    class Longer(Config):
        tone: str = "kind"

    Run(tmp_path / "a", Config())
    with pytest.raises(ValueError, match="tone was None and is now 'kind'"):
        Run(tmp_path / "a", Longer())
    Run(tmp_path / "b", Longer())
    with pytest.raises(ValueError, match="tone was 'kind' and is now None"):
        Run(tmp_path / "b", Config())


def test_settings_that_compute_nothing_may_change(tmp_path):
    Run(tmp_path, Config())
    other = replace(Config(), steps=20, out="elsewhere", resume="x", device="cuda", keep_last=9)
    assert Run(tmp_path, other).start is None
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["steps"] == 20


# ---- Another process, another run ------------------------------------------------------------------------------------
HOLDER = """
import os, sys, time
from pathlib import Path
from taosr1.runtime.files import take_lock
held = take_lock(Path(sys.argv[1]) / ".lock", f"{os.getpid()}\\n")
print("held", flush=True)
time.sleep(60)
"""


def test_a_folder_that_another_process_has_is_refused_until_it_dies_however_it_dies(tmp_path):
    (tmp_path / "run").mkdir()
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        message = rf"--out .*run: another process \(id {holder.pid}\) is at work there"
        with pytest.raises(BlockingIOError, match=message):
            Run(tmp_path / "run", Config())
        assert os.listdir(tmp_path / "run") == [".lock"]  # nothing of it was touched
    finally:
        holder.kill()
        holder.wait()
    assert Run(tmp_path / "run", Config()).start is None


IDENTITY = {
    "start": "a", "tokenizer": "t", "label_map": "1: 5, 2: 6", "prompt_wording": "sha256 89ab", "world_size": "2",
    "data": "9 rows, sha256 0123",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(IDENTITY))
def test_another_identity_is_refused_with_the_difference_and_the_flag(tmp_path, name, capsys):
    Run(tmp_path, Config(), "auto", lambda: IDENTITY).close()
    other = {**IDENTITY, name: "other"}
    with pytest.raises(ValueError) as caught:
        Run(tmp_path, Config(), "auto", lambda: other)
    message = str(caught.value)
    assert f"{name} was {IDENTITY[name]!r} and is now 'other'" in message and f"--accept-changed {name}" in message
    assert json.loads((tmp_path / "identity.json").read_text(encoding="utf-8")) == IDENTITY
    Run(tmp_path, replace(Config(), accept_changed=f"lr, {name}"), "auto", lambda: other).close()
    assert f"accepted: {name} was" in capsys.readouterr().err
    Run(tmp_path, Config(), "auto", lambda: other).close()  # from now on that is what the run is about


def test_a_changed_setting_can_be_accepted_by_name_but_not_along_with_another(tmp_path):
    Run(tmp_path, Config()).close()
    with pytest.raises(ValueError, match="data was .* --accept-changed data,lr"):
        Run(tmp_path, replace(Config(), lr=1.0, data="x", accept_changed="lr"))
    Run(tmp_path, replace(Config(), lr=1.0, data="x", accept_changed="lr,data")).close()


def test_a_branch_may_have_other_data_but_not_another_tokenizer(tmp_path):
    Run(tmp_path / "old", Config(), "auto", lambda: IDENTITY).close()
    path = pretend_checkpoint(tmp_path / "old", 4)
    Run(tmp_path / "new", Config(), path, lambda: {**IDENTITY, "data": "other"}).close()
    with pytest.raises(ValueError, match="tokenizer was 't' and is now 'other'.*--accept-changed tokenizer"):
        Run(tmp_path / "third", Config(), path, lambda: {**IDENTITY, "tokenizer": "other"})


def test_auto_goes_back_over_damaged_checkpoints_says_so_and_keeps_them_for_a_look(tmp_path, capsys):
    Run(tmp_path, Config()).close()
    for step in (2, 4, 6):
        pretend_checkpoint(tmp_path, step)
    for step in (4, 6):
        (tmp_path / "checkpoints" / f"step-{step:06d}" / "manifest.json").write_text("{", encoding="utf-8")
    run = Run(tmp_path, Config())
    assert run.start == (2, tmp_path / "checkpoints" / "step-000002")
    said = capsys.readouterr().err
    for step in (4, 6):
        assert f"step-{step:06d}/manifest.json is not valid JSON" in said
        assert f"damaged-step-{step:06d}; going back" in said
    assert sorted(os.listdir(run.checkpoints)) == ["damaged-step-000004", "damaged-step-000006", "step-000002"]


def test_a_named_checkpoint_that_is_damaged_is_refused_and_stays_where_it_is(tmp_path):
    Run(tmp_path, Config()).close()
    path = pretend_checkpoint(tmp_path, 4)
    (tmp_path / "checkpoints" / "step-000004" / "manifest.json").write_text("{}", encoding="utf-8")
    with pytest.raises(DamagedError, match="step-000004/manifest.json is not as it was written"):
        Run(tmp_path, Config(), path)
    assert os.listdir(tmp_path / "checkpoints") == ["step-000004"]


def test_what_was_logged_is_rewritten_completely_or_not_at_all(tmp_path, monkeypatch):
    run = Run(tmp_path, Config())
    for step in (1, 2, 3):
        run.log(step, loss=step)
    run.close()
    before = (tmp_path / "metrics.jsonl").read_bytes()

    def replace_others(source, target):
        if target.name == "metrics.jsonl":
            raise KeyboardInterrupt
        replace_file(source, target)

    pretend_checkpoint(tmp_path, 1)
    replace_file = os.replace
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", replace_others)
        Run(tmp_path, Config())
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_what_a_killed_write_left_in_the_folder_is_removed_at_the_start(tmp_path):
    Run(tmp_path, Config()).close()
    for name in (".config.json.123.tmp", ".metrics.jsonl.9.tmp", "checkpoints/.best.json.5.tmp"):
        (tmp_path / name).write_text("half", encoding="utf-8")
    (tmp_path / "checkpoints" / ".deleting-step-000002").mkdir()
    Run(tmp_path, Config()).close()
    assert sorted(os.listdir(tmp_path)) == FRESH
    assert os.listdir(tmp_path / "checkpoints") == []


@pytest.mark.parametrize("stopped_before", ["identity.json", "config.json", "env.json"])
def test_a_run_that_is_killed_while_it_opens_its_folder_opens_it_again(tmp_path, monkeypatch, stopped_before):
    write = run_module.write_json

    def killed(path, value):
        if path.name == stopped_before:
            raise KeyboardInterrupt
        write(path, value)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run_module, "write_json", killed)
        Run(tmp_path, Config(), "auto", lambda: IDENTITY)
    (tmp_path / ".config.json.1.tmp").write_text("{", encoding="utf-8")
    Run(tmp_path, Config(), "auto", lambda: IDENTITY).close()
    assert sorted(os.listdir(tmp_path)) == FRESH


def test_the_command_that_branched_off_goes_on_from_its_own_checkpoints(tmp_path, monkeypatch):
    Run(tmp_path / "old", Config(), "auto", lambda: IDENTITY).close()
    path = pretend_checkpoint(tmp_path / "old", 4)
    for _ in range(2):  # killed before its first own checkpoint: it branches off again
        run = Run(tmp_path / "new", Config(), path, lambda: IDENTITY)
        assert run.start == (4, tmp_path / "old" / "checkpoints" / "step-000004")
        run.close()
    run = Run(tmp_path / "new", Config(), "auto", lambda: IDENTITY)  # and auto knows where it came from
    assert run.start[0] == 4
    run.close()
    pretend_checkpoint(tmp_path / "new", 8)
    shutil.rmtree(path)  # pruned by the run it belongs to
    for resume in (path, "auto"):
        run = Run(tmp_path / "new", Config(), resume, lambda: IDENTITY)
        assert run.start == (8, tmp_path / "new" / "checkpoints" / "step-000008")
        run.close()


def test_an_evaluation_that_was_logged_but_not_remembered_is_not_logged_twice(tmp_path):
    run = Run(tmp_path, Config())
    for step in (1, 2):
        run.log(step, loss=1.0)
        run.log(step, dev_macro_f1=0.5)
    pretend_checkpoint(tmp_path, 2)
    write_checksummed(run.checkpoints / "best.json", {"step": 1, "dev_macro_f1": 0.5, "evaluated_through": 1})
    run.close()
    Run(tmp_path, Config()).close()
    kept = [(row["step"], "loss" in row) for row in lines(tmp_path / "metrics.jsonl")]
    assert kept == [(1, True), (1, False), (2, True)]


def segments(folder) -> list[tuple[int, int, float]]:
    path = folder / "history.json"
    if not path.exists():
        return []
    stored = json.loads(path.read_text(encoding="utf-8"))["segments"]
    assert stored[-1]["settings"] == json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return [(part["from_step"], part["settings"]["steps"], part["settings"]["lr"]) for part in stored]


def test_history_holds_the_settings_that_ran_and_going_back_forgets_later_ones(tmp_path):
    changed = partial(replace, Config(), accept_changed="lr")
    Run(tmp_path, Config()).close()
    Run(tmp_path, Config(steps=9)).close()  # nothing had run with 10
    assert segments(tmp_path) == []
    paths = [pretend_checkpoint(tmp_path, step) for step in (3, 6)]
    Run(tmp_path, changed(lr=5.0, steps=9)).close()
    assert segments(tmp_path) == [(0, 9, 1e-3), (6, 9, 5.0)]
    Run(tmp_path, changed(lr=7.0, steps=9)).close()  # again from step 6: nothing ran with 5.0
    assert segments(tmp_path) == [(0, 9, 1e-3), (6, 9, 7.0)]
    Run(tmp_path, changed(lr=7.0, steps=5)).close()  # step 6 is beyond them
    assert segments(tmp_path) == [(0, 9, 1e-3), (6, 9, 7.0)]
    Run(tmp_path, changed(lr=8.0, steps=9), paths[0]).close()
    assert segments(tmp_path) == [(0, 9, 1e-3), (3, 9, 8.0)]
    Run(tmp_path, changed(lr=1e-3, steps=9)).close()  # back to what it began with
    assert segments(tmp_path) == []


@pytest.mark.parametrize(("steps", "now", "unfinished"), [(9, 9, True), (9, 6, True), (6, 6, False), (6, 4, False)])
def test_a_lower_number_of_steps_finishes_no_run_and_unfinishes_none(tmp_path, steps, now, unfinished):
    Run(tmp_path, Config(steps=steps)).close()
    pretend_checkpoint(tmp_path, 6)
    Run(tmp_path, Config(steps=now)).close()
    assert is_unfinished(tmp_path) == unfinished


def test_a_run_is_finished_only_once_its_last_step_is_evaluated(tmp_path):
    Run(tmp_path, Config(steps=6)).close()
    assert not Run(tmp_path, Config(steps=6)).finished
    pretend_checkpoint(tmp_path, 6)
    run = Run(tmp_path, Config(steps=6))
    assert not run.finished and run.start[0] == 6
    run.close()
    write_checksummed(run.checkpoints / "best.json", {"step": 6, "dev_macro_f1": 0.5, "evaluated_through": 6})
    assert Run(tmp_path, Config(steps=6)).finished and not Run(tmp_path / "new", Config(steps=0)).finished
