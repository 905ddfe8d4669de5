"""The weights that a finished stage is judged by: those that it began with, and those of its best checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from taosr1.engine import PLAIN
from taosr1.judge import load_judge
from taosr1.learning.checkpoint_weights import read_weights
from taosr1.learning.distributed_model import DistributedModel
from taosr1.model.decoder import Decoder
from taosr1.model.io.folders import model_folder
from taosr1.model.io.weights import load_weights_sharded
from taosr1.model.lora import adapters, adapters_off
from taosr1.runtime.files import verify


@contextmanager
def start_weights(distributed: DistributedModel, source: str, kept: Decoder | None) -> Iterator[Decoder]:
    """The weights of `--model source`. Where all weights were trained and no copy was `kept`, they are read again."""
    model = distributed.model
    if adapters(model):
        with adapters_off(model):
            yield model
    elif distributed.sharded:  # no rank has room for a second model: the shards take the start's weights
        load_weights_sharded(model, model.source)
        with distributed.unsharded() as copy:
            yield copy
    else:
        plain = distributed.engine is PLAIN
        yield kept or load_judge(source, device=str(distributed.device), plain=plain).model


@contextmanager
def best_weights(distributed: DistributedModel, run_folder: str) -> Iterator[Decoder]:
    """The best checkpoint's weights, read into the trained model."""
    folder = Path(model_folder(run_folder))
    verify(folder, without="optimizer")
    read_weights(distributed.model, folder)
    with distributed.unsharded() as model:
        yield model
