"""Continued pre-training through its command line: held-out text becomes likelier, a resume, and wrong use."""

from __future__ import annotations

import json

import pytest

from taosr1.judge_model import load_judge
from taosr1.task.judgement import Judgement
from tests.synthetic.catalogues import tidy, write_jsonl
from train.pretrain import as_example, product_text
from train.pretrain import main as pretrain
from train.sft import main as sft


@pytest.fixture
def flags(base, tmp_path):
    data = write_jsonl(tmp_path / "products.jsonl", tidy(60))
    quick = ["--batch-size", "8", "--max-tok", "60", "--lr", "0.01", "--eval-every", "5", "--data", str(data)]
    return lambda out, *more: ["--model", base, "--out", str(tmp_path / out), *quick, *more]


def test_held_out_products_become_likelier_a_resume_equals_the_unbroken_run_and_sft_goes_on(
    base, flags, tmp_path, look, stopped_after
):
    last = pretrain(flags("whole", "--steps", "10"))
    scores = [row for row in look.metrics(tmp_path / "whole") if "dev_loss" in row]
    # A fresh decoder of 600 tokens starts at log 600 = 6.4 nats.
    assert scores[1]["dev_loss"] < scores[0]["dev_loss"] < 6 and scores[1]["dev_loss"] == last["dev_loss"]
    best = json.loads((tmp_path / "whole" / "checkpoints" / "best.json").read_text(encoding="utf-8"))
    assert best["step"] == 10 and best["dev_logp"] == -last["dev_loss"]
    stopped_after(1, pretrain, flags("parts", "--steps", "10"))
    pretrain(flags("parts", "--steps", "10"))
    look.same(tmp_path / "whole", tmp_path / "parts")
    sft(["--model", str(tmp_path / "parts"), "--order", "label", "--data", "synthetic:labelled*8", "--dev",
         "synthetic:dev*4", "--steps", "1", "--out", str(tmp_path / "sft")])  # fmt: skip
    assert load_judge(str(tmp_path / "sft")).prompt.order == "label"


def test_the_dev_loss_is_minus_the_mean_log_prob_of_held_out_tokens_whatever_the_micro_batch(flags):
    found = [pretrain(flags(size, "--steps", "1", "--micro-batch-tok", size))["dev_loss"] for size in ("70", "4000")]
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_a_product_s_text_is_its_filled_fields_by_name():
    product = Judgement("", title=" red mug ", price="$9", attributes="colour: red", item_id="7", description=" ")
    assert product_text(product) == "Title: red mug\nPrice: $9\nAttributes: colour: red"


def test_a_text_stands_between_two_ends_and_no_product_text_becomes_a_control_token(base):
    judge = load_judge(base)
    end = judge.tokenizer.eos_ids[0]
    example = as_example("Title: red mug", judge, 50)
    assert example.prompt == [end] and example.reply[-1] == end
    assert judge.tokenizer.decode(example.reply[:-1]) == "Title: red mug"
    forged = as_example("Title: " + judge.tokenizer.control_text()[0], judge, 50)
    assert not set(forged.reply[:-1]) & judge.tokenizer.control_ids
    cut = as_example("Title: red mug " * 50, judge, 7)
    assert len(cut.reply) == 7 and end not in cut.reply


def test_queries_are_learned_beside_the_products(flags, tmp_path, capsys):
    rows = "query,title\n" + "".join(f"mug {n},steel mug\n" for n in range(10)) * 2
    (tmp_path / "rows.csv").write_text(rows, encoding="utf-8")
    pretrain(flags("run", "--steps", "1", "--queries", str(tmp_path / "rows.csv")))
    assert "56 texts to learn, 14 held out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rows", "more", "message"),
    [
        ([{"brand": "Orlo"}], [], "field 'title' is missing"),
        ([{"title": " "}], [], "field 'title' is empty: a product needs one"),
        ([{"title": "mug"}, {"title": "mug"}], [], "1 different texts, expected at least 5"),
        ([{"title": "mug"}], ["--data", ""], "--data is '', expected a file of products"),
        ([{"title": "mug"}], ["--data", "synthetic:labelled"], "expected a file of products"),
        ([{"title": "mug"}], ["--data", "gone.jsonl"], "no file at gone.jsonl"),
    ],
)
def test_what_has_no_text_is_refused_and_leaves_nothing_behind(base, tmp_path, refused, rows, more, message):
    data = write_jsonl(tmp_path / "p.jsonl", rows)
    assert message in refused(pretrain, "--model", base, "--out", str(tmp_path / "run"), "--data", str(data), *more)
    assert not (tmp_path / "run").exists()
