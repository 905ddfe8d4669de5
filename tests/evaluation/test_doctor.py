"""The doctor accuses no healthy run, compares only what can be compared, and names flags that the stage has.

default_runs/ holds the metrics of the default runs over seeds, as `python examples/expected_curves.py --recordings
tests/evaluation/default_runs` wrote them: the settings in the first line, then metrics.jsonl. That the rules find what
is wrong is shown with runs that are really trained, in tests/train/test_doctor.py.
"""

from __future__ import annotations

import ast
import dataclasses
import gzip
import importlib
import inspect
import json
import re
from pathlib import Path

import pytest

from taosr1.evaluation import diagnoses, expected
from taosr1.evaluation.diagnoses import RULES, diagnose
from taosr1.evaluation.doctor import examine, main, say_findings
from taosr1.evaluation.expected import Band, bands_of, read_expected, windowed
from taosr1.evaluation.record import Record, record_of

RECORDINGS = sorted((Path(__file__).parent / "default_runs").glob("*.jsonl.gz"))
GUIDE = Path(__file__).resolve().parents[2] / "examples" / "guide" / "doctor.md"


def recorded(path: Path) -> tuple[dict, list[dict]]:
    config, *rows = map(json.loads, gzip.decompress(path.read_bytes()).decode().splitlines())
    return config, rows


def default_run(stage: str, **changes: object) -> Record:
    config, rows = recorded(next(path for path in RECORDINGS if path.name.startswith(f"{stage}-")))
    return record_of(rows, config | changes)


def with_curve(run: Record, **scaled: float) -> Record:
    """The run with curves multiplied; "kl=10" for "kl"."""
    curves = {name: {at: x * scaled.get(name, 1) for at, x in curve.items()} for name, curve in run.curves.items()}
    return dataclasses.replace(run, curves=curves)


