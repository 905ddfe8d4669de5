"""A judge so slow that a row is a chunk: signs of life in time, and a SIGTERM in the middle that loses one row."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from infer.score import main
from taosr1.judge_model import load_judge
from taosr1.model.decoder import Decoder, DecoderConfig
from taosr1.model.io.weights import save_pretrained
from taosr1.runtime import chunk_sizes
from taosr1.task.prompt import PromptConfig

ROOT = Path(__file__).resolve().parents[2]
# The real program; a chunk never grows, and a line is due as soon as there is something to say.
PROGRAM = """
import sys
from taosr1.runtime import chunk_sizes, progress
chunk_sizes.GROWTH, progress.LINE_S = (), 0.1
from infer.score import Config, main
from taosr1.runtime.signals import run_main
run_main(main, Config)
"""


@pytest.fixture(scope="module")
def slow_judge(tmp_path_factory) -> str:
    """A folder with random weights, some twenty million of them."""
    tiny, folder = load_judge("tiny"), tmp_path_factory.mktemp("slow")
    shape = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 6, "num_attention_heads": 8}
    shape |= {"num_key_value_heads": 4, "head_dim": 64, "max_position_embeddings": 256}
    config = DecoderConfig(tiny.tokenizer.vocab_size, **shape)
    save_pretrained(Decoder(config).init_weights(torch.Generator().manual_seed(0)), tiny.tokenizer, folder)
    PromptConfig("label", "brief", ("title",)).save(folder)
    return str(folder)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM to send")
def test_a_sigterm_in_the_middle_keeps_what_is_finished_and_the_output_is_that_of_an_unbroken_run(
    slow_judge, tmp_path, monkeypatch, capsys
):
    command = ["--model", slow_judge, "--data", "synthetic:dev*30", "--out"]
    out, parts = tmp_path / "two.jsonl", tmp_path / "two.jsonl.parts" / "rank-00000.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *command, str(out)], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    lines = []
    for line in process.stderr:
        lines.append(line)
        if re.search(r" [2-9]/30 \[\d\d:\d\d<\d\d:\d\d", line):  # a line while it works, with the time left
            break
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    said = "".join(lines) + process.communicate(timeout=60)[1]
    assert process.returncode == 128 + signal.SIGTERM and time.monotonic() - began < 20, said
    kept = re.search(r"stopped; (\d+) of 30 chunks are done and kept", said)
    assert kept and 2 <= int(kept[1]) == parts.read_bytes().count(b"\n") < 30 and not out.exists(), said

    monkeypatch.setattr(chunk_sizes, "GROWTH", ())
    main([*command, str(out)])
    assert f"continues, {kept[1]} of 30 chunks are done" in capsys.readouterr().err
    main([*command, str(tmp_path / "one.jsonl")])
    assert out.read_bytes() == (tmp_path / "one.jsonl").read_bytes()
