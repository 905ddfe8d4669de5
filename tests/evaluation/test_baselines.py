"""The simple rivals: features that mean what they say, boosting that learns, a prior that adds up."""

from __future__ import annotations

import numpy as np
import pytest

from taosr1.data.judgements import Judgement
from taosr1.evaluation import baselines as rivals
from taosr1.evaluation.baselines import (
    boosted_overlap,
    grade_prior,
    inverse_document_frequencies,
    overlap_features,
    prior_baseline,
    prior_pass_at_n,
)
from taosr1.evaluation.metrics import accuracy


@pytest.fixture(autouse=True)
def few_columns(monkeypatch):
    """The tests know a dozen words: the time goes into the width of the hashed bags."""
    monkeypatch.setattr(rivals, "_HASHED_COLUMNS", 1 << 12)


def shop(rows: int, seed: int) -> list[Judgement]:
    """Grade 4: the wanted kind; 2: it names the excluded material; 1: another kind."""
    rng = np.random.default_rng(seed)
    kinds, materials = ["mug", "boots", "lamp", "tent"], ["steel", "leather", "glass", "wool"]
    judgements = []
    for _ in range(rows):
        kind, banned = rng.choice(kinds), rng.choice(materials)
        grade = int(rng.choice([4, 2, 1]))
        material = banned if grade == 2 else rng.choice([m for m in materials if m != banned])
        offered = rng.choice([k for k in kinds if k != kind]) if grade == 1 else kind
        judgements.append(Judgement(f"{kind} not {banned}", f"{material} {offered} new", grade=grade))
    return judgements


def test_features_see_overlap_and_exclusions():
    pairs = [
        Judgement("boots not leather", "leather boots"),
        Judgement("boots not leather", "wool boots", price="$19.50"),
    ]
    features = overlap_features(pairs)
    assert features.shape[0] == 2
    assert features[0, 2] == 2 and features[1, 2] == 1  # shared words
    changed = np.flatnonzero(~np.isclose(features[0], features[1], equal_nan=True))
    assert len(changed) >= 4
    assert 19.5 in features[1] and np.isnan(features[0]).any()


@pytest.mark.parametrize("query", ["", "   ", "不要皮革的靴子", "boots \ud800 <b>x</b>", "x" * 10_000])
def test_features_take_any_text(query):
    features = overlap_features([Judgement(query, "title", price="free"), Judgement("q", query, description=query)])
    assert features.shape[0] == 2 and not np.isinf(features).any()


def test_rare_words_weigh_more():
    idf = inverse_document_frequencies([Judgement("q", "red mug"), Judgement("q", "blue mug")])
    assert idf["mug"] == 0.0 and idf["red"] == pytest.approx(np.log(2))


def test_boosting_learns_kind_and_exclusion_from_three_grades():
    pytest.importorskip("sklearn", reason="needs scikit-learn: pip install -c constraints.txt -e '.[dev]'")
    test = shop(150, seed=1)
    probs = boosted_overlap(shop(400, seed=0), test, components=16)
    assert probs.shape == (150, 4)
    assert np.allclose(probs.sum(-1), 1) and (probs[:, 2] == 0).all()  # grade 3 was never seen
    gold = [judgement.grade for judgement in test]
    assert accuracy(gold, prior_baseline(gold, 150)) < 0.6
    assert accuracy(gold, probs.argmax(-1) + 1) > 0.9


def test_boosting_learns_nothing_from_the_test_rows_and_repeats():
    pytest.importorskip("sklearn", reason="needs scikit-learn: pip install -c constraints.txt -e '.[dev]'")
    train, test = shop(120, seed=0), shop(20, seed=1)
    together = boosted_overlap(train, test, components=8)
    assert np.allclose(boosted_overlap(train, test[:5], components=8), together[:5])


def test_boosting_takes_one_class_one_query_no_test_rows_and_refuses_ungraded_training():
    pytest.importorskip("sklearn", reason="needs scikit-learn: pip install -c constraints.txt -e '.[dev]'")
    same = [Judgement("mug", f"mug {n}", grade=4) for n in range(5)]
    one_query = [Judgement("mug", f"{n} mug lamp", grade=n % 2 + 1) for n in range(6)]
    assert np.allclose(boosted_overlap(one_query, one_query[:1]).sum(-1), 1)
    assert boosted_overlap(same, same[:2]).tolist() == [[0, 0, 0, 1]] * 2
    assert boosted_overlap(same, []).shape == (0, 4)
    with pytest.raises(ValueError, match=r"train grades\[1\] is None"):
        boosted_overlap([same[0], Judgement("q", "t")], same)


def test_prior_baselines():
    grades = [4, 4, 2, 1]
    assert grade_prior(grades).tolist() == [0.25, 0.25, 0.0, 0.5]
    assert prior_baseline(grades, 3) == [4, 4, 4]
    drawn = prior_baseline(grades, 4000, mode="sample", seed=1)
    assert np.bincount(drawn, minlength=5)[1:] / 4000 == pytest.approx([0.25, 0.25, 0.0, 0.5], abs=0.03)
    assert drawn == prior_baseline(grades, 4000, mode="sample", seed=1)
    with pytest.raises(ValueError, match="mode is 'mean'"):
        prior_baseline(grades, 1, mode="mean")
    with pytest.raises(ValueError, match="train_grades is empty"):
        prior_baseline([], 1)


def test_hand_worked_prior_pass_at_n():
    # P(4) = 1/2 and P(1) = 1/4: pass@2 is 1 - 1/4 and 1 - 9/16; a grade never drawn never passes.
    assert prior_pass_at_n([4, 4, 2, 1], [4, 1], 2) == pytest.approx((3 / 4 + 7 / 16) / 2)
    assert prior_pass_at_n([4, 4, 2, 1], [3], 5) == 0.0
    drawn = np.array(prior_baseline([4, 4, 2, 1], 50_000, mode="sample")).reshape(-1, 5)
    assert (drawn == 2).any(-1).mean() == pytest.approx(prior_pass_at_n([4, 4, 2, 1], [2], 5), abs=0.02)
