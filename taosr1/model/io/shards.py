"""Tensors that lie in shards on several ranks, in and out of safetensors, by torch.distributed.checkpoint.

Every rank writes what it holds, and what was written by N ranks is read by M: each takes the slices that it needs. No pickle: of DCP's
formats this uses the one of Hugging Face, so a consolidated folder is one that anybody loads.
"""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import torch
from torch import Tensor

from taosr1.runtime.distributed import lost_contact

SHARD_FOLDER = "sharded"  # where DCP puts the ranks' pieces while it joins them


def read_sharded(tensors: dict[str, Tensor], folder: str | Path) -> None:
    """Fill tensors, sharded or not, from the .safetensors files of a folder, whoever wrote them. Other tensors there are left alone.

    Raises: ValueError naming the folder, where a tensor is missing or has another shape.
    """
    import torch.distributed.checkpoint as dcp

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            dcp.load(dict(tensors), storage_reader=dcp.HuggingFaceStorageReader(str(folder)), no_dist=not torch.distributed.is_initialized())
    except (RuntimeError, dcp.CheckpointException, AssertionError) as error:
        if lost_contact(error) or isinstance(error, torch.OutOfMemoryError):
            raise
        raise ValueError(f"{folder}: its tensors do not fit ({cause_of(error)})") from error


def stored_shapes(folder: str | Path) -> dict[str, tuple[int, ...]]:
    """Names and whole shapes of the tensors in a folder's .safetensors files, joined over their pieces."""
    import torch.distributed.checkpoint as dcp

    metadata = dcp.HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {name: tuple(entry.size) for name, entry in metadata.items()}


def write_sharded(tensors: dict[str, Tensor], folder: Path, *, join: dict[str, int] | None = None) -> None:
    """Write tensors from all ranks into a folder; every rank calls this.

    join: None leaves one file a rank. Else the number, from 1, of the file that each tensor goes to: rank 0 joins the pieces to
        model-NNNNN-of-NNNNN.safetensors with an index, as Hugging Face has them.
    """
    import torch.distributed.checkpoint as dcp

    writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True, fqn_to_index_mapping=join, enable_consolidation=join is not None)
    dcp.save(dict(tensors), storage_writer=writer)
    if join is not None and torch.distributed.get_rank() == 0:
        shutil.rmtree(folder / SHARD_FOLDER)


def cause_of(error: BaseException) -> str:
    """What went wrong, in a line. DCP's exception holds each rank's own, tracebacks and all."""
    failures = getattr(error, "failures", {})
    return "; ".join(f"rank {rank}: {wrapped[0]}" for rank, wrapped in failures.items()) or next(iter(str(error).splitlines()), type(error).__name__)
