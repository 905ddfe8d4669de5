"""What is said of rows before a run begins, and what `python -m taosr1.data.inspect` shows of a file."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys

import pytest

from taosr1.data.inspect import main
from taosr1.data.judgements import Judgement
from taosr1.data.summary import describe, grade_examples, grade_shares, prompt_lengths, seen_columns
from taosr1.judge_model import BUNDLED_FOLDER
from taosr1.model.tokenizer import Tokenizer
from taosr1.task.prompt import PromptConfig, encode_prompt

TOKENIZER = Tokenizer(BUNDLED_FOLDER)
BRIEF = PromptConfig(style="brief", fields=("title", "price"), max_chars=30)


@pytest.mark.parametrize(
    ("grades", "said"),
    [
        ([4, 4, 4, 1], "grades 4-Excellent 75.0 %, 3-Related 0.0 %, 2-Mismatch 0.0 %, 1-Irrelevant 25.0 %"),
        ([None, None], "no grades"),
        ([3, None], "3-Related 50.0 %, 2-Mismatch 0.0 %, 1-Irrelevant 0.0 %, no grade 50.0 %"),
    ],
)
def test_grade_shares(grades, said):
    assert grade_shares([Judgement("q", "t", grade=grade) for grade in grades]).endswith(said)


@pytest.mark.parametrize(
    ("titles", "positions", "said"),
    [
        (["red mug", "mug", "blue steel mug for tea"], 4096, "no text is cut"),
        (["a" * 31, "a" * 30], 4096, "1 row with a text cut to 30 characters"),
        (["x y z x y z x y"] * 3, 12, "no text is cut, 3 are shortened to fit 12 positions"),
        (["red mug", "mug"] * 1500, 4096, "of 1,000 looked at; no text is cut"),
    ],
)
def test_lengths_in_tokens_and_texts_that_are_cut(titles, positions, said):
    rows = [Judgement("q", title) for title in titles]
    lengths = [len(encode_prompt(TOKENIZER, row, BRIEF)) for row in rows]
    longest = min(max(lengths[:: len(rows) // 1000 or 1]), positions - positions // 4)
    found = prompt_lengths(rows, TOKENIZER, BRIEF, positions)
    assert said in found and f"{longest} the longest" in found
    if len(rows) < 1000:
        assert found.startswith(f"prompts of {int(statistics.median(lengths))} tokens (median)")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"price": "$1"}, "the judge sees query, title, price"),
        ({"brand": "x"}, "sees query, title; it does not see brand (in 100 % of the rows); it could also read price"),
        ({"attributes": "a: b", "price": "1"}, "sees query, title, price; it does not see attributes (in 100 %"),
    ],
)
def test_columns_that_the_judge_sees_and_those_that_it_does_not(row, said):
    assert said in seen_columns([Judgement("q", "t", **row)], BRIEF)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([("mug", "Blue mug", 1), ("mug", "Lamp", 4), ("cup", "x", 2)],
         "4-Excellent, such as: mug | Lamp; 1-Irrelevant, such as: mug | Blue mug"),
        ([("a", "b", 3), ("c", "d", 2), ("e", "f", None)], "3-Related, such as: a | b; 2-Mismatch, such as: c | d"),
        ([("a", "b\n\x1b[2J", 4), ("c\u202e", "d" * 99, 1)],
         "4-Excellent, such as: a | b \\x1b[2J; 1-Irrelevant, such as: c\\u202e | " + "d" * 57 + "..."),
        ([("a", "b", 4), ("c", "d", 4)], ""),
        ([("a", "b", None)], ""),
    ],
)  # fmt: skip
def test_one_pair_of_the_best_grade_and_one_of_the_worst_show_which_way_round_a_scale_is(rows, said):
    rows = [Judgement(query, title, grade=grade) for query, title, grade in rows]
    assert grade_examples(rows) == said
    printed = describe(rows, "--data", TOKENIZER, BRIEF, 100)
    assert f"  {said}" in printed if said else len(printed) == 3


def test_no_rows_are_said_too():
    assert describe([], "--data", TOKENIZER, BRIEF, 100) == ["--data: no rows"]


def save(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"query": "a", "title": t, "grade": g} for t, g in (("b", 0), ("c", 1))], ["0-based", "no grades"]),
        ([{"query": "a", "title": "b"}, {"query": ""}, {"query": "c", "title": "d"}, []], ["skipped 2 of 4 rows"]),
        ([{"query": "a", "title": "b", "grade": g} for g in (1, 4, 4)], ["2 rows contradicted", "1 row with the"]),
        ([{"query": "a", "title": t, "split": s} for t, s in ("xp", "yp", "xq")],
         ["split: p 2, q 1", "'p' and 'q' share 1 pair and 1 query"]),
        ([{"query": "a", "title": t, "Split": s, "grade": 4} for t, s in (("x", "Train"), ("X", " test"))],
         ["split: train 1, test 1", "'train' and 'test' share 1 pair and 1 query"]),
        ([{"query": "a", "title": t, "grade": g} for t, g in (("x", 1), ("y", 3))],
         ["no grade is 4 (values found: 1, 3)", "3-Related, such as: a | y; 1-Irrelevant, such as: a | x"]),
        ([{"query": "a\x1b[2J", "title": "<|user|> \u202e"}], ["a\\x1b[2J", "\\u202e"]),
        ([{"query": "a", "title": "b", "brand": "c", "rank": 7}], ["not see brand", "not read: rank", "brand 100 %"]),
        ([{"query": "a", "title": "b", "pred_grade": 3, "probs": 1}], ["'pred_grade': predictions"]),
    ],
)  # fmt: skip
def test_inspect_shows_what_is_in_a_file_and_stops_at_nothing(tmp_path, capsys, rows, said):
    main([save(tmp_path / "rows.jsonl", rows)])
    printed = capsys.readouterr().out
    assert not [text for text in said if text not in printed] and "\x1b" not in printed and "\u202e" not in printed
    assert "the prompt of the first row" in printed


def test_inspect_compares_two_files(tmp_path, capsys):
    rows = [{"query": f"q{n}", "title": f"t{n}", "grade": 1 + n % 4} for n in range(9)]
    one, two = save(tmp_path / "a.jsonl", rows[:6]), save(tmp_path / "b.jsonl", rows[4:])
    main([one, "--other", two])
    assert f"warning: 2 of 5 pairs of {two} are in {one} too" in capsys.readouterr().out
    main([one, "--other", save(tmp_path / "c.jsonl", rows[7:])])
    assert "2 rows, no pair and no query of" in capsys.readouterr().out


def test_inspect_runs_as_a_module_and_needs_a_file(tmp_path):
    path = save(tmp_path / "rows.jsonl", [{"query": "a", "title": "b"}])
    run = [sys.executable, "-m", "taosr1.data.inspect"]
    done = subprocess.run([*run, path], capture_output=True, text=True)
    assert done.returncode == 0 and "1 row of 1 query" in done.stdout and done.stderr == ""
    assert "expected a file" in subprocess.run(run, capture_output=True, text=True).stderr


def test_inspect_says_where_two_files_contradict_each_other(tmp_path, capsys):
    files = [
        save(tmp_path / f"{name}.jsonl", [{"query": "lamp", "title": t, "grade": g, "item_id": i} for t, g, i in rows])
        for name, rows in (("a", [("Lamp", 4, "1"), ("Mug", 1, "2")]), ("b", [(" LAMP", 2, "9"), ("x", 4, "2")]))
    ]
    main([",".join(files)])
    printed = capsys.readouterr().out
    assert "1 row contradicted a row of another file" in printed and f"first 4 in {files[0]}:1 and 2 in" in printed
    assert f"1 item_id of several files has several titles, first '2' in {files[0]}:2 and {files[1]}:2" in printed
