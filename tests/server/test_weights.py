"""Weights are exchanged without a request that fails, and weights that are broken are said and not served."""

from __future__ import annotations

import asyncio
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from infer.serve import Config, load_tested
from taosr1.judge import Judge
from taosr1.judge_model import BUNDLED_FOLDERS, BUNDLED_STUDENT
from taosr1.runtime.files import new_folder, write_checksummed
from taosr1.serving.deployed import store_beta

ASKED = {"query": "travel mug but not steel", "products": ["steel travel mug", "bamboo travel mug red", "desk lamp"]}


def write_judge(folder: Path, factor: float) -> None:
    """The bundled student with one tensor multiplied, so that its scores are its own."""
    for file in BUNDLED_FOLDERS[BUNDLED_STUDENT].iterdir():
        shutil.copy(file, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * factor
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def checkpoint(run: Path, step: int, factor: float, without: tuple[str, ...] = ()) -> Path:
    path = run / "checkpoints" / f"step-{step:06d}"
    with new_folder(path) as folder:
        write_judge(folder, factor)
        for name in without:
            (folder / name).unlink()
    return path


def choose(run: Path, step: int) -> None:
    """What the training loop does after an evaluation."""
    write_checksummed(run / "checkpoints/best.json", {"step": step, "dev_macro_f1": 0.5, "evaluated_through": step})


def scores(folder: str | Path) -> list[float]:
    return [score.score for score in Judge.load(folder).score(ASKED["query"], ASKED["products"])]


def wait_for(server, text: str) -> None:
    """Until the log holds a text."""
    deadline = time.monotonic() + 30
    while text not in server.log.read_text():
        assert time.monotonic() < deadline, server.log.read_text()
        time.sleep(0.05)


def scored(server) -> list[float]:
    status, reply = server.ask("/score", ASKED)
    assert status == 200
    return [result["score"] for result in reply["results"]]


class Load:
    """Eight clients that ask all the time; `replies` are (status, model_sha, scores)."""

    def __init__(self, server) -> None:
        self.replies: list[tuple[int, str, list[float]]] = []
        self.ended = threading.Event()
        self.threads = [threading.Thread(target=self._client, args=(server,)) for _ in range(8)]

    def _client(self, server) -> None:
        while not self.ended.is_set():
            status, reply = server.ask("/score", ASKED)
            found = [result["score"] for result in reply.get("results", [])]
            self.replies.append((status, reply.get("model_sha", ""), found))

    def __enter__(self) -> Load:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        for thread in self.threads:
            thread.join()


def test_a_better_checkpoint_is_served_under_load_and_every_reply_is_of_one_judge(start_server, tmp_path):
    first = checkpoint(tmp_path, 10, 1.0)
    server = start_server("--watch", str(tmp_path), "--watch-s", "0.2")
    expected = {"first": scores(first)}
    with Load(server) as load:
        time.sleep(0.5)
        second = checkpoint(tmp_path, 20, 0.5)
        choose(tmp_path, 20)
        wait_for(server, "now serving")
        time.sleep(0.5)
    expected["second"] = scores(second)
    assert max(abs(a - b) for a, b in zip(expected["first"], expected["second"])) > 0.01
    assert {status for status, _, _ in load.replies} == {200}
    by_sha: dict[str, list[list[float]]] = {}
    for _, sha, found in load.replies:
        by_sha.setdefault(sha, []).append(found)
    assert len(by_sha) == 2
    for found, wanted in zip(by_sha.values(), expected.values()):  # in the order in which they were served
        for reply in found:
            assert reply == pytest.approx(wanted, abs=3e-6)
    assert scored(server) == pytest.approx(expected["second"], abs=3e-6)
    text = server.ask("/metrics")[1]
    assert 'taosr1_swaps_total{result="swapped"} 1.0' in text and text.count("taosr1_model{") == 1
    assert server.stop() == 0


def test_broken_checkpoints_are_said_and_counted_and_the_old_judge_goes_on(start_server, tmp_path):
    checkpoint(tmp_path, 10, 1.0)
    choose(tmp_path, 10)
    server = start_server("--watch", str(tmp_path), "--watch-s", "0.2")
    before, sha = scored(server), server.ask("/info")[1]["model_sha"]
    damaged = checkpoint(tmp_path, 20, 0.5)
    weights = bytearray((damaged / "model.safetensors").read_bytes())
    weights[-5] ^= 1
    (damaged / "model.safetensors").write_bytes(weights)
    for step, says in ((20, "changed, exchanged or damaged"), (30, "not finite"), (40, "which is not there")):
        if step == 30:
            checkpoint(tmp_path, 30, float("nan"))
        choose(tmp_path, step)
        wait_for(server, says)
        assert scored(server) == before and server.ask("/info")[1]["model_sha"] == sha
    time.sleep(1)  # several looks: each of them is tried once
    assert 'taosr1_swaps_total{result="failed"} 3.0' in server.ask("/metrics")[1]
    assert "Traceback" not in server.log.read_text()
    checkpoint(tmp_path, 50, 0.5)
    choose(tmp_path, 50)
    wait_for(server, "now serving")
    assert scored(server) != pytest.approx(before, abs=1e-3)


def test_a_run_that_has_saved_nothing_yet_cannot_be_watched_and_the_message_says_when_it_can(tmp_path):
    pytest.importorskip("uvicorn")
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(FileNotFoundError, match=f"^--watch {tmp_path}: no complete checkpoint yet; start again when"):
        load_tested(Config(watch=str(tmp_path)), str(tmp_path), "--watch")


def test_a_signal_loads_the_model_again_and_a_second_judge_is_asked_by_name(start_server, tmp_path):
    folder, other = tmp_path / "judge", tmp_path / "other"
    for path, factor in ((folder, 1.0), (other, 0.5)):
        path.mkdir()
        write_judge(path, factor)
    expected = scores(folder), scores(other)
    server = start_server("--model", str(folder), "--compare", str(other))
    assert scored(server) == pytest.approx(expected[0], abs=3e-6)
    status, reply = server.ask("/score", {**ASKED, "judge": "compare"})
    info = server.ask("/info")[1]
    assert [result["score"] for result in reply["results"]] == pytest.approx(expected[1], abs=3e-6)
    assert reply["model_sha"] == info["compare"]["model_sha"] != info["model_sha"]
    folder.rename(tmp_path / "old")
    other.rename(folder)
    server.process.send_signal(signal.SIGHUP)
    wait_for(server, "now serving")
    assert scored(server) == pytest.approx(expected[1], abs=3e-6)
    (folder / "config.json").write_text("{")
    server.process.send_signal(signal.SIGHUP)
    wait_for(server, "new weights are not served")
    assert scored(server) == pytest.approx(expected[1], abs=3e-6)
    assert server.stop() == 0


def test_a_beta_that_is_stored_beside_a_watched_checkpoint_is_served(start_server, tmp_path):
    """infer/evaluate.py --save-beta writes it when the checkpoint is there already."""
    path = checkpoint(tmp_path, 10, 1.0, without=("tiering.json", "calibration.json"))
    server = start_server("--watch", str(tmp_path), "--watch-s", "0.2")
    assert server.ask("/info")[1]["beta"] == 0.5
    store_beta(str(path), 0.25)
    wait_for(server, "now serving")
    assert server.ask("/info")[1]["beta"] == 0.25


def test_many_signals_load_once_more_and_warnings_about_the_second_judge_stay(served):
    pytest.importorskip("starlette")
    from taosr1.server.app import Server
    from taosr1.server.limits import Limits
    from taosr1.server.security import Access
    from taosr1.server.weights import Loads, Weights

    loaded = []

    def load() -> tuple:
        time.sleep(0.1)
        loaded.append(True)
        return served, ["of the first"]

    async def run() -> list[str]:
        server = Server(Limits(), Access())
        weights = Weights(server, Loads(load, lambda: (served, ["of the second"])))
        await weights.first()
        await asyncio.gather(*(weights.exchange() for _ in range(20)))
        await server.queue.close()
        return server.warnings

    assert asyncio.run(run()) == ["of the second", "of the first"]
    assert len(loaded) == 3  # to start with, for the first signal, and once for all that came meanwhile
