"""The parts of the page on score files: metrics, grades, kinds, confusion, calibration, CumPT, and the rows."""

from __future__ import annotations

from collections.abc import Sequence

from taosr1.evaluation.metrics import ratio
from taosr1.evaluation.pairing import Paired
from taosr1.evaluation.report.charts import Series, dot_chart, legend, line_chart
from taosr1.evaluation.report.html import Html, Part, data_block, html_of, table, tag
from taosr1.evaluation.report.measures import SWEPT, Measured, differences, paired
from taosr1.evaluation.summary import KIND_METRICS, TITLES, Prediction, interval_text
from taosr1.task.grades import GRADES, TIERS, grade_name
from taosr1.task.judgement import Judgement
from taosr1.task.prompt import ITEM_FIELDS

COMPARED = ("macro_f1", "accuracy", "good_f1", "quadratic_kappa", "signed_bias")
MORE_TEXT = 600  # characters of a field or of reasons that can be looked at
SHADES = 6  # of a cell of the confusion matrix


def scores_part(files: Sequence[Measured], most_rows: int, bootstrap: int, seed: int) -> list[Part]:
    """The parts that these files have something for, in the order of the page."""
    if not files:
        return []
    measured = [each for each in files if each.summary]
    together = paired(files) if len(files) > 1 else ""
    parts = [_given(files)]
    if measured:
        parts = [_overall(measured, files, together, bootstrap, seed), *parts]
        parts += [_grades(measured), *_kinds(measured), _confusion(measured)]
    if any(each.calibration for each in files):
        parts.append(Part("Calibration", _columns(_reliability, files)))
    if any(each.sweep for each in files):
        parts.append(Part("Tiers: CumPT over beta", _columns(_sweep, files)))
    return parts + _rows(files, together, most_rows)


def _columns(draw, files: Sequence[Measured]) -> Html:
    """One column a file, where it has something to show; its name stands above it."""
    found = [(each, draw(each)) for each in files]
    shown = [tag("div", tag("h3", tag("bdi", each.name)), inside) for each, inside in found if inside]
    return tag("div", *shown, class_="columns")


def _named(files: Sequence[Measured]) -> list[Html]:
    return [tag("bdi", each.name) for each in files]


# ---- Metrics, grades, kinds ------------------------------------------------------------------------------------------


def _overall(measured: Sequence[Measured], files, together, bootstrap: int, seed: int) -> Part:
    sizes = [f"{each.summary['rows']:,} pairs, {each.summary['queries']:,} queries" for each in measured]
    rows: list[list[object]] = [["measured on", *sizes]]
    rows += [[title, *(interval_text(name, each.summary["metrics"][name]) for each in measured)]
             for name, title in TITLES.items()]  # fmt: skip
    header, notes = ["metric", *_named(measured)], []
    if len(files) == 2 and len(measured) == 2 and isinstance(together, Paired):
        found = differences(together, COMPARED, bootstrap, seed)
        header.append("second - first, paired")
        rows = [[*row, "" if place == 0 else interval_text(name, found[name]) if name in found else "-"]
                for place, (name, row) in enumerate(zip(["", *TITLES], rows))]  # fmt: skip
    elif len(measured) > 1:
        why = together if isinstance(together, str) else "they are of two files, of any two of these"
        notes.append(f"no paired differences: {why}")
    how = f"In brackets: 95 % intervals, {bootstrap:,} bootstrap resamples of queries, seed {seed}."
    body = html_of(table(header, rows, "Metrics, times 100"), tag("p", how, class_="quiet"))
    return Part("Metrics", body, tuple(notes))


def _dots(
    names: Sequence[str], of_file: Sequence[Sequence[dict]], files: Sequence[Measured], title: str, what: str
) -> Html:  # fmt: skip
    chart = dot_chart(title, names, of_file, what, (0, 1))
    key = legend([(each.name, style) for style, each in enumerate(files)])
    return tag("figure", tag("figcaption", tag("b", title)), chart, key)


def _grades(files: Sequence[Measured]) -> Part:
    """F1 of each grade, best first, with its interval; precision, recall and pairs in the table."""
    best_first, tables = GRADES[::-1], []
    marks = [[_f1_of(each.summary["grades"][str(grade)]) for grade in best_first] for each in files]
    for each, column in zip(files, marks):
        rows = []
        for grade, f1 in zip(best_first, column):
            found = each.summary["grades"][str(grade)]
            shares = [_share(found[name]) for name in ("precision", "recall")]
            counts = [f"{found[name]:,}" for name in ("gold", "predicted")]
            rows.append([grade_name(grade), interval_text("f1", f1), *shares, *counts])
        header = ["grade", "F1", "precision", "recall", "gold pairs", "predicted"]
        tables.append(table(header, rows, f"Per grade, {each.name}"))
    names = [grade_name(grade) for grade in best_first]
    chart = _dots(names, marks, files, "F1 of each grade", "F1, with 95 % interval")
    return Part("Per grade", html_of(tag("div", chart, class_="charts"), *tables))


