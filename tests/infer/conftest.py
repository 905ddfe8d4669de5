"""Judges on disk, as the training scripts write them: untrained ones, and one that was trained on eight rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from taosr1.data.judgements import Judgement, write_judgements
from taosr1.judge_model import load_judge
from taosr1.model.io.weights import save_pretrained
from taosr1.runtime.chunked_job import ChunkedJob
from taosr1.synthetic.shop import read_pool
from taosr1.task.grades import GRADES, grade_name
from train.sft import main as sft

ESCI = Path(__file__).parents[3] / "shared" / "data" / "esci_us" / "pairs.jsonl.gz"


@pytest.fixture(scope="session")
def fresh_judge(tmp_path_factory) -> Callable[[str], str]:
    """Folder of a judge with random weights, by its order of reply."""
    judge = load_judge("tiny")

    def folder_of(order: str) -> str:
        folder = tmp_path_factory.getbasetemp() / f"fresh-{order}"
        if not folder.exists():
            save_pretrained(judge.model, judge.tokenizer, folder)
            replace(judge.prompt, order=order).save(folder)
        return str(folder)

    return folder_of


@pytest.fixture(scope="session")
def eight_rows() -> list[Judgement]:
    """Two reasoned pairs of every grade, whose chain of thought decides for it."""
    pool = [row for row in read_pool("reasoned") if row.cot.endswith(grade_name(row.grade))]
    return [row for grade in GRADES[::-1] for row in [row for row in pool if row.grade == grade][:2]]


@pytest.fixture(scope="session")
def eight_rows_file(eight_rows, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    write_judgements(path, eight_rows)
    return str(path)


@pytest.fixture(scope="session")
def taught_judge(eight_rows_file, tmp_path_factory) -> Callable[[str], str]:
    """Run folder of a judge that knows the eight rows by heart, by its order of reply."""
    made: dict[str, str] = {}

    def folder_of(order: str) -> str:
        if order not in made:
            made[order] = str(tmp_path_factory.mktemp("taught") / order)
            sizes = ["--steps", "32", "--eval-every", "32", "--batch-size", "8", "--lr", "5e-3"]
            sft(["--order", order, "--data", eight_rows_file, "--dev", eight_rows_file, "--out", made[order], *sizes])
        return made[order]

    return folder_of


@pytest.fixture(scope="session")
def esci_file() -> str:
    if not ESCI.exists():
        pytest.skip("the ESCI slice is not beside this checkout (shared/data/esci_us/pairs.jsonl.gz)")
    return str(ESCI)


@pytest.fixture
def as_rank(monkeypatch) -> Callable[..., dict]:
    """as_rank(rank, world, main, argv, after=n): run a script as torchrun does.

    It is interrupted where its n+1st chunk would be stored.
    """

    def run(rank: int, world: int, main, argv: list[str], after: int | None = None) -> dict:
        stored, add = [], ChunkedJob.add

        def add_or_stop(parts, chunk, answers):
            if len(stored) == after:
                raise KeyboardInterrupt
            stored.append(chunk)
            add(parts, chunk, answers)

        with monkeypatch.context() as patch:
            for name, value in (("RANK", rank), ("WORLD_SIZE", world), ("LOCAL_RANK", rank)):
                patch.setenv(name, str(value))
            patch.setattr(ChunkedJob, "add", add_or_stop)
            if after is None:
                return main(argv)
            with pytest.raises(KeyboardInterrupt):
                main(argv)
            return {}

    return run
