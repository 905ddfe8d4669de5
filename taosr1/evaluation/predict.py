"""Predictions of a judge: from one prefill where the label comes first, from a greedy reply where it comes last."""

from __future__ import annotations

from collections.abc import Sequence

from taosr1.evaluation.metrics import macro_f1
from taosr1.evaluation.report import Prediction
from taosr1.judge import Judge
from taosr1.sampling.labels import label_probabilities
from taosr1.sampling.sampler import Rollouts, generate
from taosr1.task.grades import GRADES
from taosr1.task.judgements import Judgement
from taosr1.task.prompt import Reply, parse_reply
from taosr1.task.rules import implied_grade, load_rules


def predict(
    judge: Judge, rows: Sequence[Judgement], *, explain: bool = False, max_new_tokens: int = 96, progress: bool = False
) -> list[Prediction]:
    """One prediction a row. Label-first judges answer from one prefill; `explain` also decodes their chain of thought.

    A pre-CoT judge has to think before it answers: its replies are decoded greedily and it has no label probabilities.
    """
    prompts = judge.prompts(list(rows))
    if judge.prompt.order == "pre-cot":
        replies, _ = greedy_replies(judge, prompts, max_new_tokens)
        return [_with_steps(reply) for reply in replies]
    scored = label_probabilities(judge.model, judge.tokenizer, prompts, progress=progress)
    grades = (scored.probs.argmax(-1) + GRADES[0]).tolist()
    columns = [grades, scored.probs.tolist(), scored.label_mass.tolist()]
    if not (explain and judge.prompt.order == "post-cot"):
        return [Prediction(grade, tuple(probs), mass) for grade, probs, mass in zip(*columns)]
    replies, _ = greedy_replies(judge, prompts, max_new_tokens)
    steps = [_with_steps(reply) for reply in replies]
    return [
        Prediction(grade, tuple(probs), mass, step.decision, step.implied)
        for grade, probs, mass, step in zip(*columns, steps)
    ]


def greedy_replies(judge: Judge, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> tuple[list[Reply], Rollouts]:
    """The most likely continuation of every prompt, token by token, parsed."""
    stop_ids = judge.tokenizer.eos_ids
    rollouts = generate(judge.model, prompts, max_new_tokens=max_new_tokens, temperature=0, stop_ids=stop_ids)
    return [parse_reply(reply_string(judge, ids), judge.prompt.order) for ids in rollouts.replies()], rollouts


def reply_string(judge: Judge, ids: Sequence[int]) -> str:
    """A sampled reply as text, without its end-of-sequence token."""
    return judge.tokenizer.decode([token for token in ids if token not in judge.tokenizer.eos_ids])


def _with_steps(reply: Reply) -> Prediction:
    return Prediction(reply.grade, decision=reply.decision, implied=implied_grade(reply, _RULES))


_RULES = load_rules()


def dev_scores(judge: Judge, rows: Sequence[Judgement], max_new_tokens: int = 96) -> dict[str, float]:
    """What the training loop logs and picks its best checkpoint by."""
    predictions = predict(judge, rows, max_new_tokens=max_new_tokens)
    gold = [row.grade for row in rows]
    unparsed = sum(prediction.grade is None for prediction in predictions) / len(rows)
    return {
        "dev_macro_f1": macro_f1(gold, [prediction.grade for prediction in predictions]),
        "dev_unparsed_frac": unparsed,
    }
