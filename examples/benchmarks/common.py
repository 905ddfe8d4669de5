"""What the benchmarks share: models made on the spot, peak memory, timing by turns, useful work, and the roofline."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F

from taosr1.fast.decoder import use_fast_modules
from taosr1.fast.malloc import keep_freed_memory
from taosr1.fast.onednn_linear import linear
from taosr1.fast.prepack import prepack
from taosr1.judge_model import tiny_texts
from taosr1.model.config import DecoderConfig
from taosr1.model.decoder import Decoder
from taosr1.model.io.weights import DTYPES, load_decoder, save_pretrained
from taosr1.model.tokenizer import train_tokenizer
from taosr1.runtime.cli import at_least, check

# The two shapes that earlier measurements used, and Qwen3-0.6B's own numbers from its config.json.
SHAPES = {
    "tiny": dict(
        vocab_size=4096, hidden_size=256, intermediate_size=768, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, head_dim=64,
    ),
    "small": dict(
        vocab_size=8192, hidden_size=768, intermediate_size=2048, num_hidden_layers=12,
        num_attention_heads=12, num_key_value_heads=6, head_dim=64,
    ),
    "qwen3-0.6b": dict(
        vocab_size=151936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28,
        num_attention_heads=16, num_key_value_heads=8, head_dim=128, rope_theta=1e6, max_position_embeddings=40960,
    ),
}  # fmt: skip


def make_model(shape: str, folder: Path, dtype: torch.dtype = torch.float32, seed: int = 0) -> Path:
    """A folder with random weights of this shape and a small tokenizer; kept if it exists."""
    if not (folder / "config.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer = train_tokenizer(tiny_texts(), 1024, folder)
        model = Decoder(DecoderConfig(**SHAPES[shape])).init_weights(torch.Generator().manual_seed(seed)).to(dtype)
        save_pretrained(model, tokenizer, folder)
    return folder


def stir(folder: Path) -> Path:
    """Change a folder's random weights so that the next token depends on all before it; returns the folder.

    As drawn, the tied head finds the last token itself the likeliest next one, so every greedy reply repeats one token,
    and comparing such replies proves nothing. Random signs in the last norm end that; larger matrices give the context
    more weight.
    """
    path, generator = folder / "model.safetensors", torch.Generator().manual_seed(1)
    tensors = safetensors.torch.load_file(path)
    for name, tensor in tensors.items():
        if name == "model.norm.weight":
            tensor *= torch.randn(tensor.shape, generator=generator).sign()
        elif "_proj" in name:
            tensor *= 2
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
    return folder


def load_fast(folder: Path | str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Decoder:
    """The folder's model with the fast modules; freed memory is kept from here on, in the whole process."""
    keep_freed_memory()
    return use_fast_modules(load_decoder(folder, dtype=dtype, device=device))


def random_ids(lengths: list[int], vocab_size: int, seed: int = 0) -> list[list[int]]:
    """A sequence of random token ids for each length."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(vocab_size, (length,), generator=generator).tolist() for length in lengths]


def load_transformers(folder: Path | str, dtype: torch.dtype):
    """The folder as transformers reads it, with no end tokens of its own: a benchmark says where replies stop."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    model.generation_config = transformers.GenerationConfig(pad_token_id=0)
    return model


ATTENTIONS = ("sdpa", "eager")


def attending(attention: str, run: Callable, model: Any, *arguments: object) -> Any:
    """`run` on a transformers model with this implementation of attention: neither of them is always the faster one."""
    model.set_attn_implementation(attention)
    return run(model, *arguments)


