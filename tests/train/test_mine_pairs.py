"""Pass@N mining through its command line: right over wrong, with the ids that were sampled."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from taosr1.data.judgements import write_judgements
from taosr1.judge_model import load_judge
from taosr1.runtime.chunked_job import ChunkedJob
from taosr1.runtime.jsonl import clean_text
from taosr1.synthetic.shop import read_pool
from taosr1.task.prompt import parse_reply, reply_text
from train.mine_pairs import main as mine

QUICK = [
    "--data",
    "synthetic:reasoned*40,synthetic:labelled*40",
    "--prompts",
    "40",
    "--samples",
    "4",
    "--max-new-tokens",
    "64",
]


def test_the_output_is_the_pairs_and_their_counts(post, tmp_path, look):
    counts = mine(["--model", post, *QUICK, "--out", str(tmp_path / "a" / "pairs.jsonl")])
    assert look.files(tmp_path) == {"a/pairs.jsonl", "a/pairs.jsonl.counts.json"}
    stored = json.loads((tmp_path / "a" / "pairs.jsonl.counts.json").read_text(encoding="utf-8"))
    assert stored == json.loads(json.dumps(counts)) and stored["rows"] == 40 and stored["config"]["samples"] == 4
    known = {"self", "oracle", "all right", "no teacher", "teacher contradicts the gold grade"}
    assert (
        sum(stored["outcomes"].values()) == 40
        and stored["outcomes"].keys() <= known
        and stored["replies"]["sampled"] == 160
    )
    curve = stored["pass_at_n"]
    assert (
        len(curve) == len(stored["prior_pass_at_n"]) == 4 and curve == sorted(curve) and 0 < curve[0] < curve[-1] <= 1
    )


def test_every_pair_prefers_a_right_reply_over_a_wrong_one_of_the_same_prompt(post, pairs, look):
    judge, rows = (
        load_judge(post),
        {row.item_id: row for pool in ("reasoned", "labelled") for row in read_pool(pool, 40)},
    )
    found = look.json_lines(pairs)
    assert {pair["source"] for pair in found} == {"self", "oracle"}
    for pair in found:
        row = rows[pair["item_id"]]
        assert pair["prompt_ids"] == judge.prompts([row])[0] and pair["prompt"] == judge.tokenizer.decode(
            pair["prompt_ids"]
        )
        assert parse_reply(pair["chosen"], "post-cot").grade == pair["gold"] == row.grade
        assert parse_reply(pair["rejected"], "post-cot").grade == pair["rejected_grade"] != row.grade
        for name in ("chosen", "rejected"):
            assert clean_text(judge.reply_text(pair[f"{name}_ids"])) == pair[name]
        if pair["source"] == "oracle":  # the teacher's own words, which agree with the gold grade
            assert (
                pair["chosen"] == reply_text("post-cot", row.grade, row.cot)
                and parse_reply(pair["chosen"], "post-cot").decision == row.grade
            )


def test_the_same_command_gives_the_same_bytes_and_another_seed_others(post, pairs, tmp_path):
    again = ["--model", post, *QUICK, "--prompts", "60", "--balance", "none", "--out", str(tmp_path / "pairs.jsonl")]
    mine(again)
    assert (tmp_path / "pairs.jsonl").read_bytes() == Path(pairs).read_bytes()
    mine([*again, "--seed", "1", "--overwrite"])
    assert (tmp_path / "pairs.jsonl").read_bytes() != Path(pairs).read_bytes()


@pytest.mark.parametrize("balance", ["flow", "none"])
def test_ranks_that_were_interrupted_give_the_bytes_of_one_process(
    post, tmp_path, monkeypatch, stopped_in_parts, balance
):
    """Balance, repeated pairs, counters and pass@n are decided over all rows, whoever mined them."""
    monkeypatch.setattr("train.mine_pairs.PROMPTS_AT_A_TIME", 16)  # five chunks
    write_judgements(tmp_path / "rows.jsonl", read_pool("reasoned", 40) * 2)  # every row is in two chunks
    sizes = ["--prompts", "0", "--samples", "4", "--max-new-tokens", "2"]
    command = ["--model", post, "--data", str(tmp_path / "rows.jsonl"), *sizes, "--balance", balance, "--out"]
    counts = mine([*command, str(tmp_path / "one.jsonl")])
    assert counts["duplicate_pairs"] > 0 and counts["rows"] == 80
    out = tmp_path / "two.jsonl"
    stopped_in_parts(1, mine, [*command, str(out)])
    (tmp_path / "two.jsonl.parts" / "rank-00000.jsonl").open("ab").write(b'{"chunk": 1, "cr')  # a torn last line
    for rank in (1, 0):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert not out.exists()
        merged = mine([*command, str(out)])
        assert bool(merged) is (rank == 0)
    assert out.read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    assert merged | {"config": None} == counts | {"config": None}
    stored = [
        (tmp_path / f"{name}.jsonl.counts.json").read_text().replace(f"{name}.jsonl", "") for name in ("one", "two")
    ]
    assert stored[0] == stored[1]
    assert {path.name for path in tmp_path.iterdir()} == {
        "rows.jsonl", "one.jsonl", "one.jsonl.counts.json", "two.jsonl", "two.jsonl.counts.json", "two.jsonl.done.json"
    }  # fmt: skip


@pytest.fixture
def stopped_in_parts(monkeypatch):
    """stopped_in_parts(n, main, argv): interrupted where its n+1st chunk would be stored."""

    def run(after: int, main, argv: list[str]) -> None:
        stored, add = [], ChunkedJob.add

        def add_or_stop(parts, chunk, answers):
            if len(stored) == after:
                raise KeyboardInterrupt
            stored.append(chunk)
            add(parts, chunk, answers)

        with pytest.raises(KeyboardInterrupt), monkeypatch.context() as patch:
            patch.setattr(ChunkedJob, "add", add_or_stop)
            main(argv)

    return run


def test_flow_balance_keeps_as_many_pairs_each_way(post, tmp_path, look):
    mine(["--model", post, *QUICK, "--prompts", "0", "--pairs-per-prompt", "3", "--out", str(tmp_path / "pairs.jsonl")])
    flow = Counter((pair["gold"], pair["rejected_grade"]) for pair in look.json_lines(tmp_path / "pairs.jsonl"))
    assert flow and all(count == flow[b, a] for (a, b), count in flow.items() if b is not None)


@pytest.mark.parametrize("source", ["self", "oracle"])
def test_pairs_of_one_source_alone_can_be_kept(source, post, tmp_path, look):
    flags = ["--model", post, *QUICK, "--prompts", "0", "--balance", "none"]
    both = mine([*flags, "--out", str(tmp_path / "both.jsonl")])["sources"]
    alone = mine([*flags, "--source", source, "--out", str(tmp_path / "pairs.jsonl")])["sources"]
    assert len(both) == 2 and alone == {source: both[source]}


def test_a_right_reply_that_was_cut_is_not_chosen(post, tmp_path, look):
    flags = ["--model", post, *QUICK, "--data", "synthetic:reasoned*40", "--max-new-tokens", "4", "--balance", "none"]
    counts = mine([*flags, "--out", str(tmp_path / "p.jsonl")])
    assert counts["pass_at_n"][0] > 0  # some labels are right, but no reply comes to its end within four tokens
    assert "self" not in counts["outcomes"] and counts["outcomes"]["oracle"] > 0
    assert {pair["source"] for pair in look.json_lines(tmp_path / "p.jsonl")} == {"oracle"}


def test_a_teacher_that_contradicts_the_gold_grade_is_not_preferred(post, tmp_path, look):
    rows = [row for row in read_pool("reasoned", 120) if f"Decision: {row.grade}" not in row.cot]
    write_judgements(tmp_path / "rows.jsonl", rows)
    files = ["--data", str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "pairs.jsonl")]
    counts = mine(["--model", post, *files, "--prompts", "0", "--samples", "3", "--balance", "none"])
    assert counts["outcomes"]["teacher contradicts the gold grade"] > 0 and "oracle" not in counts["outcomes"]
    assert {pair["source"] for pair in look.json_lines(tmp_path / "pairs.jsonl")} == {"self"}


def test_a_teacher_that_cannot_be_read_is_not_preferred(post, tmp_path, look):
    rows = [replace(row, cot="no idea") for row in read_pool("reasoned", 40)]
    write_judgements(tmp_path / "rows.jsonl", rows)
    files = ["--data", str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "pairs.jsonl")]
    counts = mine(["--model", post, *files, "--prompts", "0", "--samples", "2", "--balance", "none"])
    assert counts["outcomes"]["teacher cannot be read"] > 0 and sum(counts["outcomes"].values()) == 40
    assert not any("no idea" in pair["chosen"] for pair in look.json_lines(tmp_path / "pairs.jsonl"))


def test_a_pair_that_comes_up_again_is_kept_once_and_counted(post, tmp_path, look):
    """The same row twenty times, replies so short that they repeat: every pair of texts is there once."""
    row = next(row for row in read_pool("reasoned", 40) if f"Decision: {row.grade}" in row.cot)
    write_judgements(tmp_path / "rows.jsonl", [row] * 20)
    files = ["--data", str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "pairs.jsonl")]
    sizes = ["--prompts", "0", "--samples", "3", "--max-new-tokens", "2"]
    counts = mine(["--model", post, *files, *sizes, "--balance", "none"])
    texts = [(pair["prompt"], pair["chosen"], pair["rejected"]) for pair in look.json_lines(tmp_path / "pairs.jsonl")]
    assert len(set(texts)) == len(texts) == counts["mined"] and counts["duplicate_pairs"] > 0
    assert counts["replies"]["sampled"] == counts["replies"]["cut"] == 60 >= counts["replies"]["unreadable"]


def test_a_judge_that_thinks_first_can_be_mined_too(thinker, tmp_path, look):
    flags = ["--model", thinker, *QUICK, "--max-new-tokens", "72", "--balance", "none"]
    mine([*flags, "--out", str(tmp_path / "pairs.jsonl")])
    assert all(
        parse_reply(pair["chosen"], "pre-cot").grade == pair["gold"]
        for pair in look.json_lines(tmp_path / "pairs.jsonl")
    )


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--samples", "1", "--prompts", "-1"],
            "--samples is 1, expected at least 2; --prompts is -1, expected at least 0",
        ),
        (["--temperature", "0"], "expected more than 0: greedy replies are all equal"),
        (["--grade-power", "1.5"], "--grade-power is 1.5"),
        (["--data", "synthetic:unlabelled*5"], "its pairs have no grade"),
        (["--model", "runs/gone"], "--model runs/gone: no such run here"),
    ],
)
def test_wrong_use_says_what_to_change(post, tmp_path, refused, more, message):
    assert message in refused(mine, "--model", post, *QUICK, "--out", tmp_path / "pairs.jsonl", *more)
    assert list(tmp_path.iterdir()) == []


def test_no_pairs_at_all_is_an_error_that_says_why(base, tmp_path, refused):
    flags = ["--model", base, "--data", "synthetic:labelled*6", "--samples", "2", "--max-new-tokens", "2"]
    message = refused(mine, *flags, "--out", tmp_path / "p.jsonl")
    assert "no preference pairs: 0 mined, 0 left after --source both --balance flow; outcomes" in message
    assert "{'no teacher': 6}" in message
    assert list(tmp_path.iterdir()) == []
