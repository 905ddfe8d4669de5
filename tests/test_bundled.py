"""The bundled judges: small, loadable, and trained on the shop as it is now."""

from __future__ import annotations

import pytest

from infer.explain import main as explain
from taosr1 import Judge
from taosr1.data.sources import load_rows
from taosr1.evaluation.predict import dev_scores
from taosr1.judge_model import BUNDLED, BUNDLED_FOLDERS, BUNDLED_STUDENT, load_judge


@pytest.mark.parametrize("folder", sorted(set(BUNDLED_FOLDERS.values())), ids=lambda folder: folder.name)
def test_a_bundled_judge_takes_at_most_four_megabytes(folder):
    assert 0 < sum(path.stat().st_size for path in folder.iterdir()) <= 4_000_000


def test_the_bundled_thinker_judges_the_embedded_world():
    """A change of the shop's words or of the reply's form shows here: train it anew (taosr1/bundled/README.md)."""
    scores = dev_scores(load_judge(BUNDLED), load_rows("synthetic:dev", limit=400))
    assert scores["dev_macro_f1"] > 0.55 and scores["dev_unparsed_frac"] < 0.01


def test_the_bundled_student_judges_the_embedded_world_and_calls_none_of_it_outside():
    """examples/bundled_student.py makes it anew."""
    rows = load_rows("synthetic:dev", limit=400)
    assert dev_scores(load_judge(BUNDLED_STUDENT), rows)["dev_macro_f1"] > 0.85
    assert not any(score.outside for score in Judge.load("bundled").score(rows))


@pytest.mark.parametrize(
    ("query", "title", "price", "grade"),
    [  # the examples of infer/explain.py and of the README
        ("travel mug but not steel", "Norvell travel mug steel insulated black", "$20", 2),
        ("travel mug but not steel", "Oddly insulated travel mug bamboo red", "$20", 4),
        ("rain jacket cheaper than Valmont", "Galden rain jacket navy cotton size small", "$20", 4),
        ("rain jacket cheaper than Valmont", "Valmont rain jacket navy cotton size small", "$90", 2),
    ],
)
def test_the_examples_of_the_help_are_answered_well(query, title, price, grade, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # no runs: the bundled student answers
    (found,) = explain([query, title, *(["--price", price] if price else [])])
    assert found["pred_grade"] == found["decision"] == grade and found["well_formed"] and not found["outside"]
    assert "outside of what" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("query", "product"),
    [
        ("iphone 15 case", "Apple iPhone 15 leather case"),
        ("travel mug", "Bosch GSR 18V cordless drill driver kit"),
        ("\u7ea2\u8272\u8fde\u8863\u88d9", "\u5973\u58eb\u7ea2\u8272\u96ea\u7eba\u8fde\u8863\u88d9"),
        ("usb c hub 4k", "travel mug steel"),
    ],
)
def test_what_is_not_of_the_shop_is_said_to_be_outside(query, product):
    judge = Judge.load("bundled")
    assert judge.score(query, product).outside.startswith("unknown words: ")
    assert "outside of what this judge has learned" in judge.explain(query, product).text
