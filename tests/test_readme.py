"""The README's commands exist and take the flags it shows; the long ones are run by .ci/run, the short ones here."""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FENCES = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.S | re.M)
BLOCKS = [block for language, block in FENCES if not language]  # ```text holds tables
COMMANDS = [line.split("#")[0].strip() for block in BLOCKS for line in block.splitlines() if line.strip()]
WORDS = [shlex.split(command.split("&&")[-1]) for command in COMMANDS if ".py" in command]
# What follows python, or torchrun and its own flags.
SCRIPTS = [words[[word.endswith(".py") for word in words].index(True) :] for words in WORDS]


def test_the_readme_shows_its_two_commands():
    assert "pip install -c constraints.txt -e . && python train/grpo.py" in COMMANDS
    assert 'pip install -c constraints.txt -e ".[test]" && python -m pytest' in COMMANDS


def test_ci_runs_the_test_command_of_the_readme():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert '-c constraints.txt -e ".[test]" && python -m pytest' in script
    assert "python train/grpo.py" in script and "examples/quickstart.py --quick" in script


@pytest.mark.parametrize("words", SCRIPTS, ids=" ".join)
def test_every_script_of_the_readme_takes_the_flags_it_shows(words):
    fields = runpy.run_path(str(ROOT / words[0]))["Config"].__dataclass_fields__
    flags = [word[2:].replace("-", "_") for word in words[1:] if word.startswith("--")]
    assert set(flags) <= set(fields) | {"config"}


@pytest.mark.parametrize("script", sorted(set(re.findall(r"`((?:train|infer)/\w+\.py)`", README))))
def test_every_script_of_the_readme_answers_help(script, capsys):
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / script))["main"](["--help"])
    shown = capsys.readouterr().out
    assert end.value.code == 0 and "--model" in shown and "default:" in shown


def test_a_script_starts_from_the_command_line():
    command = [sys.executable, "train/grpo.py", "--help"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert answer.returncode == 0 and "--difficulty" in answer.stdout, answer.stderr


def test_the_teacher_command_of_the_readme_answers_help(capsys):
    from taosr1.data.teacher_files import main

    with pytest.raises(SystemExit) as end:
        main(["--help"])
    shown = capsys.readouterr().out
    assert end.value.code == 0 and "export" in shown and "import" in shown
