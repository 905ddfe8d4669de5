"""A file that is missing, empty or a folder is named with the flag that it was given by, not with another one."""

from __future__ import annotations

import importlib

import pytest

from taosr1.data.judgements import write_judgements
from taosr1.synthetic.shop import read_pool

OF = [
    ("train.sft", "--data", []), ("train.sft", "--dev", []),
    ("train.grpo", "--data", []), ("train.grpo", "--dev", []), ("train.grpo", "--test", []),
    ("train.grpo", "--sft-data", ["--sft-coef", "0.1"]),
    ("train.mine_pairs", "--data", []), ("train.label_pool", "--data", []),
    ("infer.evaluate", "--data", []), ("infer.evaluate", "--dev", ["--model", "tiny"]),
    ("infer.score", "--data", []), ("infer.sample", "--data", []), ("infer.explain", "--data", []),
    ("examples.boosted_overlap", "--data", []), ("examples.boosted_overlap", "--test", []),
]  # fmt: skip


@pytest.fixture
def files(tmp_path) -> dict[str, str]:
    write_judgements(tmp_path / "good.jsonl", read_pool("reasoned", 12))
    (tmp_path / "empty.jsonl").write_text("", encoding="utf-8")
    (tmp_path / "other.xyz").write_text("a", encoding="utf-8")
    return {name: str(tmp_path / name) for name in ("good.jsonl", "gone.jsonl", "empty.jsonl", "part-*.csv")}


@pytest.mark.parametrize("wrong", ["gone.jsonl", "empty.jsonl", "part-*.csv"])
@pytest.mark.parametrize(("script", "flag", "more"), OF, ids=[f"{script} {flag}" for script, flag, _ in OF])
def test_the_flag_that_named_the_file_is_the_one_to_check(script, flag, more, wrong, files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = {"--data": files["good.jsonl"]} if script != "infer.explain" else {}
    if script.startswith("train.") and script not in ("train.mine_pairs", "train.label_pool"):
        argv |= {"--dev": "synthetic:dev*4", "--model": "bundled"}
    if script in ("train.mine_pairs", "train.label_pool", "infer.sample", "infer.explain"):
        argv |= {"--model": "bundled"}
    argv[flag] = files[wrong]
    if script != "infer.evaluate" and script != "examples.boosted_overlap":
        argv["--out"] = str(tmp_path / "out.jsonl")
    words = [*[word for pair in argv.items() for word in pair], *more]
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        importlib.import_module(script).main(words)
    said = str(caught.value)
    assert f"check {flag}" in said and "check --" not in said.replace(f"check {flag}", ""), said
