"""A message that names a flag comes from a script that has it: every text that a script can reach is looked at.

Reach is by names: from all of a script to the functions, classes and constants of `taosr1` that it uses, and from these
to those that they use. A class counts whole. A text may name flags of another script beside that script's name.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest

from taosr1.data.flags import ReadFlags

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = [path.relative_to(ROOT).as_posix() for folder in ("infer", "train") for path in ROOT.glob(f"{folder}/*.py")]
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z_-]*[a-z]")
OF_ALL = {"--help", "--standalone", "--nproc_per_node", "--always", "--dirty", "--headless", "--convert-to"}
OF_ALL |= {"--no-deps"}
# Reached by name but never in this script: the caller asks for it under a condition that the script never meets.
NEVER = {
    "infer/compare.py": {"load_judge", "open_judge", "_check_model_folder", "weight_files", "packaged",
                         "best_checkpoint",  # `judged_side` says what such flags are of
                         "_default_judge",  # its judges are named
                         "prompt_asked", "read_instructions", "check_prompt", "_instructions_problems", "read_book",
                         "rules_problems"},  # asks as stored
    "infer/merge.py": {"load_judge", "check_device", "read_jsonl", "BadRows", "check_file", "damage_in",
                       "known_encoding", "_choose_encoding", "_narrow_lines",  # reads no rows but the bundled rules
                       "prompt_asked", "read_instructions", "check_prompt", "_instructions_problems", "read_book",
                       "rules_problems"},  # asks as stored
    "infer/score.py": {"load_judge", "notes_on"},  # decodes nothing
    "infer/serve.py": {"ColumnNames", "parse_columns", "_check_no_prediction", "read_jsonl", "BadRows", "check_file",
                       "damage_in", "known_encoding", "_choose_encoding", "_narrow_lines"},  # reads no files of rows
    "train/sft.py": {"load_splits"},  # has no --test
    "train/pretrain.py": {"load_judge", "prompt_asked", "read_instructions", "check_prompt",
                          "_instructions_problems", "read_book", "rules_problems"},  # decodes nothing, and asks nothing
}  # fmt: skip
BY_TEACHER = {"_read_rules"}  # a rule book of one's own


@lru_cache
def tree_of(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"), path)


def file_of(module: str) -> str:
    """ "taosr1/runtime/files.py" for taosr1.runtime.files, "" for what is no module of ours."""
    base = module.replace(".", "/")
    return next((name for name in (f"{base}.py", f"{base}/__init__.py") if (ROOT / name).is_file()), "")


@lru_cache
def definitions(path: str) -> dict[str, ast.AST]:
    """What a file defines at its top, by name."""
    found: dict[str, ast.AST] = {}
    for node in tree_of(path).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found[node.name] = node
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {name.id: node for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    return found


@lru_cache
def imports(path: str) -> dict[str, tuple[str, str]]:
    """Local name -> (file, name there; "" for a whole file), of what a file imports from `taosr1`."""
    found = {}
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("taosr1"):
            for alias in node.names:
                whole = file_of(f"{node.module}.{alias.name}")
                found[alias.asname or alias.name] = (whole, "") if whole else (file_of(node.module), alias.name)
    return found


def used_by(path: str, node: ast.AST) -> Iterator[tuple[str, str]]:
    """(file, name) of everything that a definition refers to."""
    for child in ast.walk(node):
        if isinstance(child, ast.Name):
            if child.id in definitions(path):
                yield path, child.id
            elif imports(path).get(child.id, ("", ""))[1]:
                yield imports(path)[child.id]
        elif isinstance(child, ast.Attribute) and isinstance(child.value, ast.Name):
            file, name = imports(path).get(child.value.id, ("", "x"))
            if name == "" and child.attr in definitions(file):
                yield file, child.attr


def reached(script: str) -> set[tuple[str, str]]:
    found, waiting = set(), [(script, name) for name in definitions(script)]
    waiting += used_by(script, tree_of(script))
    while waiting:
        place = waiting.pop()
        file, name = place
        if place in found or name not in definitions(file):
            continue
        found.add(place)
        waiting += used_by(file, definitions(file)[name])
    return found


def texts(node: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and text of every string in a definition that is not a docstring; values in f-strings are left out."""
    hidden = set()
    for child in ast.walk(node):
        if isinstance(child, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(child, clean=False) is not None:
            hidden.add(id(child.body[0].value))
        elif isinstance(child, ast.JoinedStr):
            hidden |= set(map(id, child.values))
            parts = [part.value if isinstance(part, ast.Constant) else "{}" for part in child.values]
            yield child.lineno, "".join(parts)
    for child in ast.walk(node):
        if isinstance(child, ast.Constant) and isinstance(child.value, str) and id(child) not in hidden:
            yield child.lineno, child.value


@lru_cache
def flags_of(script: str) -> frozenset[str]:
    module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
    if hasattr(module, "Config"):
        names = {"config", *(field.name for field in dataclasses.fields(module.Config))}
        switches = {f"no_{field.name}" for field in dataclasses.fields(module.Config) if field.type == "bool"}
        return frozenset("--" + name.replace("_", "-") for name in names | switches)
    shared = {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(ReadFlags)}
    calls = [node for node in ast.walk(tree_of(script)) if isinstance(node, ast.Call) and node.args]
    first = [call.args[0].value for call in calls if isinstance(call.args[0], ast.Constant)]
    own = {text for text in first if isinstance(text, str) and FLAG.fullmatch(text)}
    return frozenset(own | (shared if hasattr(module, "ReadFlags") else set()))


def strangers(script: str) -> list[str]:
    """Flags in texts that the script can reach and does not have."""
    found = []
    for file, name in sorted(reached(script)):
        for line, text in texts(definitions(file)[name]):
            others = {other for other in re.findall(r"(?:train|infer)/\w+\.py", text) if other in SCRIPTS}
            allowed = OF_ALL.union(flags_of(script), *map(flags_of, others))
            wrong = sorted(set(FLAG.findall(text)) - allowed)
            never = NEVER.get(script, set()) | (BY_TEACHER if script != "train/teacher.py" else set())
            if wrong and name not in never:
                found.append(f"{file}:{line} {name}: {', '.join(wrong)} in {text[:100]!r}")
    return found


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_flag_in_a_text_that_a_script_can_reach_is_a_flag_of_that_script(script):
    found = strangers(script)
    assert not found, "\n".join(found)


def test_the_search_sees_texts_of_shared_modules_and_knows_every_scripts_flags():
    """Else the test above would pass by looking at nothing."""
    named = {flag for file, name in reached("train/grpo.py") for _, text in texts(definitions(file)[name])
             for flag in FLAG.findall(text) if not file.startswith("train/")}  # fmt: skip
    assert {"--max-new-tokens", "--min-groups", "--resume", "--accept-changed", "--max-bad-rows", "--out"} <= named
    assert all("--out" in flags_of(script) for script in SCRIPTS if script != "infer/serve.py")
    assert all(len(flags_of(script)) > 2 for script in SCRIPTS)
    assert "--micro-batch-tok" not in flags_of("infer/evaluate.py")
