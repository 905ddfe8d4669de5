"""An `--out` that cannot be written ends every script at once, before a model is loaded, with a line that names it."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from taosr1.runtime.job_locks import locked_directory
from taosr1.runtime.out_paths import why_not_writable

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def places(tmp_path) -> dict[str, str]:
    """Places by name where nothing can be written, each for a reason of its own."""
    (tmp_path / "unmounted").symlink_to("/mnt/gone/disk")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "notes.jsonl").write_text("mine\n", encoding="utf-8")
    os.mkfifo(tmp_path / "pipe.jsonl")
    return {
        "below a link to a disk that is not mounted": f"{tmp_path}/unmounted/out.jsonl",
        "deep below it": f"{tmp_path}/unmounted/a/b/out.jsonl",
        "below a link to itself": f"{tmp_path}/loop/out.jsonl",
        "below a file": f"{tmp_path}/notes.jsonl/out.jsonl",
        "below a file, and a folder that is missing": f"{tmp_path}/notes.jsonl/a/out.jsonl",
        "a name that is too long": f"{tmp_path}/{'n' * 249}.jsonl",
        "below a name that is too long": f"{tmp_path}/{'ö' * 130}/out.jsonl",
        "a path that is too long": f"{tmp_path}/{'folder/' * 800}out.jsonl",
        "below /proc, where nobody can make a file": "/proc/out.jsonl",
        "below a device": "/dev/null/out.jsonl",
    }


FILES_ONLY = ("/dev/full", "{}/pipe.jsonl", "{}", "{}/notes/", "{}/unmounted")
REASONS = ("is a symbolic link to", "is a file, expected a folder", "is too long", "(File name too long)",
           "is a folder", "is a device or pipe", "nothing can be written in")  # fmt: skip


def test_every_such_place_is_refused_as_file_and_as_folder_and_nothing_is_made(places, tmp_path):
    before = sorted(os.listdir(tmp_path))
    for name, place in places.items():
        for folder in (False, True):
            problem = why_not_writable(place, folder=folder)
            assert any(reason in problem for reason in REASONS), (name, problem)
            assert "\n" not in problem
    for place in FILES_ONLY:
        assert why_not_writable(place.format(tmp_path)), place
    assert "is a file, expected a folder" in why_not_writable(tmp_path / "notes.jsonl", folder=True)
    assert sorted(os.listdir(tmp_path)) == before


def test_places_that_can_be_written_pass_whether_they_exist_or_not(places, tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "latest.jsonl").symlink_to(tmp_path / "notes.jsonl")
    monkeypatch.chdir(tmp_path)
    for place in ("out.jsonl", "a/b/c/out.jsonl", "linked/out.jsonl", "linked/new/out.jsonl", "notes.jsonl",
                  "latest.jsonl", f"{'n' * 200}.jsonl", "größer ü.jsonl", "../out.jsonl"):  # fmt: skip
        assert why_not_writable(place) == "", place
    for place in (".", "real", "linked", "new", "linked/new/run/"):
        assert why_not_writable(place, folder=True) == "", place


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder_is_refused(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o555)
    for place in ("locked/out.jsonl", "locked/new/out.jsonl"):
        assert f"nothing can be written in {tmp_path}/locked (Permission denied)" in why_not_writable(tmp_path / place)


SCRIPTS = {
    "train.sft": [], "train.dpo": [], "train.grpo": [], "train.label_pool": [], "train.mine_pairs": [],
    "infer.score": ["--data", "gone.jsonl"], "infer.evaluate": [], "infer.sample": [], "infer.merge": [],
    "infer.explain": ["boots", "suede boots"],
}  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_says_so_before_it_loads_the_model_or_reads_a_row(script, places, capsys):
    main = importlib.import_module(script).main
    for name, place in places.items():
        with pytest.raises(SystemExit) as caught:
            main([*SCRIPTS[script], "--model", "no/such/model", "--out", place])
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert caught.value.code == 2 and f"--out {place}: " in said, (name, said)
    if script not in ("infer.evaluate", "infer.explain"):  # there it is optional
        with pytest.raises(SystemExit):
            main([*SCRIPTS[script], "--model", "no/such/model", "--out", ""])
        assert "--out is " in capsys.readouterr().err


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_dash_is_standard_output_where_a_script_writes_there_and_no_name_anywhere(script, capsys):
    main = importlib.import_module(script).main
    with pytest.raises((SystemExit, ValueError, FileNotFoundError)) as caught:
        main([*SCRIPTS[script], "--model", "no/such/model", "--out", "-"])
    refused = "--out -: this script cannot write to the standard output" in capsys.readouterr().err
    assert refused == (script not in ("infer.score", "infer.explain", "infer.sample")), caught.value
    assert not Path("-").exists()


def test_the_scripts_with_parsers_of_their_own_say_so_too(places, capsys):
    plot, teacher = (importlib.import_module(name).main for name in ("infer.plot", "train.teacher"))
    for name, place in places.items():
        assert plot(["no/such/run", "--out", place.removesuffix(".jsonl") + ".png"]) == 2, name
        assert teacher(["export", "--data", "gone.jsonl", "--out", place]) == 2, name
        said = capsys.readouterr().err.strip().splitlines()
        assert len(said) == 2 and all(line.startswith(f"error: --out {place[:9]}") for line in said), said
    assert teacher(["import", "--data", "gone", "--replies", "gone", "--out", ""]) == 2
    assert "--out is missing, expected a file name" in capsys.readouterr().err


def test_a_job_below_a_link_to_nowhere_ends_where_it_once_tried_for_ever(places, tmp_path):
    code = "import sys; from pathlib import Path; from taosr1.runtime.job_locks import locked_directory\n"
    code += "with locked_directory(Path(sys.argv[1]), create=True): pass"
    folder = f"{tmp_path}/unmounted/out.jsonl.parts"
    command = [sys.executable, "-c", code, folder]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert found.returncode == 1 and "FileExistsError" in found.stderr
    with locked_directory(tmp_path / "new" / "out.jsonl.parts", create=True) as taken:
        assert taken
