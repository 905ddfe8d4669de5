"""The guides' snippets run, and print what stands below them."""

from __future__ import annotations

import contextlib
import io
import re
import runpy
import shlex
from pathlib import Path

import pytest
import torch

from taosr1.model.decoder import Decoder, DecoderConfig
from taosr1.model.lora import LoraConfig, add_adapters

GUIDES = sorted((Path(__file__).resolve().parents[1] / "examples" / "guide").glob("*.md"))
PRINTED = re.compile(r"```python\n(.*?)```\n\n```text\n(.*?)```", re.S)
SNIPPETS = [(path.name, code, printed) for path in GUIDES for code, printed in PRINTED.findall(path.read_text(encoding="utf-8"))]


def test_there_is_something_to_run():
    assert "memory.md" in {name for name, _, _ in SNIPPETS}


@pytest.mark.parametrize("name, code, printed", SNIPPETS, ids=[name for name, _, _ in SNIPPETS])
def test_a_snippet_prints_what_the_guide_says(name, code, printed):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, name, "exec"), {})
    assert out.getvalue() == printed


ROOT = GUIDES[0].parents[2]
FINETUNE = (ROOT / "examples" / "finetune_qwen3.md").read_text(encoding="utf-8").replace("\\\n", " ")
COMMANDS = [shlex.split(line) for line in FINETUNE.splitlines() if line.startswith("python ")]


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[1])
def test_every_command_of_the_finetuning_guide_is_accepted_by_its_script(words):
    config = runpy.run_path(str(ROOT / words[1]))["Config"]
    flags = {flag[2:].replace("-", "_"): value for flag, value in zip(words[2:], [*words[3:], "--"]) if flag.startswith("--")}
    fields = config.__dataclass_fields__
    assert set(flags) <= set(fields)
    config(**{name: type(fields[name].default)(value) for name, value in flags.items() if type(fields[name].default) in (int, float, str)})


def test_the_script_runs_the_guides_commands():
    """Same scripts in the same order, and the same flags but for folders: the page is what the script does."""
    script = runpy.run_path(str(ROOT / "examples" / "finetune_qwen3.py"))
    plan = script["plan"](script["Config"](data="esci"), Path("runs/qwen3"), "Qwen/Qwen3-0.6B")
    assert [command[0] for _, _, command in plan] == [words[1] for words in COMMANDS]
    for (_, _, command), words in zip(plan, COMMANDS):
        ours, page = (
            {flag: "" if value.startswith("--") else value for flag, value in zip(line[1:], [*line[2:], "--"]) if flag.startswith("--")}
            for line in (command, words[1:])
        )
        differ = {flag for flag in ours.keys() | page.keys() if ours.get(flag) != page.get(flag)}
        differ -= {flag for flag in differ if "/" in ours.get(flag, "") or "." in page.get(flag, "")}  # folders and files
        assert differ <= {"--seed", "--lr"}, differ
        assert float(ours.get("--lr", 0)) == float(page.get("--lr", 0))


@pytest.mark.parametrize("dtype, low, expected", [(torch.float32, False, 3.8), (torch.bfloat16, True, 2.3), (torch.float32, True, 2.6)])
def test_the_memory_guides_bytes_are_what_autograd_saves(dtype, low, expected):
    """Two layers of Qwen3-0.6B's shape: float32, adapters over a bfloat16 base, and float32 masters under autocast."""
    sizes = {"hidden_size": 1024, "intermediate_size": 3072, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128}
    model = Decoder(DecoderConfig(vocab_size=64, num_hidden_layers=2, **sizes)).init_weights(torch.Generator().manual_seed(0)).to(dtype)
    if dtype == torch.bfloat16:
        add_adapters(model, LoraConfig(16, 32.0), torch.Generator().manual_seed(0))
    tokens, saved, kept = 400, {}, []  # more than PLAIN_BELOW: attention keeps no (T, T) matrix
    weights = {tuple(parameter.shape) for parameter in model.parameters()}  # and their copies in bfloat16

    def note(tensor):
        kept.append(tensor)
        if tensor.numel() >= tokens and tuple(tensor.shape) not in weights:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16, enabled=low):
        model.hidden(torch.randint(0, 64, (1, tokens), generator=torch.Generator().manual_seed(0)))
    a = 4 * 1024 + (2048 + 1024) + (2048 + 2 * 1024) + 2 * 2048 + 3 * 3072
    assert sum(saved.values()) / (2 * tokens * a) == pytest.approx(expected, abs=0.1)


def test_the_constants_that_the_memory_guide_names_are_the_codes():
    from taosr1.fast.generate import CACHE_BYTES
    from taosr1.model.io.weights import MAPPED_BYTES
    from taosr1.model.logprobs import LOGITS_AT_ONCE

    assert (LOGITS_AT_ONCE, MAPPED_BYTES, CACHE_BYTES) == (2**25, 64 * 2**20, 4 * 2**30)
