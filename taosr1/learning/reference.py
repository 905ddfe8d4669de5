"""Log-probs of given replies under the reference policy, or under the policy that sampled them: stored, no gradient."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from taosr1.learning.batches import Batch
from taosr1.learning.distributed_model import DistributedModel
from taosr1.learning.rollout_group import Group, RolloutBatch
from taosr1.model.decoder import Decoder
from taosr1.model.lora import adapters, adapters_off
from taosr1.runtime.progress import report


def reference_policy(model: Decoder) -> Decoder:
    """A frozen copy of the model; of one with adapters itself, which `reference_logp` runs with the adapters off."""
    return model if adapters(model) else copy.deepcopy(model).requires_grad_(False)


def reference_logp(reference: DistributedModel, batch: Batch | None, *, temperature: float = 1.0) -> Tensor | None:
    """`measured_logp` of the reference policy: without the adapters, where its model has any."""
    with adapters_off(reference.model):
        return measured_logp(reference, batch, temperature=temperature)


@torch.no_grad()
def measured_logp(distributed: DistributedModel, batch: Batch | None, *, temperature: float = 1.0) -> Tensor | None:
    """Log-probs (B, T) of a batch's replies, computed in the type and by the functions of training.

    batch: one of `DistributedModel.deal`; for None a dummy pass is run, and the result is None.
    """
    if batch is None:
        distributed.dummy_forward()
        return None
    logp = partial(distributed.engine.completion_logp, temperature=temperature)
    return distributed.run(logp, batch.ids, batch.mask)


def with_stored_logp(
    batches: Sequence[RolloutBatch | None], groups: Sequence[Group], policy: DistributedModel,
    reference: DistributedModel | None, temperature: float,
) -> list[RolloutBatch | None]:  # fmt: skip
    """Rollouts with the log-probs of the policy that sampled them and, with a KL term, of the reference.

    The sampler's log-probs are the policy's, except where training computes in a half type: norms and the residual
    stream are then float32 in training only, so they are measured again. Else the ratio would not start at 1 and the
    clip would act on rounding errors. A teacher's reply has none from the sampler. All ranks decide alike.
    """
    replies = [reply for group in groups for reply in group.replies]
    measures = policy.dtype != torch.float32 or any(reply.token_logp is None for reply in replies)
    done: list[RolloutBatch | None] = []
    for number, batch in enumerate(batches):
        if measures or reference:
            report("log-probs of micro-batches", number, len(batches))
        old_logp = batch.old_logp if batch and not measures else None
        if measures:
            old_logp = measured_logp(policy, batch, temperature=temperature)
        ref_logp = reference_logp(reference, batch, temperature=temperature) if reference else None
        done.append(batch and replace(batch, old_logp=old_logp, ref_logp=ref_logp))
    return done
