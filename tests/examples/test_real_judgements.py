"""The study on people's judgements: its numbers by hand, and the whole of its quick form on small files."""

from __future__ import annotations

import importlib
import json
import os

import numpy as np
import pytest

from examples.real.measures import (
    Judged,
    Scored,
    decide,
    difference,
    estimate,
    fit_decision,
    human_ceiling,
    measure,
    resampled_queries,
    statistics,
)
from examples.real.plan import plan_runs
from examples.real.rivals import fit_cut_points, word_share
from examples.real.rows import ROWS, Row
from examples.real_judgements import main
from examples.runner import results_of
from taosr1.evaluation.metrics import bootstrap_difference, bootstrap_interval, macro_f1
from taosr1.evaluation.ranking import expected_grade, good_auc
from taosr1.runtime.cli import parse_config
from taosr1.runtime.jsonl import write_jsonl
from taosr1.task.judgement import Judgement


def random_scored(seed: int, rows: int = 120, queries: int = 12) -> Scored:
    rng = np.random.default_rng(seed)
    gold, probs = rng.integers(1, 5, rows), rng.dirichlet(np.ones(4), rows)
    probs[np.arange(rows), gold - 1] += 0.4
    names = np.array([f"id {number}" for number in rng.integers(queries, size=rows)])
    return Scored(gold, probs / probs.sum(1, keepdims=True), names, np.array([""] * rows))


# ---- Numbers ---------------------------------------------------------------------------------------------------------


def test_decision_weights_find_a_grade_that_is_never_the_most_probable():
    """Grade 2 has 0.3 where it is right and 0.1 elsewhere. Equal weights never choose it: F1 0 and 2/3 of two grades.

    With a weight of at least 0.7 / 0.3 and below 0.9 / 0.1 every row is right.
    """
    probs, gold = [[0.7, 0.3, 0, 0], [0.9, 0.1, 0, 0]], [2, 1]
    assert macro_f1(gold, decide(probs, [1] * 4)) == pytest.approx(1 / 3)
    weights = fit_decision(probs, gold)
    assert 7 / 3 < weights[1] / weights[0] < 9 and weights[2:] == [1, 1]
    assert decide(probs, weights).tolist() == gold


def test_decision_weights_of_a_judge_that_is_right_stay_equal():
    assert fit_decision(np.eye(4) * 0.6 + 0.1, [1, 2, 3, 4]) == [1, 1, 1, 1]


def test_intervals_and_differences_are_those_of_the_evaluation():
    first, second = random_scored(0), random_scored(0)
    second = Scored(first.gold, random_scored(1).probs, first.names, first.kinds)
    draws = resampled_queries(len(set(first.names)), 200)
    one, two = (statistics(scored.judged([1] * 4)) for scored in (first, second))
    for name in ("macro_f1", "quadratic_kappa"):
        grades = [decide(scored.probs, [1] * 4) for scored in (second, first)]
        expected = bootstrap_interval(name, first.gold, grades[1], first.names, samples=200)
        found = estimate([one[name]], draws)
        assert [found["value"], found["low"], found["high"]] == pytest.approx([*vars(expected).values()])
        expected = bootstrap_difference(name, first.gold, *grades, first.names, samples=200)
        found = difference([one[name]], [two[name]], draws)
        assert [found["value"], found["low"], found["high"]] == pytest.approx([*vars(expected).values()])


def test_auc_with_weights_is_that_of_rows_repeated_as_often():
    scored = random_scored(2, rows=60, queries=5)
    judged = scored.judged([1] * 4)
    judged = Judged(judged.gold, judged.grades, judged.score.round(1), judged.names)  # with ties
    names = np.unique(judged.names)
    weights = np.array([[2, 0, 1, 3, 1]])
    rows = np.concatenate([np.repeat(np.flatnonzero(judged.names == name), w) for name, w in zip(names, weights[0])])
    expected = good_auc(judged.score[rows], judged.gold[rows], against=["Mid", "Bad"])
    assert statistics(judged)["auc"](weights)[0] == pytest.approx(expected)


def test_seeds_are_averaged_within_each_resample():
    test = random_scored(3)
    twice, once = measure([test, test], [test, test], 100), measure([test], [test], 100)
    assert twice["auc"]["seeds"] == once["auc"]["seeds"] * 2
    assert twice["auc"]["low"] == pytest.approx(once["auc"]["low"])
    assert once["auc"]["value"] == pytest.approx(
        good_auc(expected_grade(test.probs), test.gold, against=["Mid", "Bad"])
    )


