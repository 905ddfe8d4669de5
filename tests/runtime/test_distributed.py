"""Ranks by their environment, and how work is shared. tests/learning/test_distributed_model.py starts several."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from taosr1.runtime.distributed import Ranks, gather, local_device, on_rank_zero, share, this_rank


def test_a_process_by_itself_is_the_first_and_only_rank(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert this_rank() == Ranks(0, 1, 0) and this_rank().is_rank_zero
    assert gather("x") == ["x"] and on_rank_zero(lambda: 3) == 3
    with pytest.raises(OSError, match="disk"):
        on_rank_zero(lambda: (_ for _ in ()).throw(OSError("disk")))


@pytest.mark.parametrize(("rank", "world"), [("2", "2"), ("-1", "2"), ("x", "2"), ("0", "0"), ("", "2")])
def test_an_environment_that_makes_no_sense_is_refused_by_name(monkeypatch, rank, world):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(ValueError, match="RANK"):
        this_rank()


def test_every_rank_has_its_own_gpu():
    assert local_device("cuda", Ranks(5, 8, 1)) == "cuda:1"
    assert local_device("cuda", Ranks()) == "cuda"
    assert [local_device(name, Ranks(1, 2, 1)) for name in ("cuda:3", "cpu")] == ["cuda:3", "cpu"]


def test_shares_of_all_ranks_are_the_list_each_item_once_and_in_order():
    chance = random.Random(0)
    for _ in range(200):
        items = list(range(chance.randint(0, 30)))
        costs = [chance.choice((1, 5, 100)) * chance.random() for _ in items]
        world = chance.randint(1, 9)
        parts = [share(items, Ranks(rank, world), lambda item, costs=costs: costs[item]) for rank in range(world)]
        assert sorted(item for part in parts for item in part) == items
        assert all(part == sorted(part) for part in parts)
        load = [sum(costs[item] for item in part) for part in parts]
        # No rank has more than an equal share and one item.
        assert max(load) <= sum(costs) / world + max(costs, default=0) + 1e-9


def test_the_most_expensive_item_goes_first_so_that_loads_come_out_even():
    costs = [3, 3, 2, 2, 2]
    parts = [share(range(5), Ranks(rank, 2), lambda place: costs[place]) for rank in range(2)]
    assert sorted(sum(costs[place] for place in part) for part in parts) == [5, 7]
    assert share(range(3), Ranks(2, 5)) == [2] and share(range(3), Ranks(4, 5)) == []


@pytest.mark.skipif(os.name != "posix", reason="gloo over a local port")
def test_where_one_rank_gives_up_all_do_at_the_same_place():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).with_name("give_up_worker.py"))]
    ranks = [
        subprocess.Popen(
            command, env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": "0"},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    for number, rank in enumerate(ranks):
        said, problem = rank.communicate(timeout=120)
        lines = [f"rank {number}: {found}" for found in ([0, 10, 20, 30, 40], "gave up", [0, 1])]
        assert rank.returncode == 0 and said.splitlines() == lines, problem
