"""table.json and table.md of examples/real_judgements.py, from the files of scores: nothing is trained or run here."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path

import torch

from examples.real.measures import difference, human_ceiling, measure, resampled_queries, statistics
from examples.real.plan import DATA_SETS, RowRun
from examples.real.score_files import scored
from taosr1.data.sources import load_rows
from taosr1.runtime.files import read_json
from taosr1.task.grades import GRADES

READ_AS = (
    "ESCI's labels E, S, C, I are read as grades 4, 3, 2, 1 and Chorus's ratings 3 to 0 as grades 4 to 1: an "
    "assumption, not the definition the grades were made for."
)
ABOUT = (
    "Numbers are x 100, but not kappa; of several seeds the mean, and each in parentheses. *Decided*: the probability "
    "of each grade has a weight that was chosen on dev, by one procedure for all; *argmax*: the most probable grade. "
    "Kappa is of the decided grades. AUC Good: grades 4 and 3 against the rest, over all pairs, and the mean within "
    "queries; AUC and nDCG@10 rank by expected grade. ECE: as it is, and at the temperature of dev. All learned from "
    "four fifths of the train queries; the other fifth is dev."
)
Group = tuple[str, str]  # name of a row, data set it was trained on


def table_of(
    runs: Sequence[RowRun], state: dict[str, str], left_out: dict[str, str], files: dict[str, Path], samples: int,
    memory: dict,
) -> dict:  # fmt: skip
    """Everything that is known by now. state: {name of run: "" or why it failed}; memory: what was measured before."""
    groups: dict[Group, list[RowRun]] = {}
    for run in runs:
        if state.get(run.name) == "" and run.scores:
            groups.setdefault((run.row.name, run.trained), []).append(run)
    if "ceiling" not in memory:
        tests = {name: load_rows(str(files[f"{name}_test"])) for name in DATA_SETS if f"{name}_test" in files}
        memory["ceiling"] = {name: human_ceiling(rows, samples) for name, rows in tests.items()}
    rows = []
    for (name, trained), made in groups.items():
        tests = {}
        for test in (test for test in DATA_SETS if f"{test}_test" in files):
            key = (name, trained, test, len(made))
            if key not in memory:
                memory[key] = measure(*_scored(made, test), samples)
            tests[test] = memory[key]
        about = {"name": name, "what": made[0].row.what, "ours": made[0].row.ours, "trained": trained}
        rows.append({**about, "seeds": [run.seed for run in made], **_cost(made, runs), "tests": tests})
    failed = {name: problem for name, problem in state.items() if problem}
    return {
        "read_as": READ_AS,
        "bootstrap": samples,
        "machine": f"{os.cpu_count()} CPU cores, {platform.machine()}, torch {torch.__version__}, one thread a run",
        "commits": sorted({commit for row in rows for commit in row["commits"]}),
        "rows": rows,
        "ceiling": {name: found for name, found in memory["ceiling"].items() if found},
        "differences": [found for test in DATA_SETS for found in _differences(rows, groups, test, samples, memory)],
        "left_out": {**left_out, **failed},
        "to_come": [run.name for run in runs if run.name not in state],
    }


def _scored(made: Sequence[RowRun], test: str) -> tuple[list, list]:
    """Dev and test of every seed. A judge that was trained is decided by dev of its own data set, also elsewhere."""
    source = made[0].trained or test
    return [scored(run.scores[f"{source}_dev"]) for run in made], [scored(run.scores[f"{test}_test"]) for run in made]


def _cost(made: Sequence[RowRun], runs: Sequence[RowRun]) -> dict:
    """Milliseconds a pair and minutes of training (with those of the runs it needs): means over seeds; the commits."""
    by_name = {run.name: run for run in runs}

    def minutes(run: RowRun) -> float:
        own = sum(run.done[str(at)]["seconds"] for at in range(len(run.row.commands)))
        return own / 60 + sum(minutes(by_name[need]) for need in run.needs)

    speeds = []
    for run in made:
        report = run.folder / "cost.json"
        if report.is_file():
            speeds.append(1000 / read_json(report)["cost"]["rows_per_s"])
            continue
        costs = [Path(f"{path}.cost.json") for path in run.scores.values()]
        speeds += [read_json(path)["ms_a_pair"] for path in costs if path.is_file()]
    return {
        "ms_a_pair": sum(speeds) / len(speeds) if speeds else None,
        "train_minutes": sum(map(minutes, made)) / len(made),
        "commits": sorted({about["commit"] for run in made for about in run.done.values()}),
    }


def _differences(rows: list[dict], groups: dict, test: str, samples: int, memory: dict) -> list[dict]:
    """Our best judge (chosen on dev) minus the best rival (chosen on test itself, which favours it), paired.

    Both trained on the data set of the test, or not at all.
    """
    here = [row for row in rows if test in row["tests"] and row["trained"] in (test, "")]
    sides = [[row for row in here if row["ours"] == ours] for ours in (True, False)]
    if not all(sides):
        return []
    found = []
    for name, read in (("macro_f1", lambda entry: entry["decided"]["macro_f1"]), ("auc", lambda entry: entry["auc"])):
        ours = max(sides[0], key=lambda row: row["tests"][test]["dev_macro_f1"])
        rival = max(sides[1], key=lambda row: read(row["tests"][test])["value"] or 0)
        key = (name, test, *((row["name"], row["trained"], len(row["seeds"])) for row in (ours, rival)))
        if key not in memory:
            judged = []
            for row in (ours, rival):
                _, tests = _scored(groups[row["name"], row["trained"]], test)
                weights = row["tests"][test]["weights"]
                judged.append([statistics(one.judged(own))[name] for one, own in zip(tests, weights)])
            memory[key] = difference(*judged, resampled_queries(rival["tests"][test]["queries"], samples))
        found.append({"test": test, "metric": name, "ours": ours["what"], "rival": rival["what"], **memory[key]})
    return found


# ---- Markdown --------------------------------------------------------------------------------------------------------

TITLES = {"esci": "ESCI", "chorus": "Chorus", "": "-"}


def render(table: dict) -> str:
    """The tables as Markdown: a main one per test set, people, grades, kinds of query, what is missing."""
    judged = {test for row in table["rows"] for test in row["tests"]} | table["ceiling"].keys()
    tests = [test for test in DATA_SETS if test in judged]
    lines = ["# Judges on people's judgements", "", *_verdicts(table), "", table["read_as"], ABOUT]
    lines += [f"95 % intervals in brackets: {table['bootstrap']:,} bootstrap resamples of queries. {table['machine']}."]
    lines += [commits_line(table["commits"])]
    for test in tests:
        lines += ["", f"## {TITLES[test]} test", "", *_main_table(table, test)]
    for test in tests:
        lines += ["", f"## {TITLES[test]} test, by grade (F1, decided)", "", *_grades_table(table, test)]
    for test in tests:
        lines += _kinds_table(table, test)
    return "\n".join(lines + unfinished(table)) + "\n"


def unfinished(table: dict) -> list[str]:
    """The end of a study's table: what failed or was left out, and why; what is still to come."""
    lines = []
    if table["left_out"]:
        lines += ["", "## Left out", "", *(f"- {name}: {why}" for name, why in table["left_out"].items())]
    if table["to_come"]:
        lines += ["", f"Still to come: {', '.join(table['to_come'])}."]
    return lines


