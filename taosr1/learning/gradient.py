"""The gradient of one step: forward and backward over its micro-batches, and the one division."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence

import torch

from taosr1.learning.batches import Batch, halved
from taosr1.learning.distributed_model import DistributedModel
from taosr1.learning.losses import LossSum
from taosr1.model.decoder import Decoder
from taosr1.runtime.distributed import gather
from taosr1.runtime.progress import report

Loss = Callable[[Decoder, Batch], LossSum]


def accumulate(distributed: DistributedModel, batches: Sequence[Batch | None], loss: Loss) -> dict[str, float]:
    """Leaves a step's gradient in `.grad`: of the sum of all losses, those of all ranks, over the sum of their counts.

    batches: this rank's micro-batches; None for a dummy pass. One that does not fit into memory is halved, once.
    Returns: the whole step's loss and metrics, each a mean over what the losses count. No batches, or nothing that
        counts, is a step without gradient: loss 0.
    Raises: MemoryError where half of a micro-batch does not fit either; GivenUp between two micro-batches.
    """
    model, totals = distributed.model, Counter()
    with distributed.given_up_together():
        own = _add_up_halving(distributed, batches, loss)
    for sums in gather(own):  # those of all ranks
        totals.update(sums)
    distributed.average_gradients()
    count = max(totals.pop("count"), 1e-9)
    if not totals.pop("passes"):
        model.zero_grad(set_to_none=True)  # no gradient, not one of zeros, which would still move what has momentum
    # The only division of a step's gradient. Three things rely on it:
    # - Losses return sums, never means, so that it does not matter how a step is cut into micro-batches.
    # - DDP and FSDP2 average gradients over ranks: `.grad` is 1 / world of the sum, which is undone here.
    # - The SFT term of train/grpo.py (`SftTerm`) multiplies its mean by the step's count, and counts 0 itself.
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad /= count / distributed.ranks.world
    return {name: value / count for name, value in totals.items()}


def _add_up_halving(distributed: DistributedModel, batches: Sequence[Batch | None], loss: Loss) -> Counter[str]:
    """`_add_up`, once more with the micro-batch halved that did not fit into memory."""
    try:
        return _add_up(distributed, batches, loss)
    except _TooLargeError as error:
        number = error.number
    # Out here, where the failed pass and its activations are gone.
    hint = "the step is repeated once, with it halved; a smaller --micro-batch-tok avoids this"
    print(f"out of memory in a micro-batch: {hint}", file=sys.stderr)
    distributed.model.zero_grad(set_to_none=True)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return _add_up(distributed, [*batches[:number], *halved(batches[number]), *batches[number + 1 :]], loss)


def _add_up(distributed: DistributedModel, batches: Sequence[Batch | None], loss: Loss) -> Counter[str]:
    """Gradients of this rank's micro-batches added up in `.grad`; returns the sums of loss, count and metrics."""
    sums = Counter({"loss": 0.0, "count": 0.0, "passes": 0.0})
    for number, batch in enumerate(batches):
        report("micro-batches", number, len(batches))
        try:
            if batch is None:  # another rank has more to compute
                distributed.dummy_forward().backward()
                continue
            found = distributed.run(loss, batch)
            found.sum.backward()
        except (RuntimeError, MemoryError) as error:
            # With a sharded model every pass is one of all ranks: one rank cannot repeat its own.
            if is_out_of_memory(error) and not distributed.sharded:
                raise _TooLargeError(number) from None
            raise
        sums.update({name: value * found.count for name, value in found.metrics.items()})
        sums.update({"loss": float(found.sum.detach()), "count": found.count, "passes": 1.0})
    return sums


class _TooLargeError(MemoryError):
    """Micro-batch `number` of a step does not fit into memory."""

    def __init__(self, number: int) -> None:
        hint = "try a smaller --micro-batch-tok, --activation-checkpointing or --lora-rank"
        super().__init__(f"out of memory in micro-batch {number}; {hint}")
        self.number = number


def is_out_of_memory(error: BaseException) -> bool:
    """A GPU's, or a CPU's, whose allocator has no exception of its own."""
    is_one = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return is_one or "can't allocate memory" in str(error)
