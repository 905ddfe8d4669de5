"""The ranks of a job, as one of them sees them. `torchrun` starts them and describes each in its environment.

    torchrun --standalone --nproc_per_node=8 train/grpo.py --device cuda

A process without torchrun is a job of one rank, for which every function here is the identity: scripts need one path.
"""

from __future__ import annotations

import heapq
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

T = TypeVar("T")
_MAY_GIVE_UP: ContextVar[bool] = ContextVar("may_give_up", default=False)
TIMEOUT = timedelta(minutes=30)  # longer than any work of one rank that the others wait for: a large checkpoint


@dataclass(frozen=True)
class Ranks:
    """Rank `rank` of `world`, number `local` on its machine."""

    rank: int = 0
    world: int = 1
    local: int = 0

    @property
    def is_rank_zero(self) -> bool:
        """Whether this is the rank that prints, and writes what is written once."""
        return self.rank == 0


def this_rank() -> Ranks:
    """This process's rank, by its environment.

    Raises: ValueError where RANK, WORLD_SIZE or LOCAL_RANK are set to something impossible.
    """
    found = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    found = {name: os.environ.get(name, default) for name, default in found.items()}
    rank, world, local = (int(text) if text.isdecimal() else -1 for text in found.values())
    if not 0 <= rank < world or local < 0:
        shown = ", ".join(f"{name}={text!r}" for name, text in found.items())
        raise ValueError(f"{shown} in the environment, expected numbers, 0 <= RANK < WORLD_SIZE: torchrun sets them")
    return Ranks(rank, world, local)


def local_device(device: str, ranks: Ranks) -> str:
    """"cuda" as this rank's GPU, cuda:LOCAL_RANK, where there are several ranks; any other device unchanged."""
    return f"cuda:{ranks.local}" if device == "cuda" and ranks.world > 1 else device


def mute_stdout(ranks: Ranks) -> None:
    """Only rank 0 prints: discard what the other ranks print."""
    if not ranks.is_rank_zero:
        sys.stdout = open(os.devnull, "w")


def unmute_stdout() -> None:
    """Let this rank print again, where it is the one that has the result."""
    if getattr(sys.stdout, "name", "") == os.devnull and sys.__stdout__ is not None:
        sys.stdout = sys.__stdout__


def share(items: Sequence[T], ranks: Ranks, cost: Callable[[T], float] = lambda item: 1.0) -> list[T]:
    """This rank's share of a list that every rank has: the most expensive item first, each to the least loaded rank.

    Every rank computes the same plan, so nothing is sent; each item is in exactly one rank's share.
    """
    if ranks.world == 1:
        return list(items)
    load = [(0.0, rank) for rank in range(ranks.world)]  # a heap: the least loaded rank comes first
    costs, mine = [float(cost(item)) for item in items], []
    for index in sorted(range(len(items)), key=lambda index: -costs[index]):  # stable
        busy, rank = load[0]
        heapq.heapreplace(load, (busy + costs[index], rank))
        if rank == ranks.rank:
            mine.append(index)
    return [items[index] for index in sorted(mine)]


# ---- Communication ---------------------------------------------------------------------------------------------------
def init_process_group(device: str) -> Ranks:
    """Connect to the other ranks that torchrun started, if any, and make `device` this process's own.

    A rank that dies ends the job: torchrun stops the others, or their next collective operation fails. TIMEOUT is for
    what torchrun cannot notice, a machine that is gone.
    Raises: ValueError for a GPU that this machine does not have.
    """
    ranks = this_rank()
    if "WORLD_SIZE" not in os.environ:
        return ranks
    import torch
    import torch.distributed as dist

    if device.startswith("cuda"):
        count = torch.cuda.device_count()
        if ranks.local >= count:
            problem = f"rank {ranks.rank} needs GPU {ranks.local}, but this machine has {count}"
            raise ValueError(f"--device {device}: {problem}: check --nproc_per_node")
        torch.cuda.set_device(local_device(device, ranks))
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
        dist.init_process_group(backend, timeout=TIMEOUT)
    return ranks


def shutdown(code: int = 0) -> None:
    """Disconnect from the other ranks, so that none of them waits for this one.

    With several ranks the process ends here, with this exit code: threads of DDP and gloo abort some normal exits.
    """
    if dist := _connected():
        dist.destroy_process_group()
    if this_rank().world > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def gather(value: T) -> list[T]:
    """Every rank's value, on every rank, in the order of ranks. Anything that can be pickled; keep it small."""
    dist = _connected()
    if not dist:
        return [value]
    values: list = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


class GivenUp(BaseException):
    """What is being computed is given up, by all ranks at the same place: a stop was asked for."""


def may_give_up() -> bool:
    """Whether this rank may raise `GivenUp` here: one that left others waiting for it would block them."""
    return _MAY_GIVE_UP.get() or not _connected()


@contextmanager
def given_up_together() -> Iterator[None]:
    """A part of the work without communication that a rank may give up: at its end all ranks do, if one of them did."""
    token, gave_up = _MAY_GIVE_UP.set(True), False
    try:
        yield
    except GivenUp:
        gave_up = True
    finally:
        _MAY_GIVE_UP.reset(token)
    if max(gather(gave_up)):
        raise GivenUp


def divide_work(costs: Sequence[float], work: Callable[[list[int]], list[T]]) -> list[T]:
    """The results of `work` for items of these costs, in their order, on every rank; keep them small.

    work(places) returns the results of the items at these places, without communication. Each rank calls it once, for
    its share of them; it may give up.
    """
    places = share(range(len(costs)), this_rank(), lambda place: costs[place])
    with given_up_together():
        found = dict(zip(places, work(places)))
    found = {place: result for of_rank in gather(found) for place, result in of_rank.items()}
    return [found[place] for place in range(len(costs))]


def on_rank_zero(do: Callable[[], T]) -> T:
    """What `do` returns on rank 0, on every rank; where it raises there, every rank raises the same.

    For what must happen once: opening a run's folder, writing a checkpoint. The other ranks wait for it.
    """
    dist = _connected()
    if not dist:
        return do()
    outcome: list = [None, None]
    if dist.get_rank() == 0:
        try:
            outcome[0] = do()
        except Exception as error:
            outcome[1] = error if _can_be_sent(error) else OSError(f"{type(error).__name__}: {error}")
    dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def _can_be_sent(error: Exception) -> bool:
    """Whether an exception can be pickled: Python's own can, and subclasses of them that only change the name."""
    kind = type(error)
    return kind.__module__ == "builtins" or kind.__module__.startswith("taosr1.") and "__init__" not in vars(kind)


def lost_contact(error: BaseException) -> bool:
    """Whether a collective operation failed because another rank died."""
    named = any(word in str(error).lower() for word in ("gloo", "nccl", "connection"))
    return bool(_connected()) and (type(error).__name__.startswith("Dist") or named)


def _connected() -> Any:
    """torch.distributed where this process is connected to others, else None; does not import torch to find out."""
    dist = sys.modules.get("torch.distributed")
    return dist if dist and dist.is_available() and dist.is_initialized() else None
