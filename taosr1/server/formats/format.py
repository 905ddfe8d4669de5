"""What the formats have in common: a request becomes pairs to score, and scores become a reply."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from taosr1.server.errors import Refused
from taosr1.server.limits import Limits
from taosr1.server.served import Served
from taosr1.serving.explain import Explanation
from taosr1.serving.scorer import Score
from taosr1.task.judgement import Judgement


@dataclass(frozen=True)
class Ask:
    """What a request asks for.

    pairs: to be scored, in the order of the reply's indices.
    prompts: in place of pairs, what is scored as token ids that the client has put together.
    explain: the five steps of every pair, too. judge: "" is the served one, "compare" that of --compare.
    rubric: the rubric hash that the client expects, "" for any.
    options: the format's own, for its reply.
    """

    pairs: Sequence[Judgement]
    prompts: Sequence[Sequence[int]] = ()
    explain: bool = False
    judge: str = ""
    rubric: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What was found for an `Ask`, in the order of its pairs. tokens: of all prompts. id: of the request."""

    scores: Sequence[Score]
    explanations: Sequence[Explanation]
    served: Served
    tokens: int
    id: str


@dataclass(frozen=True)
class Format:
    """One format: where it is asked, and how its bodies are read and written.

    read(body, served, limits) -> Ask; body is parsed JSON of any type. Raises: Refused with 422 (or the status that
        the format's own documents name).
    reply(ask, answer) -> the JSON of a 200.
    error(refused) -> the JSON of any other status.
    """

    name: str
    paths: tuple[str, ...]
    read: Callable[[Any, Served, Limits], Ask]
    reply: Callable[[Ask, Answer], Any]
    error: Callable[[Refused], Any]
