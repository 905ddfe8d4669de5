"""Command lines made from dataclasses: defaults, then a file, then flags; whatever is unknown is an error."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass

import pytest

from taosr1.runtime.cli import check, option, parse_config
from taosr1.runtime.signals import run_main


@dataclass(frozen=True)
class Config:
    query: str = option("", "what is asked", positional=True)
    size: str = option("small", "how big, 100 % sure", ("small", "large"))
    batch_size: int = option(8, "rows")
    lr: float = option(1e-3, "learning rate")
    fast: bool = option(False, "hurry")
    careful: bool = option(True, "check twice")
    beta: float | None = option(None, "fitted where it is not given")
    limit: int | None = option(None, "rows")
    data: str = option("synthetic:dev", "rows to read")
    test: str = option("synthetic:test", "rows to measure on ('' for none)")

    def __post_init__(self) -> None:
        check([
            (self.batch_size < 1, f"--batch-size is {self.batch_size}, expected at least 1"),
            (self.lr <= 0, f"--lr is {self.lr}"),
        ])  # fmt: skip


def parse(*argv: str) -> Config:
    return parse_config(Config, "What this does.\n\n    an example\n", list(argv))


def refused(capsys, *argv: str) -> str:
    with pytest.raises(SystemExit) as caught:
        parse(*argv)
    assert caught.value.code == 2
    return capsys.readouterr().err


def stored(tmp_path, value: object) -> str:
    path = tmp_path / "settings.json"
    path.write_text(json.dumps(value), encoding="utf-8")
    return str(path)


def test_without_flags_everything_has_its_default():
    assert parse() == Config()


def test_every_kind_of_field_is_a_flag():
    flags = "boots --size large --batch-size 3 --lr 1 --fast --no-careful --beta 0.5 --limit=7"
    assert parse(*flags.split()) == Config("boots", "large", 3, 1.0, True, False, 0.5, 7)
    assert isinstance(parse("--lr", "1").lr, float)


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path):
    path = stored(tmp_path, {"batch_size": 3, "lr": 1, "fast": True, "beta": None, "size": "large"})
    assert parse("--config", path) == Config(batch_size=3, lr=1, fast=True, size="large")
    found = parse("--config", path, "--batch-size", "4", "--no-fast", "--beta", "0.2")
    assert found == Config(batch_size=4, lr=1, size="large", beta=0.2)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--sizes", "small"], "unrecognized arguments: --sizes; did you mean --size?"),
        # No abbreviations: the next release may add --batch.
        (["--batch", "3"], "unrecognized arguments: --batch; did you mean --batch-size?"),
        (["--batch_size", "3"], "did you mean --batch-size?"),
        (["--Batch-Sise=3"], "unrecognized arguments: --Batch-Sise=3; did you mean --batch-size?"),
        (["-beta", "3", "--carefull"], "did you mean --beta, --careful?"),
        (["--walrus", "3"], "unrecognized arguments: --walrus (--help lists all flags)"),
        (["--batch-size", "many"], "--batch-size is 'many', expected a whole number (--help"),
        (["--batch-size", "1e3"], "--batch-size is '1e3', expected a whole number, such as 1000"),
        (["--batch-size", "8.0"], "expected a whole number, such as 8"),
        (["--batch-size", "8.5"], "--batch-size is '8.5', expected a whole number (--help"),
        (["--batch-size", ""], "--batch-size is '', expected a whole number"),
        (["--batch-size", "inf"], "--batch-size is 'inf', expected a whole number"),
        (["--limit", "9" * 30], "expected a number below 2^63"),
        (["--lr", "fast"], "--lr is 'fast', expected a number"),
        (["--lr", ""], "--lr is '', expected a number"),
        (["--lr", "nan"], "--lr is 'nan', expected a finite number"),
        (["--beta", "-inf"], "--beta: expected one argument"),
        (["--beta=-inf"], "--beta is '-inf', expected a finite number"),
        (["--size", "medium"], "--size: invalid choice: 'medium'"),
        (["--data", ""], "--data is empty, expected rows to read (default: synthetic:dev)"),
        (["--data="], "--data is empty, expected rows to read"),
        (["a", "b"], "unrecognized arguments: b"),
        (["--batch-size", "0", "--lr", "0"], "--batch-size is 0, expected at least 1; --lr is 0.0"),
        (["--config"], "expected one argument"),
    ],
)
def test_a_wrong_flag_ends_with_its_message(capsys, argv, message):
    said = refused(capsys, *argv)
    assert message in said and said.count("\n") == 1 and "usage:" not in said  # the error and nothing before it


def test_what_may_be_empty_is_left_empty(tmp_path, capsys):
    assert parse("--test", "").test == "" and parse("").query == ""
    assert "--data is empty" in refused(capsys, "--config", stored(tmp_path, {"data": "", "test": ""}))


def test_numbers_may_be_written_as_python_writes_them():
    found = parse("--batch-size", "1_000", "--lr", "1e-4", "--limit", "-1", "--beta", "1_0.5")
    assert (found.batch_size, found.lr, found.limit, found.beta) == (1000, 1e-4, -1, 10.5)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"batchsize": 3}, "unknown setting 'batchsize'"),
        ({"batch_size": "3"}, "batch_size is '3', expected int"),
        ({"batch_size": 3.5}, "batch_size is 3.5, expected int"),
        ({"batch_size": True}, "batch_size is True, expected int"),
        ({"batch_size": None}, "batch_size is None, expected int"),
        ({"lr": True}, "lr is True, expected float"),
        ({"fast": 1}, "fast is 1, expected bool"),
        ({"fast": "yes"}, "fast is 'yes', expected bool"),
        ({"beta": "x"}, "beta is 'x', expected float"),
        ({"size": "medium"}, "size is 'medium', expected one of small, large"),
        ({"size": ["small"]}, "size is ['small'], expected str"),
        ({"batch_size": 0}, "--batch-size is 0, expected at least 1"),
        ({"lr": float("nan")}, "lr is nan, expected a number below 2^63"),
        ({"limit": 10**30}, "expected a number below 2^63"),
        ([1], "expected one JSON object of settings"),
        ({"batchsize": 3, "fast": 1}, "unknown setting 'batchsize'; fast is 1, expected bool"),
    ],
)
def test_a_wrong_setting_in_the_file_ends_with_its_message(capsys, tmp_path, value, message):
    assert message in refused(capsys, "--config", stored(tmp_path, value))


def test_a_missing_or_unreadable_file_is_named(capsys, tmp_path):
    assert f"--config {tmp_path}/gone.json: no such file" in refused(capsys, "--config", f"{tmp_path}/gone.json")
    assert "no such file" in refused(capsys, "--config", str(tmp_path))
    path = tmp_path / "settings.json"
    path.write_text("{", encoding="utf-8")
    assert "not JSON" in refused(capsys, "--config", str(path))
    path.write_bytes(b"\xff")
    assert "not JSON" in refused(capsys, "--config", str(path))


def test_help_shows_the_description_every_flag_and_every_default(capsys):
    with pytest.raises(SystemExit) as caught:
        parse("--help")
    shown = " ".join(capsys.readouterr().out.split())
    assert caught.value.code == 0
    parts = ("What this does. an example", "how big, 100 % sure (default: small)", "--batch-size", "(default: 8)",
             "(default: False)", "--no-careful", "fitted where it is not given (default: none)", "--config FILE")
    for text in parts:
        assert text in shown, text


def test_check_collects_every_message_and_passes_where_none_holds():
    check([(False, "a")])
    with pytest.raises(ValueError, match="^a; c$"):
        check([(True, "a"), (False, "b"), (True, "c")])


@pytest.mark.parametrize(
    "error",
    [ValueError, FileNotFoundError, FileExistsError, IsADirectoryError, FloatingPointError, ModuleNotFoundError],
)
def test_wrong_input_ends_a_script_with_its_message_and_not_with_a_traceback(capsys, error):
    def main():
        raise error("no such thing")

    with pytest.raises(SystemExit) as caught:
        run_main(main)
    assert caught.value.code == 1 and capsys.readouterr().err == "error: no such thing\n"


@pytest.mark.parametrize(
    ("script", "advice"),
    [
        ("train.sft", "; try a smaller --micro-batch-tok, --max-new-tokens or --activation-checkpointing"),
        ("train.grpo", "; try a smaller --micro-batch-tok, --max-new-tokens, --samples or --activation-checkpointing"),
        ("infer.score", "; try a smaller --batch-tok"),
        ("infer.evaluate", "; try a smaller --max-new-tokens"),
        ("infer.merge", ""),
    ],
)
@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory. Tried\nmore"), MemoryError("huge")])
def test_memory_that_is_short_names_the_flags_that_the_script_has(capsys, script, advice, error):
    def main():
        raise error

    with pytest.raises(SystemExit) as caught:
        run_main(main, importlib.import_module(script).Config)
    said = capsys.readouterr().err
    assert caught.value.code == 1 and advice in said and said.count("--") == advice.count("--")


def test_ctrl_c_says_how_to_go_on_and_a_bug_keeps_its_traceback(capsys):
    def stopped():
        raise KeyboardInterrupt

    def bug():
        raise TypeError("our fault")

    with pytest.raises(SystemExit) as caught:
        run_main(stopped)
    assert caught.value.code == 130 and "the same command continues" in capsys.readouterr().err
    with pytest.raises(TypeError):
        run_main(bug)
    with pytest.raises(ModuleNotFoundError):
        run_main(lambda: importlib.import_module("no_such_package"))
