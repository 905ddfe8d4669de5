"""The bundled thinker: small, loadable, and trained on the world as it is now."""

from __future__ import annotations

from taosr1.data.sources import load_rows
from taosr1.evaluation.predict import dev_scores
from taosr1.judge_model import BUNDLED, BUNDLED_FOLDER, load_judge


def test_the_bundled_thinker_takes_at_most_four_megabytes():
    assert sum(path.stat().st_size for path in BUNDLED_FOLDER.parent.rglob("*") if path.is_file()) <= 4_000_000


def test_the_bundled_thinker_judges_the_embedded_world():
    """A change of the shop's words or of the reply's form shows here: train it anew (taosr1/bundled/README.md)."""
    scores = dev_scores(load_judge(BUNDLED), load_rows("synthetic:dev", limit=400))
    assert scores["dev_macro_f1"] > 0.55 and scores["dev_unparsed_frac"] < 0.01
