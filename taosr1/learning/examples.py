"""Judgements become examples to learn: the prompt and the reply, in the judge's order of reply."""

from __future__ import annotations

from collections.abc import Sequence

from taosr1.judge_model import JudgeModel
from taosr1.learning.batches import Example
from taosr1.task.judgement import Judgement
from taosr1.task.prompt import encode_reply, label_of_cot, reply_text


def examples_of(judge: JudgeModel, rows: Sequence[Judgement], flag: str = "--data") -> list[Example]:
    """Each row as prompt and reply ids, in the judge's order of reply.

    Raises: ValueError for a prompt and reply that are longer than the model's positions; `flag` is where the rows came
        from.
    """
    order, tokenizer, positions = judge.prompt.order, judge.tokenizer, judge.model.config.max_position_embeddings
    replies = [encode_reply(tokenizer, reply_text(order, row.grade, row.cot)) for row in rows]
    examples = [Example(prompt, reply) for prompt, reply in zip(judge.prompts(list(rows)), replies)]
    for number, example in enumerate(examples, start=1):
        if example.length_tok > positions:
            tokens = f"{len(example.prompt)} + {len(example.reply)} tokens with its reply"
            limit = f"the model has {positions} positions; shorten its chain of thought"
            raise ValueError(f"{flag}: row {number} takes {tokens}, {limit}")
    return examples


def agreeing(rows: Sequence[Judgement]) -> list[Judgement]:
    """The rows whose chain of thought decides for the gold grade: a simple filter of a teacher's errors that works.

    Raises: ValueError where none does.
    """
    kept = [row for row in rows if label_of_cot(row.cot) == row.grade]
    left_out = len(rows) - len(kept)
    print(f"{left_out} of {len(rows)} chains of thought contradict the gold grade and are left out")
    if not kept:
        hint = "which leaves no row to learn from (train/sft.py --cots all takes them all)"
        raise ValueError(f"every chain of thought contradicts its gold grade, {hint}")
    return kept
