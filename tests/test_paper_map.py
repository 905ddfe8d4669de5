"""The guide to the losses cannot rot: every row of its paper map resolves, every worked example runs."""

from __future__ import annotations

import ast
import re
from functools import lru_cache
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
GUIDE = ROOT / "examples" / "guide" / "losses.md"
TEXT = GUIDE.read_text(encoding="utf-8")
HEADER = ["equation", "function", "test", "deviation"]


class Row(NamedTuple):
    equation: str
    function: str
    test: str
    deviation: str


class Block(NamedTuple):
    line: int  # of its first line of code, counted from 1
    code: str


def cells_of(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def map_of(text: str) -> list[list[str]]:
    """The cells of the paper map's rows, whatever their number."""
    lines = text.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("|") and cells_of(line) == HEADER)
    return [cells_of(line) for line in takewhile(lambda line: line.startswith("|"), lines[start + 2 :])]


@lru_cache
def functions_of(path: Path) -> dict[str, ast.FunctionDef]:
    """Functions and, as Class.method, methods defined in a file."""
    found = {}
    for node in ast.parse(path.read_text(encoding="utf-8"), str(path)).body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = node
        elif isinstance(node, ast.ClassDef):
            methods = [member for member in node.body if isinstance(member, ast.FunctionDef)]
            found |= {f"{node.name}.{member.name}": member for member in methods}
    return found


def problems_of(cells: list[str]) -> list[str]:
    """Everything that is wrong with a row of the map."""
    if len(cells) != len(HEADER):
        return [f"{len(cells)} cells, expected {len(HEADER)}: {cells}"]
    row, problems = Row(*cells), []
    patterns = {"function": r"`(taosr1/[\w/]+\.py)::([\w.]+)`", "test": r"`(tests/[\w/]+\.py)::(test_\w+)`"}
    for kind, pattern in patterns.items():
        cell = getattr(row, kind)
        match = re.fullmatch(pattern, cell)
        if not match:
            problems.append(f"{kind} {cell} is not `path.py::name`")
        elif not (ROOT / match[1]).is_file() or match[2] not in functions_of(ROOT / match[1]):
            problems.append(f"{kind} {cell} does not exist")
    problems += [f"{name} is empty" for name in ("equation", "deviation") if not re.search(r"\w", getattr(row, name))]
    return problems


def blocks_of(text: str) -> list[Block]:
    """The fenced Python blocks."""
    fences = re.finditer(r"^```python\n(.*?)^```$", text, flags=re.S | re.M)
    return [Block(text[: match.start(1)].count("\n") + 1, match[1]) for match in fences]


def run(blocks: list[Block]) -> None:
    """Run blocks one after the other, as a reader pastes them; a failure names its line of the guide."""
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(compile("\n" * (block.line - 1) + block.code, str(GUIDE), "exec"), namespace)


ROWS = map_of(TEXT)
FIRST, *EXAMPLES = blocks_of(TEXT)


# ---- the map ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cells", ROWS, ids=lambda cells: cells[0])
def test_every_row_names_a_function_and_a_test_that_exist_and_says_how_we_deviate(cells):
    assert problems_of(cells) == []


@pytest.mark.parametrize(
    ("column", "cell", "problem"),
    [
        ("function", "`taosr1/learning/losses.py::ppo_loss`", "does not exist"),
        ("function", "`taosr1/learning/nowhere.py::dpo_loss`", "does not exist"),
        ("function", "`taosr1/learning/losses.py::LossSum`", "does not exist"),  # a class computes nothing
        ("function", "dpo_loss", "is not"),
        ("test", "`tests/learning/test_losses.py::test_dpo`", "does not exist"),
        ("test", "`tests/learning/test_losses.py::one_token`", "is not"),  # a helper tests nothing
        ("deviation", "", "is empty"),
        ("deviation", "-", "is empty"),
        ("equation", "", "is empty"),
    ],
)
def test_wrong_rows_are_found(column, cell, problem):
    problems = problems_of(list(Row(*ROWS[0])._replace(**{column: cell})))
    assert len(problems) == 1 and column in problems[0] and problem in problems[0]


def test_a_bar_inside_a_cell_is_found():
    assert problems_of(cells_of("| |o| | `f` | `t` | none |")) != []


def test_every_function_of_the_losses_and_of_what_is_trained_on_is_on_the_map():
    on_the_map = {cells[1].strip("`") for cells in ROWS}
    losses = "taosr1/learning/losses.py"
    public = {f"{losses}::{name}" for name in functions_of(ROOT / losses) if not name.startswith("_")}
    others = {
        "taosr1/learning/difficulty.py": ("drop_reason", "balance_by_grade", "grade_share_cv"),
        "taosr1/learning/pairs.py": ("balance_label_flow", "mine_pairs"),
        "taosr1/sampling/passn.py": ("pass_at_n",),
        "taosr1/serving/tiering.py": ("cumulative_tier", "fit_beta"),
    }
    assert public | {f"{path}::{name}" for path, names in others.items() for name in names} <= on_the_map


def test_no_row_is_there_twice():
    assert len({(cells[0], cells[1]) for cells in ROWS}) == len(ROWS) >= 25


# ---- the worked examples ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", EXAMPLES, ids=lambda block: f"line {block.line}")
def test_a_worked_example_runs_after_the_first_block_alone(block):
    run([FIRST, block])


@pytest.mark.parametrize("block", EXAMPLES, ids=lambda block: f"line {block.line}")
def test_a_worked_example_asserts_something(block):
    assert any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(block.code)))


def test_a_wrong_number_fails_and_names_its_line():
    line = TEXT[: TEXT.index("near(dpo_loss(*pair, beta=0.5).sum, 0.31326)")].count("\n") + 1
    (block,) = (block for block in EXAMPLES if block.line <= line < block.line + block.code.count("\n"))
    wrong = block._replace(code=block.code.replace("beta=0.5).sum, 0.31326", "beta=0.5).sum, 0.31327"))
    with pytest.raises(AssertionError) as failure:
        run([FIRST, wrong])
    assert (failure.traceback[-1].lineno + 1, Path(failure.traceback[-1].path).name) == (line, "losses.md")


def test_every_number_of_the_text_is_computed_beside_it():
    """A number with four decimals or more stands in the code of its section too, so that it is checked."""
    for section in re.split(r"^## ", TEXT, flags=re.M)[1:]:
        code = "".join(block.code for block in blocks_of(section))
        prose = re.sub(r"^```.*?^```$", "", section, flags=re.S | re.M)
        # Papers are cited as 2508.12365: four digits before the point.
        numbers = set(re.findall(r"(?<![\d.])\d{1,3}\.\d{4,}", prose))
        assert not {number for number in numbers if number not in code}, section.splitlines()[0]
