"""A folder that taosr1 did not write is trained, scored and served as the flags of the prompt say."""

from __future__ import annotations

import json
import shutil

import pytest

from infer.evaluate import main as evaluate
from infer.score import main as score
from infer.serve import Config, load_tested
from taosr1.data.inspect import main as inspect
from taosr1.judge_model import BUNDLED_FOLDERS, BUNDLED_STUDENT
from taosr1.runtime.files import read_json
from taosr1.task.prompt import PromptConfig
from taosr1.task.prompt_rules import read_book
from taosr1.task.rules import BUNDLED_RULES
from train.dpo import main as dpo
from train.grpo import main as grpo
from train.sft import main as sft

FIELDS = ("--fields", "title,evidence")
SHORT = ("--dev", "synthetic:dev*4", "--steps", "1", "--seed", "0")


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> str:
    """The bundled student as another project would have written it."""
    folder = tmp_path_factory.mktemp("raw") / "model"
    names = shutil.ignore_patterns("prompt.json", "manifest.json", "tiering.json", "calibration.json")
    shutil.copytree(BUNDLED_FOLDERS[BUNDLED_STUDENT], folder, ignore=names)
    return str(folder)


@pytest.fixture(scope="module")
def book(tmp_path_factory) -> str:
    """The first rules of ours as a book of one's own."""
    path = tmp_path_factory.mktemp("book") / "own.jsonl"
    path.write_text("".join(BUNDLED_RULES.read_text(encoding="utf-8").splitlines(keepends=True)[:8]), encoding="utf-8")
    return str(path)


def test_rules_given_to_sft_are_those_of_every_later_script(raw, book, tmp_path, capsys):
    run, flags = tmp_path / "run", (*FIELDS, "--prompt-rules", "2", "--rules", book, "--max-prompt-tok", "600")
    sft(["--model", raw, "--order", "label", "--data", "synthetic:labelled*16", *SHORT, "--batch-size", "4", *flags,
         "--out", str(run)])  # fmt: skip
    asked = PromptConfig("label", "full", ("title", "evidence"), 600, 600, "", 2, read_book(book))
    assert PromptConfig.load(run / "checkpoints/step-000001") == asked
    score(["--model", str(run), "--data", "synthetic:labelled*2", "--out", str(tmp_path / "scored.jsonl")])
    first = json.loads((tmp_path / "scored.jsonl").read_text().splitlines()[0])
    assert first["prompt_sha"] == asked.wording_sha256
    evaluate(["--model", str(run), "--data", "synthetic:labelled*4", "--out", str(tmp_path / "report.json")])
    assert read_json(tmp_path / "report.json")["prompt_sha"] == asked.wording_sha256
    capsys.readouterr()
    inspect(["synthetic:labelled*2", "--model", str(run)])
    assert "\nRules:\n- " in capsys.readouterr().out


@pytest.mark.long
def test_preferences_and_rewards_train_a_raw_folder_with_its_prompt(raw, tmp_path):
    row = {"prompt": [{"role": "user", "content": "Is it a mug?"}], "chosen": [{"role": "assistant", "content": "4"}],
           "rejected": [{"role": "assistant", "content": "1"}]}  # fmt: skip
    (tmp_path / "pairs.jsonl").write_text(4 * (json.dumps(row) + "\n"))
    common = ("--model", raw, *FIELDS, "--prompt-rules", "1", "--max-new-tokens", "16")
    dpo([*common, "--data", str(tmp_path / "pairs.jsonl"), *SHORT, "--batch-size", "2", "--nll-coef", "0",
         "--out", str(tmp_path / "dpo")])  # fmt: skip
    grpo([*common, "--data", "synthetic:labelled*8", *SHORT, "--groups", "2", "--gamma", "0", "--test", "",
          "--out", str(tmp_path / "grpo")])  # fmt: skip
    for stage in ("dpo", "grpo"):
        stored = PromptConfig.load(tmp_path / stage / "checkpoints/step-000001")
        assert (stored.fields, stored.prompt_rules, stored.style) == (("title", "evidence"), 1, "full")


@pytest.mark.parametrize(
    ("first", "second", "rules"),
    [("raw", "", (1, None)), ("raw", "bundled", (1, 0)), ("bundled", "raw", (0, 1)), ("raw", "raw", (1, 1))],
)
def test_of_two_judges_that_are_served_the_flags_are_for_those_without_a_prompt(raw, first, second, rules):
    first, second = (raw if name == "raw" else name for name in (first, second))
    config = Config(model=first, compare=second, prompt_rules=1)
    served = [load_tested(config, first)[0], *([load_tested(config, second, "--compare")[0]] if second else [])]
    found = [one.judge.model.prompt.prompt_rules for one in served]
    assert (found + [None])[:2] == list(rules)
    assert {one.judge.model.prompt.max_chars for one in served} == {600}  # --max-chars of the server is of a request


def test_a_trained_judge_is_served_without_flags():
    served, _ = load_tested(Config(model="bundled"), "bundled")
    assert served.judge.model.prompt == PromptConfig.load(BUNDLED_FOLDERS[BUNDLED_STUDENT])


def test_flags_that_fit_no_judge_that_is_served_are_refused():
    for second in ("", "bundled"):
        with pytest.raises(ValueError, match="--model bundled-student was trained with --fields title,price: leave"):
            load_tested(Config(model="bundled", compare=second, fields="title"), "bundled")
