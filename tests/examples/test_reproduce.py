"""The claims of the paper: the rule of their verdicts by hand, a plan without gaps, a table that says what is so."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

from examples import reproduce
from examples.claims.claims import CLAIMS, CURVES, QUICK_ITEMS
from examples.claims.measures import MEASURES, compare, correlation, fit_thresholds, least_cost_tier, power_law, verdict
from examples.claims.pictures import draw
from examples.claims.plan import files_of, folder_of, parse_side, plan_runs, run_name, sides_of
from examples.claims.results import Made, fit_of, table_of
from examples.claims.runs import READS, SPECS
from examples.claims.table import render
from examples.real.measures import resampled_queries
from taosr1.evaluation.metrics import bootstrap_difference, hallucination_rates, macro_f1
from taosr1.evaluation.ranking import expected_calibration_error
from taosr1.runtime.cli import parse_config
from taosr1.runtime.jsonl import write_jsonl
from taosr1.sampling.passn import grade_prior, pass_curve, prior_pass_at_n
from taosr1.serving.calibration import apply_temperature, fit_temperature
from taosr1.serving.tiering import threshold_tier
from taosr1.synthetic.shop import read_pool

ITEMS = (*CLAIMS, *CURVES)


# ---- The rule --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "low, high, seeds, expected",
    [
        (0.01, 0.05, [0.02, 0.03, 0.04], "confirmed"),
        (-0.05, -0.01, [-0.02, -0.03, -0.04], "reversed"),
        (-0.01, 0.05, [0.02, 0.03, 0.01], "null"),  # above 0 in every seed, and still the interval holds 0
        (0.0, 0.05, [0.02], "null"),
        (-0.05, 0.0, [-0.02], "null"),
        (0.01, 0.05, [0.09, 0.05, -0.01], "null"),  # one seed disagrees
        (-0.05, -0.01, [-0.09, 0.0, -0.02], "null"),
        (0.01, 0.05, [0.03], "confirmed"),
        (None, None, [0.03], "null"),
        (0.01, 0.05, [], "null"),
    ],
)
def test_the_verdict_by_hand(low, high, seeds, expected):
    assert verdict(low, high, seeds)[0] == expected


@pytest.mark.parametrize("twin", ["sign alone", "seeds alone", "swapped"])
def test_a_wrong_rule_is_told_apart(twin):
    """Each of these rules gives another verdict in one of three cases."""
    cases = [(-0.01, 0.05, [0.02, 0.03]), (0.01, 0.05, [0.05, -0.01]), (0.01, 0.05, [0.02])]
    rules = {
        "sign alone": lambda low, high, seeds: "confirmed" if low + high > 0 else "reversed",
        "seeds alone": lambda low, high, seeds: "confirmed" if min(seeds) > 0 else "null",
        "swapped": lambda low, high, seeds: verdict(-high, -low, [-seed for seed in seeds])[0],
    }
    ours = [verdict(*case)[0] for case in cases]
    assert ours == ["null", "null", "confirmed"] and ours != [rules[twin](*case) for case in cases]


def test_a_correlation_takes_the_mean_of_each_seed_off_and_has_fishers_interval():
    """Within each seed y falls by 1 with x: r = -1; together the second seed, higher in both, would make r positive."""
    seeds = [[(0, 3), (1, 2), (2, 1)], [(10, 13), (11, 12), (12, 11)]]
    assert correlation(seeds)["value"] == pytest.approx(-1) and correlation(seeds)["seeds"] == pytest.approx([-1, -1])
    # r = 0.6 of five points: z = 0.693, its error 1 / sqrt(2): z from -0.693 to 2.079.
    x, noise = np.array([-2, -1, 0, 1, 2]), np.array([2, -1, -2, -1, 2])  # orthogonal
    y = 0.6 * x / np.linalg.norm(x) + 0.8 * noise / np.linalg.norm(noise)
    found = correlation([list(zip(x, y))])
    assert [found["value"], found["low"], found["high"]] == pytest.approx([0.6, -0.5999, 0.9692], abs=1e-3)
    assert correlation([[(1, 1), (1, 2)]])["value"] is None  # no spread of x


def test_a_power_law_is_found_and_tested_on_the_largest_point():
    """error = 0.8 / sqrt(x): 0.4 at 4, 0.2 at 16, 0.1 at 64; a step of 0 has no logarithm and is left out."""
    points = [(0, 0.9), (4, 0.4), (16, 0.2), (64, 0.1)]
    assert power_law(points[1:]) == pytest.approx((0.8, 0.5))
    found = fit_of(points)
    assert found["held_out"] == pytest.approx({"x": 64, "predicted": 0.9, "measured": 0.9})
    assert found["next"]["predicted"] == pytest.approx(1 - 0.8 / 128**0.5)
    assert fit_of(points[:3]) is None and fit_of([*points, (256, 0.0)]) is None


# ---- Measures --------------------------------------------------------------------------------------------------------


def write_seed(out: Path, run: str, seed: int, right: float, rows: int = 80) -> None:
    """Files that all readings of a run might have written, right in this share of the rows."""
    pool, rng = read_pool("explained", rows), np.random.default_rng((seed, int(100 * right), len(run)))
    for read in ("test", "dev"):
        probs = rng.dirichlet(np.ones(4), rows)
        for row, prob in zip(pool, probs):
            prob[row.grade - 1 if rng.random() < right else rng.integers(4)] += 2
        probs /= probs.sum(1, keepdims=True)
        write_jsonl(
            folder_of(out, run, seed, read) / "scores.jsonl",
            [
                {"query": row.query, "title": row.title, "query_id": row.query_id, "query_kind": row.query_kind,
                 "grade": row.grade, "pred_grade": int(prob.argmax()) + 1, "tier": "Good", "probs": prob.tolist(),
                 "label_mass": 1.0}
                for row, prob in zip(pool, probs)
            ],
        )  # fmt: skip
    for read, samples in (("replies", 1), ("samples", 5)):
        lines = []
        for row in pool:
            for sample in range(samples):
                grade, decision = (row.grade if rng.random() < right else int(rng.integers(1, 5)) for _ in range(2))
                lines.append({"query": row.query, "title": row.title, "query_id": row.query_id, "grade": row.grade,
                              "sample": sample, "reply": f"{grade}\n{row.cot}", "pred_grade": grade,
                              "decision": decision})  # fmt: skip
        write_jsonl(folder_of(out, run, seed, read) / "replies.jsonl", lines)
    write_jsonl(
        folder_of(out, run, seed) / "model" / "metrics.jsonl",
        [{"step": step, "kept_cv": 1 - right, "dev_macro_f1": right + step / 100} for step in (1, 2, 3, 4)],
    )


def value(side: str, out: Path) -> tuple[float, list]:
    measure, run = parse_side(side)
    queries, statistic = MEASURES[measure].of(files_of(out, side, 0), SPECS[run].thinks)
    return float(statistic(np.ones((1, queries)))[0]), [queries, statistic]


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("written")
    for run, right in (("grpo", 0.7), ("post-dpo", 0.5), ("thinker-sft", 0.6)):
        write_seed(out, run, 0, right)
    return out


def test_measures_are_those_of_the_evaluation(written):
    rows = [json.loads(line) for line in (folder_of(written, "grpo", 0, "test") / "scores.jsonl").open()]
    gold, probs = [row["grade"] for row in rows], np.array([row["probs"] for row in rows])
    assert value("grpo", written)[0] == pytest.approx(macro_f1(gold, probs.argmax(1) + 1))
    assert value("ece of grpo", written)[0] == pytest.approx(expected_calibration_error(probs, gold))
    dev = [json.loads(line) for line in (folder_of(written, "grpo", 0, "dev") / "scores.jsonl").open()]
    scaled = apply_temperature(probs, fit_temperature([row["probs"] for row in dev], [row["grade"] for row in dev]))
    assert value("ece_scaled of grpo", written)[0] == pytest.approx(expected_calibration_error(scaled, gold))
    replies = [json.loads(line) for line in (folder_of(written, "grpo", 0, "replies") / "replies.jsonl").open()]
    rates = hallucination_rates(gold, [row["pred_grade"] for row in replies], [row["decision"] for row in replies])
    assert value("wrong_label_decision of grpo", written)[0] == pytest.approx(rates["right_but_label_wrong"])
    thinker = [json.loads(line) for line in (folder_of(written, "thinker-sft", 0, "replies") / "replies.jsonl").open()]
    assert value("thinker-sft", written)[0] == pytest.approx(macro_f1(gold, [row["pred_grade"] for row in thinker]))


def test_pass_at_n_and_guesses_are_those_of_the_sampling(written):
    rows = [json.loads(line) for line in (folder_of(written, "grpo", 0, "samples") / "replies.jsonl").open()]
    groups = [rows[at : at + 5] for at in range(0, len(rows), 5)]
    gold = [group[0]["grade"] for group in groups]
    curve = pass_curve([sum(row["pred_grade"] == row["grade"] for row in group) for group in groups], 5)
    for n in (1, 3, 5):
        assert value(f"pass_{n} of grpo", written)[0] == pytest.approx(curve[n - 1])
        expected = prior_pass_at_n(grade_prior(gold), gold, n)
        assert value(f"guess_{n} of grpo", written)[0] == pytest.approx(expected)


def test_a_difference_is_the_paired_bootstrap_of_the_evaluation_and_turns_where_less_is_better(written):
    sides = {}
    for run in ("grpo", "post-dpo"):
        rows = [json.loads(line) for line in (folder_of(written, run, 0, "test") / "scores.jsonl").open()]
        sides[run] = [row["pred_grade"] for row in rows]
    gold, names = [row["grade"] for row in rows], [f"id {row['query_id']}" for row in rows]
    (queries, better), (_, worse) = (value(run, written)[1] for run in ("grpo", "post-dpo"))
    draws = resampled_queries(queries, 200)
    found = compare([better], [worse], False, draws)
    expected = bootstrap_difference("macro_f1", gold, sides["post-dpo"], sides["grpo"], names, samples=200)
    assert [found["value"], found["low"], found["high"]] == pytest.approx([*vars(expected).values()])
    assert found["seeds"] == pytest.approx([found["value"]])
    turned = compare([better], [worse], True, draws)
    assert [turned["value"], turned["low"]] == pytest.approx([-found["value"], -found["high"]])


def test_thresholds_and_costs_decide_by_hand():
    """Grade 2, Mid, has 0.3 where it is right and never the most; P / share is 0.7 / 0.75 of Bad, 0.3 / 0.25 of Mid."""
    probs, gold = np.array([[0.7, 0.3, 0, 0], [0.9, 0.1, 0, 0]]), np.array([2, 1])
    assert threshold_tier(probs, fit_thresholds(probs, gold)) == ["Mid", "Bad"]
    assert least_cost_tier(probs, [0.0, 0.25, 0.75]) == ["Mid", "Bad"]
    assert least_cost_tier(probs, [1, 1, 1]) == ["Bad", "Bad"]
    assert least_cost_tier(np.array([[0.1, 0.4, 0.25, 0.25]]), [1, 1, 1]) == ["Good"]  # grades of a tier add up


# ---- The plan --------------------------------------------------------------------------------------------------------


def test_the_plan_has_every_run_once_behind_what_it_needs_and_seed_0_first(tmp_path):
    runs, minutes = plan_runs(ITEMS, tmp_path, 2, "float32", quick=False)
    names = [run.name for run in runs]
    assert len(set(names)) == len(names) == len(minutes) and all(minutes.values())
    for at, run in enumerate(runs):
        assert set(run.needs) <= set(names[:at]), run.name
    seeds = [int(name[-1]) for name in names]
    assert seeds == sorted(seeds) and {name[:-2] for name in names} >= SPECS.keys()
    for item in ITEMS:
        assert all(run_name(parse_side(side)[1], 1) in names for side in sides_of(item))
    commands = [tuple(command.words) for run in runs for command in run.commands]
    assert len(set(commands)) == len(commands)


def test_every_flag_is_known_to_its_script(tmp_path):
    """The commands are texts: a renamed flag would be found in the middle of a night."""
    for quick in (False, True):
        for run in plan_runs(ITEMS, tmp_path, 1, "float32", quick)[0]:
            for script, *words in (command.words for command in run.commands):
                module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
                parse_config(module.Config, script, words)


def test_the_quick_form_starts_every_script_and_reads_in_every_way(tmp_path):
    full, quick = (plan_runs(items, tmp_path, 1, "float32", True)[0] for items in (ITEMS, QUICK_ITEMS))
    scripts = [{command.words[0] for run in runs for command in run.commands} for runs in (full, quick)]
    assert scripts[0] == scripts[1] and len(quick) < len(full) / 2
    assert {run.folder.name for run in quick} >= READS.keys()


def test_claims_have_names_of_their_own_and_sides_that_exist():
    assert len({item.name for item in ITEMS}) == len(ITEMS)
    for claim in CLAIMS:
        assert bool(claim.policies) != bool(claim.better and claim.worse), claim.name
        measured = {MEASURES[parse_side(side)[0]].lower for side in (claim.better, claim.worse, claim.rival) if side}
        assert len(measured) <= 1, claim.name
    with pytest.raises(ValueError, match="side 'ece of nobody'"):
        parse_side("ece of nobody")


# ---- The table -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Made:
    """Two seeds of all claims, with files in the place of every run: what a claim calls better is right more often."""
    out = tmp_path_factory.mktemp("made")
    runs, _ = plan_runs(ITEMS, out, 2, "float32", quick=False)
    better = {parse_side(claim.better)[1] for claim in CLAIMS if claim.better} - {"label-sft"}
    for name in SPECS:
        for seed in range(2):
            write_seed(out, name, seed, 0.75 if name in better else 0.35)
    for run in runs:
        for at in range(len(run.commands)):
            run.remember(at, 60.0, "1234567")
    return Made(ITEMS, {run.name: run for run in runs}, {run.name: "" for run in runs}, out, 2, 100)


def test_the_table_has_every_claim_with_its_verdict_and_its_rival(made):
    table = table_of(made)
    rows = {row["name"]: row for row in table["claims"]}
    assert rows.keys() == {claim.name for claim in CLAIMS} and table["commits"] == ["1234567"]
    assert rows["post-over-pre"]["verdict"] == "confirmed" and rows["think-first"]["verdict"] == "null"
    assert rows["cv"]["better"] is None and rows["cv"]["difference"]["value"] < 0
    kinds = [found["cumpt"]["value"] for found in table["tiers_by_kind"].values()]
    assert len(kinds) == 6 and len(set(kinds)) == 6  # all, and five kinds: no two have the same rows
    assert rows["post-over-pre"]["rival"]["difference"]["value"] > 0.1
    assert all(len(row["difference"]["seeds"]) == 2 for row in rows.values())
    shown = render(table)
    for row in rows.values():
        assert f"**{row['verdict']}**" in shown and row["text"] in shown
    for title in ("pass@n", "Calibration", "by kind of query", "Sampling policies", "How model size counts"):
        assert title in shown
    assert "Commit 1234567." in shown and "boosted-3k: " in shown and "several commits" not in shown
    lines = shown[shown.index("| claim |") :].partition("\n\n")[0].splitlines()
    assert {line.count(" | ") for line in lines} == {8} and len(lines) == 2 + len(CLAIMS)
    assert json.loads(json.dumps(table, allow_nan=False)) == json.loads(json.dumps(table))


def test_a_claim_whose_runs_are_of_several_commits_has_no_verdict(made):
    run = made.runs["post-dpo-1"]
    kept = run.done
    run.remember(0, 60.0, "7654321")
    try:
        table = table_of(made)
    finally:
        for at, about in kept.items():
            run.remember(int(at), about["seconds"], about["commit"])
    rows = {row["name"]: row for row in table["claims"]}
    assert rows["grpo"]["verdict"] == "none" and "1234567, 7654321" in rows["grpo"]["why"]
    assert rows["think-first"]["verdict"] != "none"  # it needs no DPO
    assert "**The runs are of several commits: 1234567, 7654321.**" in render(table)


def test_a_seed_that_failed_is_left_out_by_name_and_the_others_count(made):
    state = {**made.state, "post-dpo.test-1": "score.py: no room"}
    table = table_of(Made(made.items, made.runs, state, made.out, 2, 50))
    rows = {row["name"]: row for row in table["claims"]}
    assert rows["dpo"]["seeds"] == [0] and rows["grpo-after-dpo"]["seeds"] == [0, 1]
    assert "only seeds [0] are finished" in rows["dpo"]["why"]
    assert "- post-dpo.test-1: score.py: no room" in render(table)


def test_nothing_finished_is_a_table_too(tmp_path):
    runs, _ = plan_runs(CLAIMS, tmp_path, 1, "float32", quick=False)
    shown = render(table_of(Made(CLAIMS, {run.name: run for run in runs}, {}, tmp_path, 1, 10)))
    assert "No run is finished." in shown and "Still to come: label-sft-0" in shown


def test_pictures_have_the_points_of_the_table(made, tmp_path):
    pytest.importorskip("matplotlib")
    paths = draw(table_of(made), tmp_path)
    assert [path.name for path in paths] == [
        "curve-pairs.svg", "curve-size.svg", "curve-grpo-steps.svg", "policies.svg",
    ]  # fmt: skip
    text = paths[0].read_text(encoding="utf-8")
    assert "How many reasoned pairs are needed" in text and "2 seeds, commit 1234567" in text and "thinker" in text


def test_the_command_refuses_unknown_claims_and_shows_its_plan(tmp_path, capsys):
    with pytest.raises(SystemExit):
        reproduce.main(["--only", "dpo,nothing"])
    assert "--only: no claim is called nothing; there are think-first" in capsys.readouterr().err
    assert reproduce.main(["--plan", "--only", "dpo", "--seeds", "1", "--out", str(tmp_path / "new")]) == {}
    shown = capsys.readouterr().out
    assert "6 of 6 runs to make, about 0.0 h with --jobs 2" in shown
    assert "post-dpo.test-0" in shown and "grpo-0" not in shown and not (tmp_path / "new").exists()
