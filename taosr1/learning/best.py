"""The weights that a finished stage is judged by: those that it began with, and those of its best checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from taosr1.engine import PLAIN
from taosr1.judge import load_judge
from taosr1.learning.checkpoint_weights import read_weights
from taosr1.learning.distributed_model import DistributedModel
from taosr1.model.decoder import Decoder
from taosr1.model.io.folders import model_folder
from taosr1.model.io.weights import load_weights
from taosr1.model.lora import adapters, adapters_off
from taosr1.runtime.files import verify


def start_and_best(
    distributed: DistributedModel, reference: DistributedModel | None, source: str, run_folder: str
) -> dict[str, AbstractContextManager[Decoder]]:
    """Contexts that return the model with either weights, to be entered one after the other.

    reference: a frozen copy of the start, if one was kept; source: `--model`, which is else read again.
    """
    return {"start": _start(distributed, reference, source), "result": _best(distributed, run_folder)}


@contextmanager
def _start(distributed: DistributedModel, reference: DistributedModel | None, source: str) -> Iterator[Decoder]:
    model = distributed.model
    if adapters(model):
        with adapters_off(model):
            yield model
    elif distributed.sharded:  # no rank has room for a second model: the shards take the start's weights
        load_weights(model, model.source)
        with distributed.unsharded() as copy:
            yield copy
    elif reference:
        yield reference.model
    else:
        plain = distributed.engine is PLAIN
        yield load_judge(source, device=str(distributed.device), plain=plain).model


@contextmanager
def _best(distributed: DistributedModel, run_folder: str) -> Iterator[Decoder]:
    """The best checkpoint's weights are read into the trained model, whose own are not needed any more."""
    folder = Path(model_folder(run_folder))
    verify(folder, without="optimizer")
    read_weights(distributed.model, folder)
    with distributed.unsharded() as model:
        yield model
