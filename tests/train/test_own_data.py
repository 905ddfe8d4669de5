"""Trainings on one's own files: divided by query, warned where they overlap, refused where the grades are no gold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from taosr1.data.judgements import Judgement, write_judgements
from taosr1.data.scales import GradesError
from taosr1.judge_model import load_judge
from train.dpo import main as dpo
from train.grpo import main as grpo
from train.label_pool import main as label_pool
from train.sft import main as sft


def save(path, rows):
    write_judgements(path, rows)
    return str(path)


@pytest.fixture
def own(tmp_path) -> str:
    rows = [
        Judgement(f"{what} {n // 2}", f"steel {what} {n}", grade=1 + n % 4)
        for what in ("mug", "hub")
        for n in range(16)
    ]
    return save(tmp_path / "own.jsonl", rows)


def run_sft(base, data, out, *more):
    quick = ["--order", "label", "--steps", "2", "--batch-size", "4", "--out", str(out)]
    return sft(["--model", base, "--data", data, *quick, *more])


def test_sft_sets_queries_aside_and_goes_on_with_the_same_ones(base, own, tmp_path, capsys):
    run_sft(base, own, tmp_path / "run", "--eval-every", "1")
    said = capsys.readouterr().err
    assert "--data are set aside for it" in said and "--data: 24 rows of 12 queries" in said
    assert "--dev: 8 rows of 4 queries" in said and "the judge sees query, title" in said
    identity = json.loads((tmp_path / "run/identity.json").read_text(encoding="utf-8"))
    assert identity["data"].startswith("24 rows") and identity["dev"].startswith("8 rows")
    run_sft(base, own, tmp_path / "run", "--eval-every", "1", "--steps", "3")
    with pytest.raises(ValueError, match="holds a run with other settings or data"):
        run_sft(base, own, tmp_path / "run", "--eval-every", "1", "--steps", "4", "--seed", "1")


def test_grpo_compares_on_no_pool_of_the_shop(post, own, tmp_path, capsys):
    grpo(["--model", post, "--data", own, "--steps", "1", "--groups", "4", "--samples", "2", "--min-groups", "0",
          "--max-new-tokens", "4", "--eval-every", "0", "--out", str(tmp_path / "run")])  # fmt: skip
    assert "are set aside" in capsys.readouterr().err and not (tmp_path / "run/test.json").exists()
    config = json.loads((tmp_path / "run/config.json").read_text(encoding="utf-8"))
    assert (config["dev"], config["test"]) == ("auto", "")


def test_the_embedded_shop_keeps_its_dev_pool_and_says_so_in_the_config(base, tmp_path):
    run_sft(base, "synthetic:labelled*20", tmp_path / "run", "--dev-rows", "8")
    assert json.loads((tmp_path / "run/config.json").read_text(encoding="utf-8"))["dev"] == "synthetic:dev"


@pytest.mark.parametrize("columns", ["new", "old", "unlabelled"])
def test_a_scored_file_without_gold_is_not_trained_on(base, tmp_path, columns):
    scored = {"tier": "Mid", "probs": [0.1, 0.7, 0.1, 0.1], "label_mass": 0.9}
    more = {"new": {"pred_grade": 2, **scored}, "old": {"grade": 2, **scored}, "unlabelled": {}}[columns]
    path = tmp_path / "scored.jsonl"
    lines = [json.dumps({"query": f"q{n}", "title": "t", **more}) + "\n" for n in range(20)]
    path.write_text("".join(lines), encoding="utf-8")
    expected = "field 'grade' is missing" if columns == "unlabelled" else "prediction of a judge.*train/label_pool.py"
    with pytest.raises(ValueError, match=expected):
        run_sft(base, str(path), tmp_path / "run")


@pytest.mark.parametrize("only_right", [False, True])
def test_pseudo_labels_name_their_judge_and_are_dev_rows_of_nothing(post, base, tmp_path, only_right):
    more = ["--data", "synthetic:labelled*60", "--only-right"] if only_right else ["--data", "synthetic:unlabelled*20"]
    pool = str(tmp_path / "pool.jsonl")
    label_pool(["--model", post, *more, "--out", pool])
    assert {json.loads(line)["labelled_by"] for line in Path(pool).read_text(encoding="utf-8").splitlines()} == {post}
    run_sft(base, pool, tmp_path / "run", "--dev", "synthetic:dev*8")
    with pytest.raises(GradesError, match="labelled_by"):
        run_sft(base, "synthetic:labelled*8", tmp_path / "other", "--dev", pool)
    with pytest.raises(ValueError, match="0 queries with grades of people"):
        run_sft(base, pool, tmp_path / "third")
    with pytest.raises(GradesError, match="labelled_by"):  # a judge that is right about another judge's grade
        label_pool(["--model", post, "--data", pool, "--only-right", "--out", str(tmp_path / "again.jsonl")])


def test_pairs_of_ones_own_train_without_dev_rows_and_are_not_judged_on_the_embedded_shop(post, tmp_path, capsys):
    rows = [{"prompt": f"mug {i} | steel mug", "chosen": "4", "rejected": "1"} for i in range(3)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    out = str(tmp_path / "run")
    dpo(["--model", post, "--data", str(tmp_path / "pairs.jsonl"), "--steps", "2", "--out", out])
    said = capsys.readouterr()
    assert "no --dev: pairs hold no graded rows, so the last checkpoint is the result" in said.err
    assert "never evaluated on dev rows" in said.out and "synthetic" not in said.out + said.err
    assert Path(load_judge(out).model.source).name == "step-000002"
