"""Rules that no reader should have to check: who imports whom, and what no module does."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = sorted((ROOT / "taosr1").rglob("*.py"))
KERNELS = ROOT / "taosr1/fast/triton_kernels.py"
SCRIPTS = sorted(path for folder in ("train", "infer", "examples") for path in (ROOT / folder).rglob("*.py"))
# Data flows one way and imports run only against it: each package, and the packages it may import besides itself.
# `runtime` runs any program and is below all of them. A top-level file is a package of its own.
MAY_IMPORT = {
    "__init__": {"judge", "moved"},
    "runtime": set(),
    "task": set(),
    "data": {"task", "synthetic", "model"},
    "synthetic": {"task"},
    "model": set(),
    "sampling": {"task", "model"},
    "engine": {"model", "sampling"},
    "fast": {"task", "model", "sampling", "engine"},
    "judge_model": {"task", "data", "synthetic", "model", "sampling", "engine", "fast"},
    "learning": {"task", "data", "model", "sampling", "engine", "judge_model"},
    "evaluation": {"task", "data", "model", "sampling", "engine", "judge_model", "serving"},
    "serving": {"task", "data", "model", "sampling", "engine", "judge_model"},
    "judge": {"task", "data", "judge_model", "serving"},
    "server": {"task", "data", "synthetic", "model", "judge_model", "serving", "judge"},
    "moved": set(),
}
CORE = {"torch", "safetensors", "tokenizers", "numpy", "tqdm"}
# The [serve] extra, which only taosr1/server imports; h11 comes with uvicorn.
SERVE = {"starlette", "uvicorn", "prometheus_client", "h11"}
RUN_WHAT_THEY_READ = {"pickle", "cPickle", "dill", "marshal", "shelve", "joblib"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "torch.load", "torch.save", "np.load", "os.system"}


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def package_of(path: Path) -> str:
    """ "learning" for taosr1/learning/loop.py, "judge_model" for taosr1/judge_model.py."""
    return path.relative_to(ROOT / "taosr1").with_suffix("").parts[0] if path.is_relative_to(ROOT / "taosr1") else ""


def module_of(path: Path) -> str:
    """ "taosr1.learning.loop" for taosr1/learning/loop.py, "taosr1" for taosr1/__init__.py."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported(node: ast.AST) -> Iterator[str]:
    """Dotted names of everything imported inside a syntax tree; relative imports are not used here."""
    for child in ast.walk(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"line {child.lineno}: a relative import"
            yield from (f"{child.module}.{alias.name}" for alias in child.names)


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_only_against_the_flow_of_data(path):
    package = package_of(path)
    known = {name.split(".")[1] for name in imported(tree_of(path)) if name.startswith("taosr1.")} - {"__version__"}
    allowed = MAY_IMPORT[package] | {package, "runtime"}
    assert known <= allowed, f"{package} imports {sorted(known - allowed)}"
    assert not {name.split(".")[0] for name in imported(tree_of(path))} & {"train", "infer", "examples", "tests"}


def test_no_files_import_each_other_in_a_circle():
    """Imports inside functions count too, except those of Triton kernels, which are only loaded on a GPU."""
    names = {module_of(path): path for path in PACKAGE if path.stem != "__init__"}
    graph = {}
    for name, path in names.items():
        found = {f"{imported_name}." for imported_name in imported(tree_of(path))}
        graph[name] = {other for other in names if other != name and any(x.startswith(f"{other}.") for x in found)}

    def reachable(start: str) -> set[str]:
        seen, waiting = set(), list(graph[start])
        while waiting:
            name = waiting.pop()
            if name not in seen:
                seen.add(name)
                waiting += graph[name]
        return seen

    circles = {name for name in graph if name in reachable(name)}
    assert not circles, sorted(circles)


def test_the_packages_are_those_of_the_design_and_every_folder_is_one():
    assert {package_of(path) for path in PACKAGE} == MAY_IMPORT.keys()
    assert all((path.parent / "__init__.py").exists() for path in PACKAGE)
    assert not list((ROOT / "tests").rglob("__init__.py"))
    for path in PACKAGE + SCRIPTS:
        assert ast.get_docstring(tree_of(path)), f"{path} does not say what it is"


def test_only_core_dependencies_are_imported_with_a_module():
    """Extras are imported where they are used, and so is the one module that needs Triton from its first line."""
    everywhere = CORE | {"taosr1", "train", "infer", "examples"} | set(sys.stdlib_module_names)
    for path in PACKAGE + SCRIPTS:
        for statement in tree_of(path).body:
            if isinstance(statement, (ast.Import, ast.ImportFrom)):
                names, place = set(imported(statement)), f"{path}:{statement.lineno}"
                allowed = everywhere | ({"triton"} if path == KERNELS else set())
                allowed |= SERVE if package_of(path) == "server" else set()
                assert {name.split(".")[0] for name in names} <= allowed, place
                assert not any(name.startswith("taosr1.fast.triton_kernels") for name in names), place


def called(node: ast.Call) -> str:
    """ "torch.load" for torch.load(...), "eval" for eval(...)."""
    names, function = [], node.func
    while isinstance(function, ast.Attribute):
        names.append(function.attr)
        function = function.value
    return ".".join([function.id, *reversed(names)]) if isinstance(function, ast.Name) else "?"


@pytest.mark.parametrize("path", PACKAGE + SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_can_bring_code_of_its_own(path):
    """Weights are safetensors, everything else is JSON: nothing that is read is ever executed."""
    tree = tree_of(path)
    assert not {name.split(".")[0] for name in imported(tree)} & RUN_WHAT_THEY_READ
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            assert called(node) not in FORBIDDEN_CALLS, node.lineno
            words = {keyword.arg: keyword.value for keyword in node.keywords}
            for name in ("shell", "allow_pickle", "trust_remote_code"):
                assert name not in words or getattr(words[name], "value", None) is False, node.lineno
        assert not (isinstance(node, ast.ExceptHandler) and node.type is None), f"line {node.lineno}: a bare except"


def test_importing_every_module_runs_nothing():
    """In a process of its own: no output, no file read but code, no flag parsed, nothing of torch changed."""
    modules = [module_of(path) for path in PACKAGE + SCRIPTS if path != KERNELS]
    program = f"""
import importlib, json, sys, threading
import torch
sys.path.insert(0, {str(ROOT)!r})
def state():
    settings = torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()
    return torch.get_rng_state().tolist(), *settings, threading.active_count()
before, opened = state(), []
def watch(event, arguments):
    name = str(arguments[0]) if event == "open" else ""
    if name.startswith({str(ROOT)!r}) and not name.endswith((".py", ".pyc")) and ".pyc." not in name:
        opened.append(name)
sys.addaudithook(watch)
for name in {modules!r}:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as missing:
        if missing.name.split(".")[0] not in {SERVE!r} or not name.startswith("taosr1.server."):
            raise
print(json.dumps([before == state(), opened]))
"""
    found = subprocess.run([sys.executable, "-c", program, "--no-such-flag"], capture_output=True, text=True)
    assert found.returncode == 0 and found.stderr == "", found.stderr
    assert json.loads(found.stdout) == [True, []]
