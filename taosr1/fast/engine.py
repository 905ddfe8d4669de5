"""The one place where speed is switched on: an engine with the fast functions, and a judge that uses it."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from taosr1.engine import Engine
from taosr1.fast.decoder import use_fast_modules
from taosr1.fast.generate import decode, generate
from taosr1.fast.label_probs import label_probabilities
from taosr1.fast.logprobs import completion_logp
from taosr1.fast.malloc import keep_freed_memory
from taosr1.fast.prepack import prepack

JudgeT = TypeVar("JudgeT")  # a taosr1.judge_model.JudgeModel, which is above this package

FAST = Engine(
    "fast", generate, label_probabilities, decode, completion_logp, use_fast_modules, prepack, shares_prefixes=True
)


def enable(judge: JudgeT) -> JudgeT:
    """The same judge computed by the fast engine: its model's modules are given their fast classes, in place.

    Every number stays the same to rounding; `scripts --plain` leave this out.
    """
    keep_freed_memory()
    return replace(judge, model=use_fast_modules(judge.model), engine=FAST)
