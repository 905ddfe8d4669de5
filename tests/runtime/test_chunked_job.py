"""Jobs in chunks: no row lost or doubled, whatever is killed, cut, flipped, changed or started twice.

Most ranks here are real processes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import pytest
from chunked_worker import ROWS, SIZE, answer, chunk_file, finish, job_of

from taosr1.data.judgements import Judgement
from taosr1.runtime import chunked_job as module
from taosr1.runtime.chunk_files import ChunkFiles, chunk_line, parse_line
from taosr1.runtime.chunk_sizes import chunks_of
from taosr1.runtime.chunked_job import ChunkedJob, NothingToWriteError, job_identity, run_in_chunks
from taosr1.runtime.jsonl import write_jsonl

WORKER = Path(__file__).with_name("chunked_worker.py")
posix = pytest.mark.skipif(os.name != "posix", reason="ranks are kept apart by POSIX file locks")


def work(out: Path, rank: int = 0, world: int = 1, rows: int = ROWS, **identity: object) -> tuple[list[range], bool]:
    """Do a rank's share; returns the chunks it did and whether it merged."""
    with job_of(out, rank, world, rows, **identity) as job:
        did = finish(job)
        merging = job.to_merge()
        if merging:
            write_jsonl(out, job)
    return did, merging


def worker(out: Path, rank: int = 0, world: int = 1, ending: str = "works", after: int = 0) -> subprocess.Popen:
    """The same in a process of its own, see chunked_worker.py."""
    command = [sys.executable, WORKER, out, str(rank), str(world), ending, str(after)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def killed(*arguments) -> None:
    process = worker(*arguments)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.fixture
def asleep() -> Iterator:
    """asleep(out, rank, world, after): a rank that stops after so many chunks and stays there until the test ends."""
    started = []

    def start(out: Path, rank: int, world: int, after: int, ending: str = "asleep") -> subprocess.Popen:
        started.append(process := worker(out, rank, world, ending, after))
        while (line := process.stdout.readline()) != f"{ending}\n":
            assert line == "merged\n", process.stderr.read()
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def no_fsync(monkeypatch) -> None:
    """For tests that write some hundred times, where the disk would be most of the time."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "runs" / "out.jsonl"


def check_complete(out: Path, *beside: str) -> None:
    """OUT holds every answer once, in order, and nothing else is left in its folder."""
    found = [json.loads(line) for line in out.read_text(encoding="utf-8").split("\n")[:-1]]
    assert found == [answer(row) for row in range(ROWS)]
    assert {path.name for path in out.parent.iterdir()} == {out.name, *beside}


DONE = "out.jsonl.done.json"


# ---- who does what ---------------------------------------------------------------------------------------------------


def test_chunks_cover_every_row_once():
    for rows, size, start in ((0, 3, 0), (1, 3, 0), (9, 3, 5), (10, 3, 5)):
        assert [row for chunk in chunks_of(rows, size, start) for row in chunk] == list(range(start, start + rows))
        assert all(len(chunk) == size for chunk in chunks_of(rows, size, start)[:-1])


def test_one_process_does_all_in_order_and_leaves_only_the_output(out):
    assert work(out) == (chunks_of(ROWS, SIZE), True)
    check_complete(out)


def test_a_job_without_rows_is_done_at_once(tmp_path):
    assert work(tmp_path / "out.jsonl", rows=0) == ([], True)
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"] and (tmp_path / "out.jsonl").read_bytes() == b""


@posix
@pytest.mark.parametrize("world", [2, 3, 9])
def test_ranks_that_run_one_after_another_share_the_chunks_and_the_last_merges(out, world, capsys):
    results = [work(out, rank, world) for rank in reversed(range(world))]
    chunks = [chunk for did, _ in results for chunk in did]
    assert sorted(chunks, key=lambda chunk: chunk.start) == chunks_of(ROWS, SIZE)
    assert [merged for _, merged in results] == [False] * (world - 1) + [True]
    check_complete(out, DONE)
    assert "no process works on those of rank" in capsys.readouterr().err


@posix
def test_a_rank_that_finishes_first_leaves_the_output_to_the_last(out, asleep, capsys):
    asleep(out, 1, 2, 1)
    assert work(out, 0, 2)[1] is False and not out.exists()
    progress = "rank 0 of 2 has done its share, 4 of 6 chunks are done; the rank that finishes last writes the output"
    assert f"{out}: {progress}" in capsys.readouterr().err


@posix
def test_two_ranks_that_finish_at_once_merge_exactly_once(tmp_path):
    """Forty small jobs, both ranks finish at the same moment: one of them merges, the other finds it done."""
    rounds = 40
    program = f"""
import os, sys
from pathlib import Path
sys.path.insert(0, {str(WORKER.parent)!r})
from chunked_worker import finish, job_of, write_jsonl
os.fsync = lambda file: None  # a disk would be most of the time
folder, rank = Path({str(tmp_path)!r}), int(sys.argv[1])
for number in range({rounds}):
    out = folder / f"{{number}}.jsonl"
    with job_of(out, rank, 2) as job:
        finish(job)
        (folder / f"{{number}}-{{rank}}").touch()
        while not (folder / f"{{number}}-{{1 - rank}}").exists():
            pass
        if job.to_merge():
            write_jsonl(out, job)
            print(number)
"""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    ranks = [subprocess.Popen([sys.executable, "-c", program, str(rank)], **pipes) for rank in (0, 1)]
    found = [process.communicate(timeout=60) for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], found
    merged = [[int(number) for number in output.split()] for output, _ in found]
    assert sorted(merged[0] + merged[1]) == list(range(rounds))
    assert sum(errors.count("another rank has written the output") for _, errors in found) == rounds
    for number in range(rounds):
        assert (tmp_path / f"{number}.jsonl").read_bytes() == (tmp_path / "0.jsonl").read_bytes()
    assert (tmp_path / "0.jsonl").read_bytes().count(b"\n") == ROWS
    assert not list(tmp_path.glob("*.parts"))


# ---- killed, torn, flipped -------------------------------------------------------------------------------------------


@posix
@pytest.mark.parametrize("ending", ["killed", "torn"])
def test_what_was_done_before_sigkill_is_not_done_again(out, ending, capsys):
    killed(out, 0, 1, ending, 2)
    assert work(out) == (chunks_of(ROWS, SIZE)[2:], True)
    check_complete(out)
    said = capsys.readouterr().err
    assert f"{out}: rank 0 of 1 continues, 2 of 6 chunks are done" in said
    assert ("cut off an unfinished last line of 17 bytes" in said) is (ending == "torn")


@posix
def test_a_restart_may_have_another_number_of_ranks(out):
    """One rank, then two, then one, each time with somebody killed: together they do every chunk once."""
    killed(out, 0, 1, "killed", 1)  # chunk 0
    killed(out, 1, 2, "torn", 2)  # 1 and 3
    assert work(out, 0, 2) == ([range(8, 12), range(16, 20)], False)
    assert work(out) == ([range(20, 23)], True)
    check_complete(out)


@posix
def test_a_line_cut_anywhere_costs_its_own_chunk_and_no_other(out, no_fsync):
    killed(out, 0, 1, "killed", 3)
    before = chunk_file(out).read_bytes()
    last = before.rstrip(b"\n").rindex(b"\n") + 1
    for end in range(last, len(before)):
        chunk_file(out).write_bytes(before[:end])
        with job_of(out) as job:
            assert list(job.missing()) == chunks_of(ROWS, SIZE)[2:]
        assert chunk_file(out).read_bytes() == before[:last]
    assert work(out) == (chunks_of(ROWS, SIZE)[2:], True)
    check_complete(out)


@posix
def test_a_flipped_bit_never_becomes_an_answer(out, capsys, no_fsync):
    """One bit in every third byte of the chunks, line ends too: it is reported, and its chunk is done again."""
    killed(out, 0, 1, "killed", 2)
    before, header = chunk_file(out).read_bytes(), (chunk_file(out).parent / "job.json").read_bytes()
    for place in range(0, len(before), 3):
        chunk_file(out).parent.mkdir(exist_ok=True)
        (chunk_file(out).parent / "job.json").write_bytes(header)
        damaged = bytearray(before)
        damaged[place] ^= 1 << place % 8
        chunk_file(out).write_bytes(damaged)
        did, merged = work(out)
        assert merged and len(did) in (5, 6)
        check_complete(out)
        said = capsys.readouterr().err
        assert "checksum does not match): its chunk is done again" in said or "cut off an unfinished last line" in said
        out.unlink()


def test_every_single_flipped_bit_of_a_line_is_noticed():
    line = chunk_line(37, b'[{"grade": 4, "probs": [0.25, 0.5]}]')
    assert parse_line(line) == (37, b'[{"grade": 4, "probs": [0.25, 0.5]}]')
    for place in range(8 * len(line)):
        damaged = bytearray(line)
        damaged[place // 8] ^= 1 << place % 8
        assert parse_line(bytes(damaged)) is None


def test_another_chunk_in_a_chunks_place_is_noticed(tmp_path):
    files, path = ChunkFiles(tmp_path), tmp_path / "rank-00000.jsonl"
    files.open_own(path)
    files.add(0, [1])
    assert files.read(0) == [1]
    path.write_bytes(chunk_line(5, b"[1]"))
    with pytest.raises(ValueError, match="damaged at byte 0"):
        files.read(0)
    files.close()


def test_damage_while_merging_is_an_error_that_keeps_the_old_output_and_the_other_chunks(out):
    out.parent.mkdir()
    out.write_text("old\n")
    message = r"rank-00000.jsonl: damaged at byte \d+ since it was written; the same command does that chunk again"
    with pytest.raises(ValueError, match=message):
        with job_of(out) as job:
            finish(job)
            assert job.to_merge()
            chunk_file(out).write_bytes(chunk_file(out).read_bytes().replace(b"361", b"367"))
            write_jsonl(out, job)
    assert out.read_text() == "old\n"
    assert work(out) == ([range(16, 20)], True)
    check_complete(out)


@posix
def test_a_crash_between_the_new_output_and_the_end_of_the_chunks_is_harmless(out):
    for world, beside in ((1, ()), (2, (DONE,))):
        if world == 2:
            work(out, 1, 2)
        killed(out, 0, world, "killed while merging")
        bytes_before = out.read_bytes()
        assert chunk_file(out).exists()
        assert work(out, 0, world) == ([], True) and out.read_bytes() == bytes_before
        check_complete(out, *beside)


@pytest.mark.parametrize("world", [1, pytest.param(2, marks=posix)])
@pytest.mark.parametrize("left", range(7))
def test_a_crash_anywhere_in_the_removal_of_the_chunks_is_harmless(out, world, left, monkeypatch):
    """Killed when `left` of the folder's files are still there: the next start finds the job done, or no job."""
    if world == 2:
        work(out, 1, 2)

    def delete(paths) -> None:
        for path in list(paths):
            if path.parent.name.endswith(".parts") and len(list(path.parent.iterdir())) <= left:
                raise KeyboardInterrupt
            path.unlink(missing_ok=True)

    with monkeypatch.context() as patch:
        patch.setattr(module, "delete", delete)
        try:
            work(out, 0, world)
        except KeyboardInterrupt:
            pass
    before = out.read_bytes()
    work(out, 0, world)
    assert out.read_bytes() == before
    check_complete(out, *[DONE] * (world == 2))


@posix
def test_a_rank_that_waits_for_a_removal_that_is_killed_finishes_it(out, monkeypatch, capsys):
    """Rank 0 merged and died when it had deleted job.json alone; rank 1 has done its share and asks for the lock."""
    with job_of(out, 1, 2) as job:
        finish(job)
        with pytest.raises(KeyboardInterrupt), monkeypatch.context() as patch:
            patch.setattr(module, "delete", _dies_after_job_file)
            work(out, 0, 2)
        assert chunk_file(out, 1).exists() and not (chunk_file(out).parent / "job.json").exists()
        assert job.to_merge() is False
    check_complete(out, DONE)
    assert "another rank has written the output" in capsys.readouterr().err


def _dies_after_job_file(paths) -> None:
    for path in list(paths):
        if path.name != "job.json":
            raise KeyboardInterrupt
        path.unlink()


@posix
def test_a_merge_that_was_killed_leaves_no_temporary_output_behind(out):
    killed(out, 0, 1, "killed", 2)
    for torn in (".out.jsonl.123.tmp", ".out.jsonl.done.json.4.tmp"):
        (out.parent / torn).write_text("torn")
    (out.parent / ".out.jsonl.gz.123.tmp").write_text("somebody else's")
    work(out)
    check_complete(out, ".out.jsonl.gz.123.tmp")


@posix
@pytest.mark.parametrize(("world", "bytes_free", "when"), [(1, 300, "at work"), (2, 700, "merging")])
def test_a_full_disk_is_an_error_that_keeps_the_old_output_and_the_finished_chunks(out, world, bytes_free, when):
    """A limit on the size of a file: writing fails inside a line, as on a full disk."""
    out.parent.mkdir()
    out.write_text("old\n")
    if world == 2:
        work(out, 1, 2)
    process = worker(out, 0, world, "full disk", bytes_free)
    said = process.communicate()[1]
    assert process.returncode == 1 and "OSError: [Errno 27] File too large" in said and out.read_text() == "old\n"
    done = len(chunk_file(out).read_bytes().split(b"\n")) - 1
    kept = f"{done if world == 1 else 6} of 6 chunks are done and kept in {chunk_file(out).parent}"
    assert f"stopped; {kept}: the same command continues" in said
    assert 0 < done and chunk_file(out).read_bytes().endswith(b"\n")  # the torn line was taken back
    did, merged = work(out, 0, world)
    assert merged and len(did) == (6 - done if when == "at work" else 0)
    check_complete(out, *[DONE] * (world == 2))


# ---- another job, or the same one twice ------------------------------------------------------------------------------


def test_another_job_is_refused_with_what_differs_and_begins_once_the_folder_is_gone(out, capsys):
    with pytest.raises(RuntimeError):
        with job_of(out, beta=0.5, judge="a1") as job:
            job.add(next(job.missing()), [1])
            raise RuntimeError
    with pytest.raises(ValueError) as caught:
        work(out, beta=0.4, judge="a1", rows=30)
    said = str(caught.value)
    assert f"{out}.parts holds an unfinished job with other settings or input" in said
    assert "delete that folder to begin again" in said
    assert "(beta was 0.5 and is now 0.4; rows was 23 and is now 30)" in said
    for path in chunk_file(out).parent.iterdir():
        path.unlink()
    assert work(out, beta=0.4)[1]


def test_a_job_of_which_nothing_was_finished_does_not_block_another(out, monkeypatch):
    with pytest.raises(KeyboardInterrupt), monkeypatch.context() as patch:
        patch.setattr(ChunkedJob, "_remove_unused", lambda self: None)  # killed
        with job_of(out, beta=0.5):
            raise KeyboardInterrupt
    assert (chunk_file(out).parent / "job.json").exists()
    assert work(out)[1]
    check_complete(out)


def test_chunks_without_a_job_file_are_not_used(out):
    """What a crash left of the removal of a job; another one begins."""
    chunk_file(out).parent.mkdir(parents=True)
    for rank in (0, 3):
        chunk_file(out, rank).write_bytes(chunk_line(1, b'[{"row": 4, "answer": "of another job"}]'))
    assert work(out) == (chunks_of(ROWS, SIZE), True)
    check_complete(out)


def test_a_damaged_job_file_is_named(out):
    chunk_file(out).parent.mkdir(parents=True)
    (chunk_file(out).parent / "job.json").write_text("{")
    with pytest.raises(ValueError, match=r"job.json is not valid JSON: .*: delete the folder .*.parts to begin again"):
        work(out)


@posix
def test_the_same_rank_cannot_work_twice_until_it_is_dead(out, asleep):
    first = asleep(out, 0, 1, 2)
    message = rf"rank 0 of 1 \(process {first.pid} on .*\) is working on it already: end that process"
    with pytest.raises(ValueError, match=message):
        work(out)
    first.kill()
    first.wait()
    assert work(out) == (chunks_of(ROWS, SIZE)[2:], True)
    check_complete(out)


@posix
def test_ranks_of_another_number_cannot_join(out, asleep):
    other = asleep(out, 1, 2, 0)
    for rank, world in ((0, 1), (2, 3), (1, 3)):
        message = rf"rank 1 of 2 \(process {other.pid} on .*\) is working on it: .* continue as rank {rank} of {world}"
        with pytest.raises(ValueError, match=message):
            work(out, rank, world)
    assert work(out, 0, 2)[1] is False
    with pytest.raises(ValueError, match="holds an unfinished job with other settings or input"):
        work(out, 0, 2, beta=1)


@posix
def test_a_rank_that_starts_late_finds_its_job_done_and_deleting_the_output_does_it_again(out, capsys):
    for rank in (0, 1):
        work(out, rank, 2)
    before = out.stat().st_mtime_ns
    assert work(out, 0, 2) == ([], False) and work(out, 1, 2) == ([], False)
    assert out.stat().st_mtime_ns == before
    assert f"rank 1 of 2 finds the job done ({out}.done.json)" in capsys.readouterr().err
    check_complete(out, DONE)
    assert work(out, 0, 2, beta=1) == ([range(0, 4), range(8, 12), range(16, 20)], False)  # another job is not done
    assert work(out, 1, 2, beta=1)[1]
    out.write_text("something else\n")
    assert len(work(out, 0, 2, beta=1)[0]) == 3 and work(out, 1, 2, beta=1)[1]
    check_complete(out, DONE)
    assert work(out, beta=1) == (chunks_of(ROWS, SIZE), True)  # one process alone begins again
    check_complete(out)


@posix
def test_a_rank_that_has_nothing_to_do_blocks_no_other(out):
    """Two ranks, one chunk: whichever comes first, rank 0 does it and merges."""
    assert work(out, 1, 2, rows=3) == ([], False) and not chunk_file(out).parent.exists()
    assert work(out, 0, 2, rows=3) == ([range(3)], True)
    assert work(out, 1, 2, rows=3) == ([], False) and not chunk_file(out).parent.exists()


@posix
def test_a_folder_that_is_deleted_under_a_rank_is_an_error_not_a_success(out):
    with pytest.raises(ValueError, match=r"out.jsonl.parts was removed while rank 0 of 1 was working"):
        with job_of(out) as job:
            finish(job)
            for path in chunk_file(out).parent.iterdir():
                path.unlink()
            chunk_file(out).parent.rmdir()
            job.to_merge()
    assert list(out.parent.iterdir()) == []
    work(out)
    check_complete(out)


@posix
def test_a_rank_whose_folder_is_another_jobs_by_now_changes_nothing(out):
    with pytest.raises(ValueError, match=r"out.jsonl.parts was removed while rank 0 of 1 was working"):
        with job_of(out) as job:
            finish(job)
            for path in chunk_file(out).parent.iterdir():
                path.unlink()
            killed(out, 0, 1, "killed", 5)  # the other job
            job.to_merge()
    assert not out.exists() and work(out) == ([range(20, 23)], True)
    check_complete(out)


@posix
def test_a_process_that_starts_during_a_merge_waits_and_begins_again(out):
    with job_of(out) as job:
        finish(job)
        assert job.to_merge()
        newcomer = worker(out)
        time.sleep(0.3)
        assert newcomer.poll() is None
        write_jsonl(out, [])
    said = newcomer.communicate(timeout=30)
    assert said == ("merged\n", "")
    check_complete(out)


@posix
def test_a_rank_that_achieves_nothing_leaves_the_folder_to_one_that_is_working(out, asleep):
    asleep(out, 1, 2, 0)
    before = sorted(chunk_file(out).parent.iterdir())
    with pytest.raises(RuntimeError), job_of(out, 0, 2):
        raise RuntimeError
    assert set(before) < set(chunk_file(out).parent.iterdir())


@posix
def test_a_rank_that_waits_for_a_merge_that_is_killed_merges_itself(out, asleep):
    """Rank 1 has finished and waits for the lock while rank 0 merges; rank 0 dies there, and rank 1 takes over."""
    work(out, 1, 2)
    first = asleep(out, 0, 2, 0, "asleep while merging")
    second = worker(out, 1, 2)
    time.sleep(0.3)
    assert second.poll() is None and not out.exists()
    first.kill()
    assert second.communicate(timeout=30)[0] == "merged\n"
    check_complete(out, DONE)


def test_an_attempt_that_achieves_nothing_leaves_no_trace(out):
    with pytest.raises(RuntimeError, match="out of memory"):
        with job_of(out):
            raise RuntimeError("out of memory")
    with pytest.raises(ValueError, match="not JSON compliant"):
        with job_of(out) as job:
            job.add(next(job.missing()), [float("nan")])
    assert list(out.parent.iterdir()) == []


def test_answers_that_lead_to_no_output_are_removed(out):
    with pytest.raises(ValueError, match="nothing to write"):
        with job_of(out) as job:
            finish(job)
            assert job.to_merge()
            raise NothingToWriteError("nothing to write")
    assert list(out.parent.iterdir()) == []


def test_a_folder_as_output_is_refused_before_any_work(tmp_path):
    with pytest.raises(ValueError, match="is a folder, expected a file name to write: check --out"):
        work(tmp_path)


def test_a_file_where_the_chunks_belong_is_an_error(tmp_path):
    (tmp_path / "out.jsonl.parts").write_text("not ours")
    with pytest.raises(OSError, match="out.jsonl.parts"):
        work(tmp_path / "out.jsonl")


# ---- the driver ------------------------------------------------------------------------------------------------------


def numbered(rows: list[str], start: int) -> list[dict]:
    return [{"row": start + place, "text": text} for place, text in enumerate(rows)]


def test_answers_come_in_the_order_of_the_rows_as_often_as_wanted_with_a_file_or_without(out):
    rows, seen = list("abcdefg"), []

    def work(rows: list[str], start: int) -> list[dict]:
        seen.append("".join(rows))
        return numbered(rows, start)

    for name in ("", out):
        with run_in_chunks(name, {"job": "test"}, rows, 3, work, "test", boundary=4) as answers:
            assert list(answers) == list(answers) == numbered(rows, 0)
            if name:
                write_jsonl(name, answers)
    assert seen == ["abc", "d", "efg"] * 2 and [path.name for path in out.parent.iterdir()] == [out.name]


@posix
def test_a_rank_that_leaves_the_output_to_another_gets_none(out, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        with run_in_chunks(out, {"job": "test"}, list("abcdefg"), 3, numbered, "test") as answers:
            assert (answers is None) == (rank == 0)
            if answers is not None:
                write_jsonl(out, answers)
    with pytest.raises(ValueError, match="--out is missing: the 2 ranks share their answers through files beside it"):
        with run_in_chunks("", {}, list("abc"), 2, numbered, "test"):
            pass


def test_an_unfinished_job_of_the_version_before_is_refused_in_one_line(out):
    """Its chunks hold lists of values instead of objects with names."""
    with pytest.raises(KeyboardInterrupt), job_of(out) as job:
        finish(job)
        raise KeyboardInterrupt
    job_file = chunk_file(out).parent / "job.json"
    stored = json.loads(job_file.read_text())
    del stored["format"]
    job_file.write_text(json.dumps(stored) + "\n")
    with pytest.raises(ValueError) as caught:
        work(out)
    assert str(caught.value) == (
        f"{out}.parts holds an unfinished job of another version of taosr1: finish it with that version, choose "
        "another --out, or delete that folder to begin again"
    )


# ---- what makes two jobs the same ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Config:
    beta: float | None = None
    out: str = "a.jsonl"
    device: str = "cpu"


def test_the_identity_of_a_job_is_its_settings_and_the_content_of_its_rows():
    row = Judgement("boots", "red boots", extra={"split": "test"})
    identity = job_identity("score", Config(), [row], judge="a1", beta=0.5)
    assert identity["beta"] == 0.5 and identity["judge"] == "a1" and "out" not in identity and "device" not in identity
    assert job_identity("score", Config(out="b.jsonl", device="cuda"), [row], judge="a1", beta=0.5) == identity
    others = [replace(row, title="red boot"), replace(row, grade=4), replace(row, extra={"split": "train"})]
    for changed in ([], [row, row], *([other] for other in others)):
        assert job_identity("score", Config(), changed, judge="a1", beta=0.5) != identity
    assert job_identity("sample", Config(), [row], judge="a1", beta=0.5) != identity
    assert job_identity("score", Config(), [{"query": "a"}]) != job_identity("score", Config(), [{"query": "b"}])
