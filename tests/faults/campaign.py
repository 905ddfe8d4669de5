"""The long form of the fault tests: break runs on purpose, many times, and count the outcomes.

    python tests/faults/campaign.py                          # everything: about an hour on two cores
    python tests/faults/campaign.py --only kill --runs 200

kill    SIGKILL at random moments of short runs of every stage; each is started again until it ends, by the same command
term    the same with SIGTERM
damage  every file of a checkpoint truncated, extended, bit-flipped, removed, exchanged
disk    a full disk, a read-only one, a data file that is deleted, in every stage
ranks   one process against two (DDP, FSDP2) in every stage; a rank that is killed in the middle of a step
groups  two ranks with random numbers of kept groups, none at all among them

Each part ends with a line of counts; any failure is named, its folder is kept, and the exit code is 1.
tests/faults/test_faults.py runs the same functions with small numbers.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from harness import (
    DAMAGES,
    ROOT,
    STAGES,
    damage,
    ended,
    forked,
    forked_ranks,
    full_disk,
    make_world,
    out_of,
    result_of,
    run_whole,
    script_of,
    torchrun,
    worker_of,
)
from tqdm import tqdm

from taosr1.judge_model import load_judge
from taosr1.runtime.checkpoint import checkpoints
from taosr1.runtime.cli import option, parse_config
from taosr1.runtime.files import DamagedError

TRAINED = ("sft", "dpo", "grpo")


@dataclass(frozen=True)
class Config:
    only: str = option("", "parts to run, separated by commas (none: all)")
    runs: int = option(200, "runs of kill and of term, and of groups half as many")
    folder: str = option("runs/faults", "where everything is written; emptied first")
    seed: int = option(0, "seed of the random moments")


class Broken(AssertionError):
    """A run did what it must not do; the message says which and where to look."""


def expect(condition: bool, message: str, log: Path | None = None) -> None:
    if not condition:
        tail = f"\n{log.read_text(encoding='utf-8', errors='replace')[-2000:]}" if log and log.exists() else ""
        raise Broken(message + tail)


# ---- Kills -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Unbroken:
    """A stage's short run that was not disturbed: its result, its output, and how long it took."""

    result: dict
    out: Path
    length_s: float


def unbroken(world: dict[str, list[str]], stage: str, folder: Path) -> Unbroken:
    folder.mkdir(parents=True, exist_ok=True)
    started, out = time.monotonic(), out_of(stage, folder)
    code = run_whole(script_of(stage), [*world[stage], "--out", out], folder / "log")
    expect(code == 0, f"{stage}: the undisturbed run ended with {code}", folder / "log")
    return Unbroken(result_of(stage, out), out, time.monotonic() - started)


def unbroken_runs(world: dict[str, list[str]], folder: Path) -> dict[str, Unbroken]:
    return {stage: unbroken(world, stage, folder / stage) for stage in STAGES}


def went_on_from(step: int, said: str) -> bool:
    """Whether a start continued from this step, or found its run finished there."""
    return f"continuing from step {step} " in said or f"already finished at step {step};" in said


