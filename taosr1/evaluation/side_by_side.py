"""Two judges side by side: what changes from the answers of A to those of B, on the same pairs, as a dict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from taosr1.evaluation import metrics, ranking
from taosr1.evaluation.paired import (
    SAME,
    Statistic,
    auc_statistic,
    count_statistics,
    mean_interval,
    mean_statistic,
    paired_differences,
    rank_correlation_by_query,
    sign_test,
)
from taosr1.evaluation.pairing import Paired
from taosr1.evaluation.summary import Prediction, scores_to_rank_by
from taosr1.runtime.messages import counted
from taosr1.task.grades import GOOD_TIER, GRADES, GRADES_OF_TIER, TIER_OF_GRADE, TIERS

# Measured against gold, in the order of the table; `--metric` names one of them.
METRICS = {
    "macro_f1": "macro-F1",
    "good_f1": f"{GOOD_TIER} F1",
    "accuracy": "accuracy",
    "quadratic_kappa": "quadratic kappa",
    "tier_macro_f1": "macro-F1 of the served tiers",
    "auc": f"AUC, {GOOD_TIER} against the rest",
    "ndcg": "nDCG@{k}",
    "item_goodrate": "item goodrate@{k}",
    "query_goodrate": "query goodrate@{k}",
}
_OF_GRADES = ("macro_f1", "good_f1", "accuracy", "quadratic_kappa")
CHANGES = ("broken", "farther", "other", "tier", "closer", "fixed")  # the order in which changed pairs are listed


@dataclass(frozen=True)
class Settings:
    """k: how many items of a list are looked at. good_page: the share of Good items from which a page is a good one."""

    k: int = 10
    good_page: float = 0.5
    samples: int = 1000
    seed: int = 0


@dataclass(frozen=True)
class _Answers:
    """One judge's answers on N rows: gold (N,), grades (N,) with 0 unparsable, a grade of each served tier (N,) with 0
    where there is none, scores to rank by (N,), and the names of the queries (N,)."""

    gold: np.ndarray
    grades: np.ndarray
    tiers: np.ndarray
    score: np.ndarray
    names: np.ndarray

    def at(self, rows: np.ndarray) -> _Answers:
        return _Answers(*(column[rows] for column in vars(self).values()))

    def counts(self, of: str = "grades") -> np.ndarray:
        return metrics.confusion_matrix(self.gold, getattr(self, of))


def compare(paired: Paired, settings: Settings) -> dict:
    """What changes from the first to the second of two sides; see `taosr1/evaluation/side_by_side_text.py` for a table.

    Without any gold grade `metrics`, `sign_tests`, `gsb`, `by_kind` and `by_grade` are None; where some pairs have one,
    these are of the `graded` pairs. Undefined numbers are None after `summary.jsonable`.
    Returns: `rows`, `queries`, `graded`, `unpaired`, `notes`, `agreement`, `tier_moves` (3 x 3, tiers of A by tiers of
        B, best first), `changes` (how many of each kind), `changed` (every changed pair), and those above.
    """
    names = np.array(paired.queries, dtype=str)
    sides, ranked_by = [], []
    for predictions in paired.predictions:
        scored_by, score = scores_to_rank_by(predictions)
        ranked_by.append(scored_by)
        gold = np.array([row.grade or 0 for row in paired.rows])
        sides.append(_Answers(gold, _grades(predictions), _tier_grades(predictions), score, names))
    graded = np.flatnonzero(sides[0].gold)
    changed = changed_pairs(paired)
    report = {
        "a": {"name": paired.names[0], "ranked_by": ranked_by[0]},
        "b": {"name": paired.names[1], "ranked_by": ranked_by[1]},
        "rows": len(names),
        "queries": len(set(paired.queries)),
        "graded": len(graded),
        "unpaired": paired.unpaired,
        "notes": [*paired.notes, *_unreadable(sides)],
        "settings": {**vars(settings), "level": metrics.LEVEL},
        "agreement": _agreement(*sides, settings),
        "tier_moves": _tier_moves(*paired.predictions[:2]),
        "changes": {kind: sum(pair["change"] == kind for pair in changed) for kind in CHANGES},
        **dict.fromkeys(("metrics", "sign_tests", "gsb", "by_kind", "by_grade")),
    }
    if len(graded):
        kinds = [row.query_kind or "(none)" for row in paired.rows]
        report |= _against_gold(*(side.at(graded) for side in sides), [kinds[row] for row in graded], settings)
        report["notes"] += _short_lists(sides[0].names[graded], settings.k)
    return report | {"changed": changed}


def _grades(predictions: Sequence[Prediction]) -> np.ndarray:
    return metrics.grade_array([prediction.grade for prediction in predictions], "predicted", unparsable=True)


def _tier_grades(predictions: Sequence[Prediction]) -> np.ndarray:
    """Any grade of the served tier, 0 without one: metrics of tiers are counted from grades."""
    return np.array([GRADES_OF_TIER[tier][0] if tier else 0 for tier in map(tier_of, predictions)], dtype=np.int64)


def tier_of(prediction: Prediction) -> str | None:
    """The served tier, else the grade's."""
    return prediction.tier or TIER_OF_GRADE.get(prediction.grade or 0)


