"""The HTML report as a file: its numbers are those of the metrics, what is missing is said, texts stay data."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shlex
import tempfile
from pathlib import Path

import numpy as np
import pytest

from taosr1.evaluation import evaluate_predictions, render_report, summary
from taosr1.evaluation.curves import RunCurves, by_recipe, read_run
from taosr1.evaluation.diagnoses import RULES
from taosr1.evaluation.doctor import examine
from taosr1.evaluation.doctor import main as doctor
from taosr1.evaluation.record import read_record
from taosr1.evaluation.report.__main__ import Config, main
from taosr1.evaluation.report.charts import Series, line_chart, ticks
from taosr1.evaluation.report.html import data_block, tag
from taosr1.evaluation.report.measures import Measured, betas_behind, cross_fitted, measure
from taosr1.evaluation.report.of_runs import group_record, over_seeds
from taosr1.evaluation.scores import read_scores
from taosr1.runtime.cli import parse_config
from taosr1.serving.tiering import cumulative_tier
from tests.evaluation.report_inputs import DROPPED, GROUP, HOSTILE, scored_rows, write_lines, write_run

QUICK = ("--bootstrap", "30")
GRPO = {"rewards": "label=1", "kl_beta": 0.01, "samples": 8, "steps": 3}
SFT = {"order": "post-cot", "grade_power": 0.5, "steps": 3}


@pytest.fixture
def report(tmp_path):
    """report(inputs...) -> the text of the page."""

    def write(*inputs: str) -> str:
        return main([*inputs, "--out", str(tmp_path / "report.html"), "--overwrite", *QUICK]).read_text("utf-8")

    return write


def section(page: str, title: str) -> str:
    """The part of the page under a heading."""
    found = [part for part in page.split("<section ")[1:] if f">{html.escape(title)}</h2>" in part]
    assert len(found) == 1, title
    return found[0].partition("</section>")[0]


def cells(part: str) -> dict[str, list[str]]:
    """The tables of a part: the name of each row and its cells as text."""
    rows = re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', part)
    return {plain(name): [plain(cell) for cell in re.findall(r"<td.*?>(.*?)</td>", rest)] for name, rest in rows}


def plain(markup: str) -> str:
    return html.unescape(re.sub("<.*?>", "", markup)).strip()


# ---- Scores ----------------------------------------------------------------------------------------------------------


def test_the_numbers_on_the_page_are_those_of_evaluate_predictions(report, tmp_path):
    path = write_lines(tmp_path / "scored.jsonl", scored_rows())
    page, columns = report(path), zip(*read_scores(path))
    found = evaluate_predictions(*map(list, columns), bootstrap=30)
    shown = cells(section(page, "Metrics"))
    for name, title in summary.TITLES.items():
        assert shown[title] == [summary.interval_text(name, found["metrics"][name])], name
    grades = cells(section(page, "Per grade"))["4-Excellent"]
    four = found["grades"]["4"]
    f1 = f"{100 * four['f1']:.2f} [{100 * four['f1_low']:.2f}, {100 * four['f1_high']:.2f}]"
    assert grades == [f1, f"{100 * four['precision']:.2f}", f"{100 * four['recall']:.2f}", "10", "10"]
    confusion = cells(section(page, "Confusion matrix"))
    for grade, name in ((4, "4-Excellent"), (1, "1-Irrelevant")):
        assert [int(cell.split()[0]) for cell in confusion[name]] == found["confusion"][grade - 1][3::-1]
    kinds = cells(section(page, "Per kind of query"))
    assert kinds["plain"][:3] == ["20", "10", summary.interval_text("macro_f1", found["by_kind"]["plain"]["macro_f1"])]
    before = cells(section(page, "Calibration"))["before"]
    errors = found["calibration"]
    assert before[:2] == [f"{100 * errors['ece']:.2f}", f"{errors['brier']:.4f}"]
    assert render_report(found)  # what the text report prints is still there under its old name


def test_the_interval_of_a_grades_f1_is_its_value_for_a_perfect_judge_and_wider_for_another():
    pairs = scored_rows(wrong=1000)
    perfect = measured(pairs[1:]).summary["grades"]["3"]
    assert (perfect["f1"], perfect["f1_low"], perfect["f1_high"]) == (1, 1, 1)
    other = measured(scored_rows()).summary["grades"]["3"]
    assert other["f1_low"] < other["f1"] < other["f1_high"]


def measured(rows: list[dict]) -> Measured:
    with tempfile.TemporaryDirectory() as made:
        path = write_lines(Path(made) / "scored.jsonl", rows)
        return measure("x", read_scores(path, need_gold=False, need_probs=False), bootstrap=30, seed=0)


def test_the_beta_that_was_served_is_found_from_the_tiers_and_no_other():
    """Good up to P(4) + P(3), Mid up to P(4) + P(3) + P(2): 0.5 and 0.8 for one row, 0.2 and 0.4 for the other.

    The first is Mid for beta in (0.5, 0.8], the second Bad for beta in (0.4, 1].
    """
    probs = np.array([[0.2, 0.3, 0.3, 0.2], [0.6, 0.2, 0.1, 0.1]])
    assert betas_behind(probs, ["Mid", "Bad"]) == pytest.approx((0.5, 0.8))
    assert betas_behind(probs, ["Good", "Good"]) == pytest.approx((0.0, 0.2))
    assert betas_behind(probs, ["Bad", "Good"]) is None and betas_behind(probs, ["Good", None]) is None
    rng = np.random.default_rng(0)
    many = rng.dirichlet(np.ones(4), 200)
    low, high = betas_behind(np.round(many, 6), cumulative_tier(many, 0.437))
    assert low - 1e-5 <= 0.437 <= high + 1e-5 and high - low < 0.02


def test_the_sweep_is_cumpt_at_every_beta():
    found = measured(scored_rows())
    row = next(row for row in found.sweep if row["beta"] == 0.5)
    assert row["tier_macro_f1"] == pytest.approx(found.summary["tiering"]["cumpt"]["tier_macro_f1"]["value"])
    assert found.argmax["tier_macro_f1"] == pytest.approx(found.summary["tiering"]["argmax"]["tier_macro_f1"]["value"])
    assert found.served[0] < 0.5 <= found.served[1] and len({row["tier_macro_f1"] for row in found.sweep}) > 1


def test_a_temperature_is_measured_on_other_queries_than_it_was_fitted_on():
    """Over-confident in the queries a, right in b: the temperature of a is fitted on b alone, and so stays near 1."""
    rng = np.random.default_rng(0)
    sure = np.tile([0.97, 0.01, 0.01, 0.01], (400, 1))
    gold = np.where(rng.random(400) < np.where(np.arange(400) < 200, 0.4, 0.97), 1, 2)
    queries = ["a" if row < 200 else "b" for row in range(400)]
    found = cross_fitted(sure, gold, queries)
    for_a, for_b = found["temperatures"]
    assert for_a == pytest.approx(1, abs=0.3) and for_b > 2
    assert found["before"]["bins"] != found["after"]["bins"]
    assert cross_fitted(sure, gold, ["one"] * 400) is None


def test_two_files_of_the_same_pairs_get_paired_differences_and_one_table_of_rows(report, tmp_path):
    one = write_lines(tmp_path / "one.jsonl", scored_rows())
    two = write_lines(tmp_path / "two.jsonl", scored_rows(wrong=2)[::-1])
    page = report(one, two)
    shown = cells(section(page, "Metrics"))["accuracy"]
    assert [cell.split()[0] for cell in shown] == ["80.00", "50.00", "-30.00"]
    (rows,) = blocks(page).values()
    assert len(rows["judges"]) == 2 and all(len(row["said"]) == 2 for row in rows["rows"])
    by_title = {row["t"]: [one["grade"] for one in row["said"]] for row in rows["rows"]}
    assert by_title["title 2"] == [3, 4] and by_title["title 3"] == [4, 4]
    other = write_lines(tmp_path / "other.jsonl", scored_rows(rows=12))
    page = report(one, other)
    assert len(blocks(page)) == 2 and "no paired differences: 28 pairs cannot be compared" in plain(page)


def blocks(page: str) -> dict[str, dict]:
    """The data in the page, by id."""
    return {name: json.loads(text) for name, text in re.findall(r'json" id="(.*?)">(.*?)</script>', page)}


# ---- What is missing -------------------------------------------------------------------------------------------------


def test_without_gold_only_what_was_given_and_the_rows_are_shown(report, tmp_path):
    rows = [{key: value for key, value in row.items() if key != "grade"} for row in scored_rows()]
    page = report(write_lines(tmp_path / "scored.jsonl", rows))
    assert re.findall("<h2.*?>(.*?)</h2>", page) == ["What was given", "Rows"]
    assert "no gold grades: only how often" in page and cells(page)["4-Excellent"] == ["10 (25.0 %)"]


def test_a_thinkers_replies_have_no_reliability_diagram_and_no_sweep_but_their_reasons(report, tmp_path):
    told = {"probs": None, "label_mass": None, "score": None, "reply": "Query: mug", "finished": True,
            "well_formed": True, "decision": 3, "implied": 9}  # fmt: skip
    page = report(write_lines(tmp_path / "explained.jsonl", scored_rows(8, **told)))
    titles = re.findall("<h2.*?>(.*?)</h2>", page)
    assert "Calibration" not in titles and "Tiers: CumPT over beta" not in titles and "Per grade" in titles
    assert "no label probabilities: no reliability diagram, no CumPT over beta" in page
    said = blocks(page)["rows-0"]["rows"][0]["said"][0]
    assert said["reply"] == "Query: mug" and said["decision"] == 3 and "implied" not in said and "probs" not in said


def test_a_judges_pseudo_labels_are_no_gold(report, tmp_path):
    page = report(write_lines(tmp_path / "scored.jsonl", scored_rows(labelled_by="teacher")))
    assert "40 grades from a judge (labelled_by): no gold grades" in page
    assert "Metrics" not in re.findall("<h2.*?>(.*?)</h2>", page)


def test_what_is_no_run_and_no_score_file_is_an_error_that_names_it(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty is a folder without metrics.jsonl: give a run folder"):
        main([str(tmp_path / "empty"), "--out", str(tmp_path / "r.html")])
    with pytest.raises(FileNotFoundError, match="nothing.jsonl: check SCORES"):
        main([str(tmp_path / "nothing.jsonl"), "--out", str(tmp_path / "r.html")])
    rows = write_lines(tmp_path / "rows.jsonl", [{"query": "mug", "title": "mug", "grade": 4}])
    with pytest.raises(ValueError, match="rows.jsonl:1: .*is this an output of infer/score.py"):
        main([rows, "--out", str(tmp_path / "r.html")])
    with pytest.raises(ValueError, match="there already: --overwrite"):
        Path(tmp_path / "r.html").write_text("kept")
        main([rows, "--out", str(tmp_path / "r.html")])


@pytest.mark.parametrize("flags", [[], ["a", "a"], ["a", "--out", "a.txt"], ["a.html", "--out", "a.html"]])
def test_flags_that_contradict_are_refused(flags, capsys):
    with pytest.raises(SystemExit) as end:
        main(flags)
    assert end.value.code == 2 and "error:" in capsys.readouterr().err


# ---- Runs ------------------------------------------------------------------------------------------------------------


def test_seeds_are_one_line_with_a_band_and_other_settings_another_line(report, tmp_path):
    losses = {seed: [3.0 + seed, 2.0, 1.0 + seed] for seed in (0, 1, 2)}
    runs = [write_run(tmp_path / f"seed-{seed}/sft", losses[seed], **SFT, seed=seed) for seed in losses]
    runs.append(write_run(tmp_path / "slow", [5, 4, 3], **SFT, lr=1e-5))
    assert [len(group) for group in by_recipe([read_run(run) for run in runs])] == [3, 1]
    part = section(report(*runs), "Curves: SFT, post-cot")
    loss = next(figure for figure in part.split("<figure>") if "(loss)" in figure)
    assert loss.count('class="line"') == 2 and loss.count('class="band"') == 1
    assert "A: 2 at step 3" in plain(loss) and "B: 3 at step 3" in plain(loss)
    assert cells(part)["lr"] == ["-", "1e-05"]


def test_a_line_over_seeds_is_their_mean_and_its_band_their_range_at_the_steps_that_all_have():
    line = over_seeds("x", [{1: 1.0, 2: 4.0, 3: 9.0}, {1: 3.0, 2: 2.0}], 0)
    assert line.points == [(1, 2.0), (2, 3.0)] and line.band == [(1, 1.0, 3.0), (2, 2.0, 4.0)]
    assert over_seeds("x", [{1: 1.0}], 0).band == []


def test_seeds_of_a_chain_of_stages_belong_together_wherever_they_lie():
    def run(out: str, **config) -> RunCurves:
        return RunCurves(Path(out), {}, config={"out": out, **config, **GRPO})

    chain = [run(f"runs/seed-{n}/grpo", seed=n, model=f"runs/seed-{n}/sft") for n in (0, 1)]
    assert len(by_recipe(chain)) == 1
    assert len(by_recipe([*chain, run("runs/seed-2/grpo", seed=2, model="elsewhere/sft")])) == 2
    assert len(by_recipe([RunCurves(Path("a"), {}), RunCurves(Path("b"), {})])) == 2  # unknown settings


def test_curves_of_two_stages_never_share_an_axis(report, tmp_path):
    sft = write_run(tmp_path / "sft", [3, 2, 1], **SFT)
    thinker = write_run(tmp_path / "thinker", [4, 3, 2], **{**SFT, "order": "pre-cot"})
    grpo = write_run(tmp_path / "grpo", [0, 0, 0], **GRPO)
    dpo = write_run(tmp_path / "dpo", [0.6, 0.5, 0.4], loss_type="sigmoid", beta=0.1, steps=3)
    page, known = report(sft, thinker, grpo, dpo), {"sft": sft, "thinker": thinker, "grpo": grpo, "dpo": dpo}
    stages = {"SFT, post-cot": "sft", "SFT, pre-cot": "thinker", "GRPO": "grpo", "DPO": "dpo"}
    for stage, name in stages.items():
        drawn = re.findall('data-series="(.*?)"', section(page, f"Curves: {stage}"))
        assert set(drawn) == {known[name]} and len(drawn) == 2  # loss, dev_macro_f1
    both = re.findall('data-series="(.*?)"', section(report(grpo, write_run(tmp_path / "more", [1, 1], **GRPO, lr=2)),
                                                     "Curves: GRPO"))  # fmt: skip
    assert len(set(both)) == 2


def test_cost_is_the_sum_of_what_the_steps_logged(report, tmp_path):
    run = write_run(tmp_path / "grpo", [0, 0, 0], **GRPO)
    Path(run, "test.json").write_text('{"test_macro_f1_start": 0.5, "test_low_start": 0.4, "test_high_start": 0.6}')
    row = cells(section(report(run), "Cost"))[run]
    assert row[1:6] == ["3", "6", "2.00", "300", "50"] and row[-2:] == ["50.00 [40.00, 60.00]", "-"]


def test_what_the_doctor_finds_is_on_the_page_and_a_run_of_no_known_stage_is_named(report, tmp_path):
    sick = write_run(tmp_path / "sick", [0.1] * 8, **GRPO)
    shares = {"all_right_frac": 1.0, "all_wrong_frac": 0.0, "too_easy_frac": 0.0}
    write_lines(tmp_path / "sick/metrics.jsonl", [{"step": step, "loss": 0.0, **shares} for step in range(1, 9)])
    well = write_run(tmp_path / "well", [2.0, 1.5, 1.2], **SFT)
    strange = write_run(tmp_path / "strange", [2.0, 1.5], other=1)
    page = report(sick, well, strange)
    shown, (findings, _) = section(page, "What is wrong"), examine(read_record(sick))
    assert findings
    assert [plain(item) for item in re.findall("<ol>(.*?)</ol>", shown)] == ["".join(map(str, findings))]
    assert f"<bdi>{sick}</bdi>: {len(findings)} found by {len(RULES['grpo'])} rules" in shown
    assert f"<bdi>{well}</bdi>: nothing found by {len(RULES['sft'])} rules" in shown and "near 0 is normal" in shown
    assert f"no findings: {strange}" in page and f"<bdi>{strange}</bdi>" not in shown


def test_groups_hold_equal_replies_once_with_their_rewards_and_advantages():
    assert group_record({"step": 7, **GROUP})["replies"] == [
        {"text": HOSTILE[2], "label": 4, "reward": 1.0, "advantage": 0.5774, "source": None, "parts": {"label": 1.0},
         "times": 2},
        {"text": HOSTILE[3], "label": 2, "reward": 0.0, "advantage": -1.1547, "source": None, "parts": {"label": 0.0},
         "times": 1},
    ]  # fmt: skip
    dropped = group_record({"step": 7, **DROPPED})
    assert dropped["replies"][0]["times"] == 3 and dropped["replies"][0]["advantage"] is None
    assert dropped["dropped"] == "all right" and dropped["size"] == 3


def test_groups_beyond_the_limit_are_left_out_evenly_over_the_steps_and_counted(tmp_path, capsys):
    samples = [{"step": step, **GROUP} for step in (1, 1, 1, 2, 2, 2)]
    run = write_run(tmp_path / "grpo", [0, 0], samples, **GRPO)
    page = main([run, "--groups", "4", "--out", str(tmp_path / "r.html")]).read_text("utf-8")
    assert [group["step"] for group in blocks(page)["groups-0"]["groups"]] == [1, 1, 2, 2]
    assert "4 of 6 groups can be looked at" in capsys.readouterr().out


def test_a_torn_line_and_a_broken_config_are_said_and_the_rest_is_drawn(report, tmp_path):
    run = write_run(tmp_path / "grpo", [3, 2], **GRPO)
    Path(run, "config.json").write_text("{")
    with open(Path(run, "metrics.jsonl"), "a") as file:
        file.write('{"step": 3, "lo')
    page = report(run)
    assert "metrics.jsonl:4: left out" in page and f"Curves: unknown stage of {run}" in page


# ---- Markup and charts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [
    {"labels": 5}, {"rewards": [[1], [1], [0]]}, {"advantages": {"a": 1}}, {"probs": "x"}, {"replies": [{"a": 1}]},
])  # fmt: skip
def test_a_line_that_is_no_group_is_counted_and_the_others_are_shown(change, tmp_path, capsys):
    rows = [{"step": 1, **GROUP}, {"step": 1, **GROUP, **change}, {"step": 2, **GROUP, "advantages": None}]
    main([write_run(tmp_path / "run", [0.1, 0.2], rows, **GRPO), "--out", str(tmp_path / "report.html")])
    assert "1 line left out: not a group of replies" in capsys.readouterr().out
    assert (tmp_path / "report.html").read_text("utf-8").count('"query":') == 2


@pytest.mark.parametrize("value", [10**400, 1e308, -(10**400)])
def test_numbers_that_no_float_can_be_are_left_out_and_said(value, report, tmp_path):
    run = write_run(tmp_path / "run", [0.1, value, 0.3], **{**GRPO, "steps": abs(int(value))})
    (tmp_path / "run/test.json").write_text(json.dumps({"test_macro_f1_start": value, "test_low_start": 0.1}))
    page = report(run)
    assert "values that are not finite, or beyond 1e300, are left out: loss (1)" in page
    assert doctor([run]) == 0


@pytest.mark.parametrize("text", [*HOSTILE, "\ud800 half a pair", "nul \0"])
def test_a_text_stays_text_in_markup_and_in_data(text):
    block = data_block("x", {text: text})
    inside = block.removeprefix('<script type="application/json" id="x">').removesuffix("</script>")
    assert not set("<>&\u2028\u2029") & set(inside) and json.loads(inside) == {text: text}
    element = tag("p", text, title=text)
    assert element.count("<") == 2 and element.encode("utf-8") and "\0" not in element
    if text.isprintable():
        assert html.unescape(re.fullmatch(r"<p title=\"(.*?)\">.*</p>", element)[1]) == text


def test_the_page_forbids_the_network_and_its_script_is_the_one_that_it_names(report, tmp_path):
    """The hashes are of what stands between the tags; nothing of the data is inside of it."""
    page = report(write_lines(tmp_path / "scored.jsonl", scored_rows(title=HOSTILE[0])))
    policy = html.unescape(re.search('Content-Security-Policy" content="(.*?)"', page)[1])
    assert policy.startswith("default-src 'none'; ") and "http" not in policy and "unsafe" not in policy
    for element in ("style", "script"):
        (inside,) = re.findall(f"<{element}>(.*?)</{element}>", page, re.S)
        assert f"'sha256-{base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()}'" in policy
        assert "hacked" not in inside
    assert page.count("<script") == 2 and not re.search(r"""(src|href)=["'](?!#)""", page)


