"""The table of abilities by stage: the script on the bundled judges, and its report on answers known by hand."""

from __future__ import annotations

import json
import re
import runpy
import shlex
from pathlib import Path

import pytest

from examples.abilities import (
    AFTER,
    AT_ONCE,
    Answers,
    Config,
    figure_of,
    jsonable,
    main,
    measure,
    moves,
    render,
    right_lines,
    stages_of,
)
from infer.plot import save_figure
from taosr1.synthetic.abilities.blocks import ABILITIES, read_abilities
from taosr1.task.prompt import parse_reply

SMALL = ["--rows", "8", "--bootstrap", "50"]


@pytest.fixture(scope="module")
def rows():
    return read_abilities("abilities", 8 * len(ABILITIES))


@pytest.fixture
def config(tmp_path):
    return Config(out=str(tmp_path / "out"), bootstrap=50, picture=False)


def true_grades(rows, but: str = "") -> list[int]:
    """The gold grades, but for one ability, of which every row gets a 4."""
    return [4 if row.query_kind == but else row.grade for row in rows]


def test_a_stage_that_learns_one_ability_is_said_to_move_that_one_alone(rows, config):
    """Every block of "negation" goes from no pair right to all: the difference is 1 in every resample."""
    before = Answers("before", "m", AT_ONCE, true_grades(rows, but="negation"), None, None)
    after = Answers("after", "m", AT_ONCE, true_grades(rows), None, 0)
    first, second = measure(rows, [before, after], config)
    assert first["differences"] is None and first["abilities"]["negation"]["pair_accuracy"].value == 0
    assert second["abilities"]["negation"]["pair_accuracy"].value == 1
    assert second["differences"]["negation"] == {"value": 1, "low": 1, "high": 1, "moved": True}
    assert {name for name, gap in second["differences"].items() if gap["moved"]} == {"negation"}
    assert moves(second) == "after, at once, against before, at once: up negation"
    (_, back) = measure(rows, [after, Answers("worse", "m", AT_ONCE, before.grades, None, 0)], config)
    assert moves(back).endswith(": down negation")
    (_, same) = measure(rows, [after, Answers("same", "m", AT_ONCE, after.grades, None, 0)], config)
    assert moves(same).endswith(": nothing moves")


def test_lines_are_right_where_they_say_what_is_true(rows):
    """Of four replies one is true, one has a wrong category, one a wrong outcome, one a word too many in Item."""
    some = [row for row in rows if row.query_kind == "attributes"][:4]
    texts = [row.cot for row in some]
    texts[1] = texts[1].replace("Category: same", "Category: different")
    texts[2] = texts[2].replace("near\nDecision", "missed\nDecision").replace("other missed\nDecision", "met\nDecision")
    item = texts[3].split("\n")[1]
    texts[3] = texts[3].replace(item, item + " crimsonish")
    assert all(text != row.cot for text, row in list(zip(texts, some))[1:])
    replies = [parse_reply(text, "pre-cot") for text in texts]
    assert right_lines(some, replies) == {"item": 0.75, "category": 0.75, "attributes": 0.75}
    assert right_lines(some, [parse_reply("no reason", "pre-cot")] * 4) == {"item": 0, "category": 0, "attributes": 0}


def test_stages_are_named_by_flag_or_by_the_last_part_of_their_path(tmp_path):
    assert stages_of(["start=bundled", "runs/thinker-grpo", "bundled-student"]) == {
        "start": "bundled", "thinker-grpo": "runs/thinker-grpo", "bundled-student": "bundled-student"
    }  # fmt: skip
    assert stages_of(["runs/lr=1e-3/x"]) == {"x": "runs/lr=1e-3/x"}
    with pytest.raises(ValueError, match="two stages are called 'x': give NAME=MODEL for b/x"):
        stages_of(["a/x", "b/x"])


