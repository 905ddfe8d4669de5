"""config.json in and out: unsupported options are refused, and nothing is guessed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from taosr1.model.decoder import Decoder
from taosr1.model.io.hf_config import FAMILIES, from_hf_config, to_hf_config

QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 97,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rope_theta": 1000000,
    "rope_scaling": None,
    "sliding_window": None,
    "use_sliding_window": False,
    "attention_bias": False,
    "tie_word_embeddings": True,
}

EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "norm_topk_prob": True}
EXPERTS |= {"num_key_value_heads": 4}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 32}


def test_a_transformers_4_and_a_transformers_5_file_are_read_alike():
    new = {key: value for key, value in QWEN3.items() if key not in ("rope_theta", "rope_scaling")}
    new["rope_parameters"] = {"rope_type": "default", "rope_theta": 1000000}
    new["layer_types"] = ["full_attention"] * 2
    config = from_hf_config(QWEN3)
    assert config == from_hf_config(new)
    assert (config.rope_theta, config.head_dim, config.tie_word_embeddings) == (1000000, 8, True)
    assert (config.qk_norm, config.qkv_bias) == (True, False)


@pytest.mark.parametrize("architecture", FAMILIES)
def test_what_is_written_is_read_back(architecture):
    source = {**QWEN3, "architectures": [architecture], "model_type": FAMILIES[architecture].model_type}
    if FAMILIES[architecture].windowed:
        source |= {"sliding_window": 16, "use_sliding_window": None}
    if FAMILIES[architecture].experts:
        source |= {**EXPERTS, "mlp_only_layers": [1]}
    config = from_hf_config(source)
    written = to_hf_config(config)
    assert written["architectures"] == [architecture]
    assert from_hf_config(written) == config


def test_keys_left_out_mean_what_transformers_takes_them_to_mean(transformers):
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    for name in ("Qwen2", "Qwen3", "Llama", "Mistral", "Qwen3Moe"):
        raw = {"architectures": [f"{name}ForCausalLM"], **{key: QWEN3[key] for key in sizes}}
        raw |= {"Qwen3Moe": EXPERTS, "Llama": {}, "Mistral": {}}.get(name, {"num_key_value_heads": 2})
        if name == "Mistral":
            raw |= {"num_attention_heads": 8, "hidden_size": 32}  # its default is 8 key/value heads
        ours, theirs = from_hf_config(raw), getattr(transformers, f"{name}Config")(**raw)
        for key in ("max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "num_key_value_heads"):
            assert getattr(ours, key) == getattr(theirs, key), (name, key)
        assert ours.head_dim == (getattr(theirs, "head_dim", None) or raw["hidden_size"] // raw["num_attention_heads"])
        if name == "Mistral":
            assert ours.sliding_window == theirs.sliding_window
        if name == "Qwen3Moe":
            assert (ours.norm_topk_prob, ours.num_experts) == (theirs.norm_topk_prob, theirs.num_experts)
            assert ours.dense_layers == ()
        assert ours.rope_theta == theirs.rope_parameters["rope_theta"]


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"architectures": ["MixtralForCausalLM"]}, "MixtralForCausalLM"),
        ({"architectures": [["Qwen3ForCausalLM"]]}, "unsupported model"),
        ({"architectures": "Qwen3ForCausalLM"}, "unsupported model"),
        ({"architectures": None, "model_type": "gemma"}, "gemma"),
        ({"architectures": ["Qwen2ForCausalLM", "Qwen3ForCausalLM"]}, "unsupported model"),
        ({"model_type": "qwen2"}, "contradicts"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "'yarn'"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5}}, "rope_scaling factor is None"),
        ({"rope_scaling": {**LLAMA3, "low_freq_factor": 4.0}}, "is not below high_freq_factor"),
        ({"rope_scaling": {**LLAMA3, "factor": float("nan")}}, "factor is nan"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, "has separate entries for full_attention"),
        ({"rope_scaling": "linear"}, "rope_scaling='linear', expected an object or null"),
        ({"use_sliding_window": True}, "use_sliding_window=True"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
        ({"attention_bias": True}, "attention_bias=True"),
        ({"attention_dropout": 0.1}, "attention_dropout=0.1"),
        ({"quantization_config": {"quant_method": "gptq"}}, "gptq"),
        ({"num_experts": 8}, "num_experts=8"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ({"num_key_value_heads": None}, "num_key_value_heads is missing"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"hidden_size": "24"}, "hidden_size is '24'"),
        ({"rope_theta": "big"}, "rope_theta is 'big'"),
        ({"rope_theta": float("nan")}, "rope_theta is nan"),
        ({"rope_theta": float("inf")}, "rope_theta is inf"),
        ({"rms_norm_eps": None}, "rms_norm_eps is None"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings is 'false'"),
        ({"vocab_size": True}, "vocab_size is True"),
        ({"hidden_size": -24}, "hidden_size is -24"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, expected at most"),
        ({"intermediate_size": 10**40}, "intermediate_size is 1000"),
        ({"head_dim": 7}, "head_dim is 7"),
    ],
)
def test_what_the_decoder_cannot_compute_is_refused_by_name(changes, words):
    with pytest.raises(ValueError) as error:
        from_hf_config({**QWEN3, **changes})
    assert words in str(error.value)


def test_all_problems_are_in_one_message_which_says_what_is_supported():
    with pytest.raises(ValueError) as error:
        from_hf_config({**QWEN3, "attention_bias": True, "hidden_act": "gelu", "vocab_size": None})
    for words in ("attention_bias", "hidden_act", "vocab_size is missing", "Qwen2ForCausalLM", "default or llama3"):
        assert words in str(error.value)
    with pytest.raises(ValueError, match="(?s)attention_bias=True.*num_attention_heads is 0.*rope_theta is -1"):
        from_hf_config({**QWEN3, "attention_bias": True, "num_attention_heads": 0, "rope_theta": -1})


QWEN3_MOE = {**QWEN3, **EXPERTS, "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe"}
QWEN3_MOE |= {"num_hidden_layers": 6}


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"num_experts": None}, "num_experts is missing"),
        ({"num_experts": 0}, "there are only 0 experts"),
        ({"num_experts": 10**6}, "num_experts is 1000000, expected at most"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok is 9, but there are only 8 experts"),
        ({"moe_intermediate_size": -1}, "moe_intermediate_size is -1"),
        ({"norm_topk_prob": "yes"}, "norm_topk_prob is 'yes'"),
        ({"mlp_only_layers": 3}, "mlp_only_layers=3"),
        ({"decoder_sparse_step": 0}, "decoder_sparse_step=0"),
    ],
)
def test_bad_experts_are_refused_by_name(changes, words):
    with pytest.raises(ValueError) as error:
        from_hf_config({**QWEN3_MOE, **changes})
    assert words in str(error.value)


def test_layers_without_experts_are_those_named_and_those_between_steps():
    assert from_hf_config(QWEN3_MOE).dense_layers == ()
    assert from_hf_config({**QWEN3_MOE, "decoder_sparse_step": 2, "mlp_only_layers": [1]}).dense_layers == (0, 1, 2, 4)
    config = from_hf_config({**QWEN3_MOE, "decoder_sparse_step": 3})
    assert from_hf_config(to_hf_config(config)) == config  # written as a list, read as the same layers


def test_a_mistral_file_has_a_window_unless_it_says_null():
    mistral = {**QWEN3, "architectures": ["MistralForCausalLM"], "model_type": "mistral"}
    assert from_hf_config(mistral).sliding_window is None
    without_key = {key: value for key, value in mistral.items() if key != "sliding_window"}
    assert from_hf_config(without_key).sliding_window == 4096
    with pytest.raises(ValueError, match="sliding_window is 0"):
        from_hf_config({**mistral, "sliding_window": 0})


def test_llama3_scaling_is_read_from_either_key_and_written_to_both():
    llama = {**QWEN3, "architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    old = from_hf_config({**llama, "rope_scaling": LLAMA3})
    new = from_hf_config({**llama, "rope_parameters": {**LLAMA3, "rope_theta": 1000000}})
    assert old == new and old.rope_scaling.factor == 8.0
    written = to_hf_config(old)
    assert written["rope_scaling"]["rope_type"] == written["rope_parameters"]["rope_type"] == "llama3"
    assert from_hf_config(written) == old


# The published config.json of these models, and the number of weights on their model cards.
PUBLISHED = json.loads((Path(__file__).parent / "published_configs.json").read_text())


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_as_many_weights_as_their_cards_say(name):
    with torch.device("meta"):
        model = Decoder(from_hf_config(PUBLISHED[name]["config"]))
    assert sum(parameter.numel() for parameter in model.parameters()) == PUBLISHED[name]["weights"]
