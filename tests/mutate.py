"""Do the tests of the losses notice a wrong formula? One small mistake at a time is made; each must fail a test.

    python tests/mutate.py                                            every mutant of the losses and log-probs
    python tests/mutate.py --module losses --limit 40 --seed 1        a sample
    python tests/mutate.py --jobs 8                                   eight at once, one thread each

A mutant is one flipped + - * / < > == and or & |, a dropped minus, ~ or not, minimum for maximum, clamp_min for
clamp_max, a dropped masked_fill, detach or clamp, a dropped slice bound, a changed number, or True for False.
Annotations and error messages are left alone. It is written into a copy of the package in a temporary folder, and that
module's tests run there up to the first failure. Each survivor is printed as file:line, the line as it is, and the
line that no test told from it.

Exit status 1 if a mutant survives that is not in EQUIVALENT below, or if an entry there is no mutant any more.

Workers are forked from a process that has already imported torch (POSIX only): a mutant costs its tests, no import.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import multiprocessing
import os
import random
import resource
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
MODULES = {
    "losses": ("taosr1/learning/losses.py", "tests/learning/test_losses.py"),
    "loss_checks": ("taosr1/learning/loss_checks.py", "tests/learning/test_losses.py"),
    "logprobs": ("taosr1/model/logprobs.py", "tests/model/test_logprobs.py"),
}
FORK = multiprocessing.get_context("fork")

OPERATORS = {
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div,),
    ast.Div: (ast.Mult,),
    ast.BitAnd: (ast.BitOr,),
    ast.BitOr: (ast.BitAnd,),
    ast.And: (ast.Or,),
    ast.Or: (ast.And,),
    ast.Lt: (ast.LtE, ast.Gt),  # the edge, and the direction
    ast.Gt: (ast.GtE, ast.Lt),
    ast.LtE: (ast.Lt, ast.GtE),
    ast.GtE: (ast.Gt, ast.LtE),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
}
SWAPPED_CALLS = {"minimum": "maximum", "maximum": "minimum", "clamp_min": "clamp_max", "clamp_max": "clamp_min"}
DROPPED_CALLS = ("masked_fill", "detach", "clamp")
NUMBERS = {0: 1, 1: 2, 2: 1}  # any other number is doubled

# Why some survivors compute the same thing.
_FILL = "what is filled in is finite and its weight is 0"
_LOGGED = "a metric is detached twice: here and in _floats"
_PAIR = "shapes and dtypes of the four log-probs are the same, or this raises anyway"
_AXIS = "of two axes, 1 is -1"


def edit(where: str, line: str, old: str, new: str, why: str) -> tuple[tuple[str, str, str], str]:
    """An entry of EQUIVALENT: in this function, on this line, `old` became `new`, and why no test can tell."""
    assert line.count(old) == 1, f"{old!r} must be in the line exactly once: {line}"
    return (where, line, line.replace(old, new)), why


EQUIVALENT = dict([
    edit("losses.sft_loss", "logp = logp.masked_fill(~mask, 0.0)", "0.0", "(1.0)", _FILL),
    edit("losses.sft_loss", 'metrics = {"mean_token_prob": (weight * logp.detach().exp()).sum() / at_least_one(count)}',
         "logp.detach()", "(logp)", _LOGGED),
    edit("losses.group_advantages", "if groups.numel() == 0 or group_size == 1:", "== 0", "== (1)",
         "an empty batch stays empty, and a batch of one is a group of one"),
    edit("losses.grpo_loss",
         'loss_weight = {"sequence": share, "token": weight, "constant": weight / (max_length or 1)}[normalise]',
         "or 1", "or (2)", "the 1 replaces None, and only constant uses it, which has a max_length"),
    edit("losses.grpo_loss",
         "metrics = {name: (x.detach() * mean_weight).sum() / at_least_one(count) for name, x in logged.items()}",
         "x.detach()", "(x)", _LOGGED),
    edit("loss_checks.over_time", "return advantages.detach().masked_fill(~mask, 0.0)", "0.0", "(1.0)", _FILL),
    edit("loss_checks.check_pairs",
         "if logps[0].dim() != 1 or len(set(shapes)) != 1 or dtypes not in ({torch.float32}, {torch.float64}):",
         "[0]", "[(1)]", _PAIR),
    edit("logprobs.completion_logp",
         "log_probs = (as_float32(model.head(hidden)) / temperature).log_softmax(-1)  # (N, V)", "-1", "(1)", _AXIS),
    edit("logprobs.completion_logp", "logp = scatter(log_probs.gather(-1, tokens[:, None])[:, 0], mask)",
         "-1", "(1)", _AXIS),
    edit("logprobs.completion_logp", "entropy = -(probs * log_probs.detach().masked_fill(probs == 0, 0.0)).sum(-1)",
         "sum(-1)", "sum((1))", _AXIS),
    edit("logprobs.completion_logp", "entropy = -(probs * log_probs.detach().masked_fill(probs == 0, 0.0)).sum(-1)",
         "0.0", "(1.0)", "the probability it is multiplied by is 0"),
    edit("logprobs.sequence_logp", "logp = logp * weights.detach().masked_fill(~mask, 0.0)", "0.0", "(1.0)",
         "the log-prob it is multiplied by is 0"),
])  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One mistake: module (key of MODULES), its function, line number, that line before and after, and the mutated
    source."""

    module: str
    function: str
    line: int
    before: str
    after: str
    source: str

    @property
    def key(self) -> tuple[str, str, str]:
        return f"{self.module}.{self.function}", self.before, self.after


