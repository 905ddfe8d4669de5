"""What examples/reproduce.py measures of a run, and the rule that turns a difference into a verdict.

A measure is a statistic of weights of queries, (S, Q) -> (S,), as in taosr1/evaluation/paired.py: all ones give its
value, the number of times that a query was drawn gives a resample. All runs are tested on the same pairs and get the
same resamples, so differences are paired; several seeds are averaged within each resample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from math import atanh, sqrt, tanh
from pathlib import Path

import numpy as np

from examples.real.measures import Scored, difference, estimate
from examples.real.score_files import scored
from taosr1.data.queries import query_keys
from taosr1.evaluation.metrics import COUNT_METRICS, ratio
from taosr1.evaluation.paired import Statistic, count_statistics
from taosr1.evaluation.ranking import reliability_bins
from taosr1.runtime.jsonl import read_jsonl
from taosr1.sampling.passn import grade_prior, pass_at_n
from taosr1.serving.calibration import apply_temperature, fit_temperature
from taosr1.serving.tiering import cumulative_tier, fit_beta, threshold_tier
from taosr1.task.grades import GRADES, GRADES_OF_TIER, TIER_INDEX, TIER_OF_GRADE, TIERS
from taosr1.task.judgement import Judgement
from taosr1.task.prompt import parse_reply
from taosr1.task.rules import implied_grade, load_rules

Z = 1.959963984540054  # of a 95 % interval of a normal distribution
THRESHOLDS = np.linspace(0.05, 1, 20)  # those that `fit_thresholds` tries for a grade
CONFIRMED, NULL, REVERSED = "confirmed", "null", "reversed"


# ---- The rule --------------------------------------------------------------------------------------------------------


def verdict(low: float | None, high: float | None, seeds: Sequence[float]) -> tuple[str, str]:
    """(verdict, why) of a difference that is positive in the paper's direction. Written before the runs.

    low, high: its 95 % interval over queries, seeds averaged within each resample. seeds: the difference of each seed.
    Confirmed: the interval is above 0, and so is every seed. Reversed: it is below 0, and so is every seed. Else null.
    """
    if low is None or high is None or not seeds:
        return NULL, "there is no interval"
    if low <= 0 <= high:
        return NULL, "the interval holds 0"
    found, sign = (CONFIRMED, 1) if low > 0 else (REVERSED, -1)
    if any(sign * value <= 0 for value in seeds):
        return NULL, "the seeds disagree, although the interval does not hold 0"
    return found, "the interval does not hold 0" + (", the seeds agree" if len(seeds) > 1 else "; one seed")


# ---- What was written ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Replies:
    """Replies to P pairs, N to each: gold (P,), grades, decision and implied (P, N), 0 where unread; queries (P,)."""

    gold: np.ndarray
    grades: np.ndarray
    decision: np.ndarray
    implied: np.ndarray
    names: np.ndarray


@lru_cache(maxsize=256)
def read_probs(path: Path) -> Scored:
    """A file of infer/score.py."""
    return scored(path)


@lru_cache(maxsize=256)
def read_replies(path: Path, order: str) -> Replies:
    """A file of infer/sample.py."""
    rows = [row for _, row in read_jsonl(path)]
    firsts = [row for row in rows if row["sample"] == 0]
    pairs = [Judgement(row["query"], row["title"], grade=row["grade"], query_id=row["query_id"]) for row in firsts]
    rules = load_rules()
    implied = [implied_grade(parse_reply(row["reply"], order), rules) for row in rows]
    columns = [row["pred_grade"] for row in rows], [row["decision"] for row in rows], implied
    shaped = (np.array([grade or 0 for grade in column]).reshape(len(firsts), -1) for column in columns)
    return Replies(np.array([pair.grade for pair in pairs]), *shaped, np.array(query_keys(pairs)))


# ---- Tiers -----------------------------------------------------------------------------------------------------------


def fit_thresholds(probs: np.ndarray, gold: np.ndarray) -> list[float]:
    """The four thresholds of `threshold_tier` with the best macro-F1 over tiers, one after another until none helps."""

    def score(limits: Sequence[float]) -> float:
        _, statistic = _tier_counted(gold, threshold_tier(probs, limits), [""] * len(gold))
        return float(statistic(np.ones((1, 1)))[0])

    limits, best, improved = [1.0] * len(GRADES), -1.0, True
    while improved:
        improved = False
        for column in range(len(GRADES)):
            for value in THRESHOLDS:
                tried = [*limits[:column], float(value), *limits[column + 1 :]]
                if (found := score(tried)) > best + 1e-12:
                    limits, best, improved = tried, found, True
    return limits


def least_cost_tier(probs: np.ndarray, shares: Sequence[float]) -> list[str]:
    """The tier of least expected cost, where any wrong tier costs 1 / share of the right one: argmax of P / share.

    Shapes: probs (N, 4), shares (3,) of Good, Mid, Bad.
    """
    of_tier = np.zeros((len(probs), len(TIERS)))
    for grade, tier in zip(GRADES, TIER_INDEX):
        of_tier[:, tier] += probs[:, grade - 1]
    return [TIERS[tier] for tier in (of_tier / np.maximum(shares, 1e-9)).argmax(-1)]


@lru_cache(maxsize=256)
def tiers_by(rule: str, dev_file: Path, test_file: Path) -> list[str]:
    """The tiers of the test rows; what a rule has to know is fitted on dev."""
    dev, test = read_probs(dev_file), read_probs(test_file)
    if rule == "cumpt":
        return cumulative_tier(test.probs, fit_beta(dev.probs, dev.gold))
    if rule == "thresholds":
        return threshold_tier(test.probs, fit_thresholds(dev.probs, dev.gold))
    if rule == "costs":
        index = np.array(TIER_INDEX)[dev.gold - 1]
        return least_cost_tier(test.probs, np.bincount(index, minlength=len(TIERS)) / len(index))
    return [TIER_OF_GRADE[int(grade)] for grade in test.probs.argmax(-1) + 1]


def _tier_counted(gold: np.ndarray, tiers: Sequence[str], names: Sequence[str]) -> Measured:
    grades = [GRADES_OF_TIER[tier][0] for tier in tiers]  # any grade of the tier: tiers are counted from grades
    return _counted("tier_macro_f1", gold, grades, names)


# ---- Statistics ------------------------------------------------------------------------------------------------------

Measured = tuple[int, Statistic]  # the number of queries, and the statistic of their weights


def _counted(metric: str, gold: Sequence, grades: Sequence, names: Sequence[str]) -> Measured:
    return len(np.unique(names)), count_statistics({metric: COUNT_METRICS[metric]}, gold, grades, names)[metric]


def _per_query(names: np.ndarray, *columns: np.ndarray) -> list[np.ndarray]:
    """Sums of each column over the rows of each query, queries sorted: (N,) or (N, B) -> (Q,) or (Q, B)."""
    found, query = np.unique(names, return_inverse=True)
    sums = []
    for column in columns:
        total = np.zeros((len(found), *column.shape[1:]))
        np.add.at(total, query, column)
        sums.append(total)
    return sums


def _share(names: np.ndarray, part: np.ndarray, whole: np.ndarray) -> Measured:
    part, whole = _per_query(names, part.astype(float), whole.astype(float))
    return len(part), lambda weights: ratio(weights @ part, weights @ whole)


def ece(probs: np.ndarray, gold: np.ndarray, names: np.ndarray) -> Measured:
    """`expected_calibration_error`: a bin's |accuracy - confidence| times its rows is |sum of (right - confidence)|."""
    confidence, right = probs.max(-1), probs.argmax(-1) + 1 == gold
    edges = [found["high"] for found in reliability_bins(probs, gold)]
    inside = np.searchsorted(edges, confidence - 1e-12)
    gap = np.zeros((len(gold), len(edges)))
    gap[np.arange(len(gold)), np.minimum(inside, len(edges) - 1)] = right - confidence
    gap, rows = _per_query(names, gap, np.ones(len(gold)))
    return len(gap), lambda weights: ratio(np.abs(weights @ gap).sum(-1), weights @ rows)


