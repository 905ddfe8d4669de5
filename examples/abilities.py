"""Which abilities each stage moves: minimal pairs of ten abilities, with and without reasons, stage after stage.

    python examples/abilities.py start=bundled-thinker result=runs/thinker-grpo
    python examples/abilities.py runs/post-sft runs/post-dpo runs/post-grpo bundled-student --reasons

Every MODEL is a stage, in the order given; NAME=MODEL names it. Each is asked the same rows, `synthetic:abilities`,
whose pairs differ in one demand or in one property of the product (examples/guide/abilities.md). A pair is right where
both of its rows are. Guessing between the two grades gives a quarter of the pairs, and so at most does every judge that
looks at the query or the product alone.

A thinker (pre-CoT) answers after its reasons; a judge that answers first answers at once, and with --reasons also what
its Decision line says (post-CoT). Of written reasons, the lines are compared with the shop's facts.

Prints tables; writes abilities.json and abilities.svg into --out. A difference is that to the stage before, of answers
after reasons to the same judge's answers at once. Intervals are paired bootstraps over blocks of four rows. A stage
moves an ability where the interval of the difference excludes 0; where nothing moves, one in twenty still does.

Deviation from the paper: its test sets of single abilities are not public, these are made by rules.
"""

from __future__ import annotations

import dataclasses
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a fresh checkout runs without being installed

from infer.plot import save_figure
from taosr1.data.sources import load_rows
from taosr1.evaluation.minimal_pairs import CHANCE, measure_pairs, pair_difference
from taosr1.evaluation.predict import greedy_replies, predict
from taosr1.evaluation.summary import jsonable
from taosr1.judge_model import SERVING_DTYPE_HELP, SERVING_DTYPES, JudgeModel
from taosr1.learning.rewards import step_agreement
from taosr1.runtime.cli import Parser, add_flags, at_least, check, option
from taosr1.runtime.files import write_json
from taosr1.runtime.messages import install
from taosr1.runtime.out_paths import out_problems
from taosr1.runtime.outputs import OutFlags, refuse_overwriting
from taosr1.runtime.progress import Bar, listening
from taosr1.runtime.signals import run_main
from taosr1.serving.deployed import open_judge
from taosr1.synthetic.abilities.blocks import ABILITIES, EVERY_ABILITY
from taosr1.task.judgement import Judgement
from taosr1.task.prompt import Reply, parse_reply
from taosr1.task.prompt_flags import PromptFlags, prompt_problems

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEPS = ("item", "category", "attributes")  # lines of the reasons that are compared with the facts
AT_ONCE, AFTER = "at once", "after reasons"
# Okabe and Ito's colours, which can be told apart by the colour-blind; each stage has a shape of its own, too.
LOOKS = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#E69F00", "v"), ("#56B4E9", "P"),
         ("#000000", "X"))  # fmt: skip


@dataclass(frozen=True)
class Config(OutFlags, PromptFlags):
    out: str = option("runs/abilities", "folder for abilities.json and abilities.svg")
    rows: int = option(400, "rows of each ability, a multiple of four")
    reasons: bool = option(False, "also decode the reasons of judges that answer first and then explain (post-CoT)")
    picture: bool = option(True, "draw abilities.svg (needs matplotlib)")
    max_new_tokens: int = option(128, "longest reply where one is decoded")
    bootstrap: int = option(1000, "bootstrap resamples of blocks (0: no intervals)")
    device: str = option("cpu", "torch device")
    dtype: str = option("float32", SERVING_DTYPE_HELP, SERVING_DTYPES)
    seed: int = option(0, "seed of the rows and of the bootstrap")

    def __post_init__(self) -> None:
        no_picture = self.picture and find_spec("matplotlib") is None
        check([
            (self.rows % 4 != 0, f"--rows is {self.rows}, expected a multiple of four: a block has four rows"),
            (no_picture, f"the picture needs matplotlib: {install('plot')}, or give --no-picture"),
            *prompt_problems(self),
            *out_problems(self.out, folder=True),
            *at_least(self, rows=8, bootstrap=0, max_new_tokens=1),
        ])  # fmt: skip


@dataclass(frozen=True)
class Answers:
    """What one stage says about every row, in one way of asking; `replies` are its reasons, where it has written any.

    against: the place of the answers that these are compared with, None for the first.
    """

    stage: str
    model: str
    way: str
    grades: list[int | None]
    replies: list[Reply] | None
    against: int | None

    @property
    def title(self) -> str:
        return f"{self.stage}, {self.way}"


def stages_of(words: Sequence[str]) -> dict[str, str]:
    """{name: model} of "MODEL" and "NAME=MODEL". Raises: ValueError for two of one name."""
    stages: dict[str, str] = {}
    for word in words:
        name, equals, model = word.partition("=")
        if not (equals and name and model) or "/" in name or Path(word).exists():
            name, model = Path(word).name or word, word
        if name in stages:
            raise ValueError(f"two stages are called {name!r}: give NAME=MODEL for {model}")
        stages[name] = model
    return stages


