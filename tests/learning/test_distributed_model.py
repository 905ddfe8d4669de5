"""One rank is the plain operation; FSDP2 on two ranks, for every kind of decoder. tests/faults has whole stages."""

from __future__ import annotations

import os
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch

from taosr1 import fast
from taosr1.judge_model import fast_dtype
from taosr1.learning import distributed_model
from taosr1.learning.batches import Example
from taosr1.learning.distributed_model import DistributedModel
from taosr1.learning.trainee import MemoryFlags, memory_problems
from taosr1.model.decoder import Decoder, DecoderConfig
from taosr1.model.io.weights import load_decoder, save_pretrained
from taosr1.model.lora import LoraConfig, add_adapters

ROOT = Path(__file__).resolve().parents[2]
SHAPE = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8
)
KINDS = {
    "qwen3": {},
    "llama": {"qk_norm": False, "tie_word_embeddings": False},
    "qwen2": {"qk_norm": False, "qkv_bias": True},
    "moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "tie_word_embeddings": False},
}


def test_one_rank_does_nothing_of_its_own(make_judge):
    judge = make_judge()
    distributed = DistributedModel(judge.model)
    assert distributed.share([3, 1, 2]) == [3, 1, 2]
    assert distributed.run(lambda model, word: (model, word), "x") == (judge.model, "x")
    items = [Example([1] * n, [2]) for n in (3, 1, 2)]
    assert [batch.ids.shape for batch in distributed.deal(items, 6)] == [(2, 3), (1, 4)]
    with distributed.unsharded() as model:
        assert model is judge.model
    for parameter in judge.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    distributed.average_gradients()
    for parameter in judge.model.parameters():
        assert torch.equal(parameter.grad, torch.ones_like(parameter))
    assert float(distributed.dummy_forward().detach()) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("enable", [fast.enable, lambda judge: judge], ids=["fast", "plain"])
def test_a_sampling_model_has_the_weights_of_this_step_in_the_type_of_training_and_leaves_them_trainable(
    make_judge, dtype, enable
):
    judge = enable(make_judge())
    distributed, ids = DistributedModel(judge.model, judge.engine, dtype=dtype), torch.tensor([[5, 6, 7, 8]])
    weights = {name: parameter.clone() for name, parameter in judge.model.named_parameters()}
    for _ in range(2):  # the second time after a step
        sampler = distributed.sampling_model()
        assert sampler is not judge.model and not any(parameter.requires_grad for parameter in sampler.parameters())
        found, expected = sampler(ids), deepcopy(judge.model).to(dtype)(ids)
        assert found.dtype == dtype or fast_dtype() != "bfloat16"
        tolerance = 1e-5 if dtype == torch.float32 else 3e-2
        torch.testing.assert_close(found.float(), expected.float(), atol=tolerance, rtol=1e-5)
        with torch.no_grad():
            for parameter in judge.model.parameters():
                parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
        moved = float((judge.model(ids) - expected.float()).detach().abs().max())
        assert moved > 0.1  # so that the comparison above could fail
    assert list(weights) == [name for name, _ in judge.model.named_parameters()]
    judge.model(ids).sum().backward()
    assert all(parameter.requires_grad and parameter.grad is not None for parameter in judge.model.parameters())


def test_what_a_processor_or_a_type_cannot_do_well_is_sampled_in_float32(make_judge, monkeypatch):
    """float16's largest number is 65,504; training's residual stream, in float32, may be beyond it."""

    def sampled_in(dtype: torch.dtype) -> torch.dtype:
        return next(DistributedModel(make_judge().model, dtype=dtype).sampling_model().parameters()).dtype

    assert sampled_in(torch.float16) == torch.float32
    for fastest, expected in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        monkeypatch.setattr(distributed_model, "fast_dtype", lambda fastest=fastest: fastest)
        assert sampled_in(torch.bfloat16) == expected


def test_a_sampling_model_shares_what_it_need_not_change_and_adapters_sample_as_they_are(make_judge):
    judge = make_judge()
    sampler = DistributedModel(judge.model).sampling_model()
    assert all(
        a.data_ptr() == b.data_ptr() for a, b in zip(sampler.parameters(), judge.model.parameters(), strict=True)
    )
    judge = fast.enable(judge)
    sampler = DistributedModel(judge.model, judge.engine).sampling_model()
    assert sampler.model.embed_tokens.weight.data_ptr() == judge.model.model.embed_tokens.weight.data_ptr()
    add_adapters(judge.model, LoraConfig(2, 4))
    assert DistributedModel(judge.model, judge.engine).sampling_model() is judge.model


def test_shards_without_ranks_and_shards_of_adapters_are_refused_with_what_to_do(make_judge):
    with pytest.raises(
        ValueError, match="--fsdp .*start it with torchrun --standalone --nproc_per_node=N SCRIPT --fsdp"
    ):
        DistributedModel(make_judge().model, fsdp=True)
    ((wrong, message),) = memory_problems(MemoryFlags(fsdp=True, lora_rank=4))
    assert wrong and "with --lora-rank leave it out" in message


def test_a_model_on_the_meta_device_has_its_shape_and_no_weights(make_judge, tmp_path):
    judge = make_judge()
    save_pretrained(judge.model, judge.tokenizer, tmp_path)
    model = load_decoder(tmp_path, device="meta")
    assert model.config == judge.model.config and all(parameter.is_meta for parameter in model.parameters())


def test_sharded_steps_equal_one_processs_for_every_kind_of_decoder_through_a_checkpoint(tiny_tokenizer, tmp_path):
    folders = []
    for kind, flags in KINDS.items():
        model = Decoder(DecoderConfig(tiny_tokenizer.vocab_size, **SHAPE, **flags)).init_weights(
            torch.Generator().manual_seed(1)
        )
        save_pretrained(model, tiny_tokenizer, tmp_path / kind)
        folders.append(str(tmp_path / kind))
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        str(ROOT / "tests/learning/shards_worker.py"),
        *folders,
    ]
    answer = subprocess.run(
        launch, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=240
    )
    assert answer.returncode == 0, answer.stdout[-1000:] + answer.stderr[-4000:]
    assert answer.stdout.count("the same") == 2 * 3 * len(KINDS)