@pytest.mark.parametrize("low, high", [(0, 1), (0.31, 0.96), (-1e-6, 3e-6), (0, 0), (5, 5), (-2, -2), (0, 12345)])
def test_ticks_enclose_the_values_evenly_and_are_few(low, high):
    found = ticks(low, high)
    assert found[0] <= low and found[-1] >= high and 2 <= len(found) <= 8
    assert np.diff(found) == pytest.approx([found[1] - found[0]] * (len(found) - 1))


def test_a_chart_puts_its_points_where_its_axes_say():
    """y from 0 at 182 up to 1 at 10, x from 0 at 50 to 1 at 348: the point (0.5, 0.25) is at (199, 139)."""
    chart = line_chart("x", [Series("a", [(0, 0), (0.5, 0.25), (1, 1)], 0)], "x", x_range=(0, 1), y_range=(0, 1))
    assert 'd="M50.0 182.0L199.0 139.0L348.0 10.0"' in chart


# ---- Names that stay -------------------------------------------------------------------------------------------------


def test_the_old_place_of_the_text_report_still_gives_it_with_a_warning():
    import taosr1.evaluation.report as old

    with pytest.warns(DeprecationWarning, match="is now taosr1.evaluation.evaluate_predictions"):
        assert old.evaluate_predictions is evaluate_predictions
    with pytest.raises(AttributeError):
        old.nothing  # noqa: B018


def test_every_command_of_the_guide_is_accepted():
    guide = (Path(__file__).parents[2] / "examples" / "guide" / "report.md").read_text(encoding="utf-8")
    commands = re.findall(r"^python -m taosr1.evaluation.report (.*)$", guide, re.M)
    configs = [parse_config(Config, "", shlex.split(command)) for command in commands]
    assert len(configs) >= 3 and all(config.inputs and config.out.endswith(".html") for config in configs)
