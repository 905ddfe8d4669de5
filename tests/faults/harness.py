"""For the fault tests: scripts in processes that can be killed, damage to files, and what "the same result" means.

Children are forked from a server process that has imported torch and the scripts and done nothing else (one that has
computed has threads, and cannot be forked): a short run takes half a second instead of four, and a kill at a random
moment comes while the run is working, not while it imports.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import multiprocessing
import os
import resource
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch

from taosr1.model.decoder import Decoder, DecoderConfig
from taosr1.model.io.weights import save_pretrained
from taosr1.model.tokenizer import train_tokenizer
from taosr1.runtime.checkpoint import checkpoints
from taosr1.runtime.signals import run_main
from taosr1.synthetic.shop import read_pool
from taosr1.task.prompt import PromptConfig

SHAPE = {
    "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 24, "max_position_embeddings": 256,
}  # fmt: skip
STAGES = ("sft", "dpo", "grpo", "mine")


# ---- Processes -------------------------------------------------------------------------------------------------------

SERVER = multiprocessing.get_context("forkserver")
# torch._dynamo is most of what a script imports: every optimizer needs it.
SERVER.set_forkserver_preload([
    "torch._dynamo", "torch.distributed.fsdp", "torch.distributed.checkpoint", "train.sft", "train.dpo", "train.grpo",
    "train.mine_pairs",
])  # fmt: skip


def forked(
    script: str,
    argv: Sequence[object],
    log: Path,
    before: Callable[[], None] | None = None,
    environment: dict[str, str] | None = None,
) -> BaseProcess:
    """Start `python SCRIPT argv` ("train.sft") in a process of its own, its output in `log`.

    before: runs there first; it can be pickled.
    """
    words = [str(word) for word in argv]
    child = SERVER.Process(target=_run, args=(script, words, str(log), before, environment or {}))
    child.start()
    return child


def forked_ranks(world: int, script: str, argv: Sequence[object], log: Path) -> list[BaseProcess]:
    """The same as the ranks of one job, as torchrun starts them, but at once. No rank is ended when another one is."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    ranks = [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]
    return [forked(script, argv, log, environment=environment) for environment in ranks]


def _run(script: str, argv: list[str], log: str, before: Callable[[], None] | None, environment: dict) -> None:
    os.environ |= environment
    code = 70  # anything that is not one of the documented ways to end
    try:
        output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.dup2(output, 1)
        os.dup2(output, 2)
        # Line by line, so that what was said before a kill is in the log.
        sys.stdout, sys.stderr = (open(number, "w", buffering=1, encoding="utf-8", closefd=False) for number in (1, 2))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        torch.set_num_threads(1)
        if before:
            before()
        run_main(lambda: importlib.import_module(script).main(argv))
        code = 0
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(child: BaseProcess, patience_s: float = 120.0) -> int:
    """The exit code of a child, negative for the signal that killed it. Raises: TimeoutError for one that hangs."""
    child.join(patience_s)
    if child.exitcode is None:
        child.kill()
        child.join()
        raise TimeoutError(f"process {child.pid} did not end within {patience_s} s")
    return child.exitcode


def run_whole(script: str, argv: Sequence[str], log: Path, before: Callable[[], None] | None = None) -> int:
    """Run a script to its end; returns its exit code."""
    return ended(forked(script, argv, log, before))


def limit_files(size: int) -> None:
    """From here on no file of this process may grow beyond so many bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def limit_memory(size: int) -> None:
    """From here on this process may take so many bytes more, and no more."""
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + size, in_use + size))


def torchrun(processes: int, *command: object, log: Path) -> subprocess.Popen:
    """A real torchrun, for what it does itself: end all ranks when one dies. command: a script and its arguments."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    launch += map(str, command)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(launch, cwd=ROOT, env=environment, stdout=open(log, "a"), stderr=subprocess.STDOUT)


def worker_of(launcher: subprocess.Popen, rank: int) -> int:
    """The process id of a rank that torchrun has started."""
    for child in Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split():
        with contextlib.suppress(OSError):
            if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
                return int(child)
    raise ProcessLookupError(f"torchrun {launcher.pid} has no rank {rank}")


# ---- Runs that are short enough to be killed two hundred times -------------------------------------------------------


