"""The quick form of campaign.py: every kind of fault once or a few times, by the same functions."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
from collections import Counter
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import campaign
import harness
import pytest

from taosr1.judge_model import load_judge
from taosr1.runtime.checkpoint import checkpoints

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked, which this system cannot do")


@pytest.fixture(scope="module")
def known(world, tmp_path_factory) -> dict[str, campaign.Unbroken]:
    """A short run of every stage that is not disturbed."""
    return campaign.unbroken_runs(world, tmp_path_factory.mktemp("unbroken"))


def may_mount(tmp_path: Path) -> bool:
    try:
        with harness.full_disk(tmp_path / "probe"):
            return True
    except PermissionError:
        return False


@pytest.mark.long
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_runs_that_are_killed_at_random_moments_end_as_if_they_had_not_been(world, known, tmp_path, signum):
    counts = campaign.kill(tmp_path, world, known, 4, 0, signum, most_kills=2)
    assert counts["same result"] == counts["runs"] == 4


def test_no_damaged_file_of_a_checkpoint_is_loaded_in_silence(world, known, tmp_path):
    counts = campaign.damaged(tmp_path, world, known, ("sft",), places=(0.0, 0.5, 0.999), starts=False)
    refused = counts["refused by --model"] + counts["moments, which --model does not read"]
    assert counts["damaged files"] == refused == 63


@pytest.mark.parametrize(
    ("name", "how"),
    [("optimizer.safetensors", "flipped"), ("model.safetensors", "truncated"), ("manifest.json", "removed")],
)
def test_a_run_goes_back_over_a_damaged_checkpoint_and_ends_alike(world, known, tmp_path, name, how):
    run = shutil.copytree(known["grpo"].out, tmp_path / "run")
    target = checkpoints(run / "checkpoints")[-1][1] / name
    (run / "checkpoints" / "best.json").unlink()
    harness.damage(target, how)
    campaign.must_fall_back("grpo", world["grpo"], run, target, known["grpo"].result, counts := Counter())
    assert counts["went back and ended alike"] == 1


@pytest.mark.parametrize("stage", harness.STAGES)
def test_a_full_or_read_only_disk_ends_a_run_clearly_and_loses_nothing(world, known, tmp_path, stage):
    if not may_mount(tmp_path):
        pytest.skip("mounting a tmpfs is not allowed here")
    campaign.full(stage, world[stage], tmp_path / "full", known[stage].result, counts := Counter())
    assert counts["went on to the same result"] == 1


def test_a_file_that_may_not_grow_ends_a_save_clearly_and_the_checkpoint_before_it_stays(world, tmp_path):
    """The same without a file system of one's own: no file beyond 100 kB."""
    argv, log = [*world["sft"], "--out", tmp_path / "run"], tmp_path / "log"
    assert harness.run_whole("train.sft", [*argv, "--steps", "4"], log) == 0
    assert harness.run_whole("train.sft", argv, log, partial(harness.limit_files, 100_000)) == 1
    said = log.read_text(encoding="utf-8")
    for text in ("step-000006 could not be written", "File too large", "the newest checkpoint is"):
        assert text in said
    assert [step for step, _ in checkpoints(tmp_path / "run" / "checkpoints")][-1] == 4 and "Traceback" not in said
    assert harness.run_whole("train.sft", argv, log) == 0


def test_data_that_is_deleted_under_a_run_does_not_matter_until_it_is_continued(world, tmp_path):
    campaign.vanished(world["sft"], tmp_path / "vanished", Counter())


def test_a_second_process_on_a_run_folder_is_refused_while_the_first_works(world, tmp_path):
    out = tmp_path / "run"
    first = harness.forked("train.sft", [*world["sft"], "--steps", "400", "--out", out], tmp_path / "first")
    campaign.wait_for(lambda: bool(checkpoints(out / "checkpoints")), 60)
    assert harness.run_whole("train.sft", [*world["sft"], "--out", out], tmp_path / "second") == 1
    said = (tmp_path / "second").read_text(encoding="utf-8")
    assert f"another process (id {first.pid}) is at work there" in said
    os.kill(first.pid, signal.SIGINT)
    assert harness.ended(first) == 130
    assert "is saved; the same command continues" in (tmp_path / "first").read_text(encoding="utf-8")


def test_memory_that_is_really_short_halves_a_micro_batch_and_the_run_ends_alike(world, tmp_path):
    """Limits on the address space make torch's own allocator fail; bisect for one wide enough for half a batch."""
    argv = [*world["sft"], "--steps", "2", "--save-every", "0", "--eval-every", "0", "--optimizer", "adamw"]
    argv += ["--lr", "1e-3", "--batch-size", "256", "--micro-batch-tok", "1000000"]
    assert harness.run_whole("train.sft", [*argv, "--out", tmp_path / "whole"], tmp_path / "log") == 0
    too_narrow, enough = 120 * 2**20, 1200 * 2**20
    for number in range(12):
        room, log = (too_narrow * enough) ** 0.5, tmp_path / f"log-{number}"
        limit = partial(harness.limit_memory, int(room))
        code = harness.run_whole("train.sft", [*argv, "--out", tmp_path / f"short-{number}"], log, limit)
        said = log.read_text(encoding="utf-8")
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
        pytest.fail(f"half a batch is never enough between {too_narrow / 2**20:.1f} and {enough / 2**20:.1f} MiB")
    one, two = (harness.result_of("sft", tmp_path / name)["metrics"] for name in ("whole", f"short-{number}"))
    campaign.compare(one, two, "with short memory")