def mutations(node: ast.AST) -> Iterator[ast.expr]:
    """What this one expression could have been by mistake; its parts stay as they are."""
    if isinstance(node, ast.BinOp):
        for operator in OPERATORS.get(type(node.op), ()):
            yield ast.BinOp(node.left, operator(), node.right)
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(OPERATORS[type(node.op)][0](), node.values)
    elif isinstance(node, ast.Compare):
        for place, old in enumerate(node.ops):
            for operator in OPERATORS.get(type(old), ()):
                operators = [*node.ops[:place], operator(), *node.ops[place + 1 :]]
                yield ast.Compare(node.left, operators, node.comparators)
    elif isinstance(node, ast.UnaryOp):
        yield node.operand
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        if node.func.attr in SWAPPED_CALLS:
            function = ast.Attribute(node.func.value, SWAPPED_CALLS[node.func.attr], ast.Load())
            yield ast.Call(function, node.args, node.keywords)
        if node.func.attr in DROPPED_CALLS:
            yield node.func.value
    elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
        places = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        if any(isinstance(place, ast.Slice) and (place.lower or place.upper) for place in places):
            whole = [ast.Slice() if isinstance(place, ast.Slice) else place for place in places]
            yield ast.Subscript(node.value, ast.Tuple(whole, ast.Load()) if len(whole) > 1 else whole[0], ast.Load())
    elif isinstance(node, ast.Constant):
        if isinstance(node.value, bool):
            yield ast.Constant(not node.value)
        elif isinstance(node.value, (int, float)):
            yield ast.Constant(type(node.value)(NUMBERS.get(node.value, 2 * node.value)))


def computing_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Every node under this one but annotations, which are never evaluated, and f-strings, which are only messages."""
    yield node
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not isinstance(child, ast.JoinedStr):
                yield from computing_nodes(child)


def mutants_of(module: str) -> list[Mutant]:
    """All mutants of one module, in the order of its lines. Only the mutated expression's text changes."""
    source = (ROOT / MODULES[module][0]).read_text(encoding="utf-8")
    starts = [0]  # where each line begins; the sources are ASCII, so ast's byte columns are characters
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    lines, found = source.splitlines(), []
    for statement in ast.parse(source).body:
        for node in computing_nodes(statement):
            for mutation in mutations(node):
                start = starts[node.lineno - 1] + node.col_offset
                end = starts[node.end_lineno - 1] + node.end_col_offset
                mutated = f"{source[:start]}({ast.unparse(mutation)}){source[end:]}"
                before, after = lines[node.lineno - 1].strip(), mutated.splitlines()[node.lineno - 1].strip()
                found.append(Mutant(module, getattr(statement, "name", "module"), node.lineno, before, after, mutated))
    return sorted(found, key=lambda mutant: mutant.line)


def copy_package(folder: Path) -> Path:
    """The package and the test files that run, without the conftest files: these tests need none."""
    shutil.copytree(ROOT / "taosr1", folder / "taosr1", ignore=shutil.ignore_patterns("__pycache__"))
    for _, tests in MODULES.values():
        (folder / tests).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / tests, folder / tests)
    return folder