def useful_flops(config: DecoderConfig, start: int, tokens: int, read: int, outputs: int | None = None) -> int:
    """Floating-point operations that `tokens` tokens at positions start, start + 1, ... of one sequence need at least.

    A matrix of n weights costs 2 n a token. A query that attends to `keys` positions costs 4 * heads * head_dim * keys
    (scores and weighted sum). Only the outputs of the last `read` tokens are used: the others need no more than keys
    and values of the last layer. Each of them is multiplied by `outputs` rows of the head (None: the whole vocabulary).

    Shared work is counted once by calling this once: a prompt for all its samples, a query for all its products. Norms,
    rotations, softmax and sampling count nothing, so a fraction of a roofline in these numbers is a little too low.
    """
    width, query = config.hidden_size, config.num_attention_heads * config.head_dim
    key = config.num_key_value_heads * config.head_dim
    keys_and_values = 2 * width * 2 * key
    others = 2 * (2 * width * query + 3 * width * config.intermediate_size)  # queries, output, MLP

    def attention(first: int, count: int) -> int:
        return 4 * query * sum(range(first + 1, first + count + 1))  # the token at position p attends to p + 1 keys

    layers = (config.num_hidden_layers - 1) * (tokens * (keys_and_values + others) + attention(start, tokens))
    last = tokens * keys_and_values + read * others + attention(start + tokens - read, read)
    return layers + last + read * 2 * width * (config.vocab_size if outputs is None else outputs)


best_rates: dict[torch.dtype, float] = {}


def gemm_flops(
    dtype: torch.dtype, tries: int = 8, clock: Callable[[], float] = time.perf_counter, device: str = "cpu"
) -> float:
    """The machine's own roofline: the best rate, in operations a second, of a linear layer on 2048 rows (GPU: 8192).

    At a few large shapes, by PyTorch's kernel or by ours, whichever is faster. The best of all calls in this process,
    before and after what is measured: a machine that others use too may be slow for a while.
    """
    best, on_cpu = best_rates.get(dtype, 0.0), device == "cpu"
    rows, shapes = (2048, ((768, 2048), (1024, 4096), (2048, 2048))) if on_cpu else (8192, ((8192, 8192),))
    for inputs, outputs in shapes:
        x, weight = (torch.randn(width, inputs).to(device, dtype) for width in (rows, outputs))
        kernels = {"torch": partial(finished, device, F.linear, x, weight)}
        if on_cpu:
            kernels["ours"] = partial(linear, x, weight)
        with torch.no_grad():
            found = by_turns(kernels, tries + 1, clock)
        best = max(best, *(2 * rows * inputs * outputs / min(seconds[1:]) for seconds in found.values()))
    best_rates[dtype] = best
    return best


def finished(device: str, run: Callable, *arguments: object) -> Any:
    """`run(*arguments)`, and the device has done it: a GPU is given its work and computes later."""
    result = run(*arguments)
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return result


def memory_bytes_per_s(tries: int = 5) -> float:
    """The best rate of copying 256 MiB: bytes read and bytes written, a second."""
    source = torch.ones(2**26)
    target = torch.empty_like(source)
    return 2 * source.nbytes / min(by_turns({"copy": lambda: target.copy_(source)}, tries + 1)["copy"][1:])


def check_names(config: Any, parts: tuple[str, ...], cases: tuple[str, ...], **lowest: float) -> None:
    """For `__post_init__` of a script with comma-separated `parts` and `cases`, and numbers of at least `lowest`."""
    unknown = [name for name in config.parts.split(",") if name not in parts]
    unknown += [name for name in config.cases.split(",") if name not in cases]
    message = f"unknown {', '.join(unknown)}: --parts are {', '.join(parts)}, --cases are {', '.join(cases)}"
    check([(bool(unknown), message), *at_least(config, **lowest)])


def dtype_of(case: str) -> torch.dtype:
    return DTYPES[case.split("-")[1]]


