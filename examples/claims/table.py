"""table.md of examples/reproduce.py, from table.json."""

from __future__ import annotations

from collections.abc import Sequence

from examples.claims.claims import CLAIMS
from examples.claims.measures import CONFIRMED, MEASURES, NULL, REVERSED, RULES
from examples.claims.plan import parse_side
from examples.real.table import commits_line, markdown, unfinished

RULE = (
    "**Verdict**, written down before the runs: the difference in the paper's direction, of the mean over seeds, has a "
    "95 % interval by paired bootstrap over queries. *Confirmed*: it is above 0, and so is every seed. *Reversed*: "
    "below 0, and so is every seed. Else *null*. The correlation's interval is Fisher's, the mean of each seed taken "
    "off."
)
ABOUT = (
    "Numbers are x 100; of several seeds the mean, and each in parentheses. Without a measure they are macro-F1 on the "
    "embedded shop's 4,000 test pairs. Less is better for ECE and wrong labels; a difference is always in the "
    "direction of the claim. The paper's numbers are its own, on its own data."
)


def render(table: dict) -> str:
    """The table of claims, and below it the sections that have something to show."""
    counts = ", ".join(
        f"{sum(row['verdict'] == name for row in table['claims'])} {name}" for name in (CONFIRMED, NULL, REVERSED)
    )
    lines = [
        "# The paper's claims, on the embedded shop", "", RULE, "", ABOUT,
        f"{table['bootstrap']:,} bootstrap resamples of queries. {table['machine']}. {commits_line(table['commits'])}",
        "",
        f"{len(table['claims'])} of {len(CLAIMS)} claims: {counts}.", "", *_claims_table(table["claims"]),
    ]  # fmt: skip
    sections = (_pass_section, _calibration_section, _kinds_section, _policies_section, _curves_section, _cost_section)
    for section in sections:
        lines += section(table)
    return "\n".join(lines + unfinished(table)) + "\n"


def number(found: dict | None, interval: bool = False, seeds: bool = True, sign: str = "") -> str:
    """A share x 100 with its interval, and each seed's."""
    if not found or found["value"] is None:
        return "-"
    text = f"{100 * found['value']:{sign}.1f}"
    if interval and found["low"] is not None:
        text += f" [{100 * found['low']:{sign}.1f}, {100 * found['high']:{sign}.1f}]"
    if seeds and len(found["seeds"]) > 1:
        text += f" ({', '.join(f'{100 * value:{sign}.1f}' for value in found['seeds'])})"
    return text


def _named(side: dict | None) -> str:
    return f"{side['side'].replace('_', ' ')}: {number(side)}" if side else "-"


def _claims_table(claims: Sequence[dict]) -> list[str]:
    head = ["claim", "the paper", "ours", "against", "difference", "verdict", "why", "strongest simple rival",
            "ours minus the rival"]  # fmt: skip
    rows = []
    for row in claims:
        gap = number(row["difference"], interval=True, sign="+")
        if row["better"] is None:
            gap = f"r x 100: {gap}"
        elif MEASURES[parse_side(row["better"]["side"])[0]].lower and row["worse"]["value"]:
            gap += f"; {100 * row['better']['value'] / row['worse']['value'] - 100:+.0f} %"
        rival = row["rival"] or {}
        rows.append([
            row["text"], row["paper"], _named(row["better"]), _named(row["worse"]), gap, f"**{row['verdict']}**",
            row["why"], _named(row["rival"]), number(rival.get("difference"), interval=True, sign="+"),
        ])  # fmt: skip
    return markdown(head, rows)


def _pass_section(table: dict) -> list[str]:
    rows = [[run, *(number(value, seeds=False) for value in values)] for run, values in table["pass_at_n"].items()]
    head = ["run", *(f"pass@{n}" for n in range(1, 6))]
    return ["", "## pass@n, 1,000 test pairs", "", *markdown(head, rows)] if rows else []


def _calibration_section(table: dict) -> list[str]:
    rows = [
        [run, *(number(found[name], interval=True) for name in ("ece", "ece_scaled"))]
        for run, found in table["calibration"].items()
    ]
    head = ["run", "ECE", "at the temperature of dev"]
    return ["", "## Calibration", "", *markdown(head, rows)] if rows else []


def _kinds_section(table: dict) -> list[str]:
    kinds = table["tiers_by_kind"].items()
    rows = [[kind, *(number(found[rule], True, False) for rule in RULES)] for kind, found in kinds]
    title = "## Tiers of the model after all stages, macro-F1 over Good, Mid, Bad, by kind of query"
    return ["", title, "", *markdown(["kind", *RULES], rows)] if rows else []


def _policies_section(table: dict) -> list[str]:
    rows = [
        [run, ", ".join(f"{cv:.2f}" for cv, _ in points), ", ".join(f"{100 * value:.1f}" for _, value in points)]
        for run, points in table["policies"].items()
    ]
    head = ["sampling policy", "CV of the grade shares trained on, by seed", "macro-F1"]
    return ["", "## Sampling policies", "", *markdown(head, rows)] if rows else []


def _curves_section(table: dict) -> list[str]:
    lines = []
    for curve in table["curves"]:
        rows = [
            [what, f"{point['x']:g}", number(point, interval=True), f"{point['minutes']:.1f}"]
            for what, points in curve["lines"].items() for point in points
        ]  # fmt: skip
        if not rows:
            continue
        head = ["what", curve["x"], "macro-F1", "minutes on one core"]
        lines += ["", f"## {curve['title']}", "", *markdown(head, rows), ""]
        for what, fit in curve["fits"].items():
            if fit:
                held, after = fit["held_out"], fit["next"]
                lines.append(
                    f"- {what}: 1 - F1 falls as x^-{fit['b']:.2f}. At {held['x']:g} the smaller ones predict "
                    f"{100 * held['predicted']:.1f}, measured {100 * held['measured']:.1f}; at {after['x']:g} all "
                    f"predict {100 * after['predicted']:.1f}."
                )
    return lines


def _cost_section(table: dict) -> list[str]:
    """What each training took by itself, readings left out."""
    taken: dict[str, list[float]] = {}
    for name, minutes in table["minutes"].items():
        run, _, _ = name.rpartition("-")
        if "." not in run:
            taken.setdefault(run, []).append(minutes)
    rows = [[run, ", ".join(f"{minutes:.1f}" for minutes in found)] for run, found in taken.items()]
    title = "## Minutes of each training on one core, by seed"
    return ["", title, "", *markdown(["run", "minutes"], rows)] if rows else []
