"""Grading a pool: greedy grades with reasons and a confidence, in rows that the next stage reads."""

from __future__ import annotations

import pytest
import torch

from taosr1.data.judgements import read_judgements
from taosr1.fast.generate import generate
from taosr1.judge_model import load_judge
from taosr1.model.logprobs import completion_logp
from taosr1.synthetic.shop import read_pool
from taosr1.task.prompt import parse_reply, reply_text
from train.label_pool import main as label_pool
from train.sft import main as sft


@pytest.mark.parametrize("order", ["pre-cot", "post-cot"])
def test_rows_get_the_judges_grade_its_reasons_and_its_log_prob(request, tmp_path, look, order):
    model = request.getfixturevalue({"pre-cot": "thinker", "post-cot": "post"}[order])
    out = tmp_path / "a" / "pool.jsonl"
    counts = label_pool(["--model", model, "--data", "synthetic:unlabelled*30", "--out", str(out)])
    rows, judge = read_judgements(out, need_grade=True, need_cot=True), load_judge(model)
    assert (
        look.files(tmp_path) == {"a/pool.jsonl"} and counts == {"rows": 30, "graded": len(rows)} and 5 < len(rows) <= 30
    )
    source = read_pool("unlabelled", 30)
    prompts = judge.prompts(source)
    replies = generate(
        judge.model, prompts, max_new_tokens=64, temperature=0, stop_ids=judge.tokenizer.eos_ids
    ).replies()
    readable = [n for n in range(30) if parse_reply(judge.reply_text(replies[n]), order).well_formed]
    assert [row.item_id for row in rows] == [source[n].item_id for n in readable]
    for row, n in zip(rows, readable):
        before = source[n]
        assert (row.query, row.title, row.price, row.query_kind) == (
            before.query,
            before.title,
            before.price,
            before.query_kind,
        )
        assert row.extra.keys() == {"confidence", "labelled_by"} and row.extra["labelled_by"]
        assert reply_text(order, row.grade, row.cot) == judge.reply_text(replies[n]).strip()
        mask = torch.arange(len(prompts[n]) + len(replies[n]))[None] >= len(prompts[n])
        with torch.no_grad():
            logp = completion_logp(judge.model, torch.tensor([prompts[n] + replies[n]]), mask)
        assert row.extra["confidence"] == pytest.approx(float(logp.sum()), abs=1e-3)


def test_the_student_learns_from_what_the_thinker_wrote(thinker, base, tmp_path):
    label_pool(["--model", thinker, "--data", "synthetic:unlabelled*30", "--out", str(tmp_path / "pool.jsonl.gz")])
    files = ["--data", str(tmp_path / "pool.jsonl.gz"), "--out", str(tmp_path / "student")]
    sizes = ["--dev", "synthetic:dev*4", "--steps", "1", "--batch-size", "4"]
    sft(["--model", base, "--order", "post-cot", "--cots", "all", *files, *sizes])
    assert load_judge(str(tmp_path / "student")).prompt.order == "post-cot"


def test_a_grade_that_was_there_is_kept_beside_the_judges_and_not_looked_at(post, tmp_path, look):
    label_pool(["--model", post, "--data", "synthetic:dev*20", "--out", str(tmp_path / "pool.jsonl")])
    gold = {row.item_id: row.grade for row in read_pool("dev", 20)}
    rows = look.json_lines(tmp_path / "pool.jsonl")
    assert all(row["gold_grade"] == gold[row["item_id"]] for row in rows) and any(
        row["gold_grade"] != row["grade"] for row in rows
    )


