"""LoRA and activation checkpointing as the training scripts switch them on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from taosr1.judge_model import BUNDLED
from taosr1.learning.optimizers import make_optimizers
from taosr1.learning.trainee import MemoryFlags, load_trainee, memory_problems
from taosr1.model.decoder import Decoder, DecoderConfig
from taosr1.model.lora import adapters


def test_without_flags_all_weights_are_trained_in_float32():
    model = load_trainee(BUNDLED, MemoryFlags(), dtype="bfloat16").model
    assert not adapters(model) and not model.activation_checkpointing
    assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in model.parameters())


def test_with_adapters_the_frozen_rest_is_held_in_the_compute_type(capsys):
    flags = MemoryFlags(lora_rank=4, lora_alpha=8.0, lora_targets="q_proj, v_proj", activation_checkpointing=True)
    model = load_trainee(BUNDLED, flags, dtype="bfloat16").model
    assert model.activation_checkpointing
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (".lora_" in name)
        assert parameter.dtype == (torch.float32 if ".lora_" in name else torch.bfloat16)
    assert {layer.lora.targets for layer in adapters(model)} == {("q_proj", "v_proj")}
    assert "weights are trained" in capsys.readouterr().out


def test_adapters_need_trained_weights_and_known_layers():
    with pytest.raises(ValueError, match="--model tiny is fresh weights"):
        load_trainee("tiny", MemoryFlags(lora_rank=4), dtype="float32")
    for flags, dropout in (
        (MemoryFlags(), 0.0),
        (MemoryFlags(lora_targets="q_proj"), 0.0),
        (MemoryFlags(lora_alpha=64.0), 0.0),
        (MemoryFlags(), 0.1),
    ):
        ((wrong, message),) = memory_problems(flags, dropout)
        assert wrong == (flags != MemoryFlags() or dropout > 0) and "which need --lora-rank" in message
    for flags, words in (
        (MemoryFlags(lora_rank=-1), "rank is -1"),
        (MemoryFlags(lora_rank=2, lora_targets="nonsense"), "targets are nonsense"),
    ):
        ((wrong, message),) = memory_problems(flags)
        assert wrong and "--lora-" in message and words in message


def test_optimizers_hold_what_is_trained_and_decay_every_matrix():
    shape = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
    }
    config = DecoderConfig(50, **shape, num_experts=3, num_experts_per_tok=2, moe_intermediate_size=8)
    model = Decoder(config).init_weights()
    plain, matrices = make_optimizers(model, 1e-3, weight_decay=0.1)[0].param_groups
    assert plain["weight_decay"] == 0 and matrices["weight_decay"] == 0.1
    assert {p.ndim for p in matrices["params"]} == {2, 3} and any(
        p is model.model.layers[0].mlp.experts.up_proj for p in matrices["params"]
    )
    adamw, muon = make_optimizers(model, 1e-3, muon_lr=0.02)
    assert {p.ndim for p in muon.param_groups[0]["params"]} == {2}  # Muon knows no stacks
    assert any(p is model.model.layers[0].mlp.experts.up_proj for p in adamw.param_groups[0]["params"])
    model.requires_grad_(False).model.layers[0].self_attn.q_proj.requires_grad_(True)
    ((group,),) = [optimizer.param_groups for optimizer in make_optimizers(model, 1e-3)]
    assert [p is model.model.layers[0].self_attn.q_proj.weight for p in group["params"]] == [True]


def test_flags_are_frozen_and_inherited_by_all_three_stages():
    import train.dpo
    import train.grpo
    import train.sft

    for script in (train.sft, train.dpo, train.grpo):
        config = replace(script.Config(), lora_rank=8)
        assert isinstance(config, MemoryFlags)
        with pytest.raises(ValueError, match="--lora-rank.*alpha is 0"):
            replace(config, lora_alpha=0.0)
