"""Whole training steps of the fast engine and of the plain program: SFT, DPO and GRPO, gradients and ten steps each."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from taosr1.engine import PLAIN, Engine
from taosr1.fast import FAST
from taosr1.learning.batches import Example, label_token_weights
from taosr1.learning.distributed_model import DistributedModel
from taosr1.learning.gradient import accumulate
from taosr1.learning.losses import LossSum, dpo_loss, grpo_loss, sft_loss
from taosr1.learning.optimizers import make_optimizers
from taosr1.learning.rollout_group import Group, read_rollout
from taosr1.model.decoder import Decoder
from taosr1.model.logprobs import sequence_logp
from taosr1.model.lora import LoraConfig, add_adapters
from train.dpo import PreferencePair

INSTRUCTIONS = 18


def ids_of(length: int, seed: int) -> list[int]:
    return torch.randint(1, 97, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def prompt_of(number: int) -> list[int]:
    """Instructions, one of three queries, a product."""
    return [*ids_of(INSTRUCTIONS, 1), *ids_of(3 + number % 3, 10 + number % 3), *ids_of(2 + number % 5, 100 + number)]


def examples() -> list[Example]:
    return [Example(prompt_of(number), ids_of(1 + number % 3, 200 + number)) for number in range(12)]


def pairs() -> list[PreferencePair]:
    replies = [(ids_of(1 + number % 4, 300 + number), ids_of(1 + number % 3, 400 + number)) for number in range(7)]
    return [
        PreferencePair(Example(prompt_of(number), chosen), Example(prompt_of(number), rejected), -3.0, -4.0)
        for number, (chosen, rejected) in enumerate(replies)
    ]


def groups() -> list[Group]:
    """Four replies a group, of which the last two are equal."""
    found = []
    for number in range(4):
        tokens = [ids_of(2 + (number + reply) % 3, 500 + 10 * number + min(reply, 2)) for reply in range(4)]
        replies = [
            read_rollout("4", "label", ids=ids, advantage=1.0 - reply, token_logp=[-3.0] * len(ids))
            for reply, ids in enumerate(tokens)
        ]
        found.append(Group(number, prompt_of(number), 4, replies))
    return found


def sft(engine: Engine, model: Decoder, batch) -> LossSum:
    weights = label_token_weights(batch.mask, 3.0, "post-cot")
    return sft_loss(engine.completion_logp(model, batch.ids, batch.mask), batch.mask, weights=weights)


def dpo(engine: Engine, model: Decoder, batch) -> LossSum:
    logp = sequence_logp(engine.completion_logp(model, batch.ids, batch.mask), batch.mask)
    lengths, ref_logp = batch.mask.sum(dim=1), batch.ref_logp.to(logp.dtype)
    return dpo_loss(
        logp[::2], logp[1::2], ref_logp[::2], ref_logp[1::2], nll_coef=0.2,
        chosen_length=lengths[::2], rejected_length=lengths[1::2],
    )  # fmt: skip


def grpo(engine: Engine, model: Decoder, batch) -> LossSum:
    logp, entropy = engine.completion_logp(model, batch.ids, batch.mask, temperature=0.8, with_entropy=True)
    old = batch.old_logp.to(logp.dtype)
    return grpo_loss(logp, old, batch.advantages, batch.mask, ref_logp=old - 0.1, kl_beta=0.02, entropy=entropy)


STAGES = {"sft": (examples, sft), "dpo": (pairs, dpo), "grpo": (groups, grpo)}


def prepared(make_model, engine: Engine, family: str, dtype: torch.dtype, *, lora: bool = False) -> DistributedModel:
    model = make_model(family).to(dtype)
    if lora:
        config = LoraConfig(3, 8.0, targets=("q_proj", "v_proj", "o_proj"))
        add_adapters(model, config, torch.Generator().manual_seed(1))
        model.to(dtype)
    return DistributedModel(engine.prepare(model), engine)


def gradient(distributed: DistributedModel, stage: str, budget: int) -> tuple[dict[str, float], torch.Tensor]:
    items, loss = STAGES[stage]
    metrics = accumulate(distributed, distributed.deal(items(), budget), partial(loss, distributed.engine))
    return metrics, torch.cat([p.grad.flatten() for p in distributed.model.parameters() if p.grad is not None])


@pytest.mark.parametrize("budget", [70, 10_000])  # several micro-batches, one
@pytest.mark.parametrize("stage", STAGES)
def test_a_step_has_the_loss_metrics_and_gradient_of_the_plain_program(make_model, family, stage, budget):
    found = [gradient(prepared(make_model, engine, family, torch.float64), stage, budget) for engine in (PLAIN, FAST)]
    for name, value in found[0][0].items():
        assert found[1][0][name] == pytest.approx(value, rel=1e-6, abs=1e-9), name
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("stage", STAGES)
def test_the_losses_of_ten_steps_are_those_of_the_plain_program(make_model, stage, lora):
    curves = []
    for engine in (PLAIN, FAST):
        distributed, curve = prepared(make_model, engine, "qwen3", torch.float32, lora=lora), []
        (optimizer,) = make_optimizers(distributed.model, 1e-3, weight_decay=0.0)
        for _ in range(10):
            curve.append(gradient(distributed, stage, 150)[0]["loss"])
            distributed.clip_gradients(1.0)
            optimizer.step()
            distributed.model.zero_grad(set_to_none=True)
        curves.append(curve)
    assert abs(curves[0][0] - curves[0][-1]) > 0.01  # something was learned
    assert curves[1] == pytest.approx(curves[0], rel=1e-4, abs=1e-4)


@pytest.mark.parametrize(("stage", "rows"), [("sft", [12]), ("dpo", [14]), ("grpo", [16])])
def test_a_micro_batch_takes_what_all_prompts_share_once(make_model, stage, rows):
    """As many tokens that the plain program needs several micro-batches for are one of the fast engine."""
    items = STAGES[stage][0]()
    largest = max(item.length_tok for item in items)
    budget = INSTRUCTIONS + len(items) * (largest - INSTRUCTIONS)
    plain, fast = (
        DistributedModel(engine.prepare(make_model()), engine).deal(items, budget) for engine in (PLAIN, FAST)
    )
    assert len(plain) > 1 and [len(batch.ids) for batch in fast] == rows
    assert len(DistributedModel(make_model(), FAST).deal(items, budget - 1)) == 2
