"""Sampled replies to one or many pairs, parsed: what a judge says when it is asked several times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from taosr1.judge_model import JudgeModel
from taosr1.sampling.replies import SampledReply, sampled_replies
from taosr1.serving.explain import steps_of
from taosr1.task.judgement import Judgement
from taosr1.task.prompt import parse_reply


@dataclass(frozen=True)
class Sample:
    """One sampled reply. grade: None where it cannot be parsed. The five steps: "" where it lacks one.

    logp: of the whole reply at the sampling temperature, before top-k and top-p. tokens: its number of tokens, the
    end-of-sequence token included. finished: it was not cut at its limit.
    """

    text: str
    grade: int | None
    query: str
    item: str
    category: str
    attributes: str
    decision: str
    decision_grade: int | None
    well_formed: bool
    logp: float
    tokens: int
    finished: bool


def sample_replies(
    judge: JudgeModel, rows: Sequence[Judgement], *, samples: int, generator: torch.Generator | None = None,
    uniform: torch.Tensor | None = None, max_new_tokens: int = 128, temperature: float = 1.0, top_k: int = 0,
    top_p: float = 1.0,
) -> list[SampledReply]:  # fmt: skip
    """`samples` replies to every row, row after row. generator, uniform: as of `generate`."""
    rollouts = judge.engine.generate(
        judge.model, judge.prompts(list(rows)), samples=samples, max_new_tokens=max_new_tokens,
        temperature=temperature, top_k=top_k, top_p=top_p, stop_ids=judge.tokenizer.eos_ids, generator=generator,
        uniform=uniform,
    )  # fmt: skip
    return sampled_replies(rollouts, judge.reply_text)


def parsed(sampled: SampledReply, order: str) -> Sample:
    """A sampled reply with what its text says. order: of the judge's reply."""
    reply = parse_reply(sampled.text, order)
    length = {"logp": sampled.logp, "tokens": len(sampled.ids), "finished": sampled.finished}
    return Sample(sampled.text, reply.grade, **steps_of(reply), **length)
