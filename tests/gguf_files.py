"""Writes tiny GGUF files as llama.cpp's convert_hf_to_gguf.py writes large ones, by the `gguf` package."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import torch

from taosr1.model.decoder import Decoder
from taosr1.model.io.gguf_file import ROPE_FACTORS
from taosr1.model.io.weights import hf_tensors
from taosr1.model.tokenizer import Tokenizer

OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
INSIDE = {
    **{"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"},
    **{f"self_attn.{name}_proj": f"attn_{name}" for name in "qkv"},
    **{"self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"},
    **{f"mlp.{name}_proj": f"ffn_{name}" for name in ("gate", "up", "down")},
}


def gguf_name(name: str) -> str:
    """ "blk.3.attn_q.weight" for "model.layers.3.self_attn.q_proj.weight"."""
    stem, _, end = name.rpartition(".")
    if stem in OUTSIDE:
        return f"{OUTSIDE[stem]}.{end}"
    layer, _, inside = stem.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{INSIDE[inside]}.{end}"


def neighbours(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """A Llama head's rotary dimensions as neighbours, as llama.cpp's `LlamaModel.permute`."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def write_gguf(
    path: Path, model: Decoder, tokenizer: Tokenizer, family: str, kind: str = "F32", *, pre: str = "gpt-2",
    embeddings: str = "", leave_out: str = "", **metadata: str,
) -> Path:  # fmt: skip
    """Matrices are written in the type `kind` (embeddings: in that, if given), vectors in float32.

    metadata: further texts by key.
    """
    config, writer = model.config, gguf.GGUFWriter(path, family)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    for key, text in metadata.items():
        writer.add_string(key.replace("__", "."), text)
    _write_tokenizer(writer, tokenizer, pre)
    if config.rope_scaling is not None:
        frequencies = config.rope_theta ** -(torch.arange(0, config.head_dim, 2) / config.head_dim)
        writer.add_tensor(ROPE_FACTORS, (frequencies / config.rope_scaling(frequencies)).float().numpy())
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in hf_tensors(model).items():
        if name == leave_out:
            continue
        projection = name.split(".")[-2]
        if family == "llama" and projection in heads:
            tensor = neighbours(tensor, heads[projection])
        wanted = embeddings if embeddings and "embed_tokens" in name else kind
        stored = gguf.GGMLQuantizationType[wanted if tensor.dim() == 2 else "F32"]
        values = gguf.quants.quantize(tensor.detach().float().numpy(), stored)
        writer.add_tensor(gguf_name(name), values, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _write_tokenizer(writer: gguf.GGUFWriter, tokenizer: Tokenizer, pre: str) -> None:
    spec = json.loads(tokenizer._files["tokenizer.json"])
    control = {token["content"]: token["id"] for token in spec["added_tokens"]}
    ids = {**spec["model"]["vocab"], **control}
    tokens = sorted(ids, key=ids.get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if text in control else 1 for text in tokens])
    writer.add_token_merges([" ".join(pair) for pair in spec["model"]["merges"]])
    writer.add_eos_token_id(tokenizer.eos_ids[0])
    writer.add_pad_token_id(tokenizer.pad_id)
    writer.add_chat_template(tokenizer.chat_template)
