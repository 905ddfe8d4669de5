"""Build every GPU kernel, as it would be started, for GPUs that are not here: `python tests/compile_kernels.py`.

Interpreted kernels (test_triton_kernels.py) compute the right numbers even if the compiler would refuse a type or a
tile would not fit. Prints a JSON object: for each compute capability and kernel, the most bytes of shared memory.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from taosr1.fast import triton_kernels as kernels
from taosr1.fast.static_cache import StaticCache
from taosr1.fast.varlen import VarlenPrefixes, VarlenSuffixes
from taosr1.model.config import DecoderConfig

CAPABILITIES = (86, 90)  # an RTX 30, which has little shared memory, and an H100, which has instructions of its own
NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.float8_e4m3fn: "fp8e4nv"}
NAMES |= {torch.int64: "i64", torch.int32: "i32"}
OPTIONS = ("num_warps", "num_stages")


def compile_for(capability: int, shared_bytes: dict[str, int]):
    """A replacement for the start of a kernel: compiles it and records its shared memory."""

    def run(self: JITFunction, *arguments, grid, warmup, **settings) -> None:
        options = {name: settings.pop(name) for name in OPTIONS if name in settings}
        given = dict(zip(self.arg_names, arguments)) | settings
        constants = {parameter.name: given[parameter.name] for parameter in self.params if parameter.is_constexpr}
        signature, aligned = {}, {}
        for place, (name, value) in enumerate(given.items()):
            if torch.is_tensor(value):
                signature[name] = "*" + NAMES[value.dtype]
            else:
                signature[name] = "constexpr" if name in constants else "fp32" if isinstance(value, float) else "i32"
            # Triton knows that addresses, and strides like these, are multiples of 16.
            if torch.is_tensor(value) or name.endswith("stride") and value % 16 == 0:
                aligned[place,] = [["tt.divisibility", 16]]
        source, target = ASTSource(self, signature, constants, aligned), GPUTarget("cuda", capability, 32)
        built = triton.compile(source, target=target, options=options)
        name = self.fn.__name__
        shared_bytes[name] = max(shared_bytes.get(name, 0), built.metadata.shared)

    return run


@torch.no_grad()
def start_all(capability: int) -> None:
    for dtype in (torch.bfloat16, torch.float32):
        for heads, kv_heads, size in ((16, 8, 128), (14, 2, 64)):
            config = DecoderConfig(97, 24, 40, 1, heads, kv_heads, size)
            query, key, value = (torch.zeros(5, count, size, dtype=dtype) for count in (heads, kv_heads, kv_heads))
            if dtype != torch.float32:
                rows = VarlenSuffixes(VarlenPrefixes(config, [3], dtype, "cpu"), [0, 0], [3, 2])
                kernels.prefix_attention(query, key, value, key, value, rows.all_ranges)
            prefix, five_rows = torch.zeros(2, 1, 1, kv_heads, 3, size, dtype=dtype), torch.zeros(5, dtype=torch.int64)
            cache = StaticCache(config, *prefix, torch.tensor([3]), five_rows, 4)
            places = cache.cu_rows, cache.prefix_lengths, cache.steps_done, cache.longest, cache.places
            kernels.decode_attention(query, key, value, cache.keys[0], cache.values[0], places)
            for weight in (None, torch.ones(size, dtype=dtype)):
                kernels.norm_and_rotate(query[None], weight, 1e-6, *torch.zeros(2, 5, 1, size, dtype=dtype))
        wide = torch.zeros(2, 3, 4096, dtype=dtype)
        kernels.swiglu(wide, wide)
        kernels.add_and_norm(wide, wide, wide[0, 0], 1e-6)
        if capability >= 90:
            kernels.quantize_to_float8(wide, torch.float8_e4m3fn)
    kernels.block_sums(torch.zeros(2, 5, 64), torch.zeros(2, 1))
    kernels.probe(torch.device("cpu"))


if __name__ == "__main__":
    report = {}
    for capability in CAPABILITIES:
        JITFunction.run = compile_for(capability, report.setdefault(capability, {}))
        start_all(capability)
    print(json.dumps(report))