def make_world(folder: Path) -> dict[str, list[str]]:
    """Everything that short runs of every stage need; returns the arguments of each stage, without --out."""
    rows = read_pool("reasoned", 200)
    texts = [f" {row.query}\n {row.title} {row.price}" for row in rows] + [f"{row.grade}\n{row.cot}" for row in rows]
    tokenizer = train_tokenizer(texts, 600, folder / "tokenizer")
    base = folder / "base"
    model = Decoder(DecoderConfig(tokenizer.vocab_size, **SHAPE))
    save_pretrained(model.init_weights(torch.Generator().manual_seed(0)), tokenizer, base)
    PromptConfig("post-cot", "brief", ("title",)).save(base)
    learned, pairs = str(folder / "learned"), str(folder / "pairs.jsonl")
    common = ["--dev", "synthetic:dev*8", "--max-new-tokens", "24"]
    sft = ["--model", str(base), "--order", "post-cot", "--data", "synthetic:reasoned*120", *common]
    sft += ["--batch-size", "8"]
    mine = ["--model", learned, "--data", "synthetic:reasoned*60", "--prompts", "0", "--samples", "3"]
    mine += ["--max-new-tokens", "24", "--balance", "none"]
    for script, argv in (
        ("train.sft", [*sft, "--steps", "80", "--optimizer", "muon", "--lr", "0.01", "--out", learned]),
        ("train.mine_pairs", [*mine, "--out", pairs]),
    ):
        code = run_whole(script, argv, folder / "world.log")
        assert code == 0, (folder / "world.log").read_text()
    short = ["--steps", "8", "--save-every", "2", "--eval-every", "4"]
    dpo = ["--model", learned, "--data", pairs, *common, "--batch-size", "6", *short]
    grpo = ["--model", learned, "--data", "synthetic:labelled*60", *common, "--test", "", "--groups", "8"]
    grpo += ["--samples", "4", "--difficulty", "prefill", *short]
    # Killed after its output was written, it is started again: then it does the same once more.
    mine += ["--data", "synthetic:reasoned*60,synthetic:labelled*300", "--overwrite"]
    return {"sft": [*sft, *short], "dpo": dpo, "grpo": grpo, "mine": mine}


def script_of(stage: str) -> str:
    return {"mine": "train.mine_pairs"}.get(stage, f"train.{stage}")


def out_of(stage: str, folder: Path) -> Path:
    return folder / ("pairs.jsonl" if stage == "mine" else "run")


def result_of(stage: str, out: Path) -> dict[str, object]:
    """What must be equal in a run that was broken and one that was not: metrics, last checkpoint, best.json."""
    if stage == "mine":
        counts = json.loads(Path(f"{out}.counts.json").read_text(encoding="utf-8"))
        counts["config"].pop("out")
        return {"pairs": out.read_bytes(), "counts": counts}
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    _, last = checkpoints(out / "checkpoints")[-1]
    files = {str(path.relative_to(last)): path.read_bytes() for path in sorted(last.rglob("*")) if path.is_file()}
    best = (out / "checkpoints" / "best.json").read_bytes()
    metrics = [{name: value for name, value in row.items() if name != "time_s"} for row in rows]
    return {"metrics": metrics, "last": files, "best": best}


# ---- Damage ----------------------------------------------------------------------------------------------------------

DAMAGES = ("truncated", "extended", "flipped", "removed", "swapped")


def damage(path: Path, how: str, other: Path | None = None, place: float = 0.5) -> None:
    """Damage one file. "flipped": a single bit at the fraction `place` of it; "swapped": the bytes of another file."""
    data = bytearray(path.read_bytes())
    if how == "removed":
        path.unlink()
        return
    if how == "truncated":
        data = data[: int(len(data) * place)]
    elif how == "extended":
        data += b"\n"
    elif how == "flipped":
        data[int(len(data) * place)] ^= 1
    else:
        data = bytearray(other.read_bytes())
    path.write_bytes(data)


@contextlib.contextmanager
def full_disk(folder: Path, size: str = "2m") -> Iterator[Path]:
    """A small file system of its own, in memory. Raises PermissionError where this user may not mount one."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        raise PermissionError("mounting a tmpfs is not allowed here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
