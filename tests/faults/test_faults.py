"""The quick form of campaign.py: every kind of fault once or a few times, by the same functions."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from collections import Counter
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import campaign
import harness
import pytest

from taosr1.judge import load_judge
from taosr1.runtime.checkpoint import checkpoints

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked, which this system cannot do")


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_runs_that_are_killed_at_random_moments_end_as_if_they_had_not_been(world, tmp_path, signum):
    counts = campaign.kill(tmp_path, world, 4, 0, signum)
    assert counts["same result"] == counts["runs"] == 4


def test_no_damaged_file_of_a_checkpoint_is_loaded_in_silence(world, tmp_path):
    counts = campaign.damaged(tmp_path, world, ("sft",), places=(0.0, 0.5, 0.999), starts=False)
    assert counts["damaged files"] == counts["refused by --model"] + counts["moments, which --model does not read"] == 63


def test_a_damaged_checkpoint_is_gone_back_over_and_the_run_ends_alike(world, tmp_path):
    expected, _ = campaign.unbroken(world, "grpo", tmp_path)
    counts: Counter = Counter()
    for name, how in (("optimizer.safetensors", "flipped"), ("model.safetensors", "truncated"), ("manifest.json", "removed")):
        target = checkpoints(tmp_path / "run" / "checkpoints")[-1][1] / name
        (tmp_path / "run" / "checkpoints" / "best.json").unlink(missing_ok=True)
        harness.damage(target, how)
        campaign.must_fall_back("grpo", world["grpo"], tmp_path / "run", target, expected, counts)
    assert counts["went back and ended alike"] == 3


@pytest.mark.parametrize("stage", harness.STAGES)
def test_a_full_or_read_only_disk_ends_a_run_clearly_and_loses_nothing(world, tmp_path, stage):
    try:
        with harness.full_disk(tmp_path / "probe"):
            pass
    except PermissionError as error:
        pytest.skip(str(error))
    expected, _ = campaign.unbroken(world, stage, tmp_path / "whole")
    campaign.full(stage, world[stage], tmp_path / "full", expected, counts := Counter())
    assert counts["went on to the same result"] == 1


def test_a_file_that_may_not_grow_ends_a_save_clearly_and_the_checkpoint_before_it_stays(world, tmp_path):
    """The same without a file system of one's own: no file beyond 100 kB."""
    out, log = tmp_path / "run", tmp_path / "log"
    assert harness.run_whole("train.sft", [*world["sft"], "--steps", "4", "--out", out], log) == 0
    code = harness.run_whole("train.sft", [*world["sft"], "--steps", "8", "--out", out], log, partial(harness.limit_files, 100_000))
    said = log.read_text(encoding="utf-8")
    assert code == 1 and "step-000006 could not be written" in said and "File too large" in said and "the newest checkpoint is" in said
    assert [step for step, _ in checkpoints(out / "checkpoints")][-1] == 4 and "Traceback" not in said
    assert harness.run_whole("train.sft", [*world["sft"], "--steps", "8", "--out", out], log) == 0


def test_data_that_is_deleted_under_a_run_does_not_matter_until_it_is_continued(world, tmp_path):
    campaign.vanished(world["sft"], tmp_path / "vanished", Counter())


def test_a_second_process_on_a_run_folder_is_refused_while_the_first_works(world, tmp_path):
    out = tmp_path / "run"
    first = harness.forked("train.sft", [*world["sft"], "--steps", "400", "--out", out], tmp_path / "first")
    while not checkpoints(out / "checkpoints"):
        pass
    code = harness.run_whole("train.sft", [*world["sft"], "--out", out], tmp_path / "second")
    assert code == 1 and f"another process (id {first.pid}) is at work there" in (tmp_path / "second").read_text(encoding="utf-8")
    os.kill(first.pid, signal.SIGINT)
    assert harness.ended(first) == 130
    assert "is saved; the same command continues" in (tmp_path / "first").read_text(encoding="utf-8")


def test_memory_that_is_really_short_halves_a_micro_batch_and_the_run_ends_alike(world, tmp_path):
    """Limits on the address space make torch's own allocator fail; between one too narrow for half and one wide enough for all, bisect."""
    argv = [*world["sft"], "--steps", "2", "--save-every", "0", "--eval-every", "0", "--batch-size", "256", "--micro-batch-tok", "1000000", "--optimizer", "adamw", "--lr", "1e-3"]
    assert harness.run_whole("train.sft", [*argv, "--out", tmp_path / "whole"], tmp_path / "log") == 0
    too_narrow, enough = 120 * 2**20, 1200 * 2**20
    for number in range(12):
        room = (too_narrow * enough) ** 0.5
        limit = partial(harness.limit_memory, int(room))
        code = harness.run_whole("train.sft", [*argv, "--out", tmp_path / f"short-{number}"], tmp_path / f"log-{number}", limit)
        said = (tmp_path / f"log-{number}").read_text(encoding="utf-8")
        assert "Traceback" not in said, said
        halved = "out of memory in a micro-batch: the step is repeated once, with it halved" in said
        if code == 0 and halved:
            break
        if code == 0:
            enough = room
        else:
            assert code == 1 and halved and "out of memory in micro-batch" in said, said
            too_narrow = room
    else:
        pytest.fail(f"half a micro-batch is never enough between {too_narrow / 2**20:.1f} and {enough / 2**20:.1f} MiB")
    one, two = (harness.result_of("sft", tmp_path / name)["metrics"] for name in ("whole", f"short-{number}"))
    campaign.compare(one, two, "with short memory")


