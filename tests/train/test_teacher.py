"""Exporting prompts to an outside LLM, importing its replies, and the command that does both."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from taosr1.data.judgements import Judgement, read_judgements, write_judgements
from taosr1.task.rules import load_rules
from taosr1.task.teacher import teacher_messages
from tests.teacher_rows import COTS, ROWS
from train.teacher import ImportReport, export_prompts, import_replies, main, row_ids

RULES = load_rules()
ROOT = Path(__file__).resolve().parents[2]


def save(path, replies):
    path.write_text("".join(json.dumps(reply) + "\n" for reply in replies), encoding="utf-8")
    return path


def test_export_writes_one_prompt_per_row_with_stable_ids(tmp_path):
    assert export_prompts(ROWS, RULES, 4, tmp_path / "prompts.jsonl") == 3
    first = (tmp_path / "prompts.jsonl").read_bytes()
    lines = [json.loads(line) for line in first.splitlines()]
    assert [line["id"] for line in lines] == row_ids(ROWS)
    assert [set(line) for line in lines] == [{"id", "messages"}] * 3
    export_prompts(ROWS, RULES, 4, tmp_path / "prompts.jsonl")
    assert (tmp_path / "prompts.jsonl").read_bytes() == first


def test_ids_name_the_row_and_do_not_depend_on_its_place():
    names = row_ids([*ROWS, ROWS[0], ROWS[1]])
    assert names[0] == "q1/i1" and names[1].startswith("row-") and names[3:] == ["q1/i1#2", f"{names[1]}#2"]
    assert len(set(names)) == 5
    assert len(set(row_ids([ROWS[0], ROWS[0], replace(ROWS[0], item_id="i1#2")] * 2))) == 6
    assert row_ids(ROWS[::-1]) == row_ids(ROWS)[::-1]


def test_a_slash_in_an_id_cannot_make_two_rows_one():
    row = replace(ROWS[0], query_id="a", item_id="b/c")
    assert row_ids([row]) == ["a/b/c"]
    assert row_ids([replace(row, query_id="a/b", item_id="c"), row])[1] == "a/b/c"


def test_rows_without_a_grade_stop_the_export_or_are_left_out(tmp_path):
    rows = [ROWS[0], replace(ROWS[1], grade=None), ROWS[2]]
    out = tmp_path / "prompts.jsonl"
    with pytest.raises(ValueError, match=r"row 2 \(id row-.*\) has no grade.*--skip-ungraded"):
        export_prompts(rows, RULES, 4, out)
    assert not out.exists()
    assert export_prompts(rows, RULES, 4, out, skip_ungraded=True) == 2
    with pytest.raises(ValueError, match="no row has a grade"):
        export_prompts([rows[1]], RULES, 4, tmp_path / "none.jsonl", skip_ungraded=True)
    with pytest.raises(ValueError, match="explains a known grade"):
        teacher_messages(rows[1], RULES, 4)


def test_openai_batch_requests_carry_the_same_messages(tmp_path):
    export_prompts(ROWS[:1], RULES, 4, tmp_path / "batch.jsonl", openai_model="any-model")
    assert json.loads((tmp_path / "batch.jsonl").read_text()) == {
        "custom_id": "q1/i1",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "any-model", "messages": teacher_messages(ROWS[0], RULES, 4)},
    }


def test_good_replies_become_chains_of_thought_in_the_order_of_the_data(tmp_path):
    replies = [{"id": name, "reply": cot} for name, cot in zip(row_ids(ROWS), COTS)][::-1]
    rows, report = import_replies(ROWS, save(tmp_path / "replies.jsonl", replies))
    assert rows == [replace(row, cot=cot) for row, cot in zip(ROWS, COTS)]
    assert report == ImportReport(accepted=3)


def test_every_reply_is_counted_under_what_it_is(tmp_path):
    names = row_ids(ROWS)
    replies = [
        {"id": names[0], "reply": COTS[0].replace("3-Related", "4-Excellent")},  # contradicted
        {"id": names[0], "reply": COTS[0]},  # accepted: a second try
        {"id": names[0], "reply": COTS[0]},  # duplicate
        {"id": names[1], "reply": "I think it is excellent."},  # unparsable
        {"id": names[1], "reply": COTS[1].replace("colour met", "colour is fine")},  # unparsable
        {"id": names[1], "reply": COTS[1].replace("Category: same", "Category: similar")},  # unparsable
        {"id": names[1], "reply": ""},  # unparsable
        {"id": "q9/i9", "reply": COTS[0]},  # unknown id
        {"id": names[2], "reply": COTS[2].replace("related accessory", "related substitute")},  # accepted, inconsistent
    ]
    rows, report = import_replies(ROWS, save(tmp_path / "replies.jsonl", replies))
    assert report == ImportReport(
        accepted=2, contradicted=1, unparsable=4, unknown_id=1, duplicate=1, inconsistent=1, unanswered=1
    )
    assert [row.query_id for row in rows] == ["q1", "q2"]
    assert str(report).startswith("accepted 2, contradicted 1, unparsable 4")


def test_replies_are_never_attached_to_another_row_or_to_an_ungraded_one(tmp_path):
    replies = save(tmp_path / "replies.jsonl", [{"id": row_ids(ROWS)[1], "reply": COTS[1]}])
    for other in (replace(ROWS[1], title="Blue mug"), replace(ROWS[1], grade=None)):
        assert import_replies([other], replies)[1].unknown_id == 1


def test_openai_batch_output_is_understood(tmp_path):
    def line(name, content):
        return {
            "id": "batch_1",
            "custom_id": name,
            "response": {"body": {"choices": [{"message": {"content": content}}]}},
            "error": None,
        }

    names = row_ids(ROWS)
    failed = {"id": "batch_2", "custom_id": names[2], "response": None, "error": {"code": "rate_limit"}}
    rows, report = import_replies(
        ROWS, save(tmp_path / "batch.jsonl", [line(names[0], COTS[0]), line(names[1], None), failed])
    )
    assert [row.cot for row in rows] == [COTS[0]]
    assert (report.accepted, report.unparsable, report.unanswered) == (1, 2, 2)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"id": "q1/i1"}, "fields ['reply'] are missing"),
        ({"id": 3, "reply": "x"}, "have to be text"),
        ({"id": "a", "reply": ["x"]}, "have to be text"),
        ({"custom_id": "a"}, "without 'response' and 'error'"),
    ],
)
def test_a_line_that_is_no_reply_is_a_bad_row(tmp_path, line, message):
    path = save(tmp_path / "replies.jsonl", [{"id": row_ids(ROWS)[0], "reply": COTS[0]}, line])
    with pytest.raises(ValueError) as caught:
        import_replies(ROWS, path)
    assert str(caught.value).startswith(f"{path}:2: ") and message in str(caught.value)
    assert import_replies(ROWS, path, max_bad_rows=1)[1].accepted == 1


def test_skipped_replies_are_counted(tmp_path, capsys):
    path = save(
        tmp_path / "replies.jsonl", [{"id": row_ids(ROWS)[0], "reply": COTS[0]}, {"id": 3, "reply": "x"}, ["no"]]
    )
    assert import_replies(ROWS, path, max_bad_rows=2)[1].accepted == 1
    assert (
        capsys.readouterr().err.splitlines()[-1]
        == f"{path}: skipped 2 of 3 rows: fields 'id' and 'reply' have to be text 1, a JSON list 1"
    )


def test_export_and_import_work_from_the_command_line(tmp_path, capsys):
    data, prompts, out = (str(tmp_path / name) for name in ("data.jsonl", "prompts.jsonl.gz", "reasoned.jsonl"))
    write_judgements(data, [*ROWS, Judgement("q", "ungraded")])
    assert main(["export", "--data", data, "--out", prompts]) == 2
    assert "has no grade" in capsys.readouterr().err
    assert main(["export", "--data", data, "--out", prompts, "--skip-ungraded", "--k", "3"]) == 0
    assert "3 prompts" in capsys.readouterr().out
    replies = str(
        save(tmp_path / "replies.jsonl", [{"id": name, "reply": cot} for name, cot in zip(row_ids(ROWS), COTS)])
    )
    assert main(["import", "--data", data, "--replies", replies, "--out", out]) == 0
    assert "accepted 3, contradicted 0" in capsys.readouterr().out
    assert [row.cot for row in read_judgements(out, need_grade=True, need_cot=True)] == COTS


def test_wrong_use_of_the_command_line_says_what_to_do(tmp_path, capsys):
    assert main(["export", "--data", str(tmp_path / "none.jsonl"), "--out", "x.jsonl"]) == 2
    assert "check --data" in capsys.readouterr().err
    data = tmp_path / "data.jsonl"
    write_judgements(data, ROWS)
    assert main(["import", "--data", str(data), "--replies", str(tmp_path / "none"), "--out", "x.jsonl"]) == 2
    assert "check --replies" in capsys.readouterr().err
    empty = save(tmp_path / "replies.jsonl", [{"id": "other", "reply": "x"}])
    assert main(["import", "--data", str(data), "--replies", str(empty), "--out", str(tmp_path / "out.jsonl")]) == 2
    assert "was accepted" in capsys.readouterr().err and not (tmp_path / "out.jsonl").exists()
    with pytest.raises(SystemExit):
        main(["export", "--data", str(data), "--out", "x.jsonl", "--unknown"])


def test_the_module_runs_as_a_command_and_its_help_teaches():
    for command, words in ((["--help"], "import the replies"), (["export", "--help"], "--skip-ungraded")):
        done = subprocess.run(
            [sys.executable, "train/teacher.py", *command],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0 and words in done.stdout and done.stderr == ""
