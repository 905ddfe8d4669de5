"""Hugging Face's config.json to `DecoderConfig` and back: strict, because an ignored option is a wrong model."""

from __future__ import annotations

from typing import Any

from taosr1.model.decoder import DecoderConfig

# architecture -> (model_type, q/k norm, qkv bias, head_dim where the file names none, as transformers has it)
FAMILIES = {
    "Qwen2ForCausalLM": ("qwen2", False, True, None),
    "Qwen3ForCausalLM": ("qwen3", True, False, 128),
    "LlamaForCausalLM": ("llama", False, False, None),
}
SUPPORTED = (
    "supported: Qwen2ForCausalLM, Qwen3ForCausalLM and LlamaForCausalLM, dense, unquantised, SiLU, full attention, "
    "plain rotary positions (no scaling)"
)


def from_hf_config(config: dict[str, Any]) -> DecoderConfig:
    """Read a config.json object.

    Raises:
        ValueError: every unsupported architecture or option and every missing key, in one message.
    """
    problems = []
    names = config.get("architectures")
    if not names:
        names = [name for name, family in FAMILIES.items() if family[0] == config.get("model_type")]
    name = names[0] if isinstance(names, list) and len(names) == 1 else None
    if name not in FAMILIES:
        got = f"architectures={config.get('architectures')!r}, model_type={config.get('model_type')!r}"
        raise ValueError(f"unsupported model: {got}; {SUPPORTED}")
    family, qk_norm, qkv_bias, default_head_dim = FAMILIES[name]
    if config.get("model_type", family) != family:
        problems.append(f"model_type={config['model_type']!r} contradicts architectures=[{name!r}]")
    problems += _unsupported_options(config, family)
    required = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"]
    if family != "llama":
        required.append("num_key_value_heads")  # Llama's default is one per head; Qwen's default is a fixed number
    for key in required:
        value = config.get(key)
        if value is None:
            problems.append(f"{key} is missing")
        elif not isinstance(value, int) or value < 1:
            problems.append(f"{key}={value!r}, expected an integer >= 1")
    rope_theta, rope_problems = _rope_theta(config)
    problems += rope_problems
    if problems:
        raise ValueError("this config.json is not supported:\n  " + "\n  ".join(problems) + f"\n{SUPPORTED}")
    heads = config["num_attention_heads"]
    return DecoderConfig(
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        num_hidden_layers=config["num_hidden_layers"],
        num_attention_heads=heads,
        num_key_value_heads=_or(config.get("num_key_value_heads"), heads),
        head_dim=_or(config.get("head_dim"), _or(default_head_dim, config["hidden_size"] // heads)),
        # The values below are transformers' own defaults for these three families.
        rope_theta=rope_theta,
        rms_norm_eps=config.get("rms_norm_eps", 1e-6),
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
        qk_norm=qk_norm,
        qkv_bias=qkv_bias,
        max_position_embeddings=_or(config.get("max_position_embeddings"), 2048 if family == "llama" else 32768),
    )


def to_hf_config(config: DecoderConfig) -> dict[str, Any]:
    """The config.json object of a decoder, readable by transformers 4 and 5 and by vLLM."""
    flags = (config.qk_norm, config.qkv_bias)
    architecture, model_type = next((name, f[0]) for name, f in FAMILIES.items() if f[1:3] == flags)
    written = {
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,  # transformers 4; the next line is transformers 5
        "rope_parameters": {"rope_theta": config.rope_theta, "rope_type": "default"},
        "tie_word_embeddings": config.tie_word_embeddings,
        "use_cache": True,
    }
    if model_type != "qwen2":
        written["attention_bias"] = False
    return written


def _unsupported_options(config: dict[str, Any], family: str) -> list[str]:
    """What the file switches on that the decoder does not compute."""
    problems = []
    for key in ("quantization_config", "num_experts", "num_local_experts"):
        if config.get(key):
            problems.append(f"{key}={config[key]!r}, expected none")
    for key, only in (("hidden_act", "silu"), ("partial_rotary_factor", 1.0)):
        if config.get(key, only) != only:
            problems.append(f"{key}={config[key]!r}, expected {only!r}")
    switches = ["mlp_bias", "use_sliding_window", "attention_dropout"]
    if family != "qwen2":  # whose bias on q, k and v is fixed, and which has no such key
        switches.append("attention_bias")
    problems += [f"{key}={config[key]!r}, expected off" for key in switches if config.get(key)]
    if any(kind != "full_attention" for kind in config.get("layer_types") or []):
        problems.append(f"layer_types={sorted(set(config['layer_types']))}, expected full_attention only")
    return problems


def _rope_theta(config: dict[str, Any]) -> tuple[float, list[str]]:
    """The rotary base from transformers 4's keys (rope_theta, rope_scaling) or 5's (rope_parameters)."""
    theta, problems = config.get("rope_theta"), []
    for key in ("rope_scaling", "rope_parameters"):
        options = config.get(key) or {}
        kind = options.get("rope_type", options.get("type", "default"))
        if kind != "default":
            problems.append(f"{key} type {kind!r}, expected 'default'")
        if options.get("partial_rotary_factor", 1.0) != 1.0:
            problems.append(f"{key} partial_rotary_factor={options['partial_rotary_factor']!r}, expected 1.0")
        theta = options.get("rope_theta", theta)
    return _or(theta, 10000.0), problems


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value