# ---- against gold ----------------------------------------------------------------------------------------------------


def _against_gold(a: _Answers, b: _Answers, kinds: Sequence[str], settings: Settings) -> dict:
    draw = {"samples": settings.samples, "seed": settings.seed}
    queries = len(np.unique(a.names))
    grades_full, tiers_full = (a.counts(of) + b.counts(of) for of in ("grades", "tiers"))
    compared = [_statistics(side, grades_full, tiers_full, settings) for side in (a, b)]
    found = paired_differences(*compared, queries, **draw)
    right = [_sums(side.grades == side.gold, side.names) for side in (a, b)]
    right_tier = [_sums(_same_tier(side.tiers, side.gold), side.names) for side in (a, b)]
    ndcg = [np.nan_to_num(_ndcg(side, settings.k)) for side in (a, b)]  # without gain: no order is better
    change = ndcg[1] - ndcg[0]
    signs = np.where(np.abs(change) > SAME, np.sign(change), 0.0)
    return {
        "metrics": {name: found[name] for name in METRICS},
        "sign_tests": {
            "right grades": sign_test(right[1] - right[0]),
            "right tiers": sign_test(right_tier[1] - right_tier[0]),
            "nDCG": sign_test(change),
        },
        "gsb": {"k": settings.k, **sign_test(change), "gsb": mean_interval(signs, **draw)},
        "by_kind": _by_kind(a, b, kinds, draw),
        "by_grade": _by_grade(a, b, {name: found[name] for name in metrics.GRADE_F1}),
    }


def _statistics(side: _Answers, grades_full: np.ndarray, tiers_full: np.ndarray, s: Settings) -> dict[str, Statistic]:
    of_grades = {name: metrics.COUNT_METRICS[name] for name in _OF_GRADES} | metrics.GRADE_F1
    of_tiers = {"tier_macro_f1": metrics.COUNT_METRICS["tier_macro_f1"]}
    goodrate = np.array(list(ranking.item_goodrate_by_query(side.score, side.gold, side.names, s.k).values()))
    return {
        **count_statistics(of_grades, side.gold, side.grades, side.names, grades_full),
        **count_statistics(of_tiers, side.gold, side.tiers, side.names, tiers_full),
        "auc": auc_statistic(side.score, _TIER[side.gold] == TIERS.index(GOOD_TIER), side.names),
        "ndcg": mean_statistic(_ndcg(side, s.k)),
        "item_goodrate": mean_statistic(goodrate),
        # Choice: the paper's raters judge a page as a whole and its rule is not published; here its items decide.
        "query_goodrate": mean_statistic(goodrate >= s.good_page - SAME),
    }


def _ndcg(side: _Answers, k: int) -> np.ndarray:
    """nDCG@k of each query, (Q,), NaN for one without any gain."""
    found = ranking.ndcg_by_query(side.score, side.gold, side.names, k)
    return np.array([found.get(str(name), np.nan) for name in np.unique(side.names)])


def _sums(values: np.ndarray, names: np.ndarray) -> np.ndarray:
    """The sum of a value per row over each query, (Q,)."""
    return np.bincount(np.unique(names, return_inverse=True)[1].reshape(-1), weights=values)


_TIER = np.array([-1, *(TIERS.index(TIER_OF_GRADE[grade]) for grade in GRADES)])  # by grade, 0 has none


