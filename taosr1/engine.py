"""The functions that run a decoder, as one object: the plain engine is the readable program, the fast one its twin.

Everything above (training, evaluation, serving) calls `judge.engine` and works with either. `taosr1.fast.enable`
hands over the fast one; every function of it is tested against the plain function.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from taosr1.model.decoder import Decoder
from taosr1.model.logprobs import completion_logp
from taosr1.sampling.generate import decode, generate
from taosr1.sampling.label_probs import label_probabilities


def unchanged(model: Decoder, **_: object) -> Decoder:
    return model


@dataclass(frozen=True)
class Engine:
    """What an engine computes; signatures are those of the plain functions.

    generate: sampled replies (`sampling/generate.py`). label_probabilities: one prefill (`sampling/label_probs.py`).
    decode: one greedy reply, token by token (`sampling/generate.py`).
    completion_logp: log-probs of given replies, differentiable (`model/logprobs.py`).
    prepare: (model) -> model, once after a model is made or gets adapters: gives its modules the engine's classes.
    prepack: (model, decodes=False) -> model for inference only, with its weights in the layout that is fastest;
        decodes: it will generate many tokens.
    shares_prefixes: whether `completion_logp` computes once what rows of a batch begin with alike.
    """

    name: str
    generate: Callable = generate
    label_probabilities: Callable = label_probabilities
    decode: Callable = decode
    completion_logp: Callable = completion_logp
    prepare: Callable[[Decoder], Decoder] = unchanged
    prepack: Callable[..., Decoder] = unchanged
    shares_prefixes: bool = False


PLAIN = Engine("plain")
PLAIN_HELP = "the plain program: every prompt computed in full; slower, more memory, the same numbers to rounding"
