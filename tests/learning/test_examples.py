"""From judgements to examples: what is learned, what is left out, and what is too long."""

from __future__ import annotations

from dataclasses import replace

import pytest

from taosr1.learning.examples import agreeing, examples_of
from taosr1.synthetic.shop import read_pool


def test_chains_of_thought_that_contradict_the_gold_grade_are_left_out(capsys):
    rows = read_pool("reasoned", 100)
    kept = agreeing(rows)
    assert 60 < len(kept) < 95 and f"{100 - len(kept)} of 100 chains of thought contradict" in capsys.readouterr().out
    assert all(f"Decision: {row.grade}-" in row.cot for row in kept)
    with pytest.raises(ValueError, match="leaves no row to learn from .*--cots all"):
        agreeing([row for row in rows if row not in kept])


@pytest.mark.parametrize("order", ["label", "pre-cot", "post-cot"])
def test_an_example_is_the_prompt_and_the_reply_in_the_judge_s_order(make_judge, order):
    judge = make_judge(order, max_position_embeddings=300)
    rows = read_pool("reasoned", 3)
    assert examples_of(judge, []) == []
    for row, example in zip(rows, examples_of(judge, rows), strict=True):
        assert example.prompt == judge.prompts([row])[0] and example.reply[-1] == judge.tokenizer.eos_ids[0]
        expected = {"label": str(row.grade), "pre-cot": row.cot, "post-cot": f"{row.grade}\n{row.cot}"}[order]
        assert judge.reply_text(example.reply) == expected


def test_the_whole_of_a_long_row_is_too_much_but_no_row_is_lost(make_judge):
    judge = make_judge("post-cot", max_position_embeddings=300)
    row = replace(read_pool("reasoned", 1)[0], title="旅行" * 3000)
    (example,) = examples_of(judge, [row])
    assert example.length_tok <= 300 and judge.reply_text(example.reply) == f"{row.grade}\n{row.cot}"
    with pytest.raises(
        ValueError, match=r"--sft-data: row 2 takes \d+ \+ \d+ tokens with its reply, the model has 300 positions"
    ):
        examples_of(judge, [row, replace(row, cot=row.cot.replace("Item:", "Item: " + "杯" * 300))], "--sft-data")