def run_cases(
    config: Any, parts: dict[str, Callable[..., list[dict]]], first_only: tuple[str, ...], decodes: bool = False
) -> list[dict]:
    """Run the wanted parts on every case (SHAPE-DTYPE), some only on the first. Writes --out.

    A part is called with (our model, transformers' model, case, folder, config). decodes: see `prepack`.
    """
    bandwidth = memory_bytes_per_s()
    repeats = f"{config.threads} thread(s), median of {config.repeats} (least to most)"
    print(f"{repeats}; memory {bandwidth / 1e9:.1f} GB/s; {machine()}")
    rows = []
    with tempfile.TemporaryDirectory() as parent:
        for number, case in enumerate(config.cases.split(",")):
            folder = Path(parent) / case.split("-")[0]
            if not folder.exists():
                stir(make_model(folder.name, folder))
            ours = prepack(load_fast(folder, dtype_of(case)), decodes=decodes)
            pair = ours, load_transformers(folder, dtype_of(case))
            gemm_flops(dtype_of(case))
            for part in config.parts.split(","):
                if number == 0 or part not in first_only:
                    rows += [{"part": part, "case": case, **row} for row in parts[part](*pair, case, folder, config)]
    if config.out:
        report = {"machine": machine(), "config": asdict(config), "memory_gb_per_s": bandwidth / 1e9, "rows": rows}
        Path(config.out).write_text(json.dumps(report, indent=1) + "\n")
    return rows


def by_turns(
    sides: dict[str, Callable[[], object]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of every side, a, b, c, a, b, c, ...: a machine that is slow for a while slows all of them.

    Warming up is the caller's. clock: `time.process_time` leaves out the time in which others had the core.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, run in sides.items():
            started = clock()
            run()
            seconds[name].append(clock() - started)
    return seconds


def timing_rows(seconds: dict[str, list[float]], flops: float, roofline: float) -> list[dict]:
    """A row for each side, printed: seconds, how many times ours (median over the turns), and for ours its useful rate.

    The side named "ours" comes first. `flops` is its useful work, `roofline` the rate of `gemm_flops`.
    """
    rows = []
    for side, found in seconds.items():
        row = {"side": side, "median_s": statistics.median(found), "min_s": min(found), "max_s": max(found)}
        row["times_ours"] = statistics.median(theirs / ours for theirs, ours in zip(found, seconds["ours"]))
        line = f"  {side:22} {row['median_s']:8.3f} s ({row['min_s']:.3f} to {row['max_s']:.3f})"
        if side == "ours":
            rate = flops / row["median_s"]
            row |= {"useful_gflops": rate / 1e9, "of_roofline": rate / roofline, "roofline_gflops": roofline / 1e9}
            line += f"   {row['useful_gflops']:7.1f} useful GFLOP/s, {row['of_roofline']:.2f} of {roofline / 1e9:.0f}"
        else:
            line += f"   {row['times_ours']:5.2f} x ours"
        print(line, flush=True)
        rows.append(row)
    return rows


def peak_bytes(device: str = "cpu") -> int:
    """The most memory this process has held: on a GPU what torch allocated there, else its resident set."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("peak memory is read from /proc/self/status, which this system does not have")


def forget_peak(device: str = "cpu") -> int:
    """Imports have a peak of their own: from here on `peak_bytes` is that of what follows. Returns what is held."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")
    return peak_bytes(device)


def in_fresh_process(script: str, *arguments: object, threads: int) -> dict:
    """Run a script's `--one` part by itself, so that its peak is its own; returns the JSON of its last line."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    environment |= {"TOKENIZERS_PARALLELISM": "false"}
    # Freed memory is returned to the system at once: the peak is then what a program needs, not how its heap was split.
    environment |= {"MALLOC_MMAP_THRESHOLD_": "1000000", "MALLOC_TRIM_THRESHOLD_": "1000000"}
    answer = subprocess.run(
        [sys.executable, script, *map(str, arguments)], env=environment, capture_output=True, text=True
    )
    if answer.returncode:
        sys.exit(f"{' '.join(map(str, arguments))} failed:\n{answer.stderr[-3000:]}")
    return json.loads(answer.stdout.strip().splitlines()[-1])


def machine() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip()
    gpu = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{os.cpu_count()} CPU cores, {platform.machine()}"
    )
    return f"commit {commit or 'unknown'}, torch {torch.__version__}, {gpu}"
