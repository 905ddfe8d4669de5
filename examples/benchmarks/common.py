"""What the benchmarks share: models made on the spot, peak memory, and rows of RESULTS.md."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import torch

from taosr1.judge import tiny_texts
from taosr1.model.decoder import Decoder, DecoderConfig
from taosr1.model.tokenizer import train_tokenizer
from taosr1.model.weights import save_pretrained

# The two shapes that earlier measurements used, and Qwen3-0.6B's own numbers from its config.json.
SHAPES = {
    "tiny": dict(vocab_size=4096, hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=64),
    "small": dict(vocab_size=8192, hidden_size=768, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=12, num_key_value_heads=6, head_dim=64),
    "qwen3-0.6b": dict(vocab_size=151936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8,
                       head_dim=128, rope_theta=1e6, max_position_embeddings=40960),
}  # fmt: skip
# Qwen's form of a chat, thinking switched off: what stands after the last line is the reply's first token.
CHAT_TEMPLATE = (
    "{% for m in messages %}<|user|>{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_model(shape: str, folder: Path, dtype: torch.dtype = torch.float32, seed: int = 0) -> Path:
    """A folder with random weights of this shape and a small tokenizer whose ids are among the model's; kept if it exists."""
    if not (folder / "config.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer = train_tokenizer(tiny_texts(), 1024, folder)
        model = Decoder(DecoderConfig(**SHAPES[shape])).init_weights(torch.Generator().manual_seed(seed)).to(dtype)
        save_pretrained(model, tokenizer, folder)
    return folder


def peak_bytes(device: str = "cpu") -> int:
    """The most memory this process has held: on a GPU what torch allocated there, else its resident set."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("peak memory is read from /proc/self/status, which this system does not have")


def in_fresh_process(script: str, *arguments: object, threads: int) -> dict:
    """Run a benchmark script's `--one` part by itself, so that its peak is its own; returns the JSON of its last line."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    # Freed memory goes back to the system at once: the peak is then what a program needs, not how the C library's heap was cut up.
    environment |= {"MALLOC_MMAP_THRESHOLD_": "1000000", "MALLOC_TRIM_THRESHOLD_": "1000000"}
    answer = subprocess.run([sys.executable, script, *map(str, arguments)], env=environment, capture_output=True, text=True)
    if answer.returncode:
        sys.exit(f"{' '.join(map(str, arguments))} failed:\n{answer.stderr[-3000:]}")
    return json.loads(answer.stdout.strip().splitlines()[-1])


def machine() -> str:
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores, {platform.machine()}"
    return f"commit {commit or 'unknown'}, torch {torch.__version__}, {gpu}"
