"""Score many rows on two ranks that are killed and started again: as one process would, no row is lost or doubled.

    python tests/faults/scoring.py --rows 100000 --out /tmp/scoring        # 3 minutes on two cores

Everything is real: infer/score.py, torchrun, SIGKILL. The judge is trained for a few seconds, so that its answers
differ from row to row. First rank 1 is killed when it has done a third of its chunks, and torchrun ends rank 0; then
the same command again, and rank 0 is killed at two thirds; then the same command to its end. Prints counts and one
verdict, and exits with 1 on a failure.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # a checkout runs without being installed

import torch

from infer.score import ROWS_AT_A_TIME
from taosr1.data.judgements import write_judgements
from taosr1.model.decoder import Decoder, DecoderConfig
from taosr1.model.io.weights import save_pretrained
from taosr1.model.tokenizer import train_tokenizer
from taosr1.synthetic.shop import read_pool
from taosr1.task.prompt import PromptConfig
from train.sft import main as sft

SHAPE = {
    "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 24, "max_position_embeddings": 256,
}  # fmt: skip
KILLS = ((1, 1 / 3), (0, 2 / 3))  # rank, and how much of its chunks it has done by then
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}  # as torchrun sets it: with more threads sums round differently
PATIENCE_S = 3600


def make_judge(folder: Path) -> str:
    """Train a tiny judge that answers with the label alone; returns its run folder."""
    rows = read_pool("reasoned", 200)
    texts = [f" {row.query}\n {row.title} {row.price}" for row in rows] + [f"{row.grade}\n{row.cot}" for row in rows]
    tokenizer = train_tokenizer(texts, 600, folder / "tokenizer")
    model = Decoder(DecoderConfig(tokenizer.vocab_size, **SHAPE))
    save_pretrained(model.init_weights(torch.Generator().manual_seed(0)), tokenizer, folder / "base")
    PromptConfig("label", "brief", ("title",)).save(folder / "base")
    run = str(folder / "judge")
    sft([
        "--model", str(folder / "base"), "--order", "label", "--data", "synthetic:labelled*2000", "--dev",
        "synthetic:dev*8", "--steps", "150", "--batch-size", "16", "--optimizer", "muon", "--lr", "0.01", "--out", run,
    ])  # fmt: skip
    return run


def make_rows(path: Path, count: int) -> None:
    """Rows of the embedded shop, each with its number."""
    rows = enumerate(read_pool("labelled", count))
    write_judgements(path, (replace(row, extra={"row": number}) for number, row in rows))


def score_command(judge: str, data: Path, out: Path) -> list[str]:
    return [str(ROOT / "infer" / "score.py"), "--model", judge, "--data", str(data), "--out", str(out)]


def two_ranks(command: list[str], log: Path) -> subprocess.Popen:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *command]
    return subprocess.Popen(launch, env=ENVIRONMENT, stdout=open(log, "a"), stderr=subprocess.STDOUT)


def finished(out: Path, rank: int | None = None) -> int:
    """Chunks that a rank, or all of them, have finished."""
    files = Path(f"{out}.parts").glob("rank-*.jsonl" if rank is None else f"rank-{rank:05}.jsonl")
    return sum(path.read_bytes().count(b"\n") for path in files)


def kill_at(launcher: subprocess.Popen, out: Path, rank: int, chunks: int) -> int:
    """Kill a rank once so many of its chunks are done; returns how many of all are done when both have ended."""
    deadline = time.monotonic() + PATIENCE_S
    while finished(out, rank) < chunks:
        if launcher.poll() is not None or time.monotonic() > deadline:
            problem = f"the ranks ended (exit code {launcher.poll()}) before rank {rank} had done {chunks} chunks"
            raise SystemExit(f"{problem}: give more --rows, or see the log")
        time.sleep(0.01)
    holder = json.loads((Path(f"{out}.parts") / f"rank-{rank:05}.lock").read_text())
    os.kill(holder["pid"], signal.SIGKILL)
    if launcher.wait(timeout=PATIENCE_S) == 0:
        raise SystemExit(f"torchrun says that all is well, though rank {rank} was killed")
    return finished(out)


def answers_of(path: Path) -> list[dict]:
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="rows to score (default: 100000)")
    parser.add_argument("--out", required=True, help="an empty or new folder for judge, rows, scores and log")
    options = parser.parse_args(argv)
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    data, one, two, log = folder / "rows.jsonl", folder / "one.jsonl", folder / "two.jsonl", folder / "ranks.log"
    judge = make_judge(folder)
    make_rows(data, options.rows)

    start = time.perf_counter()
    subprocess.run([sys.executable, *score_command(judge, data, one)], env=ENVIRONMENT, check=True)
    one_s = time.perf_counter() - start
    chunks, start = -(-options.rows // ROWS_AT_A_TIME), time.perf_counter()
    for rank, share in KILLS:
        done = kill_at(two_ranks(score_command(judge, data, two), log), two, rank, max(1, int(share * (chunks // 2))))
        progress = f"{done} of {chunks} chunks are done, no output yet: {not two.exists()}"
        print(f"rank {rank} killed with SIGKILL: {progress}", flush=True)
    code = two_ranks(score_command(judge, data, two), log).wait(timeout=PATIENCE_S)
    two_s = time.perf_counter() - start

    found = answers_of(two)
    numbers = [answer["row"] for answer in found]
    kinds = len({tuple(answer["probs"]) for answer in found})
    doubled, lost = len(numbers) - len(set(numbers)), len(set(range(options.rows)) - set(numbers))
    same, left = two.read_bytes() == one.read_bytes(), Path(f"{two}.parts").exists()
    in_order = numbers == list(range(options.rows))
    print(f"{len(found)} answers to {options.rows} rows, {doubled} doubled, {lost} lost, in order: {in_order}")
    print(f"{kinds} different answers")
    print(f"one process {one_s:.0f} s; two ranks with {len(KILLS)} kills and restarts {two_s:.0f} s; log {log}")
    right = code == 0 and len(found) == options.rows and not doubled and not lost and same and not left
    verdict = f"byte for byte the output of one process: {same}; chunks left: {left}; exit code of the last run: {code}"
    print(f"{'PASS' if right else 'FAIL'}: {verdict}")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
