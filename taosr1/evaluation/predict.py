"""Predictions of a judge: from one prefill where the label comes first, from a greedy reply where it comes last."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from math import isnan
from pathlib import Path

from taosr1.data.queries import query_keys
from taosr1.evaluation.metrics import bootstrap_interval, macro_f1
from taosr1.evaluation.ranking import brier_score, expected_calibration_error
from taosr1.evaluation.summary import Prediction
from taosr1.judge_model import JudgeModel
from taosr1.model.decoder import Decoder
from taosr1.runtime.distributed import divide_work, on_rank_zero, this_rank
from taosr1.runtime.files import write_json
from taosr1.runtime.progress import Bar, listening
from taosr1.sampling.rollouts import Rollouts
from taosr1.task.grades import GRADES
from taosr1.task.judgement import Judgement
from taosr1.task.prompt import Reply, parse_reply
from taosr1.task.rules import implied_grade, load_rules


@dataclass(frozen=True)
class Cost:
    """What predictions took: prompts run through the model, and reply tokens decoded (end-of-sequence included)."""

    prefills: int = 0
    decoded_tok: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.prefills + other.prefills, self.decoded_tok + other.decoded_tok)


def predict(
    judge: JudgeModel, rows: Sequence[Judgement], *, explain: bool = False, max_new_tokens: int = 96
) -> list[Prediction]:  # fmt: skip
    """One prediction a row. Label-first judges answer from one prefill; `explain` also decodes their chain of thought.

    A pre-CoT judge has to think before it answers: its replies are decoded greedily and it has no label probabilities.
    """
    return predict_with_cost(judge, rows, explain=explain, max_new_tokens=max_new_tokens)[0]


def predict_with_cost(
    judge: JudgeModel, rows: Sequence[Judgement], *, explain: bool = False, max_new_tokens: int = 96
) -> tuple[list[Prediction], Cost]:  # fmt: skip
    """`predict`, and its cost. `explain` runs each prompt twice: once for the probabilities, once for the reply."""
    prompts = judge.prompts(list(rows))
    if judge.prompt.order == "pre-cot":
        replies, rollouts = greedy_replies(judge, prompts, max_new_tokens)
        return [_with_steps(reply) for reply in replies], Cost(len(prompts), int(rollouts.lengths.sum()))
    scored = judge.engine.label_probabilities(judge.model, judge.tokenizer, prompts)
    grades = (scored.probs.argmax(-1) + GRADES[0]).tolist()
    columns = zip(grades, scored.probs.tolist(), scored.label_mass.tolist())
    predictions = [Prediction(grade, tuple(probs), mass) for grade, probs, mass in columns]
    if not (explain and judge.prompt.order == "post-cot"):
        return predictions, Cost(len(prompts))
    replies, rollouts = greedy_replies(judge, prompts, max_new_tokens)
    steps = zip(predictions, map(_with_steps, replies))
    explained = [replace(found, decision=step.decision, implied=step.implied) for found, step in steps]
    return explained, Cost(2 * len(prompts), int(rollouts.lengths.sum()))


def predict_together(judge: JudgeModel, rows: Sequence[Judgement], max_new_tokens: int = 96) -> list[Prediction]:
    """`predict` by all ranks of a job, each for its share of the rows; every rank gets all predictions."""
    costs = [len(row.query) + len(row.title) for row in rows]

    def work(places: list[int]) -> list[Prediction]:
        return predict(judge, [rows[place] for place in places], max_new_tokens=max_new_tokens)

    return divide_work(costs, work)


def greedy_replies(
    judge: JudgeModel, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> tuple[list[Reply], Rollouts]:
    """The most likely continuation of every prompt, token by token, parsed; a note where most of them were cut."""
    rollouts = judge.engine.generate(
        judge.model, prompts, max_new_tokens=max_new_tokens, temperature=0, stop_ids=judge.tokenizer.eos_ids
    )
    cut = int((~rollouts.finished).sum())
    if cut > len(prompts) / 2:
        limit = f"--max-new-tokens {max_new_tokens}"
        print(f"note: {cut} of {len(prompts)} replies were cut at {limit}: raise it", file=sys.stderr)
    return [parse_reply(judge.reply_text(ids), judge.prompt.order) for ids in rollouts.replies()], rollouts


def _with_steps(reply: Reply) -> Prediction:
    return Prediction(reply.grade, decision=reply.decision, implied=implied_grade(reply, load_rules()))


def dev_scores(judge: JudgeModel, rows: Sequence[Judgement], max_new_tokens: int = 96) -> dict[str, float]:
    """What the training loop logs and chooses its best checkpoint by.

    Returns: macro-F1; the share of unreadable replies; for each grade the share of rows that are given it and, where
    some row has it, the share of those that are found (recall); for judges that answer first, mean label mass, ECE and
    Brier score.
    """
    predictions = predict_together(judge, rows, max_new_tokens)
    gold = [row.grade for row in rows]
    grades = [prediction.grade for prediction in predictions]
    scores = {"dev_macro_f1": macro_f1(gold, grades), "dev_unparsed_frac": grades.count(None) / len(rows)}
    scores |= {f"dev_share/{grade}": grades.count(grade) / len(rows) for grade in GRADES}
    right = [found for found, wanted in zip(grades, gold) if found == wanted]
    scores |= {f"dev_recall/{grade}": right.count(grade) / gold.count(grade) for grade in GRADES if grade in gold}
    probs = [prediction.probs for prediction in predictions]
    if None in probs:
        return scores
    mass = sum(prediction.label_mass for prediction in predictions) / len(rows)
    calibration = {"dev_ece": expected_calibration_error(probs, gold), "dev_brier": brier_score(probs, gold)}
    return scores | {"dev_label_mass": mass} | calibration


def before_and_after(
    judge: JudgeModel, weights: Mapping[str, AbstractContextManager[Decoder]], run_folder: str,
    rows: Sequence[Judgement], max_new_tokens: int = 96,
) -> dict[str, float | None]:  # fmt: skip
    """Held-out macro-F1 of several weights, one after the other, with 95 % intervals over queries (None over one).

    weights: by name ("start", "result"), contexts that return the model; only one is open at a time.
    Prints both, writes them to `run_folder`/test.json and returns them.
    """
    gold, queries = [row.grade for row in rows], query_keys(rows)
    results: dict[str, float | None] = {}
    for name, opened in weights.items():
        silent = not this_rank().is_rank_zero
        bar = Bar(total=len(rows), desc=f"test rows, {name}", unit="row", disable=silent)
        with opened as model, bar, listening(bar.part):
            predictions = predict_together(replace(judge, model=model), rows, max_new_tokens)
            bar.update(len(rows))
        grades = [prediction.grade for prediction in predictions]
        found = bootstrap_interval("macro_f1", gold, grades, queries)
        results |= {f"test_macro_f1_{name}": found.value}
        interval = "95 % interval: none, there is one query"
        low, high = (None, None) if isnan(found.low) else (found.low, found.high)
        if low is not None:
            interval = f"95 % interval {100 * low:.1f} to {100 * high:.1f}"
        results |= {f"test_low_{name}": low, f"test_high_{name}": high}
        print(f"test macro-F1 of the {name}: {100 * found.value:.1f} ({interval})")
    on_rank_zero(lambda: write_json(Path(run_folder) / "test.json", results))
    return results
