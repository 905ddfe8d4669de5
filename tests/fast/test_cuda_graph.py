"""When a decode step is recorded, and how often, with a stand-in for the graph; test_gpu.py has real ones."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from taosr1.fast import cuda_graph
from taosr1.fast.cuda_graph import DecodeStep, can_record
from taosr1.fast.decoder import use_fast_modules
from taosr1.fast.generate import prefill
from taosr1.fast.static_cache import StaticCache
from taosr1.model.config import DecoderConfig
from taosr1.model.decoder import Decoder

SHAPE = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2}
SHAPE |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}


@pytest.fixture(scope="module")
def model() -> Decoder:
    config = DecoderConfig(61, **SHAPE, max_position_embeddings=64)
    return use_fast_modules(Decoder(config).init_weights(torch.Generator().manual_seed(0)))


@torch.no_grad()
def decode(model: Decoder, steps: int) -> list[list[int]]:
    """Greedy tokens of three rows that continue two prompts."""
    cache = StaticCache.of(prefill(model, [[1, 2, 3], [4, 5]])[1], torch.tensor([0, 0, 1]), steps)
    last, active, tokens = torch.tensor([7, 8, 9]), torch.ones(3, dtype=torch.bool), []
    step = DecodeStep(model, [cache], last, active, lambda logits, active: (logits.argmax(-1), active))
    for _ in range(steps):
        step()
        tokens.append(last.tolist())
    assert cache.length == steps
    return tokens


def test_a_step_is_run_once_then_recorded_and_then_replayed(model, monkeypatch):
    expected, log = decode(model, 9), []
    monkeypatch.setattr(cuda_graph, "can_record", lambda model, caches: True)
    run = DecodeStep._run

    monkeypatch.setattr(DecodeStep, "_run", lambda self: log.append("run") or run(self))
    monkeypatch.setattr(DecodeStep, "_record", lambda self: log.append("record") or setattr(self, "graph", "recorded"))
    monkeypatch.setattr(DecodeStep, "_replay", lambda self: log.append("replay") or run(self))
    assert decode(model, 9) == expected
    assert log == ["run", "record", *["replay"] * 8]


def test_a_replay_beyond_the_models_positions_is_an_error_as_for_any_step(model, monkeypatch):
    monkeypatch.setattr(cuda_graph, "can_record", lambda model, caches: True)
    monkeypatch.setattr(DecodeStep, "_record", lambda self: setattr(self, "graph", "recorded"))
    monkeypatch.setattr(DecodeStep, "_replay", lambda self: self._run())
    with pytest.raises(ValueError, match="65 positions asked for"):
        decode(model, 64)


def test_nothing_is_recorded_on_a_cpu_or_with_experts(model):
    cache = StaticCache.of(prefill(model, [[1, 2, 3]])[1], torch.tensor([0]), 4)
    assert not can_record(model, [cache])
    cache.keys = SimpleNamespace(is_cuda=True)
    assert can_record(model, [cache])
    experts = DecoderConfig(61, **SHAPE, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
    assert not can_record(Decoder(experts), [cache])