def test_the_human_ceiling_of_four_rows_by_hand():
    """Ratings 0-3 of three raters; a row without raters is not counted.

    Rater 1 against 2: grades (4, 4), (1, 1), (4, 3), (1, 4). F1 of 4: 2 * 1 / (2 + 2) = 1/2; of 3: 0 / (0 + 1) = 0; of
    1: 2 * 1 / (2 + 1) = 2/3; mean 7/18. Good or not is the same in three of four rows.
    Rater 1 against 3: (4, 4), (1, 1), (4, 4), (1, 1): 1 and 1. Rater 2 against 3: (4, 4), (1, 1), (3, 4), (4, 1): F1 of
    4: 1/2, of 3: 0, of 1: 2/3: 7/18, and 3/4.
    """
    raters = [[3, 3, 3], [0, 0, 0], [3, 2, 3], [0, 3, 0]]
    rows = [
        Judgement("q", str(row), grade=grade, query_id=str(row % 2), extra={"raters": ratings})
        for row, (ratings, grade) in enumerate(zip(raters, [4, 1, 4, 1]))
    ]
    rows.append(Judgement("q", "nobody", grade=2, query_id="0"))
    found = human_ceiling(rows, 10)
    pairs, final = found["one rater against another"], found["one rater against the final rating"]
    assert pairs["rows"] == 4
    assert pairs["macro_f1"]["value"] == pytest.approx((7 / 18 + 1 + 7 / 18) / 3)
    assert pairs["good_agreement"]["value"] == pytest.approx((0.75 + 1 + 0.75) / 3)
    assert final["macro_f1"]["seeds"] == pytest.approx([1, 7 / 18, 1])
    # Means of the others, by rater 1: (3, 0, 2.5, 1.5) for Good (1, 0, 1, 0): every Good row is higher. By rater 2:
    # (3, 0, 3, 0) for (1, 0, 1, 1): 2 + 2 + half of the tie of 3. By rater 3: as by 1.
    others = found["the other two against one rater"]
    assert others["auc"]["seeds"] == pytest.approx([1, 2.5 / 3, 1])
    # The lower median of raters 1 and 3 against 2: (4, 4), (1, 1), (3, 4), (4, 1).
    assert others["macro_f1"]["seeds"][1] == pytest.approx(7 / 18)


def test_one_feature_ranks_as_itself_and_has_the_shares_of_the_grades():
    rng = np.random.default_rng(0)
    feature, gold = rng.random(300), rng.integers(1, 5, 300)
    probs = fit_cut_points(feature, gold)(np.sort(feature))
    assert (np.diff(expected_grade(probs)) >= 0).all()
    assert probs.mean(0) == pytest.approx(np.bincount(gold)[1:] / 300, abs=0.02)
    clear = fit_cut_points(feature, (feature * 4).astype(int) + 1)(np.array([0.1, 0.4, 0.6, 0.9]))
    assert clear.argmax(1).tolist() == [0, 1, 2, 3]
    shares = word_share([Judgement("Red mug, red", "A red cup"), Judgement("?", "x")])
    assert shares.tolist() == [0.5, 0]


# ---- The plan --------------------------------------------------------------------------------------------------------

FILES = {f"esci_{part}": f"/d/esci-{part}.jsonl" for part in ("fit", "dev", "test")}
SCORE = "infer/score.py --model {out}/sft --data {data} --out {scores}"


