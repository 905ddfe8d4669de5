"""infer/explain.py: one pair in, grade and reasons out, and nothing in a title can steer the terminal."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from infer.explain import main
from taosr1.data.judgements import Judgement
from taosr1.runtime.jsonl import read_jsonl
from taosr1.runtime.messages import visible
from taosr1.serving.calibration import apply_temperature
from taosr1.serving.deployed import open_judge, store_temperature
from taosr1.serving.explain import Explanation
from taosr1.serving.scorer import score_prompts

PAIR = ["boots not leather", "Norvell suede hiking boots"]


def test_a_pair_on_the_command_line_is_judged_as_the_scorer_judges_it(fresh_judge, capsys):
    (found,) = main([*PAIR, "--price", "$19", "--model", fresh_judge("post-cot"), "--max-new-tokens", "8"])
    _, judge = open_judge(fresh_judge("post-cot"))  # as the scorer opens it: packed weights round in another order
    score = score_prompts(judge, judge.prompts([Judgement(*PAIR, price="$19")]))[0]
    assert (found["pred_grade"], found["tier"]) == (score.grade, score.tier)
    assert found["probs"] == pytest.approx(score.probs, abs=1e-6)
    assert (found["query"], found["title"], found["price"]) == (*PAIR, "$19")
    assert found["reply"].startswith(f"{found['pred_grade']}")  # the reasons are those for the grade that is shown
    printed = capsys.readouterr().out
    for words in ("boots not leather", "4-Excellent 0.", "label mass", "low label mass", "raise --max-new-tokens"):
        assert words in printed


def test_a_stored_temperature_scales_what_is_shown_and_says_so(fresh_judge, capsys):
    flags = [*PAIR, "--model", fresh_judge("label")]
    (plain,) = main(flags)
    stored = store_temperature(fresh_judge("label"), 0.05)
    capsys.readouterr()
    try:
        (scaled,) = main(flags)
        assert (
            "scaled by temperature 0.05 (calibration.json); --temperature-scaling off leaves them"
            in capsys.readouterr().err
        )
        (off,) = main([*flags, "--temperature-scaling", "off"])
        stored.write_text("{")
        with pytest.raises(ValueError, match="calibration.json is not valid JSON"):
            main(flags)
    finally:
        stored.unlink()
    assert (
        scaled["probs"] == pytest.approx(apply_temperature([plain["probs"]], 0.05)[0], abs=1e-4)
        and scaled["pred_grade"] == plain["pred_grade"]
    )
    assert off == plain and max(scaled["probs"]) > max(plain["probs"])


def test_flags_may_stand_between_query_and_title(fresh_judge):
    between = main([PAIR[0], "--price", "$19", "--model", fresh_judge("label"), PAIR[1]])
    assert between == main(["--price", "$19", "--model", fresh_judge("label"), *PAIR])
    (dashed,) = main(["--model", fresh_judge("label"), "--", "-boots", PAIR[1]])
    assert dashed["query"] == "-boots"


def test_a_taught_judge_gives_grade_then_reasons_for_every_row_of_a_file(
    taught_judge, eight_rows, eight_rows_file, tmp_path, capsys
):
    out = tmp_path / "explained.jsonl"
    found = main(["--data", eight_rows_file, "--limit", "0", "--model", taught_judge("post-cot"), "--out", str(out)])
    assert [one["pred_grade"] for one in found] == [one["grade"] for one in found] == [row.grade for row in eight_rows]
    assert all(one["finished"] and one["well_formed"] for one in found)
    assert [row for _, row in read_jsonl(out)] == found
    printed = capsys.readouterr().out
    assert printed.count("tier        ") == 8 and "low label mass" not in printed
    first = printed.split("\n\n")[0]
    assert first.index("grade       4-Excellent") < first.index("  Query:") < first.index("  Decision: 4-Excellent")


def test_a_thinker_gives_reasons_then_grade_and_no_probabilities(taught_judge, eight_rows, eight_rows_file, capsys):
    found = main(["--data", eight_rows_file, "--limit", "2", "--model", taught_judge("pre-cot")])
    assert [one["reply"] for one in found] == [row.cot for row in eight_rows[:2]]
    assert [(one["pred_grade"], one["tier"], one["probs"], one["label_mass"]) for one in found] == [
        (4, "Good", None, None)
    ] * 2
    printed = capsys.readouterr().out
    assert printed.index("  Decision: 4-Excellent") < printed.index("grade       4-Excellent")
    assert "probability" not in printed
    with pytest.raises(ValueError, match="no label probabilities, so CumPT cannot be used"):
        main([*PAIR, "--model", taught_judge("pre-cot"), "--beta", "0.5"])


def test_a_reply_that_cannot_be_parsed_is_said_to_be_one(fresh_judge, capsys):
    (found,) = main([*PAIR, "--model", fresh_judge("pre-cot"), "--max-new-tokens", "5"])
    assert found["pred_grade"] is None and found["tier"] is None
    assert "note: no grade: the reply cannot be parsed" in capsys.readouterr().out


def test_a_label_only_judge_says_that_it_gives_no_reasons(fresh_judge, capsys):
    (found,) = main([*PAIR, "--brand", "Norvell", "--model", fresh_judge("label")])
    printed = capsys.readouterr()
    assert found["reply"] == "" and found["pred_grade"] in (1, 2, 3, 4) and "it gives no reasons" in printed.out
    assert "reads only title, price; brand is ignored" in printed.err


def test_reasons_against_the_grade_are_pointed_out():
    pair, sure = Judgement(*PAIR), {"grade": 4, "tier": "Good", "probs": (0, 0, 0, 1), "label_mass": 0.99}
    found = Explanation(pair, "post-cot", 0.5, **sure, decision_grade=3, implied_grade=2)
    assert found.notes == [
        "reasoning and grade disagree: its Decision line says 3-Related",
        "reasoning and grade disagree: by the rules its steps imply 2-Mismatch",
    ]
    assert replace(found, decision_grade=4, implied_grade=None).notes == []


def test_control_characters_are_escaped_and_ordinary_text_of_any_script_is_not(fresh_judge, capsys):
    plain = "靴 👨\u200d👩\u200d👧 café\u00a0x\u3000y العربية \\x1b"
    assert visible(plain) == plain
    evil = "a\x1b[2J\x07\r\nb\x9bc\u202ed\u2066e\u2028f\x7f\udcffg\ufeff"
    assert visible(evil) == r"a\x1b[2J\x07\r\nb\x9bc\u202ed\u2066e\u2028f\x7f\udcffg\ufeff"
    main(["boots\x1b]0;owned\x07", evil, "--model", fresh_judge("post-cot"), "--max-new-tokens", "3"])
    printed = capsys.readouterr().out
    assert not set(printed) & set("\x1b\x07\r\x9b\u202e\u2066\u2028\x7f") and r"boots\x1b]0;owned\x07" in printed


def test_without_a_model_the_newest_finished_run_that_explains_is_taken(
    taught_judge, eight_rows_file, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)

    def named() -> str:
        main(["--data", eight_rows_file, "--limit", "1"])
        return re.search("^judge +(.*)$", capsys.readouterr().out, re.MULTILINE)[1]

    assert named() == "bundled-student"
    (tmp_path / "runs" / "begun" / "checkpoints").mkdir(parents=True)  # without a checkpoint yet
    made = {"thinker": "pre-cot", "newer": "post-cot", "labels": "label", "unfinished": "post-cot"}
    for age, (run, order) in enumerate(made.items()):
        shutil.copytree(taught_judge(order), tmp_path / "runs" / run)
        for step in (tmp_path / "runs" / run / "checkpoints").glob("step-*"):
            os.utime(step, (1e9 + age, 1e9 + age))
    config = tmp_path / "runs" / "unfinished" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"steps": 10**6}))
    assert named() == "runs/newer"  # labels gives no reasons, unfinished was stopped
    for step in (tmp_path / "runs" / "thinker" / "checkpoints").glob("step-*"):
        os.utime(step, (2e9, 2e9))
    assert named() == "runs/thinker"
    (tmp_path / "runs" / "thinker" / "config.json").write_text("{")
    assert named() == "runs/newer"  # a damaged run does not stand in the way


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], 'expected a query and a title: python infer/explain.py "travel mug but not steel"'),
        (["boots"], "expected a query and a title"),
        (["boots", " "], "expected a query and a title"),
        ([*PAIR, "more"], "unrecognized arguments: more"),
        ([*PAIR, "--frobnicate"], "unrecognized arguments: --frobnicate"),
        ([*PAIR, "--data", "x.jsonl"], "--data brings its own queries and titles"),
        (["--data", "x.jsonl", "--price", "$1"], "--data brings its own fields: leave out --price"),
        (
            [*PAIR, "--beta", "2", "--out", "x.txt"],
            ".jsonl or .jsonl.gz, or - for the standard output; --beta is 2.0",
        ),
    ],
)
def test_wrong_flags_end_with_a_message(flags, message, capsys):
    with pytest.raises(SystemExit):
        main(flags)
    assert message in capsys.readouterr().err


def test_wrong_models_and_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="--model runs/gone: no such run here"):
        main([*PAIR, "--model", "runs/gone"])
    with pytest.raises(FileNotFoundError, match="is not a model folder"):
        main([*PAIR, "--model", str(tmp_path)])
    with pytest.raises(FileNotFoundError, match="check --data"):
        main(["--data", str(tmp_path / "gone.jsonl")])


def test_a_config_file_may_hold_query_and_title_and_help_teaches(fresh_judge, tmp_path, capsys):
    path = Path(tmp_path) / "settings.json"
    path.write_text(json.dumps({"query": PAIR[0], "title": PAIR[1], "model": fresh_judge("label")}))
    assert main(["--config", str(path)])[0]["title"] == PAIR[1]
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    for words in (
        'python infer/explain.py "travel mug but not steel"',
        "[QUERY] [TITLE]",
        "--price",
        "what the shopper typed",
    ):
        assert words in printed


def test_a_grade_in_another_scale_is_written_back_as_it_is(fresh_judge, tmp_path):
    data, out = tmp_path / "wands.csv", tmp_path / "out.jsonl"
    data.write_text("query,product_name,label\nmug,Steel mug,Exact\nmug,Wool hat,Irrelevant\n", encoding="utf-8")
    main(["--data", str(data), "--out", str(out), "--model", fresh_judge("post-cot"), "--max-new-tokens", "4"])
    rows = [row for _, row in read_jsonl(out)]
    assert [(row["product_name"], row["label"]) for row in rows] == [("Steel mug", "Exact"), ("Wool hat", "Irrelevant")]
    assert all(row["pred_grade"] in (1, 2, 3, 4) and "grade" not in row for row in rows)