def ask(judge: JudgeModel, rows: list[Judgement], config: Config) -> list[tuple[str, list, list[Reply] | None]]:
    """(way, grades, replies) for every way in which this judge can be asked."""
    thinks_first, explains = judge.prompt.order == "pre-cot", judge.prompt.order == "post-cot" and config.reasons
    asked: list[tuple[str, list, list[Reply] | None]] = []
    if not thinks_first:
        asked.append((AT_ONCE, [found.grade for found in predict(judge, rows)], None))
    if thinks_first or explains:
        replies, _ = greedy_replies(judge, judge.prompts(rows), config.max_new_tokens)
        asked.append((AFTER, [reply.decision for reply in replies], replies))
    return asked


def ask_stages(stages: dict[str, str], rows: list[Judgement], config: Config) -> list[Answers]:
    """The answers of all stages, one model in memory at a time."""
    answers: list[Answers] = []
    before = None
    for stage, spec in stages.items():
        settings = {"dtype": config.dtype, "device": config.device, "seed": config.seed, "decodes": True}
        name, judge = open_judge(spec, max_new_tokens=config.max_new_tokens, asked=config, **settings)
        with Bar(total=len(rows), desc=stage, unit="row") as bar, listening(bar.part):
            found = ask(judge, rows, config)
            bar.update(len(rows))
        first = len(answers)
        for way, grades, replies in found:
            answers.append(Answers(stage, name, way, grades, replies, before if way == found[0][0] else first))
        before = first
    return answers


# ---- The report ------------------------------------------------------------------------------------------------------


def measure(rows: list[Judgement], answers: list[Answers], config: Config) -> list[dict]:
    """One object for each of `answers`: its scores by ability, its right lines, and the difference to those before."""
    draw = {"samples": config.bootstrap, "seed": config.seed}
    places = {ability: [at for at, row in enumerate(rows) if row.query_kind == ability] for ability in ABILITIES}
    report = []
    for found in answers:
        against = None if found.against is None else answers[found.against]
        own: dict = {"stage": found.stage, "model": found.model, "way": found.way, "abilities": {}, "differences": None}
        if against:
            own |= {"against": against.title, "differences": {}}
        for ability, at in places.items():
            some, grades = [rows[place] for place in at], [found.grades[place] for place in at]
            own["abilities"][ability] = measure_pairs(some, grades, **draw)
            if found.replies:
                steps = right_lines(some, [found.replies[place] for place in at])
                own["abilities"][ability]["lines_right"] = steps
            if against:
                gap = pair_difference(some, [against.grades[place] for place in at], grades, **draw)
                own["differences"][ability] = vars(gap) | {"moved": gap.low > 0 or gap.high < 0}
        report.append(own)
    return report


def right_lines(rows: Sequence[Judgement], replies: Sequence[Reply]) -> dict[str, float]:
    """The share of replies whose Item, Category and Attributes lines say what is true, each line for itself."""
    agreed = [step_agreement(reply, parse_reply(row.cot, "pre-cot")) for row, reply in zip(rows, replies)]
    return {name: sum(steps[name] == 1 for steps in agreed) / len(rows) for name in STEPS}


def render(report: list[dict]) -> str:
    """Tables: pairs and macro-F1 by stage, differences between stages, right lines of reasons; then what moves."""
    titles = [f"{own['stage']}, {own['way']}" for own in report]
    parts = []
    for metric, name, chance in (("pair_accuracy", "pairs right", "pairs"), ("macro_f1", "macro-F1", "macro_f1")):
        cells = [[shown(own["abilities"][ability][metric]) for own in report] for ability in ABILITIES]
        parts.append(table(f"{name} x 100 (guessing: {100 * CHANCE[chance]:.0f})", titles, cells))
    if compared := [own for own in report if own["differences"]]:
        gaps = [[own["differences"][ability] for own in compared] for ability in ABILITIES]
        cells = [[shown(gap, "+") + (" *" if gap["moved"] else "  ") for gap in row] for row in gaps]
        heads = [f"{own['stage']}, {own['way']} - {own['against']}" for own in compared]
        parts.append(table("difference in pairs right (* moves: the interval excludes 0)", heads, cells))
    if explained := [own["abilities"] for own in report if "lines_right" in own["abilities"]["category"]]:
        heads = [title for title, own in zip(titles, report) if own["abilities"] in explained]
        lines = [[own[ability]["lines_right"] for own in explained] for ability in ABILITIES]
        cells = [[" ".join(f"{100 * found[step]:3.0f}" for step in STEPS) for found in row] for row in lines]
        parts.append(table("right lines x 100: Item Category Attributes", heads, cells))
    return "\n\n".join([*parts, *filter(None, ["\n".join(map(moves, compared))])])


def shown(found: dict, sign: str = "") -> str:
    """ "58.0 [51, 65]" of an interval, times 100; sign: "+" for a difference, whose bounds have a decimal, too."""
    value, low, high = (found[name] for name in ("value", "low", "high"))
    form = f"{sign}.{1 if sign else 0}f"
    bounds = "" if low is None else f" [{100 * low:{form}}, {100 * high:{form}}]"
    return f"{100 * value:{sign}.1f}{bounds}"


