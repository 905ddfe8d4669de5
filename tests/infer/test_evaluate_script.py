"""infer/evaluate.py: the report is that of the predictions, beta is not fitted on what is measured, cost is counted."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from infer.evaluate import main
from infer.score import main as score
from taosr1.data.judgements import write_judgements
from taosr1.data.sources import load_rows
from taosr1.evaluation.predict import predict
from taosr1.evaluation.summary import evaluate_predictions
from taosr1.model.io.model_folder import model_folder
from taosr1.serving.calibration import apply_temperature, fit_temperature, mean_nll
from taosr1.serving.deployed import open_judge, store_beta, store_temperature, stored_beta, stored_temperature
from taosr1.serving.tiering import fit_beta
from train.sft import main as sft

QUICK = ["--bootstrap", "20"]


@pytest.fixture
def rows_file(eight_rows, tmp_path) -> str:
    """The eight rows, the first of them with a wrong gold grade, so that no measure is perfect."""
    write_judgements(tmp_path / "rows.jsonl", [replace(eight_rows[0], grade=1), *eight_rows[1:]])
    return str(tmp_path / "rows.jsonl")


def test_report_is_that_of_the_predictions_and_costs_one_prefill(taught_judge, rows_file, tmp_path, capsys):
    out = tmp_path / "reports" / "report.json"
    report = main(["--model", taught_judge("post-cot"), "--data", rows_file, "--out", str(out), *QUICK])
    rows, judge = load_rows(rows_file), open_judge(taught_judge("post-cot"))[1]
    expected = evaluate_predictions(rows, predict(judge, rows), bootstrap=20)
    assert {name: report[name] for name in ("metrics", "confusion", "by_kind")} == {
        name: expected[name] for name in ("metrics", "confusion", "by_kind")
    }
    assert 0.5 < report["metrics"]["macro_f1"]["value"] < 1
    assert (report["cost"]["prefills_per_row"], report["cost"]["decoded_tok_per_row"]) == (1, 0)
    assert report["hallucination"] is None and report["beta_from"] == "default" and report["notes"] == []
    assert json.loads(out.read_text()) == report
    printed = capsys.readouterr().out
    for words in ("macro-F1", "CumPT (beta 0.5)", "1.00 prefills and 0.0 decoded tokens per pair", f"report -> {out}"):
        assert words in printed


def test_explain_decodes_the_reasons_and_measures_hallucination(taught_judge, rows_file):
    report = main(["--model", taught_judge("post-cot"), "--data", rows_file, "--explain", *QUICK])
    assert report["hallucination"]["decision"]["rows"] == 8
    assert report["cost"]["prefills_per_row"] == 2 and 15 < report["cost"]["decoded_tok_per_row"] < 60


def test_a_thinker_decodes_and_has_neither_probabilities_nor_tiers(taught_judge, rows_file):
    report = main(["--model", taught_judge("pre-cot"), "--data", rows_file, *QUICK])
    assert report["metrics"]["accuracy"]["value"] == pytest.approx(7 / 8)
    assert report["calibration"] is None and report["tiering"] is None and report["beta_from"] is None
    assert report["cost"]["prefills_per_row"] == 1 and 15 < report["cost"]["decoded_tok_per_row"] < 60
    for flags in (["--dev", "synthetic:dev*20"], ["--dev", "synthetic:dev*20", "--fit-temperature"], ["--beta", "0.4"]):
        with pytest.raises(ValueError, match="has no label probabilities: CumPT"):
            main(["--model", taught_judge("pre-cot"), "--data", rows_file, *flags])


def test_beta_is_fitted_on_dev_and_stored_only_when_asked(taught_judge, rows_file, tmp_path, capsys):
    run = taught_judge("post-cot")
    dev, judge = load_rows("synthetic:dev*60"), open_judge(run)[1]
    expected = fit_beta([prediction.probs for prediction in predict(judge, dev)], [row.grade for row in dev])
    flags = ["--model", run, "--data", rows_file, *QUICK]
    report = main([*flags, "--dev", "synthetic:dev*60"])
    assert report["tiering"]["beta"] == pytest.approx(expected) and report["beta_from"] == "fitted on synthetic:dev*60"
    assert stored_beta(run) is None
    main([*flags, "--dev", "synthetic:dev*60", "--save-beta"])
    stored = Path(model_folder(run)) / "tiering.json"
    try:
        facts = {"temperature": 1.0, "fitted_on": "synthetic:dev*60", "rows": 60}
        assert json.loads(stored.read_text()) == {"beta": pytest.approx(expected), **facts}
        assert main(flags)["beta_from"] == "tiering.json"
        assert main([*flags, "--beta", "0.9"])["tiering"]["beta"] == 0.9
    finally:
        stored.unlink()
    capsys.readouterr()
    shutil.copy(rows_file, tmp_path / "again.jsonl")
    main([*flags, "--dev", f"{rows_file},{tmp_path / 'again.jsonl'}"])  # the same rows under another name
    assert "16 of 16 pairs of --dev are in --data too" in capsys.readouterr().err


@pytest.fixture
def own_judge(taught_judge, tmp_path) -> str:
    """A copy of the taught label-first judge's checkpoint, to store numbers in."""
    return shutil.copytree(model_folder(taught_judge("post-cot")), tmp_path / "judge").as_posix()