def _same_tier(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return _TIER[first] == _TIER[second]


def _by_kind(a: _Answers, b: _Answers, kinds: Sequence[str], draw: dict) -> dict[str, dict]:
    table = {}
    for kind in sorted(set(kinds)):
        rows = np.flatnonzero(np.array(kinds, dtype=object) == kind)
        sides, metric = [side.at(rows) for side in (a, b)], {"macro_f1": metrics.COUNT_METRICS["macro_f1"]}
        full, names = sides[0].counts() + sides[1].counts(), sides[0].names
        compared = [count_statistics(metric, side.gold, side.grades, names, full) for side in sides]
        queries = len(np.unique(names))
        found = paired_differences(*compared, queries, **draw)
        table[kind] = {"rows": len(rows), "queries": queries, **_fixed_and_broken(*sides), **found}
    return table


def _by_grade(a: _Answers, b: _Answers, f1: dict[str, dict]) -> dict[str, dict]:
    table = {}
    for grade in GRADES[::-1]:
        rows = np.flatnonzero(a.gold == grade)
        counted = {"rows": len(rows), **_fixed_and_broken(a.at(rows), b.at(rows))}
        table[str(grade)] = {**counted, "f1": f1[f"f1_{grade}"]}
    return table


def _fixed_and_broken(a: _Answers, b: _Answers) -> dict[str, int]:
    was, now = a.grades == a.gold, b.grades == b.gold
    return {"fixed": int((~was & now).sum()), "broken": int((was & ~now).sum())}


def _unreadable(sides: Sequence[_Answers]) -> list[str]:
    found = {letter: int((side.grades == 0).sum()) for letter, side in zip("AB", sides)}
    return [
        f"{counted(count, 'answer')} of {letter} without a grade that could be read: counted as wrong, in no tier"
        for letter, count in found.items()
        if count
    ]


def _short_lists(names: np.ndarray, k: int) -> list[str]:
    """A goodrate is of the first k: it says nothing about an order where all items are among them."""
    longest = int(np.unique(names, return_counts=True)[1].max())
    if longest > k:
        return []
    return [f"no query has more than {longest} graded products: goodrates at {k} are the same in any order (try --k)"]


# ---- with or without gold --------------------------------------------------------------------------------------------


def _agreement(a: _Answers, b: _Answers, settings: Settings) -> dict:
    """How far the two agree with each other. same_grade, same_tier: shares of pairs; kappa: quadratic, where both read
    a grade; rank_correlation: Kendall's tau-b within a query, mean over the queries where both have an order."""
    both = (a.grades > 0) & (b.grades > 0)
    kappa = np.nan
    if both.any():
        kappa = float(metrics.quadratic_kappa_of(metrics.confusion_matrix(a.grades[both], b.grades[both])))
    correlation = rank_correlation_by_query(a.score, b.score, a.names)
    interval = mean_interval(correlation, settings.samples, settings.seed)
    return {
        "same_grade": float((a.grades == b.grades).mean()),
        "same_tier": float((a.tiers == b.tiers).mean()),
        "kappa": kappa,
        "rank_correlation": {**vars(interval), "queries": int((~np.isnan(correlation)).sum())},
    }


def _tier_moves(first: Sequence[Prediction], second: Sequence[Prediction]) -> list[list[int]]:
    moves = Counter(zip(map(tier_of, first), map(tier_of, second)))
    return [[moves[a, b] for b in TIERS] for a in TIERS]


def changed_pairs(paired: Paired) -> list[dict]:
    """The pairs whose grade or tier differs, those that became worse first.

    `change`: broken (A was right), farther (from gold), other (as far, or no gold), tier (the grade is the same),
    closer, fixed (B is right). An unparsable reply is farther than any grade.
    """
    scores = [scores_to_rank_by(predictions)[1] for predictions in paired.predictions]
    found = []
    for place, row in enumerate(paired.rows):
        a, b = (predictions[place] for predictions in paired.predictions[:2])
        if (a.grade, tier_of(a)) == (b.grade, tier_of(b)):
            continue
        distance = [_distance(prediction.grade, row.grade) for prediction in (a, b)]
        named = {"change": _change(a.grade, b.grade, *distance), "query": row.query, "title": row.title}
        ids = {"query_id": row.query_id, "item_id": row.item_id, "query_kind": row.query_kind, "gold": row.grade}
        answers = {"a_grade": a.grade, "b_grade": b.grade, "a_tier": tier_of(a), "b_tier": tier_of(b)}
        ranked = {"a_score": round(float(scores[0][place]), 6), "b_score": round(float(scores[1][place]), 6)}
        found.append((CHANGES.index(named["change"]), distance[0] - distance[1], named | ids | answers | ranked))
    found.sort(key=lambda entry: entry[:2])  # stable; the farther a pair moved away, the earlier
    return [pair for _, _, pair in found]


def _distance(grade: int | None, gold: int | None) -> int:
    if gold is None:
        return 0
    return len(GRADES) if grade is None else abs(grade - gold)


def _change(a: int | None, b: int | None, was: int, now: int) -> str:
    if a == b:
        return "tier"
    if was == now:
        return "other"
    if now > was:
        return "farther" if was else "broken"
    return "closer" if now else "fixed"