# --- Several ranks --------------------------------------------------------------------------------------------------------
def together(folder: Path, jobs: list[tuple[str, list]], processes: int = 2) -> None:
    """Run scripts one after another in one job of real ranks."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "jobs.json").write_text(json.dumps([[script, [str(word) for word in argv]] for script, argv in jobs]), encoding="utf-8")
    job = harness.torchrun(processes, harness.ROOT / "tests/faults/several_mains.py", folder / "jobs.json", log=folder / "log")
    assert job.wait(240) == 0, (folder / "log").read_text(encoding="utf-8")[-3000:]


def test_one_process_and_two_take_the_same_steps_whole_or_in_shards(world, tmp_path):
    jobs, stages = [], campaign.TRAINED
    for stage in stages:
        argv = [*campaign.world_of(world, stage)[stage], "--steps", "4", "--eval-every", "2"]
        assert harness.run_whole(f"train.{stage}", [*argv, "--out", tmp_path / f"one-{stage}"], tmp_path / "log") == 0
        jobs += [(f"train.{stage}", [*argv, "--out", tmp_path / f"ddp-{stage}"]), (f"train.{stage}", [*argv, "--fsdp", "--out", tmp_path / f"fsdp-{stage}"])]
    together(tmp_path / "two", jobs)
    for stage in stages:
        for kind in ("ddp", "fsdp"):
            campaign.compare_runs(stage, tmp_path / f"one-{stage}", tmp_path / f"{kind}-{stage}", f"{kind} {stage}")


def test_what_any_number_of_ranks_saved_any_other_number_continues(world, tmp_path):
    """Shards of two ranks on one without shards, and a whole checkpoint in shards: the metrics are those of one process throughout."""
    argv = [*campaign.world_of(world, "sft")["sft"], "--steps", "6", "--save-every", "2", "--eval-every", "6"]
    assert harness.run_whole("train.sft", [*argv, "--out", tmp_path / "one"], tmp_path / "log") == 0
    expected = harness.result_of("sft", tmp_path / "one")["metrics"]
    out = tmp_path / "mixed"

    def stop_after(step: int, *more: str) -> list:
        return [*argv, "--out", out, "--accept-changed", "world_size", *more, "--steps", step]

    # --steps decides the learning rates, so each part is told the whole length and stopped by rewinding.
    together(tmp_path / "a", [("train.sft", stop_after(6, "--fsdp"))])
    assert not list(out.glob("checkpoints/*/optimizer.safetensors"))
    rewind(out, 2)
    assert harness.run_whole("train.sft", stop_after(6), tmp_path / "log") == 0  # shards of two, read by one
    rewind(out, 4)
    assert list(out.glob("checkpoints/step-000004/optimizer.safetensors"))
    together(tmp_path / "b", [("train.sft", stop_after(6, "--fsdp"))])  # a whole one, read in shards
    campaign.compare(expected, harness.result_of("sft", out)["metrics"], "mixed ranks")


def rewind(out: Path, step: int) -> None:
    """Take away what lies after a step, as if the run had been killed there."""
    import shutil

    for later, path in checkpoints(out / "checkpoints"):
        if later > step:
            shutil.rmtree(path)
    (out / "checkpoints" / "best.json").unlink(missing_ok=True)


def test_random_numbers_of_kept_groups_hang_nobody(world, tmp_path):
    counts = campaign.groups(tmp_path, world, 4, random.Random(0).randint(0, 99))
    assert counts["runs"] == 8 and counts["steps with unequal shares"] > 0


def test_a_rank_that_is_killed_ends_the_job_and_one_rank_continues_it(world, tmp_path):
    counts = campaign.ranks(tmp_path, world, ("grpo",), ("ddp",))
    assert counts["a rank killed: ended clearly"] == counts["continued on one rank to the same numbers"] == 1


def test_a_disk_that_fills_up_under_shards_ends_all_ranks_clearly_and_keeps_the_last_checkpoint(world, tmp_path):
    try:
        with harness.full_disk(tmp_path / "small", "2500k") as place:
            argv = [*campaign.world_of(world, "sft")["sft"], "--keep-last", "99", "--fsdp", "--out", place / "run"]
            job = harness.torchrun(2, harness.ROOT / "train/sft.py", *argv, log=tmp_path / "log")
            assert job.wait(120) == 1
            said = (tmp_path / "log").read_text(encoding="utf-8")
            errors = [line for line in said.splitlines() if line.startswith("error: ")]
            assert errors and all("could not be written (" in line and "No space left" in line and "the newest checkpoint is" in line for line in errors), said
            load_judge(str(place / "run"))
    except PermissionError as error:
        pytest.skip(str(error))
