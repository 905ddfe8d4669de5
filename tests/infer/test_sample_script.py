"""infer/sample.py: N replies a pair with log-prob and grade, and pass@1..N beside two ways of guessing."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
import torch

from infer.sample import main
from taosr1.data.judgements import write_judgements
from taosr1.data.sources import load_rows
from taosr1.judge_model import load_judge
from taosr1.model.logprobs import completion_logp
from taosr1.runtime.jsonl import read_jsonl
from taosr1.task.prompt import encode_reply


def read(path: Path) -> list[dict]:
    return [row for _, row in read_jsonl(path)]


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "replies.jsonl"


def test_curve_is_the_share_of_subsets_that_hold_a_right_reply(taught_judge, out, capsys):
    sizes = ["--samples", "4", "--max-new-tokens", "1"]
    flags = ["--model", taught_judge("post-cot"), "--data", "synthetic:dev*150", *sizes]
    summary = main([*flags, "--temperature", "1.5", "--out", str(out)])
    golds, replies = [row.grade for row in load_rows("synthetic:dev*150")], read(out)
    assert [(reply["row"], reply["sample"]) for reply in replies] == [
        (row, sample) for row in range(150) for sample in range(4)
    ]
    groups = [replies[first : first + 4] for first in range(0, 600, 4)]
    right = [[reply["pred_grade"] == gold for reply in group] for group, gold in zip(groups, golds)]
    assert 0 < sum(map(any, right)) < 150  # or no mistake would show
    for n in range(1, 5):
        subsets = [any(subset) for group in right for subset in combinations(group, n)]
        assert summary["curve"]["pass_at_n"][n - 1] == pytest.approx(sum(subsets) / len(subsets))
    shares = {grade: golds.count(grade) / 150 for grade in (1, 2, 3, 4)}
    own = {grade: sum(reply["pred_grade"] == grade for reply in replies) / 600 for grade in (1, 2, 3, 4)}
    for name, prior in (("guess_gold_shares", shares), ("guess_own_shares", own)):
        guess = sum(shares[grade] * (1 - (1 - prior[grade]) ** 3) for grade in shares)
        assert summary["curve"][name][2] == pytest.approx(guess)
    assert summary["unparsed"] == sum(reply["pred_grade"] is None for reply in replies) > 0
    printed = capsys.readouterr().out
    assert "pass@4" in printed and "judge's own shares" in printed and "unparsable" in printed


def test_a_taught_judge_is_right_and_its_replies_carry_what_the_row_was(taught_judge, eight_rows, eight_rows_file, out):
    flags = ["--model", taught_judge("post-cot"), "--data", eight_rows_file, "--samples", "2", "--temperature", "0.2"]
    summary = main([*flags, "--out", str(out)])
    assert (
        summary["curve"]["pass_at_n"] == [1.0, 1.0]
        and summary["unparsed"] == summary["malformed"] == summary["cut"] == 0
    )
    first = read(out)[0]
    row = eight_rows[0]
    assert (first["query"], first["title"], first["query_id"], first["item_id"]) == (
        row.query,
        row.title,
        row.query_id,
        row.item_id,
    )
    assert (
        first["reply"] == f"{row.grade}\n{row.cot}"
        and first["grade"] == first["decision"] == first["pred_grade"] == row.grade
    )


@pytest.mark.parametrize("narrow", [[], ["--top-k", "3", "--top-p", "0.8"]])
def test_logp_is_that_of_the_whole_reply_at_the_sampling_temperature(
    taught_judge, eight_rows, eight_rows_file, out, narrow
):
    flags = ["--model", taught_judge("post-cot"), "--data", eight_rows_file, "--temperature", "0.6"]
    main([*flags, "--out", str(out), *narrow])
    judge = load_judge(taught_judge("post-cot"))
    prompts = judge.prompts(load_rows(eight_rows_file))
    compared = 0
    for reply in read(out):
        row = eight_rows[reply["row"]]
        if (
            reply["reply"] != f"{row.grade}\n{row.cot}"
        ):  # other replies may be spelled by other tokens than re-encoding gives
            continue
        ids = encode_reply(judge.tokenizer, reply["reply"])
        prompt = prompts[reply["row"]]
        whole = torch.tensor([prompt + ids])
        mask = torch.arange(whole.shape[1])[None] >= len(prompt)
        with torch.no_grad():
            expected = completion_logp(judge.model, whole, mask, temperature=0.6)
        assert reply["logp"] == pytest.approx(float((expected * mask).sum()), abs=1e-3)
        compared += 1
    assert compared > 10


def test_same_seed_same_replies_and_another_seed_others(fresh_judge, eight_rows_file, tmp_path):
    texts = []
    for seed in ("1", "1", "2"):
        out = tmp_path / "replies.jsonl"
        flags = ["--model", fresh_judge("post-cot"), "--data", eight_rows_file, "--max-new-tokens", "4", "--seed", seed]
        main([*flags, "--out", str(out), "--overwrite"])
        texts.append(out.read_text())
    assert texts[0] == texts[1] != texts[2]


def test_ranks_that_were_interrupted_give_the_bytes_of_one_process(
    taught_judge, tmp_path, monkeypatch, as_rank, capsys
):
    monkeypatch.setattr("infer.sample.PROMPTS_AT_A_TIME", 16)  # four chunks, the last one short
    sizes = ["--samples", "3", "--max-new-tokens", "6"]
    command = ["--model", taught_judge("post-cot"), "--data", "synthetic:dev*60", *sizes, "--out"]
    capsys.readouterr()  # what training the judge said
    one = main([*command, str(tmp_path / "one.jsonl")])
    printed = capsys.readouterr().out
    out = tmp_path / "two.jsonl"
    as_rank(1, 2, main, [*command, str(out)], after=1)
    assert as_rank(0, 2, main, [*command, str(out)]) == {} and capsys.readouterr().out == ""
    assert as_rank(0, 1, main, [*command, str(out)]) == one  # one process does the rest
    assert out.read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    assert capsys.readouterr().out == printed.replace("one.jsonl", "two.jsonl")
    assert {path.name for path in tmp_path.iterdir()} == {"one.jsonl", "two.jsonl"}


def test_pairs_without_a_grade_are_sampled_and_give_no_curve(fresh_judge, eight_rows, out, tmp_path, capsys):
    data = tmp_path / "ungraded.jsonl"
    write_judgements(data, [replace(row, grade=None) for row in eight_rows])
    flags = ["--model", fresh_judge("pre-cot"), "--data", str(data), "--samples", "2", "--max-new-tokens", "3"]
    summary = main([*flags, "--out", str(out)])
    assert summary["curve"] is None and summary["replies"] == len(read(out)) == 16
    assert summary["unparsed"] == 16 and summary["cut"] > 0
    assert "no pair has a grade: no pass@n" in capsys.readouterr().out


def test_real_esci_rows_are_sampled_whole(fresh_judge, esci_file, out):
    flags = ["--split", "test", "--limit", "12", "--samples", "2", "--max-new-tokens", "3"]
    assert main(["--model", fresh_judge("post-cot"), "--data", esci_file, "--out", str(out), *flags])["rows"] == 12
    assert len({(row["row"], row["item_id"]) for row in read(out)}) == 12


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--frobnicate"], "unrecognized arguments: --frobnicate"),
        (["--temperature", "0"], "--temperature 0 gives --samples equal replies"),
        (["--samples", "0", "--top-p", "0", "--top-k", "-1"], "--samples is 0, expected at least 1; --top-k is -1"),
        (["--out", "x.csv"], "--out is 'x.csv', expected a name ending in .jsonl or .jsonl.gz"),
        (["--out", "x.jsonl", "--data", "x.jsonl"], "it would be overwritten"),
    ],
)
def test_wrong_flags_end_with_a_message(flags, message, capsys):
    with pytest.raises(SystemExit):
        main(flags)
    assert message in capsys.readouterr().err


def test_wrong_models_and_files_are_named_and_help_teaches(fresh_judge, tmp_path, out, capsys):
    (tmp_path / "empty.jsonl").write_text("")
    for flags, message in (
        (["--model", "runs/gone"], "--model runs/gone: no such run here"),
        (["--model", str(tmp_path)], "is not a model folder"),
        (["--model", fresh_judge("label"), "--data", str(tmp_path / "gone.jsonl")], "check --data"),
        (
            ["--model", fresh_judge("label"), "--data", str(tmp_path / "empty.jsonl")],
            "empty.jsonl: no rows in this file",
        ),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            main([*flags, "--out", str(out)])
    assert not out.exists()
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert "python infer/sample.py --data synthetic:dev --limit 200" in capsys.readouterr().out