def disturbed(
    argv: list,
    stage: str,
    folder: Path,
    known: Unbroken,
    signum: int,
    kills: int,
    chance: random.Random,
    counts: Counter,
) -> None:
    """One run that is killed so many times at random moments and must end as if it had not been."""
    folder.mkdir(parents=True)
    length_s = known.length_s
    out, log = out_of(stage, folder), folder / "log"
    argv = [*argv, "--out", out]
    for _ in range(kills):
        newest = max(checkpoints(out / "checkpoints"), default=(0, None))[0] if stage in TRAINED else 0
        log.write_text("")  # a kill may come before the child opens it
        child = forked(script_of(stage), argv, log)
        moment = chance.uniform(0, length_s)
        if chance.random() < 0.7:  # starting takes most of a short run: these wait until it is at work
            moment = chance.uniform(0, length_s / 5)
            wait_for(lambda: "0%|" in log.read_text(encoding="utf-8"), length_s * 4)
        time.sleep(moment)
        with contextlib.suppress(ProcessLookupError):  # it has ended already
            os.kill(child.pid, signum)
        code = ended(child)
        counts[f"ended with {code}"] += 1
        # Before Python has our handler a SIGTERM kills; that it may.
        expect(code in (0, -signum, 128 + signum), f"{stage} in {folder}: exit code {code} after signal {signum}", log)
        said = log.read_text(encoding="utf-8")
        expect("Traceback" not in said, f"{stage} in {folder}: a bare traceback", log)
        if newest and "step/s" in said:
            problem = f"{stage} in {folder}: did not continue from step {newest}"
            expect(went_on_from(newest, said), problem, log)
            counts["continued from the newest step"] += 1
        if code == 0:
            break
    newest = max(checkpoints(out / "checkpoints"), default=(0, None))[0] if stage in TRAINED else 0
    log.unlink()
    code = run_whole(script_of(stage), argv, log)
    expect(code == 0, f"{stage} in {folder}: the last start ended with {code}", log)
    if newest:
        problem = f"{stage} in {folder}: did not continue from step {newest}"
        expect(went_on_from(newest, log.read_text(encoding="utf-8")), problem, log)
        counts["continued from the newest step"] += 1
    problem = f"{stage} in {folder}: the result is not that of the undisturbed run"
    expect(result_of(stage, out) == known.result, problem, log)
    hidden = [path.name for path in folder.rglob(".*")]
    left = [name for name in hidden if name.startswith((".writing-", ".deleting-")) or name.endswith(".tmp")]
    expect(not left, f"{stage} in {folder}: left behind {left}")
    counts["same result"] += 1
    shutil.rmtree(folder)


def kill(folder: Path, world: dict, known: dict, runs: int, seed: int, signum: int, most_kills: int = 3) -> Counter:
    """Random kills, the stages by turns. known: as `unbroken_runs` returns it."""
    counts, chance = Counter(), random.Random(seed)
    for number in tqdm(range(runs), desc=signal.Signals(signum).name, unit="run", disable=None):
        stage = STAGES[number % len(STAGES)]
        kills = chance.randint(1, most_kills)
        disturbed(
            world[stage], stage, folder / f"{number:03d}-{stage}", known[stage], signum, kills, chance, counts
        )
        counts["runs"] += 1
    return counts


def wait_for(happened: Callable[[], bool], patience_s: float) -> None:
    deadline = time.monotonic() + patience_s
    while not happened() and time.monotonic() < deadline:
        time.sleep(0.002)


# ---- Damage ----------------------------------------------------------------------------------------------------------


def damaged(
    folder: Path,
    world: dict,
    known: dict[str, Unbroken],
    stages: tuple[str, ...] = TRAINED,
    *,
    places: tuple[float, ...] = (0.0, 0.3, 0.99),
    starts: bool = True,
) -> Counter:
    """Every file of a finished run's newest checkpoint, damaged in every way: nothing that reads it may accept it.

    starts: also start the stage's script on each, with --resume auto and --resume PATH; else only load the judge.
    """
    counts: Counter = Counter()
    for stage in stages:
        run = known[stage].out
        (_, before), (_, newest) = checkpoints(run / "checkpoints")[-2:]
        files = sorted(path.relative_to(newest) for path in newest.rglob("*") if path.is_file())
        places_of = {how: places if how == "flipped" else places[-2:][:1] for how in DAMAGES}
        cases = [(name, how, place) for name in files for how in DAMAGES for place in places_of[how]]
        for number, (name, how, place) in enumerate(tqdm(cases, desc=f"damage {stage}", unit="file", disable=None)):
            copy = folder / f"{stage}-{number}" / "run"
            shutil.copytree(run, copy)
            (copy / "checkpoints" / "best.json").unlink()  # so that --model RUN means the newest
            target = copy / "checkpoints" / newest.name / name
            twin = before / name
            if how == "swapped" and twin.read_bytes() == target.read_bytes():
                twin = before / "state.json"  # a file that is alike in all checkpoints is exchanged for another one
            damage(target, how, twin, place)
            must_refuse(copy, str(name), counts)
            if starts:
                must_fall_back(stage, world[stage], copy, target, known[stage].result, counts)
            counts["damaged files"] += 1
            shutil.rmtree(copy.parent)
    return counts


