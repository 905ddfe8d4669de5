"""What half precision may and may not do to the numbers that a ratio is made of."""

from __future__ import annotations

import pytest
import torch

from taosr1.learning.distributed_model import DistributedModel
from taosr1.learning.gradient import accumulate
from taosr1.learning.losses import grpo_loss
from taosr1.model.logprobs import completion_logp

MASK = torch.ones(2, 3, dtype=torch.bool)


def test_a_ratio_close_to_one_survives_in_float32_and_is_lost_in_bfloat16():
    """A log-prob of -5 has steps of 2^-5 = 0.03 in bfloat16: an update of 0.001 is lost in rounding, ratio 1."""
    old = torch.full((2, 3), -5.0)
    moved = old + 1e-3
    metrics = grpo_loss(moved, old, torch.ones(2), MASK).metrics
    assert metrics["ratio"] == pytest.approx(1.001, abs=1e-6)
    assert torch.equal(
        (moved.bfloat16() - old.bfloat16()).exp(), torch.ones(2, 3, dtype=torch.bfloat16)
    )  # the wrong twin


@pytest.mark.parametrize("which", ["logp", "old_logp", "ref_logp"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_log_probs_in_half_precision_are_refused_by_name(which, dtype):
    values = {"logp": torch.zeros(2, 3), "old_logp": torch.zeros(2, 3), "ref_logp": torch.zeros(2, 3)}
    values[which] = values[which].to(dtype)
    with pytest.raises(ValueError, match=f"{which}.*float32 or float64"):
        grpo_loss(values["logp"], values["old_logp"], torch.ones(2), MASK, ref_logp=values["ref_logp"], kl_beta=0.1)


def test_under_bfloat16_log_probs_are_float32_and_an_update_shows_in_the_ratio(make_judge):
    """Products are in bfloat16, sums and log-softmax are not: what an update changes is measured right on average."""
    judge = make_judge(hidden_size=64, intermediate_size=128, head_dim=32)
    ids = torch.randint(300, (16, 24), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[:, :4] = False

    def measured(dtype: torch.dtype) -> torch.Tensor:
        with torch.no_grad(), DistributedModel(judge.model, dtype=dtype).compute_dtype():
            return completion_logp(judge.model, ids, mask)[mask]

    before = {dtype: measured(dtype) for dtype in (torch.float32, torch.bfloat16)}
    assert before[torch.bfloat16].dtype == torch.float32
    assert torch.equal(measured(torch.bfloat16), before[torch.bfloat16])  # the ratio starts at exactly 1
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in judge.model.parameters():
            parameter += 0.004 * torch.randn(parameter.shape, generator=generator)
    exact, rounded = (measured(dtype) - before[dtype] for dtype in before)
    assert exact.abs().mean() < 0.1  # a small step
    assert torch.corrcoef(torch.stack((exact, rounded)))[0, 1] > 0.95
    assert (rounded - exact).mean().abs() < 0.1 * exact.abs().mean()


def test_gradients_are_added_up_in_float32_whatever_is_computed_in(make_judge):
    """Of many small micro-batches none is lost beside what has been added up, as it would be in a bfloat16 sum."""

    class Batch:
        ids = torch.randint(300, (1, 8), generator=torch.Generator().manual_seed(0))
        mask = torch.tensor([[False] + [True] * 7])

    def loss_fn(model, batch):
        from taosr1.learning.losses import sft_loss

        return sft_loss(completion_logp(model, batch.ids, batch.mask), batch.mask)

    judge = make_judge()
    distributed = DistributedModel(judge.model, dtype=torch.bfloat16)
    accumulate(distributed, [Batch], loss_fn)
    once = [parameter.grad.clone() for parameter in judge.model.parameters()]
    judge.model.zero_grad()
    accumulate(distributed, [Batch] * 600, loss_fn)
    for parameter, gradient in zip(judge.model.parameters(), once):
        assert parameter.grad.dtype == torch.float32
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-7)