def test_a_row_takes_what_another_made_and_is_left_out_where_data_are_missing(tmp_path):
    rows = [
        Row("base", "", ("train/sft.py --data {fit} --seed {seed} --steps 20 --out {out}/sft",), SCORE),
        Row("next", "", ("train/dpo.py --model {base}/sft --data {fit} --steps 5 --out {out}/sft",), SCORE),
        Row("both", "", ("train/sft.py --data {esci_fit},{chorus_fit} --steps 5 --out {out}/sft",), SCORE),
        Row("pool", "", ("train/label_pool.py --model {base}/sft --data {fit} --out {out}/pool.jsonl",), ""),
    ]
    runs, left_out = plan_runs(rows, rows[1:3], FILES, tmp_path, 2, {}, quick=False)
    assert [run.name for run in runs] == ["base-esci-0", "next-esci-0", "base-esci-1", "next-esci-1"]
    assert left_out["next-chorus-0"] == left_out["both-esci-0"] == "--chorus is not given"
    _, pool = plan_runs(rows, rows[3:], FILES, tmp_path, 1, {}, quick=False)[0]
    assert pool.scores == {} and [command.results for command in pool.commands] == [(pool.folder / "pool.jsonl",)]
    train, *scoring = runs[3].commands
    assert runs[3].needs == ("base-esci-1",) and str(tmp_path / "base/esci-1/sft") in train.words
    assert train.results == (tmp_path / "next/esci-1/sft/checkpoints/step-000005/state.json",)
    assert [command.words[4] for command in scoring] == ["/d/esci-dev.jsonl", "/d/esci-test.jsonl"]


def test_a_judge_that_is_not_trained_has_one_run_and_dev_rows_of_each_data_set(tmp_path):
    other = {name.replace("esci", "chorus"): path.replace("esci", "chorus") for name, path in FILES.items()}
    files = {**FILES, **other}
    (row,) = (row for row in ROWS if row.name == "zero-shot")
    (run,), left_out = plan_runs(ROWS, [row], files, tmp_path, 2, {"model": "m", "dtype": "float32"}, quick=False)
    assert run.name == "zero-shot-none-0" and left_out == {} and run.needs == ()
    assert list(run.scores) == ["esci_dev", "esci_test", "chorus_dev", "chorus_test"]
    assert [command.words[0] for command in run.commands] == ["infer/score.py"] * 4 + ["infer/evaluate.py"]


def test_commands_that_cannot_be_planned_are_refused(tmp_path):
    with pytest.raises(ValueError, match="row odd: no placeholder is called 'fitt'"):
        plan_runs([odd := Row("odd", "", ("a.py --data {fitt} --out {out}/x",), SCORE)], [odd], FILES, tmp_path, 1, {},
                  quick=False)  # fmt: skip
    with pytest.raises(ValueError, match="called .'out'., which are placeholders"):
        plan_runs([odd := Row("out", "", (), SCORE)], [odd], FILES, tmp_path, 1, {}, quick=False)
    with pytest.raises(ValueError, match="a command needs --out"):
        results_of(["train/sft.py", "--steps", "3"])


def test_every_command_of_every_row_has_flags_that_its_script_knows(tmp_path):
    """The rows are texts: a renamed flag would be found in the middle of a night."""
    other = {name.replace("esci", "chorus"): path.replace("esci", "chorus") for name, path in FILES.items()}
    values = {"model": "m", "dtype": "float32", "minilm": "", "catalogue": "c.jsonl"}
    runs, left_out = plan_runs(ROWS, ROWS, {**FILES, **other}, tmp_path, 1, values, quick=False)
    assert not left_out
    for script, words in {(command.words[0], tuple(command.words[1:])) for run in runs for command in run.commands}:
        module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
        if script == "train/teacher.py":
            module._parser().parse_args(words)
        else:
            parse_config(module.Config, script, list(words))


# ---- The whole of it -------------------------------------------------------------------------------------------------


def write_data(folder) -> list[str]:
    """A small ESCI and a small Chorus: words in common with the query decide the grade."""
    rng, words = np.random.default_rng(0), "red steel mug lamp wool boots desk tent glass blue".split()
    esci, chorus = [], []
    for number in range(14):
        query, split = [str(word) for word in rng.choice(words, 3, replace=False)], "train" if number < 10 else "test"
        for item in range(8):
            shared = item % 4
            title = " ".join(query[:shared] + [f"thing{item}", f"no{number}"])
            row = {"query_id": number, "query": " ".join(query), "split": split}
            product = {"product_id": f"E{number}-{item}", "product_title": title}
            esci.append({**row, **product, "esci_label": "ICSE"[shared]})
            chorus.append({**row, "item_id": f"C{number}-{item}", "title": title, "rating": shared,
                           "raters": [shared, shared, max(0, shared - 1)]})  # fmt: skip
    write_jsonl(folder / "esci.jsonl", esci)
    write_jsonl(folder / "chorus.jsonl", chorus)
    kinds = [f"{number},{'negations' if number % 2 else 'other'}" for number in range(14)]
    (folder / "kinds.csv").write_text("\n".join(["query_id,source", *kinds]), encoding="utf-8")
    return ["--esci", str(folder / "esci.jsonl"), "--chorus", str(folder / "chorus.jsonl"), "--esci-kinds",
            str(folder / "kinds.csv"), "--out", str(folder / "out"), "--bootstrap", "50"]  # fmt: skip


