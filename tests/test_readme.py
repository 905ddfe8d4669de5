"""The README does what it shows: its short commands and its Python run here, .ci/run runs the long ones."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import pytest

from taosr1.data.inspect import main as inspect_data
from taosr1.data.scales import PRESETS

ROOT = Path(__file__).resolve().parents[1]
DATA_GUIDE = (ROOT / "examples" / "guide" / "data.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
FENCES = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.S | re.M)
COMMANDS = [line for language, block in FENCES if not language for line in block.splitlines()]
SCRIPTS = [shlex.split(command.split("&&")[-1])[1:] for command in COMMANDS if ".py" in command]
(ROWS,) = (block for language, block in FENCES if language == "csv")
(PYTHON,) = (block for language, block in FENCES if language == "python")


def test_it_stays_short_and_names_no_version():
    assert README.count("\n") <= 150 and len(README.split()) < 1000
    assert not re.search(r"`[0-9a-f]{7,40}`", README)


def test_it_shows_its_two_commands_first():
    assert COMMANDS[:2] == [
        "pip install -c constraints.txt -e . && python train/grpo.py",
        'pip install -c constraints.txt -e ".[test]" && python -m pytest',
    ]


def test_ci_runs_its_test_command():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert '-c constraints.txt -e ".[test]" && python -m pytest' in script
    assert "python train/grpo.py" in script and "examples/quickstart.py --quick" in script


def test_the_commands_for_own_pairs_run_on_the_rows_that_it_shows(tmp_path, monkeypatch, capsys):
    """Training, measuring, scoring, one pair, and then the Python lines, offline and in this order."""
    monkeypatch.chdir(tmp_path)
    Path("rows.csv").write_text(ROWS, encoding="utf-8")
    own = [words for words in SCRIPTS if "runs/mine" in words]
    assert [words[0] for words in own] == ["train/sft.py", "infer/evaluate.py", "infer/score.py", "infer/explain.py"]
    for script, *flags in own:
        runpy.run_path(str(ROOT / script))["main"](flags)
    assert len(Path("scored.jsonl").read_text(encoding="utf-8").splitlines()) == 1  # the row of split test
    assert "macro-F1" in capsys.readouterr().out
    assert len(PYTHON.splitlines()) == 5
    exec(compile(PYTHON, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    Path("test.csv").write_text(ROWS, encoding="utf-8")
    for command in re.findall(r"^python -m taosr1.data.inspect (.*)$", DATA_GUIDE, flags=re.M):
        inspect_data(shlex.split(command))
        assert "4 rows of 3 queries" in capsys.readouterr().out
    assert re.search(r"Score\(grade=\d, tier='(Good|Mid|Bad)', probs=", printed)
    shown = r"^([01]\.\d\d) [1-4] (?:Good|Mid|Bad) (?:Steel travel mug 500 ml|LED desk lamp)$"
    ranked = re.findall(shown, printed, flags=re.M)
    assert len(ranked) == 2 and ranked == sorted(ranked, reverse=True)


def test_the_guide_names_the_presets_of_grades():
    assert set(re.findall(r"^\| `([^\"`-][^`]*)` \|", DATA_GUIDE, flags=re.M)) == set(PRESETS)


def test_every_column_of_the_rows_is_explained():
    explained = README.partition(ROWS)[2].partition("```\n\n")[2].partition("```")[0]
    assert all(f"`{column}`" in explained for column in ROWS.splitlines()[0].split(","))


@pytest.mark.parametrize("words", SCRIPTS, ids=" ".join)
def test_a_script_takes_the_flags_that_it_shows(words):
    fields = runpy.run_path(str(ROOT / words[0]))["Config"].__dataclass_fields__
    flags = [word[2:].replace("-", "_") for word in words[1:] if word.startswith("--")]
    assert set(flags) <= set(fields)


@pytest.mark.parametrize("script", sorted(ROOT.glob("infer/*.py")), ids=lambda script: script.stem)
def test_every_script_of_infer_answers_help(script, capsys):
    """Those of train/ have tests of their own."""
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(script))["main"](["--help"])
    shown = capsys.readouterr().out
    assert end.value.code == 0 and "usage:" in shown and f"python infer/{script.name}" in shown


def test_the_teacher_command_answers_help(capsys):
    from train.teacher import main

    with pytest.raises(SystemExit) as end:
        main(["--help"])
    shown = capsys.readouterr().out
    assert end.value.code == 0 and "export" in shown and "import" in shown
