"""One rank of a job that checks FSDP2 against one process, for every decoder; test_distributed_model.py starts it."""

from __future__ import annotations

import copy
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from taosr1.judge_model import load_judge
from taosr1.learning.batches import Example, collate
from taosr1.learning.checkpoint_weights import read_weights, write_weights
from taosr1.learning.distributed_model import DistributedModel, full_tensor, init_distributed
from taosr1.learning.draw_order import keyed_generator
from taosr1.learning.gradient import accumulate
from taosr1.learning.losses import sft_loss
from taosr1.learning.optimizers import make_optimizers
from taosr1.model.io.weights import load_decoder
from taosr1.model.logprobs import completion_logp
from taosr1.runtime.checkpoint import load_checkpoint, save_checkpoint
from taosr1.runtime.distributed import on_rank_zero, shutdown


def loss_fn(model, batch):
    return sft_loss(completion_logp(model, batch.ids, batch.mask), batch.mask)


def parts_of(seed: int, count: int) -> list:
    generator = keyed_generator("shards", seed)
    parts = []
    for _ in range(count):
        lengths = torch.randint(2, 9, (2,), generator=generator).tolist()
        row = [torch.randint(300, (length,), generator=generator).tolist() for length in lengths]
        parts.append(collate([Example(*row)]))
    return parts


def step(distributed: DistributedModel, optimizer, seed: int, count: int) -> dict:
    found = accumulate(distributed, distributed.share(parts_of(seed, count)), loss_fn)
    norm = distributed.clip_gradients(1.0)
    optimizer.step()
    distributed.model.zero_grad(set_to_none=True)
    return {"loss": found["loss"], "norm": norm}


def check(folder: str, dtype: torch.dtype, recompute: bool) -> None:
    """Steps with 5, 1 and 0 micro-batches for two ranks, saved and continued on the way, against one process's own."""
    judge = load_judge(folder, plain=True)  # as `load_decoder`: the two programs round differently
    plain, sharded = copy.deepcopy(judge.model), load_decoder(folder, device="meta")
    assert all(parameter.is_meta for parameter in sharded.parameters())
    plain.activation_checkpointing = sharded.activation_checkpointing = recompute
    distributed = DistributedModel(sharded, fsdp=True, dtype=dtype)
    held = sum(parameter.to_local().numel() for parameter in sharded.parameters())
    total = sum(parameter.numel() for parameter in plain.parameters())
    assert held < 0.75 * total, f"a rank of two holds {held} of {total} weights"
    optimizers = [make_optimizers(model, 1e-3)[0] for model in (plain, sharded)]
    for number, count in enumerate((5, 1, 0, 3)):
        if number == 2:
            saved = Path(folder).with_name(f"{Path(folder).name}-{dtype}-{recompute}".replace(".", "-"))
            optimizers[1] = through_a_checkpoint(judge, distributed, optimizers[1], saved)
        expected = accumulate_alone(plain, optimizers[0], number, count, dtype)
        found = step(distributed, optimizers[1], number, count)
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        differences = [abs(found[name] - expected[name]) for name in ("loss", "norm")]
        assert differences[0] <= tolerance and differences[1] <= 10 * tolerance, (number, found, expected)
    weights = [full_tensor(weight.detach()) for weight in sharded.state_dict().values()]
    differences = [float((a - b).abs().max()) for a, b in zip(plain.state_dict().values(), weights, strict=True)]
    assert max(differences) <= (1e-5 if dtype == torch.float32 else 5e-3), max(differences)
    with distributed.unsharded() as unsharded:
        for weight, copied in zip(weights, unsharded.state_dict().values(), strict=True):
            assert torch.equal(weight.to(dtype), copied)


def accumulate_alone(model, optimizer, seed: int, count: int, dtype: torch.dtype) -> dict:
    """The step as the sums of all its micro-batches in this process alone."""
    sums, total = 0.0, 0.0
    for batch in parts_of(seed, count):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = loss_fn(model, batch)
        loss.sum.backward()
        sums, total = sums + float(loss.sum.detach()), total + loss.count
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad /= total
    norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))
    optimizer.step()
    model.zero_grad(set_to_none=True)
    return {"loss": sums / max(total, 1e-9), "norm": norm}


def through_a_checkpoint(judge, distributed: DistributedModel, optimizer, folder: Path):
    """Save, spoil everything, and load: the following steps must not change. One process can load the folder too."""
    model = distributed.model
    write = partial(write_weights, model, judge.tokenizer, judge.prompt)
    path = save_checkpoint(folder, 2, [optimizer], {"drawn": 3}, 0, write)
    weights = [full_tensor(parameter.detach()).clone() for parameter in model.parameters()]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0)
    fresh = make_optimizers(model, 1e-3)
    assert load_checkpoint(path, fresh, partial(read_weights, model)) == (2, {"drawn": 3}, 0)
    loaded = on_rank_zero(lambda: {name: tensor for name, tensor in load_decoder(path).named_parameters()})
    for (name, parameter), weight in zip(model.named_parameters(), weights):
        assert torch.equal(full_tensor(parameter.detach()), weight) and torch.equal(loaded[name].detach(), weight), name
    return fresh[0]


if __name__ == "__main__":
    torch.set_num_threads(1)
    init_distributed("cpu")
    for folder in sys.argv[1:]:
        for dtype, recompute in ((torch.float32, False), (torch.float32, True), (torch.bfloat16, False)):
            check(folder, dtype, recompute)
            print(folder, dtype, recompute, "the same", flush=True)
    shutdown()
