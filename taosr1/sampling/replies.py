"""One sampled reply as one small object, for jobs that store, filter or compare replies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class SampledReply:
    """A reply to a prompt, as a model sampled it or as its row's teacher wrote it.

    source: "model" or "teacher". text: without the end-of-sequence token. ids: its tokens, that one included.
    logp: summed over `ids`, at the sampling temperature; None for a teacher's. finished: it was not cut at its limit.
    """

    source: str
    text: str
    ids: list[int]
    logp: float | None = None
    finished: bool = True


def sampled_replies(rollouts, text_of: Callable[[list[int]], str]) -> list[SampledReply]:
    """The replies in what `generate` returned, prompt-major. text_of: token ids to text, as `JudgeModel.reply_text`."""
    columns = (rollouts.replies(), rollouts.logp.sum(dim=1).tolist(), rollouts.finished.tolist())
    return [SampledReply("model", text_of(ids), ids, logp, finished) for ids, logp, finished in zip(*columns)]
