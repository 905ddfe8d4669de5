"""The runner of the studies: what is done is not repeated, and what fails is named while the rest goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.runner import Command, Run, make_all, make_command, run_all, small

WRITE = "import sys; open(sys.argv[2], 'a').write('x')"


def one_run(folder: Path, name: str, code: str, *needs: str) -> Run:
    script, result = folder / f"{name}.py", folder / f"{name}.txt"
    script.write_text(code, encoding="utf-8")
    return Run(name, folder / name, needs, (Command([str(script), "--out", str(result)], (result,)),))


def test_a_run_that_fails_is_named_the_rest_goes_on_and_a_restart_repeats_nothing(tmp_path, capsys):
    wrong = one_run(tmp_path, "wrong", "raise SystemExit('no such pool')")
    runs = [wrong, one_run(tmp_path, "after", WRITE, "wrong"), one_run(tmp_path, "other", WRITE)]
    state = run_all(runs, 2)
    assert state == {"wrong": "wrong.py: no such pool", "after": "needs wrong, which failed", "other": ""}
    assert runs[2].is_finished and not runs[0].is_finished and runs[2].seconds > 0
    with pytest.raises(ValueError, match="wrong.py: no such pool"):
        make_all(runs, 1)
    capsys.readouterr()
    runs[0] = one_run(tmp_path, "wrong", WRITE)
    assert set(run_all(runs, 1).values()) == {""}
    assert "other: python" not in capsys.readouterr().out
    assert (tmp_path / "other.txt").read_text() == (tmp_path / "after.txt").read_text() == "x"


def test_what_was_written_but_not_noted_is_made_again_and_another_command_is_refused(tmp_path):
    run = one_run(tmp_path, "one", WRITE)
    (tmp_path / "one.txt").write_text("half")  # the process that ran it was killed before it could note the result
    assert run_all([run], 1) == {"one": ""} and (tmp_path / "one.txt").read_text() == "x"
    other = Run("one", run.folder, (), (Command([*run.commands[0].words, "--more"], run.commands[0].results),))
    assert "was made by another command" in run_all([other], 1)["one"]


def test_a_command_has_values_for_its_placeholders_and_numbers_of_its_quick_form():
    made = make_command("a.py --data {pool} --steps 500 --out {out}", {"pool": "x y", "out": "/o"}, {"steps": 3})
    assert made.words == ["a.py", "--data", "x y", "--steps", "3", "--out", "/o"]
    assert made.results == (Path("/o/checkpoints/step-000003/state.json"),)
    with pytest.raises(ValueError, match="no placeholder is called 'pool'"):
        make_command("a.py --data {pool} --out x", {})
    assert small(["--steps-more", "5", "--steps", "7"], {"steps": 1}) == ["--steps-more", "5", "--steps", "1"]
