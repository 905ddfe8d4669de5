"""What a judge has to show before it serves anybody: right scores for a few pairs of the embedded shop."""

from __future__ import annotations

import json
import math
from pathlib import Path

from taosr1.judge_model import BUNDLED_STUDENT
from taosr1.server.served import Served
from taosr1.serving.outside import LOW_MASS
from taosr1.serving.scorer import score_prompts
from taosr1.synthetic.shop import read_pool
from taosr1.task.judgement import Judgement

PAIRS = 8
# The bundled student's unscaled probabilities of a few pairs, as they should be on any machine.
GOLDEN = Path(__file__).parent / "golden.json"
# A batch adds up in another order than one row alone: about 1e-6 in float32, 1e-2 with fewer bits.
TOLERANCE, COARSE = 1e-4, 0.05


def self_test(served: Served, *, exact: bool) -> list[str]:
    """Warnings about a judge that may be served.

    A wrong kernel, a wrong template or damaged weights show here, and not in a shop's ranking.
    exact: in float32, so that only the order of sums may differ.
    Raises: ValueError where scores are not finite, where pairs scored together and alone differ, or where the bundled
        student's probabilities are not the known ones.
    """
    model, tolerance = served.judge.model, TOLERANCE if exact else COARSE
    failed = f"{served.name} failed the self-test and is not served"
    prompts = model.prompts(read_pool("dev")[:PAIRS])
    together = score_prompts(model, prompts)
    if not all(math.isfinite(number) for score in together for number in (*score.probs, score.label_mass)):
        raise ValueError(f"{failed}: its probabilities are not finite")
    alone = [score_prompts(model, [prompt])[0] for prompt in prompts]
    gap = _gap([score.probs for score in together], [score.probs for score in alone])
    if gap > tolerance:
        raise ValueError(f"{failed}: pairs scored alone and together differ by {gap:.2g}, expected {tolerance:.2g}")
    if served.name == BUNDLED_STUDENT:
        golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
        known = [Judgement(pair["query"], title=pair["title"], price=pair["price"]) for pair in golden]
        found = score_prompts(model, model.prompts(known))
        gap = _gap([score.probs for score in found], [pair["probs"] for pair in golden])
        if gap > tolerance:
            raise ValueError(f"{failed}: its known probabilities differ by {gap:.2g}; install the package again")
    mass = sum(score.label_mass for score in together) / len(together)
    if mass < LOW_MASS:
        return [f"{served.name} rarely answers with a label (mean label mass {mass:.3f}), so its scores mean little"]
    return []


def _gap(found: list, expected: list) -> float:
    """The largest difference between two lists of probabilities."""
    return max(abs(a - b) for one, other in zip(found, expected, strict=True) for a, b in zip(one, other, strict=True))
