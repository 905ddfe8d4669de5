"""Every diagnosis is provoked by a run that is really trained; what a run says at its end is what the doctor says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from taosr1.data.judgements import write_judgements
from taosr1.evaluation.doctor import examine, main
from taosr1.evaluation.record import read_record
from taosr1.synthetic.shop import read_pool
from train.dpo import main as dpo
from train.grpo import main as grpo
from train.mine_pairs import main as mine
from train.pretrain import main as pretrain
from train.sft import main as sft

DEV = ["--dev", "synthetic:dev*40"]
GRPO = ["--data", "synthetic:labelled*60", *DEV, "--test", "", "--groups", "8", "--samples", "4", "--min-groups", "1"]
THINKER, STUDENT = ["--model", "bundled", *GRPO], ["--model", "bundled-student", *GRPO]
LABEL_ALONE = [*STUDENT, "--max-new-tokens", "2", "--balance", "none", "--difficulty", "none", "--kl-beta", "0"]
TINY = ["--model", "tiny", "--order", "label", "--data", "synthetic:reasoned*60", *DEV, "--batch-size", "8"]
SFT = ["--model", "bundled-student", "--order", "label", *DEV, "--batch-size", "8", "--steps", "8"]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    """Rows and pairs that a run goes wrong on, by name."""
    folder, rows = tmp_path_factory.mktemp("files"), read_pool("labelled", 300)
    of = {grade: [row for row in rows if row.grade == grade] for grade in (1, 2, 3, 4)}
    swapped = [replace(row, grade={1: 4, 4: 1}[row.grade]) for row in (of[1] + of[4])[:40]]
    fours = [replace(row, grade=4) for row in of[2][:40] + of[4][:20]]
    sets = {"easy": of[1][:20], "swapped": swapped, "all 4": fours,
            "1 and 4": of[1][:20] + of[4][:20], "products": rows[:12]}  # fmt: skip
    for name, found in sets.items():
        write_judgements(folder / f"{name}.jsonl", found)
    paths = {name: str(folder / f"{name}.jsonl") for name in (*sets, "pairs", "both orders")}
    mine(["--model", "bundled-student", "--data", "synthetic:labelled*120", "--prompts", "120", "--samples", "3",
          "--temperature", "1.3", "--balance", "none", "--out", paths["pairs"]])  # fmt: skip
    pairs = [json.loads(line) for line in Path(paths["pairs"]).read_text(encoding="utf-8").splitlines()]
    names = [name.removeprefix("chosen") for name in pairs[0] if name.startswith("chosen")]
    turned = [
        pair | {f"{one}{name}": pair[f"{other}{name}"] for name in names for one, other in
                (("chosen", "rejected"), ("rejected", "chosen"))} for pair in pairs
    ]  # fmt: skip
    Path(paths["both orders"]).write_text("".join(json.dumps(pair) + "\n" for pair in pairs + turned), "utf-8")
    return paths


# What is found, and the run that provokes it. "FILE:easy" stands for a file of the fixture.
PROVOKED = [
    (("replies cut",), grpo, [*THINKER, "--steps", "1", "--max-new-tokens", "12"]),
    (("sampled too hot",), grpo, [*THINKER, "--steps", "1", "--temperature", "4"]),
    (("the form is lost",), grpo, [*THINKER, "--steps", "4", "--lr", "1e-2"]),
    (("rows too easy",), grpo, [*STUDENT, "--steps", "1", "--data", "FILE:easy", "--temperature", "0.6"]),
    (("rows too hard",), grpo, [*STUDENT, "--steps", "1", "--data", "FILE:swapped"]),
    (("replies all alike",), grpo, [*THINKER, "--steps", "1", "--temperature", "0.05"]),
    (("gamma too low",), grpo, [*STUDENT, "--steps", "2", "--temperature", "1.2", "--samples", "8", "--gamma", "2"]),
    (("few groups",), grpo, [*THINKER, "--steps", "2", "--min-groups", "8"]),
    (("entropy gone", "a grade vanishes"), grpo, [*LABEL_ALONE, "--steps", "32", "--lr", "1e-3", "--data", "FILE:all 4",
                                                  "--eval-every", "0"]),
    (("KL runs away", "entropy explodes"), grpo, [*THINKER, "--steps", "6", "--lr", "3e-3"]),
    (("many tokens clipped",), grpo, [*STUDENT, "--steps", "6", "--updates", "3", "--eval-every", "6", "--lr", "3e-3"]),
    (("learning rate too low",), grpo, [*STUDENT, "--steps", "8", "--lr", "1e-9"]),
    (("learning rate too low",), grpo, [*STUDENT, "--steps", "8", "--lr", "1e-9", "--kl-beta", "0",
                                         "--eval-every", "4"]),
    (("reward without right grades",), grpo, [*LABEL_ALONE, "--steps", "24", "--lr", "1e-3", "--rewards", "label=-1",
                                           "--groups", "16"]),
    (("reward falls",), grpo, [*LABEL_ALONE, "--steps", "16", "--lr", "3e-3", "--normalise", "token"]),
    (("dev falls",), grpo, [*LABEL_ALONE, "--steps", "12", "--lr", "1e-2", "--eval-every", "1"]),
    (("learning rate too high",), sft, [*SFT, "--order", "post-cot", "--data", "synthetic:reasoned*60", "--lr", "0.3"]),
    (("not finite",), sft, [*SFT, "--data", "synthetic:reasoned*60", "--lr", "1e30"]),
    (("learning rate too low",), sft, [*TINY, "--steps", "8", "--lr", "1e-9", "--muon-lr", "1e-9"]),
    (("low label mass",), sft, [*TINY, "--steps", "1", "--lr", "1e-9"]),
    (("one grade for all",), sft, [*TINY, "--steps", "8", "--grade-power", "1"]),
    (("a grade is never given",), sft, [*SFT, "--data", "FILE:1 and 4", "--lr", "3e-3", "--eval-every", "2",
                                     "--steps", "16"]),
    (("dev falls while training improves",), sft, [*SFT, "--data", "FILE:swapped", "--lr", "1e-3",
                                                    "--eval-every", "1"]),
    (("unreadable on dev",), sft, [*SFT, "--model", "bundled", "--order", "pre-cot", "--data", "synthetic:reasoned*60",
                                "--max-new-tokens", "3"]),
    (("learning rate too low",), dpo, ["--model", "bundled-student", "--data", "FILE:pairs", *DEV, "--steps", "8",
                                    "--batch-size", "8", "--lr", "1e-9"]),
    (("pairs contradict each other",), dpo, ["--model", "bundled-student", "--data", "FILE:both orders", *DEV,
                                          "--steps", "12", "--batch-size", "16", "--lr", "1e-3"]),
    (("chosen replies get less likely",), dpo, ["--model", "bundled-student", "--data", "FILE:pairs", *DEV,
                                             "--steps", "12", "--batch-size", "8", "--nll-coef", "0", "--lr", "3e-3"]),
    (("dev loss rises",), pretrain, ["--model", "bundled", "--data", "FILE:products", "--steps", "40", "--lr", "1e-2",
                                  "--batch-size", "8", "--eval-every", "4"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("names", "train", "argv"), PROVOKED, ids=[f"{', '.join(names)} ({t.__module__})" for names, t, _ in PROVOKED]
)
def test_a_run_that_goes_wrong_is_told_what_is_wrong(names, train, argv, files, tmp_path, capsys):
    argv = [files[word.removeprefix("FILE:")] if word.startswith("FILE:") else word for word in argv]
    try:
        train([*argv, "--out", str(tmp_path / "run")])
    except FloatingPointError:
        assert names == ("not finite",)  # such a run has no end to say something at
    said = capsys.readouterr().out
    run = read_record(tmp_path / "run")
    found = {finding.name: finding for finding in examine(run)[0]}
    assert set(names) <= found.keys(), f"found {list(found)}"
    for name in names:
        assert 1 <= found[name].step <= run.steps and "nan" not in str(found[name])
        assert name == "not finite" or f"doctor: {found[name]}" in said
    assert main([str(tmp_path / "run")]) == 0 and str(found[names[0]]) in capsys.readouterr().out
    assert main([str(tmp_path / "run"), "--strict"]) == 1


def test_a_run_that_goes_well_ends_with_one_line_that_says_so(tmp_path, capsys):
    well = ["--data", "synthetic:reasoned*60", "--order", "post-cot", "--lr", "1e-4"]
    sft([*SFT, *well, "--out", str(tmp_path / "run")])
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("doctor:")]
    assert said == [f"doctor: nothing found; notes: python -m taosr1.evaluation.doctor {tmp_path / 'run'}"]
    assert main([str(tmp_path / "run"), "--strict"]) == 0
