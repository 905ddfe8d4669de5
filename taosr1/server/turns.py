"""Whose prompts come next: micro-batches of prompt tokens, shared out among the requests that wait."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from taosr1.judge import Judge
from taosr1.serving.scorer import Score

TURN_FRAC = 0.25  # of a micro-batch: smaller is fairer, but a request's query is computed once in every micro-batch
SHORTEST_PREFIX = 16  # as in `taosr1/fast/prefix_groups.py`: where prompts share fewer tokens each computes its own


@dataclass(eq=False)
class Call:
    """One `score` that is not answered yet.

    costs: tokens that each prompt adds to a micro-batch that holds the prompt before it.
    credit: tokens that are left of its turn; below 0 where the last prompt took more. taken: prompts that were given to
        the model. found: the scores of the first of them.
    """

    judge: Judge
    prompts: Sequence[Sequence[int]]
    group: Hashable
    answer: asyncio.Future
    begun: float
    costs: list[int] = field(default_factory=list)
    credit: float = 0.0
    taken: int = 0
    taken_at: float = 0.0
    found: list[Score] = field(default_factory=list)


def share_out(waiting: dict[Call, None], budget: int) -> tuple[dict[Call, int], int]:
    """Take the next micro-batch from the calls that wait: prompts of each call, and tokens to be computed for all.

    Deficit round robin, by tokens: the call in front has the first turn, then those of its group, then the others in
    their order, and a call whose turn is over goes to the end. A turn ends once it has taken TURN_FRAC of the budget;
    what its last prompt took more is taken from its next one. So in every micro-batch the call in front advances, and
    no call is in front again before all others were.

    A micro-batch has prompts of one judge only: the first call's.
    """
    turns: dict[Call, int] = {}
    front, total = next(iter(waiting), None), 0
    order = deque(call for call in waiting if call.judge is front.judge)
    order = deque(sorted(order, key=lambda call: call.group != front.group))  # stable
    while order:
        call = order.popleft()
        if call.credit <= 0:
            call.credit += TURN_FRAC * budget
        while call.credit > 0 and call.taken < len(call.prompts):
            cost = call.costs[call.taken] if call in turns else len(call.prompts[call.taken])
            if turns and total + cost > budget:
                return turns, total
            turns[call] = turns.get(call, 0) + 1
            call.taken, call.credit, total = call.taken + 1, call.credit - cost, total + cost
        del waiting[call]
        if call.taken < len(call.prompts):
            waiting[call] = None
            order.append(call)
    return turns, total


def added_tokens(prompts: Sequence[Sequence[int]]) -> list[int]:
    """Tokens of each prompt that the one before it does not begin with: what it adds to a pass that computes both."""
    added, before, shared = [], [], 0
    for prompt in prompts:
        most = min(len(before), len(prompt) - 1)
        if shared > most or before[:shared] != prompt[:shared]:  # usually it shares as many as the ones before it
            shared = 0
        while shared < most and before[shared] == prompt[shared]:
            shared += 1
        added.append(len(prompt) - (shared if shared >= SHORTEST_PREFIX else 0))
        before = prompt
    return added
