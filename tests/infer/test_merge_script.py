"""infer/merge.py on folders of every kind; what it makes of adapters is in tests/train/test_memory_flags.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from infer.merge import main as merge
from taosr1.model.io.model_folder import model_folder
from taosr1.serving.deployed import store_beta, stored_beta


def test_a_run_becomes_one_folder_with_what_was_fitted_for_serving(taught_judge, tmp_path):
    run = taught_judge("post-cot")
    store_beta(run, 0.37)
    try:
        merge(["--model", run, "--out", str(tmp_path / "out"), "--dtype", "bfloat16"])
    finally:
        (Path(model_folder(run)) / "tiering.json").unlink()
    assert stored_beta(str(tmp_path / "out")) == 0.37
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "prompt.json",
        "tiering.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    source = safetensors.torch.load_file(Path(model_folder(run)) / "model.safetensors")
    written = safetensors.torch.load_file(tmp_path / "out/model.safetensors")
    assert written.keys() == source.keys() and all(
        torch.equal(written[name], tensor.bfloat16()) for name, tensor in source.items()
    )
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "bfloat16"


def test_the_wording_that_a_model_was_trained_with_is_kept(taught_judge, tmp_path, capsys):
    merge(["--model", taught_judge("post-cot"), "--out", str(tmp_path / "model")])
    prompt = tmp_path / "model/prompt.json"
    changed = json.loads(prompt.read_text(encoding="utf-8")) | {"wording_sha256": "of another wording"}
    prompt.write_text(json.dumps(changed), encoding="utf-8")
    merge(["--model", str(tmp_path / "model"), "--out", str(tmp_path / "out")])
    assert json.loads((tmp_path / "out/prompt.json").read_text())["wording_sha256"] == "of another wording"
    assert "the model was trained with another wording" in capsys.readouterr().err


def test_wrong_input_leaves_nothing_behind(tmp_path, capsys):
    with pytest.raises(SystemExit):
        merge([])
    assert "--model is missing; --out is missing, expected a folder" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match="no model folder gone/for/good"):
        merge(["--model", "gone/for/good", "--out", str(tmp_path / "out")])
    assert list(tmp_path.iterdir()) == []