def must_refuse(run: Path, name: str, counts: Counter) -> None:
    """Loading the run's judge names the damaged file; damaged moments do not concern it."""
    try:
        load_judge(str(run))
    except (DamagedError, FileNotFoundError) as error:
        expect(name in str(error), f"{run}: {name} is damaged, but the error says {error}")
        counts["refused by --model"] += 1
    else:
        expect(name.startswith("optimizer"), f"{run}: loaded in silence although {name} is damaged")
        counts["moments, which --model does not read"] += 1


def must_fall_back(stage: str, argv: list[str], run: Path, target: Path, expected: dict, counts: Counter) -> None:
    """--resume PATH fails and names the file; auto goes back one checkpoint, says so, and ends with the same result."""
    log, checkpoint = run.parent / "log", target.parents[len(target.relative_to(run).parts) - 3]
    code = run_whole(script_of(stage), [*argv, "--out", run, "--resume", checkpoint], log)
    said = log.read_text(encoding="utf-8")
    named = target.name in said and "Traceback" not in said
    expect(code == 1 and named, f"{run}: --resume PATH ended with {code}", log)
    counts["refused by --resume PATH"] += 1
    log.unlink()
    code = run_whole(script_of(stage), [*argv, "--out", run], log)
    said = log.read_text(encoding="utf-8")
    reported = target.name in said and "going back to the checkpoint before it" in said
    expect(code == 0 and reported, f"{run}: --resume auto ended with {code}", log)
    found = result_of(stage, run)
    # best.json was deleted, so it knows the last evaluation only.
    equal = all(found[name] == expected[name] for name in ("metrics", "last"))
    expect(equal, f"{run}: another result after going back", log)
    counts["went back and ended alike"] += 1


# ---- Disks -----------------------------------------------------------------------------------------------------------


def disk(folder: Path, world: dict, known: dict[str, Unbroken]) -> Counter:
    """A disk that fills up while a stage runs, one that is read-only, and data that is gone when a run is continued."""
    counts: Counter = Counter()
    folder.mkdir(parents=True)
    for stage in STAGES:
        full(stage, world[stage], folder / f"full-{stage}", known[stage].result, counts)
    vanished(world["sft"], folder / "vanished", counts)
    return counts


def full(stage: str, argv: list[str], folder: Path, expected: dict, counts: Counter) -> None:
    log = folder.with_name(f"{folder.name}.log")
    size = "84k" if stage == "mine" else "2500k"  # a part of the chunks; two or three checkpoints
    with full_disk(folder, size) as place:
        out = out_of(stage, place)
        code = run_whole(script_of(stage), [*argv, "--out", out], log)
        said = log.read_text(encoding="utf-8")
        clear = "No space left" in said and "Traceback" not in said
        expect(code == 1 and clear, f"{stage} on a full disk ended with {code}", log)
        counts["full disk: clear end"] += 1
        if stage in TRAINED:
            expect(bool(checkpoints(out / "checkpoints")), f"{stage}: the disk was to hold a checkpoint", log)
            load_judge(str(out))
            counts["full disk: last checkpoint valid"] += 1
        else:
            kept = re.search(r"[1-9]\d* of \d+ chunks are done and kept", said)  # how many rows a chunk has is measured
            expect(kept is not None, f"{stage}: the disk was to hold a chunk", log)
        os.system(f"mount -o remount,ro {place}")
        log.unlink()
        code = run_whole(script_of(stage), [*argv, "--out", out], log)
        said = log.read_text(encoding="utf-8")
        clear = "Read-only" in said and "Traceback" not in said
        expect(code == 2 and clear, f"{stage} on a read-only disk ended with {code}", log)
        counts["read-only: clear end"] += 1
        os.system(f"mount -o remount,rw,size=64m {place}")
        code = run_whole(script_of(stage), [*argv, "--out", out], log)
        same = code == 0 and result_of(stage, out) == expected
        expect(same, f"{stage}: another result after the disk was full", log)
        counts["went on to the same result"] += 1