def _f1_of(grade: dict) -> dict:
    return {"value": grade["f1"], "low": grade["f1_low"], "high": grade["f1_high"]}


def _kinds(files: Sequence[Measured]) -> list[Part]:
    kinds = sorted({kind for each in files for kind in each.summary["by_kind"]} - {"(none)"})
    if not kinds:
        return []
    if any("(none)" in each.summary["by_kind"] for each in files):
        kinds.append("(none)")
    nothing, charts, tables = {"value": None, "low": None, "high": None}, [], []
    for name in ("macro_f1", "tier_accuracy"):
        marks = [[each.summary["by_kind"].get(kind, {}).get(name, nothing) for kind in kinds] for each in files]
        if any(found["value"] is not None for column in marks for found in column):
            title = TITLES[name]
            charts.append(_dots(kinds, marks, files, f"{title} of each kind of query", f"{title}, 95 % interval"))
    for each in files:
        rows = [[tag("bdi", kind), f"{found['rows']:,}", f"{found['queries']:,}",
                 *(interval_text(name, found[name]) for name in KIND_METRICS)]
                for kind, found in each.summary["by_kind"].items()]  # fmt: skip
        header = ["kind of query", "pairs", "queries", *(TITLES[name] for name in KIND_METRICS)]
        tables.append(table(header, rows, f"Per kind of query, {each.name}"))
    return [Part("Per kind of query", html_of(tag("div", *charts, class_="charts"), *tables))]


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


# ---- Counts ----------------------------------------------------------------------------------------------------------


def _given(files: Sequence[Measured]) -> Part:
    """How often each grade and tier was given, of all rows, with gold or without."""
    rows = []
    for grade in (*GRADES[::-1], None):
        counts = [sum(found.grade == grade for found in each.predictions) for each in files]
        if grade or any(counts):
            rows.append([grade_name(grade) if grade else "no grade could be read", *map(_counted, counts, files)])
    for tier in TIERS:
        counts = [sum(found.tier == tier for found in each.predictions) for each in files]
        rows.append([f"tier {tier}", *map(_counted, counts, files)])
    return Part("What was given", table(["given", *_named(files)], rows, "How often each grade and tier was given"))


def _counted(count: int, each: Measured) -> str:
    return f"{count:,} ({100 * count / len(each.rows):.1f} %)"


def _confusion(files: Sequence[Measured]) -> Part:
    def draw(each: Measured) -> Html:
        best_first, rows = GRADES[::-1], []
        unread = any(row[-1] for row in each.summary["confusion"])
        for gold in best_first:
            counts = each.summary["confusion"][gold - 1]
            cells = [(grade, counts[grade - 1]) for grade in best_first] + ([(None, counts[-1])] if unread else [])
            shares = [(grade, count, float(ratio(count, sum(counts)))) for grade, count in cells]
            rows.append([grade_name(gold), *(_cell(count, share, grade == gold) for grade, count, share in shares)])
        header = ["gold, down", *(f"as {grade}" for grade in best_first), *(["unread"] if unread else [])]
        return table(header, rows, "Pairs, and their share of the gold grade's", class_="confusion")

    return Part("Confusion matrix", _columns(draw, files))


def _cell(count: int, share: float, right: bool) -> Html:
    shade = 0 if share != share else min(SHADES - 1, int(share * SHADES))
    below = "" if share != share else tag("small", f"{100 * share:.0f} %")
    return tag("td", f"{count:,} ", below, class_=f"shade-{shade}{' right' if right else ''}")


# ---- Probabilities ---------------------------------------------------------------------------------------------------


def _reliability(each: Measured) -> Html:
    found = each.calibration
    if not found:
        return Html("")
    series = [Series("as stated", [(0, 0), (1, 1)], None)]
    for style, when in enumerate(("before", "after")):
        bins = found[when]["bins"]
        says = [f"{when}: stated {b['confidence']:.3f}, right {b['accuracy']:.3f}, {b['rows']:,} pairs" for b in bins]
        most = max(b["rows"] for b in bins)
        sizes = [1.5 + 5 * (b["rows"] / most) ** 0.5 for b in bins]
        points = [(b["confidence"], b["accuracy"]) for b in bins]
        series.append(Series(when, points, style, says=says, sizes=sizes))
    title = f"{each.name}: share of right grades over the probability of the most probable grade"
    chart = line_chart(title, series, "stated probability of the grade given", x_range=(0, 1), y_range=(0, 1))
    rows = [[when, f"{100 * found[when]['ece']:.2f}", f"{found[when]['brier']:.4f}", f"{found[when]['nll']:.4f}"]
            for when in ("before", "after")]  # fmt: skip
    bins = [
        [f"{when}, {b['low']:.2f} - {b['high']:.2f}", f"{b['rows']:,}", _share(b["confidence"]), _share(b["accuracy"])]
        for when in ("before", "after")
        for b in found[when]["bins"]
    ]
    one, two = found["temperatures"]
    how = (
        "Before: as in the file, where a temperature that is stored beside the weights has scaled them already. "
        f"After: divided by a temperature that was fitted on the other half of the queries ({one:.3g} and {two:.3g})."
    )
    return html_of(
        tag("figure", tag("figcaption", tag("b", "Share of right grades, over stated probability. "),
            "The larger a mark, the more pairs it stands for."), chart,
            legend([("before", 0), ("after", 1), ("as stated", None)])),
        table(["temperature", "ECE", "Brier", "NLL"], rows, "Errors of the probabilities"),
        tag("p", how, class_="quiet"),
        tag("details", tag("summary", "The bins"),
            table(["bin", "pairs", "stated", "right"], bins, "Bins of stated probability")),
    )  # fmt: skip


