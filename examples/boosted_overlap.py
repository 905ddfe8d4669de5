"""A strong simple baseline without a language model: gradient boosting over hand-made query-item features.

    python examples/boosted_overlap.py --data synthetic:reasoned,synthetic:labelled

It needs scikit-learn (the `[dev]` extra). What guessing reaches is in `taosr1.sampling.passn`.
"""

from __future__ import annotations

import itertools
import math
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a fresh checkout runs without being installed

from taosr1.data.flags import ReadFlags
from taosr1.data.sources import load_rows
from taosr1.evaluation.metrics import grade_array
from taosr1.evaluation.summary import Prediction, evaluate_predictions, render_report
from taosr1.runtime.cli import option, parse_config
from taosr1.runtime.files import write_json
from taosr1.runtime.signals import run_main
from taosr1.task.grades import GRADES
from taosr1.task.judgement import Judgement

_WORD = re.compile(r"[^\W_]+(?:'\w+)?")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)?")
_EXCLUDES = frozenset("not no non without except free excluding minus".split())
_CHEAPER = frozenset("cheap cheaper affordable budget under below less alternative like dupe".split())
_ASKS = frozenset("what which how where who why need needed can should do".split())
HASHED_COLUMNS = 1 << 16  # of the hashed bags of words
FOLDS = 3


@dataclass(frozen=True)
class Config(ReadFlags):
    data: str = option("synthetic:reasoned", "graded rows to learn: files or synthetic:POOL, separated by commas")
    test: str = option("synthetic:test", "graded rows to measure on")
    out: str = option("", "JSON file for the whole report")
    split: str = option("", "keep only the rows whose 'split' column says this (ESCI: train)")
    test_split: str = option("", "the same for --test (ESCI: test)")
    seed: int = option(0, "seed of the embedded training pools, the features, the trees and the bootstrap")


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _trigrams(text: str) -> set[str]:
    """Character trigrams: they also overlap for inflected words and in scripts without spaces."""
    padded = f" {' '.join(_words(text))} "
    return {padded[start : start + 3] for start in range(len(padded) - 2)}


def _first_number(text: str) -> float:
    found = _NUMBER.search(text)
    return float(found.group().replace(",", ".")) if found else math.nan


def inverse_document_frequencies(judgements: Sequence[Judgement]) -> dict[str, float]:
    """log(number of titles / number of titles with the word), for each word of the titles."""
    titles_with = Counter(word for judgement in judgements for word in set(_words(judgement.title)))
    return {word: math.log(len(judgements) / count) for word, count in titles_with.items()}


def overlap_features(judgements: Sequence[Judgement], idf: dict[str, float]) -> np.ndarray:
    """Hand-made features of each pair, float64 (N, F), NaN where unknown (boosting handles it).

    Word overlap of the query with title, brand, category, attributes and description; idf-weighted overlap, Jaccard,
    trigrams; exclusion words and whether the word behind one is in the item; price words, numbers and their
    difference; lengths.
    idf: weights of words, of the *training* rows; unknown words get the largest weight. {} weighs all words equally.
    """
    unseen = max(idf.values(), default=1.0)
    return np.array([_pair_features(judgement, idf, unseen) for judgement in judgements], dtype=np.float64)


def _pair_features(judgement: Judgement, idf: dict[str, float], unseen: float) -> list[float]:
    query, title = _words(judgement.query), _words(judgement.title)
    wanted, offered = set(query), set(title)
    item = offered | set(_words(f"{judgement.brand} {judgement.category} {judgement.attributes}"))
    shared, weight = wanted & offered, {word: idf.get(word, unseen) for word in wanted}
    total = sum(weight.values()) or 1.0
    excluded = {after for word, after in itertools.pairwise(query) if word in _EXCLUDES}
    query_grams, title_grams = _trigrams(judgement.query), _trigrams(judgement.title)
    price, limit = _first_number(judgement.price), _first_number(judgement.query)
    fields = (judgement.brand, judgement.category, judgement.attributes, judgement.description)
    return [
        len(query), len(title), len(shared),
        len(shared) / max(len(wanted), 1),
        len(shared) / max(len(wanted | offered), 1),
        len(wanted & item) / max(len(wanted), 1),
        sum(weight[word] for word in shared) / total,
        max((weight[word] for word in wanted - item), default=0.0),  # the rarest query word that the item lacks
        len(query_grams & title_grams) / max(len(query_grams), 1),
        len(query_grams & title_grams) / max(len(query_grams | title_grams), 1),
        *(len(wanted & set(_words(field))) for field in fields),
        bool(query) and query[0] in item, bool(query) and query[-1] in item,
        bool(wanted & _EXCLUDES), len(excluded & item),
        bool(wanted & _CHEAPER), bool(wanted & _ASKS) or "?" in judgement.query,
        price, limit, price - limit,
    ]  # fmt: skip


def _crossed_tokens(judgement: Judgement) -> list[str]:
    """The words of each side and all pairs of query and item word, from which a linear model can learn "X is no Y"."""
    query = sorted(set(_words(judgement.query)))
    item = sorted(set(_words(f"{judgement.title} {judgement.brand} {judgement.category} {judgement.attributes}")))
    return [f"q {a}" for a in query] + [f"i {b}" for b in item] + [f"{a} x {b}" for a in query for b in item]


