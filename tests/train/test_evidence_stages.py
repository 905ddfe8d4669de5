"""The bundled teacher's chains of thought carry every stage on real rows, without any service."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from taosr1.data.judgements import Judgement, read_judgements, write_judgements
from taosr1.data.sources import load_rows
from taosr1.task.prompt import label_of_cot
from tests.synthetic.catalogues import tidy, write_jsonl
from train.dpo import main as dpo
from train.grpo import main as grpo
from train.mine_pairs import main as mine
from train.sft import main as sft
from train.teacher import main as teacher

ESCI = Path(__file__).resolve().parents[3] / "shared/data/esci_us/pairs.jsonl.gz"
THINGS = ("mug", "lamp", "belt", "sofa", "kettle")
COLOURS = ("red", "blue", "black", "green")


def made_up() -> list[Judgement]:
    """Each query with its thing in the wanted colour, in another one and in none, and with another thing."""
    rows = []
    for number, thing in enumerate(THINGS):
        for colour in COLOURS:
            other, elsewhere = COLOURS[COLOURS.index(colour) - 1], THINGS[number - 1]
            for grade, title in ((4, f"{colour} {thing}"), (2, f"{other} {thing}"), (3, thing), (1, elsewhere)):
                rows.append(Judgement(f"{thing} {colour}", f"Orlo {title} no {len(rows)}", grade=grade))
    return rows


def esci() -> list[Judgement]:
    """Some rows of each grade of ESCI's slice, with the texts that a small model has room for."""
    counts, rows = Counter(), []
    for row in load_rows(str(ESCI)):
        counts[row.grade] += 1
        if counts[row.grade] <= 30:
            rows.append(Judgement(row.query, row.title[:60], row.brand, grade=row.grade))
    return rows


@pytest.fixture(params=["made up", pytest.param("esci", marks=pytest.mark.skipif(not ESCI.exists(), reason="no ESCI"))])
def rows(request, tmp_path) -> str:
    path = tmp_path / "graded.jsonl"
    write_judgements(path, made_up() if request.param == "made up" else esci())
    return str(path)


@pytest.mark.long
def test_every_stage_runs_on_rows_that_the_bundled_teacher_explained(rows, base, tmp_path, capsys):
    reasoned, run, pairs = str(tmp_path / "reasoned.jsonl"), tmp_path / "sft", str(tmp_path / "pairs.jsonl")
    assert teacher(["evidence", "--data", rows, "--out", reasoned]) == 0
    assert "lead to another grade than people gave" in capsys.readouterr().out
    explained = read_judgements(reasoned)
    assert len(explained) == len(read_judgements(rows))
    assert all(label_of_cot(row.cot) == row.grade for row in explained)

    own = ["--data", reasoned, "--dev", rows, "--dev-rows", "8", "--seed", "0"]
    sft(["--model", base, "--order", "post-cot", *own, "--steps", "60", "--batch-size", "16", "--optimizer", "muon",
         "--lr", "0.01", "--out", str(run)])  # fmt: skip
    mine(["--model", str(run), "--data", reasoned, "--prompts", "24", "--samples", "4", "--max-new-tokens", "48",
          "--temperature", "1.5", "--balance", "none", "--out", pairs])  # fmt: skip
    dpo(["--model", str(run), "--data", pairs, "--dev", rows, "--dev-rows", "8", "--steps", "2", "--batch-size", "4",
         "--out", str(tmp_path / "dpo")])  # fmt: skip
    grpo(["--model", str(tmp_path / "dpo"), *own, "--steps", "2", "--groups", "6", "--max-new-tokens", "48",
          "--gamma", "0", "--out", str(tmp_path / "grpo")])  # fmt: skip
    steps = [json.loads(line) for line in (tmp_path / "grpo/metrics.jsonl").read_text().splitlines()]
    assert any("loss" in json.dumps(step) for step in steps)


def test_disputed_rows_are_left_out_on_demand_and_counted(tmp_path, capsys):
    path, out = tmp_path / "graded.jsonl", tmp_path / "reasoned.jsonl"
    write_judgements(path, [Judgement("red mug", "Red mug", grade=4), Judgement("red mug", "Blue mug", grade=4)])
    assert teacher(["evidence", "--data", str(path), "--out", str(out), "--drop-disputed"]) == 0
    assert "2 rows explained; the steps of 1 (50.0 %) lead to another grade" in capsys.readouterr().out
    assert [row.title for row in read_judgements(out)] == ["Red mug"]
    write_judgements(path, [Judgement("red mug", "Blue mug", grade=4)])
    assert teacher(["evidence", "--data", str(path), "--out", str(out), "--drop-disputed", "--overwrite"]) == 2
    assert "the steps of no row lead to its grade" in capsys.readouterr().err
    write_judgements(path, [Judgement("red mug", "Blue mug")])
    assert teacher(["evidence", "--data", str(path), "--out", str(out), "--overwrite"]) == 2
    assert "no row has a grade" in capsys.readouterr().err


@pytest.mark.long
def test_a_catalogue_trains_a_thinker_whose_next_stages_are_named_with_its_other_pools(base, tmp_path, capsys):
    """From a file of products alone: no judgement of anybody is read."""
    world = f"catalogue:{write_jsonl(tmp_path / 'products.jsonl', tidy())}"
    sft(["--model", base, "--order", "pre-cot", "--data", f"{world}:reasoned*60", "--dev-rows", "8", "--steps", "12",
         "--eval-every", "12", "--batch-size", "8", "--out", str(tmp_path / "thinker-sft")])  # fmt: skip
    said = capsys.readouterr()
    assert json.loads((tmp_path / "thinker-sft/config.json").read_text())["dev"] == f"{world}:dev"
    assert f"thinker-grpo --data {world}:labelled --dev {world}:dev" in said.out
    assert "10 kinds of thing (from categories) for 400 of 400 products" in said.err
    assert "--data: 60 rows of 30 queries; grades 4-Excellent" in said.err

    grpo(["--model", str(tmp_path / "thinker-sft"), "--data", f"{world}:labelled*16", "--dev-rows", "4", "--steps", "1",
          "--groups", "4", "--max-new-tokens", "24", "--gamma", "0", "--test", "",
          "--out", str(tmp_path / "thinker-grpo")])  # fmt: skip
    assert f"thinker-pool.jsonl --data {world}:unlabelled" in capsys.readouterr().out