def run_tests(folder: Path, tests: str, timeout_s: int) -> None:
    """In a forked child: run the tests on the package in `folder`; the exit status is pytest's.

    The timeout is CPU time, so that a busy machine does not kill a mutant that its tests would not.
    """
    resource.setrlimit(resource.RLIMIT_CPU, (timeout_s, timeout_s))
    torch.set_num_threads(1)
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    options = ["-x", "-q", "--import-mode=importlib", "--assert=plain", "-p", "no:cacheprovider"]
    options += ["--rootdir", str(folder)]
    os._exit(int(pytest.main([*options, tests])))


def start(folder: Path, module: str, timeout_s: int):
    process = FORK.Process(target=run_tests, args=(folder, MODULES[module][1], timeout_s), daemon=True)
    process.start()
    return process


def survivors(mutants: list[Mutant], folders: list[Path], timeout_s: int) -> Iterator[Mutant]:
    """The mutants whose tests pass, as they are found; one mutant per folder at a time."""
    waiting, running = list(reversed(mutants)), {}
    while waiting or running:
        while waiting and folders:
            mutant, folder = waiting.pop(), folders.pop()
            compile(mutant.source, mutant.after, "exec")  # a mutant that does not parse would pass for killed
            (folder / MODULES[mutant.module][0]).write_text(mutant.source, encoding="utf-8")
            process = start(folder, mutant.module, timeout_s)
            running[process.sentinel] = process, mutant, folder
        for sentinel in wait(list(running)):
            process, mutant, folder = running.pop(sentinel)
            process.join()
            shutil.copy(ROOT / MODULES[mutant.module][0], folder / MODULES[mutant.module][0])
            folders.append(folder)
            if process.exitcode == 0:
                yield mutant


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--module", choices=[*MODULES, "all"], default="all", help="what to mutate (default: all)")
    parser.add_argument("--jobs", type=int, default=1, help="mutants tested at once, one thread each (default: 1)")
    parser.add_argument("--limit", type=int, help="test only a random sample of this many mutants (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="which sample --limit draws (default: 0)")
    timeout = "CPU seconds until a mutant counts as killed (default: 120)"
    parser.add_argument("--timeout-s", type=int, default=120, help=timeout)
    options = parser.parse_args(argv)
    if options.jobs < 1 or options.timeout_s < 1 or (options.limit is not None and options.limit < 1):
        parser.error("--jobs, --limit and --timeout-s must be at least 1")

    with contextlib.suppress(ModuleNotFoundError):
        # The first backward pass imports it, which would be half of a mutant's time.
        importlib.import_module("torch.nested._internal.nested_tensor")
    modules = list(MODULES) if options.module == "all" else [options.module]
    mutants = [mutant for module in modules for mutant in mutants_of(module)]
    stale = {key for key in EQUIVALENT if key[0].split(".")[0] in modules} - {mutant.key for mutant in mutants}
    if options.limit is not None and options.limit < len(mutants):
        chosen = sorted(random.Random(options.seed).sample(range(len(mutants)), options.limit))
        mutants = [mutants[index] for index in chosen]

    sys.dont_write_bytecode = True  # a mutant of the same length and second would otherwise run the last one's bytecode
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    alive, allowed = 0, 0
    with tempfile.TemporaryDirectory(prefix="mutate-") as temporary:
        folders = [copy_package(Path(temporary) / str(job)) for job in range(options.jobs)]
        for module in modules:
            process = start(folders[0], module, options.timeout_s)
            process.join()
            if process.exitcode != 0:
                print(f"{MODULES[module][1]} fails without any mutation (pytest exit status {process.exitcode})")
                return 2
        with contextlib.closing(survivors(mutants, folders, options.timeout_s)) as found:
            for mutant in found:
                alive += 1
                reason = EQUIVALENT.get(mutant.key)
                allowed += reason is not None
                print(f"{MODULES[mutant.module][0]}:{mutant.line}  {'equivalent: ' + reason if reason else 'SURVIVED'}")
                print(f"    - {mutant.before}\n    + {mutant.after}", flush=True)
    for key in sorted(stale):
        print(f"EQUIVALENT names a mutant that does not exist (any more): {key}")
    print(f"{len(mutants) - alive}/{len(mutants)} killed, {alive} survived, {allowed} of them known to be equivalent")
    return 1 if alive > allowed or stale else 0


if __name__ == "__main__":
    sys.exit(main())