def write_tiny_bert(folder) -> str:
    """Random weights of MiniLM's architecture with a few words."""
    transformers = pytest.importorskip("transformers")
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] red steel mug lamp wool boots desk tent glass blue thing".split()
    words += [*"0123456789", *(f"##{digit}" for digit in range(10))]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    transformers.BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.BertConfig(vocab_size=len(words), **shape)
    transformers.BertModel(config).save_pretrained(folder)
    return str(folder)


@pytest.mark.long
def test_the_table_has_both_data_sets_and_what_failed_and_people(tmp_path, capsys):
    flags = [*write_data(tmp_path), "--quick", "--seeds", "1", "--only", "word-share,cross-encoder"]
    table = main([*flags, "--minilm", str(tmp_path / "nothing")])
    by_name = {(row["name"], row["trained"]): row["tests"] for row in table["rows"]}
    assert by_name.keys() == {("word-share", "esci"), ("word-share", "chorus")}
    share = by_name["word-share", "chorus"]
    assert share["esci"]["auc"]["value"] == share["chorus"]["auc"]["value"] == 1
    assert set(share["esci"]["by_kind"]) == {"negations", "other"}
    assert set(table["ceiling"]) == {"chorus"} and table["to_come"] == [] and table["differences"] == []
    assert table["left_out"].keys() == {"cross-encoder-esci-0", "cross-encoder-chorus-0"}
    shown = (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    assert "people: one rater against another" in shown and "by kind of query" in shown and "assumption" in shown
    assert "- cross-encoder-esci-0: minilm.py: " in shown
    dev = {json.loads(line)["query_id"] for line in (tmp_path / "out/data/esci-dev.jsonl").open()}
    fit = {json.loads(line)["query_id"] for line in (tmp_path / "out/data/esci-fit.jsonl").open()}
    assert len(dev) == 2 and not dev & fit


@pytest.mark.long
def test_the_quick_form_trains_a_judge_and_a_second_start_repeats_nothing(tmp_path, capsys):
    flags = [*write_data(tmp_path), "--chorus=", "--quick", "--seeds", "1", "--only", "word-share,label-sft"]
    table = main(flags)
    assert table["left_out"] == {f"{name}-chorus-0": "--chorus is not given" for name in ("word-share", "label-sft")}
    assert [row["name"] for row in table["rows"]] == ["word-share", "label-sft"]
    judge = table["rows"][1]
    assert judge["ours"] and judge["train_minutes"] > 0 and judge["ms_a_pair"] > 0
    assert [found["metric"] for found in table["differences"]] == ["macro_f1", "auc"]
    assert "python train/sft.py" in capsys.readouterr().out
    assert main(flags) == table
    assert "-0: python " not in capsys.readouterr().out
    with pytest.raises(ValueError, match="splits of other files"):
        main([*flags, "--esci-kinds="])


@pytest.mark.long
def test_minilm_is_trained_and_scored_and_its_cosine_is_a_feature(tmp_path):
    pytest.importorskip("sklearn")
    minilm = write_tiny_bert(tmp_path / "bert")
    flags = [*write_data(tmp_path), "--quick", "--seeds", "1", "--only", "boosted-cosine,shallow-cosine,cross-encoder"]
    table = main([*flags, "--chorus=", "--minilm", minilm])
    names = ["boosted-cosine", "shallow-cosine", "cross-encoder"]
    assert table["left_out"].keys() == {f"{name}-chorus-0" for name in names}
    assert [row["name"] for row in table["rows"]] == names
    assert all(row["ms_a_pair"] > 0 for row in table["rows"])
    assert os.path.exists(tmp_path / "out/cross-encoder/esci-0/best.safetensors.tried.json")


def test_a_run_that_takes_too_long_is_stopped(tmp_path):
    table = main([*write_data(tmp_path), "--seeds", "1", "--only", "majority", "--row-minutes", "0.001"])
    stopped = "stopped after 0.001 minutes in: rivals.py"
    assert table["left_out"] == {"majority-esci-0": stopped, "majority-chorus-0": stopped}
