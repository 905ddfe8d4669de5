"""One prefill per product: grade, tier, four label probabilities and label mass (paper, section 5)."""

from __future__ import annotations

from dataclasses import dataclass, field

from taosr1.judge_model import JudgeModel
from taosr1.sampling.label_probs import LabelProbs
from taosr1.serving.calibration import apply_temperature
from taosr1.serving.tiering import cumulative_tier
from taosr1.task.grades import GRADES


@dataclass(frozen=True)
class Score:
    """One judged pair. `grade` is the most probable label, `tier` is CumPT's: they may differ where mass is spread.

    probs: P(grade 1..4), sums to 1. label_mass: full-vocabulary probability that the first token is a label at all.
    outside: why the pair is outside of what the judge has learned (`serving/outside.py`), "" where it is not.
    score: one number to sort by, computed here: the expected grade brought to [0, 1], (sum of g * P(g) - 1) / 3.
        Choice: it uses all four probabilities, where grade and tier only say which threshold is passed. 0 is certainly
        Irrelevant, 1 certainly Excellent.
    """

    grade: int
    tier: str
    probs: tuple[float, float, float, float]
    label_mass: float
    outside: str = ""
    score: float = field(init=False)

    def __post_init__(self) -> None:
        expected = sum(grade * probability for grade, probability in zip(GRADES, self.probs))
        score = (expected - GRADES[0]) / (GRADES[-1] - GRADES[0])
        # The dataclass is frozen, and sums in float32 reach 1.0000001.
        object.__setattr__(self, "score", min(1.0, max(0.0, score)))

    def judged(self) -> dict:
        """The fields that it is made from, to be stored: `Score(**score.judged())` is it again."""
        return {name: value for name, value in vars(self).items() if name != "score"}


def score_prompts(
    judge: JudgeModel,
    prompts: list[list[int]],
    *,
    beta: float = 0.5,
    temperature: float = 1.0,
    max_tokens_per_batch: int = 16384,
) -> list[Score]:
    """Scores every prompt by one prefill, in input order; the prompts of a judge that answers first.

    Choice: beta = 0.5 ("Good where Good is likelier than not") until `tiering.fit_beta` has seen a dev set; the paper's
    is unpublished. Equal probabilities go to the lower grade. `temperature` scales the probabilities first
    (`calibration.apply_temperature`): it moves tiers, never grades. The label mass is not scaled.
    Shapes: prompts is P lists of token ids, each ending where the reply would begin.
    Raises: ValueError as `label_probabilities`, `apply_temperature` and `cumulative_tier`.
    """
    found = judge.engine.label_probabilities(
        judge.model, judge.tokenizer, prompts, max_tokens_per_batch=max_tokens_per_batch
    )
    return scores_of(found, beta=beta, temperature=temperature)


def scores_of(found: LabelProbs, *, beta: float, temperature: float) -> list[Score]:
    """What label probabilities mean under a beta and a temperature, as `score_prompts` says."""
    grades = (found.probs.argmax(-1) + GRADES[0]).tolist()
    probs = found.probs if temperature == 1 else apply_temperature(found.probs, temperature)
    columns = (grades, cumulative_tier(probs, beta), probs.tolist(), found.label_mass.tolist())
    return [Score(grade, tier, tuple(probs), mass) for grade, tier, probs, mass in zip(*columns)]
