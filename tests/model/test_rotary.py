"""Rotary positions: angles worked out by hand, and Llama 3's stretch of the slow ones."""

from __future__ import annotations

import math

import pytest
import torch

from taosr1.model.config import Llama3Scaling
from taosr1.model.rotary import rotary_cos_sin, rotate


def test_a_pair_of_channels_turns_by_position_times_frequency(make_model):
    """Head of 8, base 10000: frequencies 1, 1/10, 1/100, 1/1000; channel i is paired with channel i + 4."""
    cos, sin = rotary_cos_sin(make_model().config, torch.tensor([[3]]), torch.float32)
    x = torch.zeros(1, 1, 1, 8)
    x[..., 1], x[..., 5] = 3.0, 4.0
    turned = rotate(x, cos, sin).flatten()
    angle = 3 * 0.1
    assert turned[1] == pytest.approx(3 * math.cos(angle) - 4 * math.sin(angle), abs=1e-6)
    assert turned[5] == pytest.approx(3 * math.sin(angle) + 4 * math.cos(angle), abs=1e-6)
    assert turned[[0, 2, 3, 4, 6, 7]].abs().max() == 0


def test_llama3_keeps_fast_rotations_slows_slow_ones_and_ramps_between():
    """Context 100, factor 4, ramp from 1 to 3 turns: 10 turns are kept, half a turn becomes an eighth, 2 turns are
    half way: 0.5 * 2 + 0.5 * 2 / 4 = 1.25."""
    turns = torch.tensor([10.0, 3.0, 2.0, 1.0, 0.5])
    scaled = Llama3Scaling(4.0, 1.0, 3.0, 100)(turns * 2 * math.pi / 100) * 100 / (2 * math.pi)
    torch.testing.assert_close(scaled, torch.tensor([10.0, 3.0, 1.25, 0.25, 0.125]))


def test_llama3_frequencies_are_those_of_transformers():
    """The numbers of Llama 3.2: base 500,000, heads of 64, stretched 32 times from 8,192 positions."""
    transformers = pytest.importorskip("transformers", reason="the parity tests need transformers (pip install .[dev])")
    rope = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = transformers.LlamaConfig(
        hidden_size=128, num_attention_heads=2, head_dim=64, rope_parameters={**rope, "rope_theta": 5e5}
    )
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 1.0 / 5e5 ** (torch.arange(0, 64, 2).float() / 64)
    scaled = Llama3Scaling(32.0, 1.0, 4.0, 8192)(plain)
    torch.testing.assert_close(scaled, expected, rtol=1e-6, atol=0)
    assert (scaled[-1] / plain[-1]).item() == pytest.approx(1 / 32)


@pytest.mark.parametrize(
    "changes, words",
    [((-1.0, 1.0, 3.0, 100), "factor is -1.0"), ((4.0, 3.0, 3.0, 100), "is not below"), ((4.0, None, 3.0, 1), "None")],
)
def test_a_bad_scaling_is_refused_by_name(changes, words):
    with pytest.raises(ValueError, match=words):
        Llama3Scaling(*changes)
