"""GGUF files in: a model in llama.cpp's format (any quantisation) becomes a Hugging Face folder of full precision.

The `gguf` package reads and dequantises; names, shapes and the order of rotary dimensions are mapped here. `--model
FILE.gguf` converts once, into a cache folder; `infer/merge.py --model FILE.gguf --out FOLDER` writes a folder to keep.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from taosr1.model.config import DecoderConfig, Llama3Scaling
from taosr1.model.decoder import Decoder
from taosr1.model.io.gguf_tokenizer import end_ids, tokenizer_of
from taosr1.model.io.hf_config import from_hf_config
from taosr1.model.io.weights import save_pretrained
from taosr1.model.tokenizer import Tokenizer
from taosr1.runtime.files import new_folder, write_json
from taosr1.runtime.messages import install

SUFFIX = ".gguf"
ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
WAY_OUT = "take the model's Hugging Face folder instead"
_OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_INSIDE = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    **{f"attn_{name}": f"self_attn.{name}_proj" for name in "qkv"},
    "attn_output": "self_attn.o_proj",
    **{f"attn_{name}_norm": f"self_attn.{name}_norm" for name in "qk"},
    **{f"ffn_{name}": f"mlp.{name}_proj" for name in ("gate", "up", "down")},
}
# Of Llama 3.1 and later; GGUF stores the factor of every frequency, from which these are recognised.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
ROPE_FACTORS = "rope_freqs.weight"


def converted(path: str | Path) -> Path:
    """The Hugging Face folder of a GGUF file, written into the user's cache the first time.

    Raises: FileNotFoundError; ValueError naming what is not read; ModuleNotFoundError without the package gguf.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "taosr1" / "gguf"
    folder = cache / f"{path.stem}-{_fingerprint(path)}"
    if not folder.is_dir():
        try:
            cache.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            problem = f"{cache}: no place for the converted {path.name} ({error.strerror})"
            raise ValueError(f"{problem}: set XDG_CACHE_HOME to a folder that can be written") from error
        print(f"note: {path} is converted once, into {folder}", file=sys.stderr)
        with new_folder(folder) as aside:
            convert(path, aside)
    return folder


def convert(path: str | Path, folder: str | Path) -> None:
    """Write a GGUF file as a Hugging Face folder: float32 weights, config, tokenizer and chat template."""
    reader, metadata = open_gguf(Path(path))
    config = from_hf_config(hf_config(metadata, str(path)))
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    if factors := tensors.pop(ROPE_FACTORS, None):
        config = _with_scaling(config, _values(factors), str(path))
    model = Decoder(config)
    with tempfile.TemporaryDirectory() as aside:
        vocabulary, settings = tokenizer_of(metadata, str(path))
        vocabulary.save(str(Path(aside, "tokenizer.json")))
        write_json(Path(aside, "tokenizer_config.json"), settings)
        write_json(Path(aside, "generation_config.json"), {"eos_token_id": end_ids(metadata)})
        tokenizer = Tokenizer(aside)
    with torch.no_grad():
        _fill(model, tensors, metadata["general.architecture"], str(path))
    save_pretrained(model, tokenizer, folder)


