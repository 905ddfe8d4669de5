"""infer/compare.py: by hand on three lists, as a gate of a CI, with judges in place of files, and with bad input."""

from __future__ import annotations

import csv
import json
import re
import shlex
from pathlib import Path

import pytest

from infer.compare import Config, main
from infer.evaluate import main as evaluate
from infer.score import main as score
from taosr1.runtime.cli import parse_config
from taosr1.runtime.jsonl import write_jsonl

# query: products as (title, gold grade, A's grade, B's grade). By hand, lists ranked by the grade:
#   mug   A: cup, mug; B: mug, cup.  One product is Good and only B puts it first: better.
#   lamp  A: lamp, bulb; B: bulb, lamp.  Worse.
#   shoe  the same in both.
LISTS = {
    "mug": [("mug", 4, 1, 4), ("cup", 1, 2, 1)],
    "lamp": [("lamp", 4, 4, 2), ("bulb", 2, 3, 3)],
    "shoe": [("shoe", 3, 3, 3), ("sock", 2, 2, 2)],
}
TIERS = {1: "Bad", 2: "Mid", 3: "Good", 4: "Good"}
QUICK = ["--bootstrap", "50"]


def scored(query: str, title: str, gold: int | None, grade: int, **more) -> dict:
    probs = [0.97 if g == grade else 0.01 for g in (1, 2, 3, 4)]
    found = {"pred_grade": grade, "tier": TIERS[grade], "probs": probs, "label_mass": 1.0, "score": 0.5, "outside": ""}
    graded = {} if gold is None else {"grade": gold}
    kind = "plain" if query != "lamp" else "negation"
    return {"query": query, "title": title, **graded, "query_kind": kind, **found, "prompt_sha": "0", **more}


def rows_of(side: int, gold: bool = True) -> list[dict]:
    return [
        scored(query, title, grades[0] if gold else None, grades[side], query_id=f"q{place}", item_id=title)
        for place, (query, products) in enumerate(LISTS.items())
        for title, *grades in products
    ]


@pytest.fixture
def write(tmp_path):
    def path_of(name: str, rows: list[dict]) -> str:
        write_jsonl(tmp_path / name, rows)
        return str(tmp_path / name)

    return path_of


@pytest.fixture
def files(write) -> list[str]:
    """A and B; the rows of B in another order."""
    return [write("a.jsonl", rows_of(1)), write("b.jsonl", rows_of(2)[::-1])]


def test_lists_changes_and_moves_are_those_worked_out_by_hand(files, capsys):
    report = main([*files, "--k", "1", *QUICK])
    gsb = report["gsb"]
    assert (gsb["better"], gsb["same"], gsb["worse"], gsb["p"], gsb["gsb"]["value"]) == (1, 1, 1, 1.0, 0.0)
    metrics = {name: (found["a"], found["b"]) for name, found in report["metrics"].items()}
    assert metrics["accuracy"] == pytest.approx((3 / 6, 4 / 6))
    assert metrics["item_goodrate"] == metrics["query_goodrate"] == pytest.approx((2 / 3, 2 / 3))
    # nDCG@1 with gains 1, .1, .01, 0: mug 0 -> 1, lamp 1 -> .01, shoe 1 in both.
    assert metrics["ndcg"] == pytest.approx((2 / 3, 2.01 / 3))
    # 3 Good products in 9 pairs with another: A orders 6 and a half as gold does (mug below all three, shoe ties bulb).
    assert metrics["auc"][0] == pytest.approx(5.5 / 9) and report["metrics"]["ndcg"]["difference"]["value"] > 0
    assert report["tier_moves"] == [[2, 1, 0], [0, 1, 1], [1, 0, 0]]
    assert {pair["title"]: pair["change"] for pair in report["changed"]} == {
        "lamp": "broken", "mug": "fixed", "cup": "fixed"
    }  # fmt: skip
    kinds = {kind: (found["fixed"], found["broken"]) for kind, found in report["by_kind"].items()}
    assert kinds == {"negation": (0, 1), "plain": (2, 0)}
    grades = {grade: (found["rows"], found["fixed"], found["broken"]) for grade, found in report["by_grade"].items()}
    assert grades == {"4": (2, 1, 1), "3": (1, 0, 0), "2": (2, 0, 0), "1": (1, 1, 0)}
    printed = capsys.readouterr().out
    for words in ("6 pairs, 3 queries, 6 with gold", "GSB@1", "changed: 1 broken"):
        assert words in printed
    assert ["A", "Bad", "1", "0", "0"] in [line.split() for line in printed.splitlines()]
    assert printed.index("broken  lamp") < printed.index("fixed   mug")  # what became worse comes first


