"""Soft labels as rows: by hand, against the target's cross-entropy from all logits, and in both engines."""

from __future__ import annotations

import pytest
import torch

from taosr1.engine import PLAIN
from taosr1.fast.engine import FAST
from taosr1.learning.batches import Example, micro_batches
from taosr1.learning.losses import ordinal_target, sft_loss
from taosr1.learning.soft_labels import SoftExample, soften

LABELS, TAU = (11, 12, 13, 14), 0.7
RULES = [3, 4, 5, 6, 7]
HARD = [Example([*RULES, 8, 9], [13, 20, 21]), Example([*RULES, 8], [14, 20]), Example([*RULES, 10, 9, 9], [11, 20])]
GRADES = [3, 4, 1]
EXAMPLES = soften(HARD, GRADES, LABELS, TAU)


def test_an_example_becomes_its_own_row_and_one_for_every_other_label():
    """Target 1 2 4 2 ninths: rows end in 11, 12, the whole reply 13 20 21, and 14."""
    item = SoftExample([5, 6], [13, 20, 21], LABELS, (1 / 9, 2 / 9, 4 / 9, 2 / 9))
    batch = SoftExample.collate([item])
    assert batch.ids.tolist() == [[5, 6, 11, 0, 0], [5, 6, 12, 0, 0], [5, 6, 13, 20, 21], [5, 6, 14, 0, 0]]
    ninths = (9 * batch.weights).round(decimals=5).tolist()
    assert ninths == [[0, 0, 1, 0, 0], [0, 0, 2, 0, 0], [0, 0, 4, 9, 9], [0, 0, 2, 0, 0]]
    assert torch.equal(batch.mask, batch.weights > 0) and item.length_tok == 2 + 3 + 3


def step(engine, model, items) -> tuple[float, float, torch.Tensor]:
    """Loss, count and gradient of the items in one micro-batch."""
    batch = SoftExample.collate(items)
    found = sft_loss(engine.completion_logp(model, batch.ids, batch.mask), batch.mask, weights=batch.weights)
    found.sum.backward()
    return found.sum.item(), found.count, gradient(model)


def gradient(model) -> torch.Tensor:
    found = torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])
    model.zero_grad()
    return found


@pytest.mark.parametrize("engine", [PLAIN, FAST], ids=["plain", "fast"])
def test_loss_and_gradient_are_the_cross_entropy_of_the_target_with_all_logits(make_model, engine):
    """The twin builds every logit of every example: target on the label position, one-hot behind it."""
    model = engine.prepare(make_model().double())
    loss, count, found = step(engine, model, EXAMPLES)
    twin, tokens = torch.zeros((), dtype=torch.float64), 0
    for example, grade in zip(HARD, GRADES):
        logp = make_logp(model, example)
        twin = twin - ordinal_target(torch.tensor([grade]), TAU)[0] @ logp[0, list(LABELS)]
        twin = twin - sum(logp[place, token] for place, token in enumerate(example.reply[1:], start=1))
        tokens += len(example.reply)
    twin.backward()
    assert loss == pytest.approx(twin.item(), rel=1e-6) and count == pytest.approx(tokens, rel=1e-6)
    torch.testing.assert_close(found, gradient(model), rtol=1e-6, atol=1e-6)


def make_logp(model, example: Example) -> torch.Tensor:
    """Log-probs at the positions that predict the reply, over the whole vocabulary."""
    ids = torch.tensor([[*example.prompt, *example.reply]])
    return model.head(model.hidden(ids))[0, len(example.prompt) - 1 : -1].log_softmax(-1)


def test_the_fast_engine_computes_the_prompt_once(make_model):
    """One example: seven tokens of prompt, and the two reply tokens that predict another; no fourfold prompt."""
    model, computed = FAST.prepare(make_model()), []
    hidden = model.hidden
    model.hidden = lambda ids, **given: computed.append(ids.numel()) or hidden(ids, **given)
    step(FAST, model, EXAMPLES[:1])
    assert computed == [7 + 2]


def test_a_step_is_the_same_in_one_micro_batch_and_in_three(make_model):
    model = FAST.prepare(make_model().double())
    loss, count, whole = step(FAST, model, EXAMPLES)
    parts = [step(FAST, model, items) for items in micro_batches(EXAMPLES, 1)]
    assert len(parts) == 3 and sum(part[0] for part in parts) == pytest.approx(loss, rel=1e-9)
    assert sum(part[1] for part in parts) == pytest.approx(count, rel=1e-6)
    torch.testing.assert_close(sum(part[2] for part in parts), whole, rtol=1e-9, atol=1e-9)
