"""Explains one pair as it is decoded: the score, then tokens, each step as its line is complete, and the notes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from taosr1.judge_model import JudgeModel
from taosr1.sampling.label_probs import LabelProbs, read_labels
from taosr1.serving.explain import Explanation, explanation_of, steps_of
from taosr1.serving.scorer import Score, scores_of
from taosr1.task.grades import GRADES
from taosr1.task.judgement import COT_STEPS, Judgement
from taosr1.task.prompt import parse_reply


@dataclass(frozen=True)
class Scored:
    """The first event: what the prefill says about the pair. The reply will begin with its grade."""

    score: Score


@dataclass(frozen=True)
class Token:
    """Text that was decoded. Together these are the reply; a token may give none, where a character takes several."""

    text: str


@dataclass(frozen=True)
class Step:
    """A line of the reply is complete. name: query, item, category, attributes or decision, each at most once."""

    name: str
    text: str


@dataclass(frozen=True)
class Explained:
    """The last event: all of it, as `explain` returns it. `explanation.notes` are the warnings."""

    explanation: Explanation


Event = Scored | Token | Step | Explained


def stream_explanation(
    judge: JudgeModel, row: Judgement, *, beta: float, temperature: float = 1.0, max_new_tokens: int = 128
) -> Iterator[Event]:
    """The explanation of `serving.explain.explain` as events, each computed when it is asked for.

    One prefill gives the score and the keys and values for the reply, which is decoded greedily. A judge of labels
    alone gives `Scored` and `Explained`; a thinker, which has no score, gives its tokens first.
    Raises: ValueError as `explain`.
    """
    order, tokenizer = judge.prompt.order, judge.tokenizer
    logits, step = judge.engine.decode(judge.model, judge.prompts([row])[0], max_new_tokens)
    score, token = None, int(logits.argmax())
    if order != "pre-cot":
        probs, label_mass = (found.cpu() for found in read_labels(logits[None], tokenizer.label_ids))
        found = LabelProbs(probs, label_mass).checked()
        score = scores_of(found, beta=beta, temperature=temperature)[0]
        token = tokenizer.label_ids[score.grade - GRADES[0]]
        yield Scored(score)
    if order == "label":
        yield Explained(explanation_of(judge, row, beta=beta, score=score))
        return
    ids, text, steps = [token], "", 0
    while True:
        ended = ids[-1] in tokenizer.eos_ids or len(ids) == max_new_tokens
        before, text = text, judge.reply_text(ids)
        # A character of which bytes are still to come is decoded as U+FFFD.
        text = text if ended else text.rstrip("\ufffd")
        yield Token(text[len(before) :])
        found = _steps(text if ended else text[: text.rfind("\n") + 1], order)
        yield from found[steps:]
        steps = len(found)
        if ended:
            break
        ids.append(_likeliest(step(ids[-1])))
    finished = ids[-1] in tokenizer.eos_ids
    yield Explained(explanation_of(judge, row, beta=beta, score=score, ids=ids, finished=finished))


def _steps(lines: str, order: str) -> list[Step]:
    """The steps in the complete lines of a reply, in the order in which they were found."""
    reply = steps_of(parse_reply(lines, order))
    names = [name.lower() for name in COT_STEPS]
    places = {name: lines.find(f"{name.capitalize()}:") for name in names}
    return [Step(name, reply[name]) for name in sorted(names, key=places.get) if reply[name]]


def _likeliest(logits: Tensor) -> int:
    """The greedy next token. Raises: ValueError as `generate`."""
    if bool(logits.isnan().any()):
        raise ValueError("the logits are not finite: the weights hold NaN, or --dtype overflows")
    return int(logits.argmax())
