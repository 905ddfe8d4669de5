"""The guides' snippets run, and print what stands below them."""

from __future__ import annotations

import contextlib
import io
import re
import runpy
import shlex
from pathlib import Path

import pytest

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


def test_the_constants_that_the_memory_guide_names_are_the_codes():
    from taosr1.learning.logprobs import LOGITS_AT_ONCE
    from taosr1.model.weights import MAPPED_BYTES
    from taosr1.sampling.sampler import CACHE_BYTES

    assert (LOGITS_AT_ONCE, MAPPED_BYTES, CACHE_BYTES) == (2**25, 64 * 2**20, 4 * 2**30)
