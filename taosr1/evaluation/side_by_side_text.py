"""The comparison of two judges as a text for a terminal. Texts of rows and files are made safe to print."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from taosr1.data.queries import plain
from taosr1.evaluation.pairing import Paired
from taosr1.evaluation.side_by_side import CHANGES, METRICS, tier_of
from taosr1.evaluation.summary import scores_to_rank_by
from taosr1.runtime.bad_rows import shorten
from taosr1.runtime.messages import aligned, counted, visible
from taosr1.task.grades import TIERS, grade_name

_NO_SHARES = ("quadratic_kappa",)  # shown as they are, not times 100
_MEANS = {
    "broken": "A right, B wrong",
    "farther": "both wrong, B farther from gold",
    "other": "another grade, as far from gold or without gold",
    "tier": "same grade, another tier",
    "closer": "both wrong, B closer to gold",
    "fixed": "A wrong, B right",
}


def render_comparison(report: dict, show: int = 20) -> str:
    """The result of `side_by_side.compare` after `jsonable`, with the first `show` changed pairs."""
    sections = [_head(report)]
    if report["metrics"]:
        sections += [_metrics_table(report), _sign_table(report), _kinds_table(report), _by_grade_table(report)]
    sections += [_agreement_text(report), _tier_table(report["tier_moves"]), _changed_text(report, show)]
    return "\n\n".join(sections) + "\n"


def _head(report: dict) -> str:
    settings, sides = report["settings"], [(letter, report[letter.lower()]) for letter in "AB"]
    lines = [f"{letter}: {visible(side['name'])} (ranked by {side['ranked_by']})" for letter, side in sides]
    text = f"{counted(report['rows'], 'pair')}, {counted(report['queries'], 'query')}"
    if report["graded"]:
        text += f", {report['graded']:,} with gold grades. F1 and shares x 100"
        if settings["samples"]:
            text += f" [95 % intervals: {settings['samples']:,} paired bootstrap resamples of queries]"
    lines.append(text + ".")
    return "\n".join([*lines, *(f"note: {note}" for note in report["notes"])])


def _number(value: float | None, scale: float = 100.0, digits: int = 2, sign: str = "") -> str:
    return "-" if value is None else f"{value * scale:{sign}.{digits}f}"


def _row_of(name: str, found: dict) -> list[str]:
    """A, B, B - A and its interval."""
    scale, digits = (1.0, 3) if name in _NO_SHARES else (100.0, 2)
    change = found["difference"]
    low, high = (_number(change[end], scale, digits, "+") for end in ("low", "high"))
    sides = [_number(found[side], scale, digits) for side in "ab"]
    return [*sides, _number(change["value"], scale, digits, "+"), "" if low == "-" else f"[{low}, {high}]"]


_CHANGE_COLUMNS = ["A", "B", "B - A", "95 % interval"]


def _metrics_table(report: dict) -> str:
    k = report["settings"]["k"]
    rows = [[METRICS[name].format(k=k), *_row_of(name, found)] for name, found in report["metrics"].items()]
    return aligned(["metric", *_CHANGE_COLUMNS], rows)


def _sign_table(report: dict) -> str:
    rows = [
        [f"queries by {name}", *(f"{test[side]:,}" for side in ("better", "same", "worse")), f"{test['p']:.3g}"]
        for name, test in report["sign_tests"].items()
    ]
    gsb = report["gsb"]["gsb"]
    value, low, high = (_number(gsb[end], 100.0, 2, "+") for end in ("value", "low", "high"))
    interval = "" if low == "-" else f" [{low}, {high}]"
    line = f"GSB@{report['gsb']['k']} (Good - Bad lists, of all queries): {value}{interval}"
    return aligned(["B against A", "better", "same", "worse", "sign test p"], rows) + "\n" + line


def _kinds_table(report: dict) -> str:
    rows = [
        [_cell(kind, 30), *(f"{found[name]:,}" for name in ("rows", "queries", "fixed", "broken"))]
        + _row_of("macro_f1", found["macro_f1"])
        for kind, found in report["by_kind"].items()
    ]
    header = ["query kind, macro-F1", "pairs", "queries", "fixed", "broken", *_CHANGE_COLUMNS]
    return aligned(header, rows)


def _by_grade_table(report: dict) -> str:
    rows = [
        [grade_name(int(grade)), *(f"{found[name]:,}" for name in ("rows", "fixed", "broken"))]
        + _row_of("f1", found["f1"])
        for grade, found in report["by_grade"].items()
    ]
    return aligned(["gold grade, F1", "pairs", "fixed", "broken", *_CHANGE_COLUMNS], rows)


def _agreement_text(report: dict) -> str:
    found = report["agreement"]
    rank = found["rank_correlation"]
    queries = counted(rank["queries"], "query")
    order = f"rank correlation in a query (tau-b) {_number(rank['value'], 1.0, 3)} over {queries}"
    same = f"same grade {_number(found['same_grade'])}, same tier {_number(found['same_tier'])}"
    return f"A and B agree: {same}, quadratic kappa {_number(found['kappa'], 1.0, 3)}; {order}"


def _tier_table(moves: Sequence[Sequence[int]]) -> str:
    rows = [[f"A {tier}", *(f"{count:,}" for count in row)] for tier, row in zip(TIERS, moves)]
    return aligned(["served tiers", *(f"B {tier}" for tier in TIERS)], rows)


def _cell(text: str, width: int) -> str:
    return shorten(visible(text), width)


def _changed_text(report: dict, show: int) -> str:
    counts, changed = report["changes"], report["changed"]
    if not changed:
        return "no pair changed its grade or tier"
    kinds = ", ".join(f"{counts[kind]:,} {kind} ({_MEANS[kind]})" for kind in CHANGES if counts[kind])
    head = f"{counted(len(changed), 'pair')} changed: {kinds}"
    if not show:
        return head
    rows = [
        [pair["change"], _cell(pair["query"], 40), _cell(pair["title"], 50), str(pair["gold"] or "-"),
         _answer(pair["a_grade"], pair["a_tier"]), _answer(pair["b_grade"], pair["b_tier"])]
        for pair in changed[:show]
    ]  # fmt: skip
    more = f"\n... and {len(changed) - show:,} more (--show, or all with --out)" if len(changed) > show else ""
    return f"{head}\n\n" + aligned(["change", "query", "product", "gold", "A", "B"], rows, left=3) + more


def _answer(grade: int | None, tier: str | None) -> str:
    return f"{grade or '?'} {tier or '-'}"


# ---- lists as each judge orders them ---------------------------------------------------------------------------------


def ranked_lists(paired: Paired, query: str) -> list[dict]:
    """The list of a query, given by its text or its id, as each judge orders it; several where several ids have it.

    Returns: a list of {query, query_id, judges: [{name, ranked_by, items}]}, an item being {rank, title, item_id,
        grade, tier, score, gold}; of equal scores the row that comes first in A comes first.
    Raises: ValueError for a query that no pair has, with the nearest ones.
    """
    asked = plain(query)
    places: dict[str, list[int]] = {}
    for place, row in enumerate(paired.rows):
        if asked in (plain(row.query), plain(row.query_id)):
            places.setdefault(paired.queries[place], []).append(place)
    if not places:
        raise ValueError(f"--rank {shorten(repr(query))}: no pair has this query or query_id{_nearest(asked, paired)}")
    lists = []
    for rows in places.values():
        judges = [_ordered(paired, side, rows) for side in range(len(paired.names))]
        first = paired.rows[rows[0]]
        lists.append({"query": first.query, "query_id": first.query_id, "judges": judges})
    return lists


def _nearest(asked: str, paired: Paired) -> str:
    words = set(asked.split())
    texts = dict.fromkeys(row.query for row in paired.rows)
    shared = sorted(texts, key=lambda text: -len(words & set(plain(text).split())))[:3]
    return f"; such as {', '.join(shorten(repr(text)) for text in shared)}"


def _ordered(paired: Paired, side: int, rows: Sequence[int]) -> dict:
    ranked_by, scores = scores_to_rank_by(paired.predictions[side])
    order = np.array(rows)[np.argsort(-scores[rows], kind="stable")].tolist()
    items = []
    for rank, place in enumerate(order, 1):
        row, prediction = paired.rows[place], paired.predictions[side][place]
        answer = {"grade": prediction.grade, "tier": tier_of(prediction), "score": round(float(scores[place]), 6)}
        items.append({"rank": rank, "title": row.title, "item_id": row.item_id, **answer, "gold": row.grade})
    return {"name": paired.names[side], "ranked_by": ranked_by, "items": items}


def render_lists(lists: Sequence[dict], k: int, width: int) -> str:
    """The first k items of every list, a column for each judge: its grade, the gold grade where known, the title."""
    texts = []
    for found in lists:
        judges = found["judges"]
        room = max(16, (width - 4) // len(judges) - 2)
        head = [f"{chr(ord('A') + place)}: {_cell(judge['name'], room - 3)}" for place, judge in enumerate(judges)]
        rows = [
            [str(rank), *(_item(judge["items"][rank - 1], room) for judge in judges)]
            for rank in range(1, min(k, len(judges[0]["items"])) + 1)
        ]
        name = f" (query_id {visible(found['query_id'])})" if found["query_id"] else ""
        title = f"{visible(found['query'])}{name}, {counted(len(judges[0]['items']), 'product')}"
        texts.append(title + "\n" + aligned(["", *head], rows, left=1 + len(judges)))
    return "\n\n".join([*texts, "Each item: the judge's grade, (gold), title."]) + "\n"


def _item(item: dict, room: int) -> str:
    gold = f" ({item['gold']})" if item["gold"] else ""
    return _cell(f"{item['grade'] or '?'}{gold} {item['title']}", room)
