"""What infer/score.py writes for other programs, checked by reading it as they do; and what it does not overwrite."""

from __future__ import annotations

import csv
import gzip
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from infer.evaluate import main as evaluate
from infer.explain import main as explain
from infer.sample import main as sample
from infer.score import main as score
from taosr1.data.judgements import read_judgements, read_rows
from taosr1.runtime.jsonl import read_jsonl
from taosr1.serving.formats import Rated, run_lines
from train.teacher import main as teacher

ROOT = Path(__file__).parents[2]
QUERIES = ('mug, "big"', "boots\tnot\nleather", "=HYPERLINK(1)")
ROWS = [
    {"query": query, "query_id": f"q{place}", "item_id": f"sku-{place}{number}", "title": title, "grade": 4 - number}
    for place, query in enumerate(QUERIES)
    for number, title in enumerate(("steel mug", "leather boots", "靴 <b>"))
]


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def scored(fresh_judge, tmp_path):
    """scored(rows, out name, *flags): the path of what was written."""

    def run(rows: list[dict], name: str, *flags: str) -> Path:
        data = write(tmp_path / "rows.jsonl", rows)
        score(["--model", fresh_judge("post-cot"), "--data", data, "--out", str(tmp_path / name), *flags])
        return tmp_path / name

    return run


@pytest.fixture
def predictions(scored) -> list[dict]:
    return [row for _, row in read_jsonl(scored(ROWS, "all.jsonl"))]


def groups(predictions: list[dict], name: str) -> dict[str, list[dict]]:
    found: dict[str, list[dict]] = {}
    for row in predictions:
        found.setdefault(row[name], []).append(row)
    return found


# ---- Judgements and runs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [("judged.qrels",), ("judged.trec",), ("judged.txt", "--format", "trec")])
def test_trec_qrels_hold_one_rating_a_pair(scored, predictions, flags):
    lines = scored(ROWS, *flags).read_text().splitlines()
    expected = [(row["query_id"], "0", row["item_id"], str(row["pred_grade"] - 1)) for row in predictions]
    assert [tuple(line.split()) for line in lines] == expected


def test_a_trec_run_ranks_each_query_by_score_and_equal_scores_by_their_order(scored, predictions):
    again = [{**row, "item_id": f"{row['item_id']}-again"} for row in ROWS]  # the same text, so the same score
    lines = [line.split() for line in scored(ROWS + again, "ranked.run").read_text().splitlines()]
    tag = f"taosr1-{predictions[0]['prompt_sha']}"
    assert all(line[1] == "Q0" and line[5] == tag for line in lines) and len(lines) == 18
    for query_id, group in groups(predictions, "query_id").items():
        own = [line for line in lines if line[0] == query_id]
        best = sorted(group, key=lambda row: -row["score"])
        assert [line[2] for line in own] == [row["item_id"] + end for row in best for end in ("", "-again")]
        assert [int(line[3]) for line in own] == list(range(1, 7))
        assert [float(line[4]) for line in own] == sorted((float(line[4]) for line in own), reverse=True)