def commits_line(commits: Sequence[str]) -> str:
    """The commit of a table; several are a warning."""
    if len(commits) > 1:
        return f"**The runs are of several commits: {', '.join(commits)}.**"
    return f"Commit {commits[0]}." if commits else "No run is finished."


def _verdicts(table: dict) -> list[str]:
    """Who wins, in words made from the numbers."""
    rows = []
    for found in table["differences"]:
        sure = found["low"] is not None and (found["low"] > 0 or found["high"] < 0)
        who = "ours" if (found["value"] or 0) > 0 else "the rival"
        name = {"macro_f1": "macro-F1", "auc": "AUC of Good"}[found["metric"]]
        gap = f"{100 * (found['value'] or 0):+.1f}{_interval(found)}"
        end = f"{who} is better" if sure else "too few queries to tell"
        rows.append([TITLES[found["test"]], name, found["ours"], found["rival"], gap, end])
    head = ["test", "metric", "our best judge, chosen on dev", "best rival, chosen on test, which favours it",
            "ours minus the rival", "verdict"]  # fmt: skip
    return markdown(head, rows) if rows else []


def _number(found: dict, scale: float = 100, digits: int = 1, seeds: bool = False) -> str:
    if found["value"] is None:
        return "-"
    each = [f"{value * scale:.{digits}f}" for value in found["seeds"]]
    return f"{found['value'] * scale:.{digits}f}" + (f" ({', '.join(each)})" if seeds and len(each) > 1 else "")