def vanished(argv: list[str], folder: Path, counts: Counter) -> None:
    """A run has its data in memory, so deleting the file does not matter to it; continuing says what is missing."""
    from taosr1.data.judgements import write_judgements
    from taosr1.synthetic.shop import read_pool

    folder.mkdir()
    data, out, log = folder / "rows.jsonl", folder / "run", folder / "log"
    write_judgements(data, read_pool("reasoned", 60))
    argv = [*argv, "--data", data, "--out", out]
    child = forked("train.sft", argv, log)
    while not checkpoints(out / "checkpoints"):
        time.sleep(0.005)
    data.unlink()
    code = ended(child)
    expect(code == 0, f"a run whose data was deleted ended with {code}", log)
    code = run_whole("train.sft", argv, log)
    named = f"no file at {data}" in log.read_text(encoding="utf-8")
    expect(code == 1 and named, f"continued without its data it ended with {code}", log)
    counts["data deleted: run ends, continuing is refused"] += 1


# ---- Ranks -----------------------------------------------------------------------------------------------------------


def ranks(folder: Path, world: dict) -> Counter:
    """One process and two take the same steps; then a rank is killed in the middle of one, and one rank continues."""
    counts: Counter = Counter()
    for stage in TRAINED:
        argv = world_of(world, stage)
        one = unbroken({stage: argv}, stage, folder / f"one-{stage}").out
        for kind in ("ddp", "fsdp"):
            two, log = folder / f"{kind}-{stage}", folder / f"{kind}-{stage}.log"
            sharded = ["--fsdp"] if kind == "fsdp" else []
            codes = [ended(rank) for rank in forked_ranks(2, script_of(stage), [*argv, *sharded, "--out", two], log)]
            expect(codes == [0, 0], f"{stage} {kind} on two ranks failed", log)
            compared = compare_runs(stage, one, two, f"{stage} {kind}")
            counts["two ranks equal one to 1e-5" + ("" if compared else ", up to a token on a border")] += 1
            lost_rank(stage, kind, argv, one, folder / f"{kind}-{stage}-lost", counts)
    return counts


def lost_rank(stage: str, kind: str, argv: list, one: Path, out: Path, counts: Counter) -> None:
    """Kill rank 1 of two, which torchrun started, after the first checkpoint; then one rank continues to the end."""
    log = out.with_name(f"{out.name}.log")
    argv = [*argv, "--out", out, *(["--fsdp"] if kind == "fsdp" else [])]
    job = torchrun(2, ROOT / f"train/{stage}.py", *argv, log=log)
    while not checkpoints(out / "checkpoints"):
        expect(job.poll() is None, f"{out}: the job ended by itself", log)
        time.sleep(0.01)
    started = time.monotonic()
    os.kill(worker_of(job, 1), signal.SIGKILL)
    code = job.wait(60)
    said = log.read_text(encoding="utf-8")
    explained = "another rank is gone" in said or "exitcode: -9" in said
    expect(code != 0 and explained, f"{out}: lost a rank and ended with {code}", log)
    counts["a rank killed: ended clearly"] += 1
    print(f"{stage} {kind}: the job ended {time.monotonic() - started:.1f} s after a rank was killed")
    argv += ["--accept-changed", "world_size"]
    if kind == "ddp":
        code = run_whole(script_of(stage), argv, log)
    else:
        (code,) = [ended(rank) for rank in forked_ranks(1, script_of(stage), argv, log)]
    expect(code == 0, f"{stage} {kind}: continuing on one rank ended with {code}", log)
    compare_runs(stage, one, out, f"{stage} {kind} after a rank was lost")
    counts["continued on one rank to the same numbers"] += 1


def world_of(world: dict, stage: str) -> list:
    """AdamW, which FSDP2 can use; small micro-batches, so that both ranks have some; more steps: time for a kill."""
    adamw = ["--optimizer", "adamw", "--lr", "1e-3"] if stage == "sft" else []
    return [*world[stage], "--micro-batch-tok", "400", "--steps", "16", "--eval-every", "8", *adamw]


def compare_runs(stage: str, one: Path, two: Path, what: str) -> bool:
    """Compare two runs by their metrics; whether all steps could be compared.

    Sums over one rank are rounded differently from sums over two. A reply is drawn by such sums, so once in some ten
    thousand tokens a draw is so close to the border between two tokens that rounding decides. Up to that step
    everything has to be equal; in that step one reply may differ; afterwards the runs have learned different things.
    """
    metrics = [result_of(stage, out)["metrics"] for out in (one, two)]
    step, replies = first_other_reply(one, two) if stage == "grpo" else (0, 0)
    if step:
        expect(replies == 1, f"{what}: {replies} replies of step {step} differ at once")
        metrics = [[row for row in rows if row["step"] < step] for rows in metrics]
        expect(len(metrics[0]) > 0, f"{what}: a reply of step {step} differs")
    compare(*metrics, what)
    return not step


