"""Explains one pair: grade, tier and probabilities, the five steps of the reasoning, and all of it as text."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from taosr1.judge_model import JudgeModel
from taosr1.runtime.messages import visible
from taosr1.serving.outside import LOW_MASS, LOW_MASS_REASON
from taosr1.serving.scorer import Score, score_prompts
from taosr1.task.grades import GRADES, TIER_OF_GRADE, grade_name
from taosr1.task.judgement import Judgement
from taosr1.task.prompt import ITEM_FIELDS, Reply, parse_reply
from taosr1.task.rules import implied_grade, load_rules


@dataclass(frozen=True)
class Explanation:
    """One explained pair. What is not known is None: a thinker (pre-CoT) has no probabilities, a reply may be cut.

    judgement: the pair. order: the order of the judge's reply. beta: what CumPT used.
    grade, tier, score, probs, label_mass, outside: as in `Score`; of a thinker the grade that it ends with, and that
        one's tier.
    query, item, category, attributes, decision: the five steps, "" where the reply lacks one.
    decision_grade, implied_grade: the grade on the Decision line, and the one that the steps imply under the rules.
    reply: the text as it was generated. finished: not cut at its limit. well_formed: exactly the lines of its order.
    """

    judgement: Judgement
    order: str
    beta: float
    grade: int | None = None
    tier: str | None = None
    score: float | None = None
    probs: tuple[float, float, float, float] | None = None
    label_mass: float | None = None
    query: str = ""
    item: str = ""
    category: str = ""
    attributes: str = ""
    decision: str = ""
    decision_grade: int | None = None
    implied_grade: int | None = None
    reply: str = ""
    outside: str = ""
    finished: bool = True
    well_formed: bool = True

    @property
    def notes(self) -> list[str]:
        """Warnings about the answer."""
        return notes_on(self)

    @property
    def text(self) -> str:
        """The pair, its grade, tier and probabilities, and the five steps, in the order in which the judge gives them.

        Control characters are escaped: a product title cannot control your terminal.
        """
        return render(self)


def explain(
    judge: JudgeModel, row: Judgement, *, beta: float, temperature: float = 1.0, max_new_tokens: int = 128
) -> Explanation:
    """Grade and probabilities from one prefill, then the reasons for that grade, decoded greedily.

    A thinker reasons first, so its grade is in its reply.
    """
    prompt, score, first_token = judge.prompts([row])[0], None, None
    if judge.prompt.order != "pre-cot":
        score = score_prompts(judge, [prompt], beta=beta, temperature=temperature)[0]
        # The reply is made to begin with the grade that is shown, also where a token that is no label is more probable.
        first_token = torch.tensor([judge.tokenizer.label_ids[score.grade - GRADES[0]]])
    if judge.prompt.order == "label":
        return explanation_of(judge, row, beta=beta, score=score)
    rollouts = judge.engine.generate(
        judge.model, [prompt], max_new_tokens=max_new_tokens, temperature=0, stop_ids=judge.tokenizer.eos_ids,
        first_tokens=first_token,
    )  # fmt: skip
    ids, finished = rollouts.replies()[0], bool(rollouts.finished[0])
    return explanation_of(judge, row, beta=beta, score=score, ids=ids, finished=finished)


def explanation_of(
    judge: JudgeModel, row: Judgement, *, beta: float, score: Score | None = None, ids: list[int] | None = None,
    finished: bool = True,
) -> Explanation:  # fmt: skip
    """What a score (None: a thinker's) and the token ids of a reply (None: of a judge of labels alone) say."""
    order = judge.prompt.order
    found = Explanation(row, order, beta, **vars(score) if score else {}, finished=finished)
    if ids is None:
        return found
    text = judge.reply_text(ids)
    reply = parse_reply(text, order)
    if order == "pre-cot" and reply.grade is not None:
        found = replace(found, grade=reply.grade, tier=TIER_OF_GRADE[reply.grade])
    return replace(found, **steps_of(reply), implied_grade=implied_grade(reply, load_rules()), reply=text)


def steps_of(reply: Reply) -> dict:
    """The five steps of a parsed reply as text, with `decision_grade` and `well_formed`."""
    texts = {name: getattr(reply, name) for name in ("query", "item", "category", "attributes")}
    decision = grade_name(reply.decision) if reply.decision is not None else ""
    return {**texts, "decision": decision, "decision_grade": reply.decision, "well_formed": reply.well_formed}


# ---- As text ---------------------------------------------------------------------------------------------------------


def render(found: Explanation) -> str:
    """One explanation as text."""
    texts = [(name, getattr(found.judgement, name)) for name in ("query", *ITEM_FIELDS)]
    lines = [f"{name:<11} {visible(text)}" for name, text in texts if text]
    verdict = [f"grade       {grade_name(found.grade)}"] if found.grade else []
    if found.probs:
        shown = "  ".join(f"{grade_name(grade)} {found.probs[grade - 1]:.3f}" for grade in GRADES[::-1])
        verdict.append(f"tier        {found.tier} (CumPT, beta {found.beta:.4g})")
        verdict.append(f"score       {found.score:.3f} (expected grade, 0 to 1)")
        verdict += [f"probability {shown}", f"label mass  {found.label_mass:.3f}"]
    elif found.grade:
        verdict.append(f"tier        {found.tier}")
    steps = found.reply.split("\n")[1 if found.order == "post-cot" else 0 :]
    reasons = [f"  {visible(line)}" for line in steps if line.strip()]
    lines += reasons + verdict if found.order == "pre-cot" else verdict + reasons
    return "\n".join(lines + [f"note: {note}" for note in found.notes])


def notes_on(found: Explanation) -> list[str]:
    """Warnings about the answer."""
    grade, warnings = found.grade, []
    if grade is None:
        warnings.append("no grade: the reply cannot be parsed")
    if found.outside and found.outside != LOW_MASS_REASON:
        warnings.append(f"outside of what this judge has learned, so the grade means nothing ({found.outside})")
    if found.label_mass is not None and found.label_mass < LOW_MASS:
        warnings.append("low label mass: this model rarely answers with a label, so the grade means little")
    if found.probs and found.tier != TIER_OF_GRADE[found.grade]:
        warnings.append(f"the most probable grade alone would be {TIER_OF_GRADE[found.grade]}: {WHY_THEY_DIFFER}")
    if not found.finished:
        warnings.append("the reply was cut: raise --max-new-tokens")
    elif not found.well_formed and grade is not None:
        warnings.append("the reasoning does not have the five lines it should have")
    if found.order == "label":
        warnings.append("this judge was trained to answer with the grade alone: it gives no reasons")
    says = (("its Decision line says", found.decision_grade), ("by the rules its steps imply", found.implied_grade))
    for what, other in says:
        if grade is not None and other is not None and other != grade:
            warnings.append(f"reasoning and grade disagree: {what} {grade_name(other)}")
    return warnings


WHY_THEY_DIFFER = "CumPT adds up P(4), P(3), ... until beta is reached, so probability on the other grades counts too"
