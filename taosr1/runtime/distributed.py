"""The processes of one job, seen from one of them. `torchrun` starts them and says in the environment who is who.

    torchrun --standalone --nproc_per_node=8 train/grpo.py --device cuda

One process without torchrun is a job of one rank: every function here then does nothing, so scripts have one path for both.
"""

from __future__ import annotations

import heapq
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

T = TypeVar("T")
TIMEOUT = timedelta(minutes=30)  # more than the longest that one rank works while the others wait for it: a large checkpoint


@dataclass(frozen=True)
class Ranks:
    """Rank `rank` of `world`, the `local`-th on its machine."""

    rank: int = 0
    world: int = 1
    local: int = 0

    def __post_init__(self) -> None:
        if not (self.world >= 1 and 0 <= self.rank < self.world and self.local >= 0):
            raise ValueError(f"RANK={self.rank}, WORLD_SIZE={self.world}, LOCAL_RANK={self.local}: expected 0 <= RANK < WORLD_SIZE")

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes what is written once, and prints."""
        return self.rank == 0


def this_rank() -> Ranks:
    """Who this process is.

    Raises: ValueError where RANK, WORLD_SIZE or LOCAL_RANK are set and make no sense.
    """
    values = {}
    for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")):
        text = os.environ.get(name, default)
        if not text.isdecimal():
            raise ValueError(f"{name}={text!r} in the environment, expected a number: torchrun sets RANK, WORLD_SIZE and LOCAL_RANK")
        values[name] = int(text)
    return Ranks(values["RANK"], values["WORLD_SIZE"], values["LOCAL_RANK"])


def local_device(device: str, ranks: Ranks) -> str:
    """"cuda" as the GPU of this rank, cuda:LOCAL_RANK, where there are several ranks; any other device as it is."""
    return f"cuda:{ranks.local}" if device == "cuda" and ranks.world > 1 else device


def mute_stdout(ranks: Ranks) -> None:
    """What is said once the first rank says: send what the others print to nowhere."""
    if not ranks.first:
        sys.stdout = open(os.devnull, "w")


def unmute_stdout() -> None:
    """Let this rank print again, where it is the one that has the result."""
    if getattr(sys.stdout, "name", "") == os.devnull and sys.__stdout__ is not None:
        sys.stdout = sys.__stdout__


def share(items: Sequence[T], ranks: Ranks, cost: Callable[[T], float] = lambda item: 1.0) -> list[T]:
    """This rank's part of a list that every rank has: dearest first, each to the rank that has least to do so far.

    Every rank computes the same plan, so nothing is sent; all parts together are the list, each item once.
    """
    if ranks.world == 1:
        return list(items)
    load = [(0.0, rank) for rank in range(ranks.world)]  # a heap: who has least to do comes first
    costs, mine = [float(cost(item)) for item in items], []
    for index in sorted(range(len(items)), key=lambda index: -costs[index]):  # stable
        busy, rank = load[0]
        heapq.heapreplace(load, (busy + costs[index], rank))
        if rank == ranks.rank:
            mine.append(index)
    return [items[index] for index in sorted(mine)]


# --- Talking to the other ranks ---------------------------------------------------------------------------------------
def join(device: str) -> Ranks:
    """Meet the other ranks that torchrun started (a process by itself meets nobody) and make `device` this process's own.

    A rank that dies ends the job: torchrun stops the others, or their next exchange fails. TIMEOUT is for what torchrun cannot see,
    a machine that is gone.
    """
    ranks = this_rank()
    if "WORLD_SIZE" not in os.environ:
        return ranks
    import torch
    import torch.distributed as dist

    if device.startswith("cuda"):
        if ranks.local >= torch.cuda.device_count():
            raise ValueError(f"--device {device}: rank {ranks.rank} wants GPU {ranks.local}, but this machine has {torch.cuda.device_count()}: check --nproc_per_node")
        torch.cuda.set_device(local_device(device, ranks))
    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo", timeout=TIMEOUT)
    return ranks


def part(code: int = 0) -> None:
    """Take leave of the other ranks, so that none of them is left waiting. A rank of several ends right here, with this exit code: the
    threads that DDP and gloo keep abort some exits of Python's own."""
    if _together():
        import torch.distributed as dist

        dist.destroy_process_group()
    if this_rank().world > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def gather(value: T) -> list[T]:
    """Every rank's value, on every rank, in the order of ranks. Anything that can be pickled; keep it small."""
    if not _together():
        return [value]
    import torch.distributed as dist

    values: list = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def on_rank_zero(do: Callable[[], T]) -> T:
    """What `do` returns on the first rank, on every rank; where it raises there, every rank raises the same.

    For what must happen once: opening a run's folder, writing a checkpoint. The others wait for it.
    """
    if not _together():
        return do()
    import torch.distributed as dist

    outcome: list = [None, None]
    if dist.get_rank() == 0:
        try:
            outcome[0] = do()
        except Exception as error:
            outcome[1] = error if _travels(error) else OSError(f"{type(error).__name__}: {error}")
    dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def _travels(error: Exception) -> bool:
    """Whether an exception arrives at another rank as it is: Python's own do, and those that only give them another name."""
    kind = type(error)
    return kind.__module__ == "builtins" or kind.__module__.startswith("taosr1.") and "__init__" not in vars(kind)


def lost_contact(error: BaseException) -> bool:
    """Whether an exchange failed because another rank died."""
    return _together() and (type(error).__name__.startswith("Dist") or any(word in str(error).lower() for word in ("gloo", "nccl", "connection")))


def _together() -> bool:
    """Whether this process has joined others; asks without importing torch where nobody has."""
    distributed = sys.modules.get("torch.distributed")
    return bool(distributed and distributed.is_available() and distributed.is_initialized())
