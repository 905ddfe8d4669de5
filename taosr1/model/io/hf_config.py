"""Hugging Face's config.json to `DecoderConfig` and back; an unsupported option is an error."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from taosr1.model.config import EXPERT_SIZES, SIZES, Llama3Scaling
from taosr1.model.decoder import DecoderConfig


@dataclass(frozen=True)
class Family:
    """One architecture: its fixed options, and the defaults of transformers for keys that config.json lacks."""

    model_type: str
    qk_norm: bool = False
    qkv_bias: bool = False
    experts: bool = False
    windowed: bool = False  # `sliding_window` applies to every layer; other families need `use_sliding_window` off
    kv_heads: int | None = None  # None: the key is required; 0: one per query head
    head_dim: int = 0  # 0: hidden_size / heads
    max_position_embeddings: int = 32768


FAMILIES = {
    "LlamaForCausalLM": Family("llama", kv_heads=0, max_position_embeddings=2048),
    "MistralForCausalLM": Family("mistral", windowed=True, kv_heads=8, max_position_embeddings=131072),
    "Qwen2ForCausalLM": Family("qwen2", qkv_bias=True),
    "Qwen3ForCausalLM": Family("qwen3", qk_norm=True, head_dim=128),
    "Qwen3MoeForCausalLM": Family("qwen3_moe", qk_norm=True, experts=True, kv_heads=4),
}
SUPPORTED = (
    f"supported: {', '.join(FAMILIES)}; unquantised, SiLU, rotary positions of type default or llama3, full attention "
    "(Mistral: or one sliding window), bias on q, k and v in Qwen2 alone"
)
REQUIRED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
MISTRAL_WINDOW = 4096  # default of transformers where Mistral's config.json lacks the key; null means no window


def from_hf_config(config: dict[str, Any]) -> DecoderConfig:
    """Read a config.json object.

    Raises:
        ValueError: every unsupported architecture or option and every missing key, in one message.
    """
    name = _architecture(config)
    family = FAMILIES[name]
    problems = _unsupported_options(config, family)
    if config.get("model_type", family.model_type) != family.model_type:
        problems.insert(0, f"model_type={config['model_type']!r} contradicts architectures=[{name!r}]")
    rope_theta, rope_scaling = _rope(config, problems)
    heads, width = config.get("num_attention_heads"), config.get("hidden_size")
    kv_heads = heads if family.kv_heads == 0 else family.kv_heads
    values = {key: config.get(key) for key in REQUIRED}
    values["num_key_value_heads"] = _or(config.get("num_key_value_heads"), kv_heads)
    # Where there is no quotient, `width`: DecoderConfig refuses it together with its divisor.
    quotient = width // heads if type(width) is int and type(heads) is int and heads > 0 else width
    values["head_dim"] = _or(config.get("head_dim"), family.head_dim or quotient)
    values["max_position_embeddings"] = _or(config.get("max_position_embeddings"), family.max_position_embeddings)
    if family.experts:
        # Transformers 5 writes num_local_experts.
        values["num_experts"] = _or(config.get("num_experts"), config.get("num_local_experts"))
        values |= {key: config.get(key) for key in ("num_experts_per_tok", "moe_intermediate_size")}
        values["norm_topk_prob"] = config.get("norm_topk_prob", False)
        values["dense_layers"] = _dense_layers(config, problems)
    missing = [key for key, value in values.items() if value is None]
    problems += [f"{key} is missing" for key in missing]
    if family.windowed:
        values["sliding_window"] = config.get("sliding_window", MISTRAL_WINDOW)
    values |= {"rope_theta": rope_theta, "rope_scaling": rope_scaling, "rms_norm_eps": config.get("rms_norm_eps", 1e-6)}
    values |= {"qk_norm": family.qk_norm, "qkv_bias": family.qkv_bias}
    values["tie_word_embeddings"] = config.get("tie_word_embeddings", False)
    if not missing:
        try:
            decoder = DecoderConfig(**values)
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("this config.json is not supported:\n  " + "\n  ".join(problems) + f"\n{SUPPORTED}")
    return decoder


def to_hf_config(config: DecoderConfig) -> dict[str, Any]:
    """The config.json object of a decoder, readable by transformers 4 and 5 and by vLLM.

    A Mistral without a window is written as Llama, the same network.
    Raises: ValueError where no family has this combination of options.
    """
    flags = (config.qk_norm, config.qkv_bias, config.num_experts > 0, config.sliding_window is not None)
    known = {(f.qk_norm, f.qkv_bias, f.experts, f.windowed): name for name, f in FAMILIES.items()}
    if flags not in known:
        raise ValueError(f"no family has the q/k norms, qkv bias, experts and sliding window of {config}")
    name, scaling = known[flags], {"rope_type": "default"}
    if config.rope_scaling is not None:
        scaling = {"rope_type": "llama3", **asdict(config.rope_scaling)}
    written = {
        "architectures": [name],
        "model_type": FAMILIES[name].model_type,
        **{key: getattr(config, key) for key in (*SIZES, "rms_norm_eps", "tie_word_embeddings")},
        "hidden_act": "silu",
        "use_cache": True,
        "rope_theta": config.rope_theta,  # transformers 4 reads these two, transformers 5 reads rope_parameters
        "rope_scaling": None if config.rope_scaling is None else scaling,
        "rope_parameters": {"rope_theta": config.rope_theta, **scaling},
    }
    if not config.qkv_bias:
        written["attention_bias"] = False
    if config.sliding_window is not None:
        written["sliding_window"] = config.sliding_window
    if config.num_experts:
        written |= {key: getattr(config, key) for key in (*EXPERT_SIZES, "norm_topk_prob")}
        written |= {"decoder_sparse_step": 1, "mlp_only_layers": list(config.dense_layers)}
    return written


def _architecture(config: dict[str, Any]) -> str:
    names = config.get("architectures")
    if not names:
        names = [name for name, family in FAMILIES.items() if family.model_type == config.get("model_type")]
    name = names[0] if isinstance(names, list) and len(names) == 1 else None
    if not isinstance(name, str) or name not in FAMILIES:
        got = f"architectures={config.get('architectures')!r}, model_type={config.get('model_type')!r}"
        raise ValueError(f"unsupported model: {got}; {SUPPORTED}")
    return name


def _unsupported_options(config: dict[str, Any], family: Family) -> list[str]:
    """A message for each option of the file that the decoder does not compute."""
    none = ["quantization_config"] + ["num_experts", "num_local_experts"] * (not family.experts)
    problems = [f"{key}={config[key]!r}, expected none" for key in none if config.get(key)]
    for key, only in (("hidden_act", "silu"), ("partial_rotary_factor", 1.0)):
        if config.get(key, only) != only:
            problems.append(f"{key}={config[key]!r}, expected {only!r}")
    switches = ["mlp_bias", "attention_dropout"] + ["use_sliding_window"] * (not family.windowed)
    if not family.qkv_bias:  # Qwen2 always has a bias on q, k and v, and no such key
        switches.append("attention_bias")
    problems += [f"{key}={config[key]!r}, expected off" for key in switches if config.get(key)]
    kinds = config.get("layer_types") or []
    only = "sliding_attention" if family.windowed and config.get("sliding_window", MISTRAL_WINDOW) else "full_attention"
    if not isinstance(kinds, list) or any(kind != only for kind in kinds):
        problems.append(f"layer_types={sorted(set(map(str, kinds)))}, expected {only} only")
    return problems


def _rope(config: dict[str, Any], problems: list[str]) -> tuple[Any, Llama3Scaling | None]:
    """Rotary base and scaling from the keys of transformers 4 (rope_theta, rope_scaling) or 5 (rope_parameters)."""
    theta, scaling = config.get("rope_theta"), None
    for key in ("rope_scaling", "rope_parameters"):
        options = config.get(key)
        if options is None:
            continue
        if not isinstance(options, dict):
            problems.append(f"{key}={options!r}, expected an object or null")
            continue
        nested = ", ".join(name for name, value in options.items() if isinstance(value, (dict, list)))
        if nested:
            problems.append(f"{key} has separate entries for {nested}, expected one set of numbers for all layers")
        kind = options.get("rope_type", options.get("type", "default"))
        if kind == "llama3":
            names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
            try:
                scaling = Llama3Scaling(*(options.get(name) for name in names))
            except ValueError as error:
                problems.append(str(error))
        elif kind != "default":
            problems.append(f"{key} type {kind!r}, expected 'default' or 'llama3'")
        if options.get("partial_rotary_factor", 1.0) != 1.0:
            problems.append(f"{key} partial_rotary_factor={options['partial_rotary_factor']!r}, expected 1.0")
        theta = options.get("rope_theta", theta)
    return _or(theta, 10000.0), scaling


def _dense_layers(config: dict[str, Any], problems: list[str]) -> tuple[int, ...]:
    """Layers of a mixture-of-experts model with an ordinary MLP: those listed, and those between two expert layers."""
    listed, step = _or(config.get("mlp_only_layers"), []), config.get("decoder_sparse_step", 1)
    layers = config.get("num_hidden_layers")
    if not isinstance(listed, list) or any(type(layer) is not int for layer in listed):
        problems.append(f"mlp_only_layers={listed!r}, expected a list of layer numbers")
    elif type(step) is not int or step < 1:
        problems.append(f"decoder_sparse_step={step!r}, expected an integer >= 1")
    elif type(layers) is int and layers <= 10_000:  # anything else is reported by DecoderConfig
        return tuple(layer for layer in range(layers) if layer in listed or (layer + 1) % step)
    return ()


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value
