"""A GGUF file goes the whole way: all stages of training, a graded pool, scores, explanations, a report, one folder."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
import torch

from infer.evaluate import main as evaluate
from infer.explain import main as explain
from infer.merge import main as merge
from infer.score import main as score
from taosr1.data.judgements import read_judgements
from taosr1.model.decoder import Decoder, DecoderConfig
from taosr1.model.tokenizer import Tokenizer
from train.dpo import main as dpo
from train.grpo import main as grpo
from train.label_pool import main as label_pool
from train.mine_pairs import main as mine
from train.sft import main as sft

gguf = pytest.importorskip("gguf")
from tests.gguf_files import write_gguf  # noqa: E402

SHAPE = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
SHAPE |= {"num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 1024}


@pytest.fixture
def file(base, tmp_path, monkeypatch) -> str:
    """A tiny Llama as the packaged SmolLM2 is stored: matrices in Q4_1, embeddings in Q8_0. Nothing may be fetched."""

    def refuse(*_):
        raise AssertionError("a script wants to connect to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tokenizer = Tokenizer(base)
    config = DecoderConfig(tokenizer.vocab_size, **SHAPE, qk_norm=False, tie_word_embeddings=True)
    model = Decoder(config).init_weights(torch.Generator().manual_seed(0))
    path = write_gguf(tmp_path / "tiny.gguf", model, tokenizer, "llama", "Q4_1", embeddings="Q8_0")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}
    assert (kinds["token_embd.weight"], kinds["blk.0.attn_q.weight"], kinds["output_norm.weight"]) == (
        "Q8_0", "Q4_1", "F32"
    )  # fmt: skip
    return str(path)


@pytest.mark.long
def test_a_gguf_file_goes_the_whole_way(file, tmp_path, capsys):
    def out(name: str) -> str:
        return str(tmp_path / name)

    train, dev = ["--data", "synthetic:reasoned*200"], ["--dev", "synthetic:dev*8", "--dev-rows", "8"]
    sft(["--model", file, "--order", "post-cot", "--style", "brief", "--fields", "title,price", *train, *dev, "--steps",
         "130", "--batch-size", "8", "--eval-every", "130", "--optimizer", "muon", "--lr", "0.01",
         "--out", out("sft")])  # fmt: skip
    losses = [row["loss"] for row in json_lines(out("sft/metrics.jsonl")) if "loss" in row]
    assert losses[-1] < 0.5 * losses[0]
    mine(["--model", out("sft"), *train, "--prompts", "24", "--samples", "4", "--max-new-tokens", "64", "--temperature",
          "1.5", "--balance", "none", "--out", out("pairs.jsonl")])  # fmt: skip
    dpo(["--model", out("sft"), "--data", out("pairs.jsonl"), *dev, "--steps", "2", "--batch-size", "4", "--out",
         out("dpo")])  # fmt: skip
    grpo(["--model", out("dpo"), "--data", "synthetic:labelled*50", *dev, "--steps", "2", "--groups", "6", "--samples",
          "4", "--max-new-tokens", "64", "--test", "", "--out", out("grpo")])  # fmt: skip
    label_pool(["--model", out("grpo"), "--data", "synthetic:unlabelled*16", "--out", out("pool.jsonl")])
    pool = read_judgements(out("pool.jsonl"))
    assert pool and all(row.cot and row.grade for row in pool)

    test = ["--data", "synthetic:test*20"]
    evaluate(["--model", out("grpo"), *test, *dev[:2], "--save-beta", "--bootstrap", "20", "--out", out("report.json")])
    assert json.loads(Path(out("report.json")).read_text(encoding="utf-8"))
    merge(["--model", out("grpo"), "--out", out("merged")])
    for model in ("grpo", "merged"):
        score(["--model", out(model), *test, "--out", out(f"{model}.jsonl")])
    scored, merged = (json_lines(out(f"{name}.jsonl")) for name in ("grpo", "merged"))
    assert len(scored) == 20 and merged == scored
    capsys.readouterr()
    explain(["travel mug not steel", "Norvell travel mug steel", "--model", out("merged")])
    assert "Decision:" in capsys.readouterr().out
    assert json.loads(Path(out("merged/config.json")).read_text(encoding="utf-8"))["architectures"] == [
        "LlamaForCausalLM"
    ]


def json_lines(path: str) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