def moves(own: dict) -> str:
    """ "result, after reasons, against start, after reasons: up category, synonyms; down attributes"."""
    found: dict[str, list[str]] = {"up": [], "down": []}
    for ability, gap in own["differences"].items():
        if gap["moved"]:
            found["up" if gap["value"] > 0 else "down"].append(ability)
    said = "; ".join(f"{way} {', '.join(names)}" for way, names in found.items() if names) or "nothing moves"
    return f"{own['stage']}, {own['way']}, against {own['against']}: {said}"


def table(title: str, heads: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A row for each ability. Columns have numbers, which stand for the heads below the title: those are long."""
    numbers = [f"({place})" for place in range(1, len(heads) + 1)]
    rows = [["", *numbers], *([ability, *row] for ability, row in zip(ABILITIES, cells))]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = [[first.ljust(widths[0]), *map(str.rjust, rest, widths[1:])] for first, *rest in rows]
    legend = [f"  {number} {head}" for number, head in zip(numbers, heads)]
    return "\n".join([title, *legend, *("  ".join(line).rstrip() for line in lines)])


# ---- The picture -----------------------------------------------------------------------------------------------------


def figure_of(report: list[dict]) -> Figure:
    """Left the pairs that are right, by ability and stage; right the differences. Raises: ModuleNotFoundError."""
    try:
        from matplotlib.figure import Figure  # not pyplot: it opens windows and keeps global state
    except ImportError as error:
        raise ModuleNotFoundError(f"the picture needs matplotlib: {install('plot')}") from error
    compared = [own for own in report if own["differences"]]
    columns, height = 2 if compared else 1, 1.2 + 0.42 * len(ABILITIES) + 0.2 * len(report)
    figure = Figure(figsize=(5.2 * columns, height), layout="constrained")
    panels = figure.subplots(1, columns, squeeze=False, sharey=True)[0]
    for number, own in enumerate(report):
        found = {name: scores["pair_accuracy"] for name, scores in own["abilities"].items()}
        _dots(panels[0], found, number, len(report), f"{own['stage']}, {own['way']}", filled=own["way"] == AFTER)
    panels[0].axvline(100 * CHANCE["pairs"], color="0.4", linestyle=":", label="guessing")
    panels[0].set_xlim(-3, 103)
    panels[0].set_xlabel("pairs right, %")
    panels[0].set_yticks(range(len(ABILITIES)), ABILITIES)
    panels[0].invert_yaxis()
    if compared:
        for own in compared:
            number = report.index(own)
            _dots(panels[1], own["differences"], number, len(report), "", filled=own["way"] == AFTER)
        panels[1].axvline(0, color="0.4", linestyle=":")
        panels[1].set_xlabel("difference in points to the answers before")
    for axes in panels:
        axes.grid(axis="x", alpha=0.25, linewidth=0.5)
        axes.tick_params(labelsize=9)
    figure.legend(loc="outside lower left", frameon=False, fontsize=9, ncols=2, alignment="left")
    return figure


def _dots(axes, found: dict[str, dict], number: int, series: int, label: str, *, filled: bool) -> None:
    """One series: a mark and an interval for each ability, the series side by side; hollow where it answers at once."""
    colour, marker = LOOKS[number % len(LOOKS)]
    for place, ability in enumerate(ABILITIES):
        value, low, high = (found[ability][name] for name in ("value", "low", "high"))
        y = place + 0.7 * ((number + 0.5) / series - 0.5)
        if low is not None:
            axes.plot([100 * low, 100 * high], [y, y], color=colour, linewidth=1.2)
        look = {"color": colour, "marker": marker, "markersize": 5, "linestyle": "none"}
        look |= {"markerfacecolor": colour if filled else "white", "label": None if place else label}
        axes.plot([100 * value], [y], **look)


def main(argv: Sequence[str] | None = None) -> list[dict]:
    """Returns the report: one object a stage and way of asking."""
    parser = Parser("python examples/abilities.py", description=__doc__, allow_abbrev=False,
                    formatter_class=RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("models", metavar="MODEL", nargs="+", help="MODEL or NAME=MODEL, as --model of infer/score.py")
    add_flags(parser, Config)
    args = vars(parser.parse_args(argv))
    try:
        stages, config = stages_of(args.pop("models")), Config(**args)
    except ValueError as error:
        parser.error(str(error))
    out = Path(config.out)
    refuse_overwriting(out / "abilities.json", config.overwrite)
    rows = load_rows(f"synthetic:{EVERY_ABILITY}*{config.rows * len(ABILITIES)}", seed=config.seed)
    report = jsonable(measure(rows, ask_stages(stages, rows, config), config))
    print(render(report))
    out.mkdir(parents=True, exist_ok=True)
    settings = {"rows": len(rows), "chance": CHANCE, "config": dataclasses.asdict(config)}
    write_json(out / "abilities.json", settings | {"answers": report})
    if config.picture:
        save_figure(figure_of(report), out / "abilities.svg")
    print(f"{len(report)} stages and ways of asking -> {out}")
    return report


if __name__ == "__main__":
    run_main(main, Config)
