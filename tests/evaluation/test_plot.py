"""Training curves: what is read of a run folder and how it is grouped, without matplotlib; and the drawing, with it."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from infer.plot import NEVER_SMOOTHED, figure_of, main, panels_of, smoothed
from taosr1.evaluation.curves import PANELS, RunCurves, curves_of, read_metrics, read_run
from taosr1.runtime.run_folder import Run

LINES = [
    {"step": 1, "loss": 0.9, "grad_norm": 2.0, "skipped": 0},
    {"step": 2, "loss": 0.7, "grad_norm": 1.5, "skipped": 0},
    {"step": 2, "dev_macro_f1": 0.4, "dev_unparsed_frac": 0.0},
    {"step": 3, "loss": 0.5, "grad_norm": 1.0, "skipped": 0},
]


def write(folder: Path, lines: list[dict] = LINES, tail: str = "") -> Path:
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + tail, encoding="utf-8")
    return folder


def run_of(folder: str, **curves: dict[int, float]) -> RunCurves:
    return RunCurves(Path(folder), curves)


# ---- reading ---------------------------------------------------------------------------------------------------------


def test_every_metric_is_a_curve_over_the_steps_that_have_it(tmp_path):
    run = read_run(write(tmp_path / "run"))
    assert run.curves["loss"] == {1: 0.9, 2: 0.7, 3: 0.5}
    assert run.curves["dev_macro_f1"] == {2: 0.4}
    assert run.notes == () and run.origin == "" and "step" not in run.curves


def test_steps_ascend_and_the_later_line_of_a_step_counts():
    curves, _ = curves_of([{"step": 3, "loss": 0.1}, {"step": 1, "loss": 0.9}, {"step": 3, "loss": 0.2}])
    assert curves == {"loss": {1: 0.9, 3: 0.2}} and list(curves["loss"]) == [1, 3]


def test_values_that_are_not_finite_are_left_out_and_counted(tmp_path):
    """The loop logs a step whose loss was NaN and skips it; json writes NaN and Infinity, and reads them."""
    infinite = [{"step": 4, "loss": float("nan"), "grad_norm": float("inf")}, {"step": 5, "loss": float("-inf")}]
    folder = write(tmp_path / "run", [*LINES, *infinite])
    run = read_run(folder)
    assert list(run.curves["loss"]) == list(run.curves["grad_norm"]) == [1, 2, 3]
    note = "values that are not finite, or beyond 1e300, are left out: loss (2), grad_norm (1)"
    assert run.notes == (f"{folder / 'metrics.jsonl'}: {note}",)


def test_a_metric_that_was_never_finite_has_no_curve():
    assert curves_of([{"step": 1, "kl": float("nan")}]) == ({}, {"kl": 1})


def test_values_that_are_no_numbers_have_no_curve():
    assert curves_of([{"step": 1, "why": "too easy", "done": True, "loss": None, "kl": [1.0]}]) == ({}, {})


@pytest.mark.parametrize("tail", ['{"step": 4, "loss": 0.', '{"step": 4, "lo', "{"])
def test_a_last_line_that_a_kill_cut_off_is_left_out_with_a_note(tmp_path, tail):
    folder = write(tmp_path / "run", tail=tail)
    run = read_run(folder)
    assert run.curves == read_run(write(tmp_path / "complete")).curves
    (note,) = run.notes
    assert note.startswith(f"{folder / 'metrics.jsonl'}:5: left out, the run was stopped")


def test_a_complete_last_line_without_a_line_break_is_read(tmp_path):
    run = read_run(write(tmp_path / "run", tail='{"step": 4, "loss": 0.3}'))
    assert list(run.curves["loss"]) == [1, 2, 3, 4] and run.notes == ()


@pytest.mark.parametrize("line", ["nonsense", "[1, 2]", '{"loss": 1.0}', '{"step": "4"}', '{"step": true}'])
def test_a_broken_line_in_between_is_named(tmp_path, line):
    folder = write(tmp_path / "run", tail=line + "\n" + json.dumps({"step": 9, "loss": 0.1}) + "\n")
    run = read_run(folder)
    assert list(run.curves["loss"]) == [1, 2, 3, 9]
    assert run.notes == (f"{folder / 'metrics.jsonl'}:5: left out, not a JSON object with a step",)


def test_a_missing_and_an_empty_file_are_notes(tmp_path):
    rows, notes = read_metrics(tmp_path / "nowhere" / "metrics.jsonl")
    assert rows == [] and notes == [f"{tmp_path / 'nowhere' / 'metrics.jsonl'}: No such file or directory"]
    folder = write(tmp_path / "empty", [])
    assert read_run(folder).notes == (f"{folder / 'metrics.jsonl'}: nothing is logged yet",)


def test_what_a_run_writes_is_read_and_its_seed_commit_and_machine_are_named(tmp_path):
    @dataclass(frozen=True)
    class Config:
        seed: int = 7

    run = Run(tmp_path / "run", Config())
    for line in LINES:
        run.log(**line)
    found = read_run(tmp_path / "run")
    assert list(found.curves["loss"].values()) == [0.9, 0.7, 0.5]
    environment = json.loads((tmp_path / "run" / "env.json").read_text())
    expected = ["seed 7", environment["commit"], environment["cuda"] or environment["machine"]]
    assert found.origin == ", ".join(part for part in expected if part)


@pytest.mark.parametrize("text", ["", "{", "[]", "\udcff"])
def test_an_unreadable_config_costs_only_the_origin(tmp_path, text):
    folder = write(tmp_path / "run")
    (folder / "config.json").write_text(text, encoding="utf-8", errors="surrogateescape")
    assert read_run(folder).origin == "" and "loss" in read_run(folder).curves


# ---- grouping --------------------------------------------------------------------------------------------------------


def test_panels_are_what_some_run_has_in_one_order():
    point = {1: 1.0}
    one, other = run_of("a", kl=point, loss=point, decoded_tok=point), run_of("b", grad_norm=point, dev_macro_f1=point)
    assert panels_of([one, other]) == ["loss", "dev_macro_f1", "kl", "grad_norm"] == panels_of([other, one])
    assert panels_of([one, other], ["grad_norm", "loss", "entropy"]) == ["loss", "grad_norm"]
    assert panels_of([]) == panels_of([run_of("c")]) == []
    assert set(NEVER_SMOOTHED) < PANELS.keys()


def test_smoothing_by_hand():
    """Windows of 3 over 1 2 6 4: 1, (1 + 2)/2, (1 + 2 + 6)/3, (2 + 6 + 4)/3; a centred window would start with 1.5."""
    assert smoothed([1.0, 2.0, 6.0, 4.0], 3) == [1.0, 1.5, 3.0, 4.0]
    assert smoothed([1.0, 2.0, 6.0], 1) == [1.0, 2.0, 6.0]
    assert smoothed([1.0, 3.0], 100) == [1.0, 2.0] and smoothed([], 3) == []
    for window in (0, -1):
        with pytest.raises(ValueError, match="--smooth"):
            smoothed([1.0], window)


# ---- the command line, as far as it goes without matplotlib ----------------------------------------------------------


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main([str(write(tmp_path / "run"))]) == 2
    assert 'pip install -c constraints.txt -e ".[plot]"' in capsys.readouterr().err
    assert list((tmp_path / "run").iterdir()) == [tmp_path / "run" / "metrics.jsonl"]


def test_nothing_to_draw_is_an_error_that_says_what_was_found(tmp_path, capsys):
    assert main([str(tmp_path / "typo"), str(write(tmp_path / "empty", []))]) == 2
    shown = capsys.readouterr().err
    for words in ("typo/metrics.jsonl: No such file", "nothing is logged yet", "error: nothing to draw"):
        assert words in shown
    assert not (tmp_path / "typo").exists()


def test_a_format_that_is_not_offered_is_refused(tmp_path, capsys):
    assert main([str(write(tmp_path / "run")), "--out", str(tmp_path / "curves.jsonl")]) == 2
    assert ".png, .svg, .pdf" in capsys.readouterr().err and not (tmp_path / "curves.jsonl").exists()


@pytest.mark.parametrize(("flags", "words"), [([], "RUN"), (["run", "--metric", "f2"], "invalid choice: 'f2'")])
def test_a_run_has_to_be_named_and_metrics_have_to_be_known(flags, words, capsys):
    with pytest.raises(SystemExit) as end:
        main(flags)
    assert end.value.code == 2 and words in capsys.readouterr().err


# ---- drawing ---------------------------------------------------------------------------------------------------------


def drawn_lines(axes) -> list[tuple[list, list]]:
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.get_lines() if len(line.get_xdata())]


def test_every_panel_holds_the_curves_of_the_runs_that_have_it(matplotlib):
    a = run_of("runs/a", loss={1: 0.9, 2: 0.7}, dev_macro_f1={2: 0.4})
    b = run_of("runs/b", loss={1: 0.8, 2: 0.6, 3: 0.5})
    figure = figure_of([a, b])
    assert [axes.get_title().split("\n")[0] for axes in figure.axes] == ["loss", "dev_macro_f1"]
    assert drawn_lines(figure.axes[0]) == [([1, 2], [0.9, 0.7]), ([1, 2, 3], [0.8, 0.6, 0.5])]
    assert drawn_lines(figure.axes[1]) == [([2], [0.4])]
    assert {axes.get_xlim() for axes in figure.axes} == {figure.axes[0].get_xlim()}
    legend = figure.legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["runs/a", "runs/b"]
    colours = [line.get_color() for line in legend.get_lines()]
    assert len(set(colours)) == 2
    assert [line.get_color() for line in figure.axes[0].get_lines() if len(line.get_xdata())] == colours


def test_smoothing_keeps_the_logged_curve_behind_and_leaves_scores_alone(matplotlib):
    curve = {1: 1.0, 2: 3.0, 3: 5.0}
    figure = figure_of([run_of("a", loss=curve, dev_macro_f1=curve)], smooth=2)
    assert drawn_lines(figure.axes[0]) == [([1, 2, 3], [1.0, 3.0, 5.0]), ([1, 2, 3], [1.0, 2.0, 4.0])]
    assert drawn_lines(figure.axes[1]) == [([1, 2, 3], [1.0, 3.0, 5.0])]
    assert "mean of 2" in figure.legends[0].get_title().get_text()


def test_more_runs_than_colours_are_still_told_apart(matplotlib):
    figure = figure_of([run_of(f"run{n}", loss={1: n, 2: n + 1.0}) for n in range(15)])
    assert len({(line.get_color(), line.get_linestyle()) for line in figure.legends[0].get_lines()}) == 15


def test_a_picture_of_the_runs_is_written_beside_the_first_that_can_be_drawn(matplotlib, tmp_path, capsys):
    runs = [tmp_path / "missing", write(tmp_path / "a", tail='{"step": 4'), write(tmp_path / "b")]
    assert main([str(run) for run in runs]) == 0
    shown = capsys.readouterr()
    assert f"3 panels of 2 of 3 runs -> {tmp_path / 'a' / 'curves.png'}" in shown.out
    assert shown.err.count("note:") == 2 and "a/metrics.jsonl:5" in shown.err
    assert (tmp_path / "a" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "missing").exists() and not (tmp_path / "b" / "curves.png").exists()


def test_one_metric_is_a_small_svg_of_plain_text_that_is_the_same_every_time(matplotlib, tmp_path, capsys):
    """The picture of the README: 500 steps, evaluated every 10."""
    steps = [{"step": step, "loss": 1 / step, "dev_macro_f1": step / 500} for step in range(1, 501)]
    run, files = write(tmp_path / "a", steps[9::10]), [tmp_path / "new" / "folder" / "one.svg", tmp_path / "again.svg"]
    for file in files:
        assert main([str(run), "--metric", "dev_macro_f1", "--out", str(file)]) == 0
    text = files[0].read_text(encoding="utf-8")
    assert "1 panels of 1 of 1 runs" in capsys.readouterr().out and not (run / "curves.png").exists()
    assert ">macro-F1 on dev</text>" in text and "grad_norm" not in text and "@font-face" not in text
    assert files[0].read_bytes() == files[1].read_bytes() and 5_000 < len(text) < 30_000


def test_a_metric_that_no_run_has_is_nothing_to_draw(tmp_path, capsys):
    assert main([str(write(tmp_path / "a")), "--metric", "kl"]) == 2
    assert "error: nothing to draw: no run has one of kl" in capsys.readouterr().err