def hf_config(metadata: Mapping[str, Any], where: str) -> dict[str, Any]:
    """config.json for the metadata of a GGUF file. Raises: ValueError naming what is not supported."""
    family = metadata.get("general.architecture")
    if family not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ValueError(f"{where}: general.architecture is {family!r}, expected one of {known}")

    def value(name: str, default: Any = None) -> Any:
        found = metadata.get(f"{family}.{name}", default)
        if found is None:
            raise ValueError(f"{where}: {family}.{name} is missing: the file is damaged or incomplete")
        return float(f"{found:.7g}") if isinstance(found, float) else found  # float32 as it was written: 1e-6

    heads, width = value("attention.head_count"), value("embedding_length")
    head_dim = value("attention.key_length", width // heads)
    scaling, rotated = value("rope.scaling.type", "none"), value("rope.dimension_count", head_dim)
    problems = [f"{family}.rope.scaling.type is {scaling!r}"] * (scaling != "none")
    problems += [f"{family}.rope.dimension_count is {rotated}, the heads have {head_dim}"] * (rotated != head_dim)
    experts = value("expert_count", 0)
    problems += [f"{family}.expert_count is {experts}"] * bool(experts)
    if problems:
        raise ValueError(f"{where}: not supported: {'; '.join(problems)}; {WAY_OUT}")
    return {
        "architectures": [ARCHITECTURES[family]],
        "vocab_size": len(metadata.get("tokenizer.ggml.tokens") or ()),
        "hidden_size": width,
        "intermediate_size": value("feed_forward_length"),
        "num_hidden_layers": value("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": value("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": value("context_length"),
        "rms_norm_eps": value("attention.layer_norm_rms_epsilon"),
        "rope_theta": value("rope.freq_base", 10000.0),
        "tie_word_embeddings": "output.weight" not in metadata["tensors"],
    }


def hf_name(name: str) -> str:
    """ "model.layers.3.self_attn.q_proj.weight" for "blk.3.attn_q.weight"; "" for what has no counterpart."""
    parts = name.split(".")
    if parts[0] == "blk" and len(parts) == 4 and parts[2] in _INSIDE:
        return f"model.layers.{parts[1]}.{_INSIDE[parts[2]]}.{parts[3]}"
    return f"{_OUTSIDE[parts[0]]}.{parts[1]}" if len(parts) == 2 and parts[0] in _OUTSIDE else ""


def rotary_halves(rows: Tensor, heads: int) -> Tensor:
    """Rows of a q or k projection (or its bias) in Hugging Face's order.

    llama.cpp rotates neighbours (0, 1), (2, 3), ... of a Llama head, transformers pairs the two halves of a head.
    Shapes: (heads * D, ...) -> (heads * D, ...).
    """
    return rows.view(heads, -1, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def open_gguf(path: Path) -> tuple[Any, dict[str, Any]]:
    """The package's reader, and the metadata as Python values, with the tensors' names under "tensors"."""
    try:
        import gguf
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{path}: reading it needs the package gguf: {install('gguf')}") from error
    try:
        reader = gguf.GGUFReader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
    except Exception as error:  # of a damaged file: ValueError, IndexError, OverflowError, UnicodeDecodeError, ...
        raise ValueError(f"{path}: not a GGUF file, or a damaged one ({error}): copy or download it again") from error
    return reader, {**metadata, "tensors": [tensor.name for tensor in reader.tensors]}


def _values(tensor: Any) -> Tensor:
    """A tensor in float32, its dimensions in PyTorch's order."""
    import gguf

    try:
        return torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy()).float()
    except NotImplementedError as error:
        kind = tensor.tensor_type.name
        raise ValueError(f"tensor {tensor.name} is of type {kind}, which the package gguf cannot read") from error


def _fill(model: Decoder, tensors: Mapping[str, Any], family: str, where: str) -> None:
    """Copy every tensor into the model. Raises: ValueError listing those that do not fit."""
    wanted, problems = dict(model.named_parameters()), []
    heads = {"attn_q": model.config.num_attention_heads, "attn_k": model.config.num_key_value_heads}
    for name, tensor in tensors.items():
        parameter = wanted.pop(hf_name(name), None)
        if parameter is None:
            problems.append(f"{name} has no place in this architecture")
            continue
        found = _values(tensor)
        if found.shape != parameter.shape:
            problems.append(f"{name} is {tuple(found.shape)}, expected {tuple(parameter.shape)}")
            continue
        kind = name.split(".")[-2]
        parameter.copy_(rotary_halves(found, heads[kind]) if family == "llama" and kind in heads else found)
    problems += [f"{name} is missing" for name in wanted]
    if problems:
        shown = "\n  ".join(problems[:10])
        raise ValueError(f"{where}: {len(problems)} tensors do not fit:\n  {shown}\n{WAY_OUT}")


def _with_scaling(config: DecoderConfig, factors: Tensor, where: str) -> DecoderConfig:
    """The config with Llama 3's rotary scaling, recognised by the factor of every frequency."""
    scaling = Llama3Scaling(factor=float(factors.max()), **_LLAMA3)
    places = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    frequencies = config.rope_theta**-places
    if not torch.allclose(frequencies / scaling(frequencies), factors, rtol=1e-4):
        raise ValueError(f"{where}: {ROPE_FACTORS} is no rotary scaling of Llama 3; {WAY_OUT}")
    return dataclasses.replace(config, rope_scaling=scaling)


def _fingerprint(path: Path) -> str:
    """A short text that differs for other contents: its size and date, and the megabyte that it begins with."""
    found = path.stat()
    digest = hashlib.sha256(f"{found.st_size} {found.st_mtime_ns}".encode())
    with open(path, "rb") as file:
        digest.update(file.read(2**20))
    return digest.hexdigest()[:16]