def _wrong_label(read: Replies, stated: np.ndarray) -> Measured:
    """`right_but_label_wrong` of `hallucination_rates`, of greedy replies."""
    label, stated = read.grades[:, 0], stated[:, 0]
    both = (label > 0) & (stated > 0)
    wrong = both & (stated == read.gold) & (label != read.gold)
    return _share(read.names, wrong, both)


def _pass(read: Replies, n: int) -> Measured:
    right = (read.grades == read.gold[:, None]).sum(-1)
    found = np.array([pass_at_n(read.grades.shape[1], int(count), n) for count in right])
    return _share(read.names, found, np.ones(len(found)))


def _guess(read: Replies, n: int) -> Measured:
    prior = np.array(grade_prior(read.gold.tolist()))
    return _share(read.names, 1 - (1 - prior[read.gold - 1]) ** n, np.ones(len(read.gold)))


@dataclass(frozen=True)
class Measure:
    """reads: names of READS that it needs (examples/claims/runs.py). of: {read: file}, whether the run thinks -> it."""

    title: str
    reads: tuple[str, ...]
    of: Callable[[dict[str, Path], bool], Measured]
    lower: bool = False  # whether less is better


def macro_f1(files: dict[str, Path], thinks: bool) -> Measured:
    """Of a thinker by its greedy replies, of others by the most probable label."""
    if thinks:
        read = read_replies(files["replies"], "pre-cot")
        gold, grades, names = read.gold, read.grades[:, 0], read.names
    else:
        read = read_probs(files["test"])
        gold, grades, names = read.gold, read.probs.argmax(-1) + 1, read.names
    return _counted("macro_f1", gold, grades, names)


