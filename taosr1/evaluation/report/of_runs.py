"""The parts of the page on training runs: curves per stage, what the doctor finds, cost, and the groups of GRPO."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence

from taosr1.evaluation.curves import ASIDE, PANELS, Curve, RunCurves, by_recipe, is_number, read_metrics, settings_of
from taosr1.evaluation.diagnoses import RULES
from taosr1.evaluation.doctor import COMMAND, examine
from taosr1.evaluation.record import read_record
from taosr1.evaluation.report.charts import Series, legend, line_chart, number
from taosr1.evaluation.report.html import Html, Part, data_block, html_of, letter_of, table, tag
from taosr1.runtime.messages import counted
from taosr1.runtime.run_folder import SAMPLES_FILE

WHY = {
    "": "trained on",
    "all right": "all right: every reply has the gold label, so no reply is better than another",
    "all wrong": "all wrong: no reply has the gold label, so no reply is better than another",
    "too easy": "too easy: as many right replies as --gamma, or more",
    "balance": "balance: --balance class keeps equally many groups of every grade",
}
MORE_TEXT = 2000  # characters of a reply that can be looked at
Recipe = list[RunCurves]


def runs_part(runs: Sequence[RunCurves], most_groups: int) -> list[Part]:
    """A part for each stage, one on what is wrong, one on cost, and one for the groups of each run that logged some."""
    stages: dict[str, list[Recipe]] = defaultdict(list)
    for recipe in by_recipe(runs):
        stages[recipe[0].stage].append(recipe)
    parts = [_stage_part(stage, recipes) for stage, recipes in stages.items()]
    if runs:
        parts.append(_findings_part(runs))
        parts.append(Part("Cost", table(*_cost(runs), "What each run took, and what it gave")))
    return parts + [part for number, run in enumerate(runs) if (part := _groups_part(run, number, most_groups))]


# ---- Curves ----------------------------------------------------------------------------------------------------------


def name_of(recipe: Recipe) -> str:
    """The folder, and how many seeds are drawn with it."""
    first = str(recipe[0].folder)
    return first if len(recipe) == 1 else f"{first} and {len(recipe) - 1} more, seeds {_seeds(recipe)}"


def _seeds(recipe: Recipe) -> str:
    return " ".join(str(run.config.get("seed", "?")) for run in recipe)


def over_seeds(name: str, curves: Sequence[Curve], style: int) -> Series:
    """One line: the mean of the curves over the steps that all of them have, and a band from the lowest to the highest.

    Shapes: points (S,), band (S,), empty for a single curve.
    """
    steps = sorted(set.intersection(*map(set, curves)))
    values = [[curve[step] for curve in curves] for step in steps]
    points = [(step, statistics.fmean(found)) for step, found in zip(steps, values)]
    band = [(step, min(found), max(found)) for step, found in zip(steps, values)] if len(curves) > 1 else []
    return Series(name, points, style, band)


def _stage_part(stage: str, recipes: Sequence[Recipe]) -> Part:
    letters = [f"{letter_of(place)}: " * (len(recipes) > 1) for place in range(len(recipes))]
    names = [letter + name_of(recipe) for letter, recipe in zip(letters, recipes)]
    last = max([1, *(step for recipe in recipes for run in recipe for curve in run.curves.values() for step in curve)])
    panels, notes = [], []
    for metric, title in PANELS.items():
        series = []
        for style, (name, recipe) in enumerate(zip(names, recipes)):
            curves = [run.curves[metric] for run in recipe if metric in run.curves]
            line = over_seeds(name, curves, style) if curves else None
            if line and line.points:
                series.append(line)
            elif line:
                notes.append(f"{stage}, {metric}: the seeds of {name} have no step in common, so it is not drawn")
        if series:
            chart = line_chart(f"{stage}: {metric}, {title}", series, "step", x_range=(0, last), whole=True)
            said = [f"{letters[one.style]}{number(one.points[-1][1])} at step {one.points[-1][0]}. " for one in series]
            caption = tag("figcaption", tag("b", title), f" ({metric}). ", *said)
            panels.append(tag("figure", caption, chart))
    if not panels:
        notes.append(f"{stage}: no curve is logged yet")
    key = legend([(name, style) for style, name in enumerate(names)])
    if any(len(recipe) > 1 for recipe in recipes):
        how = tag("p", "A line is the mean over seeds, its band the lowest and the highest seed.", class_="quiet")
        key = html_of(key, how)
    body = html_of(key, tag("div", *panels, class_="charts"), _differing(recipes, names))
    return Part(f"Curves: {stage}", body, tuple(notes))


def _differing(recipes: Sequence[Recipe], names: Sequence[str]) -> Html:
    """The settings in which runs of one stage differ, as they are in their config.json; nothing for one recipe."""
    configs = [recipe[0].config for recipe in recipes]
    keys = [key for key in dict.fromkeys(key for config in configs for key in config)
            if key not in ASIDE and len({str(config.get(key)) for config in configs}) > 1]  # fmt: skip
    if len(configs) < 2 or not keys:
        return Html("")
    rows = [[key, *(tag("bdi", config.get(key, "-")) for config in configs)] for key in keys]
    return table(["setting", *(tag("bdi", name) for name in names)], rows, "In which settings they differ")


# ---- Findings --------------------------------------------------------------------------------------------------------


def _findings_part(runs: Sequence[RunCurves]) -> Part:
    """What `taosr1.evaluation.doctor` finds in each run, and its notes on what looks wrong and is not."""
    found, left_out = [], []
    for run in runs:
        try:
            record = read_record(run.folder)
        except ValueError as error:  # settings that cannot be read, or of no training script
            left_out.append(f"no findings: {error}")
            continue
        findings, notes = examine(record)
        head = f": {len(findings) or 'nothing'} found by {len(RULES[record.stage])} rules"
        listed = tag("ol", *(tag("li", one) for one in findings)) if findings else ""
        found += [tag("h3", tag("bdi", run.folder), head), listed,
                  tag("ul", *(tag("li", note) for note in notes), class_="quiet")]  # fmt: skip
    said = tag("p", "By ", tag("code", COMMAND), "; examples/guide/doctor.md explains each.", class_="quiet")
    return Part("What is wrong", html_of(said, tag("div", *found, class_="findings")), tuple(left_out))


# ---- Cost ------------------------------------------------------------------------------------------------------------


def _cost(runs: Sequence[RunCurves]) -> tuple[list[str], list[list[object]]]:
    """What was logged of it: seconds of the steps alone, without evaluations and checkpoints."""
    header = ["run", "seed, commit, machine", "steps", "seconds", "s a step", "decoded tokens", "tokens/s",
              "best dev macro-F1", "test macro-F1 of the start", "of the result"]  # fmt: skip
    rows = []
    for run in runs:
        times, decoded = run.curves.get("time_s", {}), run.curves.get("decoded_tok", {})
        seconds, tokens = sum(times.values()), sum(decoded.values())
        test = settings_of(run.folder / "test.json")  # a run without --test has none
        best = max(run.curves.get("dev_macro_f1", {}).values(), default=None)
        rows.append([
            tag("bdi", run.folder), run.origin or "-", max(times, default=0), f"{seconds:,.0f}",
            f"{statistics.median(times.values()):.2f}" if times else "-", f"{tokens:,.0f}" if decoded else "-",
            f"{tokens / seconds:,.0f}" if decoded and seconds else "-",
            "-" if best is None else f"{100 * best:.2f}", _tested(test, "start"), _tested(test, "result"),
        ])  # fmt: skip
    return header, rows


def _tested(test: dict, which: str) -> str:
    value, low, high = (test.get(f"test_{part}_{which}") for part in ("macro_f1", "low", "high"))
    if not is_number(value):
        return "-"
    interval = f" [{100 * low:.2f}, {100 * high:.2f}]" if is_number(low) and is_number(high) else ""
    return f"{100 * value:.2f}{interval}"


# ---- Groups ----------------------------------------------------------------------------------------------------------


def _groups_part(run: RunCurves, place: int, most: int) -> Part | None:
    """The groups of a GRPO run, to go through step by step; None for other runs."""
    path = run.folder / SAMPLES_FILE
    if not path.is_file():
        return None if run.stage != "GRPO" else Part(
            f"Groups of {run.folder}", tag("p", "None were logged."), (f"{path}: is missing, so there are no groups",)
        )  # fmt: skip
    rows, notes = read_metrics(path)
    read, rows = len(rows), [row for row in rows if _is_group(row)]
    if read > len(rows):
        notes.append(f"{path}: {counted(read - len(rows), 'line')} left out: not a group of replies as GRPO logs it")
    if not rows:
        return Part(f"Groups of {run.folder}", tag("p", "None can be read."), tuple(notes)) if notes else None
    steps: dict[int, list[dict]] = defaultdict(list)
    for row in rows:
        steps[row["step"]].append(row)
    each = max(1, most // len(steps)) if most and len(rows) > most else max(map(len, steps.values()))
    shown = [group_record(row) for step in sorted(steps) for row in steps[step][:each]]
    if len(shown) < len(rows):
        notes.append(
            f"{path}: {len(shown)} of {len(rows)} groups can be looked at, the first {each} of each step; "
            "--groups 0 takes all (a larger file)"
        )
    name = f"groups-{place}"
    body = html_of(
        tag("figure", tag("figcaption", tag("b", "Why groups were trained on or dropped"),
                          f" (share of the {len(rows):,} groups that were logged)."),
            line_chart(f"{run.folder}: outcomes of groups", _outcomes(steps), "step", x_range=(0, max(steps)),
                       y_range=(0, 1), whole=True),
            legend([(series.name, series.style) for series in _outcomes(steps)]), class_="one"),
        tag("div", class_="groups", data_source=name),
        data_block(name, {"why": WHY, "groups": shown}),
    )  # fmt: skip
    return Part(f"Groups of {run.folder}", body, tuple(notes))


def _is_group(row: dict) -> bool:
    """Whether a line of samples.jsonl has the texts and the lists that `group_record` reads."""
    columns = [row.get(name, []) for name in ("replies", "labels", "probs", "rewards", "advantages", "sources")]
    lists = all(isinstance(column, list) and not any(isinstance(one, (list, dict)) for one in column)
                for column in columns if column is not None)  # fmt: skip
    return lists and isinstance(row.get("replies"), list) and isinstance(row.get("query"), str)


def _outcomes(steps: dict[int, list[dict]]) -> list[Series]:
    """The share of each step's groups that were trained on, and of each reason for which they were dropped."""
    counts = {step: Counter(str(row.get("dropped", "")) for row in rows) for step, rows in sorted(steps.items())}
    reasons = sorted({reason for found in counts.values() for reason in found})
    return [
        Series(reason or "trained on", [(step, found[reason] / found.total()) for step, found in counts.items()], style)
        for style, reason in enumerate(reasons)
    ]


