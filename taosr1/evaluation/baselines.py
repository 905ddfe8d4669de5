"""Strong simple rivals on the same labels: what the method must beat to be worth its cost.

Features a search team would write in an afternoon, under gradient boosting (scikit-learn, in the `[dev]` extra), and
the prior.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from taosr1.data.judgements import Judgement
from taosr1.evaluation.metrics import grade_array
from taosr1.task.grades import GRADES

_WORD = re.compile(r"[^\W_]+(?:'\w+)?")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)?")
_EXCLUDES = frozenset(("not", "no", "non", "without", "except", "free", "excluding", "minus"))
_CHEAPER = frozenset(
    ("cheap", "cheaper", "affordable", "budget", "under", "below", "less", "alternative", "like", "dupe")
)
_ASKS = frozenset(("what", "which", "how", "where", "who", "why", "need", "needed", "can", "should", "do"))
_HASHED_COLUMNS = 1 << 16


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _trigrams(text: str) -> set[str]:
    """Character trigrams, which also overlap where words do not: inflections, and scripts without spaces."""
    packed = f" {' '.join(_words(text))} "
    return {packed[start : start + 3] for start in range(len(packed) - 2)}


def _first_number(text: str) -> float:
    found = _NUMBER.search(text)
    return float(found.group().replace(",", ".")) if found else math.nan


def inverse_document_frequencies(judgements: Sequence[Judgement]) -> dict[str, float]:
    """log(N / titles holding the word), learned from training titles; a word that no title holds weighs log(N)."""
    holders = Counter(word for judgement in judgements for word in set(_words(judgement.title)))
    return {word: math.log(len(judgements) / count) for word, count in holders.items()}


def overlap_features(judgements: Sequence[Judgement], idf: dict[str, float] | None = None) -> np.ndarray:
    """Hand-made features of each pair, float64 (N, F), NaN where unknown (boosting handles it).

    Word overlap of the query with title, brand, category, attributes and description; idf-weighted overlap, Jaccard,
    trigrams; exclusion words and whether what follows one is in the item; price words, numbers and their gap; lengths.
    `idf` comes from the *training* rows (`inverse_document_frequencies`); None weighs all words alike.
    """
    idf = idf or {}
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
        max((weight[word] for word in wanted - item), default=0.0),  # the rarest demand that the item does not name
        len(query_grams & title_grams) / max(len(query_grams), 1),
        len(query_grams & title_grams) / max(len(query_grams | title_grams), 1),
        *(len(wanted & set(_words(field))) for field in fields),
        bool(query) and query[0] in item, bool(query) and query[-1] in item,
        bool(wanted & _EXCLUDES), len(excluded & item),
        bool(wanted & _CHEAPER), bool(wanted & _ASKS) or "?" in judgement.query,
        price, limit, price - limit,
    ]  # fmt: skip


def _crossed_tokens(judgement: Judgement) -> list[str]:
    """Words of each side and every query word x item word: what a linear model needs to learn "X is no Y"."""
    query = sorted(set(_words(judgement.query)))
    item = sorted(set(_words(f"{judgement.title} {judgement.brand} {judgement.category} {judgement.attributes}")))
    return [f"q {a}" for a in query] + [f"i {b}" for b in item] + [f"{a} x {b}" for a in query for b in item]


def _fitted_probs(model, train_rows, gold: np.ndarray, rows) -> np.ndarray:
    """P(grade 1..4) of `rows` (N, 4) from a scikit-learn classifier fitted here; 0 for a grade not in `gold`."""
    grades = np.unique(gold)
    probs = np.zeros((rows.shape[0], len(GRADES)))
    # Classifiers refuse a single class, which a tiny training set may well be.
    probs[:, grades - 1] = model.fit(train_rows, gold).predict_proba(rows) if len(grades) > 1 else 1.0
    return probs


def _by_query_folds(judgements: Sequence[Judgement], folds: int) -> np.ndarray:
    """A fold for each row; rows of one query share theirs, as unseen queries are what the model will meet."""
    number: dict[str, int] = {}
    return np.array([number.setdefault(judgement.query, len(number)) % folds for judgement in judgements])


def boosted_overlap(
    train: Sequence[Judgement],
    test: Sequence[Judgement],
    *,
    components: int = 64,
    folds: int = 3,
    class_weight: str | None = "balanced",
    seed: int = 0,
) -> np.ndarray:
    """Gradient boosting over overlap features, an SVD of hashed crossed bags of words, and a linear model of the bags.

    The linear model's probabilities of training rows come from folds that did not hold them, or boosting would trust
    its memory.
    Choice: balanced class weights, since the table it is compared in is headed by macro-F1. Nothing is learned from
    `test`.
    Returns: P(grade 1..4) of each test row, float64 (N, 4); 0 for a grade that `train` does not hold.
    Raises: ValueError where a training row has no grade; ModuleNotFoundError with the command to run without
    scikit-learn.
    """
    try:
        from sklearn.decomposition import TruncatedSVD
        from sklearn.ensemble import HistGradientBoostingClassifier
        from sklearn.feature_extraction import FeatureHasher
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        message = 'this rival needs scikit-learn: pip install -c constraints.txt -e ".[dev]"'
        raise ModuleNotFoundError(message) from error
    gold = grade_array([judgement.grade for judgement in train], "train grades", unparsable=False)
    if len(gold) == 0:
        raise ValueError("no rows to train on: train is empty")
    if not test:
        return np.zeros((0, len(GRADES)))

    hasher = FeatureHasher(_HASHED_COLUMNS, input_type="string")
    bags, test_bags = (hasher.transform(map(_crossed_tokens, rows)) for rows in (train, test))
    linear = LogisticRegression(C=0.3, class_weight=class_weight, max_iter=300)
    linear_probs = np.zeros((len(train), len(GRADES)))
    fold = _by_query_folds(train, folds)
    for held_out in np.unique(fold):
        inside = fold == held_out
        outside = ~inside if not inside.all() else inside  # a single query has no other to learn from
        linear_probs[inside] = _fitted_probs(linear, bags[outside], gold[outside], bags[inside])
    svd = TruncatedSVD(min(components, max(1, len(train) - 1)), random_state=seed).fit(bags)
    idf = inverse_document_frequencies(train)
    rows = np.hstack([overlap_features(train, idf), svd.transform(bags), linear_probs])
    test_linear = _fitted_probs(linear, bags, gold, test_bags)
    test_rows = np.hstack([overlap_features(test, idf), svd.transform(test_bags), test_linear])
    known = ~np.isnan(rows).all(0)  # a column nobody knows (no row has a price) cannot be binned
    boosting = HistGradientBoostingClassifier(class_weight=class_weight, random_state=seed)
    return _fitted_probs(boosting, rows[:, known], gold, test_rows[:, known])


# ---- the prior -------------------------------------------------------------------------------------------------------


def grade_prior(train_grades: Sequence[int]) -> np.ndarray:
    """The share of each grade 1..4, (4,)."""
    gold = grade_array(train_grades, "train_grades", unparsable=False)
    if len(gold) == 0:
        raise ValueError("no grades to take a prior from: train_grades is empty")
    return np.bincount(gold, minlength=len(GRADES) + 1)[1:] / len(gold)


def prior_baseline(train_grades: Sequence[int], count: int, *, mode: str = "majority", seed: int = 0) -> list[int]:
    """Grades for `count` rows without looking at them: the commonest training grade, or draws from their shares."""
    prior = grade_prior(train_grades)
    if mode == "majority":
        return [int(prior.argmax()) + 1] * count
    if mode == "sample":
        return (np.random.default_rng(seed).choice(len(GRADES), size=count, p=prior) + 1).tolist()
    raise ValueError(f"mode is {mode!r}, expected 'majority' or 'sample'")


def prior_pass_at_n(train_grades: Sequence[int], gold: Sequence[int], n: int) -> float:
    """Expected pass@n of n draws from the prior: mean of 1 - (1 - P(gold))^n.

    With four labels, five blind guesses already pass often: a pass@5 means little without this beside it.
    """
    if n < 1:
        raise ValueError(f"n is {n}, expected at least 1")
    prior, gold = grade_prior(train_grades), grade_array(gold, "gold", unparsable=False)
    return float((1 - (1 - prior[gold - 1]) ** n).mean())