def _tiers(rule: str, kind: str, files: dict[str, Path], thinks: bool) -> Measured:
    test = read_probs(files["test"])
    rows = test.kinds == kind if kind else slice(None)
    return _tier_counted(test.gold[rows], np.array(tiers_by(rule, files["dev"], files["test"]))[rows], test.names[rows])


def tiers(rule: str, kind: str = "") -> Measure:
    """Macro-F1 over Good, Mid and Bad by a rule, of all test pairs or of one kind of query."""
    return Measure(f"tier macro-F1, {rule} {kind}".rstrip(), ("test", "dev"), partial(_tiers, rule, kind))


def _calibration(scale: bool, files: dict[str, Path], thinks: bool) -> Measured:
    test = read_probs(files["test"])
    if not scale:
        return ece(test.probs, test.gold, test.names)
    dev = read_probs(files["dev"])
    return ece(apply_temperature(test.probs, fit_temperature(dev.probs, dev.gold)), test.gold, test.names)


RULES = ("argmax", "thresholds", "costs", "cumpt")


def _of_replies(kind: str, statistic: Callable[..., Measured], *more: object) -> Callable:
    return lambda files, thinks: statistic(read_replies(files[kind], "pre-cot" if thinks else "post-cot"), *more)


MEASURES = {
    "macro_f1": Measure("macro-F1", ("test",), macro_f1),
    **{f"tiers_{rule}": tiers(rule) for rule in RULES},
    "ece": Measure("ECE", ("test",), partial(_calibration, False), lower=True),
    "ece_scaled": Measure("ECE, scaled", ("test", "dev"), partial(_calibration, True), lower=True),
    "wrong_label_decision": Measure(
        "right Decision line, wrong label", ("replies",),
        _of_replies("replies", lambda read: _wrong_label(read, read.decision)), lower=True,
    ),
    "wrong_label_steps": Measure(
        "right steps, wrong label", ("replies",),
        _of_replies("replies", lambda read: _wrong_label(read, read.implied)), lower=True,
    ),
    **{f"pass_{n}": Measure(f"pass@{n}", ("samples",), _of_replies("samples", _pass, n)) for n in range(1, 6)},
    **{f"guess_{n}": Measure(f"{n} guesses", ("samples",), _of_replies("samples", _guess, n)) for n in range(1, 6)},
}  # fmt: skip


# ---- Over seeds ------------------------------------------------------------------------------------------------------


def compare(better: Sequence[Statistic], worse: Sequence[Statistic], lower: bool, draws: np.ndarray) -> dict:
    """`difference` in the paper's direction, with the difference of each seed; better and worse have one per seed."""
    first, second = (worse, better) if lower else (better, worse)
    seeds = [a - b for a, b in zip(*(estimate(side, draws[:0])["seeds"] for side in (first, second)))]
    return {**difference(first, second, draws), "seeds": seeds}


def correlation(points: Sequence[Sequence[tuple[float, float]]]) -> dict:
    """Pearson's r of (x, y) over policies, with the mean of each seed taken off, and Fisher's interval.

    points: for each seed one point per policy. Taking off S means costs S - 1 degrees of freedom more than r does:
    with n points in all, z has the standard error 1 / sqrt(n - (S - 1) - 3). Returns also r of each seed.
    """
    seeds = [np.asarray(own, dtype=float) for own in points]
    x, y = np.concatenate([own - own.mean(0) for own in seeds]).T
    if not (x.any() and y.any()):
        return {"value": None, "low": None, "high": None, "seeds": []}
    r, freedom = float(np.corrcoef(x, y)[0, 1]), len(x) - (len(seeds) - 1) - 3
    low = high = None
    if freedom > 0 and abs(r) < 1:
        low, high = (tanh(atanh(r) + side * Z / sqrt(freedom)) for side in (-1, 1))
    return {"value": r, "low": low, "high": high, "seeds": [float(np.corrcoef(own.T)[0, 1]) for own in seeds]}


def power_law(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """(a, b) of error = a * x ** -b, by least squares of the logs. points: (x, error), both above 0, at least two."""
    x, error = np.log(np.asarray(points, dtype=float)).T
    slope, start = np.polyfit(x, error, 1)
    return float(np.exp(start)), float(-slope)
