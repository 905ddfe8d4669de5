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

from taosr1.fast import FAST
from taosr1.fast.prefix_tree import make_tree
from taosr1.model.decoder import Decoder, DecoderConfig
from taosr1.model.lora import LoraConfig, add_adapters

GUIDES = sorted((Path(__file__).resolve().parents[1] / "examples" / "guide").glob("*.md"))
PRINTED = re.compile(r"```python\n(.*?)```\n\n```text\n(.*?)```", re.S)
SNIPPETS = [(path.name, *found) for path in GUIDES for found in PRINTED.findall(path.read_text(encoding="utf-8"))]


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


def flags_of(words: list[str]) -> dict[str, str]:
    """{"--lr": "1e-5", "--save-beta": ""} of a command, its script first."""
    pairs = zip(words[1:], [*words[2:], "--"])
    return {flag: "" if value.startswith("--") else value for flag, value in pairs if flag.startswith("--")}


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[1])
def test_every_command_of_the_finetuning_guide_is_accepted_by_its_script(words):
    config = runpy.run_path(str(ROOT / words[1]))["Config"]
    flags = {flag[2:].replace("-", "_"): value for flag, value in flags_of(words[1:]).items()}
    types = {name: type(field.default) for name, field in config.__dataclass_fields__.items()}
    assert set(flags) <= set(types)
    config(**{name: types[name](value) for name, value in flags.items() if types[name] in (int, float, str)})


def test_the_script_runs_the_guides_commands():
    """Same scripts in the same order, and the same flags but for folders: the page is what the script does."""
    script = runpy.run_path(str(ROOT / "examples" / "finetune_qwen3.py"))
    plan = script["plan"](script["Config"](data="esci"), Path("runs/qwen3"), "Qwen/Qwen3-0.6B")
    assert [command[0] for _, _, command in plan] == [words[1] for words in COMMANDS]
    for (_, _, command), words in zip(plan, COMMANDS):
        ours, page = flags_of(command), flags_of(words[1:])
        differ = {flag for flag in ours.keys() | page.keys() if ours.get(flag) != page.get(flag)}
        differ -= {flag for flag in differ if "/" in ours.get(flag, "") or "." in page.get(flag, "")}  # paths
        assert differ <= {"--seed", "--lr"}, differ
        assert float(ours.get("--lr", 0)) == float(page.get("--lr", 0))


@pytest.mark.parametrize(
    "dtype, low, expected",
    [(torch.float32, False, 4.1), (torch.bfloat16, True, 2.5), (torch.float32, True, 2.6)],
    ids=["float32", "adapters over bfloat16", "float32 under autocast"],
)
def test_the_memory_guides_bytes_are_what_autograd_saves(dtype, low, expected):
    """Two layers of Qwen3-0.6B's shape, with the fast engine."""
    sizes = {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128}
    drawn = torch.Generator().manual_seed(0)
    model = Decoder(DecoderConfig(vocab_size=64, **sizes, **heads)).init_weights(drawn).to(dtype)
    if dtype == torch.bfloat16:
        add_adapters(model, LoraConfig(16, 32.0), drawn)
    model = FAST.prepare(model)
    tokens, saved, kept = 400, {}, []
    weights = {tuple(parameter.shape) for parameter in model.parameters()}  # and their copies in bfloat16

    def note(tensor):
        kept.append(tensor)
        if tensor.numel() >= tokens and tuple(tensor.shape) not in weights:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    ids, mask = torch.randint(0, 64, (1, tokens + 1), generator=drawn), torch.ones(1, tokens + 1, dtype=torch.bool)
    mask[0, 0] = False
    tree = make_tree(ids, mask, model.config)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            model.hidden(tree.ids, positions=tree.positions, attend=tree)
    a = 4 * 1024 + (2048 + 1024) + (2048 + 2 * 1024) + 2048 + 3 * 3072
    assert sum(saved.values()) / (2 * tokens * a) == pytest.approx(expected, abs=0.1)


def test_the_constants_that_the_memory_guide_names_are_the_codes():
    from taosr1.fast.generate import CACHE_BYTES
    from taosr1.fast.logprobs import LOGITS_AT_ONCE
    from taosr1.model.io.weights import MAPPED_BYTES

    assert (LOGITS_AT_ONCE, MAPPED_BYTES, CACHE_BYTES) == (2**25, 64 * 2**20, 4 * 2**30)


TEXTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "examples/finetune_qwen3.md")] + GUIDES
FOLDERS = "taosr1|train|infer|examples|tests"


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_every_file_that_a_guide_names_exists(path):
    """Links, and paths in code marks; files of taosr1/fast and its plain twins may be named without their folder."""
    text = path.read_text(encoding="utf-8")
    linked = [path.parent / target for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)]
    named = [ROOT / name for name in re.findall(rf"`((?:{FOLDERS})(?:/[\w.]+)+)(?:::\w+)?`", text)]
    assert {str(file) for file in linked + named if not file.exists()} == set()
    loose, places = set(re.findall(r"`(\w+\.py)`", text)), ("taosr1", "taosr1/*", "examples/benchmarks")
    assert {name for name in loose if not any(any(ROOT.glob(f"{place}/{name}")) for place in places)} == set()


NAMED = re.compile(r"`([\w.]+)`\s+(?:in|of)\s+`([\w/]+\.py)`")
PLACES = [(path.name, *found) for path in TEXTS for found in NAMED.findall(path.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("guide, name, file", PLACES)
def test_a_name_is_in_the_file_where_a_guide_says_it_is(guide, name, file):
    assert re.search(rf"\b{name.split('.')[-1]}\b", (ROOT / file).read_text(encoding="utf-8"))