def test_each_side_is_measured_as_evaluate_does(files):
    report = main([*files, *QUICK])
    for side, path in zip("ab", files):
        single = evaluate(["--scores", path, *QUICK])
        for name in ("quadratic_kappa", "macro_f1", "good_f1", "accuracy"):
            assert report["metrics"][name][side] == pytest.approx(single["metrics"][name]["value"])
        served = single["tiering"]["cumpt"]["tier_macro_f1"]["value"]
        assert report["metrics"]["tier_macro_f1"][side] == pytest.approx(served)
        assert report["metrics"]["auc"][side] == pytest.approx(single["ranking"]["auc_good_vs_rest"])
        assert report["metrics"]["ndcg"][side] == pytest.approx(single["ranking"]["ndcg"]["esci"]["value"])


def test_swapped_sides_flip_the_signs_and_transpose_the_moves(files):
    there, back = main([*files, *QUICK]), main([*files[::-1], *QUICK])
    for name, found in there["metrics"].items():
        assert back["metrics"][name]["difference"]["value"] == pytest.approx(-found["difference"]["value"])
    assert back["tier_moves"] == [list(row) for row in zip(*there["tier_moves"])]
    assert (back["changes"]["fixed"], back["changes"]["broken"]) == (1, 2)


def test_goodrates_that_no_order_can_change_are_said_to_be_so(files):
    notes = main([*files, *QUICK])["notes"]
    assert notes == ["no query has more than 2 graded products: goodrates at 10 are the same in any order (try --k)"]


def test_without_gold_the_rest_is_compared(write, capsys):
    report = main([write("a.jsonl", rows_of(1, False)), write("b.jsonl", rows_of(2, False)), *QUICK])
    assert report["metrics"] is report["gsb"] is report["by_grade"] is None and report["graded"] == 0
    assert report["tier_moves"] == [[2, 1, 0], [0, 1, 1], [1, 0, 0]] and report["changes"]["other"] == 3
    assert report["agreement"]["rank_correlation"]["value"] == pytest.approx((-1 - 1 + 1) / 3)
    assert "6 pairs of 6 without a gold grade: nothing is measured against gold" in capsys.readouterr().out


# ---- as a gate -------------------------------------------------------------------------------------------------------


def many(write, wrong: float) -> list[str]:
    """A is always right; B is wrong in a share of 40 queries."""
    queries = [(f"query {place}", 4 if place % 2 else 1) for place in range(40)]
    first = [scored(query, "thing", gold, gold) for query, gold in queries]
    second = [scored(query, "thing", gold, gold if place >= 40 * wrong else 5 - gold)
              for place, (query, gold) in enumerate(queries)]  # fmt: skip
    return [write("a.jsonl", first), write("b.jsonl", second)]


def test_a_gate_fails_with_exit_code_3_after_everything_is_written(write, tmp_path, capsys):
    files, out = many(write, 0.5), tmp_path / "compared.json"
    with pytest.raises(SystemExit) as stop:
        main([*files, "--fail-under", "60", "--fail-worse", "0", "--out", str(out)])
    assert stop.value.code == 3
    said = capsys.readouterr().err
    assert "macro-F1 of B is 50.00, under --fail-under 60" in said and "under --fail-worse 0" in said
    assert len(json.loads(out.read_text())["gate"]["failed"]) == 2


