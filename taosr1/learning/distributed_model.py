"""One model trained by several ranks: whole on each of them (DDP), or in shards (FSDP2) where it does not fit on one.

Both are PyTorch's own. What is ours is how a step is dealt out so that no rank ever waits for another in vain:

- A step's micro-batches are the same list on every rank, and `DistributedModel.share` deals them out. Losses are sums, so who computes which
  part changes nothing: one rank and sixteen take the same step.
- DDP: a rank works through its part by itself, however long that part is, and then all ranks add up their gradients, once a step.
- FSDP2: every forward and backward pass gathers weights from all ranks, layer by layer, so every rank has to run equally many of
  them. The shorter parts are filled up with None, which stands for a pass that counts nothing.
- Sampling takes as many passes as the longest reply has tokens, which no plan knows. So a sharded model samples and is judged from a
  whole copy, gathered tensor by tensor (`DistributedModel.for_sampling`, `DistributedModel.whole`): weights in the compute type, without gradients and optimizer,
  fit where training does not.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from taosr1.engine import PLAIN, Engine
from taosr1.judge import fast_dtype
from taosr1.learning.batches import Sized
from taosr1.model.decoder import Decoder
from taosr1.model.io.weights import load_weights
from taosr1.model.lora import adapters
from taosr1.runtime.distributed import gather, init_process_group, local_device, share, this_rank

T = TypeVar("T")
NEEDS_TORCHRUN = "--fsdp shards a model over the ranks of a job: start it with torchrun --standalone --nproc_per_node=N SCRIPT --fsdp"


def init_distributed(device: str, *, deterministic: bool = False, fsdp: bool = False) -> str:
    """Meet the other ranks, if torchrun started any; returns this rank's device. First thing in a training script.

    deterministic: of CUDA's kernels take those that give the same bits each time; a CPU's always do.
    Raises: ValueError for `fsdp` without torchrun.
    """
    if fsdp and "WORLD_SIZE" not in os.environ:
        raise ValueError(NEEDS_TORCHRUN)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    return local_device(device, init_process_group(device))


class Root(nn.Module):
    """Runs any function of a model inside this module's forward pass: that is where DDP and FSDP2 have their hooks."""

    def __init__(self, model: Decoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., T], *arguments: Any) -> T:
        return function(self.model, *arguments)


