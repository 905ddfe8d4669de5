"""One model trained by several ranks: a copy on each of them (DDP), or in shards (FSDP2) where it does not fit on one.

Both are PyTorch's own. What is ours is how a step's work is divided, so that no rank waits for one that has stopped.
All ranks cut the same items into the same micro-batches, and each takes its share (`deal`). Losses are sums, so one
rank and sixteen take the same step. With FSDP2 every pass gathers weights from all ranks, layer by layer: every rank
has to run equally many, so shorter shares are filled up with None, for which a pass that counts nothing is run. How
many passes sampling takes is not known beforehand: a sharded model samples and is evaluated from an unsharded copy.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from math import ceil
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from taosr1.engine import PLAIN, Engine
from taosr1.judge_model import fast_dtype
from taosr1.learning.batches import Batch, Item, common_tok, micro_batches, padded_tok
from taosr1.model.decoder import Decoder
from taosr1.model.io.weights import load_weights
from taosr1.model.lora import adapters
from taosr1.runtime.distributed import gather, given_up_together, init_process_group, local_device, share, this_rank

T = TypeVar("T")
START = "start it with torchrun --standalone --nproc_per_node=N SCRIPT --fsdp"
NEEDS_TORCHRUN = f"--fsdp shards a model over the ranks of a job: {START}"


def init_distributed(device: str, *, deterministic: bool = False, fsdp: bool = False) -> str:
    """Connect to the other ranks, if torchrun started any; returns this rank's device. First call of a training script.

    deterministic: use only those of CUDA's kernels that give the same bits every time; a CPU's always do.
    Raises: ValueError for `fsdp` without torchrun.
    """
    if fsdp and "WORLD_SIZE" not in os.environ:
        raise ValueError(NEEDS_TORCHRUN)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    return local_device(device, init_process_group(device))


class Root(nn.Module):
    """Runs any function of a model inside this module's forward pass, where DDP and FSDP2 have their hooks."""

    def __init__(self, model: Decoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., T], *arguments: Any) -> T:
        return function(self.model, *arguments)