def test_keep_frac_keeps_the_most_confident_rows_and_limit_the_first(post, tmp_path, look):
    command = ["--model", post, "--data", "synthetic:unlabelled*40", "--overwrite", "--out"]
    command += [str(tmp_path / "pool.jsonl")]
    label_pool(command)
    everything = look.json_lines(tmp_path / "pool.jsonl")
    label_pool([*command, "--keep-frac", "0.25"])
    kept = look.json_lines(tmp_path / "pool.jsonl")
    best = sorted((row["confidence"] for row in everything), reverse=True)
    assert abs(len(kept) - len(everything) / 4) <= 1
    assert sorted((row["confidence"] for row in kept), reverse=True) == best[: len(kept)] and all(
        row in everything for row in kept
    )
    label_pool([*command, "--limit", "20"])
    first = [(row["item_id"], row["cot"]) for row in look.json_lines(tmp_path / "pool.jsonl")]
    assert first == [(row["item_id"], row["cot"]) for row in everything if int(row["item_id"].rpartition("-")[2]) < 20]


@pytest.mark.parametrize(
    "more",
    [["--keep-frac", "0.4"], ["--data", "synthetic:labelled*50", "--only-right", "--samples", "3"]],
    ids=["confident", "right"],
)
def test_ranks_that_were_interrupted_give_the_bytes_of_one_process(thinker, tmp_path, monkeypatch, capsys, more):
    """What the most confident rows are is decided over all rows, whoever graded them."""
    monkeypatch.setattr("train.label_pool.ROWS_AT_A_TIME", 16)  # four chunks, the last one short
    command = ["--model", thinker, "--data", "synthetic:unlabelled*50", *more, "--out"]
    capsys.readouterr()
    one = label_pool([*command, str(tmp_path / "one.jsonl")])
    printed, out = capsys.readouterr().out, tmp_path / "two.jsonl"
    for rank, world, merges in ((1, 3, False), (0, 2, False), (0, 1, True)):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(world))
        assert not out.exists()
        assert label_pool([*command, str(out)]) == (one if merges else {})
    assert out.read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    assert capsys.readouterr().out == printed.replace("one.jsonl", "two.jsonl")
    assert {path.name for path in tmp_path.iterdir()} == {"one.jsonl", "two.jsonl"}


def test_a_judge_of_labels_alone_grades_without_reasons(base, tmp_path, look):
    files = ["--data", "synthetic:labelled*40", "--out", str(tmp_path / "labels")]
    sizes = ["--dev", "synthetic:dev*4", "--steps", "1", "--batch-size", "4"]
    sft(["--model", base, "--order", "label", *files, *sizes])
    flags = ["--model", str(tmp_path / "labels"), "--data", "synthetic:unlabelled*10"]
    label_pool([*flags, "--out", str(tmp_path / "pool.jsonl")])
    rows = look.json_lines(tmp_path / "pool.jsonl")
    assert len(rows) == 10 and all(
        row["cot"] == "" and row["grade"] in (1, 2, 3, 4) and row["confidence"] < 0 for row in rows
    )


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--keep-frac", "0"], "--keep-frac is 0.0, expected more than 0 and at most 1"),
        (["--limit", "-1"], "--limit is -1, expected at least 0"),
        (["--data", "gone.jsonl"], "no file at gone.jsonl: check --data"),
        (["--model", "runs/gone"], "--model runs/gone: no such run here"),
        (["--out", "pool.csv"], "written as JSON Lines"),
    ],
)
def test_wrong_use_says_what_to_change(post, tmp_path, monkeypatch, refused, more, message):
    monkeypatch.chdir(tmp_path)
    assert message in refused(
        label_pool, "--model", post, "--data", "synthetic:unlabelled*4", "--out", "pool.jsonl", *more
    )
    assert list(tmp_path.iterdir()) == []


def test_a_judge_that_cannot_be_read_at_all_is_an_error(base, tmp_path, refused):
    flags = ["--model", base, "--data", "synthetic:unlabelled*4", "--max-new-tokens", "3"]
    message = refused(label_pool, *flags, "--out", tmp_path / "pool.jsonl")
    assert f"--model {base}: not one of 4 replies could be parsed" in message and list(tmp_path.iterdir()) == []
