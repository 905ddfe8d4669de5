"""The baseline: features that mean what they say, and boosting that learns."""

from __future__ import annotations

import numpy as np
import pytest

from examples import boosted_overlap as script
from examples.boosted_overlap import boosted_overlap, inverse_document_frequencies, overlap_features
from taosr1.task.judgement import Judgement


@pytest.fixture(autouse=True)
def few_columns(monkeypatch):
    """The tests use a dozen words: most of the time would be spent on the width of the hashed bags."""
    monkeypatch.setattr(script, "HASHED_COLUMNS", 1 << 12)


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
    features = overlap_features(pairs, {})
    assert features.shape[0] == 2
    assert features[0, 2] == 2 and features[1, 2] == 1  # shared words
    changed = np.flatnonzero(~np.isclose(features[0], features[1], equal_nan=True))
    assert len(changed) >= 4
    assert 19.5 in features[1] and np.isnan(features[0]).any()


@pytest.mark.parametrize("query", ["", "   ", "不要皮革的靴子", "boots \ud800 <b>x</b>", "x" * 10_000])
def test_features_take_any_text(query):
    features = overlap_features([Judgement(query, "title", price="free"), Judgement("q", query, description=query)], {})
    assert features.shape[0] == 2 and not np.isinf(features).any()


def test_rare_words_weigh_more():
    idf = inverse_document_frequencies([Judgement("q", "red mug"), Judgement("q", "blue mug")])
    assert idf["mug"] == 0.0 and idf["red"] == pytest.approx(np.log(2))


def test_boosting_learns_kind_and_exclusion_from_three_grades(sklearn_metrics):
    test = shop(150, seed=1)
    probs = boosted_overlap(shop(400, seed=0), test, components=16)
    assert probs.shape == (150, 4)
    assert np.allclose(probs.sum(-1), 1) and (probs[:, 2] == 0).all()  # grade 3 was never seen
    gold = np.array([judgement.grade for judgement in test])
    assert max((gold == grade).mean() for grade in (1, 2, 4)) < 0.6  # what always one grade would reach
    assert (probs.argmax(-1) + 1 == gold).mean() > 0.9


def test_boosting_learns_nothing_from_the_test_rows_and_repeats(sklearn_metrics):
    train, test = shop(120, seed=0), shop(20, seed=1)
    together = boosted_overlap(train, test, components=8)
    assert np.allclose(boosted_overlap(train, test[:5], components=8), together[:5])


def test_boosting_takes_one_class_one_query_no_test_rows_and_refuses_ungraded_training(sklearn_metrics):
    same = [Judgement("mug", f"mug {n}", grade=4) for n in range(5)]
    one_query = [Judgement("mug", f"{n} mug lamp", grade=n % 2 + 1) for n in range(6)]
    assert np.allclose(boosted_overlap(one_query, one_query[:1]).sum(-1), 1)
    assert boosted_overlap(same, same[:2]).tolist() == [[0, 0, 0, 1]] * 2
    assert boosted_overlap(same, []).shape == (0, 4)
    with pytest.raises(ValueError, match=r"train grades\[1\] is None"):
        boosted_overlap([same[0], Judgement("q", "t")], same)
