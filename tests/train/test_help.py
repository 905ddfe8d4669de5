"""Every training script explains itself and refuses what it does not know."""

from __future__ import annotations

import dataclasses
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ("pretrain", "sft", "mine_pairs", "dpo", "grpo", "label_pool")


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_shows_how_to_call_a_script_and_every_setting_with_its_default(name, capsys):
    script = importlib.import_module(f"train.{name}")
    with pytest.raises(SystemExit) as caught:
        script.main(["--help"])
    shown = capsys.readouterr().out
    assert caught.value.code == 0 and f"python train/{name}.py" in shown
    for field in dataclasses.fields(script.Config):
        assert "--" + field.name.replace("_", "-") in shown and field.metadata["help"].split()[0] in shown
    assert {"model", "data", "out", "device", "dtype", "seed"} <= {
        field.name for field in dataclasses.fields(script.Config)
    }


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_unknown_flag_is_an_error(name, refused):
    assert "unrecognized arguments: --step" in refused(importlib.import_module(f"train.{name}").main, "--step", "3")


def test_a_script_runs_from_any_folder_and_ends_with_a_message_not_with_a_traceback(tmp_path):
    command = [
        sys.executable,
        str(ROOT / "train" / "sft.py"),
        "--model",
        "gone/model/here",
        "--out",
        str(tmp_path / "run"),
    ]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (
        found.returncode == 1
        and found.stderr.startswith("error: no model folder gone/model/here")
        and "Traceback" not in found.stderr
    )
    assert list(tmp_path.iterdir()) == []