def test_the_bundled_judges_are_asked_with_and_without_reasons(tmp_path, capsys):
    """The thinker answers after its reasons alone, the student in both ways: three series, two differences."""
    out = tmp_path / "out"
    words = ["thinker=bundled-thinker", "student=bundled-student", *SMALL, "--no-picture", "--reasons"]
    words += ["--out", str(out)]
    report = main(words)
    assert [(own["stage"], own["way"]) for own in report] == [
        ("thinker", AFTER), ("student", AT_ONCE), ("student", AFTER)
    ]  # fmt: skip
    assert [own.get("against") for own in report] == [None, "thinker, after reasons", "student, at once"]
    assert [path.name for path in out.iterdir()] == ["abilities.json"]
    written = json.loads((out / "abilities.json").read_text(encoding="utf-8"))
    assert written["answers"] == report and written["rows"] == 80 and written["chance"]["pairs"] == 0.25
    printed = capsys.readouterr().out
    assert render(report) in printed and "pairs right x 100 (guessing: 25)" in printed
    assert "lines_right" not in report[1]["abilities"]["category"]
    for own in report[::2]:
        assert own["abilities"]["knowledge"]["lines_right"]["item"] > 0.5, "it has learned to copy the product"
    with pytest.raises(ValueError, match="abilities.json is there already: --overwrite replaces it"):
        main(words)


def test_the_picture_has_a_mark_for_each_ability_and_stage_and_is_the_same_every_time(tmp_path, rows, config):
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install -c constraints.txt -e '.[plot]'")
    before = Answers("one", "m", AT_ONCE, true_grades(rows, but="negation"), None, None)
    report = jsonable(measure(rows, [before, Answers("two", "m", AT_ONCE, true_grades(rows), None, 0)], config))
    pictures = []
    for name in ("a.svg", "b.svg"):
        figure = figure_of(report)
        save_figure(figure, tmp_path / name)
        pictures.append((tmp_path / name).read_text(encoding="utf-8"))
    assert pictures[0] == pictures[1]
    for text in (*ABILITIES, "one, at once", "two, at once", "guessing", "pairs right, %"):
        assert f">{text}</text>" in pictures[0], text
    pairs, gaps = figure.axes
    marks = [line.get_xdata()[0] for line in pairs.lines if len(line.get_xdata()) == 1]
    assert sorted(marks) == [0] + [100] * 19, "two stages by ten abilities, one of them at 0"
    assert sorted(line.get_xdata()[0] for line in gaps.lines if len(line.get_xdata()) == 1) == [0] * 9 + [100]


def test_wrong_flags_are_said_before_a_model_is_loaded(capsys):
    for words, message in (
        (["bundled-student", "--rows", "10"], "--rows is 10, expected a multiple of four"),
        (["a/x", "b/x"], "two stages are called 'x'"),
        ([], "the following arguments are required: MODEL"),
    ):
        with pytest.raises(SystemExit):
            main(words)
        assert message in capsys.readouterr().err


def test_the_commands_of_the_guide_run(tmp_path, monkeypatch, capsys):
    """As they are written there, on fewer rows."""
    root = Path(__file__).resolve().parents[2]
    guide = (root / "examples" / "guide" / "abilities.md").read_text(encoding="utf-8")
    commands = [shlex.split(line) for line in re.findall(r"^    python (.*)$", guide, flags=re.M)]
    fewer = {"examples/abilities.py": [*SMALL, "--no-picture"]}
    monkeypatch.chdir(tmp_path)
    for script, *flags in commands:
        flags = [flag.replace("synthetic:abilities", "synthetic:abilities*40") for flag in flags]
        runpy.run_path(str(root / script))["main"]([*flags, *fewer.get(script, ["--limit", "8"])])
    assert [script for script, *_ in commands] == [*fewer, "infer/score.py", "infer/evaluate.py"]
    scored = [json.loads(line) for line in Path("negation.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["block"] for row in scored] == ["negation-0"] * 4 + ["negation-1"] * 4
    assert {row["query_kind"] for row in scored} == {"negation"}
    named = set(re.findall(r"^\| `(\w+)` \|", guide, flags=re.M))
    assert named == set(ABILITIES), "the guide's table has every ability"
    assert "category" in json.loads(Path("abilities.json").read_text(encoding="utf-8"))["by_kind"]
