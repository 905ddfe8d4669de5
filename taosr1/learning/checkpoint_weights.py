"""The model's part of a checkpoint (all weights, in one file or in shards, or the adapters alone; and its prompt), and
the weights that a finished run is judged by.

`runtime.checkpoint` calls these two functions, so that it needs to know no model:

    save_checkpoint(folder, step, optimizers, cursor, skipped, partial(write_weights, model, tokenizer, prompt))
    load_checkpoint(path, optimizers, partial(read_weights, model))
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from taosr1.engine import PLAIN
from taosr1.judge_model import load_judge
from taosr1.learning.distributed_model import DistributedModel
from taosr1.model.decoder import Decoder
from taosr1.model.io.adapters import load_adapters, read_adapter_config
from taosr1.model.io.folders import ADAPTER_CONFIG, weights_fingerprint
from taosr1.model.io.hf_config import from_hf_config
from taosr1.model.io.model_folder import model_folder
from taosr1.model.io.weights import load_weights, save_config_and_tokenizer, save_pretrained, save_weights_sharded
from taosr1.model.lora import adapters, adapters_off
from taosr1.model.tokenizer import Tokenizer
from taosr1.runtime.distributed import on_rank_zero
from taosr1.runtime.files import read_json, verify
from taosr1.runtime.shards import is_sharded
from taosr1.task.prompt import PromptConfig


def write_weights(model: Decoder, tokenizer: Tokenizer, prompt: PromptConfig, folder: Path) -> None:
    """Write a folder that a later stage can load: of a model with adapters a PEFT folder, else a Hugging Face folder.

    Every rank calls it: of a sharded model each writes its own shards.
    """
    sharded = is_sharded(model.parameters())
    if sharded:
        save_weights_sharded(model, folder)

    def write_rest() -> None:
        (save_config_and_tokenizer if sharded else save_pretrained)(model, tokenizer, folder)
        prompt.save(folder)

    on_rank_zero(write_rest)


def read_weights(model: Decoder, folder: Path) -> None:
    """Load a checkpoint's weights into the model, sharded or not.

    Raises: ValueError naming the folder where it holds another kind of weights or another model.
    """
    if adapters(model):
        _check_adapters(model, folder)
        load_adapters(model, folder)
        return
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder}: holds adapters alone, but this run trains all weights (no --lora-rank)")
    stored = from_hf_config(read_json(folder / "config.json"))
    if stored != model.config:
        raise ValueError(f"{folder}: holds a model of another shape ({stored}) than --model ({model.config})")
    load_weights(model, folder)


def _check_adapters(model: Decoder, folder: Path) -> None:
    """Adapters fit only their own base model, at their own rank and scale."""
    if not (folder / ADAPTER_CONFIG).is_file():
        raise ValueError(f"{folder}: holds all weights, but this run trains adapters (--lora-rank)")
    config, base = read_adapter_config(folder)
    if config != adapters(model)[0].lora:
        raise ValueError(f"{folder}: holds adapters with {config}, this run has {adapters(model)[0].lora}")
    if base == model.source:
        return
    if not Path(base).is_dir():  # moved, perhaps with the project: identity.json has compared its content
        note = f"{folder} belongs to {base}, which is not there any more; using {model.source} instead"
        print(f"note: {note}", file=sys.stderr)
    elif weights_fingerprint(base) != weights_fingerprint(model.source):
        raise ValueError(f"{folder}: holds adapters for {base}, but --model is now {model.source}")


@contextmanager
def start_weights(distributed: DistributedModel, reference: DistributedModel | None, source: str) -> Iterator[Decoder]:
    """A model with the weights that a run began with; enter it after the run, and only one such context at a time.

    reference: a frozen copy of the start, if one was kept; source: `--model`, which is else read again.
    """
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
        yield load_judge(source, device=str(distributed.device), plain=distributed.engine is PLAIN).model


@contextmanager
def best_weights(distributed: DistributedModel, run_folder: str) -> Iterator[Decoder]:
    """A model with the best checkpoint's weights, read into the trained one, whose own are not needed any more."""
    folder = Path(model_folder(run_folder))
    verify(folder, without="optimizer")
    read_weights(distributed.model, folder)
    with distributed.unsharded() as model:
        yield model
