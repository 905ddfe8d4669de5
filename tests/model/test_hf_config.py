"""config.json in and out: what the decoder cannot compute is refused, and nothing is guessed."""

from __future__ import annotations

import pytest

from taosr1.model.hf_config import FAMILIES, from_hf_config, to_hf_config

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
    config = from_hf_config({**QWEN3, "architectures": [architecture], "model_type": FAMILIES[architecture][0]})
    written = to_hf_config(config)
    assert written["architectures"] == [architecture]
    assert from_hf_config(written) == config


def test_keys_left_out_mean_what_transformers_takes_them_to_mean():
    transformers = pytest.importorskip("transformers", reason="the parity tests need transformers (pip install .[dev])")
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    for name in ("Qwen2", "Qwen3", "Llama"):
        raw = {"architectures": [f"{name}ForCausalLM"], **{key: QWEN3[key] for key in sizes}, "num_key_value_heads": 2}
        ours, theirs = from_hf_config(raw), getattr(transformers, f"{name}Config")(**raw)
        for key in ("max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "num_key_value_heads"):
            assert getattr(ours, key) == getattr(theirs, key), (name, key)
        assert ours.head_dim == (getattr(theirs, "head_dim", None) or 6)
        assert ours.rope_theta == theirs.rope_parameters["rope_theta"]


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"architectures": ["Qwen3MoeForCausalLM"]}, "Qwen3MoeForCausalLM"),
        ({"architectures": None, "model_type": "gemma"}, "gemma"),
        ({"architectures": ["Qwen2ForCausalLM", "Qwen3ForCausalLM"]}, "unsupported model"),
        ({"model_type": "qwen2"}, "contradicts"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "'yarn'"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5}}, "'llama3'"),
        ({"use_sliding_window": True}, "use_sliding_window=True"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
        ({"attention_bias": True}, "attention_bias=True"),
        ({"attention_dropout": 0.1}, "attention_dropout=0.1"),
        ({"quantization_config": {"quant_method": "gptq"}}, "gptq"),
        ({"num_experts": 8}, "num_experts=8"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ({"num_key_value_heads": None}, "num_key_value_heads is missing"),
        ({"num_attention_heads": 0}, "num_attention_heads=0"),
        ({"hidden_size": "24"}, "hidden_size='24'"),
        ({"rope_theta": "big"}, "rope_theta is 'big'"),
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
    for words in ("attention_bias", "hidden_act", "vocab_size is missing", "Qwen2ForCausalLM", "no scaling"):
        assert words in str(error.value)