def first_other_reply(one: Path, two: Path) -> tuple[int, int]:
    """The first step in which two runs sampled other replies, and how many of them differ; (0, 0) for none."""
    logs = [(out / "samples.jsonl").read_text(encoding="utf-8").splitlines() for out in (one, two)]
    groups = [[json.loads(line) for line in log] for log in logs]
    for step in sorted({group["step"] for group in groups[0]}):
        of_step = [[group["replies"] for group in of_run if group["step"] == step] for of_run in groups]
        replies = [[reply for group in of_run for reply in group] for of_run in of_step]
        differ = sum(a != b for a, b in zip(*replies)) + abs(len(replies[0]) - len(replies[1]))
        if differ:
            return step, differ
    return 0, 0


def compare(one: list[dict], two: list[dict], what: str, tolerance: float = 1e-5) -> None:
    """Every metric of every step, relative to 1 or to the number itself where that is larger."""
    expect([row["step"] for row in one] == [row["step"] for row in two], f"{what}: other steps")
    for a, b in zip(one, two):
        step = f"{what}: step {a['step']}"
        expect(a.keys() == b.keys(), f"{step} logs {sorted(a.keys() ^ b.keys())} in one of them only")
        # Before DPO's first step the policy is its reference: the sign of a margin is then a rounding error.
        margin = max(abs(row.get("rewards/margins", 1.0)) for row in (a, b))
        for name in a.keys() - ({"rewards/accuracies"} if margin < 1e-6 else set()):
            allowed = (1e-4 if name == "grad_norm" else tolerance) * max(1.0, abs(a[name]))
            expect(abs(a[name] - b[name]) <= allowed, f"{step} {name} {a[name]} against {b[name]}")


def groups(folder: Path, world: dict, runs: int, seed: int) -> Counter:
    """Two ranks, and so many kept groups as chance wants: see groups_worker.py, which does it all in one job."""
    counts: Counter = Counter()
    folder.mkdir(parents=True, exist_ok=True)
    for kind in ("ddp", "fsdp"):
        report, log = folder / f"{kind}.json", folder / f"{kind}.log"
        model = world["grpo"][world["grpo"].index("--model") + 1]
        job = forked_ranks(2, "groups_worker", [model, runs, seed, kind, report], log)
        codes = [ended(rank, 60 + 6 * runs) for rank in job]
        expect(codes == [0, 0], f"{kind}: random numbers of kept groups", log)
        found = json.loads(report.read_text())
        expect(len(found) == runs, f"{kind}: {len(found)} of {runs} runs", log)
        counts.update({
            "runs": runs, "runs without any group": sum(0 in kept for kept, _ in found),
            "steps": sum(len(kept) for kept, _ in found),
            "steps with unequal shares": sum(unequal for _, unequal in found),
        })  # fmt: skip
    return counts


# ---- All of it -------------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> None:
    config = parse_config(Config, __doc__, argv)
    torch.set_num_threads(1)
    folder = Path(config.folder).resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    world = make_world(folder)
    known = unbroken_runs(world, folder / "unbroken")
    parts: dict[str, Callable[[], Counter]] = {
        "kill": lambda: kill(folder / "kill", world, known, config.runs, config.seed, signal.SIGKILL),
        "term": lambda: kill(folder / "term", world, known, config.runs, config.seed + 1, signal.SIGTERM),
        "damage": lambda: damaged(folder / "damage", world, known),
        "disk": lambda: disk(folder / "disk", world, known),
        "ranks": lambda: ranks(folder / "ranks", world),
        "groups": lambda: groups(folder / "groups", world, config.runs // 2, config.seed),
    }
    failed = []
    for name in [part.strip() for part in config.only.split(",") if part.strip()] or parts:
        started = time.monotonic()
        try:
            counts = parts[name]()
        except (Broken, TimeoutError) as error:
            failed.append(name)
            print(f"{name}: FAILED: {error}")
        else:
            shown = ", ".join(f"{count} {what}" for what, count in counts.items())
            print(f"{name}: {shown}; 0 failures, {time.monotonic() - started:.0f} s", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