def _interval(found: dict) -> str:
    return "" if found["low"] is None else f" [{100 * found['low']:.1f}, {100 * found['high']:.1f}]"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def _main_table(table: dict, test: str) -> list[str]:
    head = ["judge", "trained on", "macro-F1, decided", "argmax", "kappa", "AUC Good", "within queries", "nDCG@10",
            "ECE", "ms a pair", "training, minutes"]  # fmt: skip
    cells = []
    for row in (row for row in table["rows"] if test in row["tests"]):
        found = row["tests"][test]
        decided, speed = found["decided"], row["ms_a_pair"]
        cells.append([
            row["what"], TITLES[row["trained"]],
            _number(decided["macro_f1"], seeds=True) + _interval(decided["macro_f1"]),
            _number(found["argmax"]["macro_f1"]), _number(decided["quadratic_kappa"], 1, 2),
            _number(found["auc"], seeds=True) + _interval(found["auc"]),
            _number(found["auc_within"]) + _interval(found["auc_within"]), _number(found["ndcg"]),
            f"{100 * found['ece']:.1f} to {100 * found['ece_scaled']:.1f}",
            "-" if speed is None else f"{speed:.2g}" if speed < 10 else f"{speed:.0f}", f"{row['train_minutes']:.1f}",
        ])  # fmt: skip
    for name, found in table["ceiling"].get(test, {}).items():
        macro, auc, within = (found[key] for key in ("macro_f1", "auc", "auc_within"))
        cells.append([
            f"people: {name}", "-", _number(macro) + _interval(macro), "-", _number(found["quadratic_kappa"], 1, 2),
            _number(auc) + _interval(auc), _number(within) + _interval(within), _number(found["ndcg"]), "-", "-", "-",
        ])  # fmt: skip
    return markdown(head, cells)


def _grades_table(table: dict, test: str) -> list[str]:
    head = ["judge", "trained on", *(f"grade {grade}" for grade in GRADES[::-1]), "Good or not: agreement"]
    names = [*(f"f1_{grade}" for grade in GRADES[::-1]), "good_agreement"]
    cells = [
        [row["what"], TITLES[row["trained"]], *(_number(row["tests"][test]["decided"][name]) for name in names)]
        for row in table["rows"]
        if test in row["tests"]
    ]
    for name, found in table["ceiling"].get(test, {}).items():
        cells.append([f"people: {name}", "-", *(_number(found[key]) for key in names)])
    return markdown(head, cells)


def _kinds_table(table: dict, test: str) -> list[str]:
    """Macro-F1 (decided) and AUC of Good by kind of query; none where the rows have at most one kind."""
    rows = [row for row in table["rows"] if test in row["tests"]]
    kinds = rows[0]["tests"][test]["by_kind"] if rows else {}
    if len(kinds) < 2:
        return []
    head = ["judge", "trained on", *(f"{kind} ({found['queries']})" for kind, found in kinds.items())]
    cells = []
    for row in rows:
        own = row["tests"][test]["by_kind"]
        pairs = [f"{_number(own[kind]['macro_f1'])} / {_number(own[kind]['auc'])}" for kind in kinds]
        cells.append([row["what"], TITLES[row["trained"]], *pairs])
    title = f"## {TITLES[test]} test, by kind of query (queries): macro-F1, decided / AUC of Good"
    return ["", title, "", *markdown(head, cells)]