def test_temperature_is_fitted_on_dev_and_stored_with_the_beta_that_goes_with_it(
    own_judge, rows_file, tmp_path, capsys
):
    dev, judge = load_rows("synthetic:dev*60"), open_judge(own_judge)[1]
    probs, gold = [prediction.probs for prediction in predict(judge, dev)], [row.grade for row in dev]
    expected = fit_temperature(probs, gold)
    assert expected > 1.2  # eight rows by heart, sixty it has never seen: too sure
    files = sorted(path.name for path in Path(own_judge).iterdir())
    flags = ["--model", own_judge, "--data", rows_file, *QUICK]
    plain = main(flags)
    report = main([*flags, "--dev", "synthetic:dev*60", "--fit-temperature", "--out", str(tmp_path / "report.json")])
    written = sorted([*files, "calibration.json", "tiering.json"])
    assert sorted(path.name for path in Path(own_judge).iterdir()) == written
    assert json.loads(Path(own_judge, "calibration.json").read_text()) == {
        "temperature": pytest.approx(expected),
        "dev": "synthetic:dev*60",
        "rows": 60,
        "nll_before": pytest.approx(mean_nll(probs, gold)),
        "nll_after": pytest.approx(mean_nll(probs, gold, expected)),
    }
    beta = fit_beta(apply_temperature(probs, expected), gold)
    assert json.loads(Path(own_judge, "tiering.json").read_text()) == {
        "beta": pytest.approx(beta), "temperature": pytest.approx(expected), "fitted_on": "synthetic:dev*60", "rows": 60
    }  # fmt: skip
    scaling = report["temperature"]
    assert (scaling["value"], scaling["from"]) == (pytest.approx(expected), "fitted on synthetic:dev*60")
    for name in ("ece", "brier"):
        assert scaling["before"][name] == pytest.approx(plain["calibration"][name])
        assert scaling["after"][name] == report["calibration"][name]
    assert scaling["after"] != scaling["before"] and plain["temperature"] is None
    assert report["confusion"] == plain["confusion"]  # no grade has changed
    printed = capsys.readouterr().out
    assert f"temperature {expected:.4g} (fitted on synthetic:dev*60)" in printed and "NLL" in printed


def test_a_stored_temperature_is_used_unless_it_is_switched_off(own_judge, rows_file, capsys):
    flags = ["--model", own_judge, "--data", rows_file, *QUICK]
    plain = main(flags)
    store_temperature(own_judge, 3.0)
    capsys.readouterr()
    scaled = main(flags)
    assert scaled["temperature"]["value"] == 3 and scaled["temperature"]["from"] == "calibration.json"
    assert "scaled by temperature 3 (calibration.json)" in capsys.readouterr().err
    assert scaled["calibration"]["bins"] != plain["calibration"]["bins"]
    off = main([*flags, "--temperature-scaling", "off"])
    assert off["calibration"] == plain["calibration"] and off["temperature"] is None
    assert "note:" not in capsys.readouterr().err
    main([*flags, "--dev", "synthetic:dev*60", "--save-beta"])  # a beta of the scaled probabilities
    assert json.loads(Path(own_judge, "tiering.json").read_text())["temperature"] == 3
    assert main(flags)["beta_from"] == "tiering.json"
    refusal = r"tiering.json: beta was fitted on probabilities at temperature 3.0, these are at 1.0: .* give --beta"
    with pytest.raises(ValueError, match=refusal):
        main([*flags, "--temperature-scaling", "off"])
    # Fitted again on unscaled probabilities, not on those that are divided by 3 already.
    refitted = main([*flags, "--dev", "synthetic:dev*60", "--fit-temperature"])
    assert refitted["temperature"]["before"] == pytest.approx(scaled["temperature"]["before"])


def test_a_temperature_at_the_end_of_its_range_is_warned_about(own_judge, rows_file, eight_rows_file, tmp_path, capsys):
    dev = f"{eight_rows_file},{shutil.copy(eight_rows_file, tmp_path / 'again.jsonl')}"
    main(["--model", own_judge, "--data", rows_file, "--dev", dev, "--fit-temperature", *QUICK])
    assert "the temperature is at the end of its range, 0.05: --dev has too few rows (16)" in capsys.readouterr().err