def test_default_runs_of_every_stage_are_recorded():
    assert {path.name.partition("-")[0] for path in RECORDINGS} == {"sft", "dpo", "grpo"}


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.name.partition(".")[0])
def test_no_healthy_default_run_is_accused_at_its_end_or_on_its_way(path):
    config, rows = recorded(path)
    last = max(row["step"] for row in rows)
    for step in {*range(1, 12), *range(12, last, max(1, last // 10)), last}:
        run = record_of([row for row in rows if row["step"] <= step], config)
        assert examine(run)[0] == [], step


def test_the_default_run_is_compared_with_the_others_and_other_settings_are_not():
    findings, notes = examine(default_run("grpo"))
    assert findings == [] and notes[0].startswith("compared with the default run's curves up to step 100 (3 seeds, ")
    _, notes = examine(default_run("grpo", samples=4, data="rows.csv"))
    assert notes[0] == "not compared with the default run's curves: it has other --data, --samples"
    _, notes = examine(default_run("grpo", steps=200, seed=9, out="x", eval_every=50))
    assert notes[0].startswith("compared") and "the run was at step 100 of 200 when this was read" in notes


@pytest.mark.parametrize(
    ("stage", "curve", "factor", "lr", "change"),
    [("grpo", "kl", 1e-2, 1e-6, "Raise --lr (now 1e-06): the default run has 0.00015"),
     ("grpo", "kl", 30.0, 1e-3, "Lower --lr (now 0.001): the default run has 0.00015"),
     ("grpo", "dev_macro_f1", 0.9, 1e-5, "Raise --lr (now 1e-05)"),
     ("dpo", "rewards/margins", 0.1, 1e-5, "Raise --lr (now 1e-05)"),
     ("dpo", "rewards/margins", 5.0, 1e-2, "Lower --lr (now 0.01)")],
)  # fmt: skip
def test_a_run_outside_the_band_is_told_which_way_its_learning_rate_lies(stage, curve, factor, lr, change):
    run = with_curve(default_run(stage, lr=lr), **{curve: factor})
    found = {finding.name: str(finding) for finding in examine(run)[0]}
    assert change in found["outside the expected curves"] and curve in found["outside the expected curves"]
    assert "outside the expected curves" not in {f.name for f in examine(with_curve(run, **{curve: 1 / factor}))[0]}


def test_a_real_run_with_a_learning_rate_a_thousand_times_too_low_is_below_the_band():
    """Recorded, as it takes minutes: python train/grpo.py --test '' --lr 1e-7"""
    config, rows = recorded(Path(__file__).parent / "other_runs" / "grpo-low.jsonl.gz")
    assert (config["lr"], config["test"], max(row["step"] for row in rows)) == (1e-7, "", 100)
    found = {finding.name: str(finding) for finding in examine(record_of(rows, config))[0]}
    assert found.keys() == {"learning rate too low", "outside the expected curves"}
    assert "KL to the starting model is 4e-07 nats a token: the policy has not moved" in found["learning rate too low"]
    assert found["outside the expected curves"].endswith("Raise --lr (now 1e-07): the default run has 0.00015")


def test_bands_are_the_median_and_the_extremes_of_windows():
    """Windows of 2 over steps 1 to 5: the means of 1, 2 and of 3, 4; the window that is not full is left out."""
    assert windowed({1: 1.0, 2: 3.0, 3: 5.0, 4: 7.0, 5: 100.0}, 2) == {2: 2.0, 4: 6.0}
    runs = [{"loss": {1: x, 2: x}, "dev_macro_f1": {1: x}} for x in (1.0, 5.0, 2.0)]
    assert bands_of(runs, "sft", 2) == {"loss": {2: Band(2.0, 1.0, 5.0)}, "dev_macro_f1": {1: Band(2.0, 1.0, 5.0)}}


@pytest.mark.parametrize("stage", ["sft", "dpo", "grpo"])
def test_expected_curves_say_how_they_were_made_and_hold_the_runs_that_are_recorded(stage):
    found = read_expected(stage)
    assert found.about["command"].startswith(f"python train/{stage}.py --seed SEED")
    assert re.fullmatch(r"[0-9a-f]{7,}", found.about["commit"]) and re.fullmatch(
        r"20\d\d-\d\d-\d\d", found.about["date"]
    )
    runs = [record_of(rows, config).curves for config, rows in map(recorded, RECORDINGS) if stage in _stage_of(config)]
    assert len(runs) == int(found.about["seeds"])
    again = bands_of(runs, stage, found.window)
    assert again.keys() == found.bands.keys()
    for name, bands in again.items():
        assert bands.keys() == found.bands[name].keys()
        for step, band in bands.items():
            committed = found.bands[name][step]
            assert (committed.low, committed.high) == pytest.approx((band.low, band.high), rel=1e-3, abs=1e-6)


def _stage_of(config: dict) -> str:
    return record_of([], config).stage


def test_every_flag_that_a_rule_of_one_stage_names_is_a_flag_of_that_stage():
    """Rules of several stages choose their words by stage; the real runs of tests/train/test_doctor.py show those."""
    shared = [rule for rule in RULES["sft"] if rule in RULES["grpo"]]
    checked = set()
    for stage, rules in RULES.items():
        fields = {field.name for field in dataclasses.fields(importlib.import_module(f"train.{stage}").Config)}
        for rule in rules:
            if rule not in shared:
                named = set(re.findall(r"\{([a-z_]+)\}", "".join(_plain_strings(rule))))
                assert named <= fields, (stage, rule.__name__, named - fields)
                checked |= named
    assert {"lr", "kl_beta", "max_new_tokens", "nll_coef", "gamma"} <= checked


def _plain_strings(rule) -> list[str]:
    """The strings of a rule that are no f-strings: their {names} become flags."""
    tree = ast.parse(inspect.getsource(rule))
    filled = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    constants = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in filled]
    return [node.value for node in constants if isinstance(node.value, str)]


@pytest.mark.parametrize("stage", RULES)
def test_every_word_in_braces_becomes_a_flag_with_its_value(stage):
    fields = dataclasses.fields(importlib.import_module(f"train.{stage}").Config)
    run = Record(stage, {field.name: field.default for field in fields}, {"loss": {1: 0.5}})
    change = run.finding("x", "y", "lower {lr} and {out}").change
    assert re.fullmatch(r'lower --lr \(now [\d.e-]+\) and --out \(now "runs/[\w-]+"\)', change)


def names_of_findings() -> set[str]:
    source = inspect.getsource(diagnoses) + inspect.getsource(expected)
    return set(re.findall(r'run\.finding\(\s*"([^"]+)"', source))


def test_the_guide_has_a_row_for_every_diagnosis_and_none_that_is_gone():
    rows = re.findall(r"^\| \*\*(.+?)\*\* \|", GUIDE.read_text(encoding="utf-8"), flags=re.M)
    assert len(rows) == len(set(rows)) and set(rows) == names_of_findings() and len(rows) > 20


def test_every_diagnosis_is_provoked_by_a_run():
    provoked = {name for names, _, _ in importlib.import_module("tests.train.test_doctor").PROVOKED for name in names}
    assert names_of_findings() - provoked == {"the form was never learned", "outside the expected curves"}


def test_a_loss_near_zero_is_explained_and_not_a_finding():
    findings, notes = examine(default_run("grpo"))
    assert findings == [] and any("near 0 is normal in GRPO" in note for note in notes)


def test_what_was_not_logged_is_no_finding():
    """A run of an older version, or one step old: most metrics are missing."""
    for stage in ("sft", "dpo", "grpo"):
        run = default_run(stage)
        assert diagnose(dataclasses.replace(run, curves={})) == []
        assert diagnose(dataclasses.replace(run, curves={"loss": {1: run.first("loss")}})) == []


def test_a_form_that_was_never_learned_is_told_from_one_that_is_lost():
    """No reply is cut, and a third give no grade: from the first step on, or since."""
    run = default_run("grpo")
    never = dataclasses.replace(run, curves=run.curves | {"unreadable_frac": dict.fromkeys(range(1, 101), 0.3)})
    lost = dataclasses.replace(run, curves=run.curves | {"unreadable_frac": {1: 0.0} | {100: 0.3}})
    assert [finding.name for finding in diagnose(never)] == ["the form was never learned"]
    assert [finding.name for finding in diagnose(lost)] == ["the form is lost"]


def test_a_folder_that_is_no_run_is_refused_with_what_to_give(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "no run with a metrics.jsonl is there; give the --out of a training script" in capsys.readouterr().err
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 0.1}\n')
    assert main([str(tmp_path)]) == 2
    assert "missing, broken, or not written by one of train/sft.py" in capsys.readouterr().err


def test_metrics_that_cannot_be_read_do_not_fail_a_training_that_is_finished(tmp_path, capsys):
    say_findings(tmp_path)
    assert "doctor: " in (said := capsys.readouterr().out) and "no run with a metrics.jsonl" in said


@pytest.mark.parametrize("missing", ["dev_macro_f1", "dev_label_mass", "loss", "kl", "rewards/chosen"])
@pytest.mark.parametrize("path", RECORDINGS[::3], ids=lambda path: path.name)
def test_a_metric_that_is_never_finite_silences_its_rules_and_breaks_none(path, missing):
    config, rows = recorded(path)
    rows = [row | {name: float("nan") for name in row if name == missing} | {"dev_label_mass": 0.1} for row in rows]
    examine(record_of(rows, config))


def test_lines_that_cannot_be_read_are_notes_and_control_characters_stay_text(tmp_path, capsys):
    config, rows = recorded(RECORDINGS[0])
    (tmp_path / "config.json").write_text(json.dumps(config | {"data": "\x1b[31mred"}))
    lines = "".join(json.dumps(row | {"rewards/margins": 0.0, "rewards/chosen": 9.0}) + "\n" for row in rows)
    (tmp_path / "metrics.jsonl").write_text(lines + '{"step": 4')
    assert main([str(tmp_path), "--strict"]) == 1
    said = capsys.readouterr().out
    assert "left out, the run was stopped" in said and "pairs contradict each other" in said and "\x1b" not in said