def _sweep(each: Measured) -> Html:
    if not each.sweep:
        return Html("")
    series = [Series(TITLES[name], [(row["beta"], row[name]) for row in each.sweep], style)
              for style, name in enumerate(SWEPT)]  # fmt: skip
    level = each.argmax["tier_macro_f1"]
    series.append(Series("tier macro-F1 of argmax", [(0, level), (1, level)], None))
    best = max(each.sweep, key=lambda row: row["tier_macro_f1"])
    marked, says = [], []
    if each.served:
        low, high = each.served
        span = f"{low:.4f}" if f"{low:.4f}" == f"{high:.4f}" else f"between {low:.4f} and {high:.4f}"
        marked = [(low, high, f"served: beta {span}")]
        says.append(f"Served (the grey bar): beta {span}, found from the tiers in the file.")
        served = each.summary["tiering"]["cumpt"]["tier_macro_f1"]
        says.append(f"Its tier macro-F1 is {interval_text('tier_macro_f1', served)}, argmax's is {_share(level)}.")
    top = _share(best["tier_macro_f1"])
    says.append(f"In hindsight {best['beta']:.2f} is best on these rows, with {top}: choose beta on others.")
    title = f"{each.name}: quality of CumPT's tiers over beta"
    chart = line_chart(title, series, "beta", x_range=(0, 1), y_range=(0, 1), marked=marked)
    rows = [[f"{row['beta']:.2f}", *(_share(row[name]) for name in SWEPT)] for row in each.sweep[4::5]]
    return html_of(
        tag("figure", tag("figcaption", tag("b", "Tiers over beta. "), " ".join(says)), chart,
            legend([(one.name, one.style) for one in series])),
        tag("details", tag("summary", "The numbers"),
            table(["beta", *(TITLES[name] for name in SWEPT)], rows, "Tiers over beta")),
    )  # fmt: skip


# ---- Rows ------------------------------------------------------------------------------------------------------------


Row = tuple[Judgement, Sequence[Prediction]]  # a pair, and what each judge says of it


def _rows(files: Sequence[Measured], together: Paired | str, most: int) -> list[Part]:
    """One table of all files where they hold the same pairs, else one of each."""
    if isinstance(together, Paired):
        return [_browser("rows", together.names, list(zip(together.rows, zip(*together.predictions))), most)]
    parts = []
    for place, each in enumerate(files):
        rows = [(row, [found]) for row, found in zip(each.rows, each.predictions)]
        parts.append(_browser(f"rows-{place}", [each.name], rows, most, f" of {each.name}" * (len(files) > 1)))
    return parts


def _browser(name: str, judges: Sequence[str], rows: Sequence[Row], most: int, of: str = "") -> Part:
    """A table that the page's script fills; where there are too many rows, the wrong ones come first."""
    notes = ()
    shown = rows
    if most and len(rows) > most:
        shown = sorted(rows, key=lambda row: not _is_wrong(row))[:most]
        sizes = f"{len(shown):,} of {len(rows):,} rows{of}"
        notes = (f"{sizes} can be looked at, the wrong ones first; --rows 0 takes all (a larger file)",)
    names = {grade: grade_name(grade) for grade in GRADES}
    data = {"judges": list(judges), "grades": names, "rows": [_row_record(row) for row in shown]}
    body = html_of(tag("div", class_="rows", data_source=name), data_block(name, data))
    return Part(f"Rows{of}", body, notes)


def _is_wrong(row: Row) -> bool:
    gold, said = row[0].grade, row[1]
    return gold is not None and any(found.grade != gold for found in said)


def _row_record(row: Row) -> dict:
    pair, said = row
    more = {field: _cut(getattr(pair, field)) for field in ITEM_FIELDS[1:] if getattr(pair, field)}
    said = [
        {"grade": p.grade, "tier": p.tier, "probs": p.probs and [round(value, 4) for value in p.probs],
         "mass": p.label_mass, "decision": p.decision, "implied": p.implied, "reply": _cut(p.reply or "")}
        for p in said
    ]  # fmt: skip
    said = [{key: value for key, value in one.items() if value not in (None, "")} for one in said]
    found = {"q": _cut(pair.query), "t": _cut(pair.title), "kind": pair.query_kind, "gold": pair.grade}
    found |= {"outside": _cut(str(pair.extra.get("outside") or "")), "more": more, "said": said}
    return {key: value for key, value in found.items() if value not in (None, "", {})}


def _cut(text: str) -> str:
    return text if len(text) <= MORE_TEXT else text[:MORE_TEXT] + "…"