def _fitted(model, train_rows, gold: np.ndarray) -> Callable[..., np.ndarray]:
    """Fits a scikit-learn classifier; returns rows -> P(grade 1..4), (N, 4), 0 for a grade that is not in `gold`."""
    grades = np.unique(gold)
    # Classifiers refuse a single class, and a tiny training set may have only one.
    fitted = model.fit(train_rows, gold) if len(grades) > 1 else None

    def predict(rows) -> np.ndarray:
        probs = np.zeros((rows.shape[0], len(GRADES)))
        probs[:, grades - 1] = fitted.predict_proba(rows) if fitted else 1.0
        return probs

    return predict


def _folds_by_query(judgements: Sequence[Judgement]) -> np.ndarray:
    """The fold of each row, equal for all rows of one query: the queries of test rows are unseen too."""
    number: dict[str, int] = {}
    return np.array([number.setdefault(judgement.query, len(number)) % FOLDS for judgement in judgements])


def boosted_overlap(
    train: Sequence[Judgement], test: Sequence[Judgement], *, components: int = 64, seed: int = 0
) -> np.ndarray:
    """P(grade 1..4) of each test row by `fit_boosted_overlap`, float64 (N, 4); 0 for a grade that `train` lacks."""
    return fit_boosted_overlap(train, components=components, seed=seed)(test)


def fit_boosted_overlap(
    train: Sequence[Judgement], *, components: int = 64, seed: int = 0, balanced: bool = True,
    more: np.ndarray | None = None,
) -> Callable[..., np.ndarray]:  # fmt: skip
    """Gradient boosting over overlap features, an SVD of hashed crossed bags of words, and a linear model of the bags.

    The linear model's probabilities of training rows come from folds without those rows, or boosting would rely on
    what it has memorised. Choice: balanced class weights, since results are compared by macro-F1.
    more: further features of each training row, (N, F).
    Returns: a function of rows and, where there are any, their further features, that gives P(grade 1..4), (N, 4).
    Raises: ValueError where a training row has no grade; ModuleNotFoundError with the command that installs
        scikit-learn.
    """
    try:
        from sklearn.decomposition import TruncatedSVD
        from sklearn.ensemble import HistGradientBoostingClassifier
        from sklearn.feature_extraction import FeatureHasher
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        message = 'this baseline needs scikit-learn: pip install -c constraints.txt -e ".[dev]"'
        raise ModuleNotFoundError(message) from error
    gold = grade_array([judgement.grade for judgement in train], "train grades", unparsable=False)
    if len(gold) == 0:
        raise ValueError("no rows to train on: train is empty")

    hasher, weight = FeatureHasher(HASHED_COLUMNS, input_type="string"), "balanced" if balanced else None
    bags = hasher.transform(map(_crossed_tokens, train))
    linear = LogisticRegression(C=0.3, class_weight=weight, max_iter=300)
    linear_probs = np.zeros((len(train), len(GRADES)))
    fold = _folds_by_query(train)
    for held_out in np.unique(fold):
        inside = fold == held_out
        outside = ~inside if not inside.all() else inside  # with a single query there is no other fold
        linear_probs[inside] = _fitted(linear, bags[outside], gold[outside])(bags[inside])
    svd = TruncatedSVD(min(components, max(1, len(train) - 1)), random_state=seed).fit(bags)
    idf = inverse_document_frequencies(train)

    def features(rows: Sequence[Judgement], bags, linear_probs: np.ndarray, more: np.ndarray | None) -> np.ndarray:
        parts = [overlap_features(rows, idf), svd.transform(bags), linear_probs]
        return np.hstack(parts if more is None else [*parts, more])

    columns = features(train, bags, linear_probs, more)
    known = ~np.isnan(columns).all(0)  # an all-NaN column (no row has a price) cannot be binned
    boosting = HistGradientBoostingClassifier(class_weight=weight, random_state=seed)
    from_bags, boosted = _fitted(linear, bags, gold), _fitted(boosting, columns[:, known], gold)

    def predict(rows: Sequence[Judgement], more: np.ndarray | None = None) -> np.ndarray:
        if not rows:
            return np.zeros((0, len(GRADES)))
        bags = hasher.transform(map(_crossed_tokens, rows))
        return boosted(features(rows, bags, from_bags(bags), more)[:, known])

    return predict


def main(argv: list[str] | None = None) -> dict:
    config = parse_config(Config, __doc__, argv)
    rows = load_rows(config.data, config, seed=config.seed, split=config.split, need_grade=True)
    test = load_rows(config.test, config, split=config.test_split, need_gold=True, flag="--test")
    started = time.perf_counter()
    probs = boosted_overlap(rows, test, seed=config.seed)
    predictions = [Prediction(max(range(4), key=row.__getitem__) + 1, tuple(row)) for row in probs.tolist()]
    train_s = round(time.perf_counter() - started, 1)
    report = {"train_s": train_s} | evaluate_predictions(test, predictions, seed=config.seed)
    print(render_report(report))
    if config.out:
        write_json(Path(config.out), report)
    return report


if __name__ == "__main__":
    run_main(main)
