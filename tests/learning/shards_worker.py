"""One rank of a job that checks FSDP2 against one process, for every kind of decoder; started by test_parallel.py under torchrun."""

from __future__ import annotations

import copy
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from taosr1.judge import load_judge
from taosr1.learning.batches import Example, collate
from taosr1.learning.checkpoint_weights import read_weights, write_weights
from taosr1.learning.distributed_model import DistributedModel, init_distributed, whole_tensor
from taosr1.learning.loop import accumulate, make_optimizers
from taosr1.learning.losses import sft_loss
from taosr1.learning.selection import keyed_generator
from taosr1.model.io.weights import load_decoder
from taosr1.model.logprobs import completion_logp
from taosr1.runtime.checkpoint import load_checkpoint, save_checkpoint
from taosr1.runtime.distributed import on_rank_zero, shutdown


def loss_fn(model, batch):
    return sft_loss(completion_logp(model, batch.ids, batch.mask), batch.mask)


def parts_of(seed: int, count: int) -> list:
    generator = keyed_generator("shards", seed)
    rows = [[torch.randint(300, (n,), generator=generator).tolist() for n in torch.randint(2, 9, (2,), generator=generator).tolist()] for _ in range(count)]
    return [collate([Example(*row)]) for row in rows]


def step(team: DistributedModel, optimizer, seed: int, count: int, dtype: torch.dtype) -> dict:
    found = accumulate(team.model, team.share(parts_of(seed, count)), loss_fn, dtype, team)
    norm = team.clip_gradients(1.0)
    optimizer.step()
    team.model.zero_grad(set_to_none=True)
    return {"loss": found["loss"], "norm": norm}


def check(folder: str, dtype: torch.dtype, recompute: bool) -> None:
    """Steps with 5, 1 and 0 micro-batches for two ranks, saved and continued on the way, against one process's own."""
    judge = load_judge(folder)
    plain, sharded = copy.deepcopy(judge.model), load_decoder(folder, device="meta")
    assert all(parameter.is_meta for parameter in sharded.parameters())
    plain.activation_checkpointing = sharded.activation_checkpointing = recompute
    alone, team = DistributedModel(plain), DistributedModel(sharded, fsdp=True)
    object.__setattr__(alone, "ranks", type(alone.ranks)())  # one rank, whatever the environment says
    held = sum(parameter.to_local().numel() for parameter in sharded.parameters())
    total = sum(parameter.numel() for parameter in plain.parameters())
    assert held < 0.75 * total, f"a rank of two holds {held} of {total} weights"
    optimizers = [make_optimizers(model, 1e-3)[0] for model in (plain, sharded)]
    for number, count in enumerate((5, 1, 0, 3)):
        if number == 2:
            optimizers[1] = through_a_checkpoint(judge, team, optimizers[1], Path(folder).with_name(f"{Path(folder).name}-{dtype}-{recompute}".replace(".", "-")))
        expected = accumulate_alone(plain, optimizers[0], number, count, dtype)
        found = step(team, optimizers[1], number, count, dtype)
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        assert abs(found["loss"] - expected["loss"]) <= tolerance and abs(found["norm"] - expected["norm"]) <= 10 * tolerance, (number, found, expected)
    with team.whole() as whole:
        differences = [float((a - b).abs().max()) for a, b in zip(plain.state_dict().values(), whole.state_dict().values())]
        assert max(differences) <= (1e-5 if dtype == torch.float32 else 5e-3), max(differences)


def accumulate_alone(model, optimizer, seed: int, count: int, dtype: torch.dtype) -> dict:
    """The step as the sums of all its micro-batches in this process, without a team."""
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


def through_a_checkpoint(judge, team: DistributedModel, optimizer, folder: Path):
    """Save, spoil everything, and load: the steps that follow must not notice. The saved folder must load in one process as well."""
    path = save_checkpoint(
        folder, 2, [optimizer], {"drawn": 3}, write_weights=partial(write_weights, team.model, judge.tokenizer, judge.prompt)
    )
    weights = [whole_tensor(parameter.detach()).clone() for parameter in team.model.parameters()]
    with torch.no_grad():
        for parameter in team.model.parameters():
            parameter.mul_(0)
    fresh = make_optimizers(team.model, 1e-3)
    assert load_checkpoint(path, fresh, read_weights=partial(read_weights, team.model)) == (2, {"drawn": 3}, 0)
    loaded = on_rank_zero(lambda: {name: tensor for name, tensor in load_decoder(path).named_parameters()})
    for (name, parameter), weight in zip(team.model.named_parameters(), weights):
        assert torch.equal(whole_tensor(parameter.detach()), weight) and torch.equal(loaded[name].detach(), weight), name
    return fresh[0]


if __name__ == "__main__":
    torch.set_num_threads(1)
    init_distributed("cpu")
    for folder in sys.argv[1:]:
        for dtype, recompute in ((torch.float32, False), (torch.float32, True), (torch.bfloat16, False)):
            check(folder, dtype, recompute)
            print(folder, dtype, recompute, "the same", flush=True)
    shutdown()