# ---- Several ranks ---------------------------------------------------------------------------------------------------


def on_two_ranks(folder: Path, jobs: list[tuple[str, list]]) -> None:
    """Run scripts one after another in one job of two ranks."""
    folder.mkdir(parents=True, exist_ok=True)
    as_text = [[script, [str(word) for word in argv]] for script, argv in jobs]
    (folder / "jobs.json").write_text(json.dumps(as_text), encoding="utf-8")
    ranks = harness.forked_ranks(2, "several_mains", [folder / "jobs.json"], folder / "log")
    codes = [harness.ended(rank, 240) for rank in ranks]
    assert codes == [0, 0], (folder / "log").read_text(encoding="utf-8")[-3000:]


@pytest.mark.long
def test_one_process_and_two_take_the_same_steps_with_ddp_or_in_shards(world, tmp_path):
    jobs, stages = [], campaign.TRAINED
    for stage in stages:
        argv = [*campaign.world_of(world, stage), "--steps", "4", "--eval-every", "2"]
        assert harness.run_whole(f"train.{stage}", [*argv, "--out", tmp_path / f"one-{stage}"], tmp_path / "log") == 0
        jobs += [
            (f"train.{stage}", [*argv, "--out", tmp_path / f"ddp-{stage}"]),
            (f"train.{stage}", [*argv, "--fsdp", "--out", tmp_path / f"fsdp-{stage}"]),
        ]
    on_two_ranks(tmp_path / "two", jobs)
    for stage in stages:
        for kind in ("ddp", "fsdp"):
            one, two = tmp_path / f"one-{stage}", tmp_path / f"{kind}-{stage}"
            campaign.compare_runs(stage, one, two, f"{kind} {stage}")


def test_what_any_number_of_ranks_saved_any_other_number_continues(world, tmp_path):
    """Shards of two ranks continued by one process, and one file in shards: the metrics are those of one process."""
    argv = [*campaign.world_of(world, "sft"), "--steps", "6", "--save-every", "2", "--eval-every", "6"]
    assert harness.run_whole("train.sft", [*argv, "--out", tmp_path / "one"], tmp_path / "log") == 0
    expected = harness.result_of("sft", tmp_path / "one")["metrics"]
    out = tmp_path / "mixed"
    # --steps decides the learning rates, so each start is told the same number, and what it did too much is removed.
    mixed = [*argv, "--out", out, "--accept-changed", "world_size"]
    on_two_ranks(tmp_path / "a", [("train.sft", [*mixed, "--fsdp"])])
    assert not list(out.glob("checkpoints/*/optimizer.safetensors"))
    rewind(out, 2)
    assert harness.run_whole("train.sft", mixed, tmp_path / "log") == 0  # shards of two ranks, read by one
    rewind(out, 4)
    assert list(out.glob("checkpoints/step-000004/optimizer.safetensors"))
    on_two_ranks(tmp_path / "b", [("train.sft", [*mixed, "--fsdp"])])  # one file, read in shards
    campaign.compare(expected, harness.result_of("sft", out)["metrics"], "mixed ranks")


def rewind(out: Path, step: int) -> None:
    """Delete the checkpoints after a step, as if the run had been killed there."""
    for later, path in checkpoints(out / "checkpoints"):
        if later > step:
            shutil.rmtree(path)
    (out / "checkpoints" / "best.json").unlink(missing_ok=True)


def test_random_numbers_of_kept_groups_hang_nobody(world, tmp_path):
    counts = campaign.groups(tmp_path, world, 4, random.Random(0).randint(0, 99))
    assert counts["runs"] == 8 and counts["steps with unequal shares"] > 0


@pytest.mark.long
def test_a_rank_that_is_killed_ends_the_job_and_one_rank_continues_it(world, tmp_path):
    """With a real torchrun, which ends the other rank."""
    argv = [*campaign.world_of(world, "grpo"), "--steps", "10", "--eval-every", "10"]
    one = campaign.unbroken({"grpo": argv}, "grpo", tmp_path / "one").out
    campaign.lost_rank("grpo", "ddp", argv, one, tmp_path / "two", counts := Counter())
    assert counts["a rank killed: ended clearly"] == counts["continued on one rank to the same numbers"] == 1


def test_a_disk_that_fills_up_under_shards_ends_all_ranks_clearly_and_keeps_the_last_checkpoint(world, tmp_path):
    if not may_mount(tmp_path):
        pytest.skip("mounting a tmpfs is not allowed here")
    with harness.full_disk(tmp_path / "small", "2500k") as place:
        argv = [*campaign.world_of(world, "sft"), "--keep-last", "99", "--fsdp", "--out", place / "run"]
        ranks = harness.forked_ranks(2, "train.sft", argv, tmp_path / "log")
        assert [harness.ended(rank) for rank in ranks] == [1, 1]
        errors = [line for line in (tmp_path / "log").read_text(encoding="utf-8").splitlines() if "error: " in line]
        assert len(errors) == 2, errors
        for text in ("could not be written (", "No space left", "the newest checkpoint is"):
            assert all(text in line for line in errors), errors
        load_judge(str(place / "run"))