def test_a_later_stage_does_not_inherit_temperature_or_beta(own_judge, eight_rows_file, tmp_path):
    store_temperature(own_judge, 3.0)
    store_beta(own_judge, 0.3, 3.0)
    sizes = ["--steps", "1", "--eval-every", "1", "--batch-size", "2"]
    rows, out = ["--data", eight_rows_file, "--dev", eight_rows_file], ["--out", str(tmp_path / "later")]
    sft(["--model", own_judge, *rows, *out, *sizes])
    assert stored_temperature(str(tmp_path / "later")) is None and stored_beta(str(tmp_path / "later")) is None
    assert not [*(tmp_path / "later").rglob("calibration.json"), *(tmp_path / "later").rglob("tiering.json")]


def test_measuring_scores_equals_measuring_the_model(taught_judge, rows_file, tmp_path):
    scored, beta = str(tmp_path / "scored.jsonl"), ["--beta", "0.2"]
    score(["--model", taught_judge("post-cot"), "--data", rows_file, "--out", scored, *beta])
    of_scores = main(["--scores", scored, *QUICK])
    of_model = main(["--model", taught_judge("post-cot"), "--data", rows_file, *beta, *QUICK])
    for name in ("metrics", "grades", "confusion", "by_kind"):
        assert of_scores[name] == of_model[name]
    assert of_scores["tiering"]["cumpt"] == of_model["tiering"]["cumpt"]
    assert of_scores["calibration"]["ece"] == pytest.approx(of_model["calibration"]["ece"], abs=1e-5)
    strictest = main(["--scores", scored, "--beta", "1", *QUICK])
    assert strictest["tiering"]["confusion_cumpt"] == [[0, 0, 3], [0, 0, 2], [0, 0, 3]]


def test_real_esci_rows_are_measured_by_split_and_state_the_assumption(fresh_judge, esci_file, tmp_path, capsys):
    scored = str(tmp_path / "scored.jsonl")
    flags = ["--model", fresh_judge("post-cot"), "--data", esci_file, "--split", "test", "--limit", "30"]
    score([*flags, "--out", scored])
    of_scores = main(["--scores", scored, *QUICK])
    of_model = main([*flags, *QUICK])
    assert of_scores["rows"] == 30 and of_scores["confusion"] == of_model["confusion"]
    assert "an assumption" in of_scores["notes"][0] and of_model["notes"] == of_scores["notes"]
    assert "an assumption" in capsys.readouterr().out


def without_clock(report: str | Path) -> dict:
    report = json.loads(Path(report).read_text())
    assert report["cost"].pop("seconds") * report["cost"].pop("rows_per_s") == pytest.approx(report["rows"])
    return report


@pytest.mark.parametrize("order", ["post-cot", "pre-cot"])
def test_ranks_that_were_interrupted_report_what_one_process_does(
    taught_judge, rows_file, order, tmp_path, monkeypatch, as_rank, capsys
):
    """A judge that answers first also fits on --dev: chunks of 6, five of --dev and two of --data."""
    monkeypatch.setattr("infer.evaluate.ROWS_AT_A_TIME", 6)
    judge = shutil.copytree(model_folder(taught_judge(order)), tmp_path / "judge").as_posix()
    fit = ["--dev", "synthetic:dev*30", "--fit-temperature", "--explain"] if order == "post-cot" else []
    command = ["--model", judge, "--data", rows_file, *fit, *QUICK, "--out"]
    capsys.readouterr()  # what training the judge said
    main([*command, str(tmp_path / "one.json")])
    stored = {path.name: path.read_bytes() for path in Path(judge).iterdir()}
    for name in {"calibration.json", "tiering.json"} & stored.keys():
        (Path(judge) / name).unlink()
    out, printed = tmp_path / "two.json", capsys.readouterr().out
    as_rank(0, 2, main, [*command, str(out)], after=1 if fit else 0)
    assert as_rank(1, 2, main, [*command, str(out)]) == {} and capsys.readouterr().out == ""
    assert not (Path(judge) / "calibration.json").exists()
    as_rank(0, 2, main, [*command, str(out)])
    assert without_clock(out) == without_clock(tmp_path / "one.json")
    assert {path.name: path.read_bytes() for path in Path(judge).iterdir()} == stored
    assert len(capsys.readouterr().out.split("\n")) == len(printed.split("\n"))
    files = {"rows.jsonl", "judge", "one.json", "two.json", "two.json.done.json"}
    assert {path.name for path in tmp_path.iterdir()} == files


