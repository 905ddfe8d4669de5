"""What a reader is told to open stays right: the tour's links and files, and the README's reading order.

    python tests/test_tour.py          writes the right line numbers into examples/guide/tour.md and README.md
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOUR = ROOT / "examples" / "guide" / "tour.md"
README = ROOT / "README.md"
TEXT = TOUR.read_text(encoding="utf-8")
ORDER = re.compile(r"\*\*Read the method in (.*?)\*\*(.*?)\n\n", re.S)  # files and lines; the paragraph that names them
LINK = re.compile(r"\[`([\w.]+)`\]\(([\w./]+\.py)#L(\d+)\)")
SECTIONS = {part.splitlines()[0]: part for part in re.split(r"^## ", TEXT, flags=re.M)[1:] if LINK.search(part)}
MOST_FILES = {"From a file to a tier": 10, "From a reward to a gradient": 8}


@cache
def lines_of(path: Path) -> dict[str, int]:
    """Line of every function, class, method (Class.method), field and constant that a file defines."""
    found: dict[str, int] = {}

    def add(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                found[prefix + node.name] = node.lineno
                add(node.body, f"{prefix}{node.name}.")
            for target in getattr(node, "targets", None) or [getattr(node, "target", None)]:
                if isinstance(target, ast.Name):
                    found.setdefault(prefix + target.id, node.lineno)

    add(ast.parse(path.read_text(encoding="utf-8"), str(path)).body, "")
    return found


def files_of(section: str) -> list[str]:
    return list(dict.fromkeys(path for _, path, _ in LINK.findall(section)))


@pytest.mark.parametrize("name, path, line", LINK.findall(TEXT), ids=lambda word: word.split("/")[-1])
def test_a_link_leads_to_the_definition_of_its_name(name, path, line):
    assert lines_of(TOUR.parent / path).get(name) == int(line), "python tests/test_tour.py writes the right numbers"


def test_every_link_to_code_has_a_name_and_a_line():
    assert len(re.findall(r"\]\([^)]*\.py[^)]*\)", TEXT)) == len(LINK.findall(TEXT)) >= 30


@pytest.mark.parametrize("title", MOST_FILES)
def test_a_walk_opens_no_more_files_than_it_says(title):
    section = SECTIONS[title]
    files, hops = files_of(section), re.findall(r"^(\d+)\. ", section, flags=re.M)
    assert len(files) <= MOST_FILES[title]
    assert f"{len(hops)} hops, {len(files)} files" in section
    assert hops == [str(number) for number in range(1, len(hops) + 1)]


def test_the_reading_order_has_as_many_files_and_lines_as_the_readme_says():
    said, paragraph = ORDER.search(README.read_text(encoding="utf-8")).groups()
    assert said == size_of(paragraph), "python tests/test_tour.py writes the right numbers"
    files, lines = re.fullmatch(r"(\d+) files, ([\d,]+) lines", said).groups()
    assert int(files) == 12 and int(lines.replace(",", "")) <= 3000


def size_of(paragraph: str) -> str:
    """ "12 files, 1,842 lines" of the files that a paragraph names."""
    files = set(re.findall(r"`([\w/]+\.py)`", paragraph))
    lines = sum((ROOT / name).read_text(encoding="utf-8").count("\n") for name in files)
    return f"{len(files)} files, {lines:,} lines"


def with_right_lines(text: str) -> str:
    def replaced(match: re.Match) -> str:
        name, path, _ = match.groups()
        return f"[`{name}`]({path}#L{lines_of(TOUR.parent / path)[name]})"

    return LINK.sub(replaced, text)


if __name__ == "__main__":
    TOUR.write_text(with_right_lines(TEXT), encoding="utf-8")
    readme = README.read_text(encoding="utf-8")
    said, paragraph = ORDER.search(readme).groups()
    README.write_text(readme.replace(f"**Read the method in {said}**", f"**Read the method in {size_of(paragraph)}**"))
    print(f"{len(LINK.findall(TEXT))} links; the method in {size_of(paragraph)}")