class DistributedModel:
    """A model and the ranks that train it. With one rank, every method is the plain operation."""

    def __init__(
        self, model: Decoder, engine: Engine = PLAIN, *,
        fsdp: bool = False, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        """dtype: the type that training computes in.

        fsdp: cut the model into shards, one a rank; a model on the meta device then gets its weights from its source.
        Raises: ValueError for --fsdp without torchrun, or for a model with adapters.
        """
        self.model, self.engine, self.ranks, self.root = model, engine, this_rank(), Root(model)
        self.sharded, self.dtype = fsdp, dtype
        self._ddp: nn.Module | None = None  # made when it is first needed
        if fsdp:
            _shard(self.root, device)
        self.device = next(model.parameters()).device

    # ---- A step's work -----------------------------------------------------------------------------------------------

    def deal(self, items: Sequence[Item], max_tokens: int) -> list[Batch | None]:
        """This rank's micro-batches, of at most `max_tokens`, of items that every rank has.

        With several ranks a micro-batch is no larger than one rank's fair share, or some would have nothing to do. None
        stands for a dummy pass of a sharded model.
        """
        shared = self.shared_tok(items)
        if self.ranks.world > 1:
            fair = shared + ceil(sum(item.length_tok - shared for item in items) / self.ranks.world)
            max_tokens = max(1, min(max_tokens, fair))
        parts = micro_batches(items, max_tokens, shared_tok=shared)
        mine = self.share(parts, lambda part: padded_tok(part, shared))
        return [part and type(part[0]).collate(part, self.device) for part in mine]

    def shared_tok(self, items: Sequence[Item]) -> int:
        """Tokens that all items begin with, which a micro-batch of this engine takes once: of the plain one none."""
        return common_tok(items) if self.engine.shares_prefixes else 0

    def share(self, parts: Sequence[T], cost: Callable[[T], float] = lambda part: 1.0) -> list[T | None]:
        """This rank's share of a list that every rank has; for a sharded model filled up with None to equal length."""
        mine: list[T | None] = list(share(parts, self.ranks, cost))
        if self.sharded:
            mine += [None] * (max(gather(len(mine))) - len(mine))
        return mine

    def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """function(model, *arguments) in the compute type. With a sharded model all ranks have to call it together."""
        with self.compute_dtype():
            return self.root(function, *arguments) if self.sharded else function(self.model, *arguments)

    def given_up_together(self) -> AbstractContextManager:
        """Around passes that a rank may give up; not of a sharded model, each pass of which needs all ranks."""
        return nullcontext() if self.sharded else given_up_together()

    def dummy_forward(self) -> Tensor:
        """A pass of a rank that has nothing to compute while others do: 0, with a gradient of 0 for every weight."""
        ids = torch.zeros(1, 2, dtype=torch.int64, device=self.device)
        return self.run(self.engine.completion_logp, ids, ids.new_tensor([[0, 1]]).bool()).sum() * 0

    def compute_dtype(self) -> AbstractContextManager:
        """Autocast to the compute type on the model's device; float32 needs none."""
        return torch.autocast(self.device.type, self.dtype) if self.dtype != torch.float32 else nullcontext()

    # ---- Gradients ---------------------------------------------------------------------------------------------------

    def average_gradients(self) -> None:
        """`.grad` of every trained weight becomes its mean over all ranks; that of a sharded model is one already."""
        if self.ranks.world == 1 or self.sharded:
            return
        if self._ddp is None:
            self._ddp = nn.parallel.DistributedDataParallel(self.root)
        # Gradients were added up outside of DDP. This pass adds 0 to each of them, and DDP averages the result.
        self._ddp(_zero).backward()

    def clip_gradients(self, max_norm: float) -> float:
        """Scale all gradients down to this norm at most; returns the norm that they had."""
        return float(full_tensor(nn.utils.clip_grad_norm_(self.model.parameters(), max_norm)))

    # ---- The weights -------------------------------------------------------------------------------------------------

    @contextmanager
    def unsharded(self) -> Iterator[Decoder]:
        """The model with all weights on this rank: itself, or of a sharded one a copy in the compute type.

        All ranks have to enter together. Tensors are gathered one by one, to have no more than the copy in memory.
        """
        yield self._copy(self.dtype) if self.sharded else self.model

    def sampling_model(self) -> Decoder:
        """A model with these weights to decode many replies with. All ranks have to call it together.

        It is in the compute type and, on a CPU, its matrices are laid out for decoding (`engine.prepack`). It must not
        be kept: the next step changes the weights, and the memory that it takes is needed for their gradients.
        """
        if adapters(self.model):  # the frozen weights are in the compute type already and have no gradients
            return self.model
        slow = self.dtype == torch.bfloat16 and self.device.type == "cpu" and fast_dtype() != "bfloat16"
        narrow = self.dtype == torch.float16  # training's residual stream, in float32, may be beyond its range
        in_float32 = not self.sharded and (slow or narrow)
        return self.engine.prepack(self._copy(torch.float32 if in_float32 else self.dtype), decodes=True)

    def _copy(self, dtype: torch.dtype) -> Decoder:
        """Another model with these weights, gathered where they are sharded; those of that type already are shared."""
        with torch.device("meta"):
            copy = Decoder(self.model.config)
        weights = self.model.state_dict().items()
        copied = {name: full_tensor(weight.detach()).to(self.device, dtype) for name, weight in weights}
        copy.load_state_dict(copied, assign=True)
        return self.engine.prepare(copy).requires_grad_(False)


def full_tensor(tensor: Tensor) -> Tensor:
    """A sharded tensor gathered on every rank; any other unchanged."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _zero(model: Decoder) -> Tensor:
    return sum((parameter * 0).sum() for parameter in model.parameters() if parameter.requires_grad)


def _shard(root: Root, device: torch.device | str) -> None:
    """FSDP2: one group of shards a layer, one for the rest (embeddings, last norm, head)."""
    if not torch.distributed.is_initialized():
        raise ValueError(NEEDS_TORCHRUN)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = root.model
    mesh = init_device_mesh(torch.device(device).type, (torch.distributed.get_world_size(),))
    on_meta = next(model.parameters()).is_meta
    # reshard_after_forward also for the rest, where it is not the default: between passes parameters are always shards.
    # Else an optimizer made after a pass without gradients would hold unsharded tensors that are never used again.
    for module in (*model.model.layers, root):
        fully_shard(module, mesh=mesh, reshard_after_forward=True, shard_placement_fn=_placement)
    if on_meta:
        model.to_empty(device=device)
        load_weights(model, model.source)


def _placement(parameter: nn.Parameter):
    """Stacked experts (E, out, in) are cut across `out`: then each expert's matrix, a tensor in files, is a shard."""
    from torch.distributed.tensor import Shard

    return Shard(1) if parameter.ndim == 3 else None