def test_ranks_need_a_file_to_meet_in_and_scores_need_no_ranks(fresh_judge, eight_rows_file, tmp_path, as_rank):
    judge = ["--model", fresh_judge("post-cot"), "--data", eight_rows_file]
    with pytest.raises(ValueError, match="--out is missing: the 2 ranks share their answers through files beside it"):
        as_rank(0, 2, main, [*judge, *QUICK])
    score([*judge, "--out", str(tmp_path / "scored.jsonl")])
    with pytest.raises(
        ValueError, match="--scores is read by one process, this is one of 2: start it without torchrun"
    ):
        as_rank(1, 2, main, ["--scores", str(tmp_path / "scored.jsonl"), *QUICK])


def test_wrong_use_says_what_to_do(fresh_judge, taught_judge, rows_file, eight_rows, tmp_path):
    judge = ["--model", fresh_judge("post-cot")]
    ungraded, empty, other = (str(tmp_path / name) for name in ("ungraded.jsonl", "empty.jsonl", "other.jsonl"))
    write_judgements(ungraded, [replace(row, grade=None) for row in eight_rows])
    Path(empty).write_text("")
    write_judgements(other, eight_rows)
    unknown = tmp_path / "ungraded-scores.jsonl"
    score([*judge, "--data", ungraded, "--out", str(unknown)])
    wrong = {
        r"no file at .*gone.jsonl: check --data": [*judge, "--data", str(tmp_path / "gone.jsonl")],
        r"empty.jsonl: no rows in this file": [*judge, "--data", empty],
        r"ungraded.jsonl:1: field 'grade' is missing": [*judge, "--data", ungraded],
        r"synthetic:nowhere: no such pool": [*judge, "--data", "synthetic:nowhere"],
        r"--model .*rows.jsonl: .*is a file, expected a model folder": ["--model", rows_file, "--data", rows_file],
        r"--explain: --model .* grade alone": ["--model", fresh_judge("label"), "--data", rows_file, "--explain"],
        r"no file at .*gone.jsonl": ["--scores", str(tmp_path / "gone.jsonl")],
        r"empty.jsonl: no rows in this file: check --scores": ["--scores", empty],
        r"other.jsonl:1: field 'gold_grade' is missing, and so is 'pred_grade'": ["--scores", other],
        r"ungraded-scores.jsonl:1: .* field 'pred_grade' is the prediction": ["--scores", str(unknown)],
    }
    for message, flags in wrong.items():
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            main(flags)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pred_grade": 5}, "field '(pred_)?grade' is 5, expected the predicted grade 1-4"),
        ({"tier": "Great"}, "field 'tier' is 'Great', expected one of Good, Mid, Bad"),
        ({"probs": None}, "field 'probs' is None, expected four numbers"),
        ({"probs": [1, 2, 3, 4]}, "four finite, non-negative numbers that sum to 1"),
        ({"label_mass": "high"}, "field 'label_mass' is 'high'"),
    ],
)
def test_scores_that_are_none_are_named_by_line(change, message, old, tmp_path):
    """old: until version 0.2 `grade` was the prediction, and `gold_grade` the data's own."""
    row = {"query": "q", "title": "t", "grade": 3, "pred_grade": 4}
    row |= {"tier": "Good", "probs": [0, 0, 0, 1], "label_mass": 1}
    rows, names = [row, {**row, **change}], {"grade": "gold_grade", "pred_grade": "grade"}
    if old:
        rows = [{names.get(name, name): value for name, value in row.items()} for row in rows]
    path = tmp_path / "scored.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match="scored.jsonl:2: .*" + message):
        main(["--scores", str(path), *QUICK])
    assert main(["--scores", str(path), "--max-bad-rows", "1", *QUICK])["rows"] == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--frobnicate", "1"], "unrecognized arguments: --frobnicate"),
        (["--dev", "synthetic:test"], "--dev is --data (synthetic:test): beta would be fitted on what it is measured"),
        (["--save-beta"], "--save-beta stores the beta fitted on --dev: give --dev"),
        (["--dev", "synthetic:dev", "--beta", "0.5"], "--beta and --dev both decide beta"),
        (["--fit-temperature"], "--fit-temperature fits on other rows than it measures: give --dev"),
        (["--dev", "synthetic:dev", "--fit-temperature", "--temperature-scaling", "off"], "contradict: leave one out"),
        (["--temperature-scaling", "on"], "invalid choice: 'on'"),
        (["--scores", "s.jsonl", "--temperature-scaling", "off"], "are as infer/score.py wrote them"),
        (["--scores", "s.jsonl", "--model", "m", "--explain"], "leave out --model; --explain needs a model"),
        (["--out", "."], "--out .: is a folder, expected a file name"),
    ],
)
def test_wrong_flags_end_with_a_message(flags, message, capsys):
    with pytest.raises(SystemExit):
        main(flags)
    assert message in capsys.readouterr().err


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    flags = ("--save-beta", "--fit-temperature", "--max-bad-rows")
    for words in ("python infer/evaluate.py --scores scored.jsonl", "Nothing is fitted on --data", *flags):
        assert words in printed
