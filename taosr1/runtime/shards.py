"""Tensors that are sharded over ranks, in and out of safetensors files, by torch.distributed.checkpoint (DCP).

Every rank writes its own slices, and each of any other number of ranks reads the slices it needs. No pickle: of DCP's
formats this is the one of Hugging Face, so that a consolidated folder loads everywhere.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from taosr1.runtime.distributed import lost_contact


def is_sharded(tensors: Iterable[Tensor]) -> bool:
    """Whether any of the tensors is a slice of one that is distributed over ranks (a DTensor)."""
    return any(hasattr(tensor, "full_tensor") for tensor in tensors)


def read_sharded(tensors: dict[str, Tensor], folder: str | Path) -> None:
    """Fill tensors, sharded or not, from a folder's .safetensors files, whatever number of ranks wrote them.

    Raises: ValueError naming the folder, where a tensor is missing or has another shape.
    """
    import torch.distributed.checkpoint as dcp

    reader, alone = dcp.HuggingFaceStorageReader(str(folder)), not torch.distributed.is_initialized()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            dcp.load(dict(tensors), storage_reader=reader, no_dist=alone)
    except (RuntimeError, dcp.CheckpointException, AssertionError) as error:
        if lost_contact(error) or isinstance(error, torch.OutOfMemoryError):
            raise
        raise ValueError(f"{folder}: its tensors do not fit ({cause_of(error)})") from error


def stored_shapes(folder: str | Path) -> dict[str, tuple[int, ...]]:
    """Name and unsharded shape of each tensor in a folder's .safetensors files."""
    import torch.distributed.checkpoint as dcp

    metadata = dcp.HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {name: tuple(entry.size) for name, entry in metadata.items()}


def write_sharded(tensors: dict[str, Tensor], folder: Path, *, join: dict[str, int] | None = None) -> None:
    """Write tensors from all ranks into a folder; every rank calls it.

    join: None writes one file a rank. Otherwise the number (from 1) of the file for each tensor: rank 0 consolidates
        the slices into model-NNNNN-of-NNNNN.safetensors with an index, Hugging Face's layout.
    """
    import torch.distributed.checkpoint as dcp

    writer = dcp.HuggingFaceStorageWriter(
        str(folder), save_distributed=True, fqn_to_index_mapping=join, enable_consolidation=join is not None
    )
    dcp.save(dict(tensors), storage_writer=writer)
    if join is not None and torch.distributed.get_rank() == 0:
        shutil.rmtree(folder / "sharded")  # where DCP keeps the ranks' files until it has consolidated them


def cause_of(error: BaseException) -> str:
    """The reason for an error in one line; DCP's exception holds each rank's own error with its traceback."""
    failures = getattr(error, "failures", {})
    by_rank = "; ".join(f"rank {rank}: {wrapped[0]}" for rank, wrapped in failures.items())
    return by_rank or next(iter(str(error).splitlines()), type(error).__name__)