class DistributedModel:
    """The ranks of a job around one model. Alone, every method is the plain thing."""

    def __init__(self, model: Decoder, engine: Engine = PLAIN, *, fsdp: bool = False, device: torch.device | str = "cpu") -> None:
        """fsdp: cut the model into shards, one a rank; a model on the meta device gets its weights from `model.source` afterwards.

        Raises: ValueError for --fsdp without torchrun, or for a model with adapters.
        """
        self.model, self.engine, self.ranks, self.root = model, engine, this_rank(), Root(model)
        self.sharded = fsdp
        self._ddp: nn.Module | None = None
        if fsdp:
            _shard(self.root, device)

    def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """function(model, *arguments), where a sharded model gathers its weights. Then every rank has to call it equally often."""
        return self.root(function, *arguments) if self.sharded else function(self.model, *arguments)

    def share(self, parts: Sequence[T], cost: Callable[[T], float] = lambda part: 1.0) -> list[T | None]:
        """This rank's micro-batches of a list that all ranks have; filled up with None to equal length for a sharded model."""
        mine: list[T | None] = list(share(parts, self.ranks, cost))
        if self.sharded:
            longest = max(gather(len(mine)))
            mine += [None] * (longest - len(mine))
        return mine

    def budget(self, items: Sequence[Sized], max_tokens: int) -> int:
        """Tokens of a micro-batch: `max_tokens`, but of several ranks no more than one's fair share, or some would have nothing to do."""
        if self.ranks.world == 1:
            return max_tokens
        return max(1, min(max_tokens, -(-sum(item.length_tok for item in items) // self.ranks.world)))

    def sum_gradients(self) -> None:
        """`.grad` of every trained weight becomes its sum over all ranks."""
        if self.ranks.world == 1:
            return
        if not self.sharded:
            if self._ddp is None:
                self._ddp = nn.parallel.DistributedDataParallel(self.root)
            # Gradients were added up outside of DDP. This pass adds nothing to them, and DDP reduces what is there.
            self._ddp(_nothing).backward()
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                parameter.grad *= self.ranks.world  # both engines average

    def clip_gradients(self, max_norm: float) -> float:
        """Scale all gradients down to this norm at most; returns the norm that they had."""
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), max_norm)
        return float(whole_tensor(norm))

    @contextmanager
    def whole(self, dtype: torch.dtype = torch.float32) -> Iterator[Decoder]:
        """The model with all weights on this rank: itself, or a copy of the shards in `dtype` that lasts as long as the context.

        Each tensor is gathered by itself, so beside the copy only one more is in memory. All ranks have to enter together.
        """
        yield self._in_type(dtype) if self.sharded else self.model

    def for_sampling(self, dtype: torch.dtype) -> Decoder:
        """The model to decode many replies with: in the type of training, and on a CPU with its matrices laid out for that (`pack`). Not kept: the next
        step changes the weights. What it takes beside them is room that their gradients have afterwards. All ranks have to call it together.

        In float32 where training takes float16, whose range the residual stream of training, which is float32, may exceed; and where a CPU has
        no units for bfloat16. A model with adapters is itself: its frozen weights are in `dtype` already and have no gradients.
        """
        if adapters(self.model):
            return self.model
        on_cpu = next(self.model.parameters()).device.type == "cpu"
        slow = dtype == torch.bfloat16 and on_cpu and fast_dtype() != "bfloat16"
        if not self.sharded and (dtype == torch.float16 or slow):
            dtype = torch.float32
        return self.engine.prepack(self._in_type(dtype), decodes=True)

    def _in_type(self, dtype: torch.dtype) -> Decoder:
        """Another model with these weights, gathered where they are shards; those that are in `dtype` anyway are shared."""
        with torch.device("meta"):
            copy = Decoder(self.model.config)
        device = next(self.model.parameters()).device
        tensors = self.model.state_dict()
        copy.load_state_dict({name: whole_tensor(tensor.detach()).to(device, dtype) for name, tensor in tensors.items()}, assign=True)
        return self.engine.prepare(copy).requires_grad_(False)

    def idle(self) -> Tensor:
        """A forward pass for ranks that have nothing to do while the others do: 0, with a gradient of 0 for every weight."""
        return self.run(_idle, self.engine.completion_logp)


def whole_tensor(tensor: Tensor) -> Tensor:
    """A sharded tensor gathered on every rank; any other as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _nothing(model: Decoder) -> Tensor:
    return sum((parameter * 0).sum() for parameter in model.parameters() if parameter.requires_grad)


def _idle(model: Decoder, completion_logp: Callable[..., Tensor]) -> Tensor:
    device = next(model.parameters()).device
    ids = torch.zeros(1, 2, dtype=torch.int64, device=device)
    mask = torch.tensor([[False, True]], device=device)
    return completion_logp(model, ids, mask).sum() * 0


def _shard(root: Root, device: torch.device | str) -> None:
    """FSDP2: one group of shards a layer, one for the rest (embeddings, last norm, head)."""
    if not torch.distributed.is_initialized():
        raise ValueError(NEEDS_TORCHRUN)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = root.model
    mesh = init_device_mesh(torch.device(device).type, (torch.distributed.get_world_size(),))
    on_meta = next(model.parameters()).is_meta
    # reshard_after_forward also for the rest, where it is not the default: between passes parameters are shards, always. Else an
    # optimizer made after a pass without gradients would hold whole tensors that nothing reads again.
    for part in (*model.model.layers, root):
        fully_shard(part, mesh=mesh, reshard_after_forward=True, shard_placement_fn=_placement)
    if on_meta:
        model.to_empty(device=device)
        load_weights(model, model.source)


def _placement(parameter: nn.Parameter):
    """Stacked experts (E, out, in) are cut across `out`, so that each expert's matrix, which files hold by itself, is a shard too."""
    from torch.distributed.tensor import Shard

    return Shard(1) if parameter.ndim == 3 else None