def test_a_gate_passes_where_b_is_good_enough_or_not_surely_worse(write):
    files = many(write, 0.5)
    assert main([*files, "--fail-under", "49.9", "--fail-worse", "-90"])["gate"]["failed"] == []
    assert main([*many(write, 0.025), "--fail-worse", "0"])["gate"]["failed"] == []  # 1 of 40 wrong: it may be chance
    assert main([files[0], files[0], "--fail-worse", "0", "--fail-under", "100"])["gate"]["failed"] == []


def test_a_gate_never_passes_for_want_of_a_number(write):
    ungraded = [write(f"{side}.jsonl", rows_of(side, False)) for side in (1, 2)]
    with pytest.raises(ValueError, match="need gold grades, and no pair has one"):
        main([*ungraded, "--fail-under", "1"])
    single = [write(f"one{side}.jsonl", rows_of(side)[:2]) for side in (1, 2)]
    with pytest.raises(ValueError, match="--fail-worse: macro-F1 has no interval over 1 queries"):
        main([*single, "--fail-worse", "0"])
    good = [write(f"good{side}.jsonl", [scored("q", "a", 4, 4)]) for side in (1, 2)]
    with pytest.raises(ValueError, match="--fail-under: AUC.* of B is undefined"):
        main([*good, "--fail-under", "1", "--metric", "auc"])


# ---- what is written and printed -------------------------------------------------------------------------------------


def test_changed_pairs_as_csv_open_in_a_spreadsheet_without_running(write, tmp_path, capsys):
    title = '=HYPERLINK("http://x")\x1b[2J\u202e'
    files = [write(f"{grade}.jsonl", [scored("mug", title, 4, grade, query_kind="\x1b[1mkind")]) for grade in (4, 1)]
    main([*files, "--out", str(tmp_path / "changed.csv"), *QUICK])
    printed = capsys.readouterr().out
    assert all(line.isprintable() for line in printed.splitlines()) and "\\x1b[2J\\u202e" in printed
    (row,) = csv.DictReader((tmp_path / "changed.csv").read_text(encoding="utf-8-sig").splitlines())
    assert row["title"].startswith("'=HYPERLINK") and (row["change"], row["a_grade"], row["b_tier"]) == (
        "broken", "4", "Bad"
    )  # fmt: skip
    with pytest.raises(ValueError, match="is there already: --overwrite"):
        main([*files, "--out", str(tmp_path / "changed.csv"), *QUICK])


def test_the_printed_list_of_changed_pairs_is_capped_and_the_file_holds_all(write, tmp_path, capsys):
    main([*many(write, 1.0), "--show", "3", "--out", str(tmp_path / "all.jsonl"), *QUICK])
    assert "... and 37 more (--show, or all with --out)" in capsys.readouterr().out
    assert len((tmp_path / "all.jsonl").read_text().splitlines()) == 40


def test_a_list_is_shown_as_each_judge_orders_it(files, write, tmp_path, capsys):
    third = write("c.jsonl", rows_of(1))
    report = main([*files, "--rank", " MUG", "--more", third, "--out", str(tmp_path / "lists.json")])
    (found,) = report["lists"]
    orders = [[item["title"] for item in judge["items"]] for judge in found["judges"]]
    assert orders == [["cup", "mug"], ["mug", "cup"], ["cup", "mug"]] and found["query_id"] == "q0"
    printed = capsys.readouterr().out
    assert "mug (query_id q0), 2 products" in printed and "2 (1) cup" in printed and "C: " in printed
    assert json.loads((tmp_path / "lists.json").read_text())["lists"] == report["lists"]
    assert main([*files, "--rank", "q1"])["lists"][0]["query"] == "lamp"
    with pytest.raises(ValueError, match="--rank 'red mug': no pair has this query or query_id; such as 'mug'"):
        main([*files, "--rank", "red mug"])


# ---- judges ----------------------------------------------------------------------------------------------------------


def test_a_judge_and_its_own_score_file_are_the_same(tmp_path):
    """With the judge as B, the rows of the score file are what it is asked about."""
    path = str(tmp_path / "scored.jsonl")
    score(["--model", "bundled", "--data", "synthetic:test*24", "--out", path])
    report = main([path, "bundled", *QUICK])
    assert report["changed"] == [] and report["b"]["name"] == "bundled-student" and report["rows"] == 24
    assert {found["difference"]["value"] for found in report["metrics"].values()} == {0.0}
    assert main(["bundled", path, "--data", "synthetic:test*24", *QUICK])["changed"] == []