def test_quepid_gets_every_query_exactly_as_it_is(scored, predictions):
    with open(scored(ROWS, "ratings.csv", "--format", "quepid"), newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["query", "docid", "rating"]
    assert rows == [[row["query"], row["item_id"], str(row["pred_grade"] - 1)] for row in predictions]


def test_elasticsearch_gets_a_rank_eval_body(scored, predictions):
    body = json.loads(scored(ROWS, "eval.json", "--format", "elasticsearch", "--index", "shop").read_text())
    assert body.keys() == {"requests", "metric"}
    for request, (query_id, group) in zip(body["requests"], groups(predictions, "query_id").items(), strict=True):
        assert request["id"] == query_id
        assert request["request"] == {"query": {"match": {"title": {"query": group[0]["query"]}}}}
        ratings = [{"_index": "shop", "_id": row["item_id"], "rating": row["pred_grade"] - 1} for row in group]
        assert request["ratings"] == ratings


def test_opensearch_gets_judgment_ratings_as_text(scored, predictions):
    body = json.loads(scored(ROWS, "imported.json", "--format", "opensearch").read_text())
    assert (body["name"], body["type"]) == ("imported", "IMPORT_JUDGMENT")
    assert body["description"].endswith(f"prompt_sha {predictions[0]['prompt_sha']}")
    for found, (query, group) in zip(body["judgmentRatings"], groups(predictions, "query").items(), strict=True):
        ratings = [{"docId": row["item_id"], "rating": f"{row['pred_grade'] - 1}.000"} for row in group]
        assert found == {"query": query, "ratings": ratings}


@pytest.mark.parametrize("form", ["trec", "quepid", "elasticsearch", "opensearch"])
def test_a_product_without_an_id_is_refused_before_scoring(scored, form):
    with pytest.raises(ValueError, match=r"needs the id of every product, but 2 rows \(2, 3\) have no item_id"):
        scored([ROWS[0], {**ROWS[1], "item_id": " "}, {"query": "a", "title": "b"}], "out", "--format", form)


def test_a_missing_query_id_is_made_from_the_text_and_said(scored, capsys):
    rows = [{**row, "query_id": ""} for row in ROWS]
    ids = [line.split()[0] for line in scored(rows, "made.qrels").read_text().splitlines()]
    assert len(set(ids)) == 3 and ids[0] == ids[1] and all(re.fullmatch("q-[0-9a-f]{16}", name) for name in ids)
    assert "note: 9 rows have no query_id" in capsys.readouterr().err
    backwards = [line.split()[0] for line in scored(rows[::-1], "backwards.qrels").read_text().splitlines()]
    assert backwards == ids[::-1]  # of the text alone


def test_a_row_without_a_query_id_belongs_to_the_query_of_its_text(scored):
    rows = [ROWS[0], {**ROWS[1], "query_id": None}, {**ROWS[3], "query_id": ""}]
    ids = [line.split()[0] for line in scored(rows, "some.qrels").read_text().splitlines()]
    assert ids[:2] == ["q0", "q0"] and ids[2].startswith("q-")


@pytest.mark.parametrize("form", ["trec", "elasticsearch"])
def test_one_query_id_of_two_queries_is_refused_where_queries_are_known_by_id(fresh_judge, tmp_path, form):
    """Two files, each numbered from 1."""
    for name, query in (("a", "mug"), ("b", "boots")):
        write(tmp_path / f"{name}.jsonl", [{"query": query, "title": name, "query_id": 1, "item_id": name}])
    files = ["--data", f"{tmp_path}/a.jsonl,{tmp_path}/b.jsonl", "--out", str(tmp_path / "out")]
    with pytest.raises(ValueError, match="query_id '1' is 'mug' and, in row 2, 'boots'"):
        score(["--model", fresh_judge("label"), *files, "--format", form])
    score(["--model", fresh_judge("label"), *files, "--format", "quepid"])
    assert (tmp_path / "out").read_text().count("\n") == 3


@pytest.mark.parametrize("broken", [{"item_id": "a b"}, {"query_id": "red\tshoes"}, {"item_id": "a\u2028b"}])
def test_ids_with_white_space_are_refused_where_it_separates_columns(scored, broken):
    rows = [ROWS[0], {**ROWS[1], **broken}]
    with pytest.raises(ValueError, match=f"a {next(iter(broken))} holds white space.* in row 2 "):
        scored(rows, "out.run")
    assert len(json.loads(scored(rows, "out.json", "--format", "opensearch").read_text())["judgmentRatings"]) == 1


def test_repeated_pairs_are_written_once_and_counted(scored, capsys):
    rows = ROWS[:3] + ROWS[:2]
    assert len(scored(rows, "out.qrels").read_text().splitlines()) == 3
    assert "note: 2 rows repeat a query and an item_id: the first of each is written" in capsys.readouterr().err


# ---- CSV -------------------------------------------------------------------------------------------------------------

HOSTILE = [
    {"query": "a", "title": '=HYPERLINK("http://evil.example","free")', "note": "'=quoted already"},
    {"query": "@SUM(1)", "title": "+49 30 1234", "brand": "-10 % today", "note": "''@x"},
    {"query": "semi;colon, comma", "title": 'a "big"\nmug\tred', "price": 19.5, "note": "it's plain"},
    {"query": "café", "title": "靴", "attributes": {"colour": "red", "size": ["S", "M"]}, "category": ["Shoes", "Men"]},
    {"query": "n", "title": "0012", "tags": ["x"], "sold": True, "grade": 3},
]


@pytest.mark.parametrize("name", ["scored.csv", "scored.csv.gz"])
def test_csv_reads_back_unchanged_and_runs_no_formula(scored, name):
    path = scored(HOSTILE, name)
    data = gzip.decompress(path.read_bytes()) if name.endswith("gz") else path.read_bytes()
    records = list(csv.reader(data.decode("utf-8-sig").splitlines(keepends=True)))
    assert data.startswith(b"\xef\xbb\xbf") and {len(record) for record in records} == {len(records[0])}
    assert not [cell for record in records for cell in record if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
    expected = read_judgements(write(path.parent / "own.jsonl", HOSTILE))
    found = read_judgements(path)
    for before, after, raw in zip(expected, found, HOSTILE, strict=True):
        for column in ("query", "title", "brand", "price", "attributes", "category", "grade"):
            assert getattr(after, column) == getattr(before, column)
        assert after.extra["note"] == raw.get("note", "")
    rows = [row for _, row in read_rows(path)]
    assert rows[4]["tags"] == '["x"]' and rows[4]["sold"] == "true"


def test_csv_holds_the_predictions_of_jsonl(scored):
    lines = [row for _, row in read_jsonl(scored(ROWS, "all.jsonl"))]
    cells = [row for _, row in read_rows(scored(ROWS, "all.csv"))]
    for cell, line in zip(cells, lines, strict=True):
        assert (cell["tier"], cell["prompt_sha"]) == (line["tier"], line["prompt_sha"])
        for name in ("pred_grade", "probs", "label_mass", "score"):
            assert json.loads(cell[name]) == line[name]


def test_csv_of_ascii_text_has_no_byte_order_mark(scored):
    assert scored([{"query": "mug", "title": "steel mug"}], "plain.csv").read_bytes().startswith(b"query,title,pred_")


def test_csv_is_measured_as_jsonl_is(scored, capsys):
    reports = [evaluate(["--scores", str(scored(ROWS, name)), "--bootstrap", "0"]) for name in ("a.jsonl", "a.csv")]
    assert reports[0]["metrics"] == reports[1]["metrics"] and reports[0]["rows"] == 9


# ---- Columns of the input that have our names ------------------------------------------------------------------------


OWN = [{"score": 17.5}, {"tier": "gold", "probs": "n/a"}, {"pred_grade": 2, "input_score": 1}]


@pytest.mark.parametrize("own", OWN)
def test_columns_with_our_names_are_kept_as_input_and_said(scored, capsys, own):
    (row,) = (row for _, row in read_jsonl(scored([{"query": "mug", "title": "steel mug", **own}], "out.jsonl")))
    said = capsys.readouterr().err
    for name, value in own.items():
        kept = name if name == "input_score" else f"input_{name}"
        assert row[kept] == value and (name == "input_score" or f"the input's own {name!r} is kept as 'input_" in said)
    assert row["pred_grade"] in (1, 2, 3, 4) and 0 <= row["score"] <= 1 and isinstance(row["probs"], list)


def test_an_explanation_or_a_sample_scored_again_has_one_prediction(scored, fresh_judge, tmp_path):
    judge = ["--model", fresh_judge("post-cot"), "--data", write(tmp_path / "in.jsonl", ROWS[:2])]
    explain([*judge, "--max-new-tokens", "3", "--out", str(tmp_path / "explained.jsonl")])
    sample([*judge, "--samples", "2", "--max-new-tokens", "3", "--out", str(tmp_path / "sampled.jsonl")])
    for name, count in (("explained", 2), ("sampled", 4)):
        again = tmp_path / f"{name}-scored.jsonl"
        score(["--model", judge[1], "--data", str(tmp_path / f"{name}.jsonl"), "--out", str(again)])
        rows = [row for _, row in read_jsonl(again)]
        assert len(rows) == count and not any(column.startswith("input_") for row in rows for column in row)
        assert [row["grade"] for row in rows] == [row["grade"] for row in ROWS[:2] for _ in range(count // 2)]


def test_where_grade_and_tier_differ_is_counted_and_explained(scored, capsys):
    path = scored(ROWS, "out.jsonl", "--beta", "0.999")
    best = {4: "Good", 3: "Good", 2: "Mid", 1: "Bad"}
    differ = sum(best[row["pred_grade"]] != row["tier"] for _, row in read_jsonl(path))
    assert differ and f"in {differ} rows the most probable grade and CumPT's tier differ: " in capsys.readouterr().out


# ---- Standard input and output ---------------------------------------------------------------------------------------


def pipe(fresh_judge, data: bytes, *flags: str, script: str = "score") -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "infer" / f"{script}.py"), "--model", fresh_judge("post-cot"), "--data", "-"]
    return subprocess.run([*command, "--out", "-", *flags], input=data, capture_output=True)


INPUTS = {
    "jsonl": b'{"query": "mug", "title": "steel mug"}\n{"query": "mug", "title": "boots"}\n',
    "csv": b"query,title\nmug,steel mug\nmug,boots\n",
    "tsv": b"query\ttitle\nmug\tsteel mug\nmug\tboots\n",
    "csv with a byte order mark": b"\xef\xbb\xbfquery,title\r\nmug,steel mug\r\nmug,boots\r\n",
    "gzip": gzip.compress(b'{"query": "mug", "title": "steel mug"}\n{"query": "mug", "title": "boots"}\n'),
}


@pytest.mark.parametrize("data", INPUTS.values(), ids=INPUTS.keys())
def test_rows_come_from_the_standard_input_and_only_rows_go_to_the_standard_output(fresh_judge, data):
    answer = pipe(fresh_judge, data)
    rows = [json.loads(line) for line in answer.stdout.splitlines()]
    assert answer.returncode == 0 and [row["title"] for row in rows] == ["steel mug", "boots"], answer.stderr
    assert all(row["pred_grade"] in (1, 2, 3, 4) for row in rows) and b"2 pairs scored by" in answer.stderr


@pytest.mark.parametrize("script", ["explain", "sample"])
def test_the_other_scripts_read_and_write_pipes_too(fresh_judge, script):
    answer = pipe(fresh_judge, INPUTS["csv"], "--max-new-tokens", "3", script=script)
    rows = [json.loads(line) for line in answer.stdout.splitlines()]
    assert answer.returncode == 0 and len(rows) == {"explain": 2, "sample": 10}[script] and answer.stderr


def test_other_formats_go_to_the_standard_output_too(fresh_judge):
    data = b"query,title,item_id,query_id\nmug,steel mug,a,1\nmug,boots,b,1\n"
    assert re.fullmatch(rb"1 0 a [0-3]\n1 0 b [0-3]\n", pipe(fresh_judge, data, "--format", "trec").stdout)
    assert pipe(fresh_judge, data, "--format", "csv").stdout.startswith(b"query,title,item_id,query_id,pred_grade,")


def test_a_reader_that_leaves_early_is_no_error(fresh_judge):
    rows = b"query,title\n" + b"mug,steel mug\n" * 3000  # more than a pipe holds
    command = f"'{sys.executable}' infer/score.py --model '{fresh_judge('post-cot')}' --data - --out - | head -1"
    answer = subprocess.run(["bash", "-o", "pipefail", "-c", command], cwd=ROOT, input=rows, capture_output=True)
    assert answer.returncode == 0 and answer.stdout.count(b"\n") == 1
    assert not re.search(rb"(?i)error|broken|traceback|exception", answer.stderr), answer.stderr


def test_ranks_share_no_pipe(fresh_judge, as_rank):
    flags = ["--model", fresh_judge("post-cot"), "--data", "synthetic:dev*4", "--out", "-"]
    with pytest.raises(ValueError, match="--out -: 2 ranks share their answers through files"):
        as_rank(0, 2, score, flags)
    with pytest.raises(ValueError, match="--data -: 2 ranks do not share a standard input"):
        as_rank(1, 2, score, [*flags[:3], "-", "--out", "x.jsonl"])


# ---- Nothing is overwritten unasked ----------------------------------------------------------------------------------


@pytest.mark.parametrize("script", [score, explain, sample, evaluate])
def test_a_finished_file_is_replaced_only_when_asked(script, fresh_judge, tmp_path):
    out = tmp_path / ("report.json" if script is evaluate else "out.jsonl")
    out.write_text("mine\n")
    small = ["--bootstrap", "0"] if script is evaluate else []
    flags = ["--model", fresh_judge("label"), "--data", write(tmp_path / "rows.jsonl", ROWS), "--out", str(out), *small]
    with pytest.raises(ValueError, match=f"--out {out} is there already: --overwrite replaces it"):
        script(flags)
    assert out.read_text() == "mine\n"
    script([*flags, "--overwrite"])
    assert out.read_text() != "mine\n"


def test_the_teachers_files_are_replaced_only_when_asked(tmp_path, capsys):
    data, out = write(tmp_path / "rows.jsonl", ROWS), tmp_path / "prompts.jsonl"
    command = ["export", "--data", data, "--out", str(out)]
    assert teacher(command) == 0 and teacher(command) == 2
    assert "is there already: --overwrite replaces it" in capsys.readouterr().err
    assert teacher([*command, "--overwrite"]) == 0


def test_continuing_an_interrupted_job_is_no_overwriting(fresh_judge, tmp_path, monkeypatch, as_rank):
    monkeypatch.setattr("infer.score.ROWS_AT_A_TIME", 2)
    out = tmp_path / "out.jsonl"
    out.write_text("mine\n")
    data = write(tmp_path / "rows.jsonl", ROWS)
    command = ["--model", fresh_judge("label"), "--data", data, "--out", str(out)]
    as_rank(0, 1, score, [*command, "--overwrite"], after=2)
    assert out.read_text() == "mine\n"
    assert score(command)["rows"] == 9  # it was asked for when the job began
    with pytest.raises(ValueError, match="is there already"):
        score(command)


def test_a_rank_of_another_job_does_not_overwrite_what_ranks_have_written(fresh_judge, tmp_path, as_rank):
    data, out = write(tmp_path / "rows.jsonl", ROWS), tmp_path / "out.jsonl"
    command = ["--model", fresh_judge("label"), "--data", data, "--out", str(out)]
    as_rank(0, 1, score, command)
    (tmp_path / "out.jsonl.done.json").write_text("{}")
    before = out.read_bytes()
    with pytest.raises(ValueError, match="is there already"):
        as_rank(0, 2, score, [*command, "--beta", "0.1"])
    assert out.read_bytes() == before


def test_scores_of_a_run_fall_strictly_so_that_its_ranks_are_those_of_trec_eval():
    scores = [0.0, 0.7, 0.7, 0.7000004, 1.0, 1.0, 0.0]
    pairs = [Rated("q", "mug", f"i{number}", 0, score) for number, score in enumerate(scores)]
    lines = [line.split() for line in run_lines(pairs, "abc")]
    assert {line[5] for line in lines} == {"taosr1-abc"}
    assert [line[2] for line in lines] == ["i4", "i5", "i3", "i1", "i2", "i0", "i6"]
    written = [float(line[4]) for line in lines]
    assert len(set(written)) == 7 and written == sorted(written, reverse=True)
    right = sorted(scores, reverse=True)
    assert all(abs(one - other) < 3e-6 for one, other in zip(written, right))