def group_record(row: dict) -> dict:
    """A line of samples.jsonl for the page: equal replies once, with how often, so that the file stays small."""
    replies, parts = row["replies"], row.get("reward_parts")
    labels, rewards, advantages, sources = (
        row.get(name) or [] for name in ("labels", "rewards", "advantages", "sources")
    )
    if len(advantages) != len(replies):
        advantages = []
    times: Counter = Counter()
    found: dict[tuple, dict] = {}
    for place, text in enumerate(replies):
        text = str(text)[:MORE_TEXT]
        label, reward, advantage, source = (_at(column, place) for column in (labels, rewards, advantages, sources))
        key = (text, label, reward, advantage, source)
        times[key] += 1
        found[key] = {"text": text, "label": label, "reward": reward, "advantage": advantage, "source": source,
                      "parts": _at(parts, place) or {}}  # fmt: skip
    kept = {name: row.get(name) for name in ("step", "query", "title", "gold", "right", "dropped")}
    if not replies:  # its first tokens alone were drawn
        kept["labels"] = labels
    counted = [each | {"times": times[key]} for key, each in found.items()]
    return kept | {"probs": row.get("probs") or [], "size": len(labels), "replies": counted}


def _at(column: object, place: int) -> object:
    return column[place] if isinstance(column, list) and place < len(column) else None