def test_a_thinkers_explanations_are_compared_by_their_grades(write, files):
    """infer/explain.py writes no probabilities of a thinker, and no grade where its reply was cut."""
    none = {"probs": None, "label_mass": None, "score": None}
    rows = [{**row, **none} for row in rows_of(2)]
    rows[0] |= {"pred_grade": None, "tier": None}
    report = main([files[0], write("thinker.jsonl", rows), *QUICK])
    assert report["b"]["ranked_by"] == "grade" and report["a"]["ranked_by"] == "expected grade"
    assert "1 answer of B without a grade that could be read" in report["notes"][0]
    assert report["metrics"]["accuracy"]["b"] == pytest.approx(3 / 6)
    assert sum(map(sum, report["tier_moves"])) == 5
    with pytest.raises(ValueError, match="field 'probs' is None"):
        evaluate(["--scores", write("answered.jsonl", rows[1:])])
    with pytest.raises(ValueError, match="field 'pred_grade' is 7, expected the predicted grade 1-4, or none"):
        main([files[0], write("seven.jsonl", [{**rows[1], "pred_grade": 7}])])


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "expected A and B"),
        (["a.jsonl"], "expected A and B"),
        (["a.jsonl", "b.jsonl", "--data", "c.csv"], "--data is for judges"),
        (["bundled", "runs/mine"], "--data is missing"),
        (["a.jsonl", "b.jsonl", "--more", "c.jsonl"], "--more adds columns to a list: give --rank"),
        (["a.jsonl", "b.jsonl", "--rank", "mug", "--fail-under", "3"], "leave out --fail-under"),
        (["a.jsonl", "b.jsonl", "--fail-worse", "0", "--bootstrap", "0"], "--bootstrap 0 makes none"),
        (["a.jsonl", "b.jsonl", "--out", "a.jsonl"], "it would be overwritten"),
        (["a.jsonl", "b.jsonl", "--out", "table.html"], "expected a name ending in .json, .csv or .jsonl"),
        (["a.jsonl", "b.jsonl", "--good-page", "0", "--k", "0"], "--good-page is 0.0.*--k is 0"),
    ],
)
def test_flags_that_cannot_be_meant_are_refused(flags, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(flags)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert re.search(message, said), said


def test_files_that_are_no_scores_and_judges_that_are_none_are_named(write, files):
    plain = write("plain.jsonl", [{"query": "mug", "title": "mug", "grade": 4}])
    with pytest.raises(ValueError, match="plain.jsonl:1: field 'gold_grade' is missing, and so is 'pred_grade'"):
        main([files[0], plain])
    with pytest.raises(FileNotFoundError, match="no file at .*nothing.jsonl: check B"):
        main([files[0], "nothing.jsonl"])
    with pytest.raises(FileNotFoundError, match="^B, runs/nothing: no such run here"):
        main([files[0], "runs/nothing"])


def test_a_pair_that_one_file_lacks_is_an_error_with_a_way_out(write, files):
    shorter = write("short.jsonl", rows_of(2)[1:])
    with pytest.raises(ValueError, match="1 pair missing in B, such as .*a.jsonl:1: 'mug'.*--max-unpaired N"):
        main([files[0], shorter, *QUICK])
    report = main([files[0], shorter, "--max-unpaired", "1", *QUICK])
    assert report["rows"] == 5 and report["unpaired"] == {"missing in B": 1}


def test_every_command_of_the_guide_is_accepted():
    guide = (Path(__file__).parents[2] / "examples" / "guide" / "compare.md").read_text(encoding="utf-8")
    commands = re.findall(r"^python infer/compare.py (.*)$", guide, re.M)
    configs = [parse_config(Config, "", shlex.split(command)) for command in commands]
    assert len(configs) == 6 and {config.fail_worse for config in configs} == {None, 0.0}
    assert configs[-1].named() == ["old.jsonl", "new.jsonl", "bundled-thinker"]
